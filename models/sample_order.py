"""Which sample is read when: a pure function of (seed, epoch, rank, world), so that a training resumes by arithmetic.

Several datasets are mixed by shares: the positions of a worker's stream are dealt to them evenly, and each dataset is read in
the order it would have alone. Nothing is remembered: how often each was drawn before a position is a closed form.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from winnow.errors import ShardError

WINDOW_SAMPLES = 16_384
"""Samples are shuffled within windows of this many: about two shards' worth, so that few files are open at a time."""
BLOCKS_PER_WORKER = 64
"""Shards are cut into blocks, which are shuffled whole: this many a worker, or one a shard where shards are more."""


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


class Stream:
    """One worker's endless stream from one dataset: epoch after epoch of `epoch_order`.

    Args:
        num_samples: of each shard.
        first: sample of the stream to begin with.
    """

    def __init__(self, num_samples: Sequence[int], *, first: int, seed: int, rank: int, world: int) -> None:
        self._num_samples, self._seed, self._rank, self._world = num_samples, seed, rank, world
        self._share = max(1, sum(num_samples) // world)
        self._epoch, self._offset = divmod(first, self._share)
        self._order = self._epoch_order()

    def take(self, count: int) -> list[tuple[int, int]]:
        """The next `count` places, (shard, sample in shard)."""
        places: list[tuple[int, int]] = []
        while len(places) < count:
            if self._offset == self._share:
                self._epoch, self._offset = self._epoch + 1, 0
                self._order = self._epoch_order()
            taken = self._order[self._offset : self._offset + count - len(places)]
            places += [(int(shard), int(sample)) for shard, sample in taken]
            self._offset += len(taken)
        return places

    def _epoch_order(self) -> np.ndarray:
        return epoch_order(self._num_samples, seed=self._seed, epoch=self._epoch, rank=self._rank, world=self._world)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deal:
    """How the positions of one worker's stream are dealt to datasets, in proportion to their shares.

    The first dataset has floor(p s_1 + o_1) of the first p positions, 0 <= o_1 < 1 drawn from the seed; the next one takes its part
    of those left in the same way, and so on. So after any p positions the k-th of n datasets has had p s_k of them but for less than
    k, and the last one but for less than n - 1: with two datasets, each is always less than one sample off its share.
    """

    parts: tuple[Fraction, ...]
    """Of each dataset but the last: its share of what those before it leave."""
    offsets: tuple[int, ...]
    """o_1, o_2, ... in units of one by the denominator of the part."""

    @staticmethod
    def of(shares: Sequence[Fraction], *, seed: int, rank: int) -> "Deal":
        """Of one worker.

        Args:
            shares: exact, above 0, their sum 1.
        """
        assert sum(shares) == 1 and min(shares) > 0, "TrainingData settles shares"
        parts, offsets, left = [], [], Fraction(1)
        for number, share in enumerate(shares[:-1]):
            part = share / left
            parts.append(part)
            offsets.append(_hashed("offset", seed, rank, number) % part.denominator)
            left -= share
        return Deal(parts=tuple(parts), offsets=tuple(offsets))

    def drawn(self, position: int) -> list[int]:
        """How many of the positions before this one each dataset has."""
        counts, left = [], position
        for part, offset in zip(self.parts, self.offsets, strict=True):
            # Whole numbers throughout: floats would drift after some billions of samples.
            counts.append((left * part.numerator + offset) // part.denominator)
            left -= counts[-1]
        return [*counts, left]

    def datasets(self, start: int, stop: int) -> list[int]:
        """Which dataset each position from `start` up to `stop` is drawn from."""
        found, before = [], self.drawn(start)
        for position in range(start, stop):
            after = self.drawn(position + 1)
            found.append(next(number for number, count in enumerate(after) if count != before[number]))
            before = after
        return found


def batch_order(
    num_samples: Sequence[int], *, batch_size: int, first_batch: int, num_batches: int, seed: int, rank: int = 0, world: int = 1
) -> Iterator[list[tuple[int, int]]]:
    """Batches `first_batch` up to `num_batches` of one worker's endless stream, each a list of (shard, sample in shard).

    Args:
        batch_size: of this worker.
    """
    stream = Stream(num_samples, first=first_batch * batch_size, seed=seed, rank=rank, world=world)
    for _ in range(first_batch, num_batches):
        yield stream.take(batch_size)


def mixed_batch_order(
    datasets: Sequence[Sequence[int]],
    shares: Sequence[Fraction],
    *,
    batch_size: int,
    first_batch: int,
    num_batches: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[list[tuple[int, int]]]:
    """`batch_order` of several datasets: the shards of the second one are numbered after those of the first, and so on.

    A dataset with a small share ends its epochs less often than one with a large share: epochs are each dataset's own.

    Args:
        datasets: samples of each shard of each dataset. One alone: the very order that `batch_order` gives.
        shares: of each dataset among the samples drawn; exact, above 0, their sum 1.
    """
    deal = Deal.of(shares, seed=seed, rank=rank)
    first = first_batch * batch_size
    streams = [
        Stream(num_samples, first=before, seed=seed if number == 0 else _hashed("dataset", seed, number), rank=rank, world=world)
        for number, (num_samples, before) in enumerate(zip(datasets, deal.drawn(first), strict=True))
    ]
    first_shards = np.cumsum([0, *(len(num_samples) for num_samples in datasets)])
    for batch in range(first_batch, num_batches):
        which = deal.datasets(batch * batch_size, (batch + 1) * batch_size)
        taken = [iter(stream.take(which.count(number))) for number, stream in enumerate(streams)]
        places = []
        for number in which:
            shard, sample = next(taken[number])
            places.append((int(first_shards[number]) + shard, sample))
        yield places


def _hashed(*parts: object) -> int:
    """A number that follows from these parts alone, below 2^56."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7])
