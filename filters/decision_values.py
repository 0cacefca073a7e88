"""Decision values of RBF support vector machines, all filters in one pass, the same to the last bit however rows are batched.

f(x) = sum_i dual_i exp(-gamma |x - s_i|^2) + intercept

A matrix product sums in an order that depends on the shape of the batch, on the number of threads and on the machine; in
float32 that changes verdicts, in float64 last digits, and a log whose bytes depend on the batch cannot be checked. So a
*score* is defined without any of that: the exact value of f, rounded to a multiple of STEP. It is computed by float64
matrix products, whose distance from the exact value is bounded beforehand; where that bound leaves two roundings possible
(fewer than one row in a thousand) the row is computed again alone, in extended precision.

The decision log needs a row's cell (`winnow.decisions.coarsened`): the score in full near the threshold, a coarse one elsewhere. That takes
three looks. In float32, with a bound (filters/first_look.py): settles all rows that lie clear of the edges of their cells. In float64,
for the few that do not. In extended precision, for what float64 cannot tell. Each look passes on what it is not sure of, so the result is
that of the definition. A row is dropped when f >= threshold - STEP / 2, which is what rounding to a score at or above the threshold means;
scikit-learn's `decision_function`, compared with the same number, gives the same verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from filters.first_look import FirstLook
from winnow.decisions import SCORE_STEP, coarsened
from winnow.errors import ConfigError

STEP = SCORE_STEP
"""Scores are multiples of it (1.5e-5; they spread over about 1). Verdicts equal those of the exact value rounded likewise."""
ROWS = 512
TILE = 256
"""Rows, and support vectors, at a time in float64: their kernel is 1 MB and stays in a core's cache."""
CHUNK = 8192
"""Rows that are looked at a first time before those that need a second look are gathered."""
UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True, kw_only=True, eq=False)
class Svm:
    """A fitted machine, all that scoring needs. Positive classes score high."""

    support_vectors: np.ndarray
    """(num, dim) float32: features as they were given, so nothing is lost by storing them."""
    dual: np.ndarray
    """(num,) float64, label times weight of each support vector."""
    intercept: float
    gamma: float

    def __post_init__(self) -> None:
        vectors, dual = self.support_vectors, self.dual
        if vectors.dtype != np.float32 or vectors.ndim != 2 or dual.dtype != np.float64 or dual.shape != vectors.shape[:1]:
            raise ValueError(f"support vectors {vectors.dtype} {vectors.shape} and weights {dual.dtype} {dual.shape} do not fit each other")
        if not (np.all(np.isfinite(vectors)) and np.all(np.isfinite(dual)) and np.isfinite(self.intercept) and 0 < self.gamma < np.inf):
            raise ValueError("support vectors, weights, intercept and gamma must be finite, gamma positive")

    @property
    def dim(self) -> int:
        return int(self.support_vectors.shape[1])


