"""Fits an RBF support vector machine on features, C and gamma by cross-validation for the end that matters: few misses.

GLIDE (arXiv:2112.10741, appendix F.1) fits SVMs with RBF kernel on CLIP features; how it chose C and gamma it does not say.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.svm import SVC

from filters.decision_values import Svm
from winnow.configs import STRICT
from winnow.errors import ConfigError, NotEnoughLabels

TAIL = 0.05
"""Share of the positives, the lowest-scoring ones, that a classifier is judged by: thresholds for few misses lie among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SvmConfig:
    """What is tried, and how much is fitted on."""

    __pydantic_config__: ClassVar = STRICT

    costs: tuple[float, ...] = (1.0, 10.0)
    """C of the SVM, each positive."""
    gamma_scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """gamma, as multiples of 1 / (dim x variance of the features)."""
    folds: int = 3
    many_folds: int = 10
    """Folds of the cross-validation that finds hard positives, and of a k-fold certificate."""
    max_fit_negatives: int = 2000
    """More negatives than this are thinned: time grows with their square. Those that were hard to find stay."""
    max_fit_positives: int = 2000
    min_fit_labels: int = 10
    """Positives, and negatives, below which nothing is fitted."""

    def __post_init__(self) -> None:
        for field in ("costs", "gamma_scales"):
            values = getattr(self, field)
            if not values or not all(0 < value < np.inf for value in values):
                raise ConfigError(f"svm.{field} must be positive numbers, got {values}")
        if self.many_folds < 2:
            raise ConfigError(f"svm.many_folds must be at least 2, got {self.many_folds}")
        if self.folds < 2 or self.min_fit_labels < self.folds:
            raise ConfigError(f"svm.folds must be at least 2 and at most min_fit_labels, got {self.folds} and {self.min_fit_labels}")
        if min(self.max_fit_negatives, self.max_fit_positives) < self.min_fit_labels:
            raise ConfigError(f"svm.max_fit_negatives and max_fit_positives must be at least min_fit_labels ({self.min_fit_labels})")


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A machine and how it came to be."""

    svm: Svm
    cost: float
    gamma: float
    grid: tuple[dict[str, float], ...]
    """Every choice tried: cost, gamma, clean_dropped (see `clean_dropped_in_tail`)."""
    held_out: np.ndarray
    """(n,) decision values of the fitted rows by machines that did not see them, of the choice taken."""


def clean_dropped_in_tail(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean share of negatives that go when the threshold is put at each of the lowest positives in turn. Lower is better.

    One order statistic alone (the share at 99 % recall) hangs on one positive of a hundred; the mean over the tail is steadier.
    """
    positives = np.sort(scores[labels == 1])
    negatives = np.sort(scores[labels == 0])
    tail = positives[: max(1, round(TAIL * len(positives)))]
    return float(np.mean(1 - np.searchsorted(negatives, tail, side="left") / len(negatives)))


