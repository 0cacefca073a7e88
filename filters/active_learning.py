"""Which images to ask about next.

A round has three parts, their shares by config:

    boundary   images nearest the classifier's boundary, spread out over clusters, for near-duplicates teach nothing new
    neighbour  nearest neighbours of hard positives, those that machines which had not seen them would have kept
    control    images drawn at random: how a filter does on them is not coloured by what was asked

GLIDE (arXiv:2112.10741, appendix F.1) labelled images near its violence filter's boundary over several rounds; the neighbours of
misclassified positives are as OpenAI describes for the data of DALL-E 2.
"""

from dataclasses import dataclass

import numpy as np

POOL = 10
"""Images nearest the boundary that one image to ask about is chosen from."""
PER_CLUSTER = 4
"""Images asked about from one cluster of the pool, on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundParts:
    """How many images of each part a round asks for."""

    boundary: int
    neighbour: int
    control: int


def parts_of_round(count: int, *, neighbour_share: float, control_share: float) -> RoundParts:
    """Splits a round of `count` images; what the shares leave, and what rounding leaves, goes to the boundary."""
    neighbour, control = int(count * neighbour_share), int(count * control_share)
    return RoundParts(boundary=count - neighbour - control, neighbour=neighbour, control=control)


def spread_out(distances: np.ndarray, features: np.ndarray, count: int) -> list[int]:
    """Rows of a pool to ask about: by turns the nearest to the boundary of each cluster.

    Args:
        distances: (n,) to the boundary, ascending.
        features: (n, dim) of the pool.

    Returns:
        `count` row numbers, or all if there are fewer.
    """
    if len(distances) <= count:
        return list(range(len(distances)))
    clusters = cluster(features, max(1, count // PER_CLUSTER))
    place: dict[int, int] = {}
    turns: list[tuple[int, int]] = []
    for row, name in enumerate(clusters.tolist()):
        turn = place.get(name, 0)
        place[name] = turn + 1
        turns.append((turn, row))
    return [row for _, row in sorted(turns)[:count]]


def cluster(features: np.ndarray, num_clusters: int) -> np.ndarray:
    """k-means in float64, begun at rows far from each other: (n, dim) -> (n,) names of clusters. No chance is involved.

    scikit-learn's adds up over threads in whatever order they end, so two runs could ask about different images.
    """
    rows = features.astype(np.float64)
    chosen, distance = [0], ((rows - rows[0]) ** 2).sum(axis=1)
    while len(chosen) < num_clusters:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((rows - rows[chosen[-1]]) ** 2).sum(axis=1))
    centres, names = rows[chosen], np.full(len(rows), -1)
    for _ in range(50):
        nearest = np.argmin((centres**2).sum(axis=1) - 2 * rows @ centres.T, axis=1)
        if np.array_equal(nearest, names):
            break
        names = nearest
        sums, sizes = np.zeros_like(centres), np.bincount(names, minlength=num_clusters)
        np.add.at(sums, names, rows)
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
    return names
