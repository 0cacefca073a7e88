"""What a training reads: one dataset of shards or several, the share of each, and what each sample weighs.

A dataset is a folder of plain tars beside an `index.json`. Weights, where there are some, are beside them:

    weights/<shard>.npy   float32, one a sample, in the order of the tar; 1 on average
    weights/index.json   the sha256 of each shard they were made for, and of each file
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np

from winnow.configs import STRICT
from winnow.errors import ConfigError, ShardError

WEIGHTS = "weights/index.json"
FINEST_SHARE = 1_000_000
"""Shares are settled to fractions of at most this denominator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataShare:
    """One of the datasets that a training mixes."""

    __pydantic_config__: ClassVar = STRICT

    shards: str
    """Folder of shards as `winnow shard` writes them (plain USTAR, index.json), a path or url. In a run's config also the name of a
    dataset of its own workspace."""
    share: float
    """Of the samples drawn, in (0, 1]; the shares of a training add up to 1."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"the share of {self.shards!r} must be more than 0 and at most 1, got {self.share}")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """Datasets with their shares, settled, and the files of their samples' weights."""

    parts: tuple[ShardIndex, ...]
    shares: tuple[Fraction, ...]
    """Exact, above 0, their sum 1."""
    weights: tuple[dict[str, str] | None, ...]
    """Of each dataset: shard -> sha256 of its weights; None where every sample weighs 1."""

    @property
    def num_samples(self) -> int:
        return sum(part.num_samples for part in self.parts)

    @property
    def url(self) -> str:
        return " and ".join(part.url for part in self.parts)

    @property
    def dataset(self) -> str:
        """In words: its name, or each name with its share."""
        if len(self.parts) == 1:
            return self.parts[0].dataset
        return " + ".join(f"{100 * float(share):.4g} % {part.dataset}" for part, share in zip(self.parts, self.shares, strict=True))

    @property
    def digest(self) -> str:
        """Of the samples and how they are mixed, wherever they lie. One dataset: that of its index."""
        if len(self.parts) == 1:
            return self.parts[0].digest
        mixed = [[part.digest, str(share)] for part, share in zip(self.parts, self.shares, strict=True)]
        return hashlib.sha256(json.dumps(mixed).encode()).hexdigest()

    @property
    def weighted(self) -> bool:
        return any(weights is not None for weights in self.weights)

    @property
    def unweighted(self) -> list[str]:
        """Where datasets lie that have no weights although others have: each of their samples weighs 1."""
        return [part.url for part, weights in zip(self.parts, self.weights, strict=True) if self.weighted and weights is None]

    @property
    def weights_digest(self) -> str | None:
        """None: every sample weighs 1."""
        if not self.weighted:
            return None
        return hashlib.sha256(json.dumps(self.weights, sort_keys=True).encode()).hexdigest()

    def lineage(self) -> list[dict[str, Any]]:
        """What a checkpoint says of where it comes from: each dataset by name, digest and share. JSON-able, without places."""
        return [
            {"dataset": part.dataset, "digest": part.digest, "samples": part.num_samples, "share": str(share), "weighted": bool(weights)}
            for part, share, weights in zip(self.parts, self.shares, self.weights, strict=True)
        ]


def read_data(shards: str | Sequence[DataShare], *, weighted: bool = False) -> TrainingData:
    """Reads the indexes of a training's data: one folder of shards, or several with shares.

    Args:
        weighted: reads the weights of samples, too. A mixed-in dataset may have none: its samples weigh 1.

    Raises:
        ConfigError: shares do not add up to 1, or the same samples are named twice.
        ShardError: an index is missing, damaged or empty; or no dataset has weights, or they are of other shards.
    """
    wanted = [DataShare(shards=shards, share=1.0)] if isinstance(shards, str) else list(shards)
    shares = _settled(wanted)
    parts = tuple(read_index(one.shards) for one in wanted)
    if len({part.digest for part in parts}) < len(parts):
        raise ConfigError(f"the same samples are mixed with themselves: {', '.join(part.url for part in parts)}. Name each dataset once")
    weights = tuple(read_weights(part) if weighted else None for part in parts)
    data = TrainingData(parts=parts, shares=shares, weights=weights)
    if weighted and not data.weighted:
        raise ShardError(f"{data.url}: no {WEIGHTS} there, so samples have no weights; run `winnow weigh CONFIG`, or train without")
    return data


def _settled(wanted: Sequence[DataShare]) -> tuple[Fraction, ...]:
    """Exact shares; the last one is what the others leave."""
    if not wanted:
        raise ConfigError("a training needs at least one dataset")
    if abs(sum(one.share for one in wanted) - 1) > 1e-6:
        named = " + ".join(f"{one.share:g}" for one in wanted)
        raise ConfigError(f"shares of a training's data must add up to 1: {named} = {sum(one.share for one in wanted):g}")
    shares = [Fraction(one.share).limit_denominator(FINEST_SHARE) for one in wanted[:-1]]
    last = 1 - sum(shares, Fraction(0))
    if min([*shares, last]) <= 0:
        raise ConfigError(f"a share is too small: at least one in {FINEST_SHARE:,} is needed")
    return (*shares, last)


def read_weights(index: ShardIndex) -> dict[str, str] | None:
    """Shard -> sha256 of its weights file; None if the dataset has none. Raises ShardError if they are of other shards, or damaged."""
    from winnow.storage import Storage

    storage = Storage(index.url)
    if not storage.exists(WEIGHTS):
        return None
    try:
        made_for = {
            str(one["shard"]): (str(one["shard_sha256"]), str(one["sha256"])) for one in json.loads(storage.read_bytes(WEIGHTS))["shards"]
        }
    except (ValueError, KeyError, TypeError) as problem:
        raise ShardError(
            f"{index.url}/{WEIGHTS} is damaged ({type(problem).__name__}: {problem}); run `winnow weigh CONFIG` again"
        ) from problem
    for shard in index.shards:
        if made_for.get(shard.name, ("", ""))[0] != shard.sha256:
            raise ShardError(f"{index.url}/{WEIGHTS} was made for other shards: {shard.name} has changed; run `winnow weigh CONFIG` again")
    return {shard.name: made_for[shard.name][1] for shard in index.shards}


def shard_weights(url: str, shard: ShardEntry, sha256: str) -> np.ndarray:
    """(num_samples,) float32: weights of a shard's samples, in its order. Raises ShardError if the file is not what it must be."""
    from winnow.storage import Storage

    path = f"weights/{shard.name.removesuffix('.tar')}.npy"
    try:
        content = Storage(url).read_bytes(path)
        weights: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except FileNotFoundError:
        raise ShardError(f"{url}/{path} is missing; run `winnow weigh CONFIG` again") from None
    except (ValueError, EOFError) as problem:
        raise ShardError(f"{url}/{path} is damaged ({problem}); run `winnow weigh CONFIG` again") from problem
    if hashlib.sha256(content).hexdigest() != sha256 or weights.shape != (shard.num_samples,) or weights.dtype != np.float32:
        raise ShardError(f"{url}/{path} is not what {WEIGHTS} says; run `winnow weigh CONFIG` again")
    return weights
