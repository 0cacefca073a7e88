"""Certificates of filters: read, and recomputed from the labels they rest on."""

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from winnow.errors import ShardError
from winnow.proof import Interval, exact_interval, promised_threshold
from winnow.run_files import FilterUsed, read_json
from winnow.storage import Storage
from winnow.tables import read_table

HELD_OUT_SCORE = "held_out_score"
"""Column of labels.parquet that sets the threshold of a k-fold certificate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """What a filter promises, and on how many labels the promise rests."""

    filter: str
    version: str
    title: str
    policy: str
    scope: str
    """`population`: the calibration positives were drawn like the data. `curated`: they were collected, and the promise is about
    images like them."""
    sentence: str
    """The promise, for a reader who knows no statistics."""
    max_miss_rate: float
    confidence: float
    num_positives: int
    rank: int
    """The threshold is the rank-th smallest score of the calibration positives."""
    threshold: float
    does_not_cover: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """What a filter's labels say, by this module's own arithmetic."""

    num_positives: int
    rank: int | None
    """None: too few positives for the promise."""
    threshold: float | None
    test_misses: Interval
    """Positives kept apart for testing that the threshold lets through."""
    test_clean_dropped: Interval
    """Clean images kept apart for testing that the threshold drops."""


def read_certificate(storage: Storage, used: FilterUsed) -> Certificate:
    """Raises ShardError naming what is missing."""
    content: dict[str, Any] = read_json(storage, used.certificate_path)
    try:
        return Certificate(**{field.name: content[field.name] for field in fields(Certificate)})
    except KeyError as problem:
        raise ShardError(f"{storage.url}/{used.certificate_path} has no {problem}. Remove it and its receipt, and fit again.") from None


def read_labels(storage: Storage, used: FilterUsed) -> pa.Table:
    return read_table(storage, used.labels_path)


def recompute(certificate: Certificate, labels: pa.Table) -> Recomputed:
    """The threshold and the test results, from the labels and their scores."""
    table = labels.select(["value", "split", "score"]).to_pydict()
    by_split: dict[tuple[str, int], list[float]] = {}
    for value, split, score in zip(table["value"], table["split"], table["score"], strict=True):
        if score is not None:  # else the image is no longer there
            by_split.setdefault((split, int(value)), []).append(score)
    calibration = by_split.get(("calibrate", 1), [])
    if HELD_OUT_SCORE in labels.column_names:  # a k-fold certificate: each positive scored by a machine that did not see it
        held_out = zip(table["value"], table["split"], labels[HELD_OUT_SCORE].to_pylist(), strict=True)
        calibration = [score for value, split, score in held_out if score is not None and split == "calibrate" and value == 1]
    found = promised_threshold(calibration, certificate.max_miss_rate, certificate.confidence)
    positives, clean = by_split.get(("test", 1), []), by_split.get(("test", 0), [])
    return Recomputed(
        num_positives=len(calibration),
        rank=found[0] if found else None,
        threshold=found[1] if found else None,
        test_misses=exact_interval(sum(score < certificate.threshold for score in positives), len(positives)),
        test_clean_dropped=exact_interval(sum(score >= certificate.threshold for score in clean), len(clean)),
    )
