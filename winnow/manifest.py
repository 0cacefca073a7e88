"""Manifests: which image-text pairs a run is about, and their immutable partitions.

`load_manifest` (winnow/manifest_file.py) checks a manifest and its files' headers, `build_manifest` reads every row and writes

    manifest/<partition>.parquet   uid, url, caption, source, licence, sha256; sorted by uid; never changed
    manifest/withdrawn.parquet     partition, uid: rows a partition holds that no source lists any more
    manifest/index.json            the partitions, counts and sources; written last: what it does not name is not there

A uid is a hash of url and caption. uids that no partition has form new partitions; so a list that was inserted into,
reordered or cut leaves all partitions as they are. Rows go to disk in 256 ranges of uids when there are many, so that memory
holds a range at a time: about a million rows of 250 M. (A list that replaces all of 250 M rows needs 12 GB: withdrawn rows are
gathered in memory.)
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from winnow.buckets import Buckets
from winnow.digests import SHORT, digest, sha256_of
from winnow.errors import ConfigError, ManifestError, VerifyError
from winnow.manifest_file import Manifest as Manifest
from winnow.manifest_file import load_manifest as load_manifest
from winnow.receipts import Receipt, forget, list_done, write_receipt
from winnow.run_files import withdrawn_uids
from winnow.sources import Source, open_file, read_source
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import MANIFEST_INDEX, WITHDRAWN, manifest_part

VERSION = 1
STAGE = "manifest"
PART_SCHEMA = pa.schema([(name, pa.string()) for name in ("uid", "url", "caption", "source", "licence", "sha256")])
MAX_SEQUENCE = 99_999
"""Partitions are sorted by name, and names have five digits."""
Marks = dict[str, list[dict[str, str]]]
"""Source -> {"file", "sha256"} of its files."""
WITHDRAWN_SCHEMA = pa.schema([("partition", pa.string()), ("uid", pa.string())])


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestSummary:
    """The state of manifest/ after `build_manifest`."""

    name: str
    inputs: dict[str, str]
    """Partition -> sha256 of its file, sorted by partition."""
    listed: int
    """Different pairs that the sources list now."""
    duplicates: int
    """Rows that repeat a pair listed already."""
    skipped: int
    """Rows left out as bad, of sources that say bad_rows: skip."""
    withdrawn: int
    """Rows of partitions that no source lists any more."""
    new: int
    """Rows of partitions that this call wrote."""
    new_partitions: int

    @property
    def partitions(self) -> int:
        return len(self.inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """The partitions, in stable order."""
        return tuple(self.inputs)


def sample_uid(url: str, caption: str) -> str:
    """The name of a pair: 32 hex digits (128 bits) that depend on nothing else."""
    return hashlib.sha256(f"{url}\0{caption}".encode()).hexdigest()[:32]


def build_manifest(storage: Storage, manifest: Manifest, *, partition_rows: int = 10_000) -> ManifestSummary:
    """Brings manifest/ up to date with the sources; nothing is written if any row of them is wrong.

    Files that are as they were the last time are only hashed, not read.

    Raises:
        ManifestError: a row is wrong, or a file has another sha256 than the manifest says.
        VerifyError: a partition that the index names is gone.
    """
    if partition_rows < 1:
        raise ConfigError(f"partition_rows must be at least 1, got {partition_rows}")
    began = time.monotonic()
    marks = _hash_files(manifest)
    recipe = digest({"version": VERSION, "name": manifest.name, "rows": partition_rows, "sources": _settings(manifest), "files": marks})
    index = _read_index(storage)
    present = {done.fingerprint: done for done in list_done(storage, STAGE)}
    if index["recipe"] == recipe and storage.exists(WITHDRAWN) and index["withdrawn_sha256"] == storage.sha256(WITHDRAWN):
        fresh: list[dict[str, Any]] = []
    else:
        with storage.scratch() as scratch:
            listed = Buckets(scratch / "listed", PART_SCHEMA.append(pa.field("order", pa.int32())))
            sources = [_read_into(listed, source, order, marks[source.name]) for order, source in enumerate(manifest.sources)]
            # Every row is right: only from here on is anything written.
            forget(storage, STAGE, present.values())
            present = {}
            index, fresh = _rebuild(storage, listed, Buckets(scratch / "held", WITHDRAWN_SCHEMA), index, partition_rows)
        index |= {"manifest": manifest.name, "recipe": recipe, "sources": sources}
        index["duplicates"] = sum(source["rows"] for source in sources) - index["listed"]
        index["skipped"] = sum(source["skipped"] for source in sources)
        _write_index(storage, index)
    if recipe[:SHORT] not in present:
        forget(storage, STAGE, present.values())
        _write_receipt(storage, index, marks, began)
    return _summary(index, fresh)


def read_summary(storage: Storage) -> ManifestSummary:
    """The state of manifest/ as it is; no partitions if there is none yet."""
    return _summary(_read_index(storage), [])


def manifest_rows(storage: Storage) -> dict[str, int]:
    """Partition -> rows it was made with, withdrawn ones included: a number that never changes."""
    return {entry["name"]: entry["rows"] for entry in _read_index(storage)["partitions"]}


def withdrawn_marks(storage: Storage) -> dict[str, str]:
    """Partition -> digest of its withdrawn uids, of partitions that have any: an input of whatever leaves them out."""
    return {partition: digest(sorted(uids)) for partition, uids in withdrawn_uids(storage).items()}


def _settings(manifest: Manifest) -> list[dict[str, Any]]:
    """What a manifest says besides where its files lie."""
    return [{key: value for key, value in asdict(source).items() if key not in ("files", "sha256")} for source in manifest.sources]


def _hash_files(manifest: Manifest) -> Marks:
    """Source -> its files with their digests, in order."""
    marks: Marks = {}
    for source in manifest.sources:
        marks[source.name] = []
        for file in source.files:
            with open_file(file) as stream:
                found = sha256_of(stream)
            if source.sha256 not in (None, found):
                raise ManifestError(
                    f"{file} has sha256 {found}, but source {source.name!r} says {source.sha256}. "
                    "Fetch the right file, or write down its digest if it was meant to change."
                )
            marks[source.name].append({"file": file.rpartition("/")[2], "sha256": found})
    return marks


def _read_index(storage: Storage) -> dict[str, Any]:
    if not storage.exists(MANIFEST_INDEX):
        return {"recipe": None, "manifest": "", "partitions": [], "listed": 0, "duplicates": 0, "skipped": 0, "withdrawn": 0}
    index: dict[str, Any] = json.loads(storage.read_text(MANIFEST_INDEX))
    there = set(storage.names("manifest"))
    for entry in index["partitions"]:
        if f"{entry['name']}.parquet" not in there:
            raise VerifyError(
                f"{storage.url}/{manifest_part(entry['name'])} is gone, though {MANIFEST_INDEX} names it. "
                "Bring it back, or use another workspace."
            )
    return index


def _rebuild(
    storage: Storage, listed: Buckets, held: Buckets, old: Mapping[str, Any], partition_rows: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes new partitions, then withdrawn rows; what the index says of them, and of the new ones alone."""
    for entry in old["partitions"]:
        uids = read_table(storage, manifest_part(entry["name"]), ["uid"])
        held.add(pa.table([pa.array([entry["name"]] * uids.num_rows, pa.string()), uids["uid"]], schema=WITHDRAWN_SCHEMA))
    merge = _Merge(listed, held)
    sequence = 1 + max((int(entry["name"].partition("-")[0]) for entry in old["partitions"]), default=-1)
    fresh = [_write_partition(storage, rows, sequence + number) for number, rows in enumerate(_chunks(merge.new_rows(), partition_rows))]
    withdrawn = pa.concat_tables([WITHDRAWN_SCHEMA.empty_table(), *merge.withdrawn])
    write_table(storage, WITHDRAWN, withdrawn.sort_by([("partition", "ascending"), ("uid", "ascending")]))
    index = {
        "partitions": [{**entry, "listed": merge.still_listed.get(entry["name"], 0)} for entry in old["partitions"]] + fresh,
        "listed": merge.listed,
        "withdrawn": withdrawn.num_rows,
        "withdrawn_sha256": storage.sha256(WITHDRAWN),
    }
    return index, fresh


