"""Datasets are mixed by shares, exactly, in an order that needs no memory; one dataset is read as it always was."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sample_order import Deal, batch_order, epoch_order, mixed_batch_order

SHARES = st.lists(st.integers(1, 50), min_size=1, max_size=5).map(lambda parts: [Fraction(part, sum(parts)) for part in parts])
TWO = (Fraction(67, 137), Fraction(70, 137))


@settings(max_examples=60, deadline=None)
@given(shares=SHARES, seed=st.integers(0, 5), rank=st.integers(0, 3), position=st.one_of(st.integers(0, 500), st.integers(0, 10**12)))
def test_after_any_number_of_samples_each_dataset_has_had_its_share_but_for_the_bound(shares, seed, rank, position):
    drawn = Deal.of(shares, seed=seed, rank=rank).drawn(position)
    assert sum(drawn) == position
    for number, (count, share) in enumerate(zip(drawn, shares, strict=True), 1):
        off = abs(count - position * share)
        assert off == 0 if len(shares) == 1 else off < min(number, len(shares) - 1)


def test_the_bound_of_two_datasets_is_reached_and_not_passed():
    # Less than one sample off, after each of ten thousand; a draw by chance would be off by dozens.
    off = [abs(Deal.of(TWO, seed=0, rank=0).drawn(position)[0] - position * TWO[0]) for position in range(10_000)]
    assert 0.9 < max(off) < 1


@settings(max_examples=40, deadline=None)
@given(shares=SHARES, seed=st.integers(0, 5), start=st.integers(0, 10**9))
def test_positions_are_dealt_as_their_counts_say(shares, seed, start):
    deal = Deal.of(shares, seed=seed, rank=1)
    before, after = deal.drawn(start), deal.drawn(start + 100)
    which = deal.datasets(start, start + 100)
    assert [which.count(number) for number in range(len(shares))] == [b - a for a, b in zip(before, after, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    shares=SHARES.filter(lambda shares: len(shares) > 1), batch_size=st.integers(1, 40), first=st.integers(0, 12), world=st.integers(1, 3)
)
def test_a_mixed_stream_taken_up_in_the_middle_goes_on_as_if_it_had_never_stopped(shares, batch_size, first, world):
    datasets = [[7 + 3 * number, 5] for number in range(len(shares))]

    def stream(first_batch: int) -> list[list[tuple[int, int]]]:
        settings = {"batch_size": batch_size, "num_batches": 15, "seed": 3, "rank": world - 1, "world": world}
        return list(mixed_batch_order(datasets, shares, first_batch=first_batch, **settings))

    whole = stream(0)
    assert [len(batch) for batch in whole] == [batch_size] * 15
    assert stream(first) == whole[first:]


@settings(max_examples=40, deadline=None)
@given(batch_size=st.integers(1, 30), first=st.integers(0, 5), rank=st.integers(0, 2), seed=st.integers(0, 3))
def test_one_dataset_is_read_in_the_order_it_has_alone(batch_size, first, rank, seed):
    settings = {"batch_size": batch_size, "first_batch": first, "num_batches": 12, "seed": seed, "rank": rank, "world": 3}
    assert list(mixed_batch_order([[40, 9, 23]], [Fraction(1)], **settings)) == list(batch_order([40, 9, 23], **settings))


def test_the_order_of_one_dataset_is_what_it_was_before_there_was_mixing():
    # Recorded before: a training under way must go on in the same order.
    order = batch_order([700, 40, 333], batch_size=48, first_batch=5, num_batches=40, seed=11, rank=1, world=2)
    assert hashlib.sha256(repr(list(order)).encode()).hexdigest()[:16] == "b59d09447c2ce58a"


def test_each_dataset_is_read_whole_before_any_sample_comes_again():
    datasets = [[30, 20], [24]]
    batches = mixed_batch_order(datasets, [Fraction(1, 4), Fraction(3, 4)], batch_size=8, first_batch=0, num_batches=40, seed=0)
    places = [place for batch in batches for place in batch]
    first = [place for place in places if place[0] < 2]
    second = [place for place in places if place[0] == 2]
    assert (len(first), len(second)) == (80, 240)
    for own, size in ((first, 50), (second, 24)):
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size
    assert {place[0] for place in places} == {0, 1, 2}


def test_workers_share_each_dataset_without_reading_anything_twice():
    datasets = [[31, 20], [24, 9, 9]]
    read: list[tuple[int, int]] = []
    for rank in range(3):
        settings = {"batch_size": 5, "first_batch": 0, "num_batches": 5, "seed": 2, "rank": rank, "world": 3}
        read += [place for batch in mixed_batch_order(datasets, [Fraction(1, 2), Fraction(1, 2)], **settings) for place in batch]
    assert len(read) == len(set(read)) == 75


def test_a_dataset_keeps_its_order_when_another_is_mixed_in():
    alone = [place for batch in batch_order([50, 50], batch_size=10, first_batch=0, num_batches=10, seed=4) for place in batch]
    mixed = mixed_batch_order([[50, 50], [70]], list(TWO), batch_size=10, first_batch=0, num_batches=20, seed=4)
    own = [place for batch in mixed for place in batch if place[0] < 2]
    assert own == alone[: len(own)] and len(own) > 90


def test_the_second_dataset_is_not_shuffled_like_the_first():
    mixed = mixed_batch_order([[64], [64]], [Fraction(1, 2)] * 2, batch_size=128, first_batch=0, num_batches=1, seed=0)
    places = next(iter(mixed))
    first, second = ([sample for shard, sample in places if shard == number] for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(64)) and first != second
    assert np.array_equal(epoch_order([64], seed=0, epoch=0)[:, 1], first)


@pytest.mark.parametrize("shares", [[Fraction(1, 2)], [Fraction(3, 2), Fraction(-1, 2)]])
def test_shares_that_were_not_settled_are_our_own_mistake(shares):
    with pytest.raises(AssertionError):
        Deal.of(shares, seed=0, rank=0)
