"""A quick look in float32 at the decision values of all filters at once, and how far from the truth it can be.

With m a point amid the support vectors, x' = x - m and s' = s - m,

    exp(-gamma |x - s|^2) = exp(-gamma |x'|^2) * exp(-gamma |s'|^2) * exp(2 gamma x' . s')

so the exponent comes out of one matrix product of x' with the vectors 2 gamma s', all filters side by side; exp(-gamma |s'|^2) goes into
the weights beforehand, and exp(-gamma |x'|^2) is one factor a row. It is computed in tiles that stay in a core's cache.

The bound is a worst case, not an estimate. It takes for granted what IEEE arithmetic gives (a sum of n terms errs by at most n roundings of
the sum of their magnitudes, in whatever order it runs) and that exp errs by at most 4 units in the last place (measured: 1). Three
things keep it narrow: m in the middle makes the products small; products and weighted sums are cut into short pieces, as n roundings
grow with n; and weights of one sign stand together, so that the sum of magnitudes, which the bound is a share of, is known for each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

ROUNDING = 2.0**-24
"""Largest relative error of one float32 operation."""
ROWS = 1024
TILE = 512
"""Rows, and support vectors at most, at a time: their kernel is 2 MB and stays in a core's cache."""
INNER = 128
"""Features multiplied at a time. Shorter sums make a narrower bound; 128 cost 4 % more than all at once."""
PIECE = 32
"""Weighted kernel values, or squared features, summed in float32; the sums of pieces are summed in float64."""
EXP_ROUNDINGS = 8
"""4 units in the last place are 8 roundings."""
TINY = 1e-20
"""What all that underflows can add up to."""
REACH = 40.0
"""Exponents larger than this are not trusted to float32: such rows are left to the second look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    """Where a filter's support vectors stand: columns `start` to `stop`, counted in pieces."""

    start: int
    stop: int
    gamma: float
    intercept: float
    longest: float
    """Largest |2 gamma s'|."""
    trusted: bool


