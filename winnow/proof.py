"""The arithmetic of certificates, a second time: what an auditor recomputes must not come from the code being audited.

Written on its own from the textbook (order statistics of a sample are Beta distributed; exact binomial intervals after
Clopper and Pearson), with scipy; the filters have their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import beta


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimated share with its exact two-sided interval, all in [0, 1]."""

    hits: int
    n: int
    low: float
    high: float

    @property
    def share(self) -> float | None:
        return self.hits / self.n if self.n else None


def promised_rank(n: int, max_miss_rate: float, confidence: float) -> int:
    """The largest k for which the k-th smallest of n positive scores is a threshold that keeps the promise; 0 if none is.

    Dropping at or above the k-th smallest misses at most `max_miss_rate` of positives with probability
    P(Beta(k, n + 1 - k) <= max_miss_rate), if the n were drawn like the population.
    """
    low, high = 0, n
    while low < high:  # the probability falls as k grows
        k = (low + high + 1) // 2
        if beta.cdf(max_miss_rate, k, n + 1 - k) >= confidence:
            low = k
        else:
            high = k - 1
    return low


def promised_threshold(positive_scores: Sequence[float], max_miss_rate: float, confidence: float) -> tuple[int, float] | None:
    """Rank and threshold that these calibration positives give; None if they are too few for the promise."""
    k = promised_rank(len(positive_scores), max_miss_rate, confidence)
    return (k, sorted(positive_scores)[k - 1]) if k else None


def exact_interval(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """Two-sided exact (Clopper-Pearson) interval of a share; [0, 1] when n is 0."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return Interval(hits=hits, n=n, low=low, high=high)


def upper_bound(hits: int, n: int, confidence: float = 0.95) -> float:
    """One-sided exact upper bound of a share; 1 when n is 0."""
    return float(beta.ppf(confidence, hits + 1, n - hits)) if hits < n else 1.0
