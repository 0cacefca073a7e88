"""Features of a partition sorted by cell of a large search: `duplicates/cells/<partition>.npy`.

Two arrays one after the other in NumPy's own format: where each range of cells begins, then the rows. So a range of cells is one short
read of each file, and an auditor needs nothing but NumPy to look inside.
"""

import io
from collections.abc import Collection
from typing import Any, BinaryIO

import numpy as np

from winnow.storage import Storage


def record(dim: int) -> np.dtype[Any]:
    """A row: an image in one of its cells. `home`: it is the nearest one."""
    return np.dtype([("uid", "S32"), ("dhash", "u8"), ("pixels", "i8"), ("cell", "i4"), ("home", "?"), ("vector", "f2", (dim,))])


def to_bytes(starts: np.ndarray, records: np.ndarray) -> bytes:
    """The content of a file.

    Args:
        starts: (blocks + 1,) int64: the first row of each range of cells, and how many rows there are.
        records: sorted by cell.
    """
    sink = io.BytesIO()
    np.save(sink, starts, allow_pickle=False)
    np.save(sink, records, allow_pickle=False)
    return sink.getvalue()


def read_block(storage: Storage, path: str, block: int) -> np.ndarray:
    """Rows of one range of cells; nothing else of the file is read but where it begins."""
    with storage.open(path) as stream:
        starts = np.load(stream, allow_pickle=False)
        return _rows(stream, int(starts[block]), int(starts[block + 1]))


def without(storage: Storage, path: str, gone: Collection[str]) -> bytes | None:
    """The content without some images; None if it has none of them."""
    with storage.open(path) as stream:
        starts = np.load(stream, allow_pickle=False)
        records = _rows(stream, 0, int(starts[-1]))
    stays = ~np.isin(records["uid"], np.array(sorted(gone), dtype="S32"))
    if stays.all():
        return None
    return to_bytes(np.append(0, np.cumsum(stays))[starts].astype(np.int64), records[stays])


def _rows(stream: BinaryIO, start: int, stop: int) -> np.ndarray:
    """Rows of the array that begins where the stream stands."""
    version = np.lib.format.read_magic(stream)
    assert version == (1, 0), "short headers"
    _, _, dtype = np.lib.format.read_array_header_1_0(stream)
    stream.seek(start * dtype.itemsize, io.SEEK_CUR)
    return np.frombuffer(stream.read((stop - start) * dtype.itemsize), dtype)
