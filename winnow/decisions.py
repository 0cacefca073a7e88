"""The decision log: one row for every listed uid, with its verdict, its reasons and its scores.

`decisions/<partition>.parquet`, rows sorted by uid:

    uid      string
    verdict  "failed" | "dropped" | "kept"
    reasons  list of slugs: "download:<cause>" or "embed:<cause>" of a failed sample (exactly one), the names of the filters
             and rules that drop a dropped one and "reported" if a person reported it as illegal, none of a kept one
    score_<filter>  float64 decision value, one column a filter; null for failed samples. A sample is dropped by a filter
             when its score is at or above the threshold of the filter's certificate. Scores are in full near the threshold and
             coarse far from it: see `coarsened`.
    value_<rule>  what a rule measured (float64, or a word), one column a rule; null for failed samples. See winnow/rules.py.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from winnow.rules import RuleUsed

VERDICTS = ("failed", "dropped", "kept")


SCORE_STEP = 2.0**-16
"""Scores in full are multiples of it."""
NEAR = 2.0**-6
"""Scores closer to the threshold than this are logged in full: where verdicts turn, and what people look at first."""
COARSE = 2.0**-2
"""Width of a cell farther off. Scores spread over about 4: a histogram keeps its shape."""


def score_column(filter_name: str) -> str:
    return f"score_{filter_name}"


def value_column(rule: str) -> str:
    return f"value_{rule}"


def schema(filter_names: Iterable[str], rules: "Iterable[RuleUsed]" = ()) -> "pa.Schema":
    import pyarrow as pa  # here: filters/ scores with torch and numpy alone, and needs `coarsened`

    fields = [("uid", pa.string()), ("verdict", pa.string()), ("reasons", pa.list_(pa.string()))]
    fields += [(score_column(name), pa.float64()) for name in filter_names]
    return pa.schema(fields + [(value_column(rule.name), pa.string() if rule.any_of else pa.float64()) for rule in rules])


def coarsened(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Scores as they stand in the log: those within NEAR of the threshold in full, others the lower edge of their cell.

    Cells begin at the threshold plus or minus NEAR, and at whole multiples of COARSE from it. No cell lies on both sides of the
    threshold, so a coarse score is at or above it when the score in full is; a coarse score is its own coarse score.

    Few cells are what makes scoring fast: a quick look in low precision settles all rows that are clear of the edges.
    """
    # The threshold of a certificate is a score. Any other is as good as the next score above it.
    base = np.ceil(threshold / SCORE_STEP) * SCORE_STEP
    offset = scores - base
    cell = np.floor(offset / COARSE) * COARSE
    cell = np.where((offset >= NEAR) & (cell < NEAR), NEAR, cell)
    return np.where((offset >= -NEAR) & (offset < NEAR), scores, base + cell)


def logged_range(logged: float, threshold: float) -> tuple[float, float]:
    """What a score of the log tells of the score in full: at least the first and below the second, which are equal near the threshold."""
    offset = logged - math.ceil(threshold / SCORE_STEP) * SCORE_STEP
    if -NEAR <= offset < NEAR:
        return logged, logged
    end = COARSE if offset == NEAR else -NEAR if offset == -COARSE else offset + COARSE
    return logged, logged - offset + end


def score_text(logged: float, threshold: float, digits: int = 3) -> str:
    """A score of the log for people: in full near the threshold, as a range far from it."""
    low, high = logged_range(logged, threshold)
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f} to {high:.{digits}f}"
