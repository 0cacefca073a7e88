"""Training of the run's models on its shards. The loop is in models/training.py, its launch on Ray Train in models/launch.py."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from models import training
from models.catalog import find_model
from models.checkpoints import newest_checkpoint, weights_digest
from models.launch import launch
from models.recipes import STARTS_FROM, stages_of
from tasks import upstream
from tasks.config import RunConfig
from tasks.policy import stage_task
from winnow.digests import SHORT, digest
from winnow.errors import ConfigError
from winnow.partitions import Outcome, StageRun, run_step, start_ray
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.workspace import checkpoint_folder, open_workspace, shard_folder

logger = logging.getLogger(__name__)


def train_stage(config: RunConfig) -> StageRun:
    """Trains each recipe of the run; resumes from the newest checkpoint of the same recipe on the same shards."""
    storage = open_workspace(config.workspace)
    if not storage.is_local:
        raise ConfigError(f"training reads shards from a local disk, and {storage.url} is none: copy shards/ and train there")
    find_vocabularies(config)
    shards = upstream.outputs_digest(storage, "shard")
    # A recipe that starts from another must wait for it. What was done in an earlier round is found done in the next.
    rounds = sorted({len(stages_of(name)) for name in config.train}) or [1]
    runs = []
    for stages in rounds:
        works = [_work(config, name, shards) for name in config.train if len(stages_of(name)) <= stages]
        last = stages == rounds[-1]
        runs.append(run_step(train_model, works, storage, stage="train", version=training.VERSION, prune=last))
    ran = sum(run.ran for run in runs)
    return replace(runs[-1], ran=ran, skipped=len(runs[-1].partitions) - ran, seconds=sum(run.seconds for run in runs))


def find_vocabularies(config: RunConfig) -> None:
    """Fetches what the run's models read captions with, if it is not here. Raises MissingWeights, which says what to bring where."""
    for name in config.train:
        spec = find_model(training.RECIPES[name].model)
        spec.tokenizer([], spec.context_length)


def _work(config: RunConfig, name: str, shards: str) -> Work:
    # Training is deterministic: what a recipe starts from is known by that one's settings, before it was trained.
    before = [training.RECIPES[stage] for stage in stages_of(name)[:-1]]
    return Work(
        name=name,
        inputs={"shards": shards, **({"starts_from": digest(before)} if before else {})},
        arguments={"config": training.RECIPES[name], "num_workers": config.train_workers},
        unhashed={"dataset": config.shard.dataset, "shards_digest": shards},
    )


def train_model(
    storage: Storage, name: str, *, config: training.TrainConfig, num_workers: int, dataset: str, shards_digest: str
) -> Outcome:
    """One model, on Ray Train, from the shards of a dataset to `checkpoints/<recipe>/`."""
    folder = checkpoint_folder(name)
    purpose: dict[str, Any] = {"recipe": config.what_was_chosen(), "shards": shards_digest, "num_workers": num_workers}
    start = None
    if name in STARTS_FROM:
        start = newest_checkpoint(storage.full(checkpoint_folder(STARTS_FROM[name])))
        assert start is not None, "train_stage trains what a recipe starts from first"
        purpose["starts_from"] = weights_digest(start)
    keep_apart(Path(storage.full(folder)), purpose)
    start_ray(num_workers)
    init_from = None if start is None else str(start)
    summary = launch(config, storage.full(shard_folder(dataset)), storage.full(folder), num_workers=num_workers, init_from=init_from)
    final = f"{folder}/{summary.checkpoint}"
    return Outcome(
        outputs=(*storage.walk(final), f"{folder}/metrics.jsonl"),
        counts={"steps": summary.steps, "images": summary.images},
        facts={"checkpoint": final, "final_loss": summary.final_loss, "device": summary.device},
    )


def keep_apart(folder: Path, purpose: dict[str, Any]) -> None:
    """Makes `folder` the one of a training with this purpose, new or as it was left.

    Checkpoints of other shards or another recipe must not be gone on from, but they may have cost weeks: their folder is set
    aside as `<folder>.<digest of its purpose>`, and comes back if its purpose does.
    """
    marker = folder / "run.json"
    if marker.is_file() and (found := json.loads(marker.read_text())) != purpose:
        aside = _aside(folder, found)
        folder.rename(aside)
        logger.warning("%s was trained on other shards or with another recipe: kept as %s. Remove it if it is not needed.", folder, aside)
    if not marker.is_file():
        if (earlier := _aside(folder, purpose)).is_dir():
            earlier.rename(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(purpose, sort_keys=True) + "\n")


def _aside(folder: Path, purpose: dict[str, Any]) -> Path:
    return folder.with_name(f"{folder.name}.{digest(purpose)[:SHORT]}")


train = stage_task(train_stage, name="train", timeout_hours=30 * 24)
