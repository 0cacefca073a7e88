"""What labels buy, on real features of real photos: the same labels used better, and labels asked for by active learning.

    .venv/bin/python -m benchmarks.active_learning --data PHOTOS --plot docs/active-learning.png

Features are those of a MobileNetV2 (mean-pooled, unit length): weak ones. Splits are by near-duplicate group, drawn anew for each seed.

Part 1: 80 % of the photos are labelled, 20 % kept apart. All ways of using the labels are judged on the photos kept apart.
Part 2: half of the photos calibrate (random draws, for those alone may prove anything), the other half is the pool that labels for
fitting are asked from. Measured is the share of clean photos that goes at the threshold certified by the calibration positives; the
clean photos it is measured on take part in nothing else. Both arms begin with the same random labels.
Part 3: what each promise costs, with the labels of part 1.
"""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from benchmarks.photo_labels import Photos, deal, read_photos
from filters.active_learning import POOL, parts_of_round, spread_out
from filters.bounds import threshold_for_miss_rate
from filters.cross_fitting import cross_fit, hard_positives
from filters.decision_values import Scorer
from filters.plan import LabelPlan
from filters.svm import TAIL, SvmConfig, fit_svm
from winnow.errors import NotEnoughLabels

CONCEPTS = {"people": ("person", (0.01, 0.03)), "weapons": ("weapon", (0.05, 0.01))}
CURVE = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
FIRST, ROUND = 60, 20
"""Labels both arms begin with, and labels a round."""
MOST = {"people": 500, "weapons": 700}


