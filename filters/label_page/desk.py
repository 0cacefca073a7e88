"""What the page asks for, answered from the store: who works on which batch, what they see of it, what they decided. No HTTP in here."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filters.label_batches import batch_items, record_event
from filters.label_page.breaks import Limits, Session, session_at
from filters.label_page.pictures import PictureMissing, Pictures
from filters.label_page.settings import PageConfig
from filters.label_progress import Progress, decision_times, progress, recent
from filters.label_queue import Saved, claim, decide, release
from filters.label_records import BLIND, TWO_PICTURES, Batch, BatchItem, Decision, policy_version
from filters.labels import LabelStore

TOLD = ("total", "complete", "mine", "skipped", "held", "held_until", "last_keys")
"""Of the progress, in every mode."""
GRID = 16
AHEAD = 12
"""Items a tab holds at most: what it shows, and what it has fetched ahead. A grid holds two screens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is labelled, and what may be told of it."""

    batch: Batch
    title: str
    policy: str
    blurred: bool = False
    examples: tuple[tuple[str, int], ...] = ()
    """(reference of a picture, its value): shown beside the policy."""
    versions: tuple[Mapping[str, Any], ...] = ()
    """Of the filter: `labels` and `clean_dropped` (share, low, high) of each certified version, oldest first."""

    @property
    def asks(self) -> str:
        """The words a labeller reads; their digest is the policy version of the decisions."""
        return self.batch.question or self.policy


class Desk:
    """One batch being worked on by several people. Threads may share it."""

    def __init__(self, store: LabelStore, work: Work, pictures: Pictures, config: PageConfig) -> None:
        self.work, self._store, self._pictures, self._config = work, store, pictures, config
        self._items = {item.item: item for item in batch_items(store, work.batch)}
        self._ended: set[str] = set()
        self._digests: dict[str, str | None] = {}
        suffix = "blurred_session" if work.blurred else "session"
        self._limits = Limits(
            images=getattr(config, f"{suffix}_images"),
            seconds=60 * getattr(config, f"{suffix}_minutes"),
            break_seconds=60 * config.break_minutes,
        )

    def arrive(self, person: str) -> None:
        """Somebody opened their link: an ended session begins anew."""
        self._ended.discard(person)
        record_event(self._store, self.work.batch, "opened", person)

    def session(self, person: str) -> dict[str, Any]:
        """What the page needs to set itself up."""
        batch, blind = self.work.batch, self.work.batch.mode in BLIND
        return {
            "person": person,
            "title": self.work.title,
            "filter": batch.filter_name,
            "batch": batch.name,
            "mode": batch.mode,
            "policy": self.work.asks,
            "blind": blind,
            "blurred": self.work.blurred,
            "grid": GRID if batch.mode == "triage" else 0,
            "ahead": 2 * GRID if batch.mode == "triage" else AHEAD,
            "min_dwell_ms": self._config.min_dwell_ms if blind else 0,
            "overlap": batch.overlap,
            "examples": [{"number": number, "value": value} for number, (_, value) in enumerate(self.work.examples)],
            "versions": [] if blind else list(self.work.versions),
            "recent": [{"key": key, "item": item, "answer": answer} for key, item, answer in recent(self._store, batch, person)],
            "report_instructions": self._config.report_instructions,
            "ended": person in self._ended,
        }

    def claim(self, person: str, tab: str, *, want: int, again: bool = False) -> dict[str, Any]:
        """The next items, or why there are none: a rest is due, the session has ended, others hold what is left."""
        batch = self.work.batch
        session = self._session(person)
        resting = person in self._ended or session.rest_until is not None
        lease = 60 * self._config.lease_minutes
        found = [] if resting else claim(self._store, batch, person, tab, want=min(want, 2 * GRID), lease_seconds=lease, again=again)
        if resting:
            release(self._store, batch, person, tab=tab)
        return {
            "items": [self._shown(item) for item in found],
            "ended": person in self._ended,
            "rest_until": session.rest_until,
            "session": {"images": session.images, "began": session.began},
            "progress": self._told(progress(self._store, batch, person, tab=tab)),
        }

    def decide(self, person: str, decisions: Sequence[Decision]) -> Saved:
        """Saves decisions; whoever reports an image ends their session by it."""
        saved = decide(
            self._store,
            self.work.batch,
            decisions,
            person,
            version=policy_version(self.work.asks),
            image_digest=self._digest,
        )
        if any(decision.answer == "report" and decision.key in saved.saved for decision in decisions):
            self._ended.add(person)
            release(self._store, self.work.batch, person)
        return saved

    def release(self, person: str, tab: str) -> None:
        release(self._store, self.work.batch, person, tab=tab)

    def picture(self, name: str, side: str, max_side_px: int) -> bytes:
        """An item's picture, or its left or right one, as JPEG. Raises PictureMissing: also for one that was reported."""
        item = self._items.get(name)
        if item is None:
            raise PictureMissing("this batch has no such item")
        reference = _references(item).get(side)
        if reference is None:
            raise PictureMissing(f"the item has no {side} picture")
        return self._jpeg(reference, max_side_px, also=item.uid)

    def example(self, number: int, max_side_px: int) -> bytes:
        """An example of the policy, as JPEG. Raises PictureMissing."""
        if not 0 <= number < len(self.work.examples):
            raise PictureMissing("there is no such example")
        return self._jpeg(self.work.examples[number][0], max_side_px)

    def _jpeg(self, reference: str, max_side_px: int, also: str = "") -> bytes:
        if not self._store.blocked().isdisjoint({reference.removeprefix("uid:"), reference, also}):
            raise PictureMissing("it was reported and is not shown again")
        return self._pictures.jpeg(reference, min(max_side_px, 2 * self._config.image_px))

    def _shown(self, item: BatchItem) -> dict[str, Any]:
        """What the browser learns about an item: in a blind mode nothing but its name and, if asked for, its caption."""
        shown: dict[str, Any] = {"item": item.item, "caption": "", "reason": ""}
        if self.work.batch.mode in TWO_PICTURES:
            shown["caption"] = item.reason
            # Which side is which does not depend on A and B: people prefer a side.
            shown["sides"] = ["left", "right"]
            if self.work.batch.mode == "compare" and int(item.item[-1], 16) % 2:
                shown["sides"].reverse()
        else:
            try:
                shown["caption"] = self._pictures.caption(f"uid:{item.uid}")
            except PictureMissing:
                shown["caption"] = ""
        if self.work.batch.mode == "query":
            shown["reason"] = item.reason
        return shown

    def _digest(self, item: BatchItem) -> str | None:
        """Of the stored bytes of the item's picture; of two pictures a digest of both."""
        if item.item not in self._digests:
            found = [self._pictures.sha256(reference) for reference in _references(item).values()]
            self._digests[item.item] = "+".join(mark or "missing" for mark in found) if any(found) else None
        return self._digests[item.item]

    def _session(self, person: str) -> Session:
        times = decision_times(self._store, person, count=self._limits.images + 1)
        return session_at(times, self._limits, time.time())

    def _told(self, done: Progress) -> dict[str, Any]:
        told: dict[str, Any] = {name: getattr(done, name) for name in TOLD}
        if self.work.batch.mode not in BLIND:
            told |= {"positives": done.positives, "curve": done.curve}
        return told


def _references(item: BatchItem) -> dict[str, str]:
    return dict(item.pictures) or {"one": f"uid:{item.uid}"}
