"""Looks through all embeddings, one partition in memory at a time: at random, by text, by a function of the features."""

import hashlib
import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.errors import ConfigError
from winnow.progress import Progress
from winnow.run_files import withdrawn_uids
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import embeddings


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Rows of an embeddings file."""

    uids: list[str]
    features: np.ndarray
    """(n, dim) float32."""
    dhashes: np.ndarray
    """(n,) int64."""


def read_features(storage: Storage, path: str, *, leave_out: Collection[str] = ()) -> Features:
    """The rows of an embeddings file, but for some."""
    table = read_table(storage, path, ["uid", "feature", "dhash"])
    uids = table.column("uid").to_pylist()
    features = feature_rows(table.column("feature"))
    dhashes = table.column("dhash").to_numpy().astype(np.int64)
    if leave_out:
        rows = [row for row, uid in enumerate(uids) if uid not in leave_out]
        return Features(uids=[uids[row] for row in rows], features=features[rows], dhashes=dhashes[rows])
    return Features(uids=uids, features=features, dhashes=dhashes)


def feature_rows(column: pa.ChunkedArray) -> np.ndarray:
    """A column of float16 lists, none null, as (n, dim) float32. Raises ConfigError if they are not all of one length."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    dim = len(flat) // max(len(column), 1)
    if any(length != dim for length in pc.list_value_length(column).unique().to_pylist()):
        raise ConfigError("features of one file differ in dimension; embed it anew")
    return flat.astype(np.float32).reshape(len(column), dim)


def each_partition(storage: Storage, partitions: Sequence[str], title: str) -> Iterator[Features]:
    """The embedded samples of all partitions that are still listed, a partition at a time."""
    withdrawn = withdrawn_uids(storage)
    with Progress(title, total=len(partitions)) as progress:
        for partition in sorted(partitions):
            found = read_features(storage, embeddings(partition), leave_out=withdrawn.get(partition, ()))
            yield found
            progress.advance({"images": len(found.uids)})


def draw_at_random(storage: Storage, partitions: Sequence[str], count: int, *, seed: int, leave_out: Collection[str] = ()) -> list[str]:
    """`count` embedded, listed uids, each as likely as any other, or all if there are fewer.

    They are the first in an order of hashes, so that the same seed and data give the same draw, however they are partitioned.
    """
    withdrawn = withdrawn_uids(storage)

    def ranked() -> Iterator[tuple[bytes, str]]:
        with Progress("random draw", total=len(partitions)) as progress:
            for partition in sorted(partitions):
                uids = read_table(storage, embeddings(partition), ["uid"]).column("uid").to_pylist()
                gone = withdrawn.get(partition, frozenset())
                for uid in uids:
                    if uid not in gone and uid not in leave_out:
                        yield hashlib.sha256(f"{seed}:{uid}".encode()).digest(), uid
                progress.advance({"images": len(uids)})

    return [uid for _, uid in heapq.nsmallest(count, ranked())]


def search_by_text(
    storage: Storage,
    partitions: Sequence[str],
    text_vectors: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
    *,
    leave_out: Mapping[str, Collection[str]],
) -> dict[str, list[str]]:
    """For each filter the images nearest to its prompts, each prompt its share, exactly (no index).

    Args:
        text_vectors: filter -> (prompts, dim) unit vectors in the embeddings' space.
        counts: filter -> images wanted.
        leave_out: filter -> uids not to ask again.

    Returns:
        Filter -> uids: the nearest of the first prompt, of the second, ..., the second nearest of the first, ... each once.
    """
    best: dict[str, list[list[tuple[float, str]]]] = {name: [[] for _ in text_vectors[name]] for name in counts}
    for found in each_partition(storage, partitions, "text search"):
        # float64: float32 sums change with the batch's shape, and with them the order of near-equals.
        rows = found.features.astype(np.float64)
        for name, count in counts.items():
            vectors = text_vectors[name].astype(np.float64)
            _check_dim(vectors, rows, name)
            free = np.array([uid not in leave_out[name] for uid in found.uids], dtype=bool)
            for prompt, similarity in enumerate(vectors @ rows.T):
                order = [row for row in np.argsort(-similarity, kind="stable")[: count + int((~free).sum())].tolist() if free[row]]
                ranked = [(-float(similarity[row]), found.uids[row]) for row in order[:count]]
                best[name][prompt] = heapq.nsmallest(count, best[name][prompt] + ranked)
    return {name: _in_turns([[uid for _, uid in ranked] for ranked in best[name]], count) for name, count in counts.items()}


