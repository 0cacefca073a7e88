"""The label store's database: a SQLite file unless a url names another. Opening brings it up to date."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filters.label_schema import MIGRATIONS
from winnow.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

BUSY_SECONDS = 30
"""How long a writer waits for another one."""


class LabelDatabase:
    """Transactions on an up-to-date label store. Threads may share one."""

    def __init__(self, engine: "Engine", where: str) -> None:
        self._engine = engine
        self.where = where
        """Path or url, without a password: stands in messages."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, target: str | Path) -> Iterator["LabelDatabase"]:
        """
        Args:
            target: path of a SQLite file, made if it does not exist, or an SQLAlchemy url (postgresql+psycopg://host/name).

        Raises:
            ConfigError: it cannot be opened, is no label store, or was written by a newer version.
        """
        engine, where = _engine(target)
        try:
            database = cls(engine, where)
            database._migrate()
            yield database
        finally:
            engine.dispose()

    @property
    def dialect(self) -> str:
        """ "sqlite" or "postgresql"."""
        return self._engine.dialect.name

    @contextlib.contextmanager
    def reading(self) -> Iterator["Connection"]:
        """A transaction that sees one state of the store."""
        with self._transaction(writes=False) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator["Connection"]:
        """A transaction that writers go through one after the other. It is on disk when this ends without an error.

        Raises:
            ConfigError: the database cannot be used.
            sqlalchemy.exc.IntegrityError: a row that must be unique is there already.
        """
        with self._transaction(writes=True) as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self, *, writes: bool) -> Iterator["Connection"]:
        from sqlalchemy import exc, text

        try:
            with self._engine.connect() as connection, connection.execution_options(winnow_writes=writes).begin():
                if writes and self.dialect == "postgresql":
                    # One writer at a time, as in SQLite: who looks before he writes must not be overtaken in between.
                    connection.execute(text("SELECT pg_advisory_xact_lock(5743215)"))
                yield connection
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as problem:
            raise ConfigError(f"label store {self.where} cannot be used: {problem.orig}") from problem

    @contextlib.contextmanager
    def guards_lifted(self, connection: "Connection", names: Sequence[str]) -> Iterator[None]:
        """Within a writing transaction, tables that only grow may be changed; their guards stand again when it ends, however it ends."""
        from sqlalchemy import text

        if self.dialect == "postgresql":
            for table in names:
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            yield
            for table in names:
                connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))
            return
        guards = connection.execute(text("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
        lifted = [guard for guard in guards if guard.tbl_name in names]
        for guard in lifted:
            connection.execute(text(f"DROP TRIGGER {guard.name}"))
        yield
        for guard in lifted:
            connection.exec_driver_sql(guard.sql)

    def scrub(self) -> None:
        """Leaves nothing of changed and removed rows in the database's file. (Postgres does that by itself, in time.)

        Raises:
            ConfigError: somebody else holds the store.
        """
        if self.dialect != "sqlite":
            return
        raw = self._engine.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute("VACUUM")
            busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as problem:
            raise ConfigError(
                f"label store {self.where} cannot be rewritten: {problem}. Close the label page, and run this again."
            ) from problem
        finally:
            raw.close()
        if busy:
            raise ConfigError(
                f"label store {self.where} is being read: what was removed still stands in its log. "
                "Close the label page, and run this again."
            )

    def _migrate(self) -> None:
        from sqlalchemy import exc, text

        try:
            with self._engine.connect():
                pass
        except exc.OperationalError as problem:
            raise ConfigError(f"label store {self.where} cannot be opened: {problem.orig}") from problem
        except exc.DBAPIError as problem:
            raise ConfigError(f"label store {self.where} cannot be used: {problem.orig}") from problem
        with self.writing() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)"))
            applied = set(connection.execute(text("SELECT name FROM migrations")).scalars())
            if unknown := sorted(applied - set(MIGRATIONS)):
                raise ConfigError(f"{self.where} was written by a newer version of Winnow (migration {unknown[0]}). Update Winnow.")
            for name, migration in MIGRATIONS.items():
                if name not in applied:
                    for statement in migration.statements(self.dialect):
                        connection.exec_driver_sql(statement.replace("%", "%%") if self.dialect == "postgresql" else statement)
                    connection.execute(text("INSERT INTO migrations VALUES (:name, :at)"), {"name": name, "at": now()})


def now() -> str:
    """The time as the store writes it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _engine(target: str | Path) -> tuple["Engine", str]:
    try:
        import sqlalchemy as sa
    except ModuleNotFoundError as problem:
        raise ConfigError("the label store needs SQLAlchemy, which is not installed: pip install 'sqlalchemy>=2'") from problem
    if not re.match(r"[a-z]+(\+\w+)?://", str(target)):
        return _sqlite(Path(target)), str(target)
    try:
        url = sa.make_url(str(target))
        if url.get_backend_name() == "sqlite":
            return _sqlite(Path(url.database or "")), str(url.database)
        if url.get_backend_name() != "postgresql":
            raise ConfigError(f"label store {url.render_as_string()}: a SQLite file or a postgresql:// url, nothing else")
        return sa.create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED"), url.render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as problem:
        raise ConfigError(f"label store {target} cannot be opened: {problem}") from problem


def _sqlite(path: Path) -> "Engine":
    import sqlalchemy as sa

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"label store {path} cannot be opened: {problem}") from problem
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # The driver must not begin transactions by itself: it begins them too late, after the first read.
        connection.isolation_level = None
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # FULL: what is acknowledged survives a power cut. WAL alone would lose the last commits.
            connection.execute("PRAGMA synchronous=FULL")
        except Exception:
            connection.close()  # or a file that is no database would stay open
            raise

    @sa.event.listens_for(engine, "begin")
    def begin(connection: "Connection") -> None:
        # IMMEDIATE: two processes that look before they write wait for each other instead of failing.
        writes = connection.get_execution_options().get("winnow_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
