"""What kept samples weigh, and how well the classifier behind it tells kept images from dropped ones."""

from typing import Any

import numpy as np

from winnow.storage import Storage
from winnow.tables import read_table
from winnow.weights import read_classifier, weights_file

EDGES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Of the table of weights; the last row is open."""


def gather_weights(storage: Storage, partitions: list[str]) -> dict[str, Any] | None:
    """Sums over all kept samples, one partition in memory at a time; None if samples have no weights."""
    there = set(storage.names("weights"))
    if not partitions or any(f"{name}.parquet" not in there for name in partitions):
        return None
    samples, total, squares, highest, down_weighted = 0, 0.0, 0.0, 0.0, 0
    counts = np.zeros(len(EDGES), np.int64)
    for partition in partitions:
        table = read_table(storage, weights_file(partition), ["duplicates", "weight"])
        weights = table["weight"].to_numpy().astype(np.float64)
        samples += len(weights)
        total, squares = total + float(weights.sum()), squares + float((weights**2).sum())
        highest = max(highest, float(weights.max(initial=0.0)))
        down_weighted += int((table["duplicates"].to_numpy() < 1).sum())
        counts += np.bincount(np.searchsorted(EDGES, weights, side="right") - 1, minlength=len(EDGES))
    classifier = read_classifier(storage)
    return {
        "samples": samples,
        "mean": total / samples if samples else None,
        "effective_share": total**2 / squares / samples if squares else None,
        "highest": highest,
        "down_weighted": down_weighted,
        "ranges": [
            {"from": low, "to": high, "samples": int(count)} for low, high, count in zip(EDGES, (*EDGES[1:], None), counts, strict=True)
        ],
        "max_weight": None if classifier is None else classifier["max_weight"],
        "measured": None if classifier is None else classifier["measured"],
    }
