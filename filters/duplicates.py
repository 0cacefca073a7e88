"""When two images are near-duplicates, which is the better one, and which images form a group. Arrays only.

Two images are near-duplicates if the cosine of their CLIP features is high enough *and* their difference hashes differ in few enough of
64 bits, as they are or one of them mirrored. CLIP alone takes two photos of one scene for each other, the hash alone takes plain
pictures for each other. The nearer they are by the one, the farther they may be by the other.

Hashes are compared first: 8 bytes an image instead of 1,024, and few pairs of distinct photos pass (3 of 100,000 of those measured in
docs/benchmarks.md), so that features are looked at for few pairs.

Verdicts depend on the two images alone, never on the batch or the number of workers: features are float16, whose products are multiples
of 2^-48, so a dot product of unit vectors is *exact* in float64 in whatever order it is summed.

A group is a star: its centre is better than all others, and each of them is a near-duplicate of the centre itself. Chains (a like b,
b like c, c unlike a: the frames of a film) therefore end after one step, and no group grows without bound.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from winnow.configs import STRICT
from winnow.errors import ConfigError

Mode = Literal["keep_best", "down_weight", "mark", "off"]
CHOICES: tuple[Mode, ...] = ("keep_best", "down_weight", "mark", "off")
Limits = tuple[tuple[float, int], ...]
"""What makes two images near-duplicates: the least cosine of CLIP features and the most differing bits of 64, in pairs; one suffices."""
QUERY_BLOCK, BASE_BLOCK = 1024, 4096
"""Hashes that are compared each with each before features are looked at."""
TILE_ROWS = 16
"""... and at a time: with BASE_BLOCK others they stay in a core's cache."""
EXACT_BLOCK = 4096
"""Pairs whose cosine is computed in float64 at a time."""
DENSE = 16
"""If one in so many of all pairs of some images is asked for, a matrix product is cheaper than pair by pair."""
NEIGHBOURS = 32
"""Better near-duplicates that are kept of an image, the best ones: a picture found 100,000 times has five billion pairs."""
PRUNE_ABOVE = 1_000_000
"""Pairs held before those beyond NEIGHBOURS go."""
PAIR = np.dtype(
    [
        ("worse", "S32"), ("worse_partition", "i4"), ("worse_pixels", "i8"),
        ("better", "S32"), ("better_partition", "i4"), ("better_pixels", "i8"),
        ("cosine", "f8"), ("hamming", "u1"), ("mirrored", "?"),
    ]
)  # fmt: skip
"""A pair of near-duplicates: uids, which partition of a list each is in, pixels; cosine, differing bits of the hashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateConfig:
    """What counts as a near-duplicate, and what becomes of it. GLIDE does not thin; thinning stopped DALL-E 2 from repeating images."""

    __pydantic_config__: ClassVar = STRICT

    mode: Mode = "keep_best"
    """keep_best drops all of a group but the best; down_weight keeps all with weight 1 / size; mark only records; off does not search."""
    limits: Limits = ((0.97, 12), (0.91, 5))
    """Cosine of CLIP features, at least, and differing bits of the hashes, at most; one suffices. Chosen in docs/benchmarks.md."""
    exact_rows: int = 2_000_000
    """Up to so many images every pair is compared; above, only those in near cells."""
    cell_rows: int = 4096
    """Images a cell, on average, when cells are used."""
    nprobe: int = 4
    """Cells in which an image's duplicates are looked for. More finds more: see docs/near-duplicates.md for the recall."""
    references: dict[str, str] = field(default_factory=dict)
    """Name -> evaluation set that must not be trained on: a folder of images, a features table, or another run's workspace."""

    def __post_init__(self) -> None:
        if self.mode not in CHOICES:
            raise ConfigError(f"duplicates.mode must be one of {', '.join(CHOICES)}, got {self.mode!r}")
        for cosine, bits in self.limits:
            if not 0 < cosine <= 1:
                raise ConfigError(f"duplicates.limits: a cosine must be above 0 and at most 1, got {cosine}")
            if not 0 <= bits < 32:
                raise ConfigError(f"duplicates.limits: differing bits must be 0 to 31 (32 of 64 differ by chance), got {bits}")
        pairs = itertools.pairwise(self.limits)
        if not self.limits or any(cosine <= lower or bits <= fewer for (cosine, bits), (lower, fewer) in pairs):
            raise ConfigError(
                f"duplicates.limits must be pairs of a cosine and differing bits, each lower in both than the one before; got {self.limits}"
            )
        for name in ("exact_rows", "cell_rows", "nprobe"):
            if getattr(self, name) < 1:
                raise ConfigError(f"duplicates.{name} must be at least 1, got {getattr(self, name)}")
        for name in self.references:
            if not name.replace("_", "").replace("-", "").isalnum() or name != name.lower():
                raise ConfigError(f"duplicates.references: {name!r} must be lower-case letters, digits, - and _: it becomes a reason")


