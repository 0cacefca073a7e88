"""A workspace of made-up features with a known truth, small enough to learn filters on in a second."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filters.catalog import FILTERS
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.workspace import WITHDRAWN, embeddings, manifest_part, raw_table

DIM = 12
RATES = (0.3, 0.25, 0.05)
PUSH = 1.6
"""How far a positive lies in its filter's direction: far, but with a few clean images among the lowest positives."""


@dataclass(frozen=True, kw_only=True)
class World:
    storage: Storage
    partitions: list[str]
    truth: dict[str, tuple[int, ...]]
    """uid -> label for each filter."""
    truth_file: str
    text_vectors: dict[str, np.ndarray]


def uid_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def directions() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(7).normal(size=(DIM, DIM)))[0][: len(FILTERS)]


def make_world(root: Path, *, partitions: int = 4, rows: int = 250, failed: float = 0.05, num_imports: int = 90) -> World:
    storage, names, truth = Storage(str(root)), [], {}
    for number in range(partitions):
        names.append(f"{number:05}-{number:08x}")
        truth |= add_partition(storage, names[-1], rows=rows, failed=failed, seed=number)
    rng = np.random.default_rng(1000)
    labels = np.tile([0, 0, 1], (num_imports, 1))
    uids = sorted(uid_of(f"import {i}") for i in range(num_imports))
    write_embeddings(storage, "imports/hate_symbol.parquet", uids, features(labels, rng), rng)
    table = {"url": [url_of(uid) for uid in truth]} | {name: [label[i] for label in truth.values()] for i, name in enumerate(FILTERS)}
    pq.write_table(pa.table(table), root / "truth.parquet")
    vectors = {name: directions()[i : i + 1].astype(np.float32) for i, name in enumerate(FILTERS)}
    return World(storage=storage, partitions=names, truth=truth, truth_file=str(root / "truth.parquet"), text_vectors=vectors)


def add_partition(storage: Storage, name: str, *, rows: int, failed: float, seed: int) -> dict[str, tuple[int, ...]]:
    """Writes manifest, download table and embeddings of a partition; returns the truth of its samples."""
    rng = np.random.default_rng(seed)
    uids = sorted(uid_of(f"{name} {i}") for i in range(rows))
    labels = (rng.random((rows, len(RATES))) < RATES).astype(int)
    bad = rng.random(rows) < failed
    undecodable = ~bad & (rng.random(rows) < failed / 2)
    nothing = pa.array([None] * rows, pa.string())
    manifest = {
        "uid": uids,
        "url": [url_of(uid) for uid in uids],
        "caption": nothing,
        "source": nothing,
        "licence": nothing,
        "sha256": nothing,
    }
    write_table(storage, manifest_part(name), pa.table(manifest))
    raw = {
        "uid": uids,
        "status": ["failed" if b else "downloaded" for b in bad],
        "cause": pa.array(["http_404" if b else None for b in bad], pa.string()),
    }
    write_table(storage, raw_table(name), pa.table(raw))
    there = np.flatnonzero(~bad & ~undecodable)
    write_embeddings(storage, embeddings(name), [uids[i] for i in there], features(labels, rng)[there], rng)
    return {uid: tuple(label) for uid, label in zip(uids, labels.tolist(), strict=True)}


def features(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows = rng.normal(size=(len(labels), DIM)) / np.sqrt(DIM) + PUSH * labels @ directions()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_embeddings(storage: Storage, path: str, uids: Sequence[str], rows: np.ndarray, rng: np.random.Generator) -> None:
    feature = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float16).ravel(), pa.float16()), rows.shape[1])
    hashes = rng.integers(-(2**63), 2**63 - 1, size=len(uids))
    write_table(storage, path, pa.table({"uid": pa.array(list(uids), pa.string()), "feature": feature, "dhash": hashes}))


def url_of(uid: str) -> str:
    return f"http://example.org/{uid}.jpg"


def withdraw(storage: Storage, partition: str, uids: Sequence[str]) -> None:
    write_table(storage, WITHDRAWN, pa.table({"partition": [partition] * len(uids), "uid": list(uids)}))
