"""Working through a batch: who is looking at what, what was decided.

An item is leased to one person in one browser tab for some minutes. It is not given to anybody else meanwhile unless the batch
wants several people's answers (`overlap`), and comes back when the lease ends without a decision. A decision carries an
idempotency key: however often it is sent, it is there once; and it is there when `decide` has returned, not before.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filters.label_batches import as_item, of, same
from filters.label_database import now
from filters.label_records import BLURS, VALUES, Batch, BatchItem, Decision
from filters.label_schema import tables
from filters.labels import LabelStore

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.engine import Connection

LEASE_SECONDS = 600.0


def claim(
    store: LabelStore,
    batch: Batch,
    person: str,
    tab: str,
    *,
    want: int,
    lease_seconds: float = LEASE_SECONDS,
    again: bool = False,
    at: float | None = None,
) -> list[BatchItem]:
    """The next items for a person: those the tab holds and has not decided, and new ones, up to `want`. All are leased anew.

    Args:
        again: ask once more what this person skipped.
        at: the time, in seconds since 1970; None: now.
    """
    import sqlalchemy as sa

    at = time.time() if at is None else at
    items, leases, blocked = tables().items, tables().leases, tables().blocked
    lease = leases.alias("held")
    held = sa.exists().where(*same(lease, items), lease.c.person == person, lease.c.tab != tab, lease.c.until > at)
    others_leases = sa.select(sa.func.count()).where(*same(lease, items), lease.c.person != person, lease.c.until > at).scalar_subquery()
    query = (
        sa.select(items)
        .where(*of(items, batch), ~sa.exists().where(blocked.c.uid == items.c.uid), ~held)
        .where(*_still_open(items, person, again=again))
        .where(_others_answers(items, person) + others_leases < batch.overlap)
        .order_by(items.c.position)
        .limit(want)
    )
    with store.database.writing() as connection:
        found = [as_item(row) for row in connection.execute(query).mappings()]
        _lease(connection, batch, found, person, tab, until=at + lease_seconds)
    return found


def _still_open(items: "sa.Table", person: str, *, again: bool) -> list[Any]:
    """Conditions: the person has not answered the item; or, for `again`, has skipped it and nothing else."""
    import sqlalchemy as sa

    answered = tables().labels.alias("answered")
    mine = [*same(answered, items), *_stands(answered), answered.c.person == person]
    if again:
        return [sa.exists().where(*mine), ~sa.exists().where(*mine, answered.c.answer != "skip")]
    return [~sa.exists().where(*mine)]


def _others_answers(items: "sa.Table", person: str) -> Any:
    """How many other people have answered an item; a skip is no answer."""
    import sqlalchemy as sa

    answered = tables().labels.alias("theirs")
    return (
        sa.select(sa.func.count(sa.distinct(answered.c.person)))
        .where(*same(answered, items), *_stands(answered), answered.c.person != person, answered.c.answer != "skip")
        .scalar_subquery()
    )


def _stands(answered: Any) -> list[Any]:
    """Conditions: the row is an answer that its person has not taken back."""
    import sqlalchemy as sa

    undo = tables().labels.alias("undo")
    taken_back = sa.exists().where(undo.c.undoes == answered.c.idempotency_key, undo.c.person == answered.c.person)
    return [answered.c.answer != "undo", ~taken_back]


def _lease(connection: "Connection", batch: Batch, found: Sequence[BatchItem], person: str, tab: str, *, until: float) -> None:
    from sqlalchemy import delete, insert

    leases = tables().leases
    if found:
        own = {"filter": batch.filter_name, "batch": batch.name, "person": person}
        uids = [item.uid for item in found]
        connection.execute(delete(leases).where(*of(leases, batch), leases.c.person == person, leases.c.uid.in_(uids)))
        connection.execute(insert(leases), [{"uid": uid, "tab": tab, "until": until, **own} for uid in uids])


def release(store: LabelStore, batch: Batch, person: str, *, tab: str | None = None) -> None:
    """Gives back what a person (in one tab) holds and has not decided."""
    from sqlalchemy import delete

    leases = tables().leases
    conditions = [*of(leases, batch), leases.c.person == person] + ([] if tab is None else [leases.c.tab == tab])
    with store.database.writing() as connection:
        connection.execute(delete(leases).where(*conditions))


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What became of decisions that were sent."""

    saved: tuple[str, ...]
    """Keys that are in the store now, some perhaps before."""
    refused: Mapping[str, str]
    """Key -> why it can never be saved."""


