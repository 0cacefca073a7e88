"""How far people agree, in numbers that survive rarity.

Where positives are rare, raw agreement is high whatever happens, Cohen's kappa falls although nearly all answers agree, and
Gwet's AC1 rises although people agree on no positive at all. So all are told, with positive and negative agreement (the share
of one person's positives that another confirms): with 2 images both call positive, 10 they differ on and 1,012 both call
negative, raw agreement is 99.0 %, kappa 0.28, AC1 0.99 and positive agreement 0.29.

Formulas: Cohen (1960); Gwet (2008), "Computing inter-rater reliability and its variance in the presence of high agreement";
Cicchetti and Feinstein (1990) for positive and negative agreement.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from filters.bounds import exact_interval
from filters.label_opinions import answer_of, counted_value, current_by_person, standing
from filters.label_records import Row

DRAWS = 4_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A number with its interval; None where nothing can be said."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Of two people, or of all pairs together, on the images both answered."""

    both_yes: int
    first_only: int
    """Positives of the first person alone."""
    second_only: int
    both_no: int
    raw: Share
    """Share of images with equal answers; exact interval."""
    positive: Share
    """2 both_yes / (positives of one + positives of the other): exact interval, given who was called positive by anybody."""
    negative: Share
    kappa: Share
    """Cohen's; interval from Dirichlet(cells + 1/2) draws, which does not shrink to a point when a cell is empty."""
    ac1: Share
    """Gwet's; interval as of kappa."""


def agreement(
    both_yes: int, first_only: int, second_only: int, both_no: int, *, confidence: float = 0.95, rng: np.random.Generator | None = None
) -> Agreement:
    """Of the four cells of two people's answers.

    Args:
        rng: of the intervals of kappa and AC1; None: always the same draws.
    """
    cells = np.array([both_yes, first_only, second_only, both_no])
    if (cells < 0).any():
        raise ValueError(f"counts cannot be negative, got {cells.tolist()}")
    rng = np.random.default_rng(0) if rng is None else rng
    draws = rng.dirichlet(cells + 0.5, size=DRAWS).T
    differing = first_only + second_only
    return Agreement(
        both_yes=both_yes,
        first_only=first_only,
        second_only=second_only,
        both_no=both_no,
        raw=_exact(both_yes + both_no, int(cells.sum()), confidence),
        positive=_doubled(_exact(both_yes, both_yes + differing, confidence)),
        negative=_doubled(_exact(both_no, both_no + differing, confidence)),
        kappa=_drawn(cohens_kappa(cells) if cells.any() else np.nan, cohens_kappa(draws), confidence),
        ac1=_drawn(gwets_ac1(cells) if cells.any() else np.nan, gwets_ac1(draws), confidence),
    )


def cohens_kappa(cells: np.ndarray) -> np.ndarray:
    """(4, ...) counts or shares (both yes, first only, second only, both no) -> (...); NaN where both always say the same one thing."""
    yes, first, second, no = cells / np.maximum(cells.sum(axis=0), 1e-300)
    observed = yes + no
    expected = (yes + first) * (yes + second) + (no + first) * (no + second)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def gwets_ac1(cells: np.ndarray) -> np.ndarray:
    """(4, ...) counts or shares -> (...). Chance agreement is 2 q (1 - q), q the mean share of positives."""
    yes, first, second, no = cells / np.maximum(cells.sum(axis=0), 1e-300)
    share = yes + (first + second) / 2
    expected = 2 * share * (1 - share)
    return (yes + no - expected) / (1 - expected)


def _exact(count: int, n: int, confidence: float) -> Share:
    if n == 0:
        return Share(value=None, low=None, high=None)
    low, high = exact_interval(count, n, confidence)
    return Share(value=count / n, low=low, high=high)


def _doubled(jaccard: Share) -> Share:
    """Positive agreement is 2 J / (1 + J) of the share J of agreed ones among all called so: rising, so limits go with it."""
    if jaccard.value is None or jaccard.low is None or jaccard.high is None:
        return jaccard
    value, low, high = (2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
    return Share(value=value, low=low, high=high)


def _drawn(value: np.ndarray | float, draws: np.ndarray, confidence: float) -> Share:
    if not np.isfinite(value):
        return Share(value=None, low=None, high=None)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Share(value=float(value), low=min(float(low), float(value)), high=max(float(high), float(value)))


def pairs_of_people(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """Pair of people -> the four cells of the images both answered, each by their own latest answer; honeypots left out.

    Unsure counts as in the labels: a positive in a blind mode, no answer elsewhere.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for answers in current_by_person(rows).values():
        values = {person: value for person, row in answers.items() if (value := counted_value(row)) is not None}
        for first, second in itertools.combinations(sorted(values), 2):
            cells = found.setdefault((first, second), [0, 0, 0, 0])
            cells[3 - 2 * values[first] - values[second]] += 1
    return {pair: (cells[0], cells[1], cells[2], cells[3]) for pair, cells in sorted(found.items())}


def overall(pairs: Iterable[Sequence[int]], *, confidence: float = 0.95) -> Agreement:
    """All pairs of people together. With more than two answers an image its pairs are not independent, and the intervals too narrow."""
    total = np.sum([[0, 0, 0, 0], *pairs], axis=0)
    return agreement(*(int(count) for count in total), confidence=confidence)


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonReport:
    """How one person labels. There is no ranking: speed alone rewards those who miss rare things."""

    person: str
    answers: int
    median_seconds: float | None
    early: int
    """Answers before which a key was pressed sooner than the minimum dwell."""
    unsure: int
    skipped: int
    sensitivity: Share
    """Share of honeypots that must be dropped and were not called harmless; exact interval."""


def people(rows: Sequence[Row], expected: Mapping[tuple[str, str], int], *, confidence: float = 0.95) -> list[PersonReport]:
    """Of everybody who answered, sorted by name.

    Args:
        expected: (batch, uid) -> the known answer of honeypots.
    """
    by_person: dict[str, list[Row]] = {}
    for row in standing(rows):
        by_person.setdefault(row.person, []).append(row)
    return [_person(person, own, expected, confidence) for person, own in sorted(by_person.items())]


def _person(person: str, rows: Sequence[Row], expected: Mapping[tuple[str, str], int], confidence: float) -> PersonReport:
    said = [answer_of(row) for row in rows]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    planted = {row.uid: answer_of(row) for row in rows if row.kind == "honeypot" and expected.get((row.batch, row.uid)) == 1}
    judged = [answer for answer in planted.values() if answer != "skip"]
    return PersonReport(
        person=person,
        answers=sum(answer != "skip" for answer in said),
        median_seconds=float(np.median(seconds)) if seconds else None,
        early=sum(bool(row.early) for row in rows),
        unsure=said.count("unsure"),
        skipped=said.count("skip"),
        sensitivity=_exact(sum(answer != "no" for answer in judged), len(judged), confidence),
    )
