"""Reading what a run left in its workspace, for those who check, explain and report it.

Everything here reads files only: the filters and models that wrote them are never imported, so that an auditor's numbers
do not come out of the code that is being audited.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.errors import ShardError, WinnowError
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import MANIFEST_INDEX, WITHDRAWN, filter_folder

FILTERS_USED = "decisions/filters.json"
SUMMARY = "report/summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterUsed:
    """A filter as the decisions were made with it."""

    name: str
    version: str
    threshold: float
    certificate_sha256: str

    @property
    def folder(self) -> str:
        return filter_folder(self.name, self.version)

    @property
    def certificate_path(self) -> str:
        return f"{self.folder}/certificate.json"

    @property
    def labels_path(self) -> str:
        return f"{self.folder}/labels.parquet"


def read_json(storage: Storage, path: str) -> Any:
    """Raises ShardError naming the file if it is not JSON."""
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as problem:
        raise ShardError(f"{storage.url}/{path} is not valid JSON: {problem}. Remove it and its receipt, and run again.") from problem


def read_json_if_any(storage: Storage, path: str) -> Any | None:
    return read_json(storage, path) if storage.exists(path) else None


def manifest_index(storage: Storage) -> dict[str, Any]:
    """Raises WinnowError if this is no workspace of a run."""
    if not storage.exists(MANIFEST_INDEX):
        raise WinnowError(
            f"{storage.url} holds no {MANIFEST_INDEX}: it is not the workspace of a run, or its manifest stage never ended. "
            "Give the folder that `winnow run` wrote to."
        )
    index: dict[str, Any] = read_json(storage, MANIFEST_INDEX)
    return index


def partitions(storage: Storage) -> list[str]:
    """Names of all partitions of the manifest, in stable order."""
    return sorted(part["name"] for part in manifest_index(storage)["partitions"])


def decided_partitions(storage: Storage) -> list[str]:
    """Those of the manifest's partitions that have a decision log: all of them, once scoring has ended."""
    there = set(storage.names("decisions"))
    return [name for name in partitions(storage) if f"{name}.parquet" in there]


def withdrawn_uids(storage: Storage) -> dict[str, frozenset[str]]:
    """Partition -> uids that it holds and that no source lists any more; only partitions that have any."""
    found: dict[str, set[str]] = {}
    if storage.exists(WITHDRAWN):
        table = read_table(storage, WITHDRAWN, ["partition", "uid"])
        for partition, uid in zip(table["partition"].to_pylist(), table["uid"].to_pylist(), strict=True):
            found.setdefault(partition, set()).add(uid)
    return {partition: frozenset(uids) for partition, uids in found.items()}


def filters_used(storage: Storage) -> list[FilterUsed]:
    """The filters behind the decision log, in its order; none if nothing was scored yet."""
    entries = read_json_if_any(storage, FILTERS_USED) or []
    return [FilterUsed(**{field: entry[field] for field in ("name", "version", "threshold", "certificate_sha256")}) for entry in entries]


def datasets(storage: Storage) -> dict[str, dict[str, Any]]:
    """Dataset -> its index.json, for every dataset that was written."""
    found = {}
    for path in storage.walk("shards"):
        parts = path.split("/")
        if len(parts) == 3 and parts[2] == "index.json":
            found[parts[1]] = read_json(storage, path)
    return found


def sidecar(dataset: str, tar: str) -> str:
    """Path of the table beside a tar of a dataset."""
    return f"shards/{dataset}/{tar.removesuffix('.tar')}.parquet"


def rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows of a table as dicts, a batch at a time."""
    for batch in table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()
