"""Which partitions were searched together: so that a nightly run searches new images against the old, and keeps the old pairs.

A wave holds the partitions that were new, or whose features had changed, when it began. Waves are never changed; a partition stands in
a later wave again when its features change (an image was forgotten, or fetched at last). A pair holds while the features of both of its
images are those that it was found with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from winnow.digests import digest
from winnow.duplicates import WAVES
from winnow.storage import Storage

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
    if not storage.exists(WAVES):
        return None
    content = json.loads(storage.read_bytes(WAVES))
    return Waves(space=content["space"], waves=tuple(content["waves"]))


def bring_waves_up_to_date(storage: Storage, space: str, embedded: Mapping[str, str]) -> Waves:
    """Reads the record, adds a wave if there is something new, and writes it back; an equal one is left alone."""
    known = read_waves(storage)
    waves = (known if known is not None and known.space == space else Waves(space=space)).extended(embedded)
    if waves != known:
        content = {"space": waves.space, "waves": [dict(entries) for entries in waves.waves]}
        storage.write_text(WAVES, json.dumps(content, sort_keys=True, indent=1) + "\n")
    return waves
