"""A workspace with planted near-duplicates: features and hashes made up, so that what must be found is known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.filter_world import uid_of, url_of
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.workspace import embeddings, manifest_part, raw_table

DIM = 32


@dataclass(kw_only=True)
class Planted:
    """Images of some partitions, and which of them copy the same picture."""

    storage: Storage
    partitions: list[str] = field(default_factory=list)
    truth: dict[str, int] = field(default_factory=dict)
    """uid -> picture."""
    pixels: dict[str, int] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    hashes: dict[str, int] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """Partition -> something that changes with its embeddings."""
        return {name: self.storage.sha256(embeddings(name))[:16] for name in self.partitions}

    def groups(self) -> set[frozenset[str]]:
        by_picture: dict[int, set[str]] = {}
        for uid, picture in self.truth.items():
            by_picture.setdefault(picture, set()).add(uid)
        return {frozenset(uids) for uids in by_picture.values() if len(uids) > 1}


def picture(number: int, dim: int = DIM) -> tuple[np.ndarray, int]:
    """Feature and hash of a picture; those of different ones are far apart."""
    rng = np.random.default_rng((7, number))
    vector = rng.normal(size=dim)
    return vector / np.linalg.norm(vector), int(rng.integers(0, 2**64, dtype=np.uint64))


def copy_of(number: int, rng: np.random.Generator, dim: int = DIM) -> tuple[np.ndarray, int]:
    """A near-duplicate: cosine about 0.99, up to 4 bits of the hash turned."""
    vector, bits = picture(number, dim)
    noisy = vector + rng.normal(size=dim) * 0.1 / np.sqrt(dim)
    for bit in rng.choice(64, size=int(rng.integers(0, 5)), replace=False):
        bits ^= 1 << int(bit)
    return noisy / np.linalg.norm(noisy), bits


def add_images(world: Planted, name: str, pictures: Sequence[int], *, seed: int = 0, dim: int = DIM) -> None:
    """A partition with a copy of each of these pictures; makes its manifest, download table and embeddings."""
    rng = np.random.default_rng((seed, len(world.partitions)))
    rows = []
    for place, number in enumerate(pictures):
        uid = uid_of(f"{name} {place}")
        vector, bits = copy_of(number, rng, dim)
        side = int(rng.integers(10, 100))
        rows.append((uid, vector, bits, side))
        world.truth[uid], world.pixels[uid], world.vectors[uid], world.hashes[uid] = number, side * side, vector, bits
    rows.sort()
    uids = [row[0] for row in rows]
    nothing = pa.array([None] * len(uids), pa.string())
    manifest = {"uid": uids, "url": [url_of(uid) for uid in uids], "caption": nothing, "source": nothing, "licence": nothing}
    write_table(world.storage, manifest_part(name), pa.table(manifest))
    fetched = {"uid": uids, "status": ["downloaded"] * len(uids), "cause": nothing, "detail": nothing, "sha256": nothing}
    fetched |= {"width": [row[3] for row in rows], "height": [row[3] for row in rows]}
    write_table(world.storage, raw_table(name), pa.table(fetched))
    write_rows(world.storage, name, rows, dim)
    world.partitions.append(name)


def write_rows(storage: Storage, name: str, rows: Sequence[tuple[str, np.ndarray, int, int]], dim: int = DIM) -> None:
    """Embeddings of (uid, vector, hash, side) rows."""
    flat = np.concatenate([row[1] for row in rows]).astype(np.float16) if rows else np.empty(0, np.float16)
    hashes = np.array([row[2] for row in rows], dtype=np.uint64).view(np.int64)
    sides = pa.array([row[3] for row in rows], pa.int32())
    columns = {
        "uid": pa.array([row[0] for row in rows], pa.string()),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), dim),
        "dhash": hashes,
        "width": sides,
        "height": sides,
    }
    write_table(storage, embeddings(name), pa.table(columns))


def planted_world(folder: Path, *, partitions: int = 3, rows: int = 60, pictures: int = 120, seed: int = 0) -> Planted:
    """Partitions that draw from a pool of pictures, so that some are drawn twice and more, across partitions, too."""
    world, rng = Planted(storage=Storage(str(folder))), np.random.default_rng(seed)
    for number in range(partitions):
        add_images(world, part_name(number), rng.integers(0, pictures, size=rows).tolist(), seed=seed)
    return world


def part_name(number: int) -> str:
    return f"{number:05}-{number:08x}"
