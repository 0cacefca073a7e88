"""The label store's tables: migrations, by name, for SQLite and for Postgres. An applied migration is never edited.

    batches       name of a batch of a filter, how its images were drawn, how many were wanted, in which mode it is asked
    batch_items   what a batch asks, in which order, why
    labels        who answered what about which image: 1 drop, 0 keep, NULL was asked and did not answer, or took an answer back
    blocked       images reported as illegal: never shown again
    batch_events  a batch was opened, closed, used: by whom and when
    leases        who is looking at what just now; the only table that ever forgets

A statement ends with `;;`: triggers and functions have single semicolons inside.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy as sa

GROWING = ("labels", "batches", "batch_items", "blocked", "batch_events")
"""Tables that only grow; each has triggers against UPDATE and DELETE."""


@dataclass(frozen=True, slots=True)
class Migration:
    """The same step for both databases."""

    sqlite: str
    postgresql: str

    def statements(self, dialect: str) -> list[str]:
        """Its statements for "sqlite" or "postgresql", in order."""
        script: str = getattr(self, dialect)
        return [part.strip() for part in script.split(";;") if part.strip()]


def _sqlite_guard(table: str, stay: str, kept: str) -> str:
    return f"""
        CREATE TRIGGER {stay} BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, '{table} are never changed: add a row'); END;;
        CREATE TRIGGER {kept} BEFORE DELETE ON {table} BEGIN SELECT RAISE(ABORT, '{table} are never removed: add a row'); END;;
    """


def _postgres_guard(table: str) -> str:
    return f"""
        CREATE TRIGGER {table}_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION winnow_only_grows();;
    """


_ORIGINS = "('random', 'text_search', 'boundary', 'neighbour', 'import', 'audit')"

_LABELS_AND_BATCHES = Migration(
    sqlite=f"""
        CREATE TABLE batches (
            filter TEXT NOT NULL, batch TEXT NOT NULL, origin TEXT NOT NULL, wanted INTEGER NOT NULL, created_at TEXT NOT NULL,
            PRIMARY KEY (filter, batch)
        );;
        CREATE TABLE labels (
            id INTEGER PRIMARY KEY AUTOINCREMENT, filter TEXT NOT NULL, uid TEXT NOT NULL, value INTEGER CHECK (value IN (0, 1)),
            origin TEXT NOT NULL CHECK (origin IN {_ORIGINS}),
            batch TEXT NOT NULL, person TEXT NOT NULL, policy_version TEXT NOT NULL, created_at TEXT NOT NULL
        );;
        CREATE INDEX labels_by_image ON labels (filter, uid, id);;
        {_sqlite_guard("labels", "labels_stay", "labels_are_kept")}
    """,
    postgresql=f"""
        CREATE FUNCTION winnow_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION '% are never changed nor removed: add a row', TG_TABLE_NAME; END $$;;
        CREATE TABLE batches (
            filter TEXT NOT NULL, batch TEXT NOT NULL, origin TEXT NOT NULL, wanted INTEGER NOT NULL, created_at TEXT NOT NULL,
            PRIMARY KEY (filter, batch)
        );;
        CREATE TABLE labels (
            id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, filter TEXT NOT NULL, uid TEXT NOT NULL,
            value INTEGER CHECK (value IN (0, 1)), origin TEXT NOT NULL CHECK (origin IN {_ORIGINS}),
            batch TEXT NOT NULL, person TEXT NOT NULL, policy_version TEXT NOT NULL, created_at TEXT NOT NULL
        );;
        CREATE INDEX labels_by_image ON labels (filter, uid, id);;
        {_postgres_guard("labels")}
    """,
)

_DECISION_COLUMNS = (
    "answer TEXT",
    "mode TEXT NOT NULL DEFAULT 'table'",
    "kind TEXT NOT NULL DEFAULT 'item'",
    "seconds DOUBLE PRECISION",
    "blur TEXT",
    "zoomed INTEGER",
    "flagged INTEGER",
    "early INTEGER",
    "item_digest TEXT",
    "idempotency_key TEXT",
    "undoes TEXT",
    "decided_at TEXT",
)
_BATCH_COLUMNS = (
    "mode TEXT NOT NULL DEFAULT 'table'",
    "overlap INTEGER NOT NULL DEFAULT 1",
    "seed BIGINT",
    "question TEXT NOT NULL DEFAULT ''",
    "details TEXT NOT NULL DEFAULT '{}'",
)
_PAGE_TABLES = """
    {columns}
    CREATE UNIQUE INDEX labels_once ON labels (idempotency_key);;
    CREATE INDEX labels_by_batch ON labels (filter, batch, uid);;
    CREATE INDEX labels_undone ON labels (undoes);;
    CREATE INDEX labels_by_person ON labels (person, id);;
    CREATE TABLE batch_items (
        filter TEXT NOT NULL, batch TEXT NOT NULL, position INTEGER NOT NULL, item TEXT NOT NULL, uid TEXT NOT NULL,
        origin TEXT NOT NULL, reason TEXT NOT NULL, kind TEXT NOT NULL, expected INTEGER, pictures TEXT NOT NULL,
        PRIMARY KEY (filter, batch, position), UNIQUE (filter, batch, item), UNIQUE (filter, batch, uid)
    );;
    CREATE TABLE leases (
        filter TEXT NOT NULL, batch TEXT NOT NULL, uid TEXT NOT NULL, person TEXT NOT NULL, tab TEXT NOT NULL,
        until DOUBLE PRECISION NOT NULL, PRIMARY KEY (filter, batch, uid, person)
    );;
    CREATE TABLE blocked (
        uid TEXT PRIMARY KEY, filter TEXT NOT NULL, batch TEXT NOT NULL, person TEXT NOT NULL, created_at TEXT NOT NULL
    );;
    CREATE TABLE batch_events (
        id {identity}, filter TEXT NOT NULL, batch TEXT NOT NULL, event TEXT NOT NULL, person TEXT NOT NULL,
        details TEXT NOT NULL, created_at TEXT NOT NULL
    );;
    {guards}
