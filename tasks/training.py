"""Training of the run's models on its shards. The loop is in models/training.py, its launch on Ray Train in models/launch.py."""

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from models import training
from models.catalog import find_model
from models.checkpoints import weights_digest
from models.launch import launch
from models.recipes import STARTS_FROM, stages_of
from models.training_data import DataShare, read_data
from models.training_folder import newest_place
from tasks import upstream
from tasks.checkpoints_apart import SET_ASIDE, keep_apart_on_store, name_aside
from tasks.config import RunConfig
from tasks.policy import stage_task
from winnow.digests import digest
from winnow.partitions import Outcome, StageRun, run_step, start_ray
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.workspace import checkpoint_folder, open_workspace, shard_folder

logger = logging.getLogger(__name__)


def train_stage(config: RunConfig) -> StageRun:
    """Trains each recipe of the run; resumes from the newest checkpoint of the same recipe on the same shards."""
    storage = open_workspace(config.workspace)
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
        unhashed={"data": _data(storage, config, name), "inputs": inputs, "use_gpu": config.train_gpu},
    )


def _recipe(config: RunConfig, name: str) -> training.TrainConfig:
    return replace(training.RECIPES[name], sample_weights=True) if name in config.sample_weights else training.RECIPES[name]


def _data(storage: Storage, config: RunConfig, name: str) -> tuple[DataShare, ...]:
    """What a recipe reads, by path or url: the run's own dataset, or the mixture that the config names."""
    wanted = config.train_data.get(name) or (DataShare(shards=config.shard.dataset, share=1.0),)
    return tuple(one if "/" in one.shards else replace(one, shards=storage.place(shard_folder(one.shards))) for one in wanted)


def _data_inputs(storage: Storage, config: RunConfig, name: str, shards: str) -> dict[str, str]:
    """Digests of a recipe's data: of the shard stage's outputs, or of a mixture; and of the weights of samples."""
    mixed, weighted = name in config.train_data, name in config.sample_weights
    if not mixed and not weighted:
        return {"shards": shards}
    data = read_data(_data(storage, config, name), weighted=weighted)
    found = {"shards": data.digest if mixed else shards}
    return found | {"weights": data.weights_digest} if data.weights_digest is not None else found


def train_model(
    storage: Storage,
    name: str,
    *,
    config: training.TrainConfig,
    num_workers: int,
    data: tuple[DataShare, ...],
    inputs: dict[str, str],
    use_gpu: bool | None,
) -> Outcome:
    """One model, on Ray Train, from shards to `checkpoints/<recipe>/`.

    Args:
        data: one dataset, or several with shares.
        inputs: digests of the data: a folder of checkpoints is for these alone.
        use_gpu: None takes GPUs if there are any now.
    """
    folder = checkpoint_folder(name)
    of_data = {key: mark for key, mark in inputs.items() if key != "starts_from"}
    purpose: dict[str, Any] = {"recipe": config.what_was_chosen(), **of_data, "num_workers": num_workers}
    start = None
    if name in STARTS_FROM:
        start = newest_place(storage.place(checkpoint_folder(STARTS_FROM[name])))
        assert start is not None, "train_stage trains what a recipe starts from first"
        purpose["starts_from"] = weights_digest(start)
    if storage.is_local:
        keep_apart(Path(storage.full(folder)), purpose)
    else:
        keep_apart_on_store(storage, folder, purpose)
    start_ray(num_workers)
    with ctrl_c():
        summary = launch(config, data, storage.place(folder), num_workers=num_workers, use_gpu=use_gpu, init_from=start)
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
        logger.warning(SET_ASIDE, folder, aside)
    if not marker.is_file():
        if (earlier := _aside(folder, purpose)).is_dir():
            earlier.rename(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(purpose, sort_keys=True) + "\n")


def _aside(folder: Path, purpose: dict[str, Any]) -> Path:
    return folder.with_name(name_aside(folder.name, purpose))


train = stage_task(train_stage, name="train", timeout_hours=30 * 24)


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Ctrl-C stays what it is elsewhere. Ray Train takes SIGINT for itself, ends the process by `sys.exit`, and never gives it back."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray does not touch it then
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        signal.signal(signal.SIGINT, before)
