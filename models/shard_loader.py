"""Reading training data from webdataset-format shards, in the order of models/sample_order.py.

Shards are plain tars with members `<uid>.jpg`, `<uid>.txt`, `<uid>.json`, beside an `index.json`. They are our
own (plain USTAR, winnow/tars.py) and supposed to be whole: anything damaged is a ShardError that names file and member.
"""

import io
import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.checkpoints import is_url
from models.sample_order import mixed_batch_order
from models.training_data import TrainingData, shard_weights
from winnow.errors import ShardError
from winnow.tars import find_members

OPEN_SHARDS = 16


class Place(NamedTuple):
    """Where a member's bytes lie in its tar."""

    name: str
    offset: int
    size: int


class OpenShard:
    """A shard's members and a descriptor to read them with. Reads do not move a file position, so forked workers may share it."""

    def __init__(self, path: str, expected_samples: int, *, told: str | None = None) -> None:
        self.path = path if told is None else told
        """For messages."""
        self.samples = _members(path, self.path)
        if len(self.samples) != expected_samples:
            raise ShardError(
                f"{self.path} holds {len(self.samples)} samples where index.json says {expected_samples}; make the shards again"
            )
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


def _members(path: str, told: str) -> list[dict[str, Place]]:
    """The samples of a tar in the order they stand there, each a dict from extension to where the bytes are."""
    samples: dict[str, dict[str, Place]] = {}
    with open(path, "rb", buffering=0) as stream:
        for name, offset, size in find_members(stream, told):
            key, _, extension = name.partition(".")
            samples.setdefault(key, {})[extension] = Place(name, offset, size)
    return list(samples.values())


class Batch(NamedTuple):
    """What one worker is given for one step."""

    images: Tensor
    """(batch, 3, size, size) uint8."""
    captions: list[str]
    weights: Tensor | None
    """(batch,) float32, 1 on average over the data; None: all weigh the same."""


class ShardSamples(Dataset[tuple[Tensor, str, float]]):
    """Samples by (shard, sample in shard): the image (3, size, size) uint8, its caption and its weight.

    Shards of several datasets are numbered through, in the order of the datasets.
    """

    def __init__(self, data: TrainingData, image_size_px: int) -> None:
        self.data, self.image_size_px = data, image_size_px
        self._shards = [(number, shard) for number, part in enumerate(data.parts) for shard in part.shards]
        self._open: OrderedDict[int, tuple[OpenShard, np.ndarray | None]] = OrderedDict()

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, str, float]:
        shard, sample = place
        opened, weights = self._shard(shard)
        name, encoded = opened.read(sample, "jpg")
        _, caption = opened.read(sample, "txt")
        try:
            image, text = square_image(encoded, self.image_size_px), caption.decode()
        except (OSError, ValueError, SyntaxError) as problem:  # what PIL raises for bad files, and UnicodeDecodeError
            raise ShardError(f"{opened.path}: {name} or its caption cannot be read ({problem}); make the shards again") from problem
        return image, text, 1.0 if weights is None else float(weights[sample])

    def _shard(self, number: int) -> tuple[OpenShard, np.ndarray | None]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        from models.shard_copies import local_shard
        from winnow.storage import Storage

        dataset, entry = self._shards[number]
        url, of_samples = self.data.parts[dataset].url, self.data.weights[dataset]
        storage = Storage(url)
        weights = None if of_samples is None else shard_weights(url, entry, of_samples[entry.name])
        try:
            with local_shard(storage, entry) as path:
                opened = OpenShard(str(path), entry.num_samples, told=storage.place(entry.name))
        except FileNotFoundError:
            raise ShardError(f"{url}/{entry.name} is listed in index.json, but is not there; make the shards again") from None
        self._open[number] = opened, weights
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1][0].close()
        return opened, weights

    def close(self) -> None:
        """Closes what this process has open."""
        while self._open:
            self._open.popitem()[1][0].close()


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


def _collate(samples: list[tuple[Tensor, str, float]]) -> Batch:
    images, captions, weights = zip(*samples, strict=True)
    return Batch(torch.stack(images), list(captions), torch.tensor(weights, dtype=torch.float32))


def batches(
    data: TrainingData,
    *,
    image_size_px: int,
    batch_size: int,
    first_batch: int,
    num_batches: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    num_processes: int = 0,
) -> Iterator[Batch]:
    """One worker's stream of batches, from batch `first_batch` up to `num_batches`.

    Args:
        batch_size: of this worker.
        num_processes: that decode ahead; 0 decodes here. The stream is the same.
    """
    order = mixed_batch_order(
        [[shard.num_samples for shard in part.shards] for part in data.parts],
        data.shares,
        batch_size=batch_size,
        first_batch=first_batch,
        num_batches=num_batches,
        seed=seed,
        rank=rank,
        world=world,
    )
    # The loader wants a sampler that it can iterate over; a list would hold a whole training's order.
    dataset = ShardSamples(data, image_size_px)
    # Spawned, not forked: a copy of a process that runs Ray and several threads may hang or die.
    context = "spawn" if num_processes else None
    loader = DataLoader(
        dataset, batch_sampler=_Once(order), collate_fn=_collate, num_workers=num_processes, multiprocessing_context=context
    )
    try:
        for batch in loader:
            yield batch if data.weighted else batch._replace(weights=None)
    finally:
        dataset.close()
    if any(is_url(part.url) for part in data.parts):
        from models.shard_copies import clear_copies

        clear_copies()  # at the end alone: a training that is killed or fails goes on with those that are here


class _Once:
    """An iterator as the iterable that DataLoader asks for."""

    def __init__(self, order: Iterator[list[tuple[int, int]]]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._order