"""
_ADDED = [f"ALTER TABLE labels ADD COLUMN {column};;" for column in _DECISION_COLUMNS]
_ADDED += [f"ALTER TABLE batches ADD COLUMN {column};;" for column in _BATCH_COLUMNS]

_DECISIONS_AND_ITEMS = Migration(
    sqlite=_PAGE_TABLES.format(
        columns="\n".join(_ADDED),
        identity="INTEGER PRIMARY KEY AUTOINCREMENT",
        guards="".join(_sqlite_guard(table, f"{table}_stay", f"{table}_are_kept") for table in GROWING[1:]),
    ),
    postgresql=_PAGE_TABLES.format(
        columns="\n".join(_ADDED),
        identity="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        guards="".join(_postgres_guard(table) for table in GROWING[1:]),
    ),
)

# Looked up by both columns: with an index on one of them each, SQLite took the person's, and read all of a person's rows a time.
_UNDONE_BY = "DROP INDEX labels_undone;; CREATE INDEX labels_undone_by ON labels (undoes, person);;"

MIGRATIONS: dict[str, Migration] = {
    "0001-labels-and-batches": _LABELS_AND_BATCHES,
    "0002-decisions-and-items": _DECISIONS_AND_ITEMS,
    "0003-undone-by": Migration(sqlite=_UNDONE_BY, postgresql=_UNDONE_BY),
}
"""Applied in this order, each once."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables as SQLAlchemy knows them."""

    labels: "sa.Table"
    batches: "sa.Table"
    items: "sa.Table"
    leases: "sa.Table"
    blocked: "sa.Table"
    events: "sa.Table"


@functools.cache
def tables() -> Tables:
    """What queries are built from; made when first asked for, because SQLAlchemy may be absent."""
    import sqlalchemy as sa

    known = sa.MetaData()

    def table(name: str, texts: str, numbers: str = "", floats: str = "") -> sa.Table:
        columns = [
            sa.Column(column, kind)
            for names, kind in ((texts, sa.Text), (numbers, sa.BigInteger), (floats, sa.Double))
            for column in names.split()
        ]
        return sa.Table(name, known, *columns)

    texts = "filter uid origin batch person policy_version created_at answer mode kind blur item_digest idempotency_key undoes decided_at"
    return Tables(
        labels=table("labels", texts, "id value zoomed flagged early", "seconds"),
        batches=table("batches", "filter batch origin created_at mode question details", "wanted overlap seed"),
        items=table("batch_items", "filter batch item uid origin reason kind pictures", "position expected"),
        leases=table("leases", "filter batch uid person tab", "", "until"),
        blocked=table("blocked", "uid filter batch person created_at"),
        events=table("batch_events", "filter batch event person details created_at", "id"),
    )
