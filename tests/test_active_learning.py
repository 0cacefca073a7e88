import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.active_learning import RoundParts, cluster, parts_of_round, spread_out
from filters.plan import LabelPlan, LearnConfig
from winnow.errors import ConfigError


def blobs(sizes, seed=0):
    rng = np.random.default_rng(seed)
    centres = ([1, 0], [0, 1], [-1, -1])
    return np.concatenate([centre + rng.normal(scale=0.01, size=(n, 2)) for centre, n in zip(centres, sizes, strict=True)])


def test_clusters_are_the_blobs():
    names = cluster(blobs((20, 30, 10)), 3)
    assert len(set(names[:20])) == len(set(names[20:50])) == len(set(names[50:])) == 1
    assert len(set(names)) == 3


def test_a_crowd_of_look_alikes_at_the_boundary_does_not_take_all_places():
    # The first blob is nearest to the boundary and has enough images for the whole batch.
    features = blobs((60, 20, 20))
    chosen = spread_out(np.linspace(0, 1, 100), features, 12)
    assert len(set(chosen)) == 12
    assert sum(row < 60 for row in chosen) < 12
    assert {0 if row < 60 else 1 if row < 80 else 2 for row in chosen} == {0, 1, 2}
    assert 0 in chosen  # the nearest of all


def test_the_nearest_of_each_cluster_come_first():
    features = blobs((10, 10, 10))
    chosen = spread_out(np.linspace(0, 1, 30), features, 12)
    for start in (0, 10, 20):
        of_blob = sorted(row for row in chosen if start <= row < start + 10)
        assert of_blob == list(range(start, start + len(of_blob)))


def test_a_pool_smaller_than_the_batch_is_taken_whole():
    assert spread_out(np.array([0.1, 0.2]), np.ones((2, 3)), 5) == [0, 1]


def test_equal_images_make_no_trouble_and_the_choice_is_the_same_each_time():
    features = np.ones((40, 3))
    chosen = spread_out(np.zeros(40), features, 8)
    assert chosen == spread_out(np.zeros(40), features, 8)
    assert len(set(chosen)) == 8


@given(st.integers(0, 500), st.floats(0, 0.5), st.floats(0, 0.5))
def test_the_parts_of_a_round_are_the_round(count, neighbour_share, control_share):
    parts = parts_of_round(count, neighbour_share=neighbour_share, control_share=control_share)
    assert parts.boundary + parts.neighbour + parts.control == count
    assert min(parts.boundary, parts.neighbour, parts.control) >= 0
    assert parts.neighbour <= count * neighbour_share and parts.control <= count * control_share


def test_a_round_of_two_hundred_by_default():
    plan = LabelPlan()
    parts = parts_of_round(plan.boundary_labels, neighbour_share=plan.neighbour_share, control_share=plan.control_share)
    assert parts == RoundParts(boundary=140, neighbour=40, control=20)


@pytest.mark.parametrize("shares", [{"neighbour_share": -0.1}, {"neighbour_share": 0.7, "control_share": 0.4}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ConfigError, match="must be shares of a round"):
        LabelPlan(**shares)


def test_a_kind_of_certificate_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"learn\.certificate must be one of held_out, k_fold, got 'hope'"):
        LearnConfig(certificate="hope")
