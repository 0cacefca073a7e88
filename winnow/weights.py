"""Weights of kept samples as they stand in a workspace: where the files are and what they say.

weights/classifier.json                what tells kept images from dropped ones, and how well (filters/importance.py)
weights/<partition>.parquet            uid, importance, duplicates (1 / size of a down-weighted group), weight: their product
shards/<dataset>/weights/<shard>.npy   float32, one a sample, in the order of the tar: what a training reads
shards/<dataset>/weights/index.json    which shards they were made for

All rows of a partition's table are kept samples, sorted by uid.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from winnow.run_files import read_json_if_any
from winnow.storage import Storage

CLASSIFIER = "weights/classifier.json"
WEIGHTS = pa.schema([("uid", pa.string()), ("importance", pa.float32()), ("duplicates", pa.float32()), ("weight", pa.float32())])
GRAIN = 2.0**-12
"""Importance is a multiple of it."""


def weights_file(partition: str) -> str:
    return f"weights/{partition}.parquet"


def shard_weights_file(dataset: str, stem: str) -> str:
    return f"shards/{dataset}/weights/{stem}.npy"


def shard_weights_index(dataset: str) -> str:
    return f"shards/{dataset}/weights/index.json"


def read_classifier(storage: Storage) -> dict[str, Any] | None:
    """coefficients, intercept, scale, max_weight, and what was measured; None if importance was never asked for."""
    found: dict[str, Any] | None = read_json_if_any(storage, CLASSIFIER)
    return found


def importance_again(classifier: dict[str, Any], features: np.ndarray) -> np.ndarray:
    """(n, dim) float64 features -> (n,) weights before rounding to GRAIN, computed a second time for those who check.

    clip(scale (1 + exp(-(x . coefficients + intercept))), 1 / max_weight, max_weight)
    """
    log_odds = features @ np.array(classifier["coefficients"], np.float64) + classifier["intercept"]
    highest = classifier["max_weight"]
    with np.errstate(over="ignore"):
        values: np.ndarray = np.minimum(np.maximum(classifier["scale"] * (1 + np.exp(-log_odds)), 1 / highest), highest)
    return values
