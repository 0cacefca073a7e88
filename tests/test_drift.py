import numpy as np
import pyarrow as pa
import pytest

from filters.drift import DriftConfig, measure_drift, stability_index, two_sample_test
from filters.drift_watch import latest_drift, watch_drift
from filters.promotion import paused_by, read_promotions
from tests.filter_world import write_embeddings
from winnow.decisions import schema
from winnow.errors import ConfigError
from winnow.run_files import FilterUsed
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.workspace import decisions, embeddings

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


@pytest.fixture
def scored(tmp_path):
    """Two partitions scored with a filter, and a third that comes later."""
    storage = Storage(str(tmp_path))
    used = FilterUsed(name="people", version="v1", threshold=1.0, certificate_sha256="0" * 64)
    return storage, used


def add(storage, name, *, seed, shift=0.0):
    scores, rows = batch(np.random.default_rng(seed), n=300, shift=shift)
    uids = sorted(f"{seed:04x}{number:028x}" for number in range(300))
    write_embeddings(storage, embeddings(name), uids, rows, np.random.default_rng(seed))
    columns = {"uid": uids, "verdict": ["kept"] * 300, "reasons": [[]] * 300, "score_people": scores}
    write_table(storage, decisions(name), pa.table(columns, schema=schema(["people"])))


def test_new_partitions_are_measured_once_against_those_there_were_and_a_drift_pauses_promotion(scored):
    storage, used = scored
    for number, name in enumerate(("a", "b")):
        add(storage, name, seed=number)
    assert watch_drift(storage, used, ["a", "b"], QUICK)["status"] == "not measured"
    add(storage, "c", seed=3)
    steady = watch_drift(storage, used, ["a", "b", "c"], QUICK)
    assert steady["status"] == "steady" and steady["now"] and steady["reference_images"] == 600 and steady["new_images"] == 300
    assert not watch_drift(storage, used, ["a", "b", "c"], QUICK)["now"]
    assert paused_by(storage, "people") is None
    add(storage, "d", seed=4, shift=3.0)
    drifted = watch_drift(storage, used, ["a", "b", "c", "d"], QUICK)
    assert drifted["status"] == "drifted" and drifted["partitions"] == ["c", "d"]
    assert "stability index" in paused_by(storage, "people")["reason"]
    watch_drift(storage, used, ["a", "b", "c", "d"], QUICK)
    assert len(read_promotions(storage, "people")) == 1
    assert latest_drift(storage, "people", "v1")["partitions"] == ["c", "d"]
    assert latest_drift(storage, "people", "v2") is None


def test_a_new_version_has_a_reference_of_its_own(scored):
    storage, used = scored
    add(storage, "a", seed=0)
    watch_drift(storage, used, ["a"], QUICK)
    add(storage, "b", seed=1, shift=3.0)
    second = FilterUsed(name="people", version="v2", threshold=1.0, certificate_sha256="0" * 64)
    assert watch_drift(storage, second, ["a", "b"], QUICK)["status"] == "not measured"
    assert watch_drift(storage, used, ["a", "b"], QUICK)["status"] == "drifted"
