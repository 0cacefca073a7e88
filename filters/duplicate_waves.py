"""Which partitions were searched together: so that a nightly run searches new images against the old, and keeps the old pairs.

A wave holds partitions that were new, or whose features had changed, when it began: all of them if cells are used, otherwise so many
images at a time. It is compared with itself and with all that stood in waves before it. Waves are never changed; a partition stands in a
later wave again when its features change (an image was forgotten, or fetched at last). A pair holds while neither of its images' partitions
stands in a later wave than the one that found it.
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

    @property
    def wave_of(self) -> dict[str, int]:
        """The last wave that each partition stands in, of those that are not gone: its features as they are now were searched there."""
        last = {name: (wave, output) for wave, entries in enumerate(self.waves) for name, output in entries.items()}
        return {name: wave for name, (wave, output) in last.items() if output != GONE}

    @property
    def marks(self) -> list[str]:
        """Digests of what was known before the first wave, and after each."""
        found = [digest(self.space)]
        for entries in self.waves:
            found.append(digest([found[-1], dict(entries)]))
        return found

    def extended(self, embedded: Mapping[str, str], images: Mapping[str, int], wave_rows: float) -> "Waves":
        """With waves more, of the partitions whose embeddings were not searched yet or are gone; itself if there are none.

        Args:
            images: of `count_images`.
            wave_rows: images of a wave, at most; a larger partition is one alone.
        """
        known: dict[str, str] = {}
        for entries in self.waves:
            known |= entries
        now = dict.fromkeys(known, GONE) | dict(embedded)
        waves: list[dict[str, str]] = []
        rows = wave_rows
        for name, output in sorted(now.items()):
            if known.get(name) == output:
                continue
            size = images.get(output, 0)
            if rows + size > wave_rows or not waves:
                waves.append({})
                rows = 0
            waves[-1][name] = output
            rows += size
        return Waves(space=self.space, waves=(*self.waves, *waves)) if waves else self


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


def bring_waves_up_to_date(storage: Storage, space: str, embedded: Mapping[str, str], images: Mapping[str, int], wave_rows: float) -> Waves:
    """Reads the record, adds waves if there is something new, and writes it back; an equal one is left alone.

    Args:
        images, wave_rows: as of `Waves.extended`.
    """
    known = read_waves(storage)
    waves = (known if known is not None and known.space == space else Waves(space=space)).extended(embedded, images, wave_rows)
    if waves != known:
        content = {"space": waves.space, "waves": [dict(entries) for entries in waves.waves], "images": dict(images)}
        storage.write_text(WAVES, json.dumps(content, sort_keys=True, indent=1) + "\n")
    return waves


def _read(storage: Storage) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(WAVES)) if storage.exists(WAVES) else None
