"""The training loop in plain torch: with one process or several, on a CPU or GPUs. It knows nothing of Ray.

A step's randomness comes from (seed, step, rank) and its data from (seed, rank, world), so a checkpoint needs no generator
states, and a training that was killed and started again ends with the same bytes as one that was not (in the same world).
"""

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.batch_loss import batch_loss
from models.catalog import find_model
from models.checkpoints import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    put_weights,
    read_state,
    save_checkpoint,
    weights_digest,
)
from models.compile_probe import compiled_if_right
from models.devices import onto
from models.fine_tuning import start_from
from models.metrics_log import append_metrics, cut_metrics, read_metrics
from models.precision import Precision, computing, settled_precision
from models.recipes import RECIPES as RECIPES
from models.recipes import TrainConfig as TrainConfig
from models.shard_loader import Batch, batches, to_unit_range
from models.text import Captions
from models.timestep_sampling import make_timestep_sampler
from models.training_data import DataShare, TrainingData, read_data
from models.training_folder import TrainingFolder, local_weights, small_files, working_folder
from models.unet import UNet, num_parameters
from winnow.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

VERSION = 3
"""Of the loop: raised when it gives other weights for the same config and shards."""

PROBE_IMAGES = 4
"""Of the first batch, on which a compiled model is compared with the eager one."""
PROBE_TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 5e-2}

TIMESTEPS = "timestep_sampler"
"""Under which its state stands among the optimizer's tensors of a checkpoint."""

Report = Callable[[dict[str, Any]], None]
"""Called by rank 0 with each line of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSummary:
    """What came of a training. JSON-able."""

    model: str
    num_parameters: int
    steps: int
    images: int
    """Seen, over all workers."""
    first_loss: float
    """Mean over the first tenth of the logged lines, one at least."""
    final_loss: float
    """Mean over the last tenth."""
    images_per_second: float
    """Median of the logged lines, over all workers."""
    device: str
    """Kind of device that made the last checkpoint."""
    checkpoint: str
    """Name of the last checkpoint's folder."""
    config: dict[str, Any]
    shards_digest: str
    data: list[dict[str, Any]]
    """Each dataset: name, digest, samples, share (a fraction), whether its samples are weighted."""


def train(
    config: TrainConfig,
    shards: str | Sequence[DataShare],
    out_dir: str | os.PathLike[str],
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str | None = None,
    init_from: str | None = None,
    report: Report | None = None,
) -> TrainSummary:
    """Trains from shards into `out_dir`: checkpoints `step-NNNNNN/` and metrics.jsonl, both written by rank 0.

    Goes on from the newest checkpoint in `out_dir`; if that is the last one, nothing is done.

    Args:
        shards: folder of shards with index.json, a path or url; or several with the share of each.
        out_dir: a folder that every worker sees: a path, or a url on an object store.
        rank, world: this process among those of the initialised process group; world 1 needs none.
        device: None takes a GPU if there is one.
        init_from: checkpoint or weights, a path or url, to start from instead of fresh ones (fine-tuning); an inpainting model may
            start from one that is none (models/fine_tuning.py).

    Raises:
        CheckpointError: `out_dir` holds a training with other settings or data, or a damaged checkpoint.
        ShardError: a shard is damaged, or its weights are not there.
        StorageError: an object store does not answer.
    """
    data = read_data(shards, weighted=config.sample_weights)
    batch_size = check_world(config, data, world)
    for url in data.unweighted if rank == 0 else ():
        logger.warning("%s has no weights of its samples: each weighs 1", url)
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), working_folder(out_dir) as folder:
        with local_weights(init_from) as start:
            trainer = Trainer(config, data, folder, rank=rank, world=world, device=device, init_from=start)
        trainer.resume()
        trainer.spec.tokenizer([], trainer.spec.context_length)  # a missing vocabulary stops the training here, not after loading shards
        stream = batches(
            data,
            image_size_px=trainer.spec.image_size_px,
            batch_size=batch_size,
            first_batch=trainer.step,
            num_batches=config.num_steps,
            seed=config.seed,
            rank=rank,
            world=world,
            num_processes=config.loader_processes,
        )
        for batch in stream:
            trainer.advance(batch, report)
        if world > 1:
            dist.barrier()  # rank 0 has written the last checkpoint, which all go on to read
    return summarize(config, data, out_dir)


def check_world(config: TrainConfig, data: TrainingData, world: int) -> int:
    """Images a step of one worker. Raises ConfigError if they cannot be shared evenly, or if there are fewer samples than workers."""
    if config.batch_size % world:
        raise ConfigError(f"batch_size {config.batch_size} cannot be shared evenly among {world} workers")
    for index in data.parts:
        if index.num_samples < world:
            raise ConfigError(f"{index.url} holds {index.num_samples} samples, fewer than {world} workers")
    return config.batch_size // world


