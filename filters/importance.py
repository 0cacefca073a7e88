"""Importance weights: what kept images must weigh so that together they look like the images before filtering. Arrays only.

A filter takes away more than its target: what usually stands beside it becomes rare. A classifier tells kept images from dropped
ones, on CLIP features; a kept image x then weighs

    w(x) = c p(x) / p(x | kept) = c' / P(kept | x),      clipped to [1 / max_weight, max_weight], 1 on average,

as OpenAI reweighted the filtered data of DALL-E 2 ("DALL-E 2 pre-training mitigations", 2022). Departs from it: the classifier is a
logistic regression that is calibrated on images it was not fitted on, because a weight is a probability, not a rank.

What it cannot do: give back what is gone. Where a filter keeps nothing there is nothing to weigh up; and what the filter missed looks
like what it drops, so it weighs up too, by `max_weight` at most. docs/selection.md says when to use weights, and when not.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from winnow.configs import STRICT
from winnow.errors import ConfigError

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that are tried."""
PARTS = (0.6, 0.2, 0.2)
"""Of the sample: to fit on, to choose the penalty and calibrate on, to measure on."""
AT_LEAST = 50
"""Kept and dropped images in each part; with fewer the classifier says nothing, and every image weighs 1."""
GRAIN = 2.0**-12
"""Weights are multiples of it: the same on machines whose sums differ in the last bits."""
BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceConfig:
    """Whether kept images are weighed towards those before filtering, and how far."""

    __pydantic_config__: ClassVar = STRICT

    enabled: bool = False
    max_weight: float = 10.0
    """No image weighs more, and none less than one by this. Images the filters missed may weigh this much, too."""
    sample: int = 100_000
    """Images the classifier is fitted, calibrated and measured on."""
    partitions: int = 200
    """From which they are drawn, at most: of 25,000 partitions only these are read."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_weight <= 1:
            raise ConfigError(f"importance.max_weight must be above 1, got {self.max_weight}")
        for name in ("sample", "partitions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"importance.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Importance:
    """P(kept | x) = 1 / (1 + exp(-(x . coefficients + intercept))), and what makes weights of it."""

    coefficients: np.ndarray
    """(dim,) float64."""
    intercept: float
    scale: float
    """c': weights are 1 on average over the kept images of the sample."""
    max_weight: float

    def weights(self, features: np.ndarray) -> np.ndarray:
        """(n, dim) -> (n,) float64, multiples of GRAIN in [1 / max_weight, max_weight]."""
        weights: np.ndarray = np.round(_clipped(self.scale, self.log_odds(features), self.max_weight) / GRAIN) * GRAIN
        return weights

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """(n, dim) -> (n,): log P(kept | x) - log P(dropped | x)."""
        odds: np.ndarray = features.astype(np.float64) @ self.coefficients + self.intercept
        return odds


