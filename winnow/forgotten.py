"""What has been forgotten: the record that every stage and every check goes by.

    forgotten/000001.parquet   uid, partition, was: what the decision log said of it before (kept, dropped, failed, or none yet)
    forgotten/000001.json      when, why, which trained models and filters had learned from it, whether it is done; written after the table

A uid is all that stays of a sample: neither url nor caption nor image. In the manifest, the table of downloads and the decision log its
row stays as a tombstone, with `forgotten` or `opted_out` for a cause, so that it is still counted and never fetched again.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from winnow.storage import Storage
from winnow.tables import read_table, write_table

FOLDER = "forgotten"
FORGOTTEN, OPTED_OUT = "forgotten", "opted_out"
SLUGS = (FORGOTTEN, OPTED_OUT)
"""Causes of a tombstone: somebody asked for this sample to be forgotten, or its url, site or image is on the opt-out list."""
ROWS = pa.schema([("uid", pa.string()), ("partition", pa.string()), ("was", pa.string())])
_URN = "urn:winnow:"


def tombstone_url(slug: str) -> str:
    """What stands in the manifest in place of a url. No server can be asked for it."""
    return _URN + slug


def slug_of(url: str) -> str | None:
    """The cause of a tombstone; None if this is the url of a sample."""
    slug = url.removeprefix(_URN)
    return slug if slug in SLUGS and slug != url else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One forgetting."""

    number: int
    slug: str
    """One of SLUGS."""
    reason: str
    """As it was given; must not name the person."""
    at: str
    """When it began: ISO 8601, UTC."""
    samples: int
    erase_labels: bool = False
    """Their labels go, too, and filters that learned from them are fitted anew."""
    done: bool = False
    before: dict[str, dict[str, str]] = field(default_factory=dict)
    """Stage -> partition -> output digest before it began: receipts that name these as inputs are told the new ones."""
    models: list[str] = field(default_factory=list)
    """Checkpoints that were trained, or may have been trained, on shards that held one of them, each with a word on which."""
    filters: list[str] = field(default_factory=list)
    """Versions of filters whose machine holds the features of one of them."""
    shards: dict[str, str] = field(default_factory=dict)
    """Digests over all shards: `before` and `after`."""

    @property
    def stem(self) -> str:
        return f"{FOLDER}/{self.number:06d}"


def begin(storage: Storage, event: Event, rows: Iterable[tuple[str, str, str]]) -> None:
    """Records an event: from here on it will be completed, whatever happens.

    Args:
        rows: uid, partition and what the decision log said.
    """
    columns = list(zip(*sorted(rows), strict=True)) or [()] * len(ROWS)
    write_table(storage, f"{event.stem}.parquet", pa.table([pa.array(column, pa.string()) for column in columns], schema=ROWS))
    update(storage, event)


def update(storage: Storage, event: Event) -> None:
    storage.write_text(f"{event.stem}.json", json.dumps(asdict(event), sort_keys=True, indent=1) + "\n")


def finish(storage: Storage, event: Event, *, after: str) -> Event:
    """Marks an event as done, and lets go of what was needed to complete it.

    Args:
        after: digest over all shards.
    """
    done = replace(event, done=True, before={}, shards=event.shards | {"after": after})
    update(storage, done)
    return done


def read_events(storage: Storage) -> list[Event]:
    """All events, in order. A table without its event is of a call that was killed before it began."""
    names = [name for name in storage.names(FOLDER) if name.endswith(".json")]
    return [Event(**json.loads(storage.read_bytes(f"{FOLDER}/{name}"))) for name in names]


def open_events(storage: Storage) -> list[Event]:
    """Events that were cut short."""
    return [event for event in read_events(storage) if not event.done]


def read_rows(storage: Storage, event: Event) -> list[dict[str, Any]]:
    """uid, partition and was of an event's samples, sorted by uid."""
    found: list[dict[str, Any]] = read_table(storage, f"{event.stem}.parquet").to_pylist()
    return found


def forgotten_uids(storage: Storage) -> dict[str, dict[str, str]]:
    """Partition -> uid -> slug, of everything that was ever forgotten."""
    found: dict[str, dict[str, str]] = {}
    for event in read_events(storage):
        for row in read_rows(storage, event):
            found.setdefault(row["partition"], {}).setdefault(row["uid"], event.slug)
    return found


def holes(storage: Storage) -> dict[str, list[str]]:
    """Partition -> forgotten uids that had been kept: they hold their place in the order of shards (winnow/resharding.py)."""
    found: dict[str, list[str]] = {}
    for event in read_events(storage):
        for row in read_rows(storage, event):
            if row["was"] == "kept":
                found.setdefault(row["partition"], []).append(row["uid"])
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
