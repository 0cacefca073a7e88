"""The search for near-duplicates: every pair of a small set, pairs in near cells of a large one.

Exact: one piece of work a partition, which is compared with itself and with all before it. Cells (an inverted file, as FAISS calls
it): k-means centroids are trained once on a sample; each partition's features are laid down sorted by cell, every image in its nearest
cell (its home) and in the `nprobe` - 1 next ones (as a visitor); a range of cells is one piece of work, in which homes are compared
with homes and visitors. Both find a pair whichever of its images is new.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from filters.duplicate_waves import GONE, Waves, read_waves
from filters.duplicates import PAIR, DuplicateConfig, Images, Limits, best_neighbours, near_pairs
from winnow import cell_files
from winnow.digests import digest
from winnow.duplicates import CENTROIDS, cells_file, pairs_file
from winnow.errors import ConfigError, ShardError
from winnow.partitions import Outcome
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import embeddings

VERSION = 1
SAMPLE_PER_CELL, MAX_SAMPLE = 48, 1_000_000
"""Features that centroids are trained on."""
SAMPLE_PARTITIONS = 256
"""Partitions that the sample is taken from, evenly spread."""
ITERATIONS = 12
BLOCK_ROWS = 250_000
"""Images of a range of cells that is searched at a time, at most about: 512 dimensions and nprobe 2 take 0.6 GB, twice while reading."""
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
    return max(1, min(cells, -(-cells * 4 * config.cell_rows // BLOCK_ROWS)))


def search_space(config: DuplicateConfig, feature_digest: str, centroids: str) -> str:
    """Digest of what every pair depends on."""
    return digest({"features": feature_digest, "limits": config.limits, "centroids": centroids, "nprobe": config.nprobe * bool(centroids)})


def exact_works(waves: Waves, limits: Limits, embedded: Mapping[str, str]) -> Iterator[Work]:
    """A piece of work a partition. What was searched in earlier waves stands."""
    for partition in sorted(embedded):
        wave = waves.last_wave_of(partition)
        same = [name for name in waves.waves[wave] if name <= partition]
        inputs = {"embeddings": embedded[partition], "seen": waves.mark(wave - 1), "beside": digest(same)}
        yield Work(name=partition, inputs=inputs, arguments={"limits": limits, "wave": wave})


def search_exact(storage: Storage, name: str, *, limits: Limits, wave: int) -> Outcome:
    """Compares a partition with itself, with those of earlier waves and with those before it in its own."""
    others = [other for other in _there(storage, wave) if other != name and not (other in _wave(storage, wave) and other > name)]
    names = [name, *others]
    bases = (read_images(storage, other, number + 1) for number, other in enumerate(others))
    pairs = near_pairs(read_images(storage, name, 0), bases, limits, device=device())
    return _write_pairs(storage, name, pairs, names)


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
    sample = np.concatenate([_unit(read_images(storage, partition, 0).vectors[:each]) for partition in chosen])
    if len(sample) < cells:
        raise ConfigError(f"{len(sample)} images cannot train {cells} cells. Raise duplicates.exact_rows or duplicates.cell_rows.")
    machine = faiss.Kmeans(sample.shape[1], cells, niter=ITERATIONS, seed=1, spherical=True, min_points_per_centroid=1)
    machine.train(sample)
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(machine.centroids), allow_pickle=False)
    storage.write_bytes(CENTROIDS, sink.getvalue())
    return Outcome(outputs=(CENTROIDS,), counts={"cells": cells, "trained_on": len(sample)}, facts={"faiss": faiss.__version__})


def assign_cells(storage: Storage, name: str, *, centroids: str, nprobe: int, blocks: int) -> Outcome:
    """Lays a partition's features down sorted by cell: `duplicates/cells/<name>.npy`.

    Args:
        centroids: sha256 of the centroids, so that a worker that lives long does not take old ones.
        blocks: ranges of cells; where each begins stands before the rows.
    """
    torch.set_num_threads(1)
    cells = torch.from_numpy(_centroids(storage, centroids)).T
    images = read_images(storage, name, 0)
    wanted = min(nprobe, cells.shape[1])
    nearest = np.empty((len(images), wanted), np.int32)
    for start in range(0, len(images), ASSIGN_ROWS):
        rows = torch.from_numpy(_unit(images.vectors[start : start + ASSIGN_ROWS]))
        nearest[start : start + ASSIGN_ROWS] = (rows @ cells).topk(wanted, dim=1).indices.numpy()
    row = np.tile(np.arange(len(images))[:, None], (1, wanted)).ravel()
    home = np.tile(np.arange(wanted) == 0, len(images))
    cell = nearest.ravel()
    order = np.lexsort((row, cell))
    records = np.empty(len(order), cell_files.record(images.vectors.shape[1]))
    for field, values in (("uid", images.uids), ("vector", images.vectors), ("dhash", images.dhashes), ("pixels", images.pixels)):
        records[field] = values[row[order]]
    records["home"], records["cell"] = home[order], cell[order]
    starts = np.searchsorted(_block_of(records["cell"], cells.shape[1], blocks), np.arange(blocks + 1)).astype(np.int64)
    return Outcome.of(storage.write_bytes(cells_file(name), cell_files.to_bytes(starts, records)), counts={"assigned": len(images)})


def cell_works(waves: Waves, limits: Limits, *, centroids: str, blocks: int) -> Iterator[Work]:
    """A piece of work a range of cells and wave."""
    alive = {waves.last_wave_of(partition) for partition, output in waves.latest.items() if output != GONE}
    for wave in sorted(alive):
        for block in range(blocks):
            inputs = {"seen": waves.mark(wave), "centroids": centroids}
            yield Work(name=f"{block:05d}-{wave:05d}", inputs=inputs, arguments={"limits": limits, "wave": wave, "block": block})


def search_cells(storage: Storage, name: str, *, limits: Limits, wave: int, block: int) -> Outcome:
    """Compares a wave's images in a range of cells with each other and with those of earlier waves."""
    there = _there(storage, wave)
    fresh_names = set(_wave(storage, wave))
    old = _read_block(storage, [(number, part) for number, part in enumerate(there) if part not in fresh_names], block)
    fresh = _read_block(storage, [(number, part) for number, part in enumerate(there) if part in fresh_names], block)
    pairs = [np.empty(0, PAIR)]
    for cell in np.unique(fresh["cell"]):
        new_home, new_guest = _cell(fresh, cell)
        old_home, old_guest = _cell(old, cell)
        pairs.append(near_pairs(new_home, iter([new_guest, old_home, old_guest]), limits, device=device()))
        pairs.append(near_pairs(new_guest, iter([old_home]), limits, within=False, device=device()))
    return _write_pairs(storage, name, best_neighbours(np.concatenate(pairs)), there)


