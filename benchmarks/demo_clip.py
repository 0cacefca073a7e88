"""Is the demo's CLIP good enough for the demo's filters? Measured on pictures of a world it never saw.

    python -m benchmarks.demo_clip                     the shipped weights
    python -m benchmarks.demo_clip --weights FILE      others of the same shape
    OMP_NUM_THREADS=1 ...                              faster where cores are shared

Prints the table of docs/demo-world.md: retrieval, text search with the filters' own prompts, and for each filter the area
under the curve and the share of clean pictures that go at the threshold that certifies its miss rate.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from filters.bounds import threshold_for_miss_rate
from filters.catalog import FILTERS, FilterSpec
from filters.decision_values import Scorer
from filters.svm import SvmConfig, fit_svm
from models.clip_embedder import DEMO, Clip, ClipConfig, Weights, load_clip, resolve_weights
from models.clip_pool import decoded, opened
from models.clip_training import evaluate_clip
from models.crop_stream import embed_images
from winnow.demo.world import Scene, WorldConfig, emblem_images, make_world
from winnow.digests import sha256_of

if TYPE_CHECKING:
    from PIL import Image

SEED = 7_000_003
"""Of the world measured on: not the training's, not the demo's, not evaluate_clip's."""
CALIBRATION_POSITIVES = 400
SEARCHED = 50
TARGETS = {"retrieval_r1_of_256": 0.6}
"""What the demo needs at least."""


@dataclass(frozen=True)
class Measured:
    """Unseen pictures and what is in them."""

    features: np.ndarray
    """(n, dim) float32, rounded to float16 as they are stored."""
    scenes: list[Scene]


def measure(clip: Clip, num_scenes: int, num_emblems: int) -> dict[str, dict[str, float]]:
    """The whole table: row -> column -> number."""
    world = embed_world(clip, num_scenes)
    emblems = stored(clip, [opened(image.data) for image in emblem_images(WorldConfig(seed=SEED), num_emblems, seed=1)])
    rows = {"clip": evaluate_clip(clip)}
    for spec in FILTERS.values():
        truth = np.array([int(getattr(scene, spec.name)) for scene in world.scenes])
        curated = emblems if spec.scope == "curated" else None
        rows[spec.name] = {**text_search(clip, spec, world.features, truth), **certified(spec, world.features, truth, curated)}
    return rows


def embed_world(clip: Clip, num_scenes: int) -> Measured:
    """Pictures that can be fetched, one of each group of near-duplicates."""
    scenes = [
        scene for scene in make_world(WorldConfig(num_scenes=num_scenes, seed=SEED)) if scene.fault is None and scene.group == scene.number
    ]
    return Measured(features=stored(clip, (decoded(scene) for scene in scenes)), scenes=scenes)


def stored(clip: Clip, images: Iterable["Image.Image"]) -> np.ndarray:
    """Features as the embedding stage stores them."""
    return np.stack(list(embed_images(clip, images))).astype(np.float16).astype(np.float32)


def text_search(clip: Clip, spec: FilterSpec, features: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Positives among the first pictures found by the filter's prompts, each prompt in turn, and how that compares with chance."""
    ranks = np.argsort(-(clip.encode_texts(spec.seed_prompts) @ features.T), axis=1, kind="stable")
    found = list(dict.fromkeys(itertools.chain.from_iterable(ranks.T.tolist())))[:SEARCHED]
    hits = int(truth[found].sum())
    return {"base_rate": float(truth.mean()), "found_of_50": hits, "found_times_base_rate": hits / SEARCHED / float(truth.mean())}


def certified(spec: FilterSpec, features: np.ndarray, truth: np.ndarray, curated: np.ndarray | None) -> dict[str, float]:
    """Fits, calibrates and tests on three disjoint parts. A curated filter learns and calibrates from its collection."""
    rows = list(range(len(truth)))
    random.Random(SEED).shuffle(rows)
    positives, negatives = ([row for row in rows if truth[row] == value] for value in (1, 0))
    clean = {"fit": negatives[: len(negatives) // 2], "test": negatives[len(negatives) // 2 :]}
    if curated is None:
        calibrate, fit = features[positives[:CALIBRATION_POSITIVES]], features[positives[CALIBRATION_POSITIVES : -len(positives) // 4]]
        test = features[positives[-len(positives) // 4 :]]
    else:
        calibrate, fit, test = curated[:CALIBRATION_POSITIVES], curated[CALIBRATION_POSITIVES:], features[positives]
    known = np.concatenate([fit, features[clean["fit"][: SvmConfig().max_fit_negatives]]])
    labels = np.array([1] * len(fit) + [0] * (len(known) - len(fit)))
    fitted = fit_svm(known, labels, [str(row) for row in range(len(known))], SvmConfig())
    scorer = Scorer([fitted.svm])
    threshold = threshold_for_miss_rate(scorer.scores(calibrate)[:, 0], spec.max_miss_rate, spec.confidence)
    positive_scores, clean_scores = scorer.scores(test)[:, 0], scorer.scores(features[clean["test"]])[:, 0]
    above = (positive_scores[:, None] > clean_scores[None, :]).mean() + 0.5 * (positive_scores[:, None] == clean_scores[None, :]).mean()
    return {
        "auc": float(above),
        "clean_dropped": float((clean_scores >= threshold.value).mean()),
        "missed": int((positive_scores < threshold.value).sum()),
        "test_positives": len(test),
        "calibration_positives": threshold.n,
        "k": threshold.k,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the demo's CLIP on pictures it never saw.")
    parser.add_argument("--weights", default=None, help="a .safetensors file; without it, the shipped one")
    parser.add_argument("--scenes", type=int, default=6_000, help="pictures of the unseen world (default 6000, at least 3500)")
    parser.add_argument("--emblems", type=int, default=1_000, help="curated pictures (default 1000)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument("--json", default=None, metavar="FILE", help="also write the numbers here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = ClipConfig(model=DEMO, weights=arguments.weights)
    weights = resolve_weights(config)
    rows = measure(load_clip(config, weights), arguments.scenes, arguments.emblems)
    print(table(rows, weights))
    if arguments.json:
        with open(arguments.json, "w") as stream:
            json.dump(rows, stream, sort_keys=True, indent=1)


def table(rows: dict[str, dict[str, float]], weights: Weights) -> str:
    """Markdown."""
    with open(weights.path, "rb") as stream:
        lines = [f"weights sha256 {sha256_of(stream)}", ""]
    clip = rows["clip"]
    lines += [f"- {name}: {value:.3f} (wanted: at least {TARGETS[name]})" for name, value in clip.items()]
    lines += [
        "",
        f"| filter | share | of the first {SEARCHED} found by text | times chance | AUC | calibrated on (k) | clean dropped | missed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if name != "clip":
            lines.append(
                f"| {name} | {row['base_rate']:.1%} | {row['found_of_50']:.0f} | {row['found_times_base_rate']:.1f} | {row['auc']:.4f} | "
                f"{row['calibration_positives']:.0f} ({row['k']:.0f}) | {row['clean_dropped']:.1%} | "
                f"{row['missed']:.0f} of {row['test_positives']:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
