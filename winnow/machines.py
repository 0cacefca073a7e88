"""Decision values of a filter's machine, computed a second time for those who check: plainly, in float64.

    f(x) = sum_i dual_i exp(-gamma |x - s_i|^2) + intercept

Scores in the files are rounded to a multiple of 2^-16; a difference below TOLERANCE is that rounding.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from winnow.errors import ShardError
from winnow.storage import Storage

TOLERANCE = 2.0**-16
BLOCK = 512
"""Rows at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Machine:
    support_vectors: np.ndarray
    """(num, dim) float64."""
    dual: np.ndarray
    """(num,) float64."""
    intercept: float
    gamma: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(n, dim) -> (n,) decision values."""
        lengths = (self.support_vectors**2).sum(axis=1)
        values = np.empty(len(features))
        for start in range(0, len(features), BLOCK):
            x = features[start : start + BLOCK].astype(np.float64)
            squared = (x**2).sum(axis=1)[:, None] + lengths - 2 * x @ self.support_vectors.T
            values[start : start + BLOCK] = np.exp(-self.gamma * squared) @ self.dual + self.intercept
        return values


def read_machine(storage: Storage, path: str) -> Machine:
    """Reads svm.safetensors. Raises ShardError naming the file if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(storage.read_bytes(path))
        return Machine(
            support_vectors=tensors["support_vectors"].astype(np.float64),
            dual=tensors["dual"].astype(np.float64),
            intercept=float(tensors["intercept"][0]),
            gamma=float(tensors["gamma"][0]),
        )
    except (SafetensorError, KeyError, IndexError, ValueError) as problem:
        raise ShardError(
            f"{storage.url}/{path} is no filter's machine ({problem}). Remove the filter's receipt and fit again."
        ) from problem


def feature_rows(column: pa.ChunkedArray) -> np.ndarray:
    """A column of float16 lists of one length, none null -> (n, dim) float64."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    rows: np.ndarray = flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)
    return rows