def read_images(storage: Storage, partition: str, number: int) -> Images:
    """The embedded images of a partition.

    Args:
        number: what `Images.partitions` calls the partition.

    Raises:
        ShardError: the file lacks a column.
    """
    return images_of(read_table(storage, embeddings(partition)), number, f"{storage.url}/{embeddings(partition)}")


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


def _there(storage: Storage, wave: int) -> list[str]:
    """Partitions that a wave's search sees and that are still there, sorted."""
    waves = read_waves(storage)
    assert waves is not None, "works are made from the record"
    latest = waves.latest
    embedded = {file.removesuffix(".parquet") for file in storage.names("embeddings")}
    # One whose features changed later stands in a later wave, which compares it with all: here it would be found twice, or wrong.
    return sorted(name for name, output in waves.as_of(wave).items() if latest[name] == output and name in embedded)


def _wave(storage: Storage, wave: int) -> Mapping[str, str]:
    waves = read_waves(storage)
    assert waves is not None, "works are made from the record"
    return waves.waves[wave]


def device() -> str:
    """Where matrix products are computed, here."""
    torch.set_num_threads(1)  # more partitions at a time pay, more threads do not
    return "cuda" if torch.cuda.is_available() else "cpu"


def _unit(vectors: np.ndarray) -> np.ndarray:
    rows = vectors.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@lru_cache(maxsize=1)
def _centroids(storage: Storage, sha256: str) -> np.ndarray:
    del sha256  # names the content that is cached
    found: np.ndarray = np.load(io.BytesIO(storage.read_bytes(CENTROIDS)), allow_pickle=False)
    return found


def _block_of(cell: np.ndarray, cells: int, blocks: int) -> np.ndarray:
    return (cell.astype(np.int64) * blocks) // cells


def _read_block(storage: Storage, partitions: Sequence[tuple[int, str]], block: int) -> np.ndarray:
    """Records of a range of cells from all these partitions, sorted by cell, with the partition's number: one short read of each file."""
    parts = []
    for number, partition in partitions:
        rows = cell_files.read_block(storage, cells_file(partition), block)
        if len(rows):
            parts.append((number, rows))
    kind = parts[0][1].dtype if parts else cell_files.record(1)
    every = np.empty(sum(len(rows) for _, rows in parts), [("partition", "i4"), *kind.descr])
    start = 0
    for number, rows in parts:
        for field in kind.names or ():
            every[field][start : start + len(rows)] = rows[field]
        every["partition"][start : start + len(rows)] = number
        start += len(rows)
    return every[np.argsort(every["cell"], kind="stable")]


def _cell(records: np.ndarray, cell: int) -> tuple[Images, Images]:
    """Those at home in a cell, and its visitors, of records sorted by cell."""
    here = records[slice(*np.searchsorted(records["cell"], [cell, cell + 1]))]
    home, guest = (
        Images(uids=rows["uid"], vectors=rows["vector"], dhashes=rows["dhash"], pixels=rows["pixels"], partitions=rows["partition"])
        for rows in (here[here["home"]], here[~here["home"]])
    )
    return home, guest
