"""A finished workspace from which samples can be forgotten, and a search for what is left of one in all its files."""

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from filters.label_batches import create_batch
from filters.label_database import LabelDatabase
from filters.label_records import Item
from filters.labels import LabelStore
from filters.weighing import LAY, WEIGH, lay_weights, plan_shard_weights, write_weights_index
from tests.fake_workspace import make_workspace
from winnow import resharding, shards
from winnow.audit import write_report
from winnow.forgotten import holes
from winnow.manifest import manifest_rows
from winnow.partitions import run_step
from winnow.receipts import Work, list_done
from winnow.report.gallery import thumbnail
from winnow.run_files import read_json
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.tars import read_members
from winnow.workspace import decisions, manifest_part, raw_tar

LABELS = "labels/labels.sqlite"


def make_world(root: Path, *, parts: int = 2) -> Storage:
    """A fake run with real shards."""
    storage = make_workspace(root, parts=parts)
    storage.remove_folder("shards")
    for stage in ("shard", LAY):
        storage.remove_folder(f"receipts/{stage}")
    shard(storage)
    weighed = {done.partition: done.output for done in list_done(storage, WEIGH)}
    run_step(lay_weights, plan_shard_weights(storage, "kept", weighed), storage, stage=LAY, version=1)
    write_weights_index(storage, "kept")
    return storage


def report(storage: Storage, state: str) -> None:
    """Writes the report. What it is made from is no matter here."""
    run_step(write_report, [Work(name="report", inputs={"state": state})], storage, stage="report", version=1)


def shard(storage: Storage) -> None:
    def outputs(stage: str) -> dict[str, str]:
        return {done.partition: done.output for done in list_done(storage, stage)}

    config = shards.ShardConfig(dataset="kept", shard_samples=15)
    works = resharding.plan_shards(
        config, rows=manifest_rows(storage), raw=outputs("download"), decided=outputs("score"), holes=holes(storage)
    )
    run_step(resharding.write_group, works, storage, stage=shards.STAGE, version=resharding.VERSION)
    shards.write_index(storage, "kept")


def samples(storage: Storage) -> list[dict[str, Any]]:
    """Every listed sample: uid, url, caption, partition, verdict."""
    found = []
    for partition in sorted(manifest_rows(storage)):
        verdicts = dict(read_table(storage, decisions(partition), ["uid", "verdict"]).to_pandas().itertuples(index=False))
        for row in read_table(storage, manifest_part(partition)).to_pylist():
            found.append({**row, "partition": partition, "verdict": verdicts.get(row["uid"])})
    return found


def well_known(storage: Storage) -> dict[str, Any]:
    """A kept sample that left traces in a prompt and in what filters were fitted from, and whose caption is its own."""
    drawn = {entry["uid"] for entry in read_json(storage, "samples/base/index.json")["samples"]}
    paths = [path for path in storage.walk("filters") if path.endswith("labelled.parquet")]
    labelled = {uid for path in paths for uid in read_table(storage, path, ["uid"])["uid"].to_pylist()}
    every = samples(storage)
    captions = [row["caption"] for row in every]
    return next(row for row in every if row["uid"] in drawn & labelled and captions.count(row["caption"]) == 1)


def label(storage: Storage, sample: dict[str, Any], other: str) -> None:
    """A label of the sample, with the digest of its picture; a question about it that nobody answered; and one about two pictures."""
    uid = sample["uid"]
    with LabelStore.open(storage.full(LABELS)) as store:
        store.add_batch("people", "first", "random", {uid: 1, other: 0}, person="ada", policy="no people")
        answered = {"uid": uid, "value": 0, "origin": "random", "batch": "second", "person": "ada", "policy_version": "1", "mode": "query"}
        answered |= {"created_at": "2026", "kind": "item", "item_digest": image_digest(storage, sample), "answer": "no"}
        store.add_answers("people", [answered])
        create_batch(store, "people", "open", [Item(uid=uid), Item(uid=other)], mode="query", origin="random")
        pictures = {"left": "file:samples/base/00023.png", "right": f"uid:{uid}"}
        items = [
            Item(uid="pair 0", reason=sample["caption"], pictures=pictures),
            Item(uid="pair 1", reason="another", pictures=pictures | {"right": f"uid:{other}"}),
        ]
        create_batch(store, "people", "pairs", items, mode="pairs", origin="random")


def rows_of(path: str, table: str) -> list[dict[str, Any]]:
    import sqlalchemy as sa

    with LabelDatabase.open(path) as database, database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY rowid")).mappings()]


def image_of(storage: Storage, sample: dict[str, Any]) -> bytes:
    with storage.local_file(raw_tar(sample["partition"])) as path:
        return dict(read_members(path))[f"{sample['uid']}.jpg"]


def image_digest(storage: Storage, sample: dict[str, Any]) -> str:
    return hashlib.sha256(image_of(storage, sample)).hexdigest()


def traces(storage: Storage, sample: dict[str, Any]) -> dict[str, bytes]:
    """What must be found nowhere: caption, url, image, its digest, its thumbnail, its features."""
    image = image_of(storage, sample)
    small = thumbnail(image)
    assert small is not None
    known = {"caption": sample["caption"].encode(), "url": sample["url"].encode(), "image": image[len(image) // 2 :][:200]}
    table = read_table(storage, f"embeddings/{sample['partition']}.parquet", ["uid", "feature"])
    feature = next(row["feature"] for row in table.to_pylist() if row["uid"] == sample["uid"])
    return known | {"digest": hashlib.sha256(image).hexdigest().encode(), "thumbnail": small.encode(), "feature": repr(feature).encode()}


def places(storage: Storage, wanted: dict[str, bytes]) -> dict[str, set[str]]:
    """Trace -> files that have it: in their bytes or, for tables, in their cells."""
    found: dict[str, set[str]] = {name: set() for name in wanted}
    for path in storage.walk():
        data = storage.read_bytes(path)
        if path.endswith(".parquet"):
            data += b"\n".join(str(cell).encode() for column in pq.read_table(io.BytesIO(data)).columns for cell in column.to_pylist())
        for name, trace in wanted.items():
            if trace in data:
                found[name].add(path)
    return found
