"""What more labels would buy: how the share of clean images dropped falls with the labels fitted on, and where that leads.

Measured by cross-validation on nested parts of the labels fitted on, with bootstrap intervals: a guide to when to stop, no promise.
The share is `clean_dropped_in_tail`, which C and gamma are chosen by, too.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from filters.cross_fitting import cross_fit
from filters.svm import clean_dropped_in_tail

PARTS = (0.25, 0.5)
"""Parts of the labels that the curve is measured at, besides all of them."""
RESAMPLES = 200
MIN_OF_CLASS = 10
"""Positives, or negatives, in groups of their own, below which a part is left out."""


def learning_curve(
    features: np.ndarray, labels: np.ndarray, groups: Sequence[str], *, cost: float, gamma: float, folds: int, held_out: np.ndarray
) -> dict[str, Any]:
    """The curve and what follows from it, as it stands in learning.json.

    Args:
        features: (n, dim) float32, of the labels fitted on.
        labels: (n,) 0 or 1.
        held_out: (n,) their values by machines that did not see them, with all labels.

    Returns:
        points: number of labels, clean_dropped with low and high (95 %); twice: the same, foreseen for twice the labels, or None if the
        labels are too few to tell; advice: a sentence.
    """
    order = np.argsort([hashlib.sha256(b"curve:" + group.encode()).digest() for group in groups], kind="stable")
    measured: list[tuple[int, float, np.ndarray]] = []
    for part in PARTS:
        rows = np.sort(order[: round(part * len(order))])
        inside = [groups[row] for row in rows]
        if _fewest(labels[rows], inside) >= max(MIN_OF_CLASS, folds):
            scores = cross_fit(features[rows], labels[rows], inside, cost=cost, gamma=gamma, folds=folds).held_out
            measured.append((len(rows), clean_dropped_in_tail(scores, labels[rows]), _resampled(scores, labels[rows])))
    measured.append((len(labels), clean_dropped_in_tail(held_out, labels), _resampled(held_out, labels)))
    twice = _twice(measured)
    points = [_point(number, share, resampled) for number, share, resampled in measured]
    return {"points": points, "twice": twice, "advice": advice(points, twice)}


def advice(points: Sequence[dict[str, Any]], twice: dict[str, Any] | None) -> str:
    """The curve in a sentence for whoever decides whether to go on labelling."""
    now = points[-1]
    state = f"With {now['labels']:,} labels to fit on, about {now['clean_dropped']:.1%} of clean images are dropped"
    if twice is None:
        return f"{state}; they are too few to tell what more would buy."
    foreseen = f"{twice['clean_dropped']:.1%} ({twice['low']:.1%} to {twice['high']:.1%})"
    if twice["low"] >= now["clean_dropped"]:
        return f"{state}; twice as many would buy nothing: {foreseen} are foreseen."
    if twice["high"] >= now["clean_dropped"]:
        return f"{state}; it is not sure that more labels buy anything: {foreseen} are foreseen for twice as many."
    return f"{state}; twice as many would bring that to about {foreseen}."


def _twice(measured: Sequence[tuple[int, float, np.ndarray]]) -> dict[str, Any] | None:
    """Foresees that the next doubling changes the share by the factor of the last one."""
    if len(measured) < 2:
        return None
    (before, _, then), (number, _, now) = measured[-2:]
    doublings = np.log2(number / before)
    # A share of 0 has no factor: half an image of the smallest sample stands in for it.
    least = 0.5 / number
    foreseen = np.clip(now * (np.maximum(now, least) / np.maximum(then, least)) ** (1 / doublings), 0, 1)
    return _point(2 * number, float(np.median(foreseen)), foreseen)


def _point(number: int, share: float, resampled: np.ndarray) -> dict[str, Any]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {
        "labels": number,
        "clean_dropped": round(share, 6),
        "low": round(min(float(low), share), 6),
        "high": round(max(float(high), share), 6),
    }


def _resampled(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The share for bootstrap samples of the rows, positives and negatives each for themselves."""
    rng = np.random.default_rng(0)
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    shares = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rng.choice(positives, len(positives)), rng.choice(negatives, len(negatives))])
        shares.append(clean_dropped_in_tail(scores[rows], labels[rows]))
    return np.array(shares)


def _fewest(labels: np.ndarray, groups: Sequence[str]) -> int:
    """Groups with a positive, or with a negative, whichever are fewer."""
    return min(len({group for group, label in zip(groups, labels.tolist(), strict=True) if label == value}) for value in (0, 1))
