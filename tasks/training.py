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
from models.training_data import DataShare, read_data
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
    check_place(config)
    find_vocabularies(config)
    shards = upstream.outputs_digest(storage, "shard")
    # A recipe that starts from another must wait for it. What was done in an earlier round is found done in the next.
    rounds = sorted({len(stages_of(name)) for name in config.train}) or [1]
    runs = []
    for stages in rounds:
        works = [_work(storage, config, name, shards) for name in config.train if len(stages_of(name)) <= stages]
        last = stages == rounds[-1]
        runs.append(run_step(train_model, works, storage, stage="train", version=training.VERSION, prune=last))
    ran = sum(run.ran for run in runs)
    return replace(runs[-1], ran=ran, skipped=len(runs[-1].partitions) - ran, seconds=sum(run.seconds for run in runs))


def check_place(config: RunConfig) -> None:
    """Raises ConfigError if there is something to train and the workspace is not on a disk, which training reads and writes."""
    if config.train and not open_workspace(config.workspace).is_local:
        raise ConfigError(
            f"training needs a workspace on a local disk, and {config.workspace} is none. Run `winnow curate CONFIG` there; to train, copy "
            "manifest/, raw/, embeddings/, filters/, decisions/, shards/ and receipts/ to a disk and run with that as the workspace."
        )


def find_vocabularies(config: RunConfig) -> None:
    """Fetches what the run's models read captions with, if it is not here. Raises MissingWeights, which says what to bring where."""
    for name in config.train:
        spec = find_model(training.RECIPES[name].model)
        spec.tokenizer([], spec.context_length)


def _work(storage: Storage, config: RunConfig, name: str, shards: str) -> Work:
    inputs = _data_inputs(storage, config, name, shards)
    # Training is deterministic: what a recipe starts from is known by that one's settings and data, before it was trained.
    before = stages_of(name)[:-1]
    if before:
        own = {stage: found for stage in before if (found := _data_inputs(storage, config, stage, shards)) != {"shards": shards}}
        inputs["starts_from"] = digest([*(_recipe(config, stage) for stage in before), *([own] if own else [])])
    return Work(
        name=name,
        inputs=inputs,
        arguments={"config": _recipe(config, name), "num_workers": config.train_workers},
        unhashed={"data": _data(storage, config, name), "inputs": inputs},
    )


def _recipe(config: RunConfig, name: str) -> training.TrainConfig:
    return replace(training.RECIPES[name], sample_weights=True) if name in config.sample_weights else training.RECIPES[name]


def _data(storage: Storage, config: RunConfig, name: str) -> tuple[DataShare, ...]:
    """What a recipe reads, by path or url: the run's own dataset, or the mixture that the config names."""
    wanted = config.train_data.get(name) or (DataShare(shards=config.shard.dataset, share=1.0),)
    return tuple(one if "/" in one.shards else replace(one, shards=storage.full(shard_folder(one.shards))) for one in wanted)


def _data_inputs(storage: Storage, config: RunConfig, name: str, shards: str) -> dict[str, str]:
    """Digests of a recipe's data: of the shard stage's outputs, or of a mixture; and of the weights of samples."""
    mixed, weighted = name in config.train_data, name in config.sample_weights
    if not mixed and not weighted:
        return {"shards": shards}
    data = read_data(_data(storage, config, name), weighted=weighted)
    found = {"shards": data.digest if mixed else shards}
    return found | {"weights": data.weights_digest} if data.weights_digest is not None else found


def train_model(
    storage: Storage, name: str, *, config: training.TrainConfig, num_workers: int, data: tuple[DataShare, ...], inputs: dict[str, str]
) -> Outcome:
    """One model, on Ray Train, from shards to `checkpoints/<recipe>/`.

    Args:
        data: one dataset, or several with shares.
        inputs: digests of the data: a folder of checkpoints is for these alone.
    """
    folder = checkpoint_folder(name)
    of_data = {key: mark for key, mark in inputs.items() if key != "starts_from"}
    purpose: dict[str, Any] = {"recipe": config.what_was_chosen(), **of_data, "num_workers": num_workers}
    start = None
    if name in STARTS_FROM:
        start = newest_checkpoint(storage.full(checkpoint_folder(STARTS_FROM[name])))
        assert start is not None, "train_stage trains what a recipe starts from first"
        purpose["starts_from"] = weights_digest(start)
    keep_apart(Path(storage.full(folder)), purpose)
    start_ray(num_workers)
    init_from = None if start is None else str(start)
    summary = launch(config, data, storage.full(folder), num_workers=num_workers, init_from=init_from)
    final = f"{folder}/{summary.checkpoint}"
    return Outcome(
        outputs=(*storage.walk(final), f"{folder}/metrics.jsonl"),
        counts={"steps": summary.steps, "images": summary.images},
        facts={"checkpoint": final, "final_loss": summary.final_loss, "device": summary.device, "data": summary.data},
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