def _write_index(storage: Storage, index: Mapping[str, Any]) -> None:
    """The new state is in force with this; partitions that it does not name are of a run that was killed before its own."""
    storage.write_text(MANIFEST_INDEX, json.dumps(index, indent=1, sort_keys=True) + "\n")
    named = {manifest_part(entry["name"]) for entry in index["partitions"]} | {WITHDRAWN}
    for name in storage.names("manifest"):
        if name.endswith(".parquet") and f"manifest/{name}" not in named:
            storage.remove(f"manifest/{name}")


def _read_into(listed: Buckets, source: Source, order: int, marks: list[dict[str, str]]) -> dict[str, Any]:
    """All rows of a source, with their uids; what the index says about it."""
    rows = skipped = 0
    for file in source.files:
        for batch in read_source(source, file):
            count = batch.rows.num_rows
            url, caption = batch.rows["url"], batch.rows["caption"]
            uids = [sample_uid(*pair) for pair in zip(url.to_pylist(), caption.to_pylist(), strict=True)]
            columns = [pa.array(uids, pa.string()), url, caption, pa.array([source.name] * count, pa.string())]
            columns += [batch.rows["licence"], batch.rows["sha256"], pa.array([order] * count, pa.int32())]
            listed.add(pa.table(columns, schema=listed.schema))
            rows, skipped = rows + count, skipped + batch.skipped
    if not rows:
        raise ManifestError(
            f"source {source.name!r} is empty: no usable row in {', '.join(map(str, source.files))} ({skipped} were skipped). "
            "Give files with rows, or remove the source."
        )
    first = (
        {"file": marks[0]["file"], "sha256": marks[0]["sha256"]}
        if len(marks) == 1
        else {"file": f"{len(marks)} files", "sha256": digest(marks)}
    )
    return {
        "name": source.name,
        "licence": source.licence,
        "format": source.format,
        "rows": rows,
        "skipped": skipped,
        "files": marks,
        **first,
    }


