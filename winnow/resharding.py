"""From raw tars to shards: a group of partitions at a time, shuffled by seed, streaming, hashed while it is written.

What comes out is in winnow/shards.py, how samples are grouped and cut in winnow/shard_groups.py. A shard that would come out as it
stands is compared with what is there and not written: a changed group rewrites the shards that differ.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from winnow.errors import ShardError
from winnow.partitions import Outcome
from winnow.receipts import Work
from winnow.shard_groups import cut, group_partitions, shuffled
from winnow.shards import SIDECAR, ShardConfig, check_whole, kept_uids
from winnow.storage import Storage
from winnow.tables import table_bytes
from winnow.tars import RECORD, HashingSink, TarWriter, find_samples
from winnow.workspace import raw_tar, shard_folder

VERSION = 2


def plan_shards(
    config: ShardConfig,
    *,
    rows: Mapping[str, int],
    raw: Mapping[str, str],
    decided: Mapping[str, str],
    holes: Mapping[str, Sequence[str]] | None = None,
) -> list[Work]:
    """One piece of work a group of partitions; nothing is read.

    Args:
        rows: partition -> rows it lists.
        raw: partition -> output digest of its download.
        decided: partition -> output digest of its decisions.
        holes: partition -> uids that were kept and have been forgotten: they hold their place in the order, so that no other shard
            than theirs changes.
    """
    return [
        Work(
            name=f"{number:05d}",
            inputs={f"{kind}/{part}": marks[part] for part in group for kind, marks in (("decisions", decided), ("raw", raw))},
            arguments={
                "dataset": config.dataset,
                "shard_samples": config.shard_samples,
                "seed": config.seed,
                "partitions": tuple(group),
                "holes": tuple(sorted(uid for part in group for uid in (holes or {}).get(part, ()))),
            },
        )
        for number, group in enumerate(group_partitions(rows, config.shuffle_rows))
    ]


def write_group(
    storage: Storage, name: str, *, dataset: str, shard_samples: int, seed: int, partitions: Sequence[str], holes: Sequence[str]
) -> Outcome:
    """Writes the shards of a group with their sidecars. Streams: memory holds one sample, and the places of the group's.

    Raises:
        ShardError: a raw tar is damaged or lacks a kept sample.
    """
    known: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        places: dict[str, _Place] = {}
        for partition in partitions:
            places |= _find(storage, partition, stack)
        for number, order in enumerate(cut(shuffled([*places, *holes], seed), shard_samples)):
            stem = f"{shard_folder(dataset)}/{name}-{number:03d}"
            samples = [(uid, places[uid]) for uid in order if uid in places]
            known[f"{stem}.tar"] = _write_tar(storage, f"{stem}.tar", samples)
            data = _sidecar(samples)
            if not (storage.exists(f"{stem}.parquet") and storage.read_bytes(f"{stem}.parquet") == data):
                storage.write_bytes(f"{stem}.parquet", data)
    outputs = [path for tar in known for path in (tar, f"{tar.removesuffix('.tar')}.parquet")]
    counts = {"samples": sum(entry["samples"] for entry in known.values()), "shards": len(known)}
    return Outcome(outputs=tuple(outputs), counts=counts, known=known)


class _Place(NamedTuple):
    """Where a kept sample lies in an open raw tar."""

    partition: str
    file: int
    """Descriptor: reading from it moves no position."""
    offset: int
    size: int
    """Of all its blocks, in bytes."""
    caption: tuple[int, int]
    """Offset and size, in bytes."""

    def blocks(self) -> bytes:
        return os.pread(self.file, self.size, self.offset)


def _find(storage: Storage, partition: str, stack: ExitStack) -> dict[str, _Place]:
    """The places of a partition's kept samples, in its raw tar, which stays open as long as the stack."""
    missing = set(kept_uids(storage, partition))
    if not missing:
        return {}
    path = stack.enter_context(storage.local_file(raw_tar(partition)))
    file = os.open(path, os.O_RDONLY)
    stack.callback(os.close, file)
    places = {}
    for found in find_samples(path):
        if found.uid in missing:
            check_whole(path, found.uid, found.members)
            missing.remove(found.uid)
            places[found.uid] = _Place(partition, file, found.offset, found.size, found.members["txt"])
    if missing:
        raise ShardError(
            f"{storage.url}/{raw_tar(partition)} lacks {len(missing)} samples that the decision log keeps, {min(missing)} for one. "
            "Remove it and its receipt, and run again."
        )
    return places


def _write_tar(storage: Storage, path: str, samples: Sequence[tuple[str, _Place]]) -> dict[str, Any]:
    """Writes a tar unless it stands; its sha256 is taken on the way either way. What its receipt says of it."""
    with storage.scratch() as scratch:
        standing = _compare(storage, path, samples)
        if standing is not None:
            return standing
        with open(scratch / "shard.tar", "wb") as stream:
            sink = HashingSink(stream)
            tar = TarWriter(sink)
            for _, place in samples:
                tar.add_blocks(place.blocks())
            tar.close()
        storage.put(scratch / "shard.tar", path)
    return {"sha256": sink.sha256, "bytes": tar.bytes, "samples": len(samples)}


class _Differs(Exception):
    """A tar holds other bytes than it should."""


class _ComparingFile:
    """Takes bytes like a file, and compares them with those of a file that is there."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes, /) -> int:
        if self._stream.read(len(data)) != data:
            raise _Differs
        return len(data)


def _compare(storage: Storage, path: str, samples: Sequence[tuple[str, _Place]]) -> dict[str, Any] | None:
    """What a receipt says of a tar that holds these samples already; None if it does not."""
    content = sum(place.size for _, place in samples)
    if not storage.exists(path) or not content < storage.size(path) <= content + 2 * RECORD:
        return None
    with storage.open(path) as stream:
        sink = HashingSink(_ComparingFile(stream))
        tar = TarWriter(sink)
        try:
            for _, place in samples:
                tar.add_blocks(place.blocks())
            tar.close()
        except _Differs:
            return None
        if stream.read(1):
            return None
    return {"sha256": sink.sha256, "bytes": tar.bytes, "samples": len(samples)}


def _sidecar(samples: Sequence[tuple[str, _Place]]) -> bytes:
    captions = [os.pread(place.file, place.caption[1], place.caption[0]).decode() for _, place in samples]
    columns = [[uid for uid, _ in samples], range(len(samples)), [place.partition for _, place in samples], captions]
    return table_bytes(pa.table([pa.array(column, field.type) for column, field in zip(columns, SIDECAR, strict=True)], schema=SIDECAR))
