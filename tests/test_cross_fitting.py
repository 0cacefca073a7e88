import numpy as np
import pytest
from sklearn.svm import SVC

from filters.cross_fitting import chance_kept_by_all, cross_fit, hard_positives
from filters.decision_values import STEP, Scorer
from filters.learning_curve import advice, learning_curve
from filters.svm import clean_dropped_in_tail, deal_folds


def noisy(n, seed, *, shift=1.0):
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    rows = rng.normal(size=(n, 4)) + shift * labels[:, None]
    return rows.astype(np.float32), labels, [str(i) for i in range(n)]


def test_each_row_is_scored_by_the_machine_that_did_not_see_its_fold():
    features, labels, groups = noisy(120, 0)
    found = cross_fit(features, labels, groups, cost=2.0, gamma=0.3, folds=4)
    fold_of = deal_folds(groups, labels, 4)
    rows = features.astype(np.float64)
    values, total = np.empty(120), np.zeros(120)
    for fold in range(4):
        machine = SVC(C=2.0, gamma=0.3, class_weight="balanced").fit(rows[fold_of != fold], labels[fold_of != fold])
        values[fold_of == fold] = machine.decision_function(rows[fold_of == fold])
        total += machine.decision_function(rows) / 4
    assert found.held_out == pytest.approx(values, abs=2e-3)  # libsvm stops at 1e-3
    assert Scorer([found.mean]).scores(features)[:, 0] == pytest.approx(total, abs=2e-3)
    assert np.array_equal(found.held_out, np.round(found.held_out / STEP) * STEP)


def test_labels_that_mean_nothing_are_not_recognised_when_held_out():
    features, _, groups = noisy(150, 1)
    labels = np.random.default_rng(2).integers(0, 2, 150)
    found = cross_fit(features, labels, groups, cost=100.0, gamma=5.0, folds=10)
    assert 0.3 < np.mean((found.held_out > 0) == labels) < 0.7
    assert np.mean((Scorer([found.mean]).scores(features)[:, 0] > 0) == labels) > 0.9


def test_hard_positives_are_the_lowest_of_those_that_were_missed():
    held_out, labels = np.array([0.4, -0.5, -2.0, -3.0, 0.1, -0.1]), np.array([1, 1, 1, 0, 1, 1])
    assert hard_positives(held_out, labels, 0.0, 9) == [2, 1, 5]
    assert hard_positives(held_out, labels, 0.0, 2) == [2, 1]
    assert hard_positives(held_out, labels, -5.0, 2) == []


def test_the_chance_of_being_kept_by_all_folds_is_bounded_as_the_theorem_says():
    # n = 237, k = 6, 10 folds: 2 x 6 / 238 + (1 - 10 / 237) / 11.
    assert chance_kept_by_all(6, 237, 10) == pytest.approx(0.137494, abs=1e-6)
    # Leaving out one at a time it is twice the rank's share, whatever the scores.
    assert chance_kept_by_all(5, 99, 99) == pytest.approx(0.1)
    assert chance_kept_by_all(50, 50, 5) == 1


def test_images_kept_by_all_folds_are_no_more_than_the_bound():
    # Forty draws of labels, each with a thousand new positives; the bound is far from sharp, so noise cannot break it.
    chances = []
    for seed in range(40):
        features, labels, groups = noisy(90, seed)
        held = cross_fit(features, labels, groups, cost=1.0, gamma=0.3, folds=5).held_out
        threshold = np.sort(held[labels == 1])[2]
        fold_of = deal_folds(groups, labels, 5)
        new = np.random.default_rng(1000 + seed).normal(size=(1000, 4)) + 1.0
        rows = features.astype(np.float64)
        machines = [SVC(C=1.0, gamma=0.3, class_weight="balanced").fit(rows[fold_of != f], labels[fold_of != f]) for f in range(5)]
        chances.append(np.mean(np.all([machine.decision_function(new) < threshold for machine in machines], axis=0)))
    assert 0.01 < np.mean(chances) < chance_kept_by_all(3, 30, 5)


def curve_of(shift, n=240, seed=3):
    features, labels, groups = noisy(n, seed, shift=shift)
    held_out = cross_fit(features, labels, groups, cost=1.0, gamma=0.2, folds=3).held_out
    found = learning_curve(features, labels, groups, cost=1.0, gamma=0.2, folds=3, held_out=held_out)
    return found, clean_dropped_in_tail(held_out, labels)


def test_a_learning_curve_ends_in_what_all_labels_give():
    found, last = curve_of(1.5)
    assert [point["labels"] for point in found["points"]] == [60, 120, 240]
    assert found["points"][-1]["clean_dropped"] == pytest.approx(last, abs=1e-6)
    for point in [*found["points"], found["twice"]]:
        assert 0 <= point["low"] <= point["clean_dropped"] <= point["high"] <= 1
    assert found["twice"]["labels"] == 480
    assert curve_of(1.5) == (found, last)  # nothing is left to chance


def test_few_labels_make_a_short_curve_and_no_forecast():
    found, _ = curve_of(1.5, n=40)
    assert [point["labels"] for point in found["points"]] == [40]
    assert found["twice"] is None
    assert found["advice"].endswith("they are too few to tell what more would buy.")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.02, 0.08, "twice as many would bring that to about 5.0% (2.0% to 8.0%)"), (0.02, 0.3, "not sure"), (0.2, 0.3, "would buy nothing")],
)
def test_advice_says_whether_more_labels_are_worth_it(low, high, words):
    twice = {"labels": 400, "clean_dropped": 0.05, "low": low, "high": high}
    assert words in advice([{"labels": 200, "clean_dropped": 0.1}], twice)
