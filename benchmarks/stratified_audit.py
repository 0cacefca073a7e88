"""How often the bounds of a stratified audit hold, and how tight they are: a class of 0.1 %, 3,000 labels, 1,000 simulated audits.

    python benchmarks/stratified_audit.py [--runs 1000] [--labels 3000] [--prevalence 0.001] [--sees 0.9 --honeypots 50]

Clean images score N(0, 1) and positives N(4, 1) (so the log-odds are a line); the threshold misses 1 % of positives. Two more worlds
break the assumption of the tapering bound: positives spread wider (N(4, 1.5)), and 5 % of positives that score as clean images do.
"""

import argparse
import json
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from filters.bounds import exact_interval
from filters.stratified_audit import StratifiedResult, draw_strata, plan_strata, stratified_result

IMAGES = 200_000
THRESHOLD = float(norm.ppf(0.01, 4.0, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where positives score."""

    name: str
    spread: float = 1.0
    unseen: float = 0.0
    """Share of positives that score as clean images do."""

    def sample(self, rng: np.random.Generator, prevalence: float, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) scores and (n,) labels."""
        values = (rng.random(n) < prevalence).astype(int)
        seen = (values == 1) & (rng.random(n) >= self.unseen)
        return np.where(seen, rng.normal(4.0, self.spread, n), rng.normal(0.0, 1.0, n)), values


WORLDS = (World(name="log-odds are a line"), World(name="positives spread wider", spread=1.5), World(name="5 % unseen", unseen=0.05))


def audit(
    world: World,
    rng: np.random.Generator,
    *,
    labels: int,
    prevalence: float,
    images: int = IMAGES,
    sees: float = 1.0,
    honeypots: int = 0,
) -> tuple[StratifiedResult, float, float]:
    """One audit: its result, and the true miss rate and leak of its images. The inspectors see a share `sees` of the positives."""
    scores, values = world.sample(rng, prevalence, images)
    strata = plan_strata(scores, THRESHOLD, budget=labels)
    drawn = draw_strata(scores, strata, rng)
    seen = values * (rng.random(len(values)) < sees)
    noticed = int(rng.binomial(honeypots, sees))
    result = stratified_result(scores, strata, drawn, [seen[rows] for rows in drawn], honeypots_found=noticed, honeypots=honeypots)
    kept = scores < THRESHOLD
    return result, float(values[kept].sum() / values.sum()), float(values[kept].mean())


def coverage(
    world: World, *, runs: int, labels: int, prevalence: float, sees: float = 1.0, honeypots: int = 0, seed: int = 0
) -> dict[str, object]:
    """Share of audits whose bounds hold, and the bounds' medians."""
    rng = np.random.default_rng(seed)
    audits = [audit(world, rng, labels=labels, prevalence=prevalence, sees=sees, honeypots=honeypots) for _ in range(runs)]
    tapered = [(result.tapering_miss_rate_at_most, miss) for result, miss, _ in audits if result.tapering_miss_rate_at_most is not None]

    def held(hits: int, n: int) -> str:
        low, high = exact_interval(hits, n)
        return f"{hits / n:.1%} ({low:.1%} to {high:.1%})"

    return {
        "world": world.name,
        "labels": max(result.num_labels for result, _, _ in audits),
        "positives found, median": float(np.median([result.positives_found for result, _, _ in audits])),
        "prevalence, mean estimate": float(np.mean([result.prevalence for result, _, _ in audits])),
        "true miss rate, mean": float(np.mean([miss for _, miss, _ in audits])),
        "miss rate at most, median": float(np.median([result.miss_rate_at_most for result, _, _ in audits])),
        "miss rate bound holds": held(sum(result.miss_rate_at_most >= miss for result, miss, _ in audits), runs),
        "leak at most, median": float(np.median([result.leak_at_most for result, _, _ in audits])),
        "leak bound holds": held(sum(result.leak_at_most >= leak for result, _, leak in audits), runs),
        "tapering miss rate at most, median": float(np.median([bound for bound, _ in tapered])),
        "tapering bound holds": held(sum(bound >= miss for bound, miss in tapered), len(tapered)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--labels", type=int, default=3000)
    parser.add_argument("--prevalence", type=float, default=0.001)
    parser.add_argument("--sees", type=float, default=1.0, help="share of positives that the inspectors see")
    parser.add_argument("--honeypots", type=int, default=0)
    options = parser.parse_args()
    for world in WORLDS:
        print(json.dumps(coverage(world, **vars(options)), indent=1), flush=True)


if __name__ == "__main__":
    main()
