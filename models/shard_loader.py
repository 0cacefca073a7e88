"""Training data: which sample is read when, and reading it from webdataset-format shards.

The order is a pure function of (seed, epoch, rank, world), so that a run resumes by arithmetic. Shards are plain tars
`NNNNN.tar` with members `<uid>.jpg`, `<uid>.txt`, `<uid>.json`, beside an `index.json`. They are our own and supposed to be
whole: anything damaged is a ShardError that names file and member.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from winnow.errors import ShardError

WINDOW_SAMPLES = 16_384
"""Samples are shuffled within windows of this many: about two shards' worth, so that few files are open at a time."""
BLOCKS_PER_WORKER = 64
"""Shards are cut into blocks, which are shuffled whole: this many a worker, or one a shard where shards are more."""
OPEN_SHARDS = 16


class ShardEntry(NamedTuple):
    name: str
    num_samples: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """What `index.json` says."""

    url: str
    dataset: str
    shards: tuple[ShardEntry, ...]

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def digest(self) -> str:
        """Of the data itself, wherever it lies."""
        return hashlib.sha256(json.dumps([list(shard) for shard in self.shards]).encode()).hexdigest()


def read_index(shards: str) -> ShardIndex:
    """The index of a folder of shards, a path or url. Raises ShardError if it is missing, damaged or empty."""
    from winnow.storage import Storage

    try:
        content = json.loads(Storage(shards).read_bytes("index.json"))
        entries = tuple(ShardEntry(str(one["name"]), int(one["num_samples"]), str(one["sha256"])) for one in content["shards"])
        index = ShardIndex(url=shards, dataset=str(content["dataset"]), shards=entries)
    except FileNotFoundError:
        raise ShardError(f"{shards}: no index.json there; make the shards first") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise ShardError(f"{shards}/index.json is damaged ({type(problem).__name__}: {problem}); make the shards again") from problem
    if not index.num_samples:
        raise ShardError(f"{shards}/index.json lists no samples: nothing was kept, so there is nothing to train on")
    return index


