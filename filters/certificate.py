"""What a filter promises, what the promise rests on, and what it does not say: the content of certificate.json."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from filters.bounds import Threshold, exact_interval, positives_needed, threshold_for_miss_rate
from filters.catalog import FilterSpec
from filters.cross_fitting import chance_kept_by_all
from filters.splits import SPLITS

RULE = (
    "Scores at or above the threshold are dropped. The threshold is the k-th smallest score of n calibration positives that the "
    "classifier never saw, with the largest k for which P(Beta(k, n + 1 - k) <= max_miss_rate) >= confidence; k follows from n alone."
)
RULE_K_FOLD = (
    "Scores at or above the threshold are dropped. Every eligible positive is scored by one of {folds} machines, the one that was "
    "fitted without its fold; the threshold is the k-th smallest of these n scores, k as if they were of one machine: the largest for "
    "which P(Beta(k, n + 1 - k) <= max_miss_rate) >= confidence. In force is the mean of the {folds} machines."
)
GUARANTEE = {
    "held_out": "Proven with the stated confidence, whatever the features and scores: the calibration positives took no part in fitting.",
    "k_fold": (
        "An estimate, weaker than a held-out proof: the machines that set the threshold differ a little from their mean, which is in "
        "force, and C and gamma were chosen on the same labels. Proven (cross-conformal prediction; folds of equal size) is only: on "
        "average over draws of the labels, an image to be dropped is kept by all {folds} machines with a chance of at most "
        "2k / (n + 1) + (1 - {folds} / n) / ({folds} + 1), here {chance}."
    ),
}
NO_JOINT = "An estimate has no confidence that could be joined with others'."
JOINT = (
    "The chances of error of several filters add up: with m filters at {confidence} each, all promises hold together with at least "
    "100 % - m x {error}; three filters: {three}."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Labels with their splits, row by row."""

    values: np.ndarray
    """(n,) 0 or 1."""
    origins: Sequence[str]
    groups: Sequence[str]
    """Near-duplicates share one."""
    splits: Sequence[str]
    """Names in filters/splits.py, or "missing" for images that are no longer there."""
    scores: np.ndarray
    """(n,) float64, NaN for missing ones."""
    held_out: np.ndarray | None = None
    """(n,) float64 scores by machines that did not see the row, NaN for rows that were not fitted on; given for a k-fold certificate."""
    folds: int = 0
    """Machines that `held_out` comes from."""

    def calibration_positives(self) -> np.ndarray:
        """The scores that set the threshold."""
        if self.held_out is None:
            return self.of("calibrate", 1)
        chosen = np.array([name == "calibrate" for name in self.splits], dtype=bool) & (self.values == 1)
        found: np.ndarray = self.held_out[chosen]
        return found[np.isfinite(found)]  # others were not fitted on: there were more than max_fit_positives

    def of(self, split: str, value: int) -> np.ndarray:
        """The scores of a split's positives or negatives."""
        chosen = np.array([name == split for name in self.splits], dtype=bool)
        return self.scores[chosen & (self.values == value)]


def percent(share: float) -> str:
    """0.01 -> "1 %", with as many digits as it takes up to four."""
    return f"{100 * share:.4g} %"


def certify(spec: FilterSpec, labelled: Labelled) -> tuple[Threshold, dict[str, Any]]:
    """The threshold that keeps the filter's promise, and the certificate's statements about it.

    Raises:
        NotEnoughLabels: too few positives were kept for calibration.
    """
    threshold = threshold_for_miss_rate(labelled.calibration_positives(), spec.max_miss_rate, spec.confidence)
    kind = "held_out" if labelled.held_out is None else "k_fold"
    chance = percent(chance_kept_by_all(threshold.k, threshold.n, labelled.folds)) if kind == "k_fold" else ""
    random = [value for value, origin in zip(labelled.values.tolist(), labelled.origins, strict=True) if origin == "random"]
    return threshold, {
        "filter": spec.name,
        "title": spec.title,
        "policy": spec.policy,
        "scope": spec.scope,
        "certificate": kind,
        "sentence": sentence(spec, threshold, len(random), kind),
        "guarantee": GUARANTEE[kind].format(folds=labelled.folds, chance=chance),
        "max_miss_rate": spec.max_miss_rate,
        "confidence": spec.confidence,
        "rule": RULE if kind == "held_out" else RULE_K_FOLD.format(folds=labelled.folds),
        "num_positives": threshold.n,
        "rank": threshold.k,
        "threshold": threshold.value,
        "confidence_reached": threshold.confidence_reached if kind == "held_out" else None,
        "positives_needed": positives_needed(spec.max_miss_rate, spec.confidence),
        "joint_confidence": NO_JOINT
        if kind == "k_fold"
        else JOINT.format(
            confidence=percent(spec.confidence), error=percent(1 - spec.confidence), three=percent(max(0.0, 1 - 3 * (1 - spec.confidence)))
        ),
        "labels": count_labels(labelled),
        "near_duplicates": count_groups(labelled),
        "test": test_results(labelled, threshold.value),
        "prevalence": share_of(sum(random), len(random)),
        "does_not_cover": does_not_cover(spec),
    }