class FirstLook:
    """Decision values in float32 with an error bound for each, of machines that share a dimension.

    Args:
        machines: support vectors (num, dim) float32, weights (num,) float64, gamma and intercept of each.
    """

    def __init__(self, machines: Sequence[tuple[np.ndarray, np.ndarray, float, float]], *, device: str = "cpu") -> None:
        self.device = device
        middle = np.concatenate([vectors for vectors, _, _, _ in machines]).mean(axis=0, dtype=np.float64).astype(np.float32)
        vectors, weights, self._columns, pieces = [], [], [], 0
        for support, dual, gamma, intercept in machines:
            shifted = support.astype(np.float64) - middle
            inner = 2 * gamma * shifted
            exponent = -gamma * (shifted**2).sum(axis=1)
            scaled, weighted = _by_sign(inner, dual * np.exp(exponent))
            trusted = bool(exponent.min(initial=0.0) > -REACH)
            count = len(weighted) // PIECE
            longest = float(np.sqrt((inner**2).sum(axis=1).max(initial=0.0)))
            self._columns.append(
                _Columns(start=pieces, stop=pieces + count, gamma=gamma, intercept=intercept, longest=longest, trusted=trusted)
            )
            pieces += count
            vectors.append(scaled)
            weights.append(weighted)
        self.dim = len(middle)
        self._pieces = pieces
        self._middle = torch.from_numpy(middle).to(device)
        wide = self.dim + -self.dim % INNER  # filled up with zeros to whole pieces
        joined = np.zeros((pieces * PIECE, wide), dtype=np.float32)
        joined[:, : self.dim] = np.concatenate(vectors)
        # Tiles of equal width: a narrow last one would cost nearly as much as a wide one.
        self._width = PIECE * -(-pieces // -(-pieces * PIECE // TILE))
        tiles = (np.ascontiguousarray(joined[at : at + self._width].T) for at in range(0, len(joined), self._width))
        self._tiles = [torch.from_numpy(tile).to(device) for tile in tiles]
        self._weights = torch.from_numpy(np.concatenate(weights).astype(np.float32)).to(device)
        # Buffers: what is allocated anew for each block is paid for page by page.
        self._kernel = torch.empty(ROWS * self._width, device=device)
        self._sums = torch.empty((ROWS, pieces), device=device)
        self._shifted = torch.zeros((ROWS, wide), device=device)

    def values(self, features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(n, dim) float32 on the device -> values and bounds, both (n, machines) float64. A bound may be infinite."""
        parts = [self._block(features[start : start + ROWS]) for start in range(0, len(features), ROWS)]
        values, bounds = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        # A process may have allowed matrix products in TF32 or bfloat16 for its networks; then nothing here is vouched for.
        return values, bounds if torch.get_float32_matmul_precision() == "highest" else np.full_like(bounds, np.inf)

    def _block(self, features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        rows = self._shifted[: len(features)]
        torch.sub(features, self._middle, out=rows[:, : self.dim])
        sums = self._sums[: len(rows)]
        for number, vectors in enumerate(self._tiles):
            start, stop = number * self._width, number * self._width + vectors.shape[1]
            kernel = self._kernel[: len(rows) * (stop - start)].view(len(rows), stop - start)
            self._products(rows, vectors, kernel)
            weights = self._weights[start:stop].view(-1, PIECE)
            sums[:, start // PIECE : stop // PIECE] = _dots(kernel.exp_().view(len(rows), -1, PIECE), weights)
        squares = _dots(rows.view(len(rows), -1, PIECE), rows.view(len(rows), -1, PIECE)).sum(dim=1, dtype=torch.float64)
        return self._values(sums, squares.cpu().numpy())

    def _products(self, rows: torch.Tensor, vectors: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(rows[:, :INNER], vectors[:INNER], out=out)
        for piece in range(INNER, rows.shape[1], INNER):
            out.addmm_(rows[:, piece : piece + INNER], vectors[piece : piece + INNER])

    def _values(self, sums: torch.Tensor, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, bounds = np.empty((len(sums), len(self._columns))), np.empty((len(sums), len(self._columns)))
        for column, of in enumerate(self._columns):
            factor = np.exp(-of.gamma * squares)
            mine = sums[:, of.start : of.stop]
            total, magnitude = (part.sum(dim=1, dtype=torch.float64).cpu().numpy() for part in (mine, mine.abs()))
            with np.errstate(over="ignore", invalid="ignore"):  # such rows get an infinite bound
                values[:, column] = factor * total + of.intercept
                magnitudes = factor * magnitude
            bounds[:, column] = self._bound(of, magnitudes, squares)
        return values, bounds

    def _bound(self, of: _Columns, magnitudes: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """How far values can be off.

        Args:
            magnitudes: (n,) sum of |weight x kernel| of each row.
            squares: (n,) |x'|^2.
        """
        inner = INNER + -(-self.dim // INNER)
        largest = np.sqrt(squares) * of.longest  # of the exponents
        # Of an exponent: a sum of `inner` products, and two for the roundings of its factors. Of the row's factor: a sum of a piece,
        # and three for x', which counts twice, and the exponent itself.
        exponent = (inner + 2) * largest + (PIECE + 3) * of.gamma * squares
        relative = ROUNDING * (exponent + EXP_ROUNDINGS + PIECE + 2)
        # 1.05: second-order terms, of all that is below 1 %, and the float64 part, which is smaller by nine digits.
        bound = 1.05 * relative * magnitudes + 2.0**-48 * (magnitudes + abs(of.intercept)) + TINY
        sure = of.trusted & (largest < REACH) & (of.gamma * squares < REACH) & (relative < 0.01) & np.isfinite(magnitudes)
        return np.where(sure, bound, np.inf)


def _dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products over the last axis, (rows, pieces, length) x (pieces, length) or of a's shape -> (rows, pieces)."""
    if a.device.type != "cpu":
        return (a * b).sum(dim=2)
    # numpy reads both once and stores no products: half the time of torch here.
    return torch.from_numpy(np.einsum("rpl,rpl->rp" if b.ndim == 3 else "rpl,pl->rp", a.numpy(), b.numpy()))


def _by_sign(vectors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of positive weight first, then the others, both filled up to whole pieces with vectors that weigh nothing."""
    order, fill = [], len(weights)
    for rows in (np.flatnonzero(weights > 0), np.flatnonzero(weights <= 0)):
        order += [*rows.tolist(), *[fill] * (-len(rows) % PIECE)]
    padded = np.concatenate([vectors, np.zeros((1, vectors.shape[1]))])
    return padded[order], np.append(weights, 0.0)[order]