class Trainer:
    """A training under way: the model, its average, its optimizer, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        folder: TrainingFolder,
        *,
        rank: int,
        world: int,
        device: torch.device,
        init_from: str | None,
    ) -> None:
        self.config, self.data, self.folder, self.rank, self.world, self.device = config, data, folder, rank, world, device
        self.spec = find_model(config.model)
        self.schedule = self.spec.schedule()
        self.timesteps = make_timestep_sampler(config.timestep_sampling, len(self.schedule))
        self.step = 0
        self.init_digest = weights_digest(init_from)
        torch.manual_seed(config.seed)
        self.model = self.spec.build() if init_from is None else start_from(init_from, self.spec)
        self.model.to(device).train()
        if device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        if isinstance(self.model, UNet):
            self.model.gradient_checkpointing = config.gradient_checkpointing
        self.names = [name for name, _ in self.model.named_parameters()]
        self.parameters = [parameter for _, parameter in self.model.named_parameters()]
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.update_ema = make_update_ema(config.ema_rate)
        self.optimizer = make_optimizer(self.parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.forward: nn.Module | None = None
        self._sums: dict[str, Tensor] = {}
        self._summed_steps = 0
        self._logged_since = time.monotonic()

    def resume(self) -> None:
        """Takes up the newest checkpoint, if there is one of the same settings and data."""
        found = list_checkpoints(self.folder.path)
        if found and (what := difference(read_state(found[-1][1]), self.config, self.data, self.init_digest)):
            raise CheckpointError(
                f"{self.folder.told} holds a training with {what}. Train into another folder, or remove this one to start afresh"
            )
        if found:
            self.step, path = found[-1]
            self._take(load_checkpoint(path), path)
            self.folder.taken(path)
            logger.info("going on from %s/%s", self.folder.told, path.name)
        if self.rank == 0:
            self.folder.begin()
            cut_metrics(self.folder.path, self.step)
        self._logged_since = time.monotonic()

    def advance(self, batch: Batch, report: Report | None = None) -> None:
        """One step on a batch of this worker."""
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        captions = self.spec.tokenizer(batch.captions, self.spec.context_length)
        metrics = self._update(batch.images, captions, batch.weights)
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.device)) + value.detach()
        self._summed_steps += 1
        last = self.step == self.config.num_steps
        if last or self.step % self.config.log_every == 0:
            self._log(report)
        if self.rank == 0 and (last or self.step % self.config.checkpoint_every == 0):
            self._save()

    def _made_forward(self, pixels: Tensor, captions: Captions) -> nn.Module:
        """The model as it is called in a step: compiled if that is asked for and right, and shared among workers."""
        model = self.model
        if self.config.compile:
            few = min(len(pixels), PROBE_IMAGES)

            def loss(forward: nn.Module, precision: Precision = self.config.precision) -> Tensor:
                generator = torch.Generator().manual_seed(0)
                with computing(self.device, precision):
                    some = Captions(captions.tokens[:few], captions.mask[:few])
                    return batch_loss(forward, self.spec, self.schedule, pixels[:few], some, generator=generator)["loss"]

            def exact(forward: nn.Module) -> Tensor:
                return loss(forward, "float32")

            state = torch.random.get_rng_state()
            settled = settled_precision(self.device, self.config.precision)
            model = compiled_if_right(self.model, loss, tolerance=PROBE_TOLERANCE[settled], exact=None if settled == "float32" else exact)
            torch.random.set_rng_state(state)
        return DistributedDataParallel(model) if self.world > 1 else model

    def _update(self, images: Tensor, captions: Captions, weights: Tensor | None) -> dict[str, Tensor]:
        seed = step_seed(self.config.seed, self.step, self.rank)
        torch.manual_seed(seed)  # dropout, inside the network
        generator = torch.Generator().manual_seed(seed)  # what is drawn here, on the CPU: the same on every device
        pixels = to_unit_range(onto(images, self.device))
        if self.forward is None:
            self.forward = self._made_forward(pixels, captions)
        self.optimizer.zero_grad(set_to_none=True)  # before the forward pass: its memory is needed there
        with computing(self.device, self.config.precision):
            metrics = batch_loss(
                self.forward,
                self.spec,
                self.schedule,
                pixels,
                captions,
                generator=generator,
                caption_dropout=self.config.caption_dropout,
                timesteps=self.timesteps,
                min_snr_gamma=self.config.min_snr_gamma,
                weights=weights,
            )
        metrics["loss"].backward()
        self.optimizer.step()
        with torch.no_grad():
            self.update_ema(self.ema, self.parameters, self.step)
        return metrics

    def _log(self, report: Report | None) -> None:
        names, steps = sorted(self._sums), self._summed_steps
        means = torch.stack([self._sums[name] for name in names]) / steps
        if self.world > 1:
            dist.all_reduce(means)
            means /= self.world
        seconds = max(time.monotonic() - self._logged_since, 1e-9)
        line: dict[str, Any] = dict(zip(names, (round(value, 6) for value in means.tolist()), strict=True))
        line |= {
            "step": self.step,
            "lr": self.config.lr_at(self.step),
            "images_per_second": round(steps * self.config.batch_size / seconds, 2),
        }
        self._sums, self._summed_steps = {}, 0
        self._logged_since = time.monotonic()
        if self.rank == 0:
            append_metrics(self.folder.path, line)
            self.folder.logged()
            if report is not None:
                report(line)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "config": dataclasses.asdict(self.config),
            "dataset": self.data.dataset,
            "shards_digest": self.data.digest,
            "data": self.data.lineage(),
            "weights_digest": self.data.weights_digest,
            "init_digest": self.init_digest,
            "world": self.world,
            "device": self.device.type,
            "samples_seen": self.step * self.config.batch_size,
        }

    def _save(self) -> None:
        self.folder.ensure_held()
        optimizer = self.optimizer.state_dict()["state"]
        moments = {f"{name}/{key}": value for i, name in enumerate(self.names) for key, value in optimizer[i].items()}
        moments |= {f"{TIMESTEPS}/{key}": value for key, value in self.timesteps.state().items()}
        model = dict(zip(self.names, self.parameters, strict=True))
        checkpoint = Checkpoint(cast(Any, model), dict(zip(self.names, self.ema, strict=True)), moments, self._state())
        path = save_checkpoint(self.folder.path, self.step, checkpoint)
        self.folder.saved(path, keep=self.config.keep_checkpoints)

    def _take(self, checkpoint: Checkpoint, path: Path) -> None:
        put_weights(self.model, checkpoint.model, f"{path}/model.safetensors is not a {self.spec.name}")
        for mine, name in zip(self.ema, self.names, strict=True):
            mine.copy_(checkpoint.ema[name])
        state = {
            i: {
                "step": checkpoint.optimizer[f"{name}/step"],
                **{key: laid_out_like(weight, checkpoint.optimizer[f"{name}/{key}"]) for key in ("exp_avg", "exp_avg_sq")},
            }
            for i, (name, weight) in enumerate(zip(self.names, self.parameters, strict=True))
        }
        self.timesteps.take({key: checkpoint.optimizer[f"{TIMESTEPS}/{key}"] for key in self.timesteps.state()})
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def laid_out_like(weight: Tensor, moment: Tensor) -> Tensor:
    """A weight's moment from a file in the layout of the weight, which on a GPU is another: the fused optimizer wants both alike."""
    return moment if moment.stride() == weight.stride() else torch.empty_like(weight).copy_(moment)