def sentence(spec: FilterSpec, threshold: Threshold, num_random: int, kind: str = "held_out") -> str:
    """The promise in words for a reader who knows no statistics."""
    share, sure = percent(spec.max_miss_rate), percent(spec.confidence)
    if kind == "k_fold":
        what = f"the images in the data that the filter {spec.title!r} is meant to drop"
        if spec.scope == "curated":
            what = f"images like the collected examples of {spec.title!r}"
        return (
            f"Estimated by cross-validation, not proven: at most {share} of {what} slip through. The threshold was set by "
            f"{threshold.n:,} labelled ones, each scored by a classifier that had not seen it; the classifier in force has seen them all."
        )
    if spec.scope == "population":
        return (
            f"With {sure} confidence, at most {share} of the images in the data that the filter {spec.title!r} is meant to drop "
            f"slip through: {num_random:,} images were drawn from the data at random and labelled, and {threshold.n:,} of those "
            "to be dropped, which the classifier never saw, set its threshold."
        )
    return (
        f"With {sure} confidence, at most {share} of images like the collected examples of {spec.title!r} slip through: "
        f"{threshold.n:,} of the examples, which the classifier never saw, set its threshold. They were "
        "collected and not drawn from the data, so how many such images the data holds, and what share of those slips "
        "through, is not known."
    )


def does_not_cover(spec: FilterSpec) -> list[str]:
    """What a reader might take the certificate to say, and it does not."""
    common = [
        "Captions: only images are judged.",
        "Mistakes of the labellers: an image wrongly labelled harmless counts as harmless.",
        "Each kind of image by itself: the share is over all of them, and a rare kind may slip through more often.",
    ]
    if spec.scope == "population":
        return [*common, "Data of another kind than that the random labels were drawn from, such as a new source: draw and label again."]
    return [*common, "Examples of a kind that the collection lacks.", "The share of such images in the data, before or after filtering."]


def count_labels(labelled: Labelled) -> dict[str, dict[str, dict[str, int]]]:
    """Origin -> split -> {"positive", "negative"}: every label counted once."""
    counts = Counter(zip(labelled.origins, labelled.splits, labelled.values.tolist(), strict=True))
    found: dict[str, dict[str, dict[str, int]]] = {}
    for origin in sorted(set(labelled.origins)):
        for split in (*SPLITS, "missing"):
            positive, negative = counts[origin, split, 1], counts[origin, split, 0]
            if positive or negative:
                found.setdefault(origin, {})[split] = {"positive": positive, "negative": negative}
    return found


def count_groups(labelled: Labelled) -> dict[str, int]:
    """How many pictures the labels really are, near-duplicates counted once, and the most that were taken for one.

    A large group is a warning: features or pictures so alike that different ones were taken for copies.
    """
    sizes = Counter(group for group, split in zip(labelled.groups, labelled.splits, strict=True) if split != "missing")
    return {"images": sizes.total(), "groups": len(sizes), "largest_group": max(sizes.values(), default=0)}


def test_results(labelled: Labelled, threshold: float) -> dict[str, Any]:
    """How the filter does on labels that took part in nothing: shares with exact two-sided 95 % intervals, and the AUC."""
    positives, negatives = labelled.of("test", 1), labelled.of("test", 0)
    auc = None
    if len(positives) and len(negatives):
        truth = np.repeat([1, 0], [len(positives), len(negatives)])
        auc = round(float(roc_auc_score(truth, np.concatenate([positives, negatives]))), 6)
    return {
        "miss_rate": share_of(int((positives < threshold).sum()), len(positives)),
        "clean_dropped": share_of(int((negatives >= threshold).sum()), len(negatives)),
        "auc": auc,
    }


def share_of(count: int, n: int) -> dict[str, Any]:
    """A share with its exact two-sided 95 % interval; the share is None if n is 0."""
    low, high = exact_interval(count, n)
    return {"count": count, "n": n, "share": count / n if n else None, "low": low, "high": high, "interval": "Clopper-Pearson, 95 %"}
