"""Decision values of RBF support vector machines, all filters in one pass, the same to the last bit however rows are batched.

f(x) = sum_i dual_i exp(-gamma |x - s_i|^2) + intercept

A matrix product sums in an order that depends on the shape of the batch, on the number of threads and on the machine; in
float32 that changes verdicts, in float64 last digits, and a log whose bytes depend on the batch cannot be checked. So a
*score* is defined without any of that: the exact value of f, rounded to a multiple of STEP. It is computed by float64
matrix products, whose distance from the exact value is bounded beforehand; where that bound leaves two roundings possible
(fewer than one row in a thousand) the row is computed again alone, in extended precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from winnow.errors import ConfigError

STEP = 2.0**-16
"""Scores are multiples of it (1.5e-5; they spread over about 1). Verdicts equal those of the exact value rounded likewise."""
BLOCK = 1024
"""Rows at a time: 1,024 x 12,000 support vectors are 100 MB."""
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
    """Scores rows by several machines at once."""

    def __init__(self, svms: Sequence[Svm], *, device: str = "cpu") -> None:
        dims = {svm.dim for svm in svms}
        if len(dims) > 1:
            raise ConfigError(f"filters fitted on features of {sorted(dims)} dimensions cannot be used together; fit them anew")
        self.svms = tuple(svms)
        self.device = device
        if not svms:
            return
        vectors = np.concatenate([svm.support_vectors for svm in svms]).astype(np.float64)
        self._vectors = torch.from_numpy(vectors).to(device)
        self._lengths = torch.from_numpy((vectors**2).sum(axis=1)).to(device)
        self._gammas = torch.from_numpy(np.concatenate([np.full(len(svm.dual), svm.gamma) for svm in svms])).to(device)
        self._duals = [torch.from_numpy(svm.dual).to(device) for svm in svms]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(n, dim) float32 features -> (n, filters) float64 scores.

        Raises:
            ConfigError: the features are of another dimension than those the filters were fitted on.
        """
        if not self.svms or not len(features):
            return np.zeros((len(features), len(self.svms)))
        dim = self.svms[0].dim
        if features.ndim != 2 or features.shape[1] != dim:
            raise ConfigError(f"the filters were fitted on features of {dim} dimensions, these have shape {features.shape}; fit them anew")
        features = np.ascontiguousarray(features, dtype=np.float32)
        if not np.all(np.isfinite(features)):
            raise ValueError("features must be finite")
        return np.concatenate([self._block(features[start : start + BLOCK]) for start in range(0, len(features), BLOCK)])

    def _block(self, features: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(features).to(self.device, torch.float64)
        lengths = (rows**2).sum(dim=1, keepdim=True)
        kernel = torch.addmm(self._lengths + lengths, rows, self._vectors.T, alpha=-2)  # squared distances
        kernel = kernel.clamp_(min=0).mul_(-self._gammas).exp_()
        longest = float(lengths.max())
        scores = np.empty((len(features), len(self.svms)))
        start = 0
        for column, (svm, dual) in enumerate(zip(self.svms, self._duals, strict=True)):
            values = (kernel[:, start : start + len(dual)] @ dual + svm.intercept).cpu().numpy()
            start += len(dual)
            scores[:, column] = _rounded(values, svm, features, longest)
        return scores


def _rounded(values: np.ndarray, svm: Svm, features: np.ndarray, longest: float) -> np.ndarray:
    """Values to multiples of STEP; those that lie too close to the middle between two are computed again."""
    bound = error_bound(svm, longest)
    steps = values / STEP  # exact: STEP is a power of two
    rounded = np.floor(steps + 0.5)
    for row in np.flatnonzero(np.abs(steps - np.floor(steps) - 0.5) * STEP <= bound):
        rounded[row] = float(np.floor(exact_value(svm, features[row]) / np.longdouble(STEP) + np.longdouble(0.5)))
    return rounded * STEP + 0.0  # no negative zeros


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
    return 2 * UNIT_ROUNDOFF * (weight * (of_kernel + len(svm.dual)) + 2 * abs(svm.intercept))


def exact_value(svm: Svm, feature: np.ndarray) -> np.longdouble:
    """f of one row, (dim,), in extended precision: near enough to exact to tell how it rounds.

    Where a machine has no such numbers (longdouble is float64 there) it is still the same however rows are batched.
    """
    differences = svm.support_vectors.astype(np.longdouble) - feature.astype(np.longdouble)
    kernel = np.exp(-np.longdouble(svm.gamma) * (differences**2).sum(axis=1))
    return np.longdouble((kernel * svm.dual.astype(np.longdouble)).sum() + np.longdouble(svm.intercept))
