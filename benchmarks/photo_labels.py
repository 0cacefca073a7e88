"""Real photos with real labels and real features, for benchmarks: read once, distances computed once."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from filters.svm import squared_distances


@dataclass(frozen=True, kw_only=True, eq=False)
class Photos:
    """The photos with a label of one kind."""

    features: np.ndarray
    """(n, dim) float32, unit length."""
    labels: np.ndarray
    """(n,) 1: to be dropped."""
    groups: np.ndarray
    """(n,) str; near-duplicates share one."""
    squared: np.ndarray
    """(n, n) squared distances."""
    gamma: float
    """1 / (dim x variance), scikit-learn's "scale"."""

    def kernel(self, rows: np.ndarray, columns: np.ndarray, scale: float = 1.0) -> np.ndarray:
        kernel: np.ndarray = np.exp(-scale * self.gamma * self.squared[np.ix_(rows, columns)])
        return kernel


def read_photos(data: Path, column: str) -> Photos:
    """`data` holds photos/index.parquet (file, group, `column`) and photos/features_mobilenetv2.parquet (file, feature)."""
    index = pq.read_table(data / "photos/index.parquet", columns=["file", "group", column]).to_pylist()
    known = {row["file"]: row for row in index if row[column] is not None}
    table = pq.read_table(data / "photos/features_mobilenetv2.parquet")
    files = table.column("file").to_pylist()
    flat = table.column("feature").combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    rows = [row for row, file in enumerate(files) if file in known]
    features = flat.reshape(len(files), -1)[rows]
    return Photos(
        features=features,
        labels=np.array([known[files[row]][column] for row in rows]),
        groups=np.array([str(known[files[row]]["group"]) for row in rows]),
        squared=squared_distances(features),
        gamma=float(1 / (features.shape[1] * features.astype(np.float64).var())),
    )


def deal(photos: Photos, shares: tuple[float, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """Rows by share, groups whole, in random order; what the shares leave comes last."""
    names, of_row = np.unique(photos.groups, return_inverse=True)
    place = rng.random(len(names))[of_row]
    edges = [0.0, *np.cumsum(shares).tolist(), 1.0]
    return [rng.permutation(np.flatnonzero((place >= low) & (place < high))) for low, high in itertools.pairwise(edges)]
