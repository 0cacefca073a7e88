"""How the files of a partition are without some of its samples: manifest, downloads, features, decisions, and any other table by uid."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from winnow.amending import Edits
from winnow.forgotten import SLUGS, tombstone_url
from winnow.storage import Storage
from winnow.tables import read_table, table_bytes
from winnow.tars import TarWriter, find_samples
from winnow.workspace import decisions, manifest_part, raw_table, raw_tar

Gone = Mapping[str, str]
"""uid -> slug of its tombstone, of one partition."""


def manifest_edits(storage: Storage, partition: str, gone: Gone) -> dict[str, bytes]:
    """The part with tombstones: uid, source and licence stay, url, caption and sha256 go."""
    path = manifest_part(partition)
    table = read_table(storage, path)
    rows = table.to_pylist()
    changed = False
    for row in rows:
        if row["uid"] in gone and row["url"] != tombstone_url(gone[row["uid"]]):
            row |= {"url": tombstone_url(gone[row["uid"]]), "caption": "", "sha256": None}
            changed = True
    return {path: table_bytes(pa.Table.from_pylist(rows, table.schema))} if changed else {}


def download_edits(storage: Storage, partition: str, gone: Gone, scratch: Path) -> Edits:
    """The raw tar without the samples, block for block, and the table with failures in their place."""
    if not storage.exists(raw_table(partition)):
        return Edits()
    table = read_table(storage, raw_table(partition))
    rows = table.to_pylist()
    empty = dict.fromkeys(table.column_names)
    due = [{**empty, "uid": row["uid"], "status": "failed", "cause": gone[row["uid"]]} if row["uid"] in gone else row for row in rows]
    files: dict[str, bytes | Path | None] = {}
    # The tar first: as long as the table says that a sample is there, it will be looked for again.
    if storage.exists(raw_tar(partition)):
        tar = _without(storage, raw_tar(partition), gone, scratch / f"{partition}.tar")
        if tar is not None:
            files[raw_tar(partition)] = tar
    if due != rows:
        files[raw_table(partition)] = table_bytes(pa.Table.from_pylist(due, table.schema))
    causes = Counter(row["cause"] for row in due if row["status"] != "downloaded")
    counts = {"downloaded": len(due) - causes.total(), "failed": causes.total()}
    return Edits(files=files, counts=counts, facts={"causes": dict(sorted(causes.items()))})


def _without(storage: Storage, path: str, gone: Collection[str], out: Path) -> Path | None:
    """A copy of a tar without some samples; None if it holds none of them."""
    with storage.local_file(path) as local:
        samples = list(find_samples(local))
        if not any(sample.uid in gone for sample in samples):
            return None
        with open(local, "rb") as source, open(out, "wb") as stream:
            tar = TarWriter(stream)
            for sample in samples:
                if sample.uid not in gone:
                    source.seek(sample.offset)
                    tar.add_blocks(source.read(sample.size))
            tar.close()
    return out


def rows_edits(storage: Storage, path: str, gone: Collection[str], *, count: str | None = None) -> Edits:
    """Any table without the rows of these uids.

    Args:
        count: what the receipt calls the number of rows.
    """
    if not storage.exists(path):
        return Edits()
    table = read_table(storage, path)
    left = table
    for column in ("uid", "worse", "better"):  # the last two: pairs of near-duplicates
        if column in table.column_names:
            left = left.filter(pc.invert(pc.is_in(left[column], pa.array(list(gone), left[column].type))))
    left = left.combine_chunks()
    files = {path: table_bytes(left)} if left.num_rows < table.num_rows else {}
    return Edits(files=files, counts={count: left.num_rows} if count else {})


def decision_edits(storage: Storage, partition: str, gone: Gone) -> Edits:
    """The decision log with the samples dropped for the reason of their tombstone, and everything else about them empty."""
    path = decisions(partition)
    if not storage.exists(path):
        return Edits()
    table = read_table(storage, path)
    rows = table.to_pylist()
    due = [_tombstone(row, gone[row["uid"]]) if row["uid"] in gone else row for row in rows]
    verdicts = Counter(row["verdict"] for row in due)
    reasons = Counter(reason for row in due if row["verdict"] == "dropped" for reason in row["reasons"])
    filters = [column.partition("_")[2] for column in table.column_names if column.startswith(("score_", "value_"))]
    counts = {verdict: verdicts[verdict] for verdict in ("kept", "dropped", "failed")}
    counts |= {f"dropped_by_{name}": reasons[name] for name in filters} | {slug: reasons[slug] for slug in SLUGS if reasons[slug]}
    return Edits(files={path: table_bytes(pa.Table.from_pylist(due, table.schema))} if due != rows else {}, counts=counts)


def _tombstone(row: Mapping[str, Any], slug: str) -> dict[str, Any]:
    return {**dict.fromkeys(row), "uid": row["uid"], "verdict": "dropped", "reasons": [slug]}


def feature_edits(storage: Storage, path: str, gone: Collection[str]) -> Edits:
    """What a filter was fitted from, without the features of these images: their label stays, as evidence of the certificate."""
    table = read_table(storage, path)
    feature = table["feature"].combine_chunks()
    hide = pc.and_(pc.is_in(table["uid"].combine_chunks(), pa.array(list(gone), pa.string())), feature.is_valid())
    if not pc.any(hide).as_py():
        return Edits()
    place = table.schema.get_field_index("feature")
    left = pc.if_else(hide, pa.scalar(None, feature.type), feature)
    return Edits(files={path: table_bytes(table.set_column(place, table.schema.field(place), left))})
