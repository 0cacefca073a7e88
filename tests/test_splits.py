import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.splits import SplitConfig, assign_splits, is_eligible, near_duplicate_groups
from winnow.errors import ConfigError

CONFIG = SplitConfig()


def uid(i):
    return hashlib.sha256(str(i).encode()).hexdigest()[:32]


def one_hot(*rows):
    return np.eye(8, dtype=np.float32)[list(rows)]


def test_near_duplicates_are_alike_in_hash_and_in_feature():
    uids = ["d", "c", "b", "a"]
    hashes = np.array([0, 0b111111, 0, 0b1111111], dtype=np.int64)
    # d and c agree in both (6 bits differ), b only in the hash, a only in the feature (7 bits differ).
    assert near_duplicate_groups(uids, one_hot(0, 0, 1, 0), hashes) == ["a", "a", "b", "a"]  # a is 1 bit from c
    assert near_duplicate_groups(uids[:3], one_hot(0, 0, 1), hashes[:3]) == ["c", "c", "b"]
    assert near_duplicate_groups(["d", "a"], one_hot(0, 0), hashes[[0, 3]]) == ["d", "a"]


def test_hashes_differ_in_their_sign_bit_by_one_bit():
    assert near_duplicate_groups(["a", "b"], one_hot(0, 0), np.array([0, -(2**63)], dtype=np.int64)) == ["a", "a"]
    assert near_duplicate_groups(["a", "b"], one_hot(0, 0), np.array([0, -1], dtype=np.int64)) == ["a", "b"]


def test_given_groups_join_what_looks_different():
    groups = near_duplicate_groups(["a", "b", "c"], one_hot(0, 1, 2), np.array([0, 2**40 - 1, -1]), ["film", None, "film"])
    assert groups == ["a", "b", "a"]


def test_only_labels_drawn_as_the_scope_demands_may_prove_anything():
    assert is_eligible("population", 1, "random")
    assert is_eligible("population", 0, "random")
    assert is_eligible("curated", 1, "import")
    assert is_eligible("curated", 0, "random")
    assert not is_eligible("curated", 1, "random")
    assert not is_eligible("curated", 0, "import")
    for origin in ("text_search", "boundary", "neighbour", "audit"):
        for scope in ("population", "curated"):
            assert not is_eligible(scope, 1, origin)
            assert not is_eligible(scope, 0, origin)
    assert not is_eligible("population", 1, "import")


def test_shares_are_as_asked():
    uids = [uid(i) for i in range(4000)]
    splits = assign_splits(uids, [0] * 4000, ["random"] * 4000, uids, scope="population", config=CONFIG)
    assert [splits.count(split) / 4000 for split in ("calibrate", "test", "fit", "unused")] == pytest.approx([0.5, 0.2, 0.3, 0], abs=0.03)


def test_what_search_found_near_a_calibration_image_is_not_used():
    eligible = next(
        uid(i) for i in range(99) if assign_splits([uid(i)], [1], ["random"], ["g"], scope="population", config=CONFIG) == ["calibrate"]
    )
    found = assign_splits(
        [eligible, "x", "y"], [1, 1, 1], ["random", "text_search", "boundary"], ["g", "g", "h"], scope="population", config=CONFIG
    )
    assert found == ["calibrate", "unused", "fit"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_labels_added_later_move_nothing_unless_they_join_groups(data):
    # Groups by name; later labels join an existing group or a new one, never two.
    origin = st.sampled_from(["random", "text_search", "boundary", "import", "audit"])
    row = st.tuples(st.integers(0, 10**6), st.integers(0, 1), origin, st.integers(0, 15))
    rows = data.draw(st.lists(row, min_size=1, max_size=40, unique_by=lambda entry: entry[0]))
    scope = data.draw(st.sampled_from(["population", "curated"]))
    cut = data.draw(st.integers(1, len(rows)))

    def split(chosen):
        uids = [uid(i) for i, *_ in chosen]
        found = assign_splits(uids, [r[1] for r in chosen], [r[2] for r in chosen], [str(r[3]) for r in chosen], scope=scope, config=CONFIG)
        return dict(zip(uids, found, strict=True))

    first, then = split(rows[:cut]), split(rows)
    eligible = [is_eligible(scope, value, drawn) for _, value, drawn, _ in rows]
    later = {row[3] for row, able in zip(rows[cut:], eligible[cut:], strict=True) if able}
    for number, _, _, group in rows[:cut]:
        if group not in later:  # no eligible label came into its group
            assert then[uid(number)] == first[uid(number)]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["random", "boundary"]), st.integers(0, 9)), unique_by=lambda entry: entry[0])
)
@settings(max_examples=60, deadline=None)
def test_a_group_never_fits_and_proves(rows):
    uids = [uid(i) for i, *_ in rows]
    splits = assign_splits(uids, [1] * len(rows), [r[1] for r in rows], [str(r[2]) for r in rows], scope="population", config=CONFIG)
    for group in range(10):
        found = {split for split, entry in zip(splits, rows, strict=True) if entry[2] == group} - {"unused"}
        assert len(found) <= 1


def test_shares_that_leave_nothing_to_fit_are_refused():
    with pytest.raises(ConfigError, match="leave something for fitting"):
        SplitConfig(calibrate_share=0.8, test_share=0.2)
