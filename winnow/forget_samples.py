"""Forgetting in what trained models drew: samples for the captions of forgotten images, and their pairs of distances.

A sample drawn for the caption of a forgotten image goes with it: it may repeat the image. Where a forgotten image was the nearest one of
another's sample, the distance stays with its uid.
"""

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from winnow.amending import Amender, Edits
from winnow.forget_edits import rows_edits
from winnow.run_files import read_json
from winnow.storage import Storage
from winnow.tables import read_table

SAMPLE, REGURGITATION = "sample", "regurgitation"
PAIRS, SUMMARY = "regurgitation/pairs.parquet", "regurgitation/summary.json"


def forget_samples(amender: Amender, gone: Collection[str]) -> list[str]:
    """Takes samples and pairs of forgotten images away, with what receipts and indexes say of them; the images' paths."""
    storage = amender.storage
    removed = [path for stem in sorted(amender.partitions(SAMPLE)) for path in _forget_chunk(amender, stem, gone)]
    for path in storage.walk("samples"):
        if path.endswith("/index.json"):
            index = read_json(storage, path)
            left = [entry for entry in index["samples"] if entry["uid"] not in gone]
            if len(left) < len(index["samples"]):
                removed += [entry["file"] for entry in index["samples"] if entry["uid"] in gone]
                storage.write_text(path, json.dumps({**index, "samples": left}, sort_keys=True, indent=1) + "\n")
    for stem in sorted(amender.partitions(REGURGITATION)):
        _forget_pairs(amender, stem, gone)
    return sorted(set(removed))


def _forget_chunk(amender: Amender, name: str, gone: Collection[str]) -> list[str]:
    receipt = amender.receipt(SAMPLE, name)
    prompts: list[dict[str, Any]] = [] if receipt is None else list(receipt.arguments.get("prompts", ()))
    left = [prompt for prompt in prompts if prompt["uid"] not in gone]
    files = {str(prompt["file"]): None for prompt in prompts if prompt["uid"] in gone}
    if not left and files:
        amender.drop(SAMPLE, name, Edits(files=files))
    elif files:
        amender.amend(SAMPLE, name, Edits(files=files, counts={"samples": len(left)}, arguments={"prompts": left}))
    return list(files)


def _forget_pairs(amender: Amender, name: str, gone: Collection[str]) -> None:
    storage = amender.storage
    edits = rows_edits(storage, PAIRS, gone, count="pairs")
    if edits.counts.get("pairs") == 0:
        amender.drop(REGURGITATION, name, Edits(files={PAIRS: None, SUMMARY: None}))
        return
    if edits.files:
        content = edits.files[PAIRS]
        assert isinstance(content, bytes), "a table is made in memory"
        summary = summary_without(read_json(storage, SUMMARY), _pairs(storage, gone))
        edits = replace(edits, files={SUMMARY: (json.dumps(summary, sort_keys=True, indent=1) + "\n").encode(), **edits.files})
    amender.amend(REGURGITATION, name, edits)


def _pairs(storage: Storage, gone: Collection[str]) -> pa.Table:
    table = read_table(storage, PAIRS)
    return table.filter(pa.array([uid not in gone for uid in table["uid"].to_pylist()], pa.bool_()))


def summary_without(summary: dict[str, Any], pairs: pa.Table) -> dict[str, Any]:
    """The summary of closest pairs, of the pairs that are left."""
    own, nearest = (pairs[name].to_numpy() for name in ("distance_own", "distance_nearest"))
    return summary | {
        "num_prompts": pairs.num_rows,
        "closest_own": round(float(own.min()), 6),
        "median_own": round(float(np.median(own)), 6),
        "closest_nearest": round(float(nearest.min()), 6),
        "median_nearest": round(float(np.median(nearest)), 6),
        "own_is_nearest": sum(uid == other for uid, other in zip(pairs["uid"].to_pylist(), pairs["nearest_uid"].to_pylist(), strict=True)),
    }