def decide(
    store: LabelStore,
    batch: Batch,
    decisions: Sequence[Decision],
    person: str,
    *,
    version: str,
    image_digest: Callable[[BatchItem], str | None],
) -> Saved:
    """Writes decisions down in their order, each once. When this returns they are on disk.

    Args:
        version: of the policy the person was shown (`policy_version`).
        image_digest: sha256 of the image's bytes as they are stored; None if it cannot be read.
    """
    import sqlalchemy as sa

    items = tables().items
    names = {decision.item for decision in decisions}
    with store.database.reading() as connection:
        found = connection.execute(sa.select(items).where(*of(items, batch), items.c.item.in_(names))).mappings()
        known = {row["item"]: as_item(row) for row in found}
    refused = {decision.key: why for decision in decisions if (why := _why_not(batch, decision, known))}
    rows = []
    for decision in decisions:
        if decision.key not in refused:
            item = known[decision.item]
            rows.append(_decision_row(batch, item, decision, person, version, image_digest(item)))
    with store.database.writing() as connection:
        for row in rows:
            connection.execute(_insert_once(store, tables().labels, row, "idempotency_key"))
            if row["answer"] == "report":
                _block(connection, store, batch, known, row, person)
        _end_leases(connection, batch, [row["uid"] for row in rows if row["answer"] != "undo"], person)
    return Saved(saved=tuple(row["idempotency_key"] for row in rows), refused=refused)


def _why_not(batch: Batch, decision: Decision, known: Mapping[str, BatchItem]) -> str:
    allowed = {"a", "b", "tie"} if batch.mode == "compare" else {"yes", "no", "unsure"}
    if decision.item not in known:
        return f"batch {batch.name} has no item {decision.item!r}"
    if decision.answer not in allowed | {"skip", "report", "undo"}:
        return f"{decision.answer!r} is no answer in mode {batch.mode}"
    if (decision.answer == "undo") != (decision.undoes is not None):
        return "an undo names the decision it takes back, and nothing else does"
    if decision.blur not in BLURS or not decision.key or not decision.seconds >= 0:
        return "its key, blur or seconds cannot be"
    return ""


def _decision_row(batch: Batch, item: BatchItem, decision: Decision, person: str, version: str, image_digest: str | None) -> dict[str, Any]:
    return {
        "filter": batch.filter_name,
        "uid": item.uid,
        "value": VALUES.get(decision.answer),
        "origin": item.origin,
        "batch": batch.name,
        "person": person,
        "policy_version": version,
        "created_at": now(),
        "answer": decision.answer,
        "mode": batch.mode,
        "kind": item.kind,
        "seconds": round(decision.seconds, 3),
        "blur": decision.blur,
        "zoomed": int(decision.zoomed),
        "flagged": int(decision.flagged),
        "early": decision.early,
        "item_digest": image_digest,
        "idempotency_key": decision.key,
        "undoes": decision.undoes,
        "decided_at": decision.decided_at,
    }


def _insert_once(store: LabelStore, table: "sa.Table", row: Mapping[str, Any], unique: str) -> Any:
    if store.database.dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as insert_postgres

        return insert_postgres(table).values(**row).on_conflict_do_nothing(index_elements=[unique])
    from sqlalchemy.dialects.sqlite import insert

    return insert(table).values(**row).on_conflict_do_nothing(index_elements=[unique])


def _block(
    connection: "Connection", store: LabelStore, batch: Batch, known: Mapping[str, BatchItem], row: Mapping[str, Any], person: str
) -> None:
    item = next(item for item in known.values() if item.uid == row["uid"])
    for uid in {item.uid, *(reference.removeprefix("uid:") for reference in item.pictures.values())}:
        entry = {"uid": uid, "filter": batch.filter_name, "batch": batch.name, "person": person, "created_at": now()}
        connection.execute(_insert_once(store, tables().blocked, entry, "uid"))


def _end_leases(connection: "Connection", batch: Batch, uids: Sequence[str], person: str) -> None:
    from sqlalchemy import delete

    leases = tables().leases
    connection.execute(delete(leases).where(*of(leases, batch), leases.c.person == person, leases.c.uid.in_(uids)))