def deal_folds(groups: Sequence[str], labels: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each row: groups stay together, and those with positives, and with negatives, are dealt out evenly."""
    classes: dict[str, set[int]] = {}
    for group, label in zip(groups, labels.tolist(), strict=True):
        classes.setdefault(group, set()).add(label)

    def place(group: str) -> tuple[float, bytes]:
        # Negative groups, mixed ones, positive ones: all with negatives stand in one row, and so do all with positives.
        return sum(classes[group]) / len(classes[group]), hashlib.sha256(b"fold:" + group.encode()).digest()

    fold = {group: i % folds for i, group in enumerate(sorted(classes, key=place))}
    return np.array([fold[group] for group in groups])


def thin(values: np.ndarray, easy: np.ndarray, uids: Sequence[str], config: SvmConfig) -> np.ndarray:
    """Rows to fit on, sorted: all, or as many of each class as the config allows; easy rows go first, in an order of hashes.

    Args:
        values: (n,) 0 or 1.
        easy: (n,) bool, rows that were drawn at random: there are more where they came from.
    """
    kept: list[int] = []
    for value, most in ((0, config.max_fit_negatives), (1, config.max_fit_positives)):
        rows = sorted(
            np.flatnonzero(values == value).tolist(), key=lambda i: (easy[i], hashlib.sha256(b"thin:" + uids[i].encode()).digest())
        )
        kept += rows[:most]
    return np.array(sorted(kept), dtype=np.int64)


def fit_svm(features: np.ndarray, labels: np.ndarray, groups: Sequence[str], config: SvmConfig) -> Fit:
    """Chooses C and gamma by cross-validation over groups, then fits on everything. The same rows give the same machine.

    Args:
        features: (n, dim) float32.
        labels: (n,) 0 or 1, 1 is what the filter drops.
        groups: n names; near-duplicates share one, and a fold.

    Raises:
        NotEnoughLabels: too few positives or negatives.
    """
    if features.dtype != np.float32:
        raise ValueError(f"features must be float32, got {features.dtype}")
    for value, name in ((1, "positives"), (0, "negatives")):
        found = len({group for group, label in zip(groups, labels, strict=True) if label == value})
        if found < config.min_fit_labels:
            raise NotEnoughLabels(f"{found} {name} to fit on (near-duplicates counted once), at least {config.min_fit_labels} are needed")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise ConfigError(f"features must be finite numbers; {len(bad)} of {len(features)} rows are not, the first is row {bad[0]}")
    rows = features.astype(np.float64)
    variance = float(rows.var())
    if variance == 0:
        raise ValueError("all features are the same number: nothing can be told apart by them")
    scale = 1 / (rows.shape[1] * variance)
    distances = squared_distances(features)
    fold_of = deal_folds(groups, labels, config.folds)

    grid: list[dict[str, float]] = []
    best: tuple[float, float, float] | None = None
    held_out = np.empty(0)
    for gamma in (factor * scale for factor in config.gamma_scales):
        kernel = np.exp(-gamma * distances)
        for cost in config.costs:
            scores = np.empty(len(rows))
            losses = []
            for fold in range(config.folds):
                seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
                machine = SVC(C=cost, kernel="precomputed", class_weight="balanced", cache_size=200)
                machine.fit(kernel[np.ix_(seen, seen)], labels[seen])
                scores[unseen] = machine.decision_function(kernel[np.ix_(unseen, seen)])
                losses.append(clean_dropped_in_tail(scores[unseen], labels[unseen]))
            loss = float(np.mean(losses))
            grid.append({"cost": cost, "gamma": gamma, "clean_dropped": loss})
            if best is None or loss < best[0]:  # of equals the first: the smoother machine
                best, held_out = (loss, cost, gamma), scores
    assert best is not None
    _, cost, gamma = best
    machine = SVC(C=cost, kernel="rbf", gamma=gamma, class_weight="balanced", cache_size=200).fit(rows, labels)
    svm = Svm(
        support_vectors=features[machine.support_],
        dual=np.ascontiguousarray(machine.dual_coef_[0], dtype=np.float64),
        intercept=float(machine.intercept_[0]),
        gamma=gamma,
    )
    return Fit(svm=svm, cost=cost, gamma=gamma, grid=tuple(grid), held_out=held_out)


def squared_distances(features: np.ndarray) -> np.ndarray:
    """(n, dim) -> (n, n) float64 squared distances between rows."""
    rows = features.astype(np.float64)
    lengths = (rows**2).sum(axis=1)
    distances: np.ndarray = np.maximum(lengths[:, None] + lengths[None, :] - 2 * rows @ rows.T, 0)
    return distances


def svm_to_bytes(svm: Svm) -> bytes:
    """As safetensors: support_vectors (num, dim) float32, dual (num,) float64, intercept and gamma (1,) float64."""
    from safetensors.numpy import save

    return save(
        {
            "support_vectors": np.ascontiguousarray(svm.support_vectors),
            "dual": svm.dual,
            "intercept": np.array([svm.intercept]),
            "gamma": np.array([svm.gamma]),
        }
    )


def svm_from_bytes(data: bytes) -> Svm:
    """Reads what `svm_to_bytes` wrote. Raises ConfigError if it is something else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        return Svm(
            support_vectors=tensors["support_vectors"],
            dual=tensors["dual"],
            intercept=float(tensors["intercept"][0]),
            gamma=float(tensors["gamma"][0]),
        )
    except (SafetensorError, KeyError, IndexError, ValueError) as problem:
        raise ConfigError(f"not a filter's svm.safetensors ({problem}); fit the filter anew") from problem
