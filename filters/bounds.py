"""Exact binomial bounds, and the threshold that keeps a promised miss rate.

The rule: let n positives be drawn like those the filter will meet, and drop everything that scores at or above the k-th
smallest of their scores. The share of positives that score below it is then at most a Beta(k, n + 1 - k) variable (the k-th
order statistic of n uniforms), whatever the distribution of scores; ties only make it smaller. So the largest k with
P(Beta(k, n + 1 - k) <= a) >= 1 - delta gives the highest threshold that keeps the miss rate below a with confidence
1 - delta. It follows from n alone: no score is looked at, so nothing is tuned on the positives that prove it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import beta

from winnow.errors import NotEnoughLabels


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A threshold that holds a miss rate, and why."""

    value: float
    """Scores at or above it are dropped."""
    k: int
    """It is the k-th smallest score of the positives: k - 1 of them may be missed."""
    n: int
    """Positives it was found with."""
    max_miss_rate: float
    confidence: float
    """Asked for."""
    confidence_reached: float
    """P(Beta(k, n + 1 - k) <= max_miss_rate): at least `confidence`."""


@lru_cache(maxsize=1024)
def rank_for_miss_rate(n: int, max_miss_rate: float, confidence: float) -> int:
    """The largest k of the rule above; 0 if n positives are too few for any."""
    low, high = 0, n + 1  # the confidence falls with k: `low` keeps the promise (0 drops everything), `high` does not
    while high - low > 1:
        k = (low + high) // 2
        if beta.cdf(max_miss_rate, k, n + 1 - k) >= confidence:
            low = k
        else:
            high = k
    return low


def positives_needed(max_miss_rate: float, confidence: float) -> int:
    """The fewest positives that can prove a miss rate: 1 - (1 - a)^n >= 1 - delta."""
    n = math.ceil(math.log1p(-confidence) / math.log1p(-max_miss_rate))
    # The logarithms are rounded; the rule itself decides.
    while rank_for_miss_rate(n, max_miss_rate, confidence) == 0:
        n += 1
    while n > 1 and rank_for_miss_rate(n - 1, max_miss_rate, confidence) > 0:
        n -= 1
    return n


def threshold_for_miss_rate(positive_scores: np.ndarray, max_miss_rate: float, confidence: float = 0.95) -> Threshold:
    """The highest threshold that keeps the miss rate below `max_miss_rate` with this confidence.

    Args:
        positive_scores: (n,) decision values of positives that the classifier never saw, drawn like those it will meet.

    Raises:
        NotEnoughLabels: fewer than `positives_needed`.
    """
    scores = np.asarray(positive_scores, dtype=np.float64)
    if scores.ndim != 1 or not np.all(np.isfinite(scores)):
        raise ValueError(f"positive scores must be one row of finite numbers, got shape {scores.shape}")
    n = len(scores)
    k = rank_for_miss_rate(n, max_miss_rate, confidence)
    if k == 0:
        raise NotEnoughLabels(
            f"{n} held-out positives cannot prove a miss rate of {max_miss_rate:.1%} at {confidence:.0%} confidence. "
            f"Label at least {positives_needed(max_miss_rate, confidence)}, or promise less (learn.promises in a run's config)."
        )
    return Threshold(
        value=float(np.partition(scores, k - 1)[k - 1]),
        k=k,
        n=n,
        max_miss_rate=max_miss_rate,
        confidence=confidence,
        confidence_reached=float(beta.cdf(max_miss_rate, k, n + 1 - k)),
    )


def miss_rate_upper_bound(misses: int, n: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson bound: the largest rate at which so few misses in n still have a chance of 1 - confidence."""
    _check_counts(misses, n)
    return 1.0 if misses == n else float(beta.ppf(confidence, misses + 1, n - misses))


def exact_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a share; (0, 1) if n is 0."""
    _check_counts(successes, n)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def joint_confidence(confidences: Iterable[float]) -> float:
    """At least this is the chance that all promises hold at once (Bonferroni): their chances of error add up."""
    return max(0.0, 1 - math.fsum(1 - confidence for confidence in confidences))


def _check_counts(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
