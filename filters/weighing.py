"""Steps that give every kept sample a weight: learn the classifier once, weigh partitions, lay weights beside shards.

The classifier is learnt when the filters change, not whenever partitions come: it stands in weights/classifier.json with the
partitions it saw. New partitions are weighed by it, so that a nightly run weighs what is new and nothing else.
"""

import hashlib
import heapq
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.importance import Importance, ImportanceConfig, fit_importance
from filters.search import feature_rows
from winnow.duplicates import duplicates_file
from winnow.errors import ConfigError, ShardError
from winnow.partitions import Outcome
from winnow.receipts import Receipt, Work, read_receipts
from winnow.run_files import filters_used, sidecar
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.weights import CLASSIFIER, WEIGHTS, read_classifier, shard_weights_file, shard_weights_index, weights_file
from winnow.workspace import decisions, embeddings, shard_folder

VERSION = 1
LEARN, WEIGH, LAY = "importance", "weigh", "weigh-shard"
"""Names of the three stages' receipts."""


def learn_importance(storage: Storage, name: str, *, config: ImportanceConfig, partitions: Sequence[str]) -> Outcome:
    """Writes weights/classifier.json from a sample of the decided partitions. `name` is not used: there is one classifier."""
    chosen = chosen_partitions(partitions, config)
    features, kept = read_sample(storage, chosen, config)
    importance, told = fit_importance(features, kept, config)
    content = {
        "coefficients": [float(value) for value in importance.coefficients],
        "intercept": importance.intercept,
        "scale": importance.scale,
        "max_weight": importance.max_weight,
        "measured": told,
        "partitions": {"decided": len(partitions), "read": len(chosen)},
    }
    written = storage.write_text(CLASSIFIER, json.dumps(content, sort_keys=True, indent=1) + "\n")
    return Outcome.of(written, counts={"images": len(kept)})


def chosen_partitions(partitions: Sequence[str], config: ImportanceConfig) -> list[str]:
    """Those a classifier is learnt from, sorted: the first in an order of hashes."""
    ranked = sorted(partitions, key=lambda name: hashlib.sha256(f"importance\0{config.seed}\0{name}".encode()).digest())
    return sorted(ranked[: config.partitions])


