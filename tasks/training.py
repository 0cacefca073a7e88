"""Training of the run's models on its shards. The loop is in models/training.py, its launch on Ray Train in models/launch.py."""

import json
from typing import Any

from models import training
from models.launch import launch
from tasks import upstream
from tasks.config import RunConfig
from tasks.policy import stage_task
from winnow.digests import digest
from winnow.errors import ConfigError
from winnow.partitions import Outcome, StageRun, run_step, start_ray
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.workspace import checkpoint_folder, open_workspace, shard_folder


def train_stage(config: RunConfig) -> StageRun:
    """Trains each recipe of the run; resumes from the newest checkpoint of the same recipe on the same shards."""
    storage = open_workspace(config.workspace)
    if not storage.is_local:
        raise ConfigError(f"training reads shards from a local disk, and {storage.url} is none: copy shards/ and train there")
    shards = upstream.outputs_digest(storage, "shard")
    works = [
        Work(
            name=name,
            inputs={"shards": shards},
            arguments={"config": training.RECIPES[name], "num_workers": config.train_workers},
            unhashed={"dataset": config.shard.dataset, "shards_digest": shards},
        )
        for name in config.train
    ]
    return run_step(train_model, works, storage, stage="train", version=training.VERSION)


def train_model(
    storage: Storage, name: str, *, config: training.TrainConfig, num_workers: int, dataset: str, shards_digest: str
) -> Outcome:
    """One model, on Ray Train, from the shards of a dataset to `checkpoints/<recipe>/`."""
    folder = checkpoint_folder(name)
    purpose: dict[str, Any] = {"recipe": digest(config), "shards": shards_digest, "num_workers": num_workers}
    marker = f"{folder}/run.json"
    if not storage.exists(marker) or json.loads(storage.read_bytes(marker)) != purpose:
        # Checkpoints of other shards or another recipe must not be resumed from.
        storage.remove_folder(folder)
        storage.write_text(marker, json.dumps(purpose, sort_keys=True) + "\n")
    start_ray(num_workers)
    summary = launch(config, storage.full(shard_folder(dataset)), storage.full(folder), num_workers=num_workers)
    final = f"{folder}/{summary.checkpoint}"
    return Outcome(
        outputs=(*storage.walk(final), f"{folder}/metrics.jsonl"),
        counts={"steps": summary.steps, "images": summary.images},
        facts={"checkpoint": final, "final_loss": summary.final_loss, "device": summary.device},
    )


train = stage_task(train_stage, name="train", timeout_hours=30 * 24)
