"""Webdataset shards of the kept samples: the same bytes whatever the number of workers, with counts, digests and lineage.

    shards/<dataset>/00000.tar      members <uid>.jpg, <uid>.txt, <uid>.json, as they lie in raw/
    shards/<dataset>/00000.parquet  uid, index (position in the shard), partition, caption
    shards/<dataset>/index.json     all shards with counts and sha256, and what they were made from; written last

Kept samples stand in the order of (partition, uid) and are cut every `shard_samples`. New partitions sort last, so that
they change the last shard only and add new ones. Withdrawn samples are not in the decision log and hence not here.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from winnow.configs import STRICT
from winnow.digests import digest
from winnow.errors import ConfigError, ShardError
from winnow.partitions import Outcome
from winnow.receipts import Work, read_receipts
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.tars import TarWriter, read_members
from winnow.workspace import MANIFEST_INDEX, decisions, raw_tar, shard_folder

VERSION = 1
STAGE = "shard"
FILTERS_USED = "decisions/filters.json"
SIDECAR = pa.schema([("uid", pa.string()), ("index", pa.int32()), ("partition", pa.string()), ("caption", pa.string())])

Span = tuple[str, int, int]
"""Partition, and which of its kept samples, in the order of uid: from, up to but not including."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """How kept samples are cut into shards."""

    __pydantic_config__: ClassVar = STRICT

    dataset: str = "curated"
    """Name of the folder below shards/."""
    shard_samples: int = 10_000
    """Samples a shard; the last one holds what is left."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.dataset):
            raise ConfigError(f"dataset must be lower-case letters, digits, - and _, got {self.dataset!r}")
        if self.shard_samples < 1:
            raise ConfigError(f"shard_samples must be at least 1, got {self.shard_samples}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image with its caption, as a tar holds it."""

    uid: str
    image: bytes
    """An upright RGB JPEG."""
    caption: str
    meta: dict[str, Any]
    """uid, url, caption, source, licence, width, height (pixels), sha256 (of the bytes that were downloaded)."""


def plan_shards(storage: Storage, config: ShardConfig, *, raw: Mapping[str, str], decided: Mapping[str, str]) -> list[Work]:
    """One piece of work a shard; only the verdict column of each partition is read.

    A shard is made again when a partition it reads from changed, or when its share of one did.

    Args:
        raw: partition -> output digest of its download.
        decided: partition -> output digest of its decisions; these partitions are sharded.
    """
    spans: list[list[Span]] = []
    room = 0
    for partition in sorted(decided):
        count, taken = len(kept_uids(storage, partition)), 0
        while taken < count:
            if not room:
                spans.append([])
                room = config.shard_samples
            step = min(room, count - taken)
            spans[-1].append((partition, taken, taken + step))
            taken, room = taken + step, room - step
    return [
        Work(
            name=f"{number:05d}",
            inputs={f"{kind}/{part}": marks[part] for part, _, _ in own for kind, marks in (("decisions", decided), ("raw", raw))},
            arguments={"dataset": config.dataset, "spans": own},
        )
        for number, own in enumerate(spans)
    ]


def kept_uids(storage: Storage, partition: str) -> list[str]:
    """uids of a partition that the decision log keeps, sorted."""
    table = read_table(storage, decisions(partition), ["uid", "verdict"])
    return sorted(table.filter(pc.equal(table["verdict"], "kept"))["uid"].to_pylist())


def write_shard(storage: Storage, name: str, *, dataset: str, spans: Sequence[Span]) -> Outcome:
    """Writes one shard and its sidecar. Streams: memory holds one sample and a partition's uids.

    Raises:
        ShardError: a raw tar is damaged or lacks a kept sample.
    """
    folder = shard_folder(dataset)
    rows: list[tuple[str, int, str, str]] = []
    with storage.scratch() as scratch:
        with open(scratch / "shard.tar", "wb") as stream:
            tar = TarWriter(stream)
            for partition, start, stop in spans:
                wanted = kept_uids(storage, partition)[start:stop]
                if len(wanted) != stop - start:
                    raise ShardError(f"{storage.url}/{decisions(partition)} changed since the shards were planned. Run again.")
                for uid, files in _pick(storage, partition, wanted):
                    for extension, data in files.items():
                        tar.add(f"{uid}.{extension}", data)
                    rows.append((uid, len(rows), partition, files["txt"].decode()))
            tar.close()
        storage.put(scratch / "shard.tar", f"{folder}/{name}.tar")
    columns = list(zip(*rows, strict=True)) or [()] * len(SIDECAR)
    write_table(storage, f"{folder}/{name}.parquet", pa.table([list(column) for column in columns], schema=SIDECAR))
    return Outcome(outputs=(f"{folder}/{name}.tar", f"{folder}/{name}.parquet"), counts={"samples": len(rows)})


def _pick(storage: Storage, partition: str, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Files of these samples of a partition's raw tar, in its order: jpg, txt, json."""
    missing = set(wanted)
    with storage.local_file(raw_tar(partition)) as path:
        for uid, files in _grouped(path, only=frozenset(wanted)):
            missing.remove(uid)
            yield uid, files
            if not missing:
                return
    raise ShardError(
        f"{storage.url}/{raw_tar(partition)} lacks {len(missing)} samples that the decision log keeps, {min(missing)} for one. "
        "Remove it and its receipt, and run again."
    )


def _grouped(path: Path, only: frozenset[str] | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members of one sample after the other; of these uids only, if given."""
    uid, files = "", dict[str, bytes]()
    for name, data in read_members(path, only=only):
        key, _, extension = name.partition(".")
        if key != uid and files:
            yield uid, _complete(path, uid, files)
            files = {}
        uid = key
        files[extension] = data
    if files:
        yield uid, _complete(path, uid, files)


def _complete(path: Path, uid: str, files: dict[str, bytes]) -> dict[str, bytes]:
    if set(files) != {"jpg", "txt", "json"}:
        raise ShardError(f"{path} is damaged: {uid} has the files {', '.join(sorted(files))}, expected jpg, json, txt")
    return files


def read_samples(path: str | Path) -> Iterator[Sample]:
    """Samples of a local raw tar or shard, in order; memory holds one.

    Raises:
        ShardError: the tar is damaged; file and member are named.
    """
    for uid, files in _grouped(Path(path)):
        try:
            meta = json.loads(files["json"])
            yield Sample(uid=uid, image=files["jpg"], caption=files["txt"].decode(), meta=meta)
        except ValueError as problem:
            raise ShardError(f"{path} is damaged: {uid} has unreadable text ({problem})") from problem


def write_index(storage: Storage, config: ShardConfig) -> dict[str, Any]:
    """Writes index.json from the receipts of the dataset's shards, and returns its content. To be called when every shard is done."""
    folder = shard_folder(config.dataset)
    receipts = [receipt for receipt in read_receipts(storage, STAGE) if receipt.arguments["dataset"] == config.dataset]
    shards = []
    for receipt in receipts:
        file = f"{receipt.partition}.tar"
        shards.append({"name": file, "num_samples": receipt.counts["samples"], **receipt.outputs[f"{folder}/{file}"]})
    inputs = {key: mark for receipt in receipts for key, mark in receipt.inputs.items()}
    index = {
        "dataset": config.dataset,
        "shards": shards,
        "num_samples": sum(shard["num_samples"] for shard in shards),
        "lineage": {
            "manifest": storage.sha256(MANIFEST_INDEX) if storage.exists(MANIFEST_INDEX) else None,
            "filters": json.loads(storage.read_text(FILTERS_USED)) if storage.exists(FILTERS_USED) else [],
            # Digests over {partition: output digest} of what the samples were picked by and taken from.
            "decisions": digest({key: mark for key, mark in inputs.items() if key.startswith("decisions/")}),
            "raw": digest({key: mark for key, mark in inputs.items() if key.startswith("raw/")}),
            "partitions": sorted({key.partition("/")[2] for key in inputs}),
        },
    }
    storage.write_text(f"{folder}/index.json", json.dumps(index, indent=1, sort_keys=True) + "\n")
    named = {receipt.partition for receipt in receipts}
    for file in storage.names(folder):
        if file.endswith((".tar", ".parquet")) and file.partition(".")[0] not in named:
            storage.remove(f"{folder}/{file}")  # of a shard without a receipt: a run was killed while taking it away
    return index
