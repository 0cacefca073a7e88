"""An audit of a rare class: images drawn at different rates by score, and what their labels prove about the whole.

A class of 0.1 % is met once in a thousand random draws: almost all labels of a random audit are spent on images that nobody
doubts. Strata by score put some of them where positives are; each label then counts as often as its stratum is large
(Horvitz-Thompson), and the bounds hold whatever the scores are worth: each stratum is a random draw, its Clopper-Pearson bound
is exact, and the permitted error is divided among the strata of a sum (Bonferroni).

How the labels are shared out: `kept_share` of them go to the images that the filter keeps, as one stratum, because an unseen
share of them is bounded by weight over draws, which is lowest where it is the same everywhere, and a single stratum pays for no
division. The others go in equal parts to the dropped images, in strata by rank (the top 0.1 %, 0.3 %, 1 %, ... of all images);
what a small stratum cannot use goes to the kept ones.

What it can prove. Nothing found among n kept images leaves a share of about 3 / n of them open, whatever the strata: a miss
rate a of a class of prevalence p cannot be proved by labels alone with fewer than about 3 (1 - a) / (a p) of them (57,000 for
5 % of 0.1 %). So two bounds of the miss rate are given: one that assumes nothing, and one that assumes that positives thin out
with the score (filters/tapering.py).

Inspectors overlook things: known positives mixed in unannounced bound the share that they see, as in filters/audit_bounds.py, and
what is missed is divided by it. The assumption of the second bound then includes that they see positives alike at every score.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from filters.audit_bounds import leak_bound
from filters.bounds import exact_interval, miss_rate_upper_bound
from filters.tapering import ASSUMPTION, tapering_miss_rate
from winnow.errors import ConfigError, NotEnoughLabels

TOP_SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Where dropped images are cut into strata: shares of all judged images, from the highest score down."""
KEPT_SHARE = 0.7
MISSED_ERROR_SHARE = 0.8
"""Of the permitted error, for the bound of what is missed; the rest for that of what is caught."""
SEEN_ERROR_SHARE = 0.2
"""Of the permitted error of the miss rate, for the bound of what the inspectors see, if honeypots measure it."""
BINS = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """Images with scores in [low, high), all on one side of the threshold."""

    low: float
    high: float
    size: int
    kept: bool
    wanted: int
    """Images to draw from it at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StratifiedResult:
    """What the labels prove. Shares in [0, 1]; bounds are one-sided, each at `confidence` by itself."""

    num_labels: int
    positives_found: int
    positives_kept: int
    """Of those, in the kept stratum."""
    prevalence: float
    """Horvitz-Thompson estimate of the share of positives among all judged images."""
    prevalence_at_least: float
    miss_rate: float | None
    """Estimated; None if no positive was found."""
    miss_rate_at_most: float
    """Assuming nothing."""
    leak: float
    """Estimated share of positives among kept images."""
    leak_at_most: float
    """Assuming nothing."""
    honeypots: int
    honeypots_found: int
    sensitivity_at_least: float
    """Share of positives that the inspectors see, as in the bound of the leak; taken to be 1 without honeypots."""
    tapering_miss_rate_at_most: float | None
    """Under `assumption`; None if there are too few positives for it."""
    assumption: str
    confidence: float


def plan_strata(scores: np.ndarray, threshold: float, *, budget: int, kept_share: float = KEPT_SHARE) -> list[Stratum]:
    """Cuts judged images into strata and shares out the labels (rule: this module's head).

    Args:
        scores: (n,) of all judged images.

    Raises:
        ConfigError: nothing is kept, or the budget is too small for the strata.
    """
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    num_kept = int(np.searchsorted(scores, threshold))
    if not num_kept:
        raise ConfigError("the filter keeps no image, so there is nothing to audit")
    if not 0 < kept_share <= 1:
        raise ConfigError(f"kept_share must be above 0 and at most 1, got {kept_share}")
    cuts = {float(scores[len(scores) - max(1, round(share * len(scores)))]) for share in TOP_SHARES}
    edges = [threshold, *sorted(cut for cut in cuts if cut > threshold), np.inf]
    sizes = [int(np.sum((scores >= low) & (scores < high))) for low, high in itertools.pairwise(edges)]
    for_each = int(budget * (1 - kept_share)) // len(sizes)
    wanted = [min(size, for_each) for size in sizes]
    for_kept = min(num_kept, budget - sum(wanted))
    if for_kept < 1:
        raise ConfigError(f"a budget of {budget} labels leaves none for the kept images; give at least {2 * len(sizes)}")
    dropped = [
        Stratum(low=low, high=high, size=size, kept=False, wanted=count)
        for low, high, size, count in zip(edges[:-1], edges[1:], sizes, wanted, strict=True)
        if size
    ]
    return [Stratum(low=-np.inf, high=threshold, size=num_kept, kept=True, wanted=for_kept), *dropped]


def draw_strata(scores: np.ndarray, strata: Sequence[Stratum], rng: np.random.Generator) -> list[np.ndarray]:
    """For each stratum, the rows of its images to label: drawn at random, without replacement, sorted."""
    drawn = []
    for stratum in strata:
        rows = np.flatnonzero((scores >= stratum.low) & (scores < stratum.high))
        drawn.append(np.sort(rng.choice(rows, size=min(stratum.wanted, len(rows)), replace=False)))
    return drawn


def stratified_result(
    scores: np.ndarray,
    strata: Sequence[Stratum],
    drawn: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    honeypots_found: int = 0,
    honeypots: int = 0,
) -> StratifiedResult:
    """What the labels of the drawn images prove.

    Args:
        scores: (n,) of all judged images.
        drawn: for each stratum, rows of the labelled images.
        values: for each stratum, their labels: 1 for positives and for those that nobody could tell, 0 for others.
    """
    total = len(scores)
    found = np.array([int(np.sum(labels)) for labels in values])
    counts = np.array([len(rows) for rows in drawn])
    weights = np.array([stratum.size / total for stratum in strata])
    kept = np.array([stratum.kept for stratum in strata])
    estimates = weights * found / np.maximum(counts, 1)
    error, seen = 1 - confidence, 1.0
    if honeypots:
        seen = exact_interval(honeypots_found, honeypots, 1 - 2 * SEEN_ERROR_SHARE * error)[0]
        error *= 1 - SEEN_ERROR_SHARE
    missed = _upper(found, counts, weights, kept, 1 - MISSED_ERROR_SHARE * error) / seen if seen else 1.0
    caught = _lower(found, counts, weights, ~kept, 1 - (1 - MISSED_ERROR_SHARE) * error)
    # The kept images are one stratum: a plain random draw from them.
    leak = leak_bound(
        int(found[kept].sum()), int(counts[kept].sum()), honeypots_found=honeypots_found, honeypots=honeypots, confidence=confidence
    )
    positives = float(estimates.sum())
    return StratifiedResult(
        num_labels=int(counts.sum()),
        positives_found=int(found.sum()),
        positives_kept=int(found[kept].sum()),
        prevalence=positives,
        prevalence_at_least=_lower(found, counts, weights, np.ones_like(kept), confidence),
        miss_rate=float(estimates[kept].sum()) / positives if positives else None,
        miss_rate_at_most=missed / (missed + caught) if caught else 1.0,
        leak=leak.estimate,
        leak_at_most=leak.at_most,
        honeypots=honeypots,
        honeypots_found=honeypots_found,
        sensitivity_at_least=leak.sensitivity_at_least,
        tapering_miss_rate_at_most=_tapering(scores, strata, drawn, values, confidence),
        assumption=ASSUMPTION,
        confidence=confidence,
    )


def labels_for_miss_rate(max_miss_rate: float, prevalence: float, confidence: float = 0.95) -> int:
    """About how many labels of kept images it takes to prove a miss rate without assumptions, if none of them is a positive and
    the caught ones are known: an unseen share of -ln(1 - confidence) / n must stay below a p / (1 - a)."""
    return int(np.ceil(-np.log1p(-confidence) * (1 - max_miss_rate) / (max_miss_rate * prevalence)))


def _upper(found: np.ndarray, counts: np.ndarray, weights: np.ndarray, chosen: np.ndarray, confidence: float) -> float:
    """Upper bound of the share of positives in these strata, of all images."""
    each = 1 - (1 - confidence) / max(int(chosen.sum()), 1)
    cells = zip(found[chosen].tolist(), counts[chosen].tolist(), weights[chosen].tolist(), strict=True)
    return sum(weight * miss_rate_upper_bound(k, n, each) for k, n, weight in cells)


def _lower(found: np.ndarray, counts: np.ndarray, weights: np.ndarray, chosen: np.ndarray, confidence: float) -> float:
    # One-sided: the lower end of a two-sided interval with twice the error.
    each = 1 - 2 * (1 - confidence) / max(int(chosen.sum()), 1)
    cells = zip(found[chosen].tolist(), counts[chosen].tolist(), weights[chosen].tolist(), strict=True)
    return sum(weight * exact_interval(k, n, each)[0] for k, n, weight in cells)


def _tapering(
    scores: np.ndarray, strata: Sequence[Stratum], drawn: Sequence[np.ndarray], values: Sequence[np.ndarray], confidence: float
) -> float | None:
    threshold = next(stratum.high for stratum in strata if stratum.kept)
    low, high = float(np.min(scores)), float(np.max(scores))
    # One edge is the threshold, so that no bin is on both sides of it.
    width = max((high - low) / BINS, 1e-9)
    edges = threshold + width * np.arange(-np.ceil((threshold - low) / width), np.floor((high - threshold) / width) + 2)
    counts = np.histogram(scores, edges)[0]
    try:
        return tapering_miss_rate(
            scores[np.concatenate(list(drawn))],
            np.concatenate([np.asarray(labels) for labels in values]),
            all_scores=(edges[:-1] + edges[1:]) / 2,
            counts=counts,
            threshold=threshold,
            confidence=confidence,
        )
    except NotEnoughLabels:
        return None