def plain(photos: Photos, fit: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The starting point: one SVM, C 10, scikit-learn's gamma."""
    machine = SVC(C=10.0, kernel="precomputed").fit(photos.kernel(fit, fit), photos.labels[fit])
    values: np.ndarray = machine.decision_function(photos.kernel(rows, fit))
    return values


def selected(photos: Photos, fit: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What the product does: balanced classes, C and gamma chosen for few misses."""
    svm = fit_svm(photos.features[fit], photos.labels[fit], photos.groups[fit].tolist(), SvmConfig()).svm
    return Scorer([svm]).scores(photos.features[rows])[:, 0]


def same_labels(photos: Photos, promises: Sequence[float], seed: int) -> dict[tuple[str, float], tuple[float, float]]:
    """(way, promise) -> shares of clean photos dropped and positives missed, of photos kept apart; nothing of what cannot be promised."""
    apart, calibrate, fit = deal(photos, (0.2, 0.4), np.random.default_rng(seed))
    labelled = np.concatenate([calibrate, fit])
    found = {}

    def judge(way: str, positives: np.ndarray, values: np.ndarray) -> None:
        truth = photos.labels[apart]
        for promise in promises:
            with contextlib.suppress(NotEnoughLabels):
                threshold = threshold_for_miss_rate(positives, promise).value
                found[way, promise] = (float(np.mean(values[truth == 0] >= threshold)), float(np.mean(values[truth == 1] < threshold)))

    held = calibrate[photos.labels[calibrate] == 1]
    for way, values in (("start", plain), ("selected", selected)):
        scores = values(photos, fit, np.concatenate([held, apart]))
        judge(way, scores[: len(held)], scores[len(held) :])
    chosen = fit_svm(photos.features[labelled], photos.labels[labelled], photos.groups[labelled].tolist(), SvmConfig())
    cross = cross_fit(
        photos.features[labelled],
        photos.labels[labelled],
        photos.groups[labelled].tolist(),
        cost=chosen.cost,
        gamma=chosen.gamma,
        folds=10,
    )
    judge("k_fold", cross.held_out[photos.labels[labelled] == 1], Scorer([cross.mean]).scores(photos.features[apart])[:, 0])
    return found


def curve(photos: Photos, promise: float, most: int, seed: int, *, active: bool) -> list[tuple[int, float]]:
    """(labels to fit on, share of clean photos dropped) round by round."""
    calibrate, pool = deal(photos, (0.5,), np.random.default_rng(seed))
    rng = np.random.default_rng([seed, 1])
    asked = list(pool[:FIRST])
    while min(np.bincount(photos.labels[asked], minlength=2)) < 4:  # the same random labels for both arms
        asked.append(pool[len(asked)])
    points = []
    while True:
        rows = np.array(asked)
        machine = SVC(C=1.0, kernel="precomputed", class_weight="balanced").fit(photos.kernel(rows, rows), photos.labels[rows])
        values = machine.decision_function(photos.kernel(calibrate, rows))
        truth = photos.labels[calibrate]
        threshold = threshold_for_miss_rate(values[truth == 1], promise).value
        points.append((len(asked), float(np.mean(values[truth == 0] >= threshold))))
        left = np.setdiff1d(pool, rows)
        if len(asked) + ROUND > min(most, len(pool)):
            return points
        asked += query(photos, rows, left, machine, rng) if active else rng.permutation(left)[:ROUND].tolist()


def query(photos: Photos, rows: np.ndarray, left: np.ndarray, machine: SVC, rng: np.random.Generator) -> list[int]:
    """A round of the product's strategy, with its default shares."""
    plan = LabelPlan()
    parts = parts_of_round(ROUND, neighbour_share=plan.neighbour_share, control_share=plan.control_share)
    labels = photos.labels[rows]
    folds = min(10, *np.bincount(labels).tolist())
    cross = cross_fit(photos.features[rows], labels, photos.groups[rows].tolist(), cost=1.0, gamma=photos.gamma, folds=max(2, folds))
    level = float(np.quantile(cross.held_out[labels == 1], TAIL))
    chosen: list[int] = []
    hard = hard_positives(cross.held_out, labels, max(0.0, level), parts.neighbour)
    for turn in range(parts.neighbour if hard else 0):
        free = np.setdiff1d(left, chosen)
        chosen.append(int(free[np.argmin(photos.squared[rows[hard[turn % len(hard)]], free])]))
    free = np.setdiff1d(left, chosen)
    distances = np.abs(machine.decision_function(photos.kernel(free, rows)) - level)
    nearest = np.argsort(distances, kind="stable")[: POOL * parts.boundary]
    chosen += free[nearest][spread_out(distances[nearest], photos.features[free[nearest]], parts.boundary)].tolist()
    free = np.setdiff1d(left, chosen)
    return [*chosen, *rng.permutation(free)[: ROUND - len(chosen)].tolist()]


def interval(values: list[float], rng: np.random.Generator) -> tuple[float, float]:
    """Bootstrap interval, 95 %, of a mean over seeds."""
    means = np.array(values)[rng.integers(0, len(values), (4000, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def told(values: list[float], rng: np.random.Generator) -> str:
    low, high = interval(values, rng)
    return f"{np.mean(values):.1%} ({low:.1%} to {high:.1%})"


def part_one(name: str, photos: Photos, promise: float, seeds: int, rng: np.random.Generator) -> None:
    runs = [same_labels(photos, (promise,), seed) for seed in range(seeds)]
    if any(("start", promise) not in run for run in runs):
        print(f"{name} < {promise:.0%}: refused: too few positives to calibrate on", flush=True)
        return
    start = [run["start", promise][0] for run in runs]
    for way in ("start", "selected", "k_fold"):
        dropped, missed = ([run[way, promise][part] for run in runs] for part in (0, 1))
        gain = "" if way == "start" else f"; less than the start by {told([a - b for a, b in zip(start, dropped, strict=True)], rng)}"
        print(f"{name} < {promise:.0%}, {way:8}: clean dropped {told(dropped, rng)}, missed {told(missed, rng)}{gain}", flush=True)


def cost_curve(name: str, photos: Photos, seeds: int) -> None:
    """What each promise costs: clean photos dropped, and positives that were missed, on photos kept apart."""
    runs = [same_labels(photos, CURVE, seed) for seed in range(seeds)]
    for way in ("selected", "k_fold"):
        for promise in CURVE:
            own = [run[way, promise] for run in runs if (way, promise) in run]
            if len(own) < seeds:
                print(f"{name} < {promise:.1%}, {way:8}: refused for {seeds - len(own)} of {seeds} seeds", flush=True)
                continue
            (dropped, missed), above = np.mean(own, axis=0), sum(miss > promise for _, miss in own)
            print(
                f"{name} < {promise:.1%}, {way:8}: clean dropped {dropped:.1%}, missed {missed:.1%}, above the promise {above} of {seeds}"
            )


def needed(points: list[tuple[int, float]], target: float) -> float:
    """Labels until the curve first is at or below a target; infinite if it never is."""
    return next((labels for labels, rate in points if rate <= target), float("inf"))


def part_two(name: str, photos: Photos, promise: float, seeds: int, rng: np.random.Generator) -> dict[str, list[list[tuple[int, float]]]]:
    arms = {
        arm: [curve(photos, promise, MOST[name], seed, active=arm == "active") for seed in range(seeds)] for arm in ("random", "active")
    }
    for labels in (100, 200, 300, 500, 700):
        at = {arm: [_at(points, labels) for points in curves] for arm, curves in arms.items()}
        if labels <= MOST[name]:
            print(
                f"{name} < {promise:.0%}, {labels} labels: random {told(at['random'], rng)}, active {told(at['active'], rng)}", flush=True
            )
    final = _mean_curve(arms["random"])[-1][1]
    for target in sorted({round(final * factor + 5e-4, 3) for factor in (1.0, 1.1, 1.25)}):
        means = {arm: _mean_curve(curves) for arm, curves in arms.items()}
        random, active = (needed(means[arm], target) for arm in ("random", "active"))
        ratios = []
        for _ in range(1000):
            pick = rng.integers(0, seeds, seeds)
            ratios.append(
                needed(_mean_curve([arms["random"][i] for i in pick]), target)
                / needed(_mean_curve([arms["active"][i] for i in pick]), target)
            )
        low, high = np.nanquantile(np.where(np.isfinite(ratios), ratios, np.nan), [0.025, 0.975])
        gain = f"{random / active:.1f} x ({low:.1f} to {high:.1f})"
        print(f"{name}: {target:.1%} dropped takes random {random:.0f}, active {active:.0f} labels: {gain}", flush=True)
    return arms


def _at(points: list[tuple[int, float]], labels: int) -> float:
    return min(points, key=lambda point: abs(point[0] - labels))[1]


def _mean_curve(curves: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    grid = range(FIRST, min(points[-1][0] for points in curves) + 1, ROUND)
    rates = [np.interp(grid, [n for n, _ in points], [rate for _, rate in points]) for points in curves]
    return list(zip(grid, np.mean(rates, axis=0).tolist(), strict=True))


def draw(found: dict[str, tuple[float, dict[str, list[list[tuple[int, float]]]]]], path: Path, rng: np.random.Generator) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(found), figsize=(11, 4.4), dpi=140, layout="constrained")
    colours = {"random": "#8a929a", "active": "#0b6e75"}
    titles = {"random": "drawn at random", "active": "active learning"}
    for axis, (name, (promise, arms)) in zip(np.atleast_1d(axes), found.items(), strict=True):
        for arm, curves in arms.items():
            mean = _mean_curve(curves)
            grid = [n for n, _ in mean]
            rates = [np.interp(grid, [n for n, _ in points], [rate for _, rate in points]) for points in curves]
            bands = np.array([interval([float(rate[i]) for rate in rates], rng) for i in range(len(grid))])
            axis.fill_between(grid, 100 * bands[:, 0], 100 * bands[:, 1], color=colours[arm], alpha=0.18, linewidth=0)
            axis.plot(grid, [100 * rate for _, rate in mean], color=colours[arm], linewidth=2.2)
            axis.annotate(titles[arm], (grid[-1], 100 * mean[-1][1]), xytext=(-4, 24 if arm == "random" else -26), ha="right",
                          textcoords="offset points", color=colours[arm], fontweight="bold")  # fmt: skip
        axis.set_title(f"{name.capitalize()}, misses certified below {promise:.0%}", loc="left", fontweight="bold", fontsize=12)
        axis.set_xlabel("labels to fit on")
        axis.set_ylabel("clean photos dropped, %")
        axis.set_ylim(0, None)
        axis.grid(axis="y", color="#e3e0d8", linewidth=0.8)
        axis.set_axisbelow(True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder with photos/index.parquet and photos/features_mobilenetv2.parquet")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    found: dict[str, tuple[float, dict[str, list[list[tuple[int, float]]]]]] = {}
    for name, (column, promises) in CONCEPTS.items():
        photos = read_photos(arguments.data, column)
        if 1 in arguments.parts:
            for promise in promises:
                part_one(name, photos, promise, arguments.seeds, rng)
        if 3 in arguments.parts:
            cost_curve(name, photos, arguments.seeds)
        promise = 0.03 if name == "people" else 0.05
        if 2 in arguments.parts:
            found[name] = (promise, part_two(name, photos, promise, arguments.seeds, rng))
    if arguments.plot and found:
        draw(found, arguments.plot, rng)


if __name__ == "__main__":
    main()
