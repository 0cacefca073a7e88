"""The search for near-duplicates: every pair of a small set, pairs in near cells of a large one.

Exact: one piece of work a wave of some partitions, which is compared with itself and with all before it. Cells (an inverted file, as
FAISS calls it): k-means centroids are trained once on a sample; each partition's features are laid down sorted by cell, every image in
its nearest cell (its home) and in the `nprobe` - 1 next ones (as a visitor); a range of cells is one piece of work, in which homes are
compared with homes and visitors. Both find a pair whichever of its images is new.
"""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from filters.duplicate_waves import Waves, read_waves
from filters.duplicates import PAIR, DuplicateConfig, Images, Limits, Stacked, best_neighbours, near_pairs
from winnow import cell_files
from winnow.digests import digest
from winnow.duplicates import CENTROIDS, cells_file, pairs_file
from winnow.errors import ConfigError, ShardError
from winnow.partitions import Outcome
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import embeddings

VERSION = 2
WAVE_ROWS = 20_000
"""Images of a wave that is compared with all before it, at most about: the more, the less often the others are read."""
BATCH_ROWS = 16_384
"""Of these others, so many are read at a time."""
COLUMNS = ["uid", "feature", "dhash", "width", "height"]
SAMPLE_PER_CELL, MAX_SAMPLE = 48, 1_000_000
"""Features that centroids are trained on."""
SAMPLE_PARTITIONS = 256
"""Partitions that the sample is taken from, evenly spread."""
ITERATIONS = 12
BLOCK_ROWS = 500_000
"""Images and visitors of a range of cells that is searched at a time, at most about: 512 dimensions take 0.5 GB."""
ASSIGN_ROWS = 512
PAIRS = pa.schema(
    [
        ("worse", pa.string()), ("worse_partition", pa.string()), ("worse_pixels", pa.int64()),
        ("better", pa.string()), ("better_partition", pa.string()), ("better_pixels", pa.int64()),
        ("cosine", pa.float64()), ("hamming", pa.uint8()), ("mirrored", pa.bool_()),
    ]
)  # fmt: skip


def num_cells(config: DuplicateConfig, rows: int) -> int:
    """Cells for so many images, 0 if every pair is compared. A power of 4, so that only growth by that much asks for new cells."""
    if rows <= config.exact_rows:
        return 0
    cells = 1
    while cells * 4 * config.cell_rows <= rows:
        cells *= 4
    return cells


