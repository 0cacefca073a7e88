import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.metrics import cohen_kappa_score, f1_score

from filters.agreement import agreement, cohens_kappa, gwets_ac1, overall, pairs_of_people, people
from tests.test_label_queue import row

CELLS = st.tuples(*[st.integers(0, 60)] * 4)


def test_rare_positives_show_why_no_single_number_will_do():
    # 2 both yes, 10 disagreements, 1,012 both no: raw agreement flatters, kappa and AC1 mislead in opposite directions.
    found = agreement(2, 5, 5, 1012)
    assert found.raw.value == pytest.approx(0.990, abs=5e-4)
    assert found.kappa.value == pytest.approx(0.28, abs=5e-3)
    assert found.ac1.value == pytest.approx(0.99, abs=5e-3)
    assert found.positive.value == pytest.approx(4 / 14)
    assert found.negative.value == pytest.approx(2024 / 2034)


@given(CELLS)
def test_values_equal_those_computed_from_the_answers_themselves(cells):
    first = np.repeat([1, 1, 0, 0], cells)
    second = np.repeat([1, 0, 1, 0], cells)
    found = agreement(*cells)
    if sum(cells) == 0:
        assert found.raw.value is found.kappa.value is found.ac1.value is None
        return
    assert found.raw.value == pytest.approx((first == second).mean())
    if cells[0] + cells[1] + cells[2]:
        assert found.positive.value == pytest.approx(f1_score(first, second, zero_division=0))
    if len({*first, *second}) == 2 and found.kappa.value is not None:
        assert found.kappa.value == pytest.approx(cohen_kappa_score(first, second))
    q = (first.mean() + second.mean()) / 2
    expected = 2 * q * (1 - q)
    assert found.ac1.value == pytest.approx(((first == second).mean() - expected) / (1 - expected))


@given(CELLS)
def test_every_interval_holds_its_value_and_swapping_people_changes_nothing(cells):
    found, swapped = agreement(*cells), agreement(cells[0], cells[2], cells[1], cells[3])
    for name in ("raw", "positive", "negative", "kappa", "ac1"):
        share = getattr(found, name)
        assert (share.value is None) == (share.low is None)
        if share.value is not None:
            assert share.low <= share.value <= share.high
            assert getattr(swapped, name).value == pytest.approx(share.value)


def test_the_interval_of_raw_agreement_is_clopper_and_pearsons():
    found = agreement(3, 1, 1, 15).raw
    assert found.low == pytest.approx(beta.ppf(0.025, 18, 3))
    assert found.high == pytest.approx(beta.ppf(0.975, 19, 2))


def test_full_agreement_on_few_images_is_not_certain():
    found = agreement(3, 0, 0, 3)
    assert found.kappa.value == found.ac1.value == found.positive.value == 1
    assert found.kappa.low < 0.9 and found.ac1.low < 0.9 and found.positive.low < 0.7


def test_kappa_says_nothing_where_nobody_ever_differs_nor_could():
    assert agreement(0, 0, 0, 50).kappa.value is None
    assert agreement(0, 0, 0, 50).ac1.value == 1


def test_the_interval_of_kappa_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true = np.array([0.15, 0.05, 0.05, 0.75])
    kappa, ac1 = cohens_kappa(true), gwets_ac1(true)
    held = []
    for _ in range(300):
        found = agreement(*rng.multinomial(200, true).tolist(), rng=rng)
        held.append((found.kappa.low <= kappa <= found.kappa.high, found.ac1.low <= ac1 <= found.ac1.high))
    assert (np.mean(held, axis=0) >= 0.91).all()


def test_counts_below_zero_are_refused():
    with pytest.raises(ValueError, match="counts cannot be negative"):
        agreement(1, -1, 0, 0)


def test_pairs_count_the_latest_answers_of_people_and_leave_tables_and_honeypots_out():
    rows = [
        row(1, "a", "no", "ada"),
        row(2, "a", "yes", "ada"),
        row(3, "a", "yes", "bob"),
        row(4, "b", "yes", "ada"),
        row(5, "b", "no", "bob"),
        row(6, "c", "unsure", "bob", mode="test"),
        row(7, "c", "no", "ada", mode="test"),
        row(8, "d", "no", "ada", kind="honeypot"),
        row(9, "d", "no", "bob", kind="honeypot"),
        row(10, "e", "no", "table", mode="table"),
        row(11, "e", "no", "ada"),
        row(12, "f", "unsure", "ada"),
        row(13, "f", "no", "bob"),
    ]
    assert pairs_of_people(rows) == {("ada", "bob"): (1, 1, 1, 0)}
    assert overall(pairs_of_people(rows).values()).raw.value == pytest.approx(1 / 3)
    assert overall([]).raw.value is overall([]).kappa.value is None


def test_each_person_is_told_by_pace_haste_and_planted_positives():
    rows = [
        row(1, "a", "no", "ada", seconds=1.0, early=1),
        row(2, "h1", "yes", "ada", kind="honeypot", seconds=3.0),
        row(3, "h2", "no", "ada", kind="honeypot", seconds=2.0),
        row(4, "h3", "unsure", "ada", kind="honeypot"),
        row(5, "h4", "skip", "ada", kind="honeypot"),
        row(6, "t", "no", "ada", kind="training"),
    ]
    (ada,) = people(rows, {("b", f"h{i}"): 1 for i in range(1, 5)})
    assert (ada.answers, ada.median_seconds, ada.early, ada.unsure, ada.skipped) == (5, 2.0, 1, 1, 1)
    assert ada.sensitivity.value == pytest.approx(2 / 3)
    assert ada.sensitivity.low == pytest.approx(beta.ppf(0.025, 2, 2))
