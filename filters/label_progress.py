"""How far a batch is, as one person sees it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from filters.label_batches import batch_items, of
from filters.label_opinions import answer_of, standing
from filters.label_records import Batch
from filters.label_schema import tables
from filters.labels import LabelStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a batch is, as one person sees it."""

    total: int
    """Items, without those reported as illegal."""
    complete: int
    """Items that `overlap` people have answered."""
    mine: int
    """Items this person has answered."""
    skipped: int
    """Items this person has skipped and not answered since."""
    held: int
    """Items that others, or other tabs, are looking at now."""
    held_until: float | None
    """When the first of them comes back, in seconds since 1970."""
    positives: int
    """Of `mine`: yes. Not told in a blind mode."""
    last_keys: tuple[str, ...]
    """Of this person's last 100 rows: what is counted here, for a page that has decisions on their way."""
    curve: tuple[tuple[int, int], ...]
    """(answers so far, positives so far) of the whole batch, at most 60 points."""


def progress(store: LabelStore, batch: Batch, person: str, *, tab: str = "", at: float | None = None) -> Progress:
    """What a labeller is told about a batch."""
    import sqlalchemy as sa

    at = time.time() if at is None else at
    items, leases, labels, blocked = tables().items, tables().leases, tables().labels, tables().blocked
    with store.database.reading() as connection:
        total = connection.execute(
            sa.select(sa.func.count()).where(*of(items, batch), ~sa.exists().where(blocked.c.uid == items.c.uid))
        ).scalar_one()
        # Of tens of thousands of answers only what is counted, as the database gives it: a Row of each would take seconds.
        counted = (labels.c[name] for name in ("uid", "person", "answer", "value", "undoes", "idempotency_key"))
        query = sa.select(*counted).where(labels.c.filter == batch.filter_name, labels.c.batch == batch.name).order_by(labels.c.id)
        rows: list[Any] = list(connection.execute(query).all())
        theirs = sa.or_(leases.c.person != person, leases.c.tab != tab)
        held = connection.execute(sa.select(leases.c.until).where(*of(leases, batch), theirs, leases.c.until > at)).scalars().all()
    latest: dict[tuple[str, str], str] = {}
    for row in standing(rows):
        latest[row.uid, row.person] = answer_of(row)
    mine = [answer for (_, who), answer in latest.items() if who == person]
    people: dict[str, int] = {}
    for (uid, _), answer in latest.items():
        people[uid] = people.get(uid, 0) + (answer != "skip")
    return Progress(
        total=total,
        complete=sum(count >= batch.overlap for count in people.values()),
        mine=sum(answer != "skip" for answer in mine),
        skipped=sum(answer == "skip" for answer in mine),
        held=len(held),
        held_until=min(held, default=None),
        positives=sum(answer == "yes" for answer in mine),
        last_keys=tuple(row.idempotency_key for row in rows if row.person == person and row.idempotency_key)[-100:],
        curve=_curve([answer for answer in latest.values() if answer != "skip"]),
    )


def _curve(answers: Sequence[str], points: int = 60) -> tuple[tuple[int, int], ...]:
    step, positives, found = max(1, -(-len(answers) // points)), 0, []
    for count, answer in enumerate(answers, 1):
        positives += answer == "yes"
        if count % step == 0 or count == len(answers):
            found.append((count, positives))
    return tuple(found)


def recent(store: LabelStore, batch: Batch, person: str, count: int = 10) -> list[tuple[str, str, str]]:
    """A person's last standing decisions in a batch, oldest first: (key, item, answer)."""
    names = {item.uid: item.item for item in batch_items(store, batch)}
    own = [row for row in standing(store.rows(batch.filter_name, batch=batch.name)) if row.person == person and row.idempotency_key]
    return [(row.idempotency_key or "", names[row.uid], answer_of(row)) for row in own[-count:]]


def decision_times(store: LabelStore, person: str, *, count: int) -> list[float]:
    """When a person decided their last `count` times on any page, as the store's clock has it: seconds since 1970, ascending."""
    from sqlalchemy import select

    labels = tables().labels
    query = select(labels.c.created_at).where(labels.c.person == person, labels.c.mode != "table", labels.c.answer != "undo")
    with store.database.reading() as connection:
        found = connection.execute(query.order_by(labels.c.id.desc()).limit(count)).scalars().all()
    return [datetime.fromisoformat(at).timestamp() for at in reversed(found)]
