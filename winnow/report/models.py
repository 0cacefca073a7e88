"""What was trained, what it draws, and how close its samples come to training images."""

import json
from typing import Any

import numpy as np

from winnow.errors import ShardError
from winnow.receipts import read_receipts
from winnow.run_files import read_json, read_json_if_any
from winnow.storage import Storage
from winnow.tables import read_table

POINTS = 240
"""Of a training curve."""
PAIRS = "regurgitation/pairs.parquet"


def gather_training(storage: Storage) -> list[dict[str, Any]]:
    """An entry for each model with a finished training, by name."""
    return [
        _training(storage, receipt.partition, receipt.counts, receipt.facts, receipt.seconds) for receipt in read_receipts(storage, "train")
    ]


def _training(storage: Storage, model: str, counts: dict[str, int], facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    path = f"checkpoints/{model}/metrics.jsonl"
    try:
        logged = [json.loads(line) for line in storage.read_text(path).splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as problem:
        raise ShardError(
            f"{storage.url}/{path} is damaged: {problem}. Remove the receipt of {model} in receipts/train and train again."
        ) from problem
    steps = [int(line["step"]) for line in logged if line.get("loss") is not None]
    losses = [float(line["loss"]) for line in logged if line.get("loss") is not None]
    tenth = max(1, len(losses) // 10)
    shown = sorted({round(row) for row in np.linspace(0, len(steps) - 1, min(POINTS, len(steps)))}) if steps else []
    return {
        "model": model,
        "steps": counts.get("steps", steps[-1] if steps else 0),
        "images": counts.get("images"),
        "device": facts.get("device"),
        "data": facts.get("data", []),
        "checkpoint": facts.get("checkpoint"),
        "seconds": round(seconds, 1),
        "first_loss": float(np.mean(losses[:tenth])) if losses else None,
        "final_loss": float(np.mean(losses[-tenth:])) if losses else None,
        "logged": len(losses),
        "curve": [[steps[row], losses[row]] for row in shown],
    }


def gather_samples(storage: Storage) -> list[dict[str, Any]]:
    """An entry for each model that was sampled: its settings and how many samples there are."""
    found = []
    for path in storage.walk("samples"):
        if path.endswith("/index.json"):
            index = read_json(storage, path)
            found.append({"model": path.split("/")[1], "settings": index["settings"], "count": len(index["samples"])})
    return found


def gather_regurgitation(storage: Storage) -> dict[str, Any] | None:
    """Distances between samples and training images; None if that did not run."""
    summary = read_json_if_any(storage, "regurgitation/summary.json")
    if summary is None:
        return None
    table = read_table(storage, PAIRS)
    own = table["distance_own"].to_numpy()
    nearest = table["distance_nearest"].to_numpy()
    top = max(float(own.max(initial=0)), float(nearest.max(initial=0)), 1e-3)
    edges = np.linspace(0, top, 33)
    return {
        "pairs": table.num_rows,
        "closest_own": float(own.min()) if own.size else None,
        "median_own": float(np.median(own)) if own.size else None,
        "closest_nearest": float(nearest.min()) if nearest.size else None,
        "median_nearest": float(np.median(nearest)) if nearest.size else None,
        "own_is_nearest": int(
            sum(mine == other for mine, other in zip(table["uid"].to_pylist(), table["nearest_uid"].to_pylist(), strict=True))
        ),
        "edges": [round(float(edge), 6) for edge in edges],
        "histogram_own": [int(count) for count in np.histogram(np.clip(own, 0, top), edges)[0]],
        "histogram_nearest": [int(count) for count in np.histogram(np.clip(nearest, 0, top), edges)[0]],
    }