def read_sample(storage: Storage, partitions: Sequence[str], config: ImportanceConfig) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, dim) float32 of images before filtering, drawn at random, and whether each is kept (n,). Rows in order of uid.

    Before filtering are those that filters alone decide on: what was dropped by a rule, as a copy or by a person's wish is meant to
    be gone, and no weight shall make up for it.
    """
    filters = {used.name for used in filters_used(storage)}
    best: list[tuple[bytes, str, bool, np.ndarray]] = []
    for partition in partitions:
        table = read_table(storage, decisions(partition), ["uid", "verdict", "reasons"])
        verdicts = {
            row["uid"]: row["verdict"] == "kept"
            for row in table.to_pylist()
            if row["verdict"] != "failed" and filters.issuperset(row["reasons"] or ())
        }
        embedded = read_table(storage, embeddings(partition), ["uid", "feature"])
        ranked = [
            (hashlib.sha256(f"importance\0{config.seed}\0{uid}".encode()).digest(), uid, verdicts[uid], row)
            for row, uid in enumerate(embedded["uid"].to_pylist())
            if uid in verdicts
        ]
        # First which rows are wanted, then only their features: a partition holds far more than the sample takes of it.
        nearest = heapq.nsmallest(config.sample, ranked, key=lambda entry: entry[0])
        rows = feature_rows(embedded["feature"].take([entry[3] for entry in nearest])) if nearest else np.zeros((0, 0), np.float32)
        drawn = [(mark, uid, value, rows[place]) for place, (mark, uid, value, _) in enumerate(nearest)]
        best = heapq.nsmallest(config.sample, [*best, *drawn], key=lambda entry: entry[0])
    if not best:
        raise ConfigError("importance: no image has been judged yet, so there is nothing to learn weights from; run `winnow score CONFIG`")
    best.sort(key=lambda entry: entry[1])
    return np.stack([entry[3] for entry in best]), np.array([entry[2] for entry in best], bool)


def weigh_partition(storage: Storage, name: str, *, importance: bool, duplicates: bool) -> Outcome:
    """Writes weights/<name>.parquet: a row for every kept sample.

    Args:
        importance: by weights/classifier.json; otherwise it is 1.
        duplicates: by the down-weights of near-duplicates, where the partition has some.
    """
    table = read_table(storage, decisions(name), ["uid", "verdict"])
    uids = sorted(table.filter(pc.equal(table["verdict"], "kept"))["uid"].to_pylist())
    columns = {"importance": np.ones(len(uids)), "duplicates": np.ones(len(uids))}
    if importance and uids:
        embedded = read_table(storage, embeddings(name), ["uid", "feature"])
        row_of = {uid: row for row, uid in enumerate(embedded["uid"].to_pylist())}
        features = feature_rows(embedded["feature"].take([row_of[uid] for uid in uids]))
        columns["importance"] = _classifier(storage).weights(features)
    if duplicates and storage.exists(duplicates_file(name)):
        known = read_table(storage, duplicates_file(name), ["uid", "weight"])
        weight_of = dict(zip(known["uid"].to_pylist(), known["weight"].to_pylist(), strict=True))
        columns["duplicates"] = np.array([weight_of.get(uid, 1.0) for uid in uids])
    columns["weight"] = columns["importance"] * columns["duplicates"]
    written = write_table(storage, weights_file(name), pa.table({"uid": uids, **columns}).cast(WEIGHTS))
    return Outcome.of(written, counts={"weighed": len(uids)})


def _classifier(storage: Storage) -> Importance:
    found = read_classifier(storage)
    assert found is not None, "weigh_stage learns it first"
    coefficients = np.array(found["coefficients"], np.float64)
    return Importance(coefficients=coefficients, intercept=found["intercept"], scale=found["scale"], max_weight=found["max_weight"])


def plan_shard_weights(storage: Storage, dataset: str, weighed: Mapping[str, str]) -> list[Work]:
    """One piece of work a shard; no sidecar is read.

    Args:
        weighed: partition -> output digest of its weights.
    """
    index = json.loads(storage.read_bytes(f"{shard_folder(dataset)}/index.json"))
    made_of = {path: _partitions_of(receipt) for receipt in read_receipts(storage, "shard") for path in receipt.outputs}
    works = []
    for shard in index["shards"]:
        partitions = made_of.get(f"{shard_folder(dataset)}/{shard['name']}")
        if partitions is None:
            raise ShardError(f"{storage.url}/{shard_folder(dataset)}/{shard['name']} has no receipt; run `winnow shard CONFIG` again")
        inputs = {"shard": shard["sha256"], **{f"weights/{name}": weighed[name] for name in partitions}}
        works.append(Work(name=shard["name"].removesuffix(".tar"), inputs=inputs, arguments={"dataset": dataset}))
    return works


def _partitions_of(receipt: Receipt) -> list[str]:
    return sorted(key.partition("/")[2] for key in receipt.inputs if key.startswith("decisions/"))


def lay_weights(storage: Storage, name: str, *, dataset: str) -> Outcome:
    """Writes the weights of a shard's samples in its own order.

    Raises:
        ShardError: a sample of it has no weight.
    """
    table = read_table(storage, sidecar(dataset, f"{name}.tar"), ["uid", "partition"])
    uids, partitions = table["uid"].to_pylist(), table["partition"].to_pylist()
    wanted, weight_of = set(uids), dict[str, float]()
    for partition in sorted(set(partitions)):
        known = read_table(storage, weights_file(partition), ["uid", "weight"])
        pairs = zip(known["uid"].to_pylist(), known["weight"].to_pylist(), strict=True)
        weight_of |= {uid: weight for uid, weight in pairs if uid in wanted}
    missing = [uid for uid in uids if uid not in weight_of]
    if missing:
        raise ShardError(f"{storage.url}/{sidecar(dataset, f'{name}.tar')}: {len(missing)} samples have no weight, {missing[0]} for one. "
                         "Run `winnow shard CONFIG` and `winnow weigh CONFIG` again.")  # fmt: skip
    sink = io.BytesIO()
    np.save(sink, np.array([weight_of[uid] for uid in uids], np.float32), allow_pickle=False)
    return Outcome.of(storage.write_bytes(shard_weights_file(dataset, name), sink.getvalue()), counts={"samples": len(uids)})


def write_weights_index(storage: Storage, dataset: str) -> dict[str, Any]:
    """Writes the weights' index.json from the receipts of all shards' weights, and returns its content."""
    index = json.loads(storage.read_bytes(f"{shard_folder(dataset)}/index.json"))
    receipts = {receipt.partition: receipt for receipt in read_receipts(storage, LAY) if receipt.arguments["dataset"] == dataset}
    entries = []
    for shard in index["shards"]:
        stem = shard["name"].removesuffix(".tar")
        written = receipts[stem].outputs[shard_weights_file(dataset, stem)]
        entries.append({"shard": shard["name"], "shard_sha256": shard["sha256"], "sha256": written["sha256"]})
    content = {"dataset": dataset, "shards": entries}
    text, path = json.dumps(content, sort_keys=True, indent=1) + "\n", shard_weights_index(dataset)
    if not storage.exists(path) or storage.read_text(path) != text:
        storage.write_text(path, text)
    return content
