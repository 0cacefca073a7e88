"""Do weights of samples follow from the classifier, the features and the near-duplicates, and do shards carry them? Computed again."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from winnow.duplicates import duplicates_file
from winnow.findings import Ledger
from winnow.machines import feature_rows
from winnow.progress import Progress
from winnow.receipts import FOLDER, list_done, read_receipt
from winnow.run_files import datasets, read_json, sidecar
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.weights import CLASSIFIER, GRAIN, importance_again, read_classifier, shard_weights_file, shard_weights_index, weights_file
from winnow.workspace import decisions, embeddings

CHECKED_AGAIN = 256
"""Samples of each partition whose importance is computed again: those with the smallest uids."""
FLOAT32 = 1e-6


def check_weights(storage: Storage, partitions: Sequence[str], ledger: Ledger, progress: Progress) -> None:
    """Every partition's weights, and those beside every shard."""
    weighed = {done.partition: done for done in list_done(storage, "weigh")}
    above = {kind: {done.partition: done.output for done in list_done(storage, stage)} for kind, stage in _STAGES.items()}
    classifier = None
    with ledger.reading("weights", CLASSIFIER):
        classifier = read_classifier(storage)
    for partition in partitions:
        path = weights_file(partition)
        if weighed and partition not in weighed:
            ledger.add("weights", path, "is missing, though other partitions are weighed: run weigh again")
        elif weighed:
            with ledger.reading("weights", path):
                receipt = read_receipt(storage, "weigh", weighed[partition])
                for kind, outputs in above.items():
                    there = outputs.get("classifier" if kind == "classifier" else partition)
                    if kind in receipt.inputs and receipt.inputs[kind] != there:
                        file = f"{FOLDER}/weigh/{weighed[partition].file_name}"
                        ledger.add("weights", file, f"was made from {kind} {receipt.inputs[kind]}, but there is {there}: run weigh again")
                _check_partition(storage, partition, receipt.arguments, classifier, ledger)
        progress.advance()
    for dataset, index in datasets(storage).items():
        _check_shards(storage, dataset, index["shards"], ledger)


_STAGES = {"decisions": "score", "embeddings": "embed", "classifier": "importance"}


def _check_partition(
    storage: Storage, partition: str, arguments: dict[str, Any], classifier: dict[str, Any] | None, ledger: Ledger
) -> None:
    path = weights_file(partition)
    table = read_table(storage, path)
    rows = dict(zip(table["uid"].to_pylist(), table.to_pylist(), strict=True))
    decided = read_table(storage, decisions(partition), ["uid", "verdict"]).to_pylist()
    kept = sorted(row["uid"] for row in decided if row["verdict"] == "kept")
    ledger.count("weights", len(rows))
    if table["uid"].to_pylist() != kept:
        ledger.add("weights", path, f"has {len(rows):,} samples, the decision log keeps {len(kept):,}, or they differ")
        return
    groups: dict[str, float] = {}
    if arguments["duplicates"] and storage.exists(duplicates_file(partition)):
        members = read_table(storage, duplicates_file(partition), ["uid", "weight"]).to_pylist()
        groups = {row["uid"]: row["weight"] for row in members}
    for uid, row in rows.items():
        if abs(row["duplicates"] - groups.get(uid, 1.0)) > FLOAT32:
            ledger.add("weights", path, f"{uid} has {row['duplicates']} for duplicates, {groups.get(uid, 1.0)} is due")
        if abs(row["weight"] - row["importance"] * row["duplicates"]) > FLOAT32 * max(1.0, row["weight"]):
            ledger.add("weights", path, f"{uid} has weight {row['weight']}, its parts give {row['importance'] * row['duplicates']}")
    if not arguments["importance"]:
        for uid in (uid for uid, row in rows.items() if row["importance"] != 1):
            ledger.add("weights", path, f"{uid} has importance {rows[uid]['importance']}, though none was asked for")
        return
    if classifier is None:
        ledger.add("weights", CLASSIFIER, "is missing, though samples are weighed by it")
        return
    chosen = kept[:CHECKED_AGAIN]
    embedded = read_table(storage, embeddings(partition), ["uid", "feature"])
    place = {uid: number for number, uid in enumerate(embedded["uid"].to_pylist())}
    features = feature_rows(embedded["feature"].take([place[uid] for uid in chosen])) if chosen else np.zeros((0, 0))
    for uid, again in zip(chosen, importance_again(classifier, features) if chosen else (), strict=True):
        if abs(rows[uid]["importance"] - again) > GRAIN / 2 + FLOAT32 * again:
            ledger.add("weights", path, f"{uid} has importance {rows[uid]['importance']}, its features give {again:.6f}")


def _check_shards(storage: Storage, dataset: str, shards: list[dict[str, Any]], ledger: Ledger) -> None:
    """The weights beside each shard against those of its partitions, sample for sample."""
    path = shard_weights_index(dataset)
    if not storage.exists(path):
        return
    with ledger.reading("weights", path):
        listed = {entry["shard"]: entry for entry in read_json(storage, path)["shards"]}
        if listed.keys() != {shard["name"] for shard in shards}:
            ledger.add("weights", path, "lists other shards than the dataset has: run weigh again")
            return
        for shard in shards:
            own = shard_weights_file(dataset, shard["name"].removesuffix(".tar"))
            if listed[shard["name"]]["shard_sha256"] != shard["sha256"]:
                ledger.add("weights", path, f"was made for another {shard['name']}: run weigh again")
            with ledger.reading("weights", own):
                content = storage.read_bytes(own)
                if listed[shard["name"]]["sha256"] != storage.sha256(own):
                    ledger.add("weights", path, f"names another sha256 for {own} than it has")
                found = np.load(io.BytesIO(content), allow_pickle=False)
                samples = read_table(storage, sidecar(dataset, shard["name"]), ["uid", "partition"]).to_pylist()
                due = _due(storage, samples)
                ledger.count("weights", len(samples))
                if len(found) != len(due) or any(one != float(other) for one, other in zip(due, found, strict=True)):
                    ledger.add("weights", own, "does not hold the weights of the shard's samples in their order")


def _due(storage: Storage, samples: list[dict[str, str]]) -> list[float]:
    weight_of: dict[str, float] = {}
    wanted = {row["uid"] for row in samples}
    for partition in sorted({row["partition"] for row in samples}):
        weight_of |= {row["uid"]: row["weight"] for row in read_table(storage, weights_file(partition)).to_pylist() if row["uid"] in wanted}
    return [weight_of[row["uid"]] for row in samples]