def nearest_by(
    storage: Storage,
    partitions: Sequence[str],
    distance: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str],
    count: int,
    *,
    leave_out: Mapping[str, Collection[str]],
) -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    """For each name the `count` images of smallest distance.

    Args:
        distance: (n, dim) float32 features -> (n, names) distances.

    Returns:
        Name -> uids, their distances (n,) ascending, their features (n, dim).
    """
    best: dict[str, list[tuple[float, str, np.ndarray]]] = {name: [] for name in names}
    for found in each_partition(storage, partitions, "boundary search"):
        distances = distance(found.features)
        for column, name in enumerate(names):
            free = (row for row in np.argsort(distances[:, column], kind="stable").tolist() if found.uids[row] not in leave_out[name])
            ranked = [
                (float(distances[row, column]), found.uids[row], found.features[row]) for row, _ in zip(free, range(count), strict=False)
            ]
            best[name] = heapq.nsmallest(count, best[name] + ranked, key=lambda entry: entry[:2])
    return {
        name: (
            [uid for _, uid, _ in entries],
            np.array([distance for distance, _, _ in entries]),
            np.stack([feature for _, _, feature in entries]) if entries else np.zeros((0, 0), dtype=np.float32),
        )
        for name, entries in best.items()
    }


def find_features(storage: Storage, partitions: Sequence[str], uids: Collection[str]) -> Features:
    """The features of these images, sorted by uid; those that are nowhere are left out."""
    withdrawn = withdrawn_uids(storage)
    parts: list[Features] = []
    with Progress("look up labelled images", total=len(partitions)) as progress:
        for partition in sorted(partitions):
            held = set(read_table(storage, embeddings(partition), ["uid"]).column("uid").to_pylist())
            held -= withdrawn.get(partition, frozenset())
            if not held.isdisjoint(uids):
                parts.append(_only(read_features(storage, embeddings(partition)), held.intersection(uids)))
            progress.advance({"images": len(held)})
    return join_features(parts)


def join_features(parts: Sequence[Features]) -> Features:
    """All rows, sorted by uid, each once."""
    parts = [part for part in parts if part.uids]
    if len({part.features.shape[1] for part in parts}) > 1:
        raise ConfigError(
            "features of different dimensions lie in one workspace (embeddings/, imports/); embed all of it with one model, and run again"
        )
    uids = [uid for part in parts for uid in part.uids]
    if not uids:
        return Features(uids=[], features=np.zeros((0, 0), dtype=np.float32), dhashes=np.zeros(0, dtype=np.int64))
    features, dhashes = np.concatenate([part.features for part in parts]), np.concatenate([part.dhashes for part in parts])
    row_of = {uid: row for row, uid in reversed(list(enumerate(uids)))}
    rows = [row_of[uid] for uid in sorted(row_of)]
    return Features(uids=[uids[row] for row in rows], features=features[rows], dhashes=dhashes[rows])


def _only(found: Features, wanted: Collection[str]) -> Features:
    rows = [row for row, uid in enumerate(found.uids) if uid in wanted]
    return Features(uids=[found.uids[row] for row in rows], features=found.features[rows], dhashes=found.dhashes[rows])


def _in_turns(ranked: Sequence[Sequence[str]], count: int) -> list[str]:
    """The first of each list, then the second of each, ... without repeats; as many as wanted."""
    taken: dict[str, None] = {}
    for place in range(max(map(len, ranked), default=0)):
        for uids in ranked:
            if len(taken) < count and place < len(uids):
                taken.setdefault(uids[place])
    return list(taken)


def _check_dim(vectors: np.ndarray, rows: np.ndarray, name: str) -> None:
    if len(rows) and vectors.shape[1] != rows.shape[1]:
        raise ConfigError(
            f"text vectors of {name} have {vectors.shape[1]} dimensions, embeddings {rows.shape[1]}: they are of different models"
        )
