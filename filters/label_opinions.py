"""From rows that only accumulate to what is thought now: undone answers left out, people told apart, conflicts found.

Whose word counts, strongest first: an adjudication; people on the page, one image at a time; tables and programs (the latest
row); a grid. Within the page everybody has one answer, the latest. If people differ the image counts as a positive until
somebody adjudicates: a positive too many costs a clean image, a positive too few costs the promise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from filters.label_records import BLIND, VALUES, Answer, Label, Origin, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """An image that people answered differently, and that nobody has settled."""

    uid: str
    answers: tuple[tuple[str, Answer], ...]
    """(person, answer), first answers first."""


def standing(rows: Iterable[Row]) -> list[Row]:
    """The rows that nobody took back, in their order. An undo takes back one row, of the same person."""
    rows = list(rows)
    undone = {(row.undoes, row.person) for row in rows if row.answer == "undo"}
    return [row for row in rows if row.answer != "undo" and (row.idempotency_key, row.person) not in undone]


def answer_of(row: Row) -> Answer:
    """What a row says; rows older than the page say it by their value."""
    if row.answer is not None:
        return row.answer
    return "skip" if row.value is None else "yes" if row.value else "no"


def counted_value(row: Row) -> int | None:
    """1 (drop), 0 (keep) or None: no label. Unsure is a positive where something is to be proved, and no label elsewhere."""
    answer = answer_of(row)
    if answer == "unsure":
        return 1 if row.mode in BLIND else None
    return VALUES.get(answer)


def current_by_person(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """uid -> person -> their latest standing answer on the page, one image at a time; honeypots and adjudications left out."""
    found: dict[str, dict[str, Row]] = {}
    for row in standing(rows):
        if row.kind == "item" and row.mode not in ("table", "triage", "adjudicate"):
            answers = found.setdefault(row.uid, {})
            answers.pop(row.person, None)
            answers[row.person] = row
    return found


def settle(rows: Sequence[Row]) -> list[Label]:
    """What is thought now of every image with an answer, sorted by uid.

    Args:
        rows: all rows of one filter, by id.
    """
    judged: dict[str, list[Row]] = {}
    for row in standing(rows):
        if row.kind == "item":
            judged.setdefault(row.uid, []).append(row)
    drawn = _first_draws(row for row in rows if row.kind == "item")
    grid_draws = _first_draws(row for row in rows if row.kind == "item" and row.mode == "triage")
    labels = []
    for uid, own in sorted(judged.items()):
        opinion = _opinion(own)
        if opinion is not None:
            value, unsure, conflict, from_grid = opinion
            origin, batch = (grid_draws if from_grid else drawn)[uid]
            labels.append(Label(uid=uid, value=value, origin=origin, batch=batch, unsure=unsure, conflict=conflict))
    return labels


def conflicts(rows: Sequence[Row]) -> list[Conflict]:
    """Images that people answered differently on the page and nobody has adjudicated since, sorted by uid."""
    settled = {row.uid for row in standing(rows) if row.mode == "adjudicate" and counted_value(row) is not None}
    found = []
    for uid, answers in sorted(current_by_person(rows).items()):
        said = {person: answer_of(row) for person, row in answers.items() if answer_of(row) in ("yes", "no", "unsure")}
        if uid not in settled and len(set(said.values())) > 1:
            found.append(Conflict(uid=uid, answers=tuple(said.items())))
    return found


def _opinion(rows: Sequence[Row]) -> tuple[int, bool, bool, bool] | None:
    """(value, unsure, conflict, known from a grid alone) of one image; None if nobody gave an answer that counts."""
    layers: dict[str, list[Row]] = {"adjudicate": [], "page": [], "table": [], "triage": []}
    for row in rows:
        layers[row.mode if row.mode in layers else "page"].append(row)
    latest = {row.person: row for row in layers["page"]}
    said = [(value, answer_of(row) == "unsure") for row in latest.values() if (value := counted_value(row)) is not None]
    if (settled := _latest(layers["adjudicate"])) is not None:
        return settled, False, False, False
    if said:
        values = {value for value, _ in said}
        return max(values), 1 in values and all(unsure for value, unsure in said if value), len(values) > 1, False
    # An image that only tables know is what its last row says, and that may be: no answer.
    if layers["table"]:
        value = counted_value(layers["table"][-1])
        return None if value is None else (value, False, False, False)
    grid = _latest(layers["triage"])
    return None if grid is None else (grid, False, False, True)


def _latest(rows: Sequence[Row]) -> int | None:
    return next((value for row in reversed(rows) if (value := counted_value(row)) is not None), None)


def _first_draws(rows: Iterable[Row]) -> dict[str, tuple[Origin, str]]:
    """uid -> origin and batch of its first draw; of its first random one if there is any."""
    drawn: dict[str, tuple[Origin, str]] = {}
    for row in rows:
        if row.uid not in drawn or (row.origin == "random" and drawn[row.uid][0] != "random" and row.mode != "triage"):
            drawn[row.uid] = (row.origin, row.batch)
    return drawn
