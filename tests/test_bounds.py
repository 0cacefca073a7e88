import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from filters.bounds import (
    exact_interval,
    joint_confidence,
    miss_rate_upper_bound,
    positives_needed,
    rank_for_miss_rate,
    threshold_for_miss_rate,
)
from winnow.errors import NotEnoughLabels


@pytest.mark.parametrize(
    ("confidence", "needed"),
    [(0.95, (299, 473, 628, 773)), (0.99, (459, 662, 838, 1001))],
)
def test_positives_that_one_percent_takes_match_the_table_of_exact_binomials(confidence, needed):
    for misses, n in enumerate(needed):
        assert rank_for_miss_rate(n, 0.01, confidence) == misses + 1
        assert rank_for_miss_rate(n - 1, 0.01, confidence) == misses
    assert positives_needed(0.01, confidence) == needed[0]


def test_zero_misses_matches_the_closed_form():
    # With no misses the bound solves (1 - p)^n = 1 - confidence.
    assert miss_rate_upper_bound(0, 299) == pytest.approx(1 - 0.05 ** (1 / 299))
    assert miss_rate_upper_bound(5, 5) == 1


@given(n=st.integers(1, 400), rate=st.floats(0.005, 0.5), confidence=st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_rank_is_the_largest_that_keeps_the_promise(n, rate, confidence):
    # The k-th smallest of n is below the rate-quantile unless fewer than k of them are: a binomial, not the Beta the code uses.
    kept = [k for k in range(1, n + 1) if 1 - binom.cdf(k - 1, n, rate) >= confidence]
    equal = [k for k in range(1, n + 1) if abs(1 - binom.cdf(k - 1, n, rate) - confidence) < 1e-9]  # then rounding decides
    assert rank_for_miss_rate(n, rate, confidence) in {max(kept, default=0), *equal, *(k - 1 for k in equal)}


def test_promise_holds_as_often_as_it_says_and_no_oftener():
    # Scores uniform on [0, 1]: the true miss rate of threshold t is t itself. 473 is the first n that allows a miss, where the
    # rule is sharp: one rank lower it would hold in 99.1 % of the cases, one higher in 85.5 %.
    rng = np.random.default_rng(0)
    rates = np.array([threshold_for_miss_rate(rng.random(473), 0.01).value for _ in range(4000)])
    assert 0.94 <= np.mean(rates <= 0.01) <= 0.96


@pytest.mark.parametrize("levels", [2, 5, 40])
def test_promise_holds_with_ties(levels):
    rng = np.random.default_rng(levels)
    truth = np.cumsum(rng.dirichlet(np.full(levels, 0.3)))
    held = 0
    for _ in range(1500):
        scores = np.searchsorted(truth, rng.random(100)).astype(float)
        level = int(threshold_for_miss_rate(scores, 0.05).value)
        held += (truth[level - 1] if level else 0.0) <= 0.05  # the rate of scores below the threshold
    assert held / 1500 >= 0.94


def test_promise_holds_with_the_fewest_positives_there_can_be():
    n = positives_needed(0.2, 0.9)
    assert n == 11
    rng = np.random.default_rng(1)
    rates = np.array([threshold_for_miss_rate(rng.random(n), 0.2, 0.9).value for _ in range(4000)])
    assert 0.895 <= np.mean(rates <= 0.2) <= 0.93


def test_threshold_is_the_kth_smallest_and_says_what_it_rests_on():
    scores = np.random.default_rng(2).normal(size=500)
    found = threshold_for_miss_rate(scores, 0.01)
    assert (found.k, found.n) == (2, 500)
    assert found.value == np.sort(scores)[1]
    assert np.sum(scores < found.value) == found.k - 1
    assert found.confidence_reached == pytest.approx(beta.cdf(0.01, 2, 499))


def test_too_few_positives_are_refused_with_the_number_needed():
    with pytest.raises(
        NotEnoughLabels, match=r"298 held-out positives cannot prove a miss rate of 1.0% at 95% confidence. Label at least 299"
    ):
        threshold_for_miss_rate(np.zeros(298), 0.01)
    with pytest.raises(NotEnoughLabels, match="Label at least 299"):
        threshold_for_miss_rate(np.zeros(0), 0.01)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        threshold_for_miss_rate(np.full(400, np.nan), 0.01)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (17, 1024)])
def test_interval_is_clopper_and_pearsons(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert exact_interval(hits, n) == pytest.approx((expected.low, expected.high))


def test_interval_of_nothing_says_nothing():
    assert exact_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="3 of 2"):
        exact_interval(3, 2)


def test_chances_of_error_add_up():
    assert joint_confidence([0.95, 0.95, 0.95]) == pytest.approx(0.85)
    assert joint_confidence([0.5, 0.4]) == 0
