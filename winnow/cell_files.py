"""Features of a partition sorted by cell of a large search: `duplicates/cells/<partition>.cells`.

Little-endian: the dimension of features, the number of ranges of cells, the first row of each range and how many rows there are, as int64;
then for each range its rows (`ROW`), then their features (float16). So a range is one short read of each file, and an auditor needs
nothing but `np.fromfile` to look inside.
"""

import io
import math
from collections.abc import Collection, Sequence

import numpy as np

from winnow.errors import ShardError
from winnow.storage import Storage

ROW = np.dtype([("uid", "S32"), ("dhash", "<u8"), ("pixels", "<i8"), ("cell", "<i4"), ("home", "?")])
"""An image in one of its cells. `home`: it is the nearest one."""
NUMBER, FEATURE = np.dtype("<i8"), np.dtype("<f2")
Range = tuple[np.ndarray, np.ndarray]
"""(n,) ROW sorted by cell, and their features, (n, dim) float16."""


def to_bytes(ranges: Sequence[Range]) -> bytes:
    """The content of a file: every range of cells in order."""
    dim = max(vectors.shape[1] for _, vectors in ranges)
    starts = np.cumsum([0, *(len(rows) for rows, _ in ranges)])
    parts = [side.tobytes() for rows, vectors in ranges for side in (rows.astype(ROW), vectors.astype(FEATURE))]
    return b"".join([np.array([dim, len(ranges), *starts], NUMBER).tobytes(), *parts])


def read_ranges(storage: Storage, path: str, first: int = 0, last: int | None = None) -> list[Range]:
    """Some ranges of cells, all if none are named; nothing else of the file is read but where they begin.

    Raises:
        ShardError: the file ends too early.
    """

    def array(kind: np.dtype, *shape: int) -> np.ndarray:
        size = math.prod(shape) * kind.itemsize
        data = stream.read(size)
        if len(data) < size:
            raise ShardError(f"{storage.url}/{path} is cut short. Remove it and its receipt, and run again.")
        return np.frombuffer(data, kind).reshape(shape)

    with storage.open(path) as stream:
        dim, count = (int(number) for number in array(NUMBER, 2))
        starts = [int(number) for number in array(NUMBER, count + 1)]
        stream.seek(starts[first] * (ROW.itemsize + dim * FEATURE.itemsize), io.SEEK_CUR)
        sizes = np.diff(starts)[first : count if last is None else last + 1]
        return [(array(ROW, int(size)), array(FEATURE, int(size), dim)) for size in sizes]


def without(storage: Storage, path: str, gone: Collection[str]) -> bytes | None:
    """The content without some images; None if it has none of them."""
    ranges = read_ranges(storage, path)
    names = np.array(sorted(gone), dtype="S32")
    stays = [~np.isin(rows["uid"], names) for rows, _ in ranges]
    if all(own.all() for own in stays):
        return None
    return to_bytes([(rows[own], vectors[own]) for (rows, vectors), own in zip(ranges, stays, strict=True)])
