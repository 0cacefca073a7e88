"""How fast GLIDE and its noised CLIP sample and train here, beside the released code with the same weights in the same process.

    python -m benchmarks.glide_speed --released CHECKOUT                on one CPU thread: CFG step, training step, CLIP guidance
    python -m benchmarks.glide_speed --released CHECKOUT --only memory  peak memory of a training step, each side in a process of its own
    python -m benchmarks.glide_speed --device cuda                      on a GPU: share of its arithmetic (MFU), images a second

CHECKOUT is a folder with openai/glide-text2im. Times are CPU seconds of this process, for machines are shared; both sides take turns,
and the ratio is the median over the turns. Weights are random, drawn once and given to both sides.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.released_glide import (
    ReleasedTrainer,
    find_released,
    released_base,
    released_cfg_step,
    released_clip,
    released_guidance,
)
from models.catalog import MODELS
from models.diffusion import q_sample
from models.guidance import clip_guidance
from models.noised_clip import NoisedClip
from models.objectives import hybrid_loss
from models.precision import Precision, computing, has_fast_bfloat16
from models.sampling import guided_denoiser
from models.text import Captions, clip_captions, empty_captions
from models.training import make_optimizer, make_update_ema
from models.unet import UNet

PROMPT = "an oil painting of a corgi"
GUIDANCE_SCALE = 3.0
TARGETS = {
    "cfg float32": 1.25,
    "cfg bfloat16": 2.3,
    "training float32": 1.3,
    "training bfloat16": 2.7,
    "clip bfloat16": 2.4,
}
CPU = torch.device("cpu")


def scattered(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random matrices in place of zero-initialised ones, so that every layer has something to do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return model


def some_captions(count: int) -> Captions:
    """Tokens of the base model, the first of `count` rows real: 10 of 128 positions."""
    tokens = torch.randint(0, 50_000, (count, 128), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(count, 128, dtype=torch.bool)
    mask[0, :10] = True
    return Captions(tokens, mask)


def seconds(call: Callable[[], Tensor | float]) -> tuple[float, Tensor]:
    """CPU seconds of a call, all threads together, and what it gave."""
    begin = time.process_time()
    result = call()
    return time.process_time() - begin, torch.as_tensor(result)


def compared(name: str, theirs: Callable[[], Any], ours: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, Any]:
    """Both sides by turns, after one turn to warm up: median seconds, median ratios, and how far the results lie apart."""
    taken: dict[str, list[float]] = {side: [] for side in ("released", *ours)}
    results: dict[str, Tensor] = {}
    for repetition in range(repetitions + 1):
        for side, call in {"released": theirs, **ours}.items():
            spent, results[side] = seconds(call)
            if repetition:
                taken[side].append(spent)
    rows: dict[str, Any] = {"released_seconds": round(statistics.median(taken["released"]), 3)}
    for side in ours:
        ratios = [other / mine for other, mine in zip(taken["released"], taken[side], strict=True)]
        apart = (results[side] - results["released"]).norm() / results["released"].norm()
        rows[side] = {
            "seconds": round(statistics.median(taken[side]), 3),
            "times_faster": round(statistics.median(ratios), 2),
            "relative_l2": float(f"{apart.item():.2g}"),
        }
        print(f"{name} {side}: {rows[side]}; released {rows['released_seconds']} s", file=sys.stderr, flush=True)
    return rows


def cfg_step(repetitions: int) -> dict[str, Any]:
    """One step of the base model for one image with classifier-free guidance, text and empty caption: network output, no solver."""
    unet = cast(UNet, scattered(MODELS["base"].build()).eval())
    weights = unet.state_dict()
    captions = some_captions(2)
    x_t = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([500])

    def ours(precision: Precision) -> Callable[[], Tensor]:
        with torch.no_grad(), computing(CPU, precision):
            text = unet.encode_text(captions.tokens[:1], captions.mask[:1])
            denoise = guided_denoiser(unet, text, unet.encode_text(*empty_captions(1, 128)), scale=GUIDANCE_SCALE)

        def step() -> Tensor:
            with torch.no_grad(), computing(CPU, precision):
                return denoise(x_t, t)

        return step

    tables = {}
    for keeps_text in (False, True):
        released = released_base(weights, keeps_text=keeps_text).eval()
        step = torch.no_grad()(released_cfg_step(released, GUIDANCE_SCALE))
        name = "cfg, its text cached" if keeps_text else "cfg"
        theirs = lambda step=step: step(x_t, t, *captions)  # noqa: E731
        tables[name] = compared(name, theirs, {"float32": ours("float32"), "bfloat16": ours("bfloat16")}, repetitions)
    return tables


class OurTrainer:
    """A training step of models/training.py without its data and files: the same optimizer, average and precision."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        self.model, self.precision = model.train(), precision
        self.schedule = MODELS["base"].schedule()
        self.parameters = list(model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = make_optimizer(self.parameters, lr=1e-4, weight_decay=0.0)
        self.update_ema = make_update_ema(0.9999)

    def step(self, images: Tensor, t: Tensor, noise: Tensor, tokens: Tensor, mask: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        x_t = q_sample(self.schedule, images, t, noise)
        with computing(CPU, self.precision):
            output = self.model(x_t, self.schedule.model_timesteps(t), tokens, mask)
            loss = hybrid_loss(self.schedule, output, images, x_t, t, noise).loss.mean()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.update_ema(self.average, self.parameters, 1)
        return loss.item()


def training_batch(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1
    t = torch.randint(1000, (count,), generator=generator)
    return images, t, torch.randn(images.shape, generator=generator), *some_captions(count)


def training_step(repetitions: int, batch_size: int) -> dict[str, Any]:
    """A training step of the base model: hybrid loss, AdamW, moving average; with dropout, so losses agree to a percent only."""
    ours = scattered(MODELS["base"].build())
    theirs = ReleasedTrainer(released_base(ours.state_dict()), MODELS["base"].schedule(), lr=1e-4, ema_rate=0.9999)
    batch = training_batch(batch_size)
    sides: dict[str, Callable[[], float]] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if has_fast_bfloat16(CPU) else ("float32",)
    for precision in precisions:
        trainer = OurTrainer(ours, precision)
        sides[precision] = lambda trainer=trainer: trainer.step(*batch)  # type: ignore[misc]
    rows = compared("training", lambda: theirs.step(*batch), sides, repetitions)
    rows.setdefault("bfloat16", rows["float32"] | {"note": "this CPU has no matrix units for bfloat16, so the same float32 arithmetic"})
    return {"training": rows}


def clip_step(repetitions: int) -> dict[str, Any]:
    """The gradient of CLIP guidance for one image."""
    model = cast(NoisedClip, MODELS["noised-clip"].build().eval())
    released = released_clip(model.image.state_dict(), model.text.state_dict())
    theirs = released_guidance(released, [PROMPT], GUIDANCE_SCALE)
    x_t, t = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)), torch.tensor([500])

    def ours(precision: Precision) -> Callable[[], Tensor]:
        gradient = clip_guidance(model, clip_captions([PROMPT], 77), scale=GUIDANCE_SCALE)

        def step() -> Tensor:
            with computing(CPU, precision):
                return gradient(x_t, t)

        return step

    sides = {"float32": ours("float32"), "bfloat16": ours("bfloat16")}
    return {"clip": compared("clip", lambda: theirs(x_t, t), sides, repetitions)}


def peak_memory(released: Path, batch_size: int) -> dict[str, Any]:
    """Peak resident memory of two training steps, each side in a process of its own, GB."""
    rows = {}
    for side in ("released", "ours", "ours, gradient checkpointing"):
        command = [sys.executable, "-m", "benchmarks.glide_speed", "--released", str(released), "--batch-size", str(batch_size)]
        result = subprocess.run([*command, "--only", "peak", "--side", side], capture_output=True, text=True, check=True)
        rows[side] = json.loads(result.stdout)
        print(f"memory {side}: {rows[side]}", file=sys.stderr, flush=True)
    return {"peak_memory_gb": rows}


def peak_of_one(side: str, batch_size: int) -> float:
    """Peak resident memory of this process after two training steps, GB."""
    batch = training_batch(batch_size)
    trainer: ReleasedTrainer | OurTrainer
    if side == "released":
        from glide_text2im.model_creation import create_model_and_diffusion, model_and_diffusion_defaults

        model, _ = create_model_and_diffusion(**(model_and_diffusion_defaults() | {"use_fp16": False}))
        for parameter in (model.positional_embedding, model.padding_embedding):
            nn.init.normal_(parameter, std=0.01)  # it leaves them uninitialised
        trainer = ReleasedTrainer(model, MODELS["base"].schedule(), lr=1e-4, ema_rate=0.9999)
    else:
        unet = cast(UNet, MODELS["base"].build())
        unet.gradient_checkpointing = "checkpointing" in side
        trainer = OurTrainer(unet, "float32")
    for _ in range(2):
        trainer.step(*batch)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def judged(tables: dict[str, Any]) -> dict[str, str]:
    """Each target that was measured: how it came out."""
    verdicts = {}
    for target, least in TARGETS.items():
        name, precision = target.split()
        if name in tables:
            found = tables[name][precision]["times_faster"]
            verdicts[target] = f"{found} of {least}: {'met' if found >= least else 'MISSED'}"
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, help="checkout of openai/glide-text2im")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("cfg", "training", "clip", "memory", "peak"), action="append")
    parser.add_argument("--side", default="ours", help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        from benchmarks.glide_gpu import measure_gpu

        print(json.dumps(measure_gpu(), indent=1))
        return
    if arguments.released is None:
        parser.error("--released is needed: the checkout to compare with")
    torch.set_num_threads(arguments.threads)
    find_released(arguments.released)
    only = arguments.only or ["cfg", "training", "clip", "memory"]
    if only == ["peak"]:
        print(json.dumps(peak_of_one(arguments.side, arguments.batch_size)))
        return
    tables: dict[str, Any] = {"torch": torch.__version__, "fast_bfloat16": has_fast_bfloat16(CPU)}
    if "clip" in only:
        tables |= clip_step(arguments.repetitions)
    if "cfg" in only:
        tables |= cfg_step(arguments.repetitions)
    if "training" in only:
        tables |= training_step(arguments.repetitions, arguments.batch_size)
    if "memory" in only:
        tables |= peak_memory(arguments.released, arguments.batch_size)
    print(json.dumps(tables | {"targets": judged(tables)}, indent=1))


if __name__ == "__main__":
    main()
