import numpy as np
import pytest
from scipy.stats import binom, norm

from benchmarks.stratified_audit import THRESHOLD, WORLDS, audit
from filters.stratified_audit import draw_strata, labels_for_miss_rate, plan_strata, stratified_result
from filters.tapering import tapering_miss_rate
from winnow.errors import ConfigError, NotEnoughLabels

RUNS, IMAGES = 15, 60_000


@pytest.fixture(scope="module")
def audits():
    rng = np.random.default_rng(5)
    return {
        world.name: [audit(world, rng, labels=3000, prevalence=0.001, images=IMAGES) for _ in range(RUNS)]
        for world in (WORLDS[0], WORLDS[2])
    }


def test_strata_share_out_every_image_once_and_no_more_labels_than_asked_for():
    scores = np.random.default_rng(0).normal(size=20_000)
    strata = plan_strata(scores, 1.5, budget=1000)
    assert sum(stratum.size for stratum in strata) == len(scores)
    assert sum(stratum.wanted for stratum in strata) == 1000
    assert strata[0].kept and strata[0].high == 1.5 and not any(stratum.kept for stratum in strata[1:])
    rows = np.concatenate(draw_strata(scores, strata, np.random.default_rng(1)))
    assert len(set(rows.tolist())) == 1000


def test_a_census_estimates_what_is_there():
    rng = np.random.default_rng(2)
    scores, values = rng.normal(size=600), (rng.random(600) < 0.1).astype(int)
    strata = plan_strata(scores, 0.5, budget=10_000)
    strata = [type(s)(low=s.low, high=s.high, size=s.size, kept=s.kept, wanted=s.size) for s in strata]
    drawn = draw_strata(scores, strata, rng)
    found = stratified_result(scores, strata, drawn, [values[rows] for rows in drawn])
    assert found.prevalence == pytest.approx(values.mean())
    assert found.miss_rate == pytest.approx(values[scores < 0.5].sum() / values.sum())
    assert found.leak == pytest.approx(values[scores < 0.5].mean())


def test_a_class_of_one_in_a_thousand_is_audited_with_3000_labels_and_the_bounds_hold(audits):
    found = audits[WORLDS[0].name]
    assert all(result.num_labels <= 3000 for result, _, _ in found)
    assert np.mean([result.prevalence for result, _, _ in found]) == pytest.approx(0.001, rel=0.1)
    assert np.mean([result.miss_rate_at_most >= miss for result, miss, _ in found]) >= 0.95
    assert np.mean([result.leak_at_most >= leak for result, _, leak in found]) >= 0.95
    # Of 60 positives any number may be missed by chance; the line speaks of the rate behind it, which is 1 % in this world.
    held = sum(result.tapering_miss_rate_at_most >= 0.01 for result, _, _ in found)
    assert held >= binom.ppf(0.001, RUNS, 0.95)
    assert np.median([result.tapering_miss_rate_at_most for result, _, _ in found]) < 0.08


def test_inspectors_who_overlook_a_tenth_are_allowed_for_by_what_they_see_of_known_positives():
    rng = np.random.default_rng(6)
    world = {"labels": 3000, "prevalence": 0.02, "images": IMAGES, "sees": 0.6}
    measured = [audit(WORLDS[2], rng, honeypots=50, **world) for _ in range(RUNS)]
    trusted = [audit(WORLDS[2], rng, honeypots=0, **world) for _ in range(RUNS)]
    assert np.mean([result.leak_at_most >= leak for result, _, leak in measured]) >= 0.95
    assert np.mean([result.miss_rate_at_most >= miss for result, miss, _ in measured]) >= 0.95
    assert all(0.35 < result.sensitivity_at_least < 0.75 for result, _, _ in measured)
    assert np.mean([result.leak_at_most for result, _, _ in measured]) > 1.3 * np.mean([result.leak_at_most for result, _, _ in trusted])


def test_nothing_found_and_every_known_positive_seen_bounds_the_leak_as_a_plain_audit_does():
    scores = np.random.default_rng(7).normal(size=5000)
    strata = plan_strata(scores, 1.5, budget=1000)
    drawn = draw_strata(scores, strata, np.random.default_rng(8))
    found = stratified_result(scores, strata, drawn, [np.zeros(len(rows)) for rows in drawn], honeypots_found=50, honeypots=50)
    # Each at 97.5 %: (1 - q)^n = 0.025 of the finds over s^50 = 0.025 of the honeypots.
    assert found.leak_at_most == pytest.approx((1 - 0.025 ** (1 / len(drawn[0]))) / 0.025 ** (1 / 50))
    assert found.miss_rate_at_most == 1.0


def test_positives_that_the_filter_does_not_see_break_the_assumption_and_not_the_other_bound(audits):
    found = audits[WORLDS[2].name]
    assert np.mean([result.miss_rate_at_most >= miss for result, miss, _ in found]) >= 0.95
    assert np.mean([result.tapering_miss_rate_at_most >= miss for result, miss, _ in found]) < 0.9


def test_labels_alone_cannot_prove_a_small_miss_rate_of_a_rare_class():
    assert labels_for_miss_rate(0.05, 0.001) == 56_919
    assert labels_for_miss_rate(0.01, 0.001) > 290_000


def test_the_line_through_separated_scores_gives_no_misses_and_too_few_labels_are_refused():
    rng = np.random.default_rng(3)
    values = np.repeat([0, 1], 200)
    scores = rng.normal(size=400) + 4 * values
    everywhere = rng.normal(size=5000) + 4 * np.repeat([0, 1], 2500)
    bound = tapering_miss_rate(scores, values, all_scores=everywhere, counts=np.ones(5000), threshold=float(norm.ppf(0.01, 4)))
    assert 0 < bound < 0.2
    with pytest.raises(NotEnoughLabels, match="5 positives and 200 others"):
        tapering_miss_rate(scores[:205], values[:205], all_scores=everywhere, counts=np.ones(5000), threshold=THRESHOLD)


def test_an_audit_of_a_filter_that_keeps_nothing_is_refused():
    with pytest.raises(ConfigError, match="keeps no image"):
        plan_strata(np.ones(100), 0.5, budget=50)
