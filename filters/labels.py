"""The label store: a SQLite file that only grows. A changed mind is a new row, and the latest row counts.

    batches  name of a batch of a filter, how its images were drawn, how many were wanted
    labels   who answered what about which image: 1 drop, 0 keep, NULL was asked and did not answer

A batch goes in with all its answers in one transaction: a killed run leaves all of it or nothing.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from filters.catalog import filter_specs
from winnow.digests import SHORT, digest
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import manifest_part

if TYPE_CHECKING:
    import pyarrow as pa

Origin = Literal["random", "text_search", "boundary", "neighbour", "import", "audit"]
"""How an image came to be asked about: drawn at random, by text, near the boundary, as a neighbour of a miss, from a
collection, or among what a filter keeps."""
ORIGINS: tuple[Origin, ...] = get_args(Origin)

MIGRATIONS = {
    "0001-labels-and-batches": """
        CREATE TABLE batches (
            filter TEXT NOT NULL, batch TEXT NOT NULL, origin TEXT NOT NULL, wanted INTEGER NOT NULL, created_at TEXT NOT NULL,
            PRIMARY KEY (filter, batch)
        );
        CREATE TABLE labels (
            id INTEGER PRIMARY KEY AUTOINCREMENT, filter TEXT NOT NULL, uid TEXT NOT NULL, value INTEGER CHECK (value IN (0, 1)),
            origin TEXT NOT NULL CHECK (origin IN ('random', 'text_search', 'boundary', 'neighbour', 'import', 'audit')),
            batch TEXT NOT NULL, person TEXT NOT NULL, policy_version TEXT NOT NULL, created_at TEXT NOT NULL
        );
        CREATE INDEX labels_by_image ON labels (filter, uid, id);
        CREATE TRIGGER labels_stay BEFORE UPDATE ON labels BEGIN SELECT RAISE(ABORT, 'labels are never changed: add a row'); END;
        CREATE TRIGGER labels_are_kept BEFORE DELETE ON labels BEGIN SELECT RAISE(ABORT, 'labels are never removed: add a row'); END;
    """,
}
"""Applied in this order, each once; an applied one is never edited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What is thought of an image now."""

    uid: str
    value: int
    """1: the filter should drop it."""
    origin: Origin
    """How it was drawn *first*, except that a random draw stays one whatever else the image was met by."""
    batch: str
    """The batch that drew it so."""


def policy_version(policy: str) -> str:
    """Digest of a policy's words: labels given under other words are told apart by it."""
    return digest(policy)[:SHORT]


