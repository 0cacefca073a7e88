"""Batches that people work through: what is asked, how it was drawn, what was done with them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from filters.label_database import now
from filters.label_records import BLIND, KINDS, ORIGINS, PAGE_MODES, TWO_PICTURES, Batch, BatchItem, Item, Mode, Origin
from filters.label_schema import tables
from filters.labels import LabelStore, as_batch, check_origin
from winnow.digests import SHORT, digest
from winnow.errors import ConfigError

PROVING: frozenset[Origin] = frozenset({"random", "import"})
"""Origins of labels that may calibrate or test a filter."""


def create_batch(
    store: LabelStore,
    filter_name: str,
    name: str,
    items: Sequence[Item],
    *,
    mode: Mode,
    origin: Origin,
    overlap: int | None = None,
    seed: int | None = None,
    wanted: int | None = None,
    question: str = "",
    details: Mapping[str, Any] | None = None,
) -> Batch:
    """Writes down what is to be asked. Items are asked in the order given; those of a blind mode are shuffled by the seed.

    Args:
        overlap: different people who answer each item; None: 2 in a blind mode, 1 elsewhere.
        seed: of the draw and of the shuffle; a blind mode needs one.
        question: shown instead of the filter's policy (of pairs and comparisons, which need no filter of that name).
        details: how the sample was drawn, JSON-able.

    Raises:
        ConfigError: the batch is there already, is empty, or an item or setting cannot be.
    """
    overlap = overlap if overlap is not None else 2 if mode in BLIND else 1
    _check_batch(filter_name, name, items, mode, origin, overlap, seed)
    ordered = list(items)
    if mode in BLIND:
        ordered.sort(key=lambda item: digest([seed, item.uid]))
    batch = Batch(
        filter_name=filter_name,
        name=name,
        mode=mode,
        origin=origin,
        wanted=len(items) if wanted is None else wanted,
        created_at=now(),
        overlap=overlap,
        seed=seed,
        question=question,
        details=dict(details or {}),
    )
    head = {field: getattr(batch, field) for field in ("mode", "origin", "wanted", "created_at", "overlap", "seed", "question")}
    rows = [_item_row(filter_name, name, position, item) for position, item in enumerate(ordered)]
    from sqlalchemy import exc, insert

    try:
        with store.database.writing() as connection:
            connection.execute(
                insert(tables().batches).values(filter=filter_name, batch=name, details=json.dumps(batch.details, sort_keys=True), **head)
            )
            connection.execute(insert(tables().items), rows)
    except exc.IntegrityError as problem:
        raise ConfigError(f"batch {name} of {filter_name} is in {store.path} already; give the new one another name") from problem
    return batch


def _check_batch(filter_name: str, name: str, items: Sequence[Item], mode: Mode, origin: Origin, overlap: int, seed: int | None) -> None:
    where = f"batch {name!r} of {filter_name}"
    check_origin(origin)
    if mode not in PAGE_MODES:
        raise ConfigError(f"{where}: nothing is labelled on the page in mode {mode!r}; there are {', '.join(PAGE_MODES)}")
    if not name or not items:
        raise ConfigError(f"{where} needs a name and at least one item")
    if overlap < 1:
        raise ConfigError(f"{where}: overlap must be at least 1, got {overlap}")
    if mode in BLIND and seed is None:
        raise ConfigError(f"{where}: mode {mode} needs a seed, by which its items are shuffled")
    seen: set[str] = set()
    for item in items:
        if item.uid in seen:
            raise ConfigError(f"{where} has {item.uid} twice")
        seen.add(item.uid)
        if item.origin not in ORIGINS or item.kind not in KINDS:
            raise ConfigError(f"{where}: {item.uid} has origin {item.origin!r} and kind {item.kind!r}; known: {ORIGINS}, {KINDS}")
        if mode == "triage" and (item.origin in PROVING or origin in PROVING):
            raise ConfigError(
                f"{where}: answers from a grid prove nothing, so images drawn as {item.origin!r} must not be spent on one. "
                "Draw by text_search, boundary or neighbour, or use mode query."
            )
        if (item.kind == "item") != (item.expected is None):
            raise ConfigError(f"{where}: {item.uid} is a {item.kind}; honeypots and training items have a known answer, others have none")
        if mode in TWO_PICTURES and set(item.pictures) != {"left", "right"}:
            raise ConfigError(f"{where}: {item.uid} needs two pictures, left and right, got {', '.join(item.pictures) or 'none'}")


def _item_row(filter_name: str, batch: str, position: int, item: Item) -> dict[str, Any]:
    return {
        "filter": filter_name,
        "batch": batch,
        "position": position,
        "item": digest([filter_name, batch, item.uid])[:SHORT],
        "uid": item.uid,
        "origin": item.origin,
        "reason": item.reason,
        "kind": item.kind,
        "expected": item.expected,
        "pictures": json.dumps(dict(item.pictures), sort_keys=True),
    }


def find_batch(store: LabelStore, filter_name: str, name: str) -> Batch:
    """Raises ConfigError naming the batches there are, if there is none of that name."""
    from sqlalchemy import select

    table = tables().batches
    with store.database.reading() as connection:
        row = connection.execute(select(table).where(table.c.filter == filter_name, table.c.batch == name)).mappings().first()
    if row is None or row["mode"] == "table":
        known = [batch.name for batch in store.all_batches(filter_name) if batch.mode != "table"]
        raise ConfigError(f"{filter_name} has no batch {name!r} to label; there are: {', '.join(known) or 'none yet'}")
    return as_batch(row)


def batch_items(store: LabelStore, batch: Batch) -> list[BatchItem]:
    """All of a batch's items, in the order they are asked."""
    from sqlalchemy import select

    items = tables().items
    query = select(items).where(*of(items, batch)).order_by(items.c.position)
    with store.database.reading() as connection:
        return [as_item(row) for row in connection.execute(query).mappings()]


def record_event(store: LabelStore, batch: Batch, event: str, person: str, details: Mapping[str, Any] | None = None) -> None:
    """Writes down that something was done with a batch: opened, closed, used."""
    from sqlalchemy import insert

    row = {"filter": batch.filter_name, "batch": batch.name, "event": event, "person": person, "created_at": now()}
    with store.database.writing() as connection:
        connection.execute(insert(tables().events).values(details=json.dumps(dict(details or {}), sort_keys=True), **row))


def events(store: LabelStore, batch: Batch) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(event, person, when, details) of a batch, in order."""
    from sqlalchemy import select

    table = tables().events
    with store.database.reading() as connection:
        found = connection.execute(select(table).where(*of(table, batch)).order_by(table.c.id)).mappings()
        return [(row["event"], row["person"], row["created_at"], json.loads(row["details"])) for row in found]


def of(table: Any, batch: Batch) -> list[Any]:
    return [table.c.filter == batch.filter_name, table.c.batch == batch.name]


def same(table: Any, items: Any) -> list[Any]:
    return [table.c.filter == items.c.filter, table.c.batch == items.c.batch, table.c.uid == items.c.uid]


def as_item(row: Mapping[Any, Any]) -> BatchItem:
    own = {name: row[name] for name in ("item", "position", "uid", "origin", "reason", "kind", "expected")}
    return BatchItem(pictures=json.loads(row["pictures"]), **own)
