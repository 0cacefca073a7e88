"""Where a filter does worse: miss and drop rates by slice of the images, with exact intervals and a corrected test.

A certificate speaks of all images together; a slice (dark ones, tall ones, those of one source) may fare worse within it. Misses are
counted among labelled positives that the filter was not fitted on, drops among all judged images. A slice is flagged when its
positives are missed more often than the others': Fisher's exact test, one-sided, corrected over all slices that were looked at
(Holm 1979), so that looking at many does not find one by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import fisher_exact

from filters.bounds import exact_interval
from winnow.errors import ConfigError

SIGNIFICANCE = 0.05
MAX_VALUES = 12
"""Of a column of words; the rarest ones are one slice."""
OTHERS, UNKNOWN = "others", "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share with its exact two-sided 95 % interval; the share is None if n is 0."""

    count: int
    n: int
    share: float | None
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One slice of one column."""

    column: str
    value: str
    missed: Rate
    """Of its labelled positives, those below the threshold."""
    clean_dropped: Rate
    """Of its labelled clean images, those at or above the threshold."""
    dropped: Rate
    """Of all its judged images."""
    p_worse: float
    """Of missing as many more than the rest by chance, corrected for all slices."""
    flagged: bool
    """Its positives are missed significantly more often than the others'."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceCounts:
    """What is counted for one slice."""

    positives: int = 0
    missed: int = 0
    clean: int = 0
    clean_dropped: int = 0
    judged: int = 0
    dropped: int = 0


def rate(count: int, n: int) -> Rate:
    low, high = exact_interval(count, n)
    return Rate(count=count, n=n, share=count / n if n else None, low=low, high=high)


def slice_rates(counted: Mapping[str, Mapping[str, SliceCounts]]) -> list[Slice]:
    """Rates and flags of all slices, in the order given.

    Args:
        counted: column -> value -> counts; the values of a column share out the images.
    """
    cells = [(column, value, counts) for column, values in counted.items() for value, counts in values.items()]
    tests = [_p_worse(counts, counted[column].values()) for column, _, counts in cells]
    corrected = holm(tests)
    return [
        Slice(
            column=column,
            value=value,
            missed=rate(counts.missed, counts.positives),
            clean_dropped=rate(counts.clean_dropped, counts.clean),
            dropped=rate(counts.dropped, counts.judged),
            p_worse=p,
            flagged=p <= SIGNIFICANCE,
        )
        for (column, value, counts), p in zip(cells, corrected, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the same order: rejecting those at or below a level errs anywhere with at most that chance.

    A p-value of exactly 1 is of a test that could not have found anything (no positive, or the only slice): it is not counted.
    """
    able = [index for index, p in enumerate(p_values) if p < 1]
    corrected, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(able, key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(able) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _p_worse(counts: SliceCounts, column: Any) -> float:
    missed = sum(other.missed for other in column) - counts.missed
    caught = sum(other.positives for other in column) - counts.positives - missed
    if not counts.positives or not missed + caught:
        return 1.0
    table = [[counts.missed, counts.positives - counts.missed], [missed, caught]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def in_ranges(values: np.ndarray, limits: Sequence[float], names: Sequence[str]) -> list[str]:
    """The slice of each number: names[i] for limits[i - 1] <= value < limits[i]; "unknown" for NaN.

    Args:
        limits: rising; one fewer than names.
    """
    if len(names) != len(limits) + 1 or list(limits) != sorted(limits):
        raise ConfigError(f"{len(limits)} rising limits make {len(limits) + 1} slices, got {len(names)} names")
    numbers = np.asarray(values, dtype=np.float64)
    places = np.searchsorted(np.asarray(limits, dtype=np.float64), numbers, side="right")
    return [UNKNOWN if np.isnan(number) else names[place] for number, place in zip(numbers, places, strict=True)]