class Stacked:
    """Features of several partitions as if they were one array: only rows that are asked for are copied, which few are."""

    def __init__(self, parts: "Sequence[np.ndarray | Stacked]") -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape: tuple[int, int] = (int(self._starts[-1]), parts[0].shape[1] if parts else 0)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.shape[1]), np.float16)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(part):
            here = np.flatnonzero(part == number)
            found[here] = self._parts[number][rows[here] - self._starts[number]]
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Rows to compare."""

    uids: np.ndarray
    """(n,) S32."""
    vectors: np.ndarray | Stacked
    """(m, dim) float16, about unit length."""
    dhashes: np.ndarray
    """(n,) uint64."""
    pixels: np.ndarray
    """(n,) int64: width times height."""
    partitions: np.ndarray
    """(n,) int32: which of a list of partitions."""
    places: np.ndarray | None = None
    """(n,) int64: the row of `vectors` that each image has; as they come if None. So a choice of images copies no features."""

    def __len__(self) -> int:
        return len(self.uids)

    def take(self, rows: np.ndarray) -> "Images":
        return Images(
            uids=self.uids[rows], vectors=self.vectors, dhashes=self.dhashes[rows], pixels=self.pixels[rows],
            partitions=self.partitions[rows], places=rows if self.places is None else self.places[rows],
        )  # fmt: skip

    def features(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), dim) float16."""
        found: np.ndarray = self.vectors[rows if self.places is None else self.places[rows]]
        return found

    def ranks(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) the smaller, the better: the better of two near-duplicates has more pixels, then the smaller uid."""
        found, place_of = _distinct(rows)
        rank = np.empty(len(found), np.int64)
        rank[np.lexsort((self.uids[found], -self.pixels[found]))] = np.arange(len(found))
        return rank[place_of]


def mirrored_hash(dhashes: np.ndarray) -> np.ndarray:
    """The difference hash of the mirrored image, from that of the image: each row of 8 bits reversed and inverted.

    Exact but where two neighbouring pixels of the miniature are equal: such a bit is 0 both ways.

    Args:
        dhashes: (n,) uint64.
    """
    rows = np.ascontiguousarray(dhashes, dtype=np.uint64).view(np.uint8)
    turned = np.packbits(np.unpackbits(rows).reshape(-1, 8)[:, ::-1], axis=1)
    return ~turned.ravel().view(np.uint64)


def hash_distance(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) differing bits of difference hashes, the smaller of as they are and one mirrored; and whether mirrored was smaller."""
    straight = np.bitwise_count(one ^ other)
    turned = np.bitwise_count(mirrored_hash(one) ^ other)
    return np.minimum(straight, turned), turned < straight


