"""Which labels fit a classifier, which find its threshold, which test it: by groups of near-duplicates, for good.

A group is split as a whole, or the same picture in two sizes would be fitted on and tested with. The split of a group is
drawn by hashing the smallest uid of its *eligible* members, those drawn as the filter's scope demands, so that labels added
later move nothing between splits (unless one of them shows two groups to be one). Everything found by search or near the
boundary is for fitting only: it is not drawn like what the filter will meet, and must not prove anything.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from filters.catalog import Scope
from winnow.configs import STRICT
from winnow.errors import ConfigError

CertificateKind = Literal["held_out", "k_fold"]
"""How positives prove a promise: kept from fitting, or cross-fitted (filters/certificate.py)."""
Split = Literal["fit", "calibrate", "test", "unused"]
SPLITS: tuple[Split, ...] = ("fit", "calibrate", "test", "unused")
MAX_HAMMING = 6
"""Bits in which the 64-bit difference hashes of near-duplicates differ at most. Alone it takes plain pictures for each other."""
MIN_COSINE = 0.97
"""Cosine of the features of near-duplicates, at least."""


EVERYTHING = 2.0**-40
"""Shares that leave less than this leave nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """Shares of the eligible groups; what is left is for fitting."""

    __pydantic_config__: ClassVar = STRICT

    calibrate_share: float = 0.5
    """Finds the threshold, and proves it: 1 % at 95 % takes 299 positives here."""
    test_share: float = 0.2
    """Checks the result once more, on labels that took part in nothing."""

    def for_kind(self, kind: CertificateKind) -> "SplitConfig":
        """For a k-fold certificate all that is not tested calibrates, and fits as well."""
        if kind == "held_out":
            return self
        return SplitConfig(calibrate_share=1 - self.test_share - EVERYTHING, test_share=self.test_share)

    def __post_init__(self) -> None:
        if not (0 < self.calibrate_share < 1 and 0 <= self.test_share < 1 and self.calibrate_share + self.test_share < 1):
            raise ConfigError(
                "calibrate_share and test_share must be shares that leave something for fitting, "
                f"got {self.calibrate_share} and {self.test_share}"
            )


def near_duplicate_groups(
    uids: Sequence[str], features: np.ndarray, dhashes: np.ndarray, given: Sequence[str | None] | None = None
) -> list[str]:
    """The group of each image, named by its smallest uid.

    Two images are one group if difference hash and feature both say so, or if they share a given group, or through a third.

    Args:
        uids: n, unique.
        features: (n, dim) float, any length of vector but zero.
        dhashes: (n,) int64.
        given: group known from elsewhere (frames of one film), or None for those without.
    """
    n = len(uids)
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = root(i), root(j)
        if uids[b] < uids[a]:
            a, b = b, a
        parent[b] = a

    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    bits = dhashes.astype(np.int64).view(np.uint64)
    for i in range(n - 1):
        close = np.flatnonzero(np.bitwise_count(bits[i + 1 :] ^ bits[i]) <= MAX_HAMMING) + i + 1
        for j in close[unit[close] @ unit[i] >= MIN_COSINE]:
            join(i, int(j))
    first_of: dict[str, int] = {}
    for i, name in enumerate(given or ()):
        if name is not None:
            join(i, first_of.setdefault(name, i))
    return [uids[root(i)] for i in range(n)]


def is_eligible(scope: Scope, value: int, origin: str) -> bool:
    """Whether a label is drawn as the scope demands and may calibrate or test.

    An audit's labels may not: an audit is drawn from what a filter keeps, not from the population.
    """
    if origin == "random":
        return scope == "population" or value == 0
    return origin == "import" and scope == "curated" and value == 1


def assign_splits(
    uids: Sequence[str], values: Sequence[int], origins: Sequence[str], groups: Sequence[str], *, scope: Scope, config: SplitConfig
) -> list[Split]:
    """The split of each label. "unused": not eligible, but a near-duplicate of one that calibrates or tests."""
    eligible = [is_eligible(scope, value, origin) for value, origin in zip(values, origins, strict=True)]
    key: dict[str, str] = {}
    for uid, group, able in zip(uids, groups, eligible, strict=True):
        if able:
            key[group] = min(uid, key.get(group, uid))
    drawn = {group: _draw(smallest, config) for group, smallest in key.items()}
    splits: list[Split] = []
    for group, able in zip(groups, eligible, strict=True):
        split = drawn.get(group, "fit")
        splits.append(split if able or split == "fit" else "unused")
    return splits


def _draw(uid: str, config: SplitConfig) -> Split:
    # Not the uid's own digits: random draws of images rank by hashes of them too, and the two must not be related.
    point = int.from_bytes(hashlib.sha256(b"split:" + uid.encode()).digest()[:8]) / 2**64
    if point < config.calibrate_share:
        return "calibrate"
    return "test" if point < config.calibrate_share + config.test_share else "fit"
