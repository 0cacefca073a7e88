"""Many-fold cross-validation of a chosen machine: values of every label by a machine that did not see it, and the mean machine.

The mean of the decision values of fold machines with one gamma is itself a machine: the same support vectors, the mean of their weights.
Such a mean has seen every label, and each of its parts has not seen its own fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.svm import SVC

from filters.decision_values import STEP, Svm
from filters.svm import deal_folds, squared_distances


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFit:
    """What the machines of all folds say together."""

    held_out: np.ndarray
    """(n,) float64 decision values of each row by the machine that did not see its fold, rounded as scores are."""
    mean: Svm
    """The mean of the fold machines."""
    folds: int


def cross_fit(features: np.ndarray, labels: np.ndarray, groups: Sequence[str], *, cost: float, gamma: float, folds: int) -> CrossFit:
    """Fits one machine for each fold on all others.

    Args:
        features: (n, dim) float32.
        labels: (n,) 0 or 1.
        groups: n names; near-duplicates share one, and a fold.
        cost: C of the machines.
        folds: at least 2; no more than there are positives and negatives.
    """
    kernel = np.exp(-gamma * squared_distances(features))
    fold_of = deal_folds(groups, labels, folds)
    held_out, dual, intercept = np.empty(len(labels)), np.zeros(len(labels)), 0.0
    for fold in range(folds):
        seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        machine = SVC(C=cost, kernel="precomputed", class_weight="balanced", cache_size=200).fit(kernel[np.ix_(seen, seen)], labels[seen])
        held_out[unseen] = machine.decision_function(kernel[np.ix_(unseen, seen)])
        dual[seen[machine.support_]] += machine.dual_coef_[0] / folds
        intercept += float(machine.intercept_[0]) / folds
    support = np.flatnonzero(dual)
    mean = Svm(support_vectors=np.ascontiguousarray(features[support]), dual=dual[support], intercept=intercept, gamma=gamma)
    return CrossFit(held_out=np.floor(held_out / STEP + 0.5) * STEP + 0.0, mean=mean, folds=folds)


def hard_positives(held_out: np.ndarray, labels: np.ndarray, threshold: float, most: int) -> list[int]:
    """Rows of positives that a machine which did not see them scores below a threshold, the lowest first: what it has not understood.

    As OpenAI describes for the data of DALL-E 2: positives misclassified when held out, whose neighbours are then labelled.
    """
    wrong = [row for row in np.argsort(held_out, kind="stable").tolist() if labels[row] == 1 and held_out[row] < threshold]
    return wrong[:most]


def chance_kept_by_all(k: int, n: int, folds: int) -> float:
    """Bounds the chance, over draws of labels and image, that every fold's machine scores a positive below the threshold.

    The threshold is the k-th smallest of n held-out scores. An image that all machines score below it lies below the scores of n - k + 1
    positives, each compared by the machine that had seen neither: what cross-conformal prediction bounds by 2 alpha + (1 - folds / n) /
    (folds + 1), alpha = k / (n + 1) (Barber, Candes, Ramdas, Tibshirani, "Predictive inference with the jackknife+", theorem 4). It
    takes positives drawn alike and folds of one size.
    """
    return min(1.0, 2 * k / (n + 1) + (1 - folds / n) / (folds + 1))