def exact_cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n, dim) float16 twice -> (n,) float64 cosines of the rows: the same bits in any batch and order of summation."""
    found = np.empty(len(one))
    for start in range(0, len(one), EXACT_BLOCK):
        x, y = (side[start : start + EXACT_BLOCK].astype(np.float64) for side in (one, other))
        lengths = np.einsum("nd,nd->n", x, x) * np.einsum("nd,nd->n", y, y)
        found[start : start + EXACT_BLOCK] = np.einsum("nd,nd->n", x, y) / np.sqrt(np.maximum(lengths, 1e-24))
    return found


def are_near(cosines: np.ndarray, bits: np.ndarray, limits: Limits) -> np.ndarray:
    """(n,) whether pairs with these cosines and differing bits are near-duplicates."""
    return np.any([(cosines >= cosine) & (bits <= most) for cosine, most in limits], axis=0)


def cosines_of(one: Images, rows: np.ndarray, other: Images, columns: np.ndarray) -> np.ndarray:
    """(n,) float64 cosines of pairs of images, exact as `exact_cosines`."""
    (ours, row), (theirs, column) = _distinct(rows), _distinct(columns)
    if len(rows) * DENSE >= len(ours) * len(theirs):
        x, y = one.features(ours).astype(np.float64), other.features(theirs).astype(np.float64)
        lengths = np.einsum("nd,nd->n", x, x)[row] * np.einsum("nd,nd->n", y, y)[column]
        dense: np.ndarray = (x @ y.T)[row, column] / np.sqrt(np.maximum(lengths, 1e-24))
        return dense
    found = np.empty(len(rows))
    for start in range(0, len(rows), EXACT_BLOCK):
        part = slice(start, start + EXACT_BLOCK)
        found[part] = exact_cosines(one.features(rows[part]), other.features(columns[part]))
    return found


def alike(one: np.ndarray, other: np.ndarray, max_hamming: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `one` and of `other`, (n,) and (m,) difference hashes, that differ in at most so many bits, as they are or mirrored."""
    turned = mirrored_hash(one)
    differing = np.empty((TILE_ROWS, len(other)), np.uint64)
    bits, mirrored = (np.empty(differing.shape, np.uint8) for _ in range(2))
    found = []
    for start in range(0, len(one), TILE_ROWS):
        size = min(TILE_ROWS, len(one) - start)
        for hashes, counts in ((one, bits), (turned, mirrored)):
            np.bitwise_xor(hashes[start : start + size, None], other, out=differing[:size])
            np.bitwise_count(differing[:size], out=counts[:size])
        np.minimum(bits, mirrored, out=bits)
        found.append(np.flatnonzero(bits[:size] <= max_hamming) + start * len(other))
    return np.divmod(np.concatenate([np.empty(0, np.int64), *found]), max(1, len(other)))


