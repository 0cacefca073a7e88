"""Do new images still look like those a filter was certified on? Two measurements of a new batch against a reference.

Scores: the population stability index over ten bins that hold a tenth of the reference each. 0 is no change; by custom 0.1 is
some and 0.25 much. Features: maximum mean discrepancy with a Gaussian kernel, its width the median distance, with a permutation
test (Gretton et al. 2012, JMLR 13, "A kernel two-sample test"), on a seeded sample of each side.

Drift does not show that a filter fails. It shows that its certificate speaks of other images than the new ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from winnow.configs import STRICT
from winnow.errors import ConfigError

BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftConfig:
    """When a batch counts as drifted."""

    __pydantic_config__: ClassVar = STRICT

    max_psi: float = 0.2
    """Population stability index of the scores."""
    min_p: float = 0.001
    """Of the two-sample test; small, because every new batch is tested."""
    sample: int = 500
    """Images of each side in the two-sample test."""
    permutations: int = 1999
    min_images: int = 200
    """Of a new batch; a smaller one is "not measured"."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_psi <= 0 or not 0 < self.min_p < 1:
            raise ConfigError(f"drift: max_psi must be above 0 and min_p between 0 and 1, got {self.max_psi} and {self.min_p}")
        if self.sample < 10 or self.min_images < 10:
            raise ConfigError(f"drift: sample and min_images must be at least 10, got {self.sample} and {self.min_images}")
        if (self.permutations + 1) * self.min_p < 1:
            raise ConfigError(
                f"drift: {self.permutations} permutations cannot give a p-value of {self.min_p}; give at least {1 / self.min_p:.0f}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftResult:
    """A new batch against the reference."""

    status: str
    """"steady", "drifted" or "not measured"."""
    psi: float | None
    mmd: float | None
    """Squared maximum mean discrepancy."""
    p_value: float | None
    """Of the two-sample test."""
    reference_images: int
    new_images: int
    reasons: tuple[str, ...]
    """What passed its limit, in words; or why nothing was measured."""


def measure_drift(
    reference_scores: np.ndarray,
    new_scores: np.ndarray,
    reference_features: np.ndarray,
    new_features: np.ndarray,
    config: DriftConfig,
) -> DriftResult:
    """Compares a new batch with the reference.

    Args:
        reference_scores, new_scores: (n,), (m,) decision values of one version of a filter.
        reference_features, new_features: (a, dim), (b, dim) of a random sample of each; more than `config.sample` are sampled down.
    """
    sizes = {"reference_images": len(reference_scores), "new_images": len(new_scores)}
    if min(sizes.values()) < config.min_images:
        reason = f"{len(new_scores):,} new images against {len(reference_scores):,}: at least {config.min_images:,} of each are needed"
        return DriftResult(status="not measured", psi=None, mmd=None, p_value=None, reasons=(reason,), **sizes)
    rng = np.random.default_rng(config.seed)
    index = stability_index(reference_scores, new_scores)
    discrepancy, p = two_sample_test(
        _sampled(reference_features, config.sample, rng), _sampled(new_features, config.sample, rng), config.permutations, rng
    )
    reasons = []
    if index > config.max_psi:
        reasons.append(f"scores: stability index {index:.3f}, limit {config.max_psi:g}")
    if p <= config.min_p:
        reasons.append(f"features: two-sample test p = {p:.2g}, limit {config.min_p:g}")
    return DriftResult(status="drifted" if reasons else "steady", psi=index, mmd=discrepancy, p_value=p, reasons=tuple(reasons), **sizes)


def stability_index(reference: np.ndarray, new: np.ndarray, bins: int = BINS) -> float:
    """Population stability index: sum of (new - reference) log(new / reference) over bins of equal reference share.

    Half an image is added to each bin, so that an empty one does not make it infinite. Tied scores may leave fewer bins.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))

    def shares(values: np.ndarray) -> np.ndarray:
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) + 0.5
        return counts / counts.sum()

    was, now = shares(np.asarray(reference)), shares(np.asarray(new))
    return float(np.sum((now - was) * np.log(now / was)))


def two_sample_test(first: np.ndarray, second: np.ndarray, permutations: int, rng: np.random.Generator) -> tuple[float, float]:
    """Squared maximum mean discrepancy (biased, never below 0) and its permutation p-value, at least 1 / (permutations + 1).

    Args:
        first, second: (n, dim), (m, dim) features.
    """
    pooled = np.concatenate([first, second]).astype(np.float64)
    squared = np.sum(pooled**2, axis=1)
    distances = np.maximum(squared[:, None] + squared[None, :] - 2 * pooled @ pooled.T, 0.0)
    width = float(np.median(distances[np.triu_indices(len(pooled), 1)])) or 1.0
    kernel = np.exp(-distances / width)
    # The discrepancy is s K s for signs s of +1/n and -1/m: every permutation is a column of one product.
    signs = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    columns = rng.permuted(np.tile(signs[:, None], (1, permutations)), axis=0)
    observed = float(signs @ kernel @ signs)
    by_chance = np.einsum("ij,ij->j", columns, kernel @ columns)
    return max(observed, 0.0), float((1 + np.sum(by_chance >= observed - 1e-12)) / (permutations + 1))


def _sampled(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    if len(features) <= count:
        return features
    return features[np.sort(rng.choice(len(features), count, replace=False))]
