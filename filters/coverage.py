"""Checks the rule of filters/bounds.py by simulation: distributions with a known miss rate, and how often the promise holds.

Each distribution gives scores of positives and, for a threshold, the share of positives that score below it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from filters.bounds import rank_for_miss_rate


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Scores of positives."""

    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
    """Generator, shape -> scores."""
    below: Callable[[np.ndarray], np.ndarray]
    """Thresholds -> the share of positives that score below them, and so are missed."""


def _steps(levels: int, share: float) -> Distribution:
    """Few values, so many ties: `levels` of them, of geometrically falling frequency from the top."""
    weights = share ** np.arange(levels)[::-1]
    edges = np.cumsum(weights / weights.sum())
    return Distribution(
        draw=lambda rng, shape: np.searchsorted(edges, rng.random(shape)).clip(max=levels - 1).astype(np.float64),
        below=lambda threshold: np.concatenate([[0.0], edges])[threshold.astype(int)],
    )


def _mixture(rare: float, gap: float) -> Distribution:
    """Most positives are easy; a rare kind scores `gap` lower."""
    return Distribution(
        draw=lambda rng, shape: rng.normal(size=shape) - gap * (rng.random(shape) < rare),
        below=lambda threshold: (1 - rare) * stats.norm.cdf(threshold) + rare * stats.norm.cdf(threshold + gap),
    )


DISTRIBUTIONS: Mapping[str, Distribution] = {
    "uniform": Distribution(draw=lambda rng, shape: rng.random(shape), below=lambda threshold: threshold),
    "normal": Distribution(draw=lambda rng, shape: rng.normal(size=shape), below=stats.norm.cdf),
    "heavy tails (Cauchy)": Distribution(draw=lambda rng, shape: rng.standard_cauchy(shape), below=stats.cauchy.cdf),
    "skewed (log-normal)": Distribution(draw=lambda rng, shape: rng.lognormal(sigma=3, size=shape), below=stats.lognorm(3).cdf),
    "a rare hard kind": _mixture(0.008, 6.0),
    "ties: 12 values": _steps(12, 0.5),
    "ties: 2 values": _steps(2, 0.02),
}


def coverage(
    distribution: Distribution, n: int, max_miss_rate: float, *, draws: int, seed: int, confidence: float = 0.95, off_by: int = 0
) -> float:
    """Share of calibrations with n positives whose true miss rate is at most the promised one.

    Args:
        off_by: added to the rank that the rule gives; anything but 0 is a wrong rule, to see that it shows.
    """
    rank = rank_for_miss_rate(n, max_miss_rate, confidence) + off_by
    if not 1 <= rank <= n:
        raise ValueError(f"rank {rank} of {n} positives: too few for a miss rate of {max_miss_rate:.1%}")
    scores = distribution.draw(np.random.default_rng(seed), (draws, n))
    thresholds = np.partition(scores, rank - 1, axis=1)[:, rank - 1]
    return float(np.mean(distribution.below(thresholds) <= max_miss_rate))


def least_count(draws: int, confidence: float, chance: float = 0.001) -> int:
    """So many of `draws` calibrations hold at least if each holds with this confidence, but for a chance of 1 in 1,000."""
    return int(stats.binom.ppf(chance, draws, confidence))