class Scorer:
    """Scores rows by several machines at once.

    Args:
        device: where the matrix products run, "cpu" or "cuda". What comes out does not depend on it.
    """

    def __init__(self, svms: Sequence[Svm], *, device: str = "cpu") -> None:
        dims = {svm.dim for svm in svms}
        if len(dims) > 1:
            raise ConfigError(f"filters fitted on features of {sorted(dims)} dimensions cannot be used together; fit them anew")
        self.svms = tuple(svms)
        self.device = device
        self.second_looks = 0
        """Scores that `coarse_scores` had to compute in float64, so far."""
        self._first: FirstLook | None = None
        self._exact = [_Exact(svm, device) for svm in svms]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(n, dim) float32 features -> (n, filters) float64 scores in full.

        Raises:
            ConfigError: the features are of another dimension than those the filters were fitted on, or not all finite.
        """
        if not self.svms or not len(features):
            return np.zeros((len(features), len(self.svms)))
        features = self._checked(features)
        return np.column_stack([exact.scores(features) for exact in self._exact])

    def coarse_scores(self, features: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
        """(n, dim) float32 features -> (n, filters) float64 scores as the decision log has them, several times as fast.

        Equal to `coarsened(scores(features)[:, i], thresholds[i])` of each filter i, to the last bit.

        Raises:
            ConfigError: as `scores`.
        """
        if len(thresholds) != len(self.svms):
            raise ValueError(f"{len(thresholds)} thresholds for {len(self.svms)} filters")
        if not self.svms or not len(features):
            return np.zeros((len(features), len(self.svms)))
        features = self._checked(features)
        return np.concatenate([self._chunk(features[start : start + CHUNK], thresholds) for start in range(0, len(features), CHUNK)])

    def first_look(self) -> FirstLook:
        """The float32 pass, laid ready when it is first asked for."""
        if self._first is None:
            machines = [(svm.support_vectors, svm.dual, svm.gamma, svm.intercept) for svm in self.svms]
            self._first = FirstLook(machines, device=self.device)
        return self._first

    def _chunk(self, features: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
        values, bounds = self.first_look().values(torch.from_numpy(features).to(self.device))
        found = np.empty_like(values)
        for column, threshold in enumerate(thresholds):
            with np.errstate(invalid="ignore"):  # an infinite bound settles nothing
                low, high = (coarsened(_on_grid(values[:, column] + sign * bounds[:, column]), threshold) for sign in (-1, 1))
            found[:, column] = low
            unsure = np.flatnonzero(~(low == high))
            self.second_looks += len(unsure)
            if len(unsure):
                found[unsure, column] = coarsened(self._exact[column].scores(features[unsure]), threshold)
        return found

    def _checked(self, features: np.ndarray) -> np.ndarray:
        dim = self.svms[0].dim
        if features.ndim != 2 or features.shape[1] != dim:
            raise ConfigError(f"the filters were fitted on features of {dim} dimensions, these have shape {features.shape}; fit them anew")
        features = np.ascontiguousarray(features, dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise ConfigError(f"features must be finite numbers; {len(bad)} of {len(features)} rows are not, the first is row {bad[0]}")
        return features


class _Exact:
    """Scores in full by one machine: float64, and extended precision where float64 cannot tell how a value rounds."""

    def __init__(self, svm: Svm, device: str) -> None:
        self.svm, self.device = svm, device
        vectors = torch.from_numpy(svm.support_vectors).to(device, torch.float64)
        self._vectors = vectors.T.contiguous()
        self._lengths = (vectors**2).sum(dim=1)
        self._dual = torch.from_numpy(svm.dual).to(device)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(n, dim) float32 -> (n,) float64."""
        return np.concatenate([self._block(features[start : start + ROWS]) for start in range(0, len(features), ROWS)])

    def _block(self, features: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(features).to(self.device, torch.float64)
        lengths = (rows**2).sum(dim=1, keepdim=True)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for start in range(0, len(self._dual), TILE):
            stop = min(start + TILE, len(self._dual))
            kernel = torch.mm(rows, self._vectors[:, start:stop]).mul_(-2)
            kernel.add_(self._lengths[start:stop]).add_(lengths).clamp_(min=0).mul_(-self.svm.gamma).exp_()
            sums += kernel @ self._dual[start:stop]
        return _rounded((sums + self.svm.intercept).cpu().numpy(), self.svm, features, float(lengths.max()))


def _on_grid(values: np.ndarray) -> np.ndarray:
    """Values to the nearest multiples of STEP, upwards from the middle."""
    rounded: np.ndarray = np.floor(values / STEP + 0.5) * STEP + 0.0  # STEP is a power of two; no negative zeros
    return rounded


def _rounded(values: np.ndarray, svm: Svm, features: np.ndarray, longest: float) -> np.ndarray:
    """Values to multiples of STEP; those that lie too close to the middle between two are computed again."""
    bound = error_bound(svm, longest)
    steps = values / STEP
    rounded = _on_grid(values)
    for row in np.flatnonzero(np.abs(steps - np.floor(steps) - 0.5) * STEP <= bound):
        rounded[row] = float(np.floor(exact_value(svm, features[row]) / np.longdouble(STEP) + np.longdouble(0.5))) * STEP + 0.0
    return rounded


def error_bound(svm: Svm, longest: float) -> float:
    """How far a float64 value can be from the exact one, in whatever order the sums ran.

    Of the squared distance: three sums of dim products, each at most (|x| + |s|)^2. Of the kernel, at most 1: gamma times that, and
    the exponential itself (4 units). Of the final sum: one unit a term. All to first order, and doubled for the rest.

    Args:
        longest: largest |x|^2 among the rows.
    """
    reach = (np.sqrt(longest) + np.sqrt(float((svm.support_vectors.astype(np.float64) ** 2).sum(axis=1).max(initial=0.0)))) ** 2
    of_kernel = svm.gamma * (svm.dim + 4) * reach + 4
    weight = float(np.abs(svm.dual).sum())
    return float(2 * UNIT_ROUNDOFF * (weight * (of_kernel + len(svm.dual)) + 2 * abs(svm.intercept)))


def exact_value(svm: Svm, feature: np.ndarray) -> np.longdouble:
    """f of one row, (dim,), in extended precision: near enough to exact to tell how it rounds.

    Where a machine has no such numbers (longdouble is float64 there) it is still the same however rows are batched.
    """
    differences = svm.support_vectors.astype(np.longdouble) - feature.astype(np.longdouble)
    kernel = np.exp(-np.longdouble(svm.gamma) * (differences**2).sum(axis=1))
    return np.longdouble((kernel * svm.dual.astype(np.longdouble)).sum() + np.longdouble(svm.intercept))