def make_optimizer(parameters: list[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW in one pass over each weight, its gradient and its moments, without temporaries of their size."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def make_update_ema(rate: float) -> Callable[[list[Tensor], list[nn.Parameter], int], None]:
    """Moves averages, in place, to `rate` of themselves and 1 - rate of the weights: a call for all of them. The step is not looked at."""
    return cast(Any, get_ema_multi_avg_fn(rate))


def difference(state: dict[str, Any], config: TrainConfig, data: TrainingData, init_digest: str) -> str:
    """In words, what keeps a checkpoint with this state.json from being gone on from; empty if nothing does."""
    # A checkpoint that is older than a setting was made with what is now its default.
    theirs, ours = TrainConfig.defaults() | state["config"], config.what_decides_the_weights()
    for name in sorted(ours):
        if theirs.get(name) != ours[name]:
            return f"{name} {theirs.get(name)!r} instead of {ours[name]!r}"
    if state["shards_digest"] != data.digest:
        return f"other shards ({state['dataset']}) than {data.url} holds now"
    if state.get("weights_digest") != data.weights_digest:
        return f"other weights of samples than {data.url} holds now"
    if state["init_digest"] != init_digest:
        return "other weights to start from"
    if state["step"] > config.num_steps:
        return f"{state['step']} steps already, more than num_steps {config.num_steps}"
    return ""


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything random in one step of one worker."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7])


def summarize(config: TrainConfig, data: TrainingData, out_dir: str | os.PathLike[str]) -> TrainSummary:
    """What metrics.jsonl and the newest checkpoint say of a training."""
    with small_files(out_dir) as folder:
        lines = read_metrics(folder)
        step, path = list_checkpoints(folder)[-1]
        state = read_state(path)
    losses = [line["loss"] for line in lines]
    tenth = max(1, len(lines) // 10)
    rates = sorted(line["images_per_second"] for line in lines)
    with torch.device("meta"):
        parameters = num_parameters(find_model(config.model).build())
    return TrainSummary(
        model=config.model,
        num_parameters=parameters,
        steps=step,
        images=step * config.batch_size,
        first_loss=sum(losses[:tenth]) / tenth,
        final_loss=sum(losses[-tenth:]) / tenth,
        images_per_second=rates[len(rates) // 2],
        device=state["device"],
        checkpoint=path.name,
        config=dataclasses.asdict(config),
        shards_digest=data.digest,
        data=data.lineage(),
    )
