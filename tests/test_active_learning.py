import numpy as np

from filters.active_learning import cluster, spread_out


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
