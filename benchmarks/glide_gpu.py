"""The GPU's side of benchmarks/glide_speed.py: share of its arithmetic that training uses (MFU), and images a second.

Needs no released code. FLOPs are 2 for a multiplication with its addition, counted on the models of full size, forward and backward.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.batch_loss import batch_loss
from models.catalog import MODELS
from models.precision import computing
from models.respacing import kept_timesteps
from models.sampling import draw_noise, guided_denoiser, sample_loop
from models.text import Captions, empty_captions
from models.training import make_optimizer, make_update_ema
from models.unet import UNet
from winnow.errors import ConfigError

PEAK_FLOPS = 989e12
"""Of an H100 or H200 (SXM), dense bfloat16, as its data sheet has it."""
TRAINING_FLOPS = {"base": 714.8e9, "upsampler": 3841.9e9, "noised-clip": 158.3e9}
"""An image, forward and backward."""
BATCH_SIZES = {"base": 64, "upsampler": 8, "noised-clip": 256}
TARGETS = {"base": 0.40, "upsampler": 0.40, "noised-clip": 0.40, "images_per_second": 4.0}
SAMPLED = 32
"""Images in one batch."""


def seconds_of(call: Callable[[], object], repetitions: int, warm_up: int = 3) -> float:
    """Median seconds of a call on the GPU, after some to warm up."""
    taken = []
    for repetition in range(warm_up + repetitions):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if repetition >= warm_up:
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def captions_of(name: str, count: int) -> Captions:
    spec = MODELS[name]
    tokens = torch.randint(1, 40_000, (count, spec.context_length), generator=torch.Generator().manual_seed(0))
    return Captions(tokens, torch.arange(spec.context_length).expand(count, -1) < 12)


def training_mfu(name: str, repetitions: int, *, compiles: bool) -> dict[str, float]:
    """A training step in bfloat16: images a second, and MFU."""
    spec, device, count = MODELS[name], torch.device("cuda"), BATCH_SIZES[name]
    model = spec.build().to(device).train()
    model.to(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer, update_ema = make_optimizer(parameters, lr=1e-4, weight_decay=0.0), make_update_ema(0.9999)
    forward = cast(nn.Module, torch.compile(model)) if compiles else model
    images = torch.rand(count, 3, spec.image_size_px, spec.image_size_px, device=device) * 2 - 1
    captions, generator = captions_of(name, count), torch.Generator().manual_seed(0)

    def step() -> None:
        with computing(device, "bfloat16"):
            loss = batch_loss(forward, spec, spec.schedule(), images, captions, generator=generator)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            update_ema(average, parameters, 1)

    spent = seconds_of(step, repetitions)
    return {
        "batch_size": count,
        "images_per_second": round(count / spent, 2),
        "mfu": round(TRAINING_FLOPS[name] * count / spent / PEAK_FLOPS, 3),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


@torch.no_grad()
def sampled_per_second() -> float:
    """256 px images a second, in one batch: 100 guided DDPM steps of the base model, 27 DDIM steps of the upsampler."""
    device = torch.device("cuda")
    base, upsampler = (cast(UNet, MODELS[name].build().to(device).eval()) for name in ("base", "upsampler"))
    for model in (base, upsampler):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    captions = captions_of("base", SAMPLED).to(device)

    def stage(unet: UNet, name: str, sampler: str, steps: str, scale: float, low_res: Tensor | None) -> Tensor:
        spec = MODELS[name]
        kept = kept_timesteps(spec.num_timesteps, steps)
        empty = None if scale == 1 else unet.encode_text(*empty_captions(1, 128).to(device))
        denoise = guided_denoiser(unet, unet.encode_text(*captions), empty, scale=scale, low_res=low_res)
        generators = [torch.Generator().manual_seed(seed) for seed in range(SAMPLED)]
        x_T = draw_noise(generators, (3, spec.image_size_px, spec.image_size_px)).to(device)
        return sample_loop(denoise, spec.schedule().respaced(kept), x_T, generators=generators, sampler=sampler)

    def both() -> Tensor:
        with computing(device, "bfloat16"):
            small = stage(base, "base", "ddpm", "100", 3.0, None)
            return stage(upsampler, "upsampler", "ddim", "fast27", 1.0, small.clamp(-1, 1))

    return round(SAMPLED / seconds_of(both, 1, warm_up=1), 2)


def measure_gpu(repetitions: int = 10) -> dict[str, Any]:
    """The whole table. Raises ConfigError without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; leave it out to measure a CPU thread")
    tables: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in TRAINING_FLOPS:
        for compiles in (False, True):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            tables[f"{name} {'compiled' if compiles else 'eager'}"] = training_mfu(name, repetitions, compiles=compiles)
    tables["images_per_second"] = sampled_per_second()
    tables["targets"] = {
        name: f"{max(tables[f'{name} eager']['mfu'], tables[f'{name} compiled']['mfu'])} of {TARGETS[name]}" for name in TRAINING_FLOPS
    } | {"images_per_second": f"{tables['images_per_second']} of {TARGETS['images_per_second']}"}
    return tables
