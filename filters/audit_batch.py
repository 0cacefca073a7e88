"""Audit batches: kept images that people look at blindly, with known positives among them, and what their answers prove.

A batch is drawn by a seed: the kept images whose digest with the seed is smallest, so that the same seed draws the same images from
the same decisions, on any machine, and an auditor can draw others than those that somebody may have tuned for. Honeypots are
confirmed positives with the lowest scores, the likest there are to what the filter misses. The label page asks them in the same
shuffled order, under names that say nothing, and sends every picture encoded anew. What the answers prove: filters/audit_result.py.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from filters.label_batches import create_batch, record_event
from filters.label_records import Batch, Item
from filters.labels import LabelStore
from filters.stratified_audit import Stratum, plan_strata
from winnow.decisions import score_column
from winnow.digests import digest
from winnow.errors import ConfigError, NotEnoughLabels
from winnow.receipts import list_done
from winnow.run_files import FILTERS_USED, FilterUsed, decided_partitions, filters_used
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import MANIFEST_INDEX, REPORT, decisions

COUNT, HONEYPOTS = 1_024, 50
MAX_LEAK = 0.005


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditPlan:
    """What is drawn, settled before anybody looks."""

    seed: int
    count: int = COUNT
    """Images to inspect; of a stratified audit, labels in all."""
    honeypots: int = HONEYPOTS
    max_leak: float = MAX_LEAK
    """The audit passes if the bound is at most this."""
    confidence: float = 0.95
    stratified: bool = False
    """Draw by score from all judged images, for a rare class."""
    overlap: int = 2
    """People who look at each image; one who sees a positive is enough."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.honeypots < 0 or self.overlap < 1:
            raise ConfigError(f"audit: count and overlap must be at least 1 and honeypots at least 0, got {self}")
        for name in ("max_leak", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"audit: {name} must be between 0 and 1, got {getattr(self, name)}")


def draw_audit(storage: Storage, store: LabelStore, filter_name: str, plan: AuditPlan, *, person: str) -> Batch:
    """Draws an audit batch for the label page, mode `audit`. A batch of the same plan that nobody has answered yet is that batch.

    Raises:
        ConfigError: nothing was scored with this filter.
        NotEnoughLabels: too few confirmed positives for the honeypots.
    """
    used = filter_used(storage, filter_name)
    earlier = [batch for batch in store.all_batches(filter_name) if batch.mode == "audit" and batch.seed == plan.seed]
    spoken_of = inputs(storage, used)
    for batch in earlier:
        if _is_of(batch, plan, spoken_of) and not store.rows(filter_name, batch=batch.name):
            return batch
    strata: list[Stratum] = []
    if plan.stratified:
        strata = plan_strata(np.fromiter((score for _, score, _ in judged(storage, used)), float), used.threshold, budget=plan.count)
        chosen = _draw_by_score(storage, used, strata, plan.seed)
        # The draw goes first: a known positive that it meets is counted like any other image.
        planted = _honeypots(storage, store, used, plan.honeypots, leave_out=set(chosen))
    else:
        planted = _honeypots(storage, store, used, plan.honeypots)
        chosen = _draw_kept(storage, used, plan, leave_out={item.uid for item in planted})
    name = f"audit-{plan.seed}" if not earlier else f"audit-{plan.seed}-again-{len(earlier)}"
    items = [*(Item(uid=uid, origin="audit") for uid in chosen), *planted]
    settings = dataclasses.asdict(plan) | {"drawn": len(chosen), "honeypots": len(planted)}
    used_before = [batch.name for batch in earlier]
    details = {"audit": settings, "inputs": spoken_of, "strata": [_plain(stratum) for stratum in strata], "earlier": used_before}
    batch = create_batch(
        store, filter_name, name, items, mode="audit", origin="audit", overlap=plan.overlap, seed=plan.seed, details=details
    )
    record_event(store, batch, "drawn", person, {"earlier": used_before})
    return batch


