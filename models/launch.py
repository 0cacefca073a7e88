"""The training loop on Ray Train: several processes, on one machine or many. Besides winnow/partitions.py this alone knows Ray.

Ray starts the workers, starts them again if one dies, and forms their process group. What is resumed, and from where, is
decided by our own checkpoints in `out_dir` (models/checkpoints.py), never by Ray's records: after kill -9 of anything, call
again. `out_dir` and `shards` must be seen by every machine: they are on a file system that all mount, or on an object store.
"""

import logging
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.checkpoints import is_url, list_checkpoints, newest_checkpoint, read_state, weights_digest
from models.recipes import TrainConfig
from models.training import TrainSummary, check_world, difference, summarize, train
from models.training_data import DataShare, read_data
from models.training_folder import metrics_at, scratch_folder, small_files
from winnow.digests import SHORT, digest
from winnow.errors import ConfigError, StorageError, WinnowError
from winnow.nodes import check_node, owner_of
from winnow.partitions import joined, start_ray, stop_ray
from winnow.progress import Progress
from winnow.storage import Storage

MAX_RESTARTS = 2
"""Of the workers, after one died."""
GROUP_TIMEOUT_SECONDS = 600
"""A worker that is silent this long in a collective operation counts as dead."""
STORE_GROUP_TIMEOUT_SECONDS = 4 * 3600
"""The same where checkpoints are on an object store: all wait while rank 0 puts one there, 56 GB for the largest model."""
FOLLOW_SECONDS = 1.0
STORE_FOLLOW_SECONDS = 10.0
"""On an object store."""
RAY_FOLDER = ".ray-train"
"""Ray's own records, inside out_dir while it runs; with an out_dir on an object store, in a folder of temporary files."""


logger = logging.getLogger(__name__)


class TrainingFailed(WinnowError):
    """A worker failed more often than it is started again."""


def launch(
    config: TrainConfig,
    shards: str | Sequence[DataShare],
    out_dir: str,
    *,
    num_workers: int = 2,
    use_gpu: bool | None = None,
    init_from: str | None = None,
) -> TrainSummary:
    """Trains as `models.training.train` does, with several workers. Shows progress. Does nothing if it was finished before.

    Args:
        num_workers: processes, one CPU (and with `use_gpu` one GPU) each; 0 trains in this process, without Ray.
        use_gpu: None takes a GPU for each worker if this machine, or the Ray cluster that is joined, has GPUs now. True on a cluster
            waits for them.

    Raises:
        ConfigError: this machine has GPUs, or shall use them, but there is not one for each worker; or a node of the cluster does not
            see `out_dir`.
        WinnowError: what a worker could not go on from; or TrainingFailed if workers died more than MAX_RESTARTS times.
    """
    import torch

    data = read_data(shards, weighted=config.sample_weights)
    check_world(config, data, max(1, num_workers))
    with small_files(out_dir) as folder:
        finished = newest_checkpoint(folder)
        state = None if finished is None else read_state(finished)
    if state is not None and state["step"] == config.num_steps and not difference(state, config, data, weights_digest(init_from)):
        return summarize(config, data, out_dir)
    options: dict[str, Any] = {"init_from": init_from}
    if num_workers == 0:
        if use_gpu and not torch.cuda.is_available():
            raise ConfigError("training is to use a GPU (train_gpu), and this machine has none")
        use_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu
        with _Follower(config, out_dir):
            return train(config, shards, out_dir, device="cuda" if use_gpu else "cpu", **options)
    # Workers run in folders of their own: paths must not depend on where this process stands.
    options |= {"config": config, "shards": _absolute_data(shards), "out_dir": _absolute(out_dir)}
    if init_from is not None:
        options["init_from"] = _absolute(init_from)
    ours = not ray_is_running()
    start_ray(num_workers)
    try:
        with _Follower(config, out_dir):
            gpu = gpu_for_each(num_workers, use_gpu)
            tell_if_short(num_workers, gpu=gpu)
            _fit(options, num_workers, gpu)
    finally:
        if ours:
            stop_ray()
    return summarize(config, data, out_dir)


def gpu_for_each(num_workers: int, use_gpu: bool | None = None) -> bool:
    """Whether workers take a GPU each: as told, or if there are any where Ray is running, which may not be here.

    Raises:
        ConfigError: they are to, but there are fewer than workers, and no more can join.
    """
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if use_gpu is None:
        use_gpu = gpus > 0
    if use_gpu and gpus < num_workers and not joined():
        cure = f"set train_workers to {gpus}" if gpus else "set train_gpu to false"
        raise ConfigError(f"{num_workers} training workers, but this machine has {gpus} GPU{'s' * (gpus != 1)}: {cure}")
    return use_gpu


