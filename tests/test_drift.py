import numpy as np
import pytest

from filters.drift import DriftConfig, measure_drift, stability_index, two_sample_test
from winnow.errors import ConfigError

QUICK = DriftConfig(sample=80, permutations=199, min_p=0.01)


def batch(rng, n=400, dim=16, shift=0.0):
    rows = rng.normal(size=(n, dim))
    rows[:, 0] += shift
    return rows[:, 0], (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_equal_distributions_have_a_stability_index_near_0_and_a_moved_one_has_a_large_one():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=20_000)
    assert stability_index(reference, rng.normal(size=20_000)) < 0.01
    # Normal distributions of the same width, d apart: the symmetric divergence is d squared; ten bins lose a little of it.
    assert stability_index(reference, rng.normal(size=20_000) + 0.5) == pytest.approx(0.25, rel=0.15)


def test_the_index_of_two_bins_is_the_formula():
    reference, new = np.array([0.0] * 50 + [1.0] * 50), np.array([0.0] * 20 + [1.0] * 80)
    was, now = np.array([50.5, 50.5]) / 101, np.array([20.5, 80.5]) / 101
    assert stability_index(reference, new, bins=2) == pytest.approx(float(np.sum((now - was) * np.log(now / was))))


def test_the_two_sample_test_is_right_about_equal_samples_as_often_as_it_says():
    rng = np.random.default_rng(1)
    p = np.array([two_sample_test(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), 99, rng)[1] for _ in range(200)])
    assert np.mean(p <= 0.1) < 0.17 and np.mean(p <= 0.5) > 0.35


def test_the_two_sample_test_sees_a_moved_sample_and_never_says_impossible():
    rng = np.random.default_rng(2)
    squared, p = two_sample_test(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + 1, 99, rng)
    assert squared > 0.1 and p == pytest.approx(1 / 100)


def test_a_batch_like_the_reference_is_steady_and_one_of_another_kind_has_drifted():
    rng = np.random.default_rng(3)
    (scores, features), (same, same_features), (moved, moved_features) = batch(rng), batch(rng), batch(rng, shift=2.0)
    assert measure_drift(scores, same, features, same_features, QUICK).status == "steady"
    drifted = measure_drift(scores, moved, features, moved_features, QUICK)
    assert drifted.status == "drifted"
    assert [reason.split(":")[0] for reason in drifted.reasons] == ["scores", "features"]


def test_the_same_batches_give_the_same_numbers():
    rng = np.random.default_rng(4)
    (scores, features), (new, new_features) = batch(rng), batch(rng, shift=0.2)
    assert measure_drift(scores, new, features, new_features, QUICK) == measure_drift(scores, new, features, new_features, QUICK)


def test_a_handful_of_new_images_is_not_measured():
    rng = np.random.default_rng(5)
    scores, features = batch(rng)
    found = measure_drift(scores, scores[:50], features, features[:50], QUICK)
    assert found.status == "not measured" and "50 new images" in found.reasons[0]


def test_a_limit_that_permutations_cannot_reach_is_refused():
    with pytest.raises(ConfigError, match=r"cannot give a p-value of 0\.001; give at least 1000"):
        DriftConfig(permutations=100)
