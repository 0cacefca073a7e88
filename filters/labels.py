"""The label store: it only grows. A changed mind is a new row; what counts is settled when it is read (filters/label_opinions.py).

A batch of answers goes in with all of them in one transaction: a killed run leaves all of it or nothing. Batches that people work
through on the page are in filters/label_queue.py; files in and out in filters/label_files.py.
"""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filters.label_database import LabelDatabase, now
from filters.label_opinions import Conflict, conflicts, counted_value, settle, standing
from filters.label_records import MODES, ORIGINS, Batch, Label, Mode, Origin, Row, policy_version
from filters.label_schema import MIGRATIONS, tables
from winnow.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

__all__ = ["MIGRATIONS", "ORIGINS", "Label", "LabelStore", "Origin", "check_origin", "policy_version"]


class LabelStore:
    """Labels in a database: `with LabelStore.open(path) as store`. Threads and processes may write to one at the same time."""

    def __init__(self, database: LabelDatabase) -> None:
        self.database = database

    @classmethod
    @contextlib.contextmanager
    def open(cls, target: str | Path) -> Iterator["LabelStore"]:
        """The store in a SQLite file or behind a postgresql:// url, made or brought up to date.

        Raises:
            ConfigError: it cannot be opened, is no label store, or was written by a newer version.
        """
        with LabelDatabase.open(target) as database:
            yield cls(database)

    @property
    def path(self) -> str:
        """Of the SQLite file, or the url."""
        return self.database.where

    def add_batch(
        self,
        filter_name: str,
        batch: str,
        origin: Origin,
        answers: Mapping[str, int | None],
        *,
        person: str,
        policy: str,
        wanted: int | None = None,
        mode: Mode = "table",
    ) -> None:
        """Adds a batch with all its answers, or nothing.

        Args:
            answers: uid -> 1 (drop), 0 (keep) or None (no answer).
            wanted: how many images were asked for, if fewer could be found.
            mode: "adjudicate" overrules every answer there is.

        Raises:
            ConfigError: the batch is there already, or an origin, mode or answer is none we know.
        """
        check_origin(origin)
        if mode not in MODES:
            raise ConfigError(f"unknown mode {mode!r} of labels; there are {', '.join(MODES)}")
        for uid, value in answers.items():
            if value not in (0, 1, None):
                raise ConfigError(f"label of {uid} for {filter_name} must be 1 (drop), 0 (keep) or empty (no answer), got {value!r}")
        from sqlalchemy import exc, insert

        head: dict[str, Any] = {"filter": filter_name, "batch": batch, "origin": origin, "created_at": now(), "mode": mode}
        head |= {"wanted": len(answers) if wanted is None else wanted, "overlap": 1, "question": "", "details": "{}"}
        try:
            with self.database.writing() as connection:
                connection.execute(insert(tables().batches).values(head))
                self._insert(connection, filter_name, batch, origin, answers, person, policy_version(policy), mode)
        except exc.IntegrityError as problem:
            raise ConfigError(f"batch {batch} of {filter_name} is in {self.path} already; give the new one another name") from problem

    def add_answers(self, filter_name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows of `labels` as they are, and the batches they name, in one transaction. For whoever has checked them.

        Raises:
            ConfigError: one of the batches is there already.
        """
        from sqlalchemy import exc, insert

        heads: dict[str, dict[str, Any]] = {}
        for row in rows:
            head = heads.setdefault(row["batch"], {"filter": filter_name, "wanted": 0, "overlap": 1, "question": "", "details": "{}"})
            head |= {name: row[name] for name in ("batch", "origin", "mode")} | {"created_at": now(), "wanted": head["wanted"] + 1}
        try:
            with self.database.writing() as connection:
                connection.execute(insert(tables().batches), list(heads.values()))
                connection.execute(insert(tables().labels), [{"filter": filter_name, **row} for row in rows])
        except exc.IntegrityError as problem:
            raise ConfigError(f"batch {', '.join(heads)} of {filter_name} is in {self.path} already") from problem

    def add_label(
        self, filter_name: str, uid: str, value: int | None, origin: Origin, *, batch: str, person: str, policy: str, mode: Mode = "table"
    ) -> None:
        """One more answer: a first one, or a second thought."""
        with self.database.writing() as connection:
            self._insert(connection, filter_name, batch, origin, {uid: value}, person, policy_version(policy), mode)

    def has_batch(self, filter_name: str, batch: str) -> bool:
        return batch in self.batches(filter_name)

    def batches(self, filter_name: str) -> dict[str, tuple[Origin, int]]:
        """Batch -> how it was drawn, and how many images were wanted."""
        return {batch.name: (batch.origin, batch.wanted) for batch in self.all_batches(filter_name)}

    def all_batches(self, filter_name: str) -> list[Batch]:
        """Every batch of a filter, sorted by name, with what is known of its drawing."""
        from sqlalchemy import select

        table = tables().batches
        with self.database.reading() as connection:
            found = connection.execute(select(table).where(table.c.filter == filter_name).order_by(table.c.batch)).mappings().all()
        return [as_batch(row) for row in found]

    def labels(self, filter_name: str) -> list[Label]:
        """What is thought now of every image with an answer, sorted by uid; images reported as illegal are left out."""
        blocked = self.blocked()
        return [label for label in settle(self.rows(filter_name)) if label.uid not in blocked]

    def conflicts(self, filter_name: str) -> list[Conflict]:
        """Images that people answered differently and nobody has settled, sorted by uid."""
        blocked = self.blocked()
        return [conflict for conflict in conflicts(self.rows(filter_name)) if conflict.uid not in blocked]

    def asked(self, filter_name: str) -> dict[str, frozenset[Origin]]:
        """Every image that was ever asked about -> how it was drawn, answered or not."""
        found: dict[str, set[Origin]] = {}
        for row in self.rows(filter_name):
            if row.kind == "item":
                found.setdefault(row.uid, set()).add(row.origin)
        return {uid: frozenset(origins) for uid, origins in found.items()}

    def drawn(self, filter_name: str) -> dict[str, frozenset[Origin]]:
        """As `asked`, with the images that wait in a batch to be asked: nothing of this needs to be drawn again."""
        from sqlalchemy import select

        items = tables().items
        found = {uid: set(origins) for uid, origins in self.asked(filter_name).items()}
        with self.database.reading() as connection:
            waiting = connection.execute(
                select(items.c.uid, items.c.origin).where(items.c.filter == filter_name, items.c.kind == "item")
            ).all()
        for uid, origin in waiting:
            found.setdefault(uid, set()).add(origin)
        return {uid: frozenset(origins) for uid, origins in found.items()}

    def policy_versions(self, filter_name: str) -> dict[str, int]:
        """Policy version -> images whose latest answer was given under it and is a label."""
        latest = {row.uid: row for row in standing(self.rows(filter_name)) if row.kind == "item"}
        counts = Counter(row.policy_version for row in latest.values() if counted_value(row) is not None)
        return dict(sorted(counts.items()))

    def rows(self, filter_name: str, *, batch: str | None = None) -> list[Row]:
        """Everything that was ever answered about a filter's images (of one batch), in the order it came in."""
        from sqlalchemy import select

        table = tables().labels
        query = select(table).where(table.c.filter == filter_name).order_by(table.c.id)
        if batch is not None:
            query = query.where(table.c.batch == batch)
        with self.database.reading() as connection:
            return [as_row(found) for found in connection.execute(query).mappings()]

    def blocked(self) -> frozenset[str]:
        """uids reported as illegal, under whatever filter: never to be shown or exported."""
        from sqlalchemy import select

        with self.database.reading() as connection:
            return frozenset(connection.execute(select(tables().blocked.c.uid)).scalars())

    def _insert(
        self,
        connection: "Connection",
        filter_name: str,
        batch: str,
        origin: Origin,
        answers: Mapping[str, int | None],
        person: str,
        version: str,
        mode: Mode,
    ) -> None:
        from sqlalchemy import insert

        if not answers:
            return
        given = {"filter": filter_name, "batch": batch, "origin": origin, "person": person, "policy_version": version}
        given |= {"created_at": now(), "mode": mode, "kind": "item"}
        connection.execute(insert(tables().labels), [{"uid": uid, "value": value, **given} for uid, value in answers.items()])


def check_origin(origin: str) -> None:
    """Raises ConfigError for an origin that is none we know."""
    if origin not in ORIGINS:
        raise ConfigError(f"unknown origin {origin!r} of labels; there are {', '.join(ORIGINS)}")


def as_batch(row: Mapping[Any, Any]) -> Batch:
    """A row of `batches` as a record."""
    own = {name: row[name] for name in ("mode", "origin", "wanted", "created_at", "overlap", "seed", "question")}
    return Batch(filter_name=row["filter"], name=row["batch"], details=json.loads(row["details"]), **own)


def as_row(row: Mapping[Any, Any]) -> Row:
    """A row of `labels` as a record."""
    own: dict[str, Any] = {field.name: row[field.name] for field in dataclasses.fields(Row)}
    for flag in ("zoomed", "flagged"):
        own[flag] = None if own[flag] is None else bool(own[flag])
    return Row(**own)
