"""Does the promise hold as often as it says? Calibrations by the thousand, on distributions whose true miss rate is known.

    .venv/bin/python -m benchmarks.coverage

For each distribution and number of positives: draw them, find the threshold by the rule, ask the distribution what it misses. The share
of draws in which that is at most what was promised must be at least the confidence, but for the noise of so many draws. Beside it, the same
with the rule off by one (rank k + 1): it must fail where scores have no ties, or the measurement could not tell a wrong rule.
"""

import argparse

from filters.bounds import positives_needed, rank_for_miss_rate
from filters.coverage import DISTRIBUTIONS, coverage, least_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    floor = least_count(arguments.draws, 0.95) / arguments.draws
    print(f"{arguments.draws} calibrations each; a right rule holds in at least {floor:.1%}, but for 1 in 1,000")
    for rate in (0.01, 0.05):
        least = positives_needed(rate, 0.95)
        sizes = (least, next(n for n in range(least, 9999) if rank_for_miss_rate(n, rate, 0.95) == 2), 4 * least)
        for name, distribution in DISTRIBUTIONS.items():
            for n in sizes:
                held, wrong = (coverage(distribution, n, rate, draws=arguments.draws, seed=arguments.seed, off_by=by) for by in (0, 1))
                print(f"< {rate:.0%}, {name:22} n = {n:4}, k = {rank_for_miss_rate(n, rate, 0.95):2}: {held:.1%}, off by one {wrong:.1%}")


if __name__ == "__main__":
    main()
