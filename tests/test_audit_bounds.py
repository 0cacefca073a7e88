import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.audit_bounds import leak_bound
from winnow.errors import ConfigError


@pytest.mark.parametrize(
    ("seen", "planted", "percent", "sensitivity"),
    [(0, 0, 0.292, 1.0), (50, 50, 0.387, 0.929), (100, 100, 0.373, 0.964), (48, 50, 0.417, 0.863), (45, 50, 0.460, 0.782)],
)
def test_nothing_found_in_1024_bounds_the_leak_by_what_the_inspectors_can_see(seen, planted, percent, sensitivity):
    found = leak_bound(0, 1024, honeypots_found=seen, honeypots=planted)
    assert round(100 * found.at_most, 3) == percent
    assert round(found.sensitivity_at_least, 3) == sensitivity


def test_nothing_found_with_every_honeypot_seen_has_a_closed_form():
    finds, seen = 1 - 0.025 ** (1 / 1024), 0.025 ** (1 / 50)
    assert leak_bound(0, 1024, honeypots_found=50, honeypots=50).at_most == pytest.approx(finds / seen, rel=1e-12)


def test_inspectors_who_see_no_honeypot_prove_nothing():
    found = leak_bound(0, 1024, honeypots_found=0, honeypots=50)
    assert found.at_most == 1.0 and found.estimate == 1.0


def test_an_inspection_of_nothing_proves_nothing():
    assert leak_bound(0, 0, honeypots_found=50, honeypots=50).at_most == 1.0


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="51 honeypots seen of 50"):
        leak_bound(0, 1024, honeypots_found=51, honeypots=50)


@given(st.integers(1, 2000), st.integers(0, 30), st.integers(1, 100), st.integers(0, 100))
def test_more_finds_and_fewer_honeypots_seen_never_lower_the_bound(n, found, planted, seen):
    found, seen = min(found, n), min(seen, planted)
    bound = leak_bound(found, n, honeypots_found=seen, honeypots=planted).at_most
    assert bound >= leak_bound(max(found - 1, 0), n, honeypots_found=seen, honeypots=planted).at_most
    assert bound >= leak_bound(found, n, honeypots_found=min(seen + 1, planted), honeypots=planted).at_most - 1e-12


def test_the_bound_holds_as_often_as_it_says_when_inspectors_overlook_things():
    rng = np.random.default_rng(0)
    leak, sees, runs = 0.004, 0.6, 300
    held = ignored = 0
    for _ in range(runs):
        finds, seen = rng.binomial(1024, leak * sees), rng.binomial(50, sees)
        held += leak_bound(finds, 1024, honeypots_found=seen, honeypots=50).at_most >= leak
        ignored += leak_bound(finds, 1024).at_most >= leak
    assert held / runs >= 0.95
    assert ignored / runs < 0.95  # what taking the inspectors for perfect would cost