def num_blocks(config: DuplicateConfig, cells: int) -> int:
    """Ranges of cells, each one piece of work: by the most images that so many cells are meant for."""
    return max(1, min(cells, -(-cells * 4 * config.cell_rows * config.nprobe // BLOCK_ROWS)))


def search_space(config: DuplicateConfig, feature_digest: str, centroids: str) -> str:
    """Digest of what every pair depends on."""
    return digest({"features": feature_digest, "limits": config.limits, "centroids": centroids, "nprobe": config.nprobe * bool(centroids)})


def exact_works(waves: Waves, limits: Limits) -> Iterator[Work]:
    """A piece of work a wave. What was searched in earlier ones stands."""
    for wave, mark in _alive(waves):
        yield Work(name=f"{wave:05d}", inputs={"seen": mark}, arguments={"limits": limits, "wave": wave})


def search_exact(storage: Storage, name: str, *, limits: Limits, wave: int) -> Outcome:
    """Compares a wave's images with each other and with those of earlier waves."""
    fresh, old = _there(storage, wave)
    names = [*fresh, *old]
    images = (read_images(storage, partition, number) for number, partition in enumerate(names))
    query = joined(itertools.islice(images, len(fresh)))
    return _write_pairs(storage, name, near_pairs(query, _in_batches(images, BATCH_ROWS), limits), names)


def train_cells(storage: Storage, name: str, *, cells: int, partitions: Sequence[str]) -> Outcome:
    """Writes the centroids of so many cells: spherical k-means of FAISS, on a sample, seeded, on one thread.

    Args:
        partitions: the sample is spread over them.
    """
    import faiss  # here: filters/ must run without it

    faiss.omp_set_num_threads(1)  # beside torch in one process, and sums in one order
    chosen = [
        partitions[int(i)] for i in np.unique(np.linspace(0, len(partitions) - 1, min(len(partitions), SAMPLE_PARTITIONS)).astype(int))
    ]
    each = -(-min(MAX_SAMPLE, SAMPLE_PER_CELL * cells) // len(chosen))
    # Rows stand by uid, which is a hash: the first ones are a random draw.
    sample = np.concatenate([_unit(_first(read_images(storage, partition, 0), each)) for partition in chosen])
    if len(sample) < cells:
        raise ConfigError(f"{len(sample)} images cannot train {cells} cells. Raise duplicates.exact_rows or duplicates.cell_rows.")
    machine = faiss.Kmeans(sample.shape[1], cells, niter=ITERATIONS, seed=1, spherical=True, min_points_per_centroid=1)
    machine.train(sample)
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(machine.centroids), allow_pickle=False)
    storage.write_bytes(CENTROIDS, sink.getvalue())
    return Outcome(outputs=(CENTROIDS,), counts={"cells": cells, "trained_on": len(sample)}, facts={"faiss": faiss.__version__})


def assign_cells(storage: Storage, name: str, *, centroids: str, nprobe: int, blocks: int) -> Outcome:
    """Lays a partition's features down sorted by cell: `duplicates/cells/<name>.cells`.

    Args:
        centroids: sha256 of the centroids, so that a worker that lives long does not take old ones.
        blocks: ranges of cells; where each begins stands before the rows.
    """
    torch.set_num_threads(1)  # more partitions at a time pay, more threads do not
    cells = _centroids(storage, centroids)
    images = read_images(storage, name, 0)
    nearest = _nearest_cells(_first(images, len(images)), cells, min(nprobe, len(cells)))
    image, place = (side.ravel() for side in np.indices(nearest.shape))
    order = np.lexsort((image, nearest.ravel()))
    image, place = image[order], place[order]
    rows = np.empty(len(order), cell_files.ROW)
    for column, values in (("uid", images.uids), ("dhash", images.dhashes), ("pixels", images.pixels)):
        rows[column] = values[image]
    rows["cell"], rows["home"] = nearest[image, place], place == 0
    bounds = np.searchsorted(rows["cell"].astype(np.int64) * blocks // len(cells), np.arange(blocks + 1))
    ranges = [(rows[start:stop], images.vectors[image[start:stop]]) for start, stop in itertools.pairwise(bounds)]
    return Outcome.of(storage.write_bytes(cells_file(name), cell_files.to_bytes(ranges)), counts={"assigned": len(images)})


def cell_works(waves: Waves, limits: Limits, *, centroids: str, blocks: int) -> Iterator[Work]:
    """A piece of work a range of cells and wave."""
    for wave, mark in _alive(waves):
        for block in range(blocks):
            inputs = {"seen": mark, "centroids": centroids}
            yield Work(name=f"{block:05d}-{wave:05d}", inputs=inputs, arguments={"limits": limits, "wave": wave, "block": block})


def search_cells(storage: Storage, name: str, *, limits: Limits, wave: int, block: int) -> Outcome:
    """Compares a wave's images in a range of cells with each other and with those of earlier waves."""
    names = _there(storage, wave)
    fresh = _read_cells(storage, names[0], block, 0)
    old = _read_cells(storage, names[1] if len(fresh.cell) else [], block, len(names[0]))
    pairs = [np.empty(0, PAIR)]
    for cell in np.unique(fresh.cell):
        (new_home, new_guest), (old_home, old_guest) = fresh.of(cell), old.of(cell)
        pairs.append(near_pairs(new_home, [new_guest, old_home, old_guest], limits))
        pairs.append(near_pairs(new_guest, [old_home], limits, within=False))
    return _write_pairs(storage, name, best_neighbours(np.concatenate(pairs)), [*names[0], *names[1]])


def read_images(storage: Storage, partition: str, number: int) -> Images:
    """The embedded images of a partition.

    Args:
        number: what `Images.partitions` calls the partition.

    Raises:
        ShardError: the file lacks a column.
    """
    return images_of(read_table(storage, embeddings(partition), COLUMNS), number, f"{storage.url}/{embeddings(partition)}")


def images_of(table: pa.Table, number: int, where: str) -> Images:
    """Rows of an embeddings table as `Images`. Raises ShardError, naming where the table is from, if it is none."""
    try:
        vectors = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float16)
        return Images(
            uids=np.array(table["uid"].to_pylist(), dtype="S32"),
            vectors=vectors.reshape(table.num_rows, -1) if table.num_rows else np.empty((0, 0), np.float16),
            dhashes=table["dhash"].to_numpy().astype(np.int64).view(np.uint64),
            pixels=table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy().astype(np.int64),
            partitions=np.full(table.num_rows, number, np.int32),
        )
    except (KeyError, ValueError) as problem:
        raise ShardError(f"{where} is no table of embeddings ({problem}); it needs uid, feature, dhash, width, height") from problem


def _write_pairs(storage: Storage, name: str, pairs: np.ndarray, names: Sequence[str]) -> Outcome:
    return Outcome.of(write_table(storage, pairs_file(name), pairs_table(pairs, names)), counts={"pairs": len(pairs)})


def pairs_table(pairs: np.ndarray, names: Sequence[str]) -> pa.Table:
    """PAIR rows as a table; partitions by name."""
    columns = []
    for field in PAIRS:
        values = pairs[field.name]
        if field.name.endswith("_partition"):
            columns.append(pa.array([names[number] for number in values], pa.string()))
        elif field.type == pa.string():
            columns.append(pa.array(values.astype("U32"), pa.string()))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=PAIRS)


def joined(parts: Iterable[Images]) -> Images:
    """Images of several partitions as one."""
    found = [part for part in parts if len(part)]
    if not found:
        return Images(uids=np.empty(0, "S32"), vectors=np.empty((0, 0), np.float16), dhashes=np.empty(0, np.uint64),
                      pixels=np.empty(0, np.int64), partitions=np.empty(0, np.int32))  # fmt: skip
    uids, dhashes, pixels, partitions = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("uids", "dhashes", "pixels", "partitions")
    )
    vectors = Stacked([part.vectors for part in found])
    return Images(uids=uids, vectors=vectors, dhashes=dhashes, pixels=pixels, partitions=partitions)


def _in_batches(parts: Iterable[Images], rows: int) -> Iterator[Images]:
    """So many images at a time, and what the last partition has beyond."""
    held: list[Images] = []
    for part in parts:
        held.append(part)
        if sum(len(one) for one in held) >= rows:
            yield joined(held)
            held = []
    yield joined(held)


def _alive(waves: Waves) -> Iterator[tuple[int, str]]:
    """Waves that any partition's features as they are now were searched in, with the digest of all they saw."""
    marks = waves.marks
    for wave in sorted(set(waves.wave_of.values())):
        yield wave, marks[wave + 1]


def _there(storage: Storage, wave: int) -> tuple[list[str], list[str]]:
    """Partitions of a wave, and of those before it. One that stands in a later wave, too, is searched there."""
    waves = read_waves(storage)
    assert waves is not None, "works are made from the record"
    wave_of = sorted(waves.wave_of.items())
    return [name for name, last in wave_of if last == wave], [name for name, last in wave_of if last < wave]


def _first(images: Images, rows: int) -> np.ndarray:
    return images.features(np.arange(min(rows, len(images))))


def _unit(vectors: np.ndarray) -> np.ndarray:
    rows = vectors.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _nearest_cells(vectors: np.ndarray, centroids: np.ndarray, count: int) -> np.ndarray:
    """(n, count) int32: the nearest cells of each image, the very nearest first."""
    cells = torch.from_numpy(centroids).T
    parts = [
        (torch.from_numpy(_unit(vectors[start : start + ASSIGN_ROWS])) @ cells).topk(count, dim=1).indices.numpy()
        for start in range(0, len(vectors), ASSIGN_ROWS)
    ]
    return np.concatenate([np.empty((0, count), np.int32), *parts]).astype(np.int32)


@lru_cache(maxsize=1)
def _centroids(storage: Storage, sha256: str) -> np.ndarray:
    del sha256  # names the content that is cached
    found: np.ndarray = np.load(io.BytesIO(storage.read_bytes(CENTROIDS)), allow_pickle=False)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cells:
    """A range of cells."""

    cell: np.ndarray
    """(n,) sorted."""
    home: np.ndarray
    """(n,) whether it is the image's nearest."""
    images: Images

    def of(self, cell: int) -> tuple[Images, Images]:
        """Those at home in a cell, and its visitors."""
        start, stop = np.searchsorted(self.cell, [cell, cell + 1])
        home = self.home[start:stop]
        return self.images.take(start + np.flatnonzero(home)), self.images.take(start + np.flatnonzero(~home))


def _read_cells(storage: Storage, partitions: Sequence[str], block: int, first: int) -> _Cells:
    """A range of cells from all these partitions, which are numbered from `first` on."""
    parts, cells, homes = list[Images](), [np.empty(0, np.int32)], [np.empty(0, bool)]
    for number, partition in enumerate(partitions, first):
        ((rows, vectors),) = cell_files.read_ranges(storage, cells_file(partition), block, block)
        parts.append(Images(uids=rows["uid"], vectors=vectors, dhashes=rows["dhash"], pixels=rows["pixels"],
                            partitions=np.full(len(rows), number, np.int32)))  # fmt: skip
        cells.append(rows["cell"])
        homes.append(rows["home"])
    cell = np.concatenate(cells)
    order = np.argsort(cell, kind="stable")
    return _Cells(cell=cell[order], home=np.concatenate(homes)[order], images=joined(parts).take(order))