def _is_of(batch: Batch, plan: AuditPlan, spoken_of: dict[str, Any]) -> bool:
    """Whether a batch was drawn by this plan, of what there is now. Another report of the same decisions is no other draw."""
    drawn = batch.details.get("audit", {})
    same_plan = all(drawn.get(key) == value for key, value in dataclasses.asdict(plan).items())
    then = batch.details.get("inputs", {})
    return same_plan and all(then.get(key) == value for key, value in spoken_of.items() if key != "report")


def inputs(storage: Storage, used: FilterUsed) -> dict[str, Any]:
    """Digests of what an audit speaks of, and of the report it was drawn after (None: there was none)."""
    scored = {done.partition: done.output for done in list_done(storage, "score")}
    return {
        "manifest": storage.sha256(MANIFEST_INDEX),
        "filters": storage.sha256(FILTERS_USED),
        "decisions": digest(scored),
        "version": used.version,
        "threshold": used.threshold,
        "report": storage.sha256(REPORT) if storage.exists(REPORT) else None,
    }


def filter_used(storage: Storage, filter_name: str) -> FilterUsed:
    for used in filters_used(storage):
        if used.name == filter_name:
            return used
    raise ConfigError(f"{storage.url}: nothing was scored with a filter {filter_name!r} yet: run `winnow score CONFIG` first")


def judged(storage: Storage, used: FilterUsed) -> Iterator[tuple[str, float, bool]]:
    """(uid, score, kept by every filter) of each judged image; one partition is in memory at a time."""
    column = score_column(used.name)
    for partition in decided_partitions(storage):
        table = read_table(storage, decisions(partition), ["uid", "verdict", column])
        for uid, verdict, score in zip(*(table[name].to_pylist() for name in ("uid", "verdict", column)), strict=True):
            if score is not None:
                yield uid, score, verdict == "kept"


def _place(seed: int, filter_name: str, uid: str) -> bytes:
    """Where a seed's draw puts an image: the smallest are drawn."""
    return hashlib.sha256(f"audit\0{seed}\0{filter_name}\0{uid}".encode()).digest()


def _smallest(uids: Iterable[str], count: int, seed: int, filter_name: str) -> list[str]:
    return heapq.nsmallest(count, uids, key=lambda uid: _place(seed, filter_name, uid))


def _draw_kept(storage: Storage, used: FilterUsed, plan: AuditPlan, leave_out: set[str]) -> list[str]:
    kept = (uid for uid, _, is_kept in judged(storage, used) if is_kept and uid not in leave_out)
    drawn = _smallest(kept, plan.count, plan.seed, used.name)
    if not drawn:
        raise ConfigError(f"{storage.url} keeps no image, so there is nothing to audit")
    return drawn


def _draw_by_score(storage: Storage, used: FilterUsed, strata: Sequence[Stratum], seed: int) -> list[str]:
    drawn = []
    for stratum in strata:
        within = (uid for uid, score, _ in judged(storage, used) if stratum.low <= score < stratum.high)
        drawn += _smallest(within, stratum.wanted, seed, used.name)
    return drawn


def _honeypots(storage: Storage, store: LabelStore, used: FilterUsed, count: int, leave_out: Collection[str] = frozenset()) -> list[Item]:
    """The confirmed positives with the lowest scores: agreed by everybody who judged them, and not known from a grid alone."""
    if not count:
        return []
    sure = {label.uid for label in store.labels(used.name) if label.value == 1 and not (label.unsure or label.conflict)}
    sure -= set(leave_out)
    table = read_table(storage, used.labels_path, ["uid", "value", "score"]).to_pylist()
    known = [(row["score"], row["uid"]) for row in table if row["value"] == 1 and row["score"] is not None and row["uid"] in sure]
    if len(known) < count:
        raise NotEnoughLabels(
            f"{used.name} has {len(known)} confirmed positives, {count} are to be mixed in unannounced. Label more, or draw with fewer "
            "(--honeypots; with 0 the inspectors are taken to see everything)."
        )
    return [Item(uid=uid, origin="audit", kind="honeypot", expected=1) for _, uid in heapq.nsmallest(count, known)]


def _plain(stratum: Stratum) -> dict[str, Any]:
    """As JSON, which knows no infinity."""
    own = dataclasses.asdict(stratum)
    return own | {edge: None if np.isinf(own[edge]) else own[edge] for edge in ("low", "high")}
