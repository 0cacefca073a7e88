import numpy as np
import pytest
from sklearn.svm import SVC

from filters import decision_values
from filters.decision_values import STEP, Scorer, Svm, error_bound, exact_value
from filters.svm import SvmConfig, clean_dropped_in_tail, deal_folds, fit_svm, svm_from_bytes, svm_to_bytes, thin
from winnow.errors import ConfigError, NotEnoughLabels


def unit_rows(n, dim, seed):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """A machine as scikit-learn has it, and as we do."""
    features = unit_rows(400, 24, 0)
    labels = (features[:, 0] + 0.1 * np.random.default_rng(1).normal(size=400) > 0.1).astype(int)
    machine = SVC(C=10, gamma=1.3, class_weight="balanced").fit(features.astype(np.float64), labels)
    svm = Svm(
        support_vectors=features[machine.support_], dual=machine.dual_coef_[0].copy(), intercept=float(machine.intercept_[0]), gamma=1.3
    )
    return machine, svm


def test_scores_are_scikit_learns_rounded(fitted):
    machine, svm = fitted
    rows = unit_rows(3000, 24, 2)
    theirs = machine.decision_function(rows.astype(np.float64))
    ours = Scorer([svm_from_bytes(svm_to_bytes(svm))]).scores(rows)[:, 0]
    assert np.array_equal(ours, np.floor(theirs / STEP + 0.5) * STEP)


def test_verdicts_are_scikit_learns(fitted):
    machine, svm = fitted
    rows = unit_rows(3000, 24, 3)
    theirs = machine.decision_function(rows.astype(np.float64))
    ours = Scorer([svm]).scores(rows)[:, 0]
    for threshold in np.quantile(ours, [0.01, 0.2, 0.5, 0.99], method="lower"):
        assert np.array_equal(ours >= threshold, theirs >= threshold - STEP / 2)


def test_a_score_does_not_depend_on_the_rows_around_it(fitted):
    svms = [fitted[1], Svm(support_vectors=unit_rows(500, 24, 8), dual=np.random.default_rng(3).normal(size=500), intercept=0.3, gamma=4.0)]
    rows = unit_rows(1300, 24, 4)
    scorer = Scorer(svms)
    whole = scorer.scores(rows)
    assert whole.shape == (1300, 2)
    order = np.random.default_rng(5).permutation(1300)
    assert np.array_equal(scorer.scores(rows[order]), whole[order])
    assert np.array_equal(np.concatenate([scorer.scores(rows[i : i + 37]) for i in range(0, 1300, 37)]), whole)
    assert np.array_equal(np.concatenate([scorer.scores(rows[i : i + 1]) for i in range(50)]), whole[:50])
    assert np.array_equal(np.column_stack([Scorer([svm]).scores(rows)[:, 0] for svm in svms]), whole)


def test_the_second_look_agrees_with_the_first_where_both_are_sure(fitted, monkeypatch):
    rows = unit_rows(300, 24, 6)
    first = Scorer([fitted[1]]).scores(rows)
    monkeypatch.setattr(decision_values, "error_bound", lambda svm, longest: STEP)  # every row is looked at once more
    assert np.array_equal(Scorer([fitted[1]]).scores(rows), first)


def test_a_value_in_the_middle_between_two_scores_is_looked_at_again(monkeypatch):
    # One support vector at the row itself: the value is dual + intercept, exactly half a step.
    row = unit_rows(1, 8, 0)
    svm = Svm(support_vectors=row, dual=np.array([STEP / 2 - 0.25]), intercept=0.25, gamma=1.0)
    looked = []
    monkeypatch.setattr(decision_values, "exact_value", lambda *args: looked.append(args) or exact_value(*args))
    assert Scorer([svm]).scores(row)[0, 0] == STEP
    assert len(looked) == 1


def test_the_error_bound_holds_and_leaves_few_rows_open(fitted):
    svm = fitted[1]
    rows = unit_rows(200, 24, 7).astype(np.float64)
    vectors = svm.support_vectors.astype(np.float64)
    for dtype in (np.float64, np.float32):
        unit = 1 if dtype is np.float64 else 2.0**29
        d2 = ((rows**2).sum(1)[:, None] + (vectors**2).sum(1) - 2 * rows @ vectors.T).astype(dtype)
        values = np.exp(-dtype(svm.gamma) * d2) @ svm.dual.astype(dtype) + dtype(svm.intercept)
        exact = np.array([exact_value(svm, row.astype(np.float32)) for row in rows])
        assert np.max(np.abs(values - exact)) <= unit * error_bound(svm, 1.001)
    assert error_bound(svm, 1.001) < STEP / 1000


def test_features_of_another_dimension_are_refused(fitted):
    with pytest.raises(ConfigError, match="fitted on features of 24 dimensions, these have shape"):
        Scorer([fitted[1]]).scores(unit_rows(3, 16, 0))
    with pytest.raises(ConfigError, match=r"\[8, 24\]"):
        Scorer([fitted[1], Svm(support_vectors=unit_rows(3, 8, 0), dual=np.ones(3), intercept=0.0, gamma=1.0)])


def test_no_rows_and_no_filters_score_to_nothing(fitted):
    assert Scorer([fitted[1]]).scores(np.zeros((0, 0), dtype=np.float32)).shape == (0, 1)
    assert Scorer([]).scores(unit_rows(3, 16, 0)).shape == (3, 0)


def test_infinite_features_are_refused(fitted):
    rows = unit_rows(2, 24, 0)
    rows[1, 3] = np.inf
    for score in (Scorer([fitted[1]]).scores, lambda rows: Scorer([fitted[1]]).coarse_scores(rows, [0.0])):
        with pytest.raises(ConfigError, match="finite numbers; 1 of 2 rows are not, the first is row 1"):
            score(rows)


