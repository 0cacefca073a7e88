"""Which partitions were searched together: so that a nightly run searches new images against the old, and keeps the old pairs.

A wave holds the partitions that were new, or whose features had changed, when it began. Waves are never changed; a partition stands in
a later wave again when its features change (an image was forgotten, or fetched at last). A pair holds while the features of both of its
images are those that it was found with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from winnow.digests import digest
from winnow.duplicates import WAVES
from winnow.storage import Storage
from winnow.workspace import embeddings

GONE = ""
"""Stands for the embeddings of a partition that is no more: should it come back, it must be searched against what came meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waves:
    """The record of what was searched."""

    space: str
    """Digest of what all pairs depend on: the features' model, the cells, the limits. Another space begins anew."""
    waves: tuple[Mapping[str, str], ...] = ()
    """Partition -> digest of its embeddings, of each wave in order."""

    def as_of(self, wave: int) -> dict[str, str]:
        """Partition -> digest of the embeddings that the search of a wave saw."""
        found: dict[str, str] = {}
        for entries in self.waves[: wave + 1]:
            found |= entries
        return found

    @property
    def latest(self) -> dict[str, str]:
        return self.as_of(len(self.waves))

    def last_wave_of(self, partition: str) -> int:
        """The last wave that a partition stands in."""
        return max(number for number, entries in enumerate(self.waves) if partition in entries)

    def mark(self, wave: int) -> str:
        """Digest of a wave and all before it."""
        return digest([self.space, [dict(entries) for entries in self.waves[: wave + 1]]])

    def extended(self, embedded: Mapping[str, str]) -> "Waves":
        """With a wave more, of the partitions whose embeddings were not searched yet or are gone; itself if there are none."""
        known = self.latest
        now = dict.fromkeys(known, GONE) | dict(embedded)
        fresh = {name: output for name, output in sorted(now.items()) if known.get(name) != output}
        return Waves(space=self.space, waves=(*self.waves, fresh)) if fresh else self


def read_waves(storage: Storage) -> Waves | None:
    content = _read(storage)
    return Waves(space=content["space"], waves=tuple(content["waves"])) if content is not None else None


def count_images(storage: Storage, embedded: Mapping[str, str]) -> dict[str, int]:
    """Digest of embeddings -> images, of every partition. Only files that no wave has seen are asked."""
    import pyarrow.parquet as pq

    known: dict[str, int] = (_read(storage) or {}).get("images", {})
    counts = {}
    for partition, output in embedded.items():
        if output in known:
            counts[output] = known[output]
            continue
        with storage.open(embeddings(partition)) as stream:
            counts[output] = pq.ParquetFile(stream).metadata.num_rows
    return counts


def bring_waves_up_to_date(storage: Storage, space: str, embedded: Mapping[str, str], images: Mapping[str, int]) -> Waves:
    """Reads the record, adds a wave if there is something new, and writes it back; an equal one is left alone.

    Args:
        images: of `count_images`.
    """
    known = read_waves(storage)
    waves = (known if known is not None and known.space == space else Waves(space=space)).extended(embedded)
    if waves != known:
        content = {"space": waves.space, "waves": [dict(entries) for entries in waves.waves], "images": dict(images)}
        storage.write_text(WAVES, json.dumps(content, sort_keys=True, indent=1) + "\n")
    return waves


def _read(storage: Storage) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(WAVES)) if storage.exists(WAVES) else None