def tell_if_short(num_workers: int, *, gpu: bool) -> None:
    """Ray Train waits without a word until every worker has its place."""
    import ray

    have, kinds = ray.cluster_resources(), ("CPU", "GPU") if gpu else ("CPU",)
    short = [f"{num_workers - have.get(kind, 0):g} more {kind}s" for kind in kinds if have.get(kind, 0) < num_workers]
    if short:
        logger.warning("training with %d workers waits until the cluster has %s", num_workers, " and ".join(short))


def ray_is_running() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _absolute(url: str) -> str:
    return url if "://" in url else os.path.abspath(url)


def _absolute_data(shards: str | Sequence[DataShare]) -> str | tuple[DataShare, ...]:
    return _absolute(shards) if isinstance(shards, str) else tuple(replace(one, shards=_absolute(one.shards)) for one in shards)


def _fit(options: dict[str, Any], num_workers: int, use_gpu: bool) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    # Ray goes on from its own records of a run of the same name: there must be none, our checkpoints decide.
    storage = Storage(options["out_dir"])
    if storage.is_local:
        records = Path(options["out_dir"]) / RAY_FOLDER
        shutil.rmtree(records, ignore_errors=True)
        records.mkdir(parents=True)
    else:
        records = scratch_folder()  # its name is new: wherever on the cluster Ray makes such a folder, it is empty
    timeout = GROUP_TIMEOUT_SECONDS if storage.is_local else STORE_GROUP_TIMEOUT_SECONDS
    trainer = TorchTrainer(
        _work,
        train_loop_config=options,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=timeout),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1, "GPU": int(use_gpu)}),
        run_config=RunConfig(
            name=digest(options)[:SHORT], storage_path=str(records), failure_config=FailureConfig(max_failures=MAX_RESTARTS)
        ),
    )
    try:
        with owner_of(storage, compare=joined(), folder=RAY_FOLDER) as owner:
            options["owner"] = owner
            trainer.fit()
    except TrainingFailedError as failure:
        causes = failure.worker_failures.values() if isinstance(failure, WorkerGroupError) else []
        for cause in causes:
            if isinstance(cause, WinnowError):
                raise cause from failure
        raise TrainingFailed(
            f"training {options['config'].model} into {options['out_dir']} failed {MAX_RESTARTS + 1} times: "
            f"{str(failure).strip().splitlines()[-1]}\n"
            "Mend the cause and run the same command again: it goes on from the last checkpoint."
        ) from failure
    finally:
        shutil.rmtree(records, ignore_errors=True)


def _work(options: dict[str, Any]) -> None:
    """In a worker: its share of the training."""
    import ray.train
    import ray.train.torch
    import torch

    options = dict(options)
    owner, out = options.pop("owner"), Storage(options["out_dir"])
    check_node(owner, out)
    torch.set_num_threads(1)  # a worker has one CPU
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    with owner.guarding(out):
        train(**options, rank=context.get_world_rank(), world=context.get_world_size(), device=device)


class _Follower:
    """Shows how far a training is, from the metrics that its rank 0 writes, wherever that runs."""

    def __init__(self, config: TrainConfig, out_dir: str) -> None:
        self._out_dir, self._batch_size = out_dir, config.batch_size
        with small_files(out_dir) as folder:
            checkpoints = list_checkpoints(folder)
        self._step = checkpoints[-1][0] if checkpoints else 0
        self._seconds = STORE_FOLLOW_SECONDS if is_url(out_dir) else FOLLOW_SECONDS
        self._progress = Progress(f"train {config.model}", total=config.num_steps, unit="steps", done=self._step)
        self._title = self._progress.title
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._progress.__exit__()

    def _follow(self) -> None:
        while not self._stop.wait(self._seconds):
            self._look()

    def _look(self) -> None:
        try:
            lines = metrics_at(self._out_dir)
        except StorageError as problem:  # whether the training can go on without the store is for the training to say
            logger.warning("progress of the training cannot be read: %s", problem)
            return
        for line in lines:
            if line["step"] > self._step:
                self._progress.title = f"{self._title} (loss {line['loss']:.3f})"
                while self._step < line["step"]:
                    self._step += 1
                    self._progress.advance({"images": self._batch_size})
        self._progress.tick()