class LabelStore:
    """Labels in a SQLite file on a local disk: `with LabelStore.open(path) as store`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path) -> Iterator["LabelStore"]:
        """The store in a file, made or brought up to date.

        Raises:
            ConfigError: it cannot be opened, is no label store, or was written by a newer version.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as problem:
            raise ConfigError(f"label store {path} cannot be opened: {problem}") from problem
        try:
            store = cls(path, connection)
            store._migrate()
            yield store
        finally:
            connection.close()

    def _migrate(self) -> None:
        with self._transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
            applied = {name for (name,) in connection.execute("SELECT name FROM migrations")}
            if unknown := sorted(applied - set(MIGRATIONS)):
                raise ConfigError(f"{self.path} was written by a newer version of Winnow (migration {unknown[0]}). Update Winnow.")
            for name, script in MIGRATIONS.items():
                if name not in applied:
                    for statement in _statements(script):
                        connection.execute(statement)
                    connection.execute("INSERT INTO migrations VALUES (?, ?)", (name, _now()))

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
    ) -> None:
        """Adds a batch with all its answers, or nothing.

        Args:
            answers: uid -> 1 (drop), 0 (keep) or None (no answer).
            wanted: how many images were asked for, if fewer could be found.

        Raises:
            ConfigError: the batch is there already, or an origin or answer is none we know.
        """
        if origin not in ORIGINS:
            raise ConfigError(f"unknown origin {origin!r} of labels; there are {', '.join(ORIGINS)}")
        for uid, value in answers.items():
            if value not in (0, 1, None):
                raise ConfigError(f"label of {uid} for {filter_name} must be 1 (drop), 0 (keep) or empty (no answer), got {value!r}")
        now, version = _now(), policy_version(policy)
        with self._transaction() as connection:
            try:
                connection.execute(
                    "INSERT INTO batches VALUES (?, ?, ?, ?, ?)",
                    (filter_name, batch, origin, len(answers) if wanted is None else wanted, now),
                )
            except sqlite3.IntegrityError as problem:
                raise ConfigError(f"batch {batch} of {filter_name} is in {self.path} already; give the new one another name") from problem
            self._insert(connection, filter_name, batch, origin, answers, person, version, now)

    def add_label(self, filter_name: str, uid: str, value: int | None, origin: Origin, *, batch: str, person: str, policy: str) -> None:
        """One more answer: a first one, or a second thought."""
        with self._transaction() as connection:
            self._insert(connection, filter_name, batch, origin, {uid: value}, person, policy_version(policy), _now())

    def has_batch(self, filter_name: str, batch: str) -> bool:
        return batch in self.batches(filter_name)

    def batches(self, filter_name: str) -> dict[str, tuple[Origin, int]]:
        """Batch -> how it was drawn, and how many images were wanted."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT batch, origin, wanted FROM batches WHERE filter = ? ORDER BY batch", (filter_name,))
            return {batch: (origin, wanted) for batch, origin, wanted in rows}

    def labels(self, filter_name: str) -> list[Label]:
        """What is thought now of every image with an answer, sorted by uid."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT uid, value, origin, batch FROM labels WHERE filter = ? ORDER BY id", (filter_name,)
            ).fetchall()
        values: dict[str, int | None] = {}
        drawn: dict[str, tuple[Origin, str]] = {}
        for uid, value, origin, batch in rows:
            values[uid] = value
            if uid not in drawn or (origin == "random" and drawn[uid][0] != "random"):
                drawn[uid] = (origin, batch)
        return [
            Label(uid=uid, value=value, origin=drawn[uid][0], batch=drawn[uid][1])
            for uid, value in sorted(values.items())
            if value is not None
        ]

    def asked(self, filter_name: str) -> dict[str, frozenset[Origin]]:
        """Every image that was ever asked about -> how it was drawn, answered or not."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT uid, origin FROM labels WHERE filter = ?", (filter_name,)).fetchall()
        found: dict[str, set[Origin]] = {}
        for uid, origin in rows:
            found.setdefault(uid, set()).add(origin)
        return {uid: frozenset(origins) for uid, origins in found.items()}

    def policy_versions(self, filter_name: str) -> dict[str, int]:
        """Policy version -> labels that count now and were given under it."""
        query = """SELECT policy_version, COUNT(*) FROM labels WHERE value IS NOT NULL AND id IN
                   (SELECT MAX(id) FROM labels WHERE filter = ? GROUP BY uid) GROUP BY policy_version ORDER BY policy_version"""
        with self._transaction() as connection:
            return dict(connection.execute(query, (filter_name,)).fetchall())

    def _insert(
        self,
        connection: sqlite3.Connection,
        filter_name: str,
        batch: str,
        origin: Origin,
        answers: Mapping[str, int | None],
        person: str,
        version: str,
        now: str,
    ) -> None:
        connection.executemany(
            "INSERT INTO labels (filter, uid, value, origin, batch, person, policy_version, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(filter_name, uid, value, origin, batch, person, version, now) for uid, value in answers.items()],
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            # IMMEDIATE: two processes that look before they write wait for each other instead of failing.
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as problem:
            raise ConfigError(f"label store {self.path} cannot be used: {problem}") from problem
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _statements(script: str) -> Sequence[str]:
    """The statements of a script: sqlite3's own executescript would commit before it."""
    found, pending = [], ""
    for part in script.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def import_labels(
    store: LabelStore, storage: Storage, filter_name: str, table: str, *, origin: str, person: str, partitions: Sequence[str]
) -> int:
    """Adds labels made elsewhere: a parquet or CSV file with columns uid or url, and value. The same file twice is added once.

    Args:
        origin: how the images were drawn. Say `random` of random draws alone: they prove what a filter promises.

    Returns:
        How many labels were added; a url speaks for every sample that has it.

    Raises:
        ConfigError: an unknown origin, a file that cannot be read, lacks a column or holds another value, or an image that is
            not in the manifest.
    """
    (spec,) = filter_specs((filter_name,))
    if origin not in ORIGINS:
        raise ConfigError(f"unknown origin {origin!r} of labels; there are {', '.join(ORIGINS)}")
    found = read_label_file(table)
    key = key_column(found, table)
    if "value" not in found.column_names:
        raise ConfigError(f"{table} has no column 'value'; it has {', '.join(found.column_names)}")
    values = {
        name: as_label(value, table, str(name)) for name, value in zip(*(found.column(c).to_pylist() for c in (key, "value")), strict=True)
    }
    uids_of = listed_uids(key, values, storage, partitions)
    if missing := sorted(str(name) for name in values if name not in uids_of):
        raise ConfigError(f"{table}: {len(missing)} of {len(values)} images are not in the manifest, the first is {key} {missing[0]}")
    answers = {uid: value for name, value in values.items() for uid in uids_of[name]}
    batch = f"file-{digest([origin, person, sorted(answers.items())])[:SHORT]}"
    if not answers or store.has_batch(filter_name, batch):
        return 0
    store.add_batch(filter_name, batch, origin, answers, person=person, policy=spec.policy)
    return len(answers)


def read_label_file(path: str) -> "pa.Table":
    """A parquet or CSV file as a table. Raises ConfigError naming the file."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    is_csv = path.lower().endswith(".csv")
    try:
        return pc.read_csv(path) if is_csv else pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as problem:
        raise ConfigError(f"{path} cannot be read as {'CSV' if is_csv else 'parquet'}: {problem}") from problem


def key_column(table: "pa.Table", path: str) -> str:
    """What a table names its images by: "uid" or "url"."""
    for key in ("uid", "url"):
        if key in table.column_names:
            return key
    raise ConfigError(f"{path} has neither a column 'uid' nor 'url'; it has {', '.join(table.column_names)}")


def listed_uids(key: str, names: Collection[str], storage: Storage, partitions: Sequence[str]) -> dict[str, list[str]]:
    """uid or url -> uids of the samples that have it, for those of `names` that the manifest lists."""
    found: dict[str, list[str]] = {}
    for partition in partitions:
        table = read_table(storage, manifest_part(partition), ["uid", key] if key != "uid" else ["uid"])
        for name, uid in zip(table.column(key).to_pylist(), table.column("uid").to_pylist(), strict=True):
            if name in names:
                found.setdefault(name, []).append(uid)
    return found


def as_label(value: object, path: str, image: str) -> int | None:
    """1 (drop), 0 (keep) or None (no answer). Raises ConfigError naming file and image for anything else."""
    if value is None:
        return None
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return int(value)
    raise ConfigError(f"{path}: the label of {image} must be 1 (drop), 0 (keep) or empty (no answer), got {value!r}")
