"""Rows by range of uid, on disk once there are many: sorting and comparing hundreds of millions a range at a time."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COUNT = 256
"""Ranges: by the first two hex digits of the uid."""
HELD_ROWS = 1_000_000
HELD_BYTES = 512 * 1024 * 1024
"""In memory, before rows go to disk. Also keeps a column of text below the 2 GiB that Arrow's offsets can address."""


class Buckets:
    """Add tables with a column uid, then take the rows of one range after the other, in no particular order within it."""

    def __init__(self, folder: Path, schema: pa.Schema, *, held_rows: int = HELD_ROWS) -> None:
        self.schema = schema
        self._folder, self._held_rows = folder, held_rows
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._writers: list[pa.ipc.RecordBatchStreamWriter] = []

    @property
    def count(self) -> int:
        """Ranges that are worth asking for: 1 if everything is in memory."""
        return COUNT if self._writers else 1

    def add(self, table: pa.Table) -> None:
        self._held.append(table)
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._rows > self._held_rows or self._bytes > HELD_BYTES:
            self._spill()

    def bucket(self, number: int, count: int) -> pa.Table:
        """Rows of one range of so many (1 or COUNT). Nothing may be added after the first call."""
        if count == 1:
            return pa.concat_tables([self.schema.empty_table(), *self._held])
        if self._held or not self._writers:
            self._spill()
        self._writers[number].close()
        with pa.OSFile(str(self._path(number)), "rb") as stream, pa.ipc.open_stream(stream) as reader:
            return reader.read_all()

    def _spill(self) -> None:
        if not self._writers:
            self._folder.mkdir()
            self._writers = [pa.ipc.new_stream(str(self._path(number)), self.schema) for number in range(COUNT)]
        for writer, part in zip(self._writers, _split(pa.concat_tables([self.schema.empty_table(), *self._held])), strict=True):
            writer.write_table(part)
        self._held, self._rows, self._bytes = [], 0, 0

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}"


def _split(table: pa.Table) -> list[pa.Table]:
    table = table.sort_by("uid")
    first = pc.utf8_slice_codeunits(table["uid"], 0, 2).to_numpy().astype("U2")
    starts = [*np.searchsorted(first, [f"{number:02x}" for number in range(COUNT)]), table.num_rows]
    return [table.slice(start, stop - start) for start, stop in itertools.pairwise(starts)]