def fit_importance(features: np.ndarray, kept: np.ndarray, config: ImportanceConfig) -> tuple[Importance, dict[str, Any]]:
    """The weights' classifier, and what was measured of it. The same rows in the same order give the same one.

    Args:
        features: (n, dim), of images drawn at random from those before filtering.
        kept: (n,) bool, what became of them.

    Returns:
        The second is JSON-able: `images`, `kept`, the chosen `strength`; over the part it has not seen `auc`, `log_loss` and that of
        saying the share kept every time, `calibration_error` (mean gap between said and true shares over ten equally large groups);
        `mean_weight`, `effective_share` and `clipped_share` over all kept images of the sample. `note` says why nothing was learnt.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_auc_score
    from threadpoolctl import threadpool_limits

    features, kept = features.astype(np.float64), np.asarray(kept, bool)
    parts = np.random.default_rng([config.seed, len(kept)]).choice(len(PARTS), size=len(kept), p=PARTS)
    counts = [int((parts == part)[kept == value].sum()) for part in range(len(PARTS)) for value in (True, False)]
    told: dict[str, Any] = {"images": len(kept), "kept": int(kept.sum())}
    if min(counts) < AT_LEAST:
        told["note"] = f"{told['kept']:,} of {told['images']:,} images are kept: too few of one kind to learn from, so every image weighs 1"
        return Importance(coefficients=np.zeros(features.shape[1]), intercept=0.0, scale=0.5, max_weight=config.max_weight), told
    fit, choose, test = (parts == part for part in range(len(PARTS)))
    # The penalty must see features of one size: unit vectors of 512 dimensions have entries of about 0.04.
    middle, spread = features[fit].mean(axis=0), float(features[fit].std()) or 1.0
    scaled = (features - middle) / spread
    best = None
    with threadpool_limits(1):  # sums have one order
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000, tol=1e-6).fit(scaled[fit], kept[fit])
            logits = model.decision_function(scaled[choose])
            loss = log_loss(kept[choose], _sigmoid(logits), labels=[False, True])
            if best is None or loss < best[0] - 1e-9:
                best = (loss, strength, model, logits)
    assert best is not None, "there are strengths"
    _, strength, model, logits = best
    # Platt's scaling: one slope and one shift, on images the penalty was chosen on, two numbers from thousands.
    slope, shift = _platt(logits, kept[choose])
    coefficients = slope * model.coef_[0] / spread
    intercept = float(slope * model.intercept_[0] + shift - coefficients @ middle)
    odds = features @ coefficients + intercept
    said, share = _sigmoid(odds[test]), float(kept[fit].mean())
    scale = _scale(odds[kept], config.max_weight)
    importance = Importance(coefficients=coefficients, intercept=intercept, scale=scale, max_weight=config.max_weight)
    weights = importance.weights(features[kept])
    told |= {
        "strength": strength,
        "auc": float(roc_auc_score(kept[test], said)),
        "log_loss": float(log_loss(kept[test], said, labels=[False, True])),
        "log_loss_of_the_share": float(log_loss(kept[test], np.full(test.sum(), share), labels=[False, True])),
        "calibration_error": calibration_error(said, kept[test]),
        "mean_weight": float(weights.mean()),
        "effective_share": effective_size(weights) / len(weights),
        "clipped_share": float(((weights >= config.max_weight) | (weights <= 1 / config.max_weight + GRAIN)).mean()),
    }
    return importance, told


def effective_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 (Kish): so many equally weighted images would tell as much."""
    total = float((weights**2).sum())
    return float(weights.sum()) ** 2 / total if total else 0.0


def calibration_error(said: np.ndarray, true: np.ndarray) -> float:
    """Mean over groups of equal size, ordered by what is said, of |mean said - share true|; both (n,)."""
    groups = np.array_split(np.argsort(said, kind="stable"), BINS)
    gaps = [abs(float(said[rows].mean()) - float(true[rows].mean())) * len(rows) for rows in groups if len(rows)]
    return sum(gaps) / len(said)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    values: np.ndarray = expit(logits)
    return values


def _platt(logits: np.ndarray, kept: np.ndarray) -> tuple[float, float]:
    """Slope and shift of a logistic regression on one number (Platt, 1999), by Newton's method; a slope below 0 becomes 0."""
    slope, shift = 1.0, 0.0
    for _ in range(100):
        p = _sigmoid(slope * logits + shift)
        gradient = np.array([((p - kept) * logits).sum(), (p - kept).sum()])
        curve = p * (1 - p)
        hessian = np.array([[(curve * logits**2).sum(), (curve * logits).sum()], [(curve * logits).sum(), curve.sum()]])
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        # A step of Newton's may overshoot where classes are nearly separate.
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        slope, shift = slope - float(step[0]), shift - float(step[1])
        if float(np.abs(step).max()) < 1e-10:
            break
    if slope >= 0:
        return slope, shift
    share = float(kept.mean())
    return 0.0, float(np.log(share / (1 - share)))


def _clipped(scale: float, log_odds: np.ndarray, max_weight: float) -> np.ndarray:
    # 1 / P(kept) = 1 + exp(-log odds); what would overflow is clipped anyway.
    return np.clip(scale * (1 + np.exp(np.minimum(-log_odds, 50.0))), 1 / max_weight, max_weight)


def _scale(log_odds: np.ndarray, max_weight: float) -> float:
    """The factor that makes clipped weights 1 on average; the mean rises with it, so it is found by halving."""
    low, high = 1e-9, max_weight
    for _ in range(100):
        middle = (low + high) / 2
        if _clipped(middle, log_odds, max_weight).mean() < 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2