def near_rows(query: Images, base: Images, limits: Limits, *, same: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of `query` and of `base` that are near-duplicates, a block of pairs at a time.

    Args:
        same: both are the same rows; each pair comes once, and none of a row with itself.

    Raises:
        ConfigError: features of the two have different dimensions.
    """
    if not len(query) or not len(base):
        return
    if query.vectors.shape[1] != base.vectors.shape[1]:
        raise ConfigError(f"features have {query.vectors.shape[1]} and {base.vectors.shape[1]} dimensions: they are of different models")
    most_bits = max(bits for _, bits in limits)
    for j in range(0, len(base), BASE_BLOCK):
        for i in range(0, min(len(query), j + BASE_BLOCK) if same else len(query), QUERY_BLOCK):
            rows, columns = alike(query.dhashes[i : i + QUERY_BLOCK], base.dhashes[j : j + BASE_BLOCK], most_bits)
            rows, columns = rows + i, columns + j
            if same:
                wanted = rows < columns
                rows, columns = rows[wanted], columns[wanted]
            bits, _ = hash_distance(query.dhashes[rows], base.dhashes[columns])
            wanted = are_near(cosines_of(query, rows, base, columns), bits, limits)
            if wanted.any():
                yield rows[wanted], columns[wanted]


def near_pairs(query: Images, bases: Iterable[Images], limits: Limits, *, within: bool = True) -> np.ndarray:
    """All pairs of `query` with itself and with `bases`, as PAIR, sorted; of each image the NEIGHBOURS best better ones.

    Args:
        within: compare `query` with itself, too.
    """
    found, held = [np.empty(0, PAIR)], 0
    for base in itertools.chain([query] if within else [], bases):
        for rows, columns in near_rows(query, base, limits, same=base is query):
            found.append(_ranked(query, base, *_best_of_block(query, base, rows, columns)))
            held += len(found[-1])
            if held > PRUNE_ABOVE:
                found = [best_neighbours(np.concatenate(found))]
                held = len(found[0])
    return best_neighbours(np.concatenate(found))


def _is_better(query: Images, base: Images, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whether the query's image is the better of each pair: more pixels, then the smaller uid."""
    larger = query.pixels[rows] > base.pixels[columns]
    return larger | ((query.pixels[rows] == base.pixels[columns]) & (query.uids[rows] < base.uids[columns]))


def _best_of_block(query: Images, base: Images, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each image of a block the NEIGHBOURS best better ones, before anything costly is done with a pair."""
    ours = _is_better(query, base, rows, columns)
    theirs, mine = np.flatnonzero(~ours), np.flatnonzero(ours)
    theirs = theirs[np.lexsort((base.ranks(columns[theirs]), rows[theirs]))]
    mine = mine[np.lexsort((query.ranks(rows[mine]), columns[mine]))]
    chosen = np.concatenate([theirs[_places(rows[theirs]) < NEIGHBOURS], mine[_places(columns[mine]) < NEIGHBOURS]])
    return rows[chosen], columns[chosen]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct rows, and the place of each among them: as `np.unique`, without sorting; rows of one block lie close together."""
    if not len(rows):
        return rows, rows
    low = rows.min()
    there = np.zeros(rows.max() - low + 1, dtype=bool)
    there[rows - low] = True
    return np.flatnonzero(there) + low, (np.cumsum(there) - 1)[rows - low]


def _places(keys: np.ndarray) -> np.ndarray:
    """The place of each element among the equal ones, of sorted keys: 0, 1, 0, 0, 1, 2, ..."""
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    begins = np.flatnonzero(first)
    return np.arange(len(keys)) - np.repeat(begins, np.diff(np.append(begins, len(keys))))


def _ranked(query: Images, base: Images, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Pairs with the better image of each named as such."""
    pairs = np.empty(len(rows), PAIR)
    ours = _is_better(query, base, rows, columns)
    for side, mine in (("better", ours), ("worse", ~ours)):
        pairs[side] = np.where(mine, query.uids[rows], base.uids[columns])
        pairs[f"{side}_partition"] = np.where(mine, query.partitions[rows], base.partitions[columns])
        pairs[f"{side}_pixels"] = np.where(mine, query.pixels[rows], base.pixels[columns])
    pairs["hamming"], pairs["mirrored"] = hash_distance(query.dhashes[rows], base.dhashes[columns])
    pairs["cosine"] = cosines_of(query, rows, base, columns)
    return pairs[pairs["worse"] != pairs["better"]]


def best_neighbours(pairs: np.ndarray) -> np.ndarray:
    """Pairs sorted by the worse image, then from the best of its better ones on; NEIGHBOURS of them at most, each pair once.

    The best NEIGHBOURS of all that an image has are among the best of each part, so it does not matter in which parts pairs were found.
    """
    if not len(pairs):
        return pairs
    pairs = pairs[np.lexsort((pairs["better"], -pairs["better_pixels"], pairs["worse"]))]
    fresh = np.ones(len(pairs), dtype=bool)
    fresh[1:] = (pairs["worse"][1:] != pairs["worse"][:-1]) | (pairs["better"][1:] != pairs["better"][:-1])
    pairs = pairs[fresh]
    return pairs[_places(pairs["worse"]) < NEIGHBOURS]


def stars(worse: np.ndarray, better: np.ndarray, count: int) -> np.ndarray:
    """The centre of each image: greedily from the best on, an image whose better near-duplicates are no centres is one itself.

    Args:
        worse: (m,) int64 images of pairs, numbered from the best (0) on: `worse > better`.
        better: (m,) the other images.
        count: images in all.

    Returns:
        (count,) int64: the best centre that an image is a near-duplicate of; of a centre itself.
    """
    undecided, is_centre = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    while undecided.any():
        # Settle all that no longer depends on anything open: as many at once as there are independent ones.
        waits = np.zeros(count, dtype=bool)
        waits[worse[undecided[worse] & undecided[better]]] = True
        is_centre |= undecided & ~waits
        undecided &= ~is_centre
        undecided[worse[is_centre[better]]] = False
    centre = np.arange(count)
    to_centre = is_centre[better] & ~is_centre[worse]
    centre[~is_centre] = count
    np.minimum.at(centre, worse[to_centre], better[to_centre])
    return centre
