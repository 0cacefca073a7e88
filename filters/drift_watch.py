"""Drift of a workspace: partitions that came after a filter's version was in force, against those it was certified on.

The first look at a version writes down its reference: `filters/<name>/drift/reference-<version>.json`, the partitions there were. Later
partitions are the new batch. Every measurement is a file, `filters/<name>/drift/<version>-<digest of the new partitions>.json`, so
that the same batch is measured once, and a drift pauses promotion once (filters/promotion.py).
"""

import dataclasses
import hashlib
import heapq
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from filters.drift import DriftConfig, measure_drift
from filters.promotion import note
from filters.search import read_features
from winnow.decisions import score_column
from winnow.digests import SHORT, digest
from winnow.run_files import FilterUsed
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, embeddings


def watch_drift(storage: Storage, used: FilterUsed, partitions: Sequence[str], config: DriftConfig) -> dict[str, Any]:
    """Measures the partitions that are new since a version came in force, or reads what was measured of them before.

    Returns:
        status ("steady", "drifted", "not measured") with its numbers and reasons, the new partitions, and whether it was measured
        `now`. A new drift is also noted as a pause of promotion.

    Args:
        partitions: with a decision log of this version.
    """
    reference = _reference(storage, used, partitions)
    new = [name for name in partitions if name not in set(reference)]
    about = {"filter": used.name, "version": used.version, "partitions": new, "config": dataclasses.asdict(config)}
    path = f"filters/{used.name}/drift/{used.version}-{digest([new, dataclasses.asdict(config)])[:SHORT]}.json"
    if storage.exists(path):
        known: dict[str, Any] = json.loads(storage.read_bytes(path))
        return known | {"now": False}
    there = [name for name in reference if name in set(partitions)]
    result = measure_drift(
        _scores(storage, used, there),
        _scores(storage, used, new),
        _features(storage, there, config),
        _features(storage, new, config),
        config,
    )
    found = about | dataclasses.asdict(result) | {"reasons": list(result.reasons)}
    if result.status == "drifted":
        # The pause first: a kill in between measures again and pauses again, and never lets a drift pass unseen.
        note(storage, used.name, "paused", {"version": used.version, "reason": "drift: " + "; ".join(result.reasons)})
    storage.write_text(path, json.dumps(found, sort_keys=True, indent=1) + "\n")
    return found | {"now": True}


def latest_drift(storage: Storage, name: str, version: str) -> dict[str, Any] | None:
    """The measurement of a version that saw the most new partitions; None if there is none."""
    folder = f"filters/{name}/drift"
    paths = [f"{folder}/{file}" for file in storage.names(folder) if file.startswith(f"{version}-")]
    found: list[dict[str, Any]] = [json.loads(storage.read_bytes(path)) for path in paths]
    return max(found, key=lambda entry: (len(entry["partitions"]), entry["new_images"]), default=None)


def _reference(storage: Storage, used: FilterUsed, partitions: Sequence[str]) -> list[str]:
    path = f"filters/{used.name}/drift/reference-{used.version}.json"
    if not storage.exists(path):
        storage.write_text(path, json.dumps({"partitions": list(partitions)}, indent=1) + "\n")
    names: list[str] = json.loads(storage.read_bytes(path))["partitions"]
    return names


def _scores(storage: Storage, used: FilterUsed, partitions: Sequence[str]) -> np.ndarray:
    column = score_column(used.name)
    parts = [read_table(storage, decisions(name), [column])[column].drop_null().to_numpy() for name in partitions]
    return np.concatenate([np.zeros(0), *parts])


def _features(storage: Storage, partitions: Sequence[str], config: DriftConfig) -> np.ndarray:
    """(up to config.sample, dim) features: those whose uid's digest with the seed is smallest. One partition is in memory at a time."""
    best: list[tuple[bytes, np.ndarray]] = []
    for name in partitions:
        found = read_features(storage, embeddings(name))
        ranked = [
            (hashlib.sha256(f"drift\0{config.seed}\0{uid}".encode()).digest(), row)
            for uid, row in zip(found.uids, found.features, strict=True)
        ]
        best = heapq.nsmallest(config.sample, [*best, *ranked], key=lambda pair: pair[0])
    return np.array([row for _, row in best], dtype=np.float32)