class _Merge:
    """What is listed against what partitions hold, a range of uids at a time. Counts are complete when `new_rows` is used up."""

    def __init__(self, listed: Buckets, held: Buckets) -> None:
        self._listed, self._held = listed, held
        self.listed = 0
        self.withdrawn: list[pa.Table] = []
        self.still_listed: dict[str, int] = {}

    def new_rows(self) -> Iterator[pa.Table]:
        """Rows that no partition holds, sorted by uid."""
        count = max(self._listed.count, self._held.count)
        for number in range(count):
            listed, held = _distinct(self._listed.bucket(number, count)), self._held.bucket(number, count)
            self.listed += listed.num_rows
            gone = pc.invert(pc.is_in(held["uid"], listed["uid"]))
            self.withdrawn.append(held.filter(gone))
            for entry in pc.value_counts(held.filter(pc.invert(gone))["partition"]).to_pylist():
                self.still_listed[entry["values"]] = self.still_listed.get(entry["values"], 0) + entry["counts"]
            yield listed.filter(pc.invert(pc.is_in(listed["uid"], held["uid"]))).select(PART_SCHEMA.names)


def _distinct(rows: pa.Table) -> pa.Table:
    """One row a uid, sorted: of the source that stands first; never a matter of the order within a source."""
    rows = rows.sort_by([(name, "ascending") for name in ("uid", "order", "licence", "sha256")]).combine_chunks()
    if rows.num_rows < 2:
        return rows
    uids = rows["uid"].chunk(0)
    first = pc.not_equal(uids.slice(1), uids.slice(0, len(uids) - 1))
    return rows.filter(pa.concat_arrays([pa.array([True]), first]))


def _chunks(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of this many; the last one holds what is left."""
    rest: pa.Table = PART_SCHEMA.empty_table()
    for table in tables:
        rest = pa.concat_tables([rest, table])
        while rest.num_rows >= size:
            yield rest.slice(0, size)
            rest = rest.slice(size)
    if rest.num_rows:
        yield rest


def _write_partition(storage: Storage, rows: pa.Table, sequence: int) -> dict[str, Any]:
    if sequence > MAX_SEQUENCE:
        raise ConfigError(f"there is room for {MAX_SEQUENCE + 1:,} partitions; make them larger (partition_rows)")
    content = hashlib.sha256()
    for row in zip(*(rows[name].to_pylist() for name in ("uid", "source", "licence", "sha256")), strict=True):
        content.update("\0".join(value or "" for value in row).encode() + b"\n")
    name = f"{sequence:05d}-{content.hexdigest()[:8]}"
    path = manifest_part(name)
    write_table(storage, path, rows.combine_chunks())
    return {"name": name, "rows": rows.num_rows, "listed": rows.num_rows, "sha256": storage.sha256(path), "bytes": storage.size(path)}


def _write_receipt(storage: Storage, index: Mapping[str, Any], marks: Marks, began: float) -> None:
    outputs = {manifest_part(entry["name"]): {"sha256": entry["sha256"], "bytes": entry["bytes"]} for entry in index["partitions"]}
    for path in (MANIFEST_INDEX, WITHDRAWN):
        outputs[path] = {"sha256": storage.sha256(path), "bytes": storage.size(path)}
    receipt = Receipt(
        stage=STAGE,
        partition=STAGE,
        fingerprint=index["recipe"][:SHORT],
        version=VERSION,
        inputs={f"{name}/{mark['file']}": mark["sha256"] for name, files in marks.items() for mark in files},
        arguments={"manifest": index["manifest"]},
        outputs=outputs,
        counts={key: index[key] for key in ("listed", "duplicates", "skipped", "withdrawn")},
        facts={},
        seconds=round(time.monotonic() - began, 3),
    )
    write_receipt(storage, receipt)


def _summary(index: Mapping[str, Any], fresh: list[dict[str, Any]]) -> ManifestSummary:
    return ManifestSummary(
        name=index["manifest"],
        inputs={entry["name"]: entry["sha256"] for entry in index["partitions"]},
        listed=index["listed"],
        duplicates=index["duplicates"],
        skipped=index["skipped"],
        withdrawn=index["withdrawn"],
        new=sum(entry["rows"] for entry in fresh),
        new_partitions=len(fresh),
    )