def epoch_order(num_samples: Sequence[int], *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """What one worker reads in one epoch: (total // world, 2) int64, rows of (shard, sample in shard).

    Shards are cut into blocks and the blocks shuffled; each worker takes an equal span of what that gives, and shuffles
    within windows of it. The up to `world - 1` samples left over are others in the next epoch.

    Args:
        num_samples: of each shard.
    """
    total = sum(num_samples)
    share = total // world
    if not share:
        raise ShardError(f"{total} samples cannot be shared among {world} workers; keep more, or train with fewer workers")
    block = max(1, total // (BLOCKS_PER_WORKER * world))
    shard_of, start_of, length_of = [], [], []
    for shard, count in enumerate(num_samples):
        for start in range(0, count, block):
            shard_of.append(shard)
            start_of.append(start)
            length_of.append(min(block, count - start))
    shuffled = np.random.default_rng([seed, epoch]).permutation(len(shard_of))
    shards, starts, lengths = (np.asarray(values, dtype=np.int64)[shuffled] for values in (shard_of, start_of, length_of))
    ends = np.cumsum(lengths)
    position = np.arange(rank * share, (rank + 1) * share)
    which = np.searchsorted(ends, position, side="right")
    order = np.stack([shards[which], starts[which] + position - (ends - lengths)[which]], axis=1)
    rng = np.random.default_rng([seed, epoch, rank])
    for begin in range(0, share, WINDOW_SAMPLES):
        window = order[begin : begin + WINDOW_SAMPLES]
        order[begin : begin + WINDOW_SAMPLES] = window[rng.permutation(len(window))]
    return order


def batch_order(
    num_samples: Sequence[int], *, batch_size: int, first_batch: int, num_batches: int, seed: int, rank: int = 0, world: int = 1
) -> Iterator[list[tuple[int, int]]]:
    """Batches `first_batch` up to `num_batches` of one worker's endless stream, each a list of (shard, sample in shard).

    Args:
        batch_size: of this worker.
    """
    share = max(1, sum(num_samples) // world)
    epoch, offset = divmod(first_batch * batch_size, share)
    order = epoch_order(num_samples, seed=seed, epoch=epoch, rank=rank, world=world)
    for _ in range(first_batch, num_batches):
        batch: list[tuple[int, int]] = []
        while len(batch) < batch_size:
            taken = order[offset : offset + batch_size - len(batch)]
            batch += [(int(shard), int(sample)) for shard, sample in taken]
            offset += len(taken)
            if offset == share:
                epoch, offset = epoch + 1, 0
                order = epoch_order(num_samples, seed=seed, epoch=epoch, rank=rank, world=world)
        yield batch


class Place(NamedTuple):
    """Where a member's bytes lie in its tar."""

    name: str
    offset: int
    size: int


class OpenShard:
    """A shard's members and a descriptor to read them with. Reads do not move a file position, so forked workers may share it."""

    def __init__(self, path: str, expected_samples: int) -> None:
        self.path = path
        self.samples = _members(path)
        if len(self.samples) != expected_samples:
            raise ShardError(f"{path} holds {len(self.samples)} samples where index.json says {expected_samples}; make the shards again")
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, sample: int, extension: str) -> tuple[str, bytes]:
        """Name and bytes of one member."""
        members = self.samples[sample]
        if extension not in members:
            raise ShardError(f"{self.path}: sample {next(iter(members.values())).name} has no .{extension}; make the shards again")
        place = members[extension]
        return place.name, os.pread(self._descriptor, place.size, place.offset)

    def close(self) -> None:
        os.close(self._descriptor)


def _members(path: str) -> list[dict[str, Place]]:
    """The samples of a tar in the order they stand there, each a dict from extension to where the bytes are."""
    samples: dict[str, dict[str, Place]] = {}
    size = os.path.getsize(path)
    last = "its first member"
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                last = member.name
                if member.offset_data + member.size > size:
                    raise ShardError(f"{path} is cut off in member {last}; make the shards again")
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = Place(member.name, member.offset_data, member.size)
    except tarfile.TarError as problem:
        raise ShardError(f"{path} is damaged at or after member {last} ({problem}); make the shards again") from problem
    return list(samples.values())


class ShardSamples(Dataset[tuple[Tensor, str]]):
    """Samples by (shard, sample in shard): the image (3, size, size) uint8 and its caption."""

    def __init__(self, index: ShardIndex, image_size_px: int) -> None:
        self.index, self.image_size_px = index, image_size_px
        self._open: OrderedDict[int, tuple[OpenShard, ExitStack]] = OrderedDict()

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, str]:
        shard, sample = place
        opened = self._shard(shard)
        name, encoded = opened.read(sample, "jpg")
        _, caption = opened.read(sample, "txt")
        try:
            return square_image(encoded, self.image_size_px), caption.decode()
        except (OSError, ValueError, SyntaxError) as problem:  # what PIL raises for bad files, and UnicodeDecodeError
            raise ShardError(f"{opened.path}: {name} or its caption cannot be read ({problem}); make the shards again") from problem

    def _shard(self, number: int) -> OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][0]
        from winnow.storage import Storage

        entry = self.index.shards[number]
        stack = ExitStack()
        storage = Storage(self.index.url)
        if not storage.exists(entry.name):
            raise ShardError(f"{self.index.url}/{entry.name} is listed in index.json, but is not there; make the shards again")
        opened = OpenShard(str(stack.enter_context(storage.local_file(entry.name))), entry.num_samples)
        stack.callback(opened.close)
        self._open[number] = opened, stack
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1][1].close()
        return opened


def square_image(encoded: bytes, size_px: int) -> Tensor:
    """An encoded image as (3, size, size) uint8 RGB: its central square, reduced by area (enlarged bicubically if it is smaller)."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as opened:
        image: Any = opened.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    method = Image.Resampling.BOX if side >= size_px else Image.Resampling.BICUBIC
    image = image.resize((size_px, size_px), method, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 0..255; what lies outside is clipped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _collate(samples: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    return torch.stack([image for image, _ in samples]), [caption for _, caption in samples]


def batches(
    index: ShardIndex,
    *,
    image_size_px: int,
    batch_size: int,
    first_batch: int,
    num_batches: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    num_processes: int = 0,
) -> Iterator[tuple[Tensor, list[str]]]:
    """One worker's stream of images (batch, 3, size, size) uint8 and captions, from batch `first_batch` up to `num_batches`.

    Args:
        num_processes: that decode ahead; 0 decodes here. The stream is the same.
    """
    counts = [shard.num_samples for shard in index.shards]
    order = batch_order(counts, batch_size=batch_size, first_batch=first_batch, num_batches=num_batches, seed=seed, rank=rank, world=world)
    # The loader wants a sampler that it can iterate over; a list would hold a whole training's order.
    dataset = ShardSamples(index, image_size_px)
    # Spawned, not forked: a copy of a process that runs Ray and several threads may hang or die.
    context = "spawn" if num_processes else None
    yield from DataLoader(
        dataset, batch_sampler=_Once(order), collate_fn=_collate, num_workers=num_processes, multiprocessing_context=context
    )


class _Once:
    """An iterator as the iterable that DataLoader asks for."""

    def __init__(self, order: Iterator[list[tuple[int, int]]]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._order
