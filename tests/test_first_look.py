"""The three looks of scoring: quick and bounded, in float64, in extended precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC

from filters import first_look
from filters.decision_values import STEP, Scorer, Svm, exact_value
from filters.first_look import FirstLook
from winnow.decisions import COARSE, NEAR, coarsened, logged_range


def rows_of(n, dim, seed, scale=1.0):
    rows = np.random.default_rng(seed).normal(size=(n, dim)) + 0.5
    return (scale * rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def machine(num, dim, seed, *, gamma=1.0, weight=1.0, scale=1.0):
    dual = weight * np.random.default_rng(seed + 100).normal(size=num)
    return Svm(support_vectors=rows_of(num, dim, seed, scale), dual=dual, intercept=0.2, gamma=gamma)


def look(svms, rows):
    return FirstLook([(svm.support_vectors, svm.dual, svm.gamma, svm.intercept) for svm in svms]).values(torch.from_numpy(rows))


@settings(max_examples=40, deadline=None)
@given(
    dim=st.sampled_from([1, 2, 31, 128, 129, 300]),
    num=st.sampled_from([1, 33, 64, 700]),
    gamma=st.floats(0.05, 8.0),
    weight=st.sampled_from([1e-6, 1.0, 1e4]),
    scale=st.sampled_from([0.01, 1.0, 3.0]),
    seed=st.integers(0, 999),
)
def test_the_exact_value_lies_within_the_bound_of_the_first_look(dim, num, gamma, weight, scale, seed):
    svms = [machine(num, dim, seed, gamma=gamma, weight=weight, scale=scale), machine(5, dim, seed + 1)]
    rows = rows_of(20, dim, seed + 2, scale)
    values, bounds = look(svms, rows)
    assert values.shape == bounds.shape == (20, 2)
    for column, svm in enumerate(svms):
        exact = np.array([exact_value(svm, row) for row in rows])
        vouched = np.isfinite(bounds[:, column])
        assert np.all(np.abs(values[vouched, column] - exact[vouched]) <= bounds[vouched, column])
        assert np.all(vouched) or gamma * scale**2 > 1


def test_the_bound_is_no_wider_than_it_needs_to_be_to_settle_most_rows():
    values, bounds = look([machine(1000, 512, 0)], rows_of(200, 512, 1))
    assert np.max(bounds) < 0.02  # of scores that spread over 30 here
    assert np.ptp(values) > 1


def test_the_bound_is_beyond_single_precision_where_exponents_are_too_large_for_it():
    far = machine(50, 8, 0, gamma=3.0, scale=20.0)
    _, bounds = look([far], rows_of(10, 8, 1, scale=20.0))
    assert np.all(np.isinf(bounds))
    rows = rows_of(300, 8, 2, scale=20.0)
    scorer = Scorer([far])
    assert np.array_equal(scorer.coarse_scores(rows, [0.0])[:, 0], coarsened(scorer.scores(rows)[:, 0], 0.0))
    assert scorer.second_looks == 300


def test_a_first_look_that_errs_within_its_bound_changes_nothing(monkeypatch):
    # The worst that arithmetic may do: every value off by its whole bound, up or down.
    svms, rows = [machine(300, 40, 0), machine(70, 40, 5, gamma=2.0)], rows_of(300, 40, 1)
    honest = FirstLook.values
    full = Scorer(svms).scores(rows)
    thresholds = [float(np.sort(full[:, column])[100]) for column in range(2)]
    wanted = np.column_stack([coarsened(full[:, column], thresholds[column]) for column in range(2)])
    for push in (-1.0, 1.0, np.random.default_rng(0).uniform(-1, 1, (300, 2))):

        def off(self, features, push=push):
            bounds = honest(self, features)[1]
            exact = np.array([[float(exact_value(svm, row)) for svm in svms] for row in features.numpy()])
            return exact + push * bounds, bounds

        monkeypatch.setattr(FirstLook, "values", off)
        assert np.array_equal(Scorer(svms).coarse_scores(rows, thresholds), wanted)


def test_coarse_scores_are_those_of_the_scores_in_full_whatever_the_batch():
    svms, rows = [machine(500, 24, 0), machine(90, 24, 3, gamma=3.0)], rows_of(9000, 24, 1)
    scorer = Scorer(svms)
    full = scorer.scores(rows)
    thresholds = [float(np.sort(full[:, 0])[450]), 0.1234]  # one that is a score, one that is not
    whole = scorer.coarse_scores(rows, thresholds)
    assert np.array_equal(whole, np.column_stack([coarsened(full[:, i], thresholds[i]) for i in range(2)]))
    assert np.array_equal(whole >= thresholds, full >= thresholds)
    assert 0 < scorer.second_looks < 0.2 * 18000
    order = np.random.default_rng(5).permutation(9000)
    assert np.array_equal(scorer.coarse_scores(rows[order], thresholds), whole[order])
    assert np.array_equal(np.concatenate([scorer.coarse_scores(rows[i : i + 37], thresholds) for i in range(0, 1110, 37)]), whole[:1110])
    assert np.array_equal(np.concatenate([scorer.coarse_scores(rows[i : i + 1], thresholds) for i in range(50)]), whole[:50])


def test_verdicts_are_those_of_scikit_learns_decision_function():
    rng = np.random.default_rng(0)
    features = rows_of(600, 48, 0)
    labels = (features[:, 0] + 0.05 * rng.normal(size=600) > np.median(features[:, 0])).astype(int)
    theirs = SVC(C=10, gamma=2.0).fit(features.astype(np.float64), labels)
    svm = Svm(support_vectors=features[theirs.support_], dual=theirs.dual_coef_[0].copy(), intercept=float(theirs.intercept_[0]), gamma=2.0)
    rows = rows_of(4000, 48, 1)
    values = theirs.decision_function(rows.astype(np.float64))
    scorer = Scorer([svm])
    for threshold in np.sort(scorer.scores(rows)[:, 0])[[40, 800, 2000, 3990]].tolist():
        ours = scorer.coarse_scores(rows, [threshold])[:, 0] >= threshold
        assert np.array_equal(ours, values >= threshold - STEP / 2)


def test_where_products_may_be_less_precise_than_float32_nothing_is_vouched_for():
    svm, rows = machine(60, 16, 0), rows_of(50, 16, 1)
    wanted = Scorer([svm]).coarse_scores(rows, [0.0])
    torch.set_float32_matmul_precision("medium")
    try:
        scorer = Scorer([svm])
        assert np.array_equal(scorer.coarse_scores(rows, [0.0]), wanted)
        assert scorer.second_looks == 50
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tiles_of_any_width_give_the_same_scores(monkeypatch):
    svm, rows = machine(333, 200, 0), rows_of(700, 200, 1)
    wanted = Scorer([svm]).coarse_scores(rows, [0.0])
    for changes in ({"TILE": 64}, {"ROWS": 7}, {"INNER": 32}, {"PIECE": 128}):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setattr(first_look, name, value)
            assert np.array_equal(Scorer([svm]).coarse_scores(rows, [0.0]), wanted)


@given(
    score=st.integers(-(2**19), 2**19),
    other=st.integers(-(2**19), 2**19),
    threshold=st.one_of(st.integers(-(2**17), 2**17).map(lambda k: k * STEP), st.floats(-2, 2)),
)
def test_a_coarse_score_keeps_order_verdict_and_itself(score, other, threshold):
    scores = np.array([score, other]) * STEP
    coarse = coarsened(scores, threshold)
    assert np.array_equal(coarse >= threshold, scores >= threshold)
    assert (coarse[0] <= coarse[1]) if scores[0] <= scores[1] else (coarse[0] >= coarse[1])
    assert np.array_equal(coarsened(coarse, threshold), coarse)
    assert np.all((scores - coarse >= 0) & (scores - coarse < COARSE))
    low, high = logged_range(float(coarse[0]), threshold)
    assert low == scores[0] == high or low <= scores[0] < high
    assert coarsened(np.array([high]), threshold) == high  # the range ends where the next one begins


def test_scores_near_the_threshold_are_logged_in_full():
    threshold = 0.5
    near = threshold + STEP * np.arange(-NEAR / STEP, NEAR / STEP)
    assert np.array_equal(coarsened(near, threshold), near)
    far = np.array([0.5 - NEAR - STEP, 0.5 + NEAR, 0.74, 0.76, 0.26, 0.24])
    assert coarsened(far, threshold).tolist() == [0.25, 0.5 + NEAR, 0.5 + NEAR, 0.75, 0.25, 0.0]


def test_thresholds_must_be_one_a_filter():
    with pytest.raises(ValueError, match="2 thresholds for 1 filters"):
        Scorer([machine(5, 4, 0)]).coarse_scores(rows_of(3, 4, 1), [0.0, 1.0])
