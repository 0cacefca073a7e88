"""Who answers: does this image break the policy? People do, on a page or elsewhere; for benchmarks and the demo a table does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from filters.label_files import as_label, key_column, listed_uids, read_label_file
from winnow.errors import ConfigError
from winnow.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


class Labeller(Protocol):
    """Whoever can be asked while a run goes on."""

    @property
    def name(self) -> str:
        """Stands in the label store as the person who answered."""
        ...

    def answer(self, filter_name: str, uids: Sequence[str]) -> list[int | None]:
        """1 (drop), 0 (keep) or None (cannot tell) for each image, in this order."""
        ...


class TableLabeller:
    """Answers from a table: a column for each filter, keyed by uid or by url. Null is no answer, as is a missing row.

    A url speaks for every sample that has it, whatever their captions.
    """

    def __init__(self, table: "pa.Table", *, storage: Storage, partitions: Sequence[str], name: str) -> None:
        self.name = name
        key = key_column(table, name)
        self._columns = {column: table.column(column).to_pylist() for column in table.column_names if column != key}
        row_of = {value: row for row, value in enumerate(table.column(key).to_pylist())}
        uids_of = listed_uids(key, row_of, storage, partitions)
        self._row = {uid: row_of[value] for value, uids in uids_of.items() for uid in uids}
        if not self._row:
            raise ConfigError(f"{name}: none of its {table.num_rows} rows names a {key} that the manifest lists")

    @classmethod
    def from_table(cls, storage: Storage, path: str, partitions: Sequence[str]) -> "TableLabeller":
        """From a parquet or CSV file on this machine. Raises ConfigError naming the file if it cannot serve."""
        return cls(read_label_file(path), storage=storage, partitions=partitions, name=Path(path).name)

    def answer(self, filter_name: str, uids: Sequence[str]) -> list[int | None]:
        if filter_name not in self._columns:
            raise ConfigError(f"{self.name} has no column {filter_name!r} to label by; it has {', '.join(self._columns)}")
        values = self._columns[filter_name]
        return [as_label(values[self._row[uid]], self.name, uid) if uid in self._row else None for uid in uids]
