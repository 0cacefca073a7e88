import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filters import duplicates
from filters.duplicate_groups import MEMBER, choose, grouped
from filters.duplicates import (
    NEIGHBOURS,
    PAIR,
    DuplicateConfig,
    Images,
    alike,
    best_neighbours,
    cosines_of,
    exact_cosines,
    hash_distance,
    mirrored_hash,
    near_pairs,
    near_rows,
    stars,
)
from winnow.errors import ConfigError

LIMITS = ((0.9, 10),)


def images(vectors, hashes=None, pixels=None, start=0):
    count = len(vectors)
    return Images(
        uids=np.array([f"{start + number:032x}" for number in range(count)], dtype="S32"),
        vectors=np.asarray(vectors, dtype=np.float16),
        dhashes=np.zeros(count, np.uint64) if hashes is None else np.asarray(hashes, dtype=np.uint64),
        pixels=np.ones(count, np.int64) if pixels is None else np.asarray(pixels, dtype=np.int64),
        partitions=np.zeros(count, np.int32),
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def difference_hash(grey):
    """The definition, over any 9 x 8 miniature."""
    bits = grey[:, :-1] > grey[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def test_the_hash_of_a_mirrored_picture_follows_from_its_own():
    rng = np.random.default_rng(0)
    for _ in range(50):
        grey = rng.permutation(72).reshape(8, 9)  # no two neighbours are equal
        found = mirrored_hash(np.array([difference_hash(grey)], dtype=np.uint64))
        assert int(found[0]) == difference_hash(grey[:, ::-1])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_mirroring_twice_changes_nothing(hashes):
    array = np.array(hashes, dtype=np.uint64)
    assert np.array_equal(mirrored_hash(mirrored_hash(array)), array)


def test_a_flipped_picture_is_as_near_by_its_hash_as_itself():
    grey = np.random.default_rng(1).permutation(72).reshape(8, 9)
    one, other = (np.array([difference_hash(side)], dtype=np.uint64) for side in (grey, grey[:, ::-1]))
    distance, mirrored = hash_distance(one, other)
    assert (distance[0], mirrored[0]) == (0, True)
    assert hash_distance(one, one)[0][0] == 0 and not hash_distance(one, one)[1][0]


@given(st.integers(1, 600), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_cosines_are_the_same_bits_in_any_order_of_summation(dim, seed):
    rng = np.random.default_rng(seed)
    one, other = (unit(rng.normal(size=(3, dim))).astype(np.float16) for _ in range(2))
    order = rng.permutation(dim)
    assert exact_cosines(one, other).tobytes() == exact_cosines(one[:, order], other[:, order]).tobytes()
    assert exact_cosines(one, other).tobytes() == exact_cosines(other, one).tobytes()


@given(st.integers(1, 600), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_many_cosines_at_a_time_are_the_bits_of_each_alone(dim, seed):
    rng = np.random.default_rng(seed)
    one, other = (images(unit(rng.normal(size=(count, dim)))) for count in (7, 9))
    rows, columns = (side.ravel() for side in np.meshgrid(np.arange(7), np.arange(9)))
    each = exact_cosines(one.vectors[rows], other.vectors[columns])
    assert cosines_of(one, rows, other, columns).tobytes() == each.tobytes()  # all pairs: a matrix product
    shuffled = one.take(rng.permutation(7))
    assert cosines_of(shuffled, rows, other, columns).tobytes() == exact_cosines(shuffled.features(rows), other.vectors[columns]).tobytes()


@given(st.integers(0, 80), st.integers(0, 40), st.integers(0, 31), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_hashes_that_are_alike_are_those_whose_bits_are_counted_one_by_one(num_ours, num_theirs, limit, seed):
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.integers(0, 2**64, count, dtype=np.uint64) for count in (num_ours, num_theirs))
    ours[: num_ours // 2] &= np.uint64(0xFFFF)  # plain pictures: few bits
    found = zip(*(side.tolist() for side in alike(ours, theirs, limit)), strict=True)
    due = [(i, j) for i in range(num_ours) for j in range(num_theirs) if hash_distance(ours[i : i + 1], theirs[j : j + 1])[0][0] <= limit]
    assert list(found) == due


def test_a_few_pairs_of_many_images_are_measured_one_by_one_with_the_same_bits(monkeypatch):
    monkeypatch.setattr(duplicates, "DENSE", 1)
    monkeypatch.setattr(duplicates, "EXACT_BLOCK", 3)
    rng = np.random.default_rng(6)
    one, other = (images(unit(rng.normal(size=(40, 24)))) for _ in range(2))
    rows, columns = np.arange(40), rng.permutation(40)
    assert cosines_of(one, rows, other, columns).tobytes() == exact_cosines(one.vectors, other.vectors[columns]).tobytes()


def brute(query, base, limits, same):
    """All near-duplicates, one pair at a time."""
    found = set()
    for i in range(len(query)):
        for j in range(i + 1 if same else 0, len(base)):
            cosine = exact_cosines(query.features(np.array([i])), base.features(np.array([j])))[0]
            straight = int(query.dhashes[i] ^ base.dhashes[j]).bit_count()
            turned = int(mirrored_hash(query.dhashes[i : i + 1])[0] ^ base.dhashes[j]).bit_count()
            if any(cosine >= least and min(straight, turned) <= most for least, most in limits):
                found.add((i, j))
    return found


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("limits", [LIMITS, ((0.95, 14), (0.8, 4))], ids=["one limit", "two"])
def test_blocks_find_the_pairs_that_comparing_one_by_one_does(monkeypatch, same, limits):
    monkeypatch.setattr(duplicates, "QUERY_BLOCK", 7)
    monkeypatch.setattr(duplicates, "BASE_BLOCK", 11)
    monkeypatch.setattr(duplicates, "TILE_ROWS", 3)
    rng = np.random.default_rng(3)
    centres, hashes = rng.normal(size=(6, 16)), rng.integers(0, 2**64, size=6, dtype=np.uint64)
    kind = rng.integers(0, 6, size=60)
    flips = np.array([sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 16), replace=False)) for _ in range(60)], dtype=np.uint64)
    every = images(unit(centres[kind] + 0.35 * rng.normal(size=(60, 16))), hashes[kind] ^ flips)
    one, other = (every, every) if same else (every.take(np.arange(30)), every.take(np.arange(30, 60)))
    found = [
        pair for rows, columns in near_rows(one, other, limits, same=same) for pair in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    assert len(found) == len(set(found)) > 20
    assert set(found) == brute(one, other, limits, same)


def test_pairs_do_not_depend_on_the_pieces_in_which_they_are_looked_for():
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(10, 16))
    every = images(unit(centres[rng.integers(0, 10, 90)] + 0.2 * rng.normal(size=(90, 16))), pixels=rng.integers(1, 9, 90))
    whole = near_pairs(every, iter(()), LIMITS)
    cut = [every.take(np.arange(start, start + 30)) for start in (0, 30, 60)]
    pieces = [near_pairs(piece, iter(cut[:number]), LIMITS) for number, piece in enumerate(cut)]
    assert len(whole) > 100
    assert best_neighbours(np.concatenate(pieces[::-1])).tobytes() == whole.tobytes()


def test_a_pair_at_the_limit_is_one_and_just_below_is_none():
    # float16 holds 0.6 and 0.8 nearly; what counts is the exact cosine of what it holds.
    two = images(np.array([[1.0, 0.0], [0.6, 0.8]]))
    cosine = float(exact_cosines(two.vectors[:1], two.vectors[1:])[0])
    assert len(near_pairs(two, iter(()), ((cosine, 0),))) == 1
    assert len(near_pairs(two, iter(()), ((np.nextafter(cosine, 1.0), 0),))) == 0


def test_the_larger_image_is_the_better_one_then_the_smaller_uid():
    three = images(np.ones((3, 4)), pixels=[5, 9, 5])
    pairs = near_pairs(three, iter(()), LIMITS)
    named = {(int(pair["worse"], 16), int(pair["better"], 16)) for pair in pairs}
    assert named == {(0, 1), (2, 1), (2, 0)}


def test_a_picture_found_many_times_keeps_few_pairs_and_one_centre():
    count = 300
    many = images(np.ones((count, 4)), pixels=np.arange(count))
    pairs = near_pairs(many, iter(()), LIMITS)
    assert len(pairs) == sum(min(place, NEIGHBOURS) for place in range(count)) < count * (count - 1) / 2
    members = grouped(pairs)
    assert len(members) == count and set(members["centre"]) == {many.uids[-1]}


@given(st.integers(1, 40), st.integers(0, 120), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_image_is_near_its_centre_and_no_two_centres_are_near(count, edges, seed):
    rng = np.random.default_rng(seed)
    pairs = {tuple(sorted(pair.tolist(), reverse=True)) for pair in rng.integers(0, count, size=(edges, 2)) if pair[0] != pair[1]}
    worse, better = (np.array([pair[side] for pair in sorted(pairs)], dtype=np.int64) for side in (0, 1))
    centre = stars(worse, better, count)
    assert np.array_equal(centre[centre], centre)
    for image in range(count):
        assert centre[image] == image or (image, centre[image]) in pairs
    centres = set(np.flatnonzero(centre == np.arange(count)).tolist())
    assert not any(one in centres and other in centres for one, other in pairs)
    # Greedy: what one pass from the best on gives.
    plain: dict[int, int] = {}
    for image in range(count):
        near = [plain_centre for plain_centre in sorted(plain) if plain[plain_centre] == plain_centre and (image, plain_centre) in pairs]
        plain[image] = near[0] if near else image
    assert centre.tolist() == [plain[image] for image in range(count)]


def test_a_chain_of_frames_ends_after_one_step():
    # Each frame is like the next and no other: 40 in a row are no one group of 40.
    worse, better = np.arange(1, 40), np.arange(0, 39)
    assert max(np.bincount(stars(worse, better, 40))) == 2


def members_of(groups):
    """MEMBER rows of {group: [(uid, pixels), ...]}."""
    rows = [(uid, group, pixels, len(listed)) for group, listed in groups.items() for uid, pixels in listed]
    found = np.zeros(len(rows), MEMBER)
    for place, (uid, group, pixels, size) in enumerate(rows):
        found[place]["uid"], found[place]["group"], found[place]["pixels"], found[place]["group_size"] = uid, group, pixels, size
    return found


GROUPS = members_of({"a": [("a", 10), ("b", 20), ("c", 30)], "d": [("d", 5), ("e", 5)], "f": [("f", 1), ("g", 2)]})


def test_the_best_that_filters_keep_stays_though_a_larger_one_is_dropped_by_them():
    passes = np.array([True, True, False, True, True, False, False])
    found = choose(GROUPS, passes, frozenset(), "keep_best")
    assert found["best"].tolist() == [b"b"] * 3 + [b"d"] * 2 + [b""] * 2
    assert found["is_dropped"].tolist() == [True, False, False, False, True, False, False]
    assert found["weight"].tolist() == [0, 1, 0, 1, 0, 0, 0]


def test_down_weighting_keeps_all_and_shares_one_among_those_that_are_kept():
    passes = np.array([True, True, False, True, True, False, True])
    found = choose(GROUPS, passes, frozenset(), "down_weight")
    assert not found["is_dropped"].any()
    assert found["weight"].tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0, 1]


@pytest.mark.parametrize("mode", ["keep_best", "down_weight", "mark"])
def test_copies_of_an_image_that_a_person_reported_go_with_it_whatever_the_mode(mode):
    passes = np.array([True, True, False, True, True, True, True])
    found = choose(GROUPS, passes, frozenset([b"c"]), mode)
    assert found["is_dropped"][:3].tolist() == [True, True, False]
    assert found["best"][:3].tolist() == [b""] * 3 and not found["weight"][:3].any()
    assert found["best"][3] == b"d"


def test_features_of_two_models_are_refused():
    with pytest.raises(ConfigError, match="4 and 5 dimensions: they are of different models"):
        near_pairs(images(np.ones((2, 4))), iter([images(np.ones((2, 5)), start=5)]), LIMITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "drop"}, "mode must be one of keep_best, down_weight, mark, off"),
        ({"limits": ((0.0, 10),)}, "a cosine must be above 0 and at most 1, got 0.0"),
        ({"limits": ((0.9, 40),)}, r"must be 0 to 31 \(32 of 64 differ by chance\), got 40"),
        ({"limits": ()}, "must be pairs of a cosine and differing bits"),
        ({"limits": ((0.9, 5), (0.97, 4))}, "each lower in both than the one before"),
        ({"limits": ((0.97, 5), (0.9, 5))}, "each lower in both than the one before"),
        ({"nprobe": 0}, "nprobe must be at least 1"),
        ({"references": {"COCO val": "x"}}, "'COCO val' must be lower-case"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        DuplicateConfig(**change)


def test_the_derived_mirrored_hash_is_right_up_to_ties_on_a_drawn_picture():
    from models.embedding import difference_hash as hash_of

    rng = np.random.default_rng(5)
    picture = Image.fromarray(rng.integers(0, 256, (60, 90), dtype=np.uint8)).resize((300, 200), Image.Resampling.BICUBIC)
    one, other = (
        np.array([hash_of(side)], dtype=np.int64).view(np.uint64) for side in (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    )
    assert np.bitwise_count(mirrored_hash(one) ^ other)[0] <= 4


def test_pairs_of_no_images_are_none():
    assert near_pairs(images(np.empty((0, 4))), iter([images(np.ones((2, 4)))]), LIMITS).dtype == PAIR
    assert len(grouped(np.empty(0, PAIR))) == 0
