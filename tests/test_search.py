import hashlib

import numpy as np
import pytest

from filters.search import draw_at_random, find_features, join_features, nearest_by, read_features, search_by_text
from tests.filter_world import DIM, make_world, uid_of, withdraw, write_embeddings
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.workspace import embeddings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("search"), partitions=3, rows=60)


def everything(world):
    return join_features([read_features(world.storage, embeddings(name)) for name in world.partitions])


def unit(seed, n=1):
    vectors = np.random.default_rng(seed).normal(size=(n, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_text_search_finds_what_comparing_with_everything_finds(world):
    found = everything(world)
    vector = unit(0)
    order = np.argsort(-(found.features.astype(np.float64) @ vector[0]))[:20]
    result = search_by_text(world.storage, world.partitions, {"people": vector}, {"people": 20}, leave_out={"people": ()})
    assert result == {"people": [found.uids[row] for row in order]}


def test_every_prompt_gets_its_share(world):
    vectors = unit(1, 3)
    settings = {"leave_out": {"people": ()}}
    apart = [
        search_by_text(world.storage, world.partitions, {"people": vectors[i : i + 1]}, {"people": 4}, **settings)["people"]
        for i in range(3)
    ]
    together = search_by_text(world.storage, world.partitions, {"people": vectors}, {"people": 9}, **settings)["people"]
    assert len(set(together)) == 9
    assert set(together) >= {uid for uids in apart for uid in uids[:3]} or len({uid for uids in apart for uid in uids[:3]}) < 9
    assert together[0] == apart[0][0]


def test_what_was_asked_is_not_asked_again(world):
    vector = unit(2)
    first = search_by_text(world.storage, world.partitions, {"people": vector}, {"people": 15}, leave_out={"people": ()})["people"]
    then = search_by_text(world.storage, world.partitions, {"people": vector}, {"people": 5}, leave_out={"people": first[:10]})["people"]
    assert then == first[10:]


def test_text_vectors_of_another_model_are_refused(world):
    vectors = {"people": np.ones((1, DIM + 1), dtype=np.float32)}
    with pytest.raises(ConfigError, match=f"text vectors of people have {DIM + 1} dimensions, embeddings {DIM}"):
        search_by_text(world.storage, world.partitions, vectors, {"people": 5}, leave_out={"people": ()})


def test_a_random_draw_is_the_same_however_the_data_is_cut(world, tmp_path):
    found = everything(world)
    other = Storage(str(tmp_path))
    half = len(found.uids) // 2
    rng = np.random.default_rng(0)
    for name, rows in (("00000-a", slice(half, None)), ("00001-b", slice(0, half))):
        write_embeddings(other, embeddings(name), found.uids[rows], found.features[rows], rng)
    drawn = draw_at_random(world.storage, world.partitions, 25, seed=3)
    assert draw_at_random(other, ["00001-b", "00000-a"], 25, seed=3) == drawn
    assert len(set(drawn)) == 25
    assert draw_at_random(world.storage, world.partitions, 25, seed=4) != drawn
    assert draw_at_random(world.storage, world.partitions, 5, seed=3, leave_out=drawn[:20]) == drawn[20:]
    assert sorted(draw_at_random(world.storage, world.partitions, 10**6, seed=3)) == found.uids


def test_a_random_draw_is_as_likely_to_take_any_image(tmp_path):
    uids = sorted(uid_of(str(i)) for i in range(40))
    write_embeddings(Storage(str(tmp_path)), embeddings("00000-a"), uids, np.ones((40, 2)), np.random.default_rng(0))
    times = dict.fromkeys(uids, 0)
    for seed in range(300):
        for uid in draw_at_random(Storage(str(tmp_path)), ["00000-a"], 10, seed=seed):
            times[uid] += 1
    # Each 75 times on average; chi-square with 39 degrees of freedom is below 73 in 999 of 1,000 cases.
    assert sum((count - 75) ** 2 / (75 * 0.75) for count in times.values()) < 73


def test_withdrawn_images_are_nowhere_to_be_found(tmp_path):
    world = make_world(tmp_path, partitions=2, rows=20, failed=0)
    gone = sorted(world.truth)[:1] + read_features(world.storage, embeddings(world.partitions[0])).uids[:3]
    withdraw(world.storage, world.partitions[0], gone)
    left = draw_at_random(world.storage, world.partitions, 100, seed=0)
    assert len(left) == len(set(left)) and not set(left) & set(gone[1:])
    texts = search_by_text(world.storage, world.partitions, {"people": unit(0)}, {"people": 100}, leave_out={"people": ()})["people"]
    assert sorted(texts) == sorted(left)
    assert find_features(world.storage, world.partitions, gone[1:]).uids == []


def test_features_are_found_with_their_images(world):
    found = everything(world)
    wanted = [found.uids[row] for row in (3, 50, 100)]
    some = find_features(world.storage, world.partitions, [*wanted, "nobody"])
    assert some.uids == sorted(wanted)
    rows = [found.uids.index(uid) for uid in some.uids]
    assert np.array_equal(some.features, found.features[rows])
    assert np.array_equal(some.dhashes, found.dhashes[rows])


def test_nearest_are_those_of_the_smallest_distance(world):
    found = everything(world)
    distances = np.abs(found.features[:, :2])
    result = nearest_by(
        world.storage, world.partitions, lambda rows: np.abs(rows[:, :2]), ["x", "y"], 10, leave_out={"x": (), "y": found.uids[:50]}
    )
    assert result["x"][0] == [found.uids[row] for row in np.lexsort((found.uids, distances[:, 0]))[:10]]
    assert not set(result["y"][0]) & set(found.uids[:50])
    assert np.array_equal(result["x"][2][0], found.features[found.uids.index(result["x"][0][0])])


def test_features_of_two_models_in_one_workspace_are_refused(world):
    found = everything(world)
    other = type(found)(uids=["x"], features=np.ones((1, 3), dtype=np.float32), dhashes=np.zeros(1, dtype=np.int64))
    with pytest.raises(ConfigError, match="features of different dimensions"):
        join_features([found, other])


def test_uids_are_spread_evenly_over_the_draw_whatever_their_first_digits(world):
    # The draw ranks by a hash of the uid: its own digits say nothing.
    drawn = draw_at_random(world.storage, world.partitions, 60, seed=0)
    ranks = [hashlib.sha256(f"0:{uid}".encode()).digest() for uid in drawn]
    assert ranks == sorted(ranks)
