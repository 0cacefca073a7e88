"""What has learned from samples that are to be forgotten: trained models, and filters whose machine holds their features."""

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.forget_match import Match
from winnow.forgotten import read_events
from winnow.machines import feature_rows, read_machine
from winnow.receipts import read_receipts
from winnow.run_files import read_json
from winnow.storage import Storage
from winnow.tables import read_table


def models_trained_on(storage: Storage, matches: Sequence[Match], shards_digest: str) -> list[str]:
    """Trainings that learned from these samples, or may have."""
    if not any(match.was in ("kept", "dropped") for match in matches):
        return []
    held = {shards_digest} | _earlier(storage, shards_digest)
    kept = any(match.was == "kept" for match in matches)
    found = {}
    for receipt in read_receipts(storage, "train"):
        found[f"checkpoints/{receipt.partition}"] = set(receipt.inputs.values())
    for path in storage.walk("checkpoints"):
        if path.count("/") == 2 and path.endswith("/run.json"):
            found[path.removesuffix("/run.json")] = {str(value) for value in read_json(storage, path).values() if isinstance(value, str)}
    lines = []
    for folder, marks in sorted(found.items()):
        if kept and marks & held:
            lines.append(f"{folder}: was trained on shards that held it")
        elif not marks & held:
            lines.append(f"{folder}: was trained on an earlier state of the shards, which may have held it")
    return lines


def _earlier(storage: Storage, shards_digest: str) -> set[str]:
    """States of the shards that became today's by forgetting alone: what is there now was there then."""
    found: set[str] = set()
    for event in reversed(read_events(storage)):
        if event.shards.get("after") in {shards_digest, *found}:
            found.add(event.shards["before"])
    return found


def filters_holding(storage: Storage, uids: Collection[str]) -> list[str]:
    """Folders of filters' versions one of whose support vectors is the features of one of these images."""
    found = []
    for path in storage.walk("filters"):
        if path.endswith("/labelled.parquet"):
            table = read_table(storage, path, ["uid", "feature"])
            own = table.filter(pc.and_(pc.is_in(table["uid"], pa.array(list(uids), pa.string())), table["feature"].is_valid()))
            machine = f"{path.removesuffix('/labelled.parquet')}/svm.safetensors"
            if own.num_rows and storage.exists(machine):
                vectors = {vector.tobytes() for vector in read_machine(storage, machine).support_vectors.astype(np.float32)}
                if any(row.tobytes() in vectors for row in feature_rows(own["feature"]).astype(np.float32)):
                    found.append(machine.removesuffix("/svm.safetensors"))
    return found