def test_a_machine_is_the_same_after_saving(fitted):
    svm = fitted[1]
    again = svm_from_bytes(svm_to_bytes(svm))
    assert np.array_equal(again.support_vectors, svm.support_vectors)
    assert np.array_equal(again.dual, svm.dual)
    assert (again.intercept, again.gamma) == (svm.intercept, svm.gamma)
    assert svm_to_bytes(again) == svm_to_bytes(svm)


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"\xff" * 64, "cut"])
def test_bytes_that_are_no_machine_are_refused(fitted, data):
    data = svm_to_bytes(fitted[1])[:-40] if data == "cut" else data
    with pytest.raises(ConfigError, match=r"not a filter's svm.safetensors"):
        svm_from_bytes(data)


def ring(n, seed):
    """Positives within a circle, negatives around it: nothing a plane could tell apart."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(int)
    radius = np.where(labels == 1, rng.uniform(0, 0.5, n), rng.uniform(0.6, 1, n))
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32), labels


def test_fit_separates_what_a_plane_cannot():
    features, labels = ring(300, 0)
    fit = fit_svm(features, labels, [str(i) for i in range(300)], SvmConfig())
    unseen, truth = ring(200, 1)
    assert np.mean((Scorer([fit.svm]).scores(unseen)[:, 0] > 0) == truth) > 0.95
    assert fit.cost in SvmConfig().costs
    assert len(fit.grid) == 6
    assert min(entry["clean_dropped"] for entry in fit.grid) == next(
        entry["clean_dropped"] for entry in fit.grid if (entry["cost"], entry["gamma"]) == (fit.cost, fit.gamma)
    )


def test_held_out_values_are_of_machines_that_did_not_see_the_row():
    # Labels are noise: machines that saw a row know its label, others cannot.
    features = unit_rows(120, 6, 0)
    labels = np.arange(120) % 2
    config = SvmConfig(costs=(1000.0,), gamma_scales=(20.0,))
    fit = fit_svm(features, labels, [str(i) for i in range(120)], config)
    assert np.mean((Scorer([fit.svm]).scores(features)[:, 0] > 0) == labels) > 0.95
    assert 0.3 < np.mean((fit.held_out > 0) == labels) < 0.7


def test_the_same_rows_give_the_same_bytes():
    features, labels = ring(200, 0)
    groups = [str(i) for i in range(200)]
    assert svm_to_bytes(fit_svm(features, labels, groups, SvmConfig()).svm) == svm_to_bytes(
        fit_svm(features, labels, groups, SvmConfig()).svm
    )


def test_too_few_labels_to_fit_are_refused_and_near_duplicates_count_once():
    features, labels = ring(60, 0)
    groups = ["same" if label else str(i) for i, label in enumerate(labels)]
    with pytest.raises(NotEnoughLabels, match=r"1 positives to fit on \(near-duplicates counted once\), at least 10"):
        fit_svm(features, labels, groups, SvmConfig())


def test_features_that_are_all_alike_are_refused():
    with pytest.raises(ValueError, match="nothing can be told apart"):
        fit_svm(np.ones((40, 3), dtype=np.float32), np.arange(40) % 2, [str(i) for i in range(40)], SvmConfig())


def test_folds_keep_groups_together_and_positives_spread():
    labels = np.array([1] * 30 + [0] * 300)
    groups = [str(i // 2) for i in range(330)]
    folds = deal_folds(groups, labels, 3)
    assert all(folds[i] == folds[i + 1] for i in range(0, 330, 2))
    assert [int(labels[folds == fold].sum()) for fold in range(3)] == [10, 10, 10]


def test_every_fold_has_both_classes_even_when_near_duplicates_disagree():
    # Ten groups of a positive and a negative, among 300 of positives alone.
    groups = [str(i) for i in range(310)] + [str(i) for i in range(10)]
    labels = np.array([1] * 310 + [0] * 10)
    folds = deal_folds(groups, labels, 10)
    assert sorted(folds[labels == 0].tolist()) == list(range(10))
    assert set(folds[labels == 1]) == set(range(10))


def test_thinning_lets_easy_negatives_go_first():
    config = SvmConfig(max_fit_negatives=20, max_fit_positives=15)
    values = np.array([1] * 10 + [0] * 90)
    easy = np.array([False] * 20 + [True] * 80)
    kept = thin(values, easy, [f"{i:03}" for i in range(100)], config)
    assert kept.tolist()[:20] == list(range(20))
    assert len(kept) == 30
    assert np.array_equal(kept, np.sort(kept))


def test_loss_is_the_share_of_negatives_above_the_lowest_positives():
    scores = np.array([0.0, 5.0, -1.0, 1.0, 2.0, 0.0])
    assert clean_dropped_in_tail(scores, np.array([1, 1, 0, 0, 0, 0])) == 0.75  # a tie is dropped, too


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"costs": ()}, "svm.costs"),
        ({"gamma_scales": (-1.0,)}, "gamma_scales"),
        ({"folds": 1}, "folds"),
        ({"max_fit_negatives": 3}, "max_fit"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SvmConfig(**settings)


@pytest.mark.gpu
def test_scores_are_the_same_on_a_gpu(fitted):
    rows = unit_rows(5000, 24, 9)
    assert np.array_equal(Scorer([fitted[1]], device="cuda").scores(rows), Scorer([fitted[1]]).scores(rows))
    assert np.array_equal(Scorer([fitted[1]], device="cuda").coarse_scores(rows, [0.1]), Scorer([fitted[1]]).coarse_scores(rows, [0.1]))
