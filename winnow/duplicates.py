"""Near-duplicates and contamination as they stand in a workspace: where the files are, and what the decision log takes from them.

duplicates/waves.json               which partitions were searched together, in order: nothing is searched twice
duplicates/cells/centroids.npy      cells of a large search, trained once; cells/<partition>.cells: features sorted by cell
duplicates/pairs/<work>.parquet     pairs of near-duplicates
duplicates/groups/<partition>.parquet   members of groups of two and more: what is known before any filter has spoken
duplicates/judged/<partition>.parquet   which members the filters keep
duplicates/<partition>.parquet      members with the best of their group that filters keep, weight, and whether they are dropped
references/<name>.parquet           features of an evaluation set
contamination/<partition>.parquet   images that are near-duplicates of an evaluation set's
"""

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from winnow.storage import Storage
from winnow.tables import read_table

DUPLICATE = "duplicate"
"""Reason in the decision log: a better near-duplicate is kept (or was reported as illegal)."""
CONTAMINATED = "contaminated"
"""Reason in the decision log, followed by ":" and the name of the evaluation set."""
WAVES = "duplicates/waves.json"
CENTROIDS = "duplicates/cells/centroids.npy"
CELLS_ENDING = ".cells"

GROUPS = pa.schema(
    [
        ("uid", pa.string()), ("group", pa.string()), ("group_size", pa.int32()), ("centre", pa.string()), ("pixels", pa.int64()),
        ("cosine", pa.float64()), ("hamming", pa.uint8()), ("mirrored", pa.bool_()),
    ]
)  # fmt: skip
"""`group` is the smallest uid of it; cosine, differing bits and mirroring are towards the centre, null for the centre itself."""
JUDGED = pa.schema([("uid", pa.string()), ("passes", pa.bool_())])
DUPLICATES = pa.schema(
    [
        ("uid", pa.string()), ("group", pa.string()), ("group_size", pa.int32()), ("num_passing", pa.int32()), ("best", pa.string()),
        ("passes", pa.bool_()), ("is_best", pa.bool_()), ("is_dropped", pa.bool_()), ("weight", pa.float64()), ("pixels", pa.int64()),
        ("centre", pa.string()), ("cosine", pa.float64()), ("hamming", pa.uint8()), ("mirrored", pa.bool_()),
    ]
)  # fmt: skip
"""`best`: of the members that filters keep; null if there is none, or if one of the group was reported as illegal."""
CONTAMINATION = pa.schema(
    [
        ("uid", pa.string()), ("reference", pa.string()), ("item", pa.string()), ("cosine", pa.float64()), ("hamming", pa.uint8()),
        ("mirrored", pa.bool_()),
    ]
)  # fmt: skip
"""Each image with the closest item of each set it is a near-duplicate of, and each matched item with its closest image."""


def pairs_file(work: str) -> str:
    return f"duplicates/pairs/{work}.parquet"


def cells_file(partition: str) -> str:
    return f"duplicates/cells/{partition}{CELLS_ENDING}"


def groups_file(partition: str) -> str:
    return f"duplicates/groups/{partition}.parquet"


def judged_file(partition: str) -> str:
    return f"duplicates/judged/{partition}.parquet"


def duplicates_file(partition: str) -> str:
    return f"duplicates/{partition}.parquet"


def reference_file(name: str) -> str:
    return f"references/{name}.parquet"


def contamination_file(partition: str) -> str:
    return f"contamination/{partition}.parquet"


def contamination_reasons(storage: Storage, partition: str) -> dict[str, list[str]]:
    """uid -> `contaminated:<set>` of each evaluation set that it is a near-duplicate of an item of."""
    if not storage.exists(contamination_file(partition)):
        return {}
    table = read_table(storage, contamination_file(partition), ["uid", "reference"])
    found: dict[str, set[str]] = {}
    for uid, reference in zip(table["uid"].to_pylist(), table["reference"].to_pylist(), strict=True):
        found.setdefault(uid, set()).add(f"{CONTAMINATED}:{reference}")
    return {uid: sorted(reasons) for uid, reasons in found.items()}


def copy_reasons(storage: Storage, partition: str) -> dict[str, list[str]]:
    """uid -> reasons to drop it that have to do with other images: near-duplicates and evaluation sets."""
    found = contamination_reasons(storage, partition)
    if storage.exists(duplicates_file(partition)):
        table = read_table(storage, duplicates_file(partition), ["uid", "is_dropped"])
        for uid in table.filter(table["is_dropped"])["uid"].to_pylist():
            found.setdefault(uid, []).append(DUPLICATE)
    return found


def is_copy_reason(reason: str) -> bool:
    """Whether a reason is one of `copy_reasons`, and no filter's."""
    return reason == DUPLICATE or reason.startswith(f"{CONTAMINATED}:")


def bound_together(storage: Storage, wanted: Collection[str]) -> dict[str, str]:
    """uid -> the smallest of these uids in its group, of those that share a group with another of them."""
    by_group: dict[str, list[str]] = {}
    for file in storage.names("duplicates/groups"):
        table = read_table(storage, f"duplicates/groups/{file}", ["uid", "group"])
        for uid, group in zip(table["uid"].to_pylist(), table["group"].to_pylist(), strict=True):
            if uid in wanted:
                by_group.setdefault(group, []).append(uid)
    return {uid: min(uids) for uids in by_group.values() if len(uids) > 1 for uid in sorted(uids)}


def member(storage: Storage, partition: str, uid: str) -> dict[str, Any] | None:
    """The row of `DUPLICATES` of a sample; None if it is in no group."""
    if not storage.exists(duplicates_file(partition)):
        return None
    table = read_table(storage, duplicates_file(partition))
    rows: list[dict[str, Any]] = table.filter(pc.equal(table["uid"], uid)).to_pylist()
    return rows[0] if rows else None


def matches(storage: Storage, partition: str, uid: str) -> Iterator[tuple[str, str, float]]:
    """Items of evaluation sets that a sample is a near-duplicate of: set, item, cosine."""
    if storage.exists(contamination_file(partition)):
        table = read_table(storage, contamination_file(partition))
        for row in table.filter(pc.equal(table["uid"], uid)).to_pylist():
            yield row["reference"], row["item"], row["cosine"]
