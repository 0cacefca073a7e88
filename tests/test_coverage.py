"""The promise holds as often as it says, and the measurement would show it if the rule were off by one."""

import numpy as np
import pytest

from filters.bounds import positives_needed, rank_for_miss_rate, threshold_for_miss_rate
from filters.coverage import DISTRIBUTIONS, coverage, least_count

DRAWS = 2000
CONTINUOUS = [name for name in DISTRIBUTIONS if not name.startswith("ties")]


def sizes(rate):
    least = positives_needed(rate, 0.95)
    second = next(n for n in range(least, 10 * least) if rank_for_miss_rate(n, rate, 0.95) == 2)
    return least, second


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_true_miss_rate_is_below_the_promised_one_in_95_of_100_calibrations(name, rate):
    for n in sizes(rate):
        held = coverage(DISTRIBUTIONS[name], n, rate, draws=DRAWS, seed=n)
        assert held * DRAWS >= least_count(DRAWS, 0.95)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_rule_that_is_off_by_one_would_be_found_out(name, rate):
    for n in sizes(rate):
        wrong = coverage(DISTRIBUTIONS[name], n, rate, draws=DRAWS, seed=n, off_by=1)
        assert wrong * DRAWS < least_count(DRAWS, 0.95)


def test_the_thresholds_are_those_of_the_rule_in_force():
    distribution = DISTRIBUTIONS["normal"]
    scores = distribution.draw(np.random.default_rng(5), (50, 93))
    held = np.mean([distribution.below(threshold_for_miss_rate(row, 0.05).value) <= 0.05 for row in scores])
    assert held == coverage(distribution, 93, 0.05, draws=50, seed=5)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_misses_what_it_says(name):
    distribution = DISTRIBUTIONS[name]
    scores = distribution.draw(np.random.default_rng(1), (1, 200_000))[0]
    for threshold in np.quantile(scores, [0.01, 0.05, 0.5], method="lower"):
        assert np.mean(scores < threshold) == pytest.approx(float(distribution.below(np.array(threshold))), abs=0.004)


def test_too_few_positives_have_no_rank():
    with pytest.raises(ValueError, match="too few"):
        coverage(DISTRIBUTIONS["uniform"], 58, 0.05, draws=10, seed=0)
