"""Webdataset shards of the kept samples: the same bytes whatever the number of workers, with counts, digests and lineage.

    shards/<dataset>/00000-000.tar      members <uid>.jpg, <uid>.txt, <uid>.json, as they lie in raw/
    shards/<dataset>/00000-000.parquet  uid, index (position in the shard), partition, caption
    shards/<dataset>/index.json         all shards with counts and sha256, and what they were made from; written last

Partitions form groups (winnow/shard_groups.py), the first number of a name. The kept samples of a group are shuffled by seed and cut
into shards, the second number, whose sizes differ by one at most. A group is made anew when a partition of it changed; a shard of it
that comes out as it stands is left alone. Withdrawn samples are not in the decision log and hence not here.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from winnow.configs import STRICT
from winnow.digests import digest
from winnow.errors import ConfigError, ShardError
from winnow.receipts import list_done, read_receipts
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.tars import read_members
from winnow.workspace import MANIFEST_INDEX, decisions, shard_folder

STAGE = "shard"
FILTERS_USED = "decisions/filters.json"
SIDECAR = pa.schema([("uid", pa.string()), ("index", pa.int32()), ("partition", pa.string()), ("caption", pa.string())])
MEMBERS = ("jpg", "json", "txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """How kept samples are mixed and cut into shards."""

    __pydantic_config__: ClassVar = STRICT

    dataset: str = "curated"
    """Name of the folder below shards/."""
    shard_samples: int = 10_000
    """Samples a shard, about: shards of one group are equally large, and as many as come closest to this."""
    seed: int = 0
    """Decides the order of samples."""
    shuffle_rows: int = 100_000
    """Listed rows whose kept samples are shuffled together, at least: whole partitions, a group. Memory needs half a kB for each."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.dataset):
            raise ConfigError(f"dataset must be lower-case letters, digits, - and _, got {self.dataset!r}")
        for name in ("shard_samples", "shuffle_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image with its caption, as a tar holds it."""

    uid: str
    image: bytes
    """An upright RGB JPEG."""
    caption: str
    meta: dict[str, Any]
    """uid, url, caption, source, licence, width, height (pixels), sha256 (of the bytes that were downloaded)."""


def kept_uids(storage: Storage, partition: str) -> list[str]:
    """uids of a partition that the decision log keeps, sorted."""
    table = read_table(storage, decisions(partition), ["uid", "verdict"])
    return sorted(table.filter(pc.equal(table["verdict"], "kept"))["uid"].to_pylist())


def check_whole(path: Path, uid: str, files: Mapping[str, Any]) -> None:
    """Raises ShardError if a sample has other files than it must."""
    if set(files) != set(MEMBERS):
        raise ShardError(f"{path} is damaged: {uid} has the files {', '.join(sorted(files))}, expected {', '.join(MEMBERS)}")


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


def _grouped(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members of one sample after the other."""
    uid, files = "", dict[str, bytes]()
    for name, data in read_members(path):
        key, _, extension = name.partition(".")
        if key != uid and files:
            check_whole(path, uid, files)
            yield uid, files
            files = {}
        uid = key
        files[extension] = data
    if files:
        check_whole(path, uid, files)
        yield uid, files


def write_index(storage: Storage, dataset: str) -> dict[str, Any]:
    """Writes index.json from the receipts of the dataset's groups, and returns its content. To be called when every group is done.

    An index that was made from the same receipts, manifest and filters is left alone: they are listed, not read.
    """
    path = f"{shard_folder(dataset)}/index.json"
    manifest = storage.sha256(MANIFEST_INDEX) if storage.exists(MANIFEST_INDEX) else None
    filters = json.loads(storage.read_text(FILTERS_USED)) if storage.exists(FILTERS_USED) else []
    made_from = digest([manifest, filters, [done.file_name for done in list_done(storage, STAGE)]])
    if storage.exists(path) and (standing := json.loads(storage.read_bytes(path))).get("made_from") == made_from:
        _take_away(storage, dataset, standing)
        found: dict[str, Any] = standing
        return found
    receipts = [receipt for receipt in read_receipts(storage, STAGE) if receipt.arguments["dataset"] == dataset]
    shards = [
        {"name": output.rpartition("/")[2], "num_samples": entry["samples"], "bytes": entry["bytes"], "sha256": entry["sha256"]}
        for receipt in receipts
        for output, entry in sorted(receipt.outputs.items(), key=lambda item: (len(item[0]), item[0]))
        if output.endswith(".tar")
    ]
    inputs = {key: mark for receipt in receipts for key, mark in receipt.inputs.items()}
    index = {
        "dataset": dataset,
        "shards": shards,
        "num_samples": sum(shard["num_samples"] for shard in shards),
        "made_from": made_from,
        "lineage": {
            "manifest": manifest,
            "filters": filters,
            # Digests over {partition: output digest} of what the samples were picked by and taken from.
            "decisions": digest({key: mark for key, mark in inputs.items() if key.startswith("decisions/")}),
            "raw": digest({key: mark for key, mark in inputs.items() if key.startswith("raw/")}),
            "partitions": sorted({key.partition("/")[2] for key in inputs}),
        },
    }
    storage.write_text(path, json.dumps(index, indent=1, sort_keys=True) + "\n")
    _take_away(storage, dataset, index)
    return index


def _take_away(storage: Storage, dataset: str, index: Mapping[str, Any]) -> None:
    """Removes shards that the index does not name: of a group that has fewer now, or of a run that was killed."""
    folder, named = shard_folder(dataset), {shard["name"].removesuffix(".tar") for shard in index["shards"]}
    for file in storage.names(folder):
        if file.endswith((".tar", ".parquet")) and file.partition(".")[0] not in named:
            storage.remove(f"{folder}/{file}")
