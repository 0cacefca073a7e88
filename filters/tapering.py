"""A miss rate beyond what labels alone can prove, at the price of an assumption that is named.

Below the threshold of a rare class there are hardly any positives to meet, so labels alone bound them poorly (see
filters/stratified_audit.py). If the log-odds of being a positive fall with the score at least as steeply below the labelled
positives as among them, a line through them (Platt 1999: log-odds = a + b x score) bounds the rest. The bound is the largest miss
rate over all lines that the labels do not contradict: those within a likelihood-ratio region of two dimensions (Wilks 1938).
Labels may be drawn at any rate by score: given its score, an image's label does not depend on why it was drawn.

What the assumption leaves out: positives of a kind that the filter does not see at all. They lie anywhere, at a constant rate,
and no line through the others tells of them. The bound without the assumption holds for them, too.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import chi2

from winnow.errors import NotEnoughLabels

ASSUMPTION = (
    "Below the positives that were met, the log-odds of being one fall with the score at least as steeply as among them. "
    "Positives of a kind that the filter does not see at all are not covered."
)
MIN_EACH = 10
"""Positives, and others, that a line needs."""
RAYS = 48


def tapering_miss_rate(
    scores: np.ndarray,
    values: np.ndarray,
    *,
    all_scores: np.ndarray,
    counts: np.ndarray,
    threshold: float,
    confidence: float = 0.95,
) -> float:
    """Upper bound of the share of positives that score below the threshold, under this module's assumption.

    Args:
        scores: (n,) of labelled images, drawn by score and nothing else.
        values: (n,) 1 for positives, 0 for others.
        all_scores: (m,) scores of all judged images, or middles of the bins of their histogram.
        counts: (m,) images at each.

    Raises:
        NotEnoughLabels: fewer than ten positives or ten others.
    """
    values = np.asarray(values, dtype=np.float64)
    if min(values.sum(), len(values) - values.sum()) < MIN_EACH:
        raise NotEnoughLabels(
            f"{values.sum():.0f} positives and {len(values) - values.sum():.0f} others cannot show how positives thin out with the "
            f"score; at least {MIN_EACH} of each are needed. Label more images above the threshold."
        )
    centre, width = float(np.mean(scores)), float(np.std(scores)) or 1.0
    x, everywhere = (np.asarray(scores) - centre) / width, (np.asarray(all_scores) - centre) / width
    missed = np.asarray(all_scores) < threshold

    def loss(line: np.ndarray) -> float:
        z = line[0] + line[1] * x
        return float(np.sum(np.logaddexp(0, z) - values * z))

    def slope_of(line: np.ndarray) -> np.ndarray:
        wrong = expit(line[0] + line[1] * x) - values
        return np.array([wrong.sum(), (wrong * x).sum()])

    # With a penalty that no data notices: labels that a threshold separates would send the slope to infinity.
    best = minimize(
        lambda line: loss(line) + 1e-6 * line @ line,
        np.array([np.log(values.mean() / (1 - values.mean())), 1.0]),
        jac=lambda line: slope_of(line) + 2e-6 * line,
        method="BFGS",
    ).x
    allowed = loss(best) + chi2.ppf(confidence, 2) / 2

    def miss_rate(line: np.ndarray) -> float:
        positives = counts * expit(line[0] + line[1] * everywhere)
        return float(positives[missed].sum() / positives.sum())

    return max(miss_rate(line) for line in _outline(loss, best, allowed))


def _outline(loss: Callable[[np.ndarray], float], best: np.ndarray, allowed: float) -> list[np.ndarray]:
    """Points on the border of the region where the loss is at most `allowed`: it is convex and holds `best`, so each ray leaves it once."""
    found = [best]
    for angle in np.linspace(0, 2 * np.pi, RAYS, endpoint=False):
        ray = np.array([np.cos(angle), np.sin(angle)])
        reach = 0.05
        while loss(best + reach * ray) < allowed and reach < 1e3:
            reach *= 2
        low, high = 0.0, reach
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if loss(best + middle * ray) < allowed else (low, middle)
        found.append(best + high * ray)
    return found
