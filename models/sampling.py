"""Sampling from one model: prompts and seeds to images, with guidance and edits, by any sampler of models/samplers.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.catalog import ModelSpec
from models.diffusion import Change, Schedule
from models.editing import Edit, keep_known, replace_known, start_from_image
from models.guidance import Denoise, Gradient, Guide, Guided, guided_output
from models.prompts import warn_of_cut_prompts
from models.samplers import Sampler, find_sampler, settled_sampler, settled_schedule
from models.shard_loader import to_uint8
from models.solvers import ChangeNoised, Process, draw_noise
from models.text import TextEncoding, empty_captions
from models.unet import UNet
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    """How samples are drawn. Raises ConfigError."""

    sampler: str | None = None
    """A name of models/samplers.py. None: what the steps say, DDIM for 'ddimN' and 'fast27' and DDPM for all else."""
    steps: str | None = None
    """Which steps of the process, as models/respacing.py reads it: '100', 'ddim20', 'fast27'. None: the sampler's own."""
    eta: float = 0.0
    """Noise of DDIM, 0 to 1."""
    guidance_scale: float = 3.0
    """Of classifier-free guidance; 1 is none, at half the work. Upsamplers are made for 1."""
    guidance_interval: tuple[float, float] | None = None
    """First and last timestep of the whole process at which that guidance is used (arXiv:2404.07724). None: at all of them."""

    def __post_init__(self) -> None:
        sampler, _ = settled_sampler(self.sampler, self.steps)
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta must be between 0 and 1, got {self.eta}")
        if self.eta and sampler.name != "ddim":
            raise ConfigError(f"eta is noise of DDIM, and {sampler.name} is another sampler: leave eta at 0, or take ddim")
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise ConfigError(f"the guidance interval must run from a lower to a higher timestep, got {low} to {high}")

    @property
    def settled(self) -> tuple[Sampler, str]:
        """The sampler and its steps."""
        return settled_sampler(self.sampler, self.steps)


@torch.no_grad()
def draw_samples(
    model: nn.Module,
    spec: ModelSpec,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    settings: SampleSettings | None = None,
    guide: Guide | None = None,
    low_res: Tensor | None = None,
    edit: Edit | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """An image for each prompt: (n, 3, height, width) float32, nominally in [-1, 1], on the CPU.

    An image follows from its prompt, its seed and the settings; what else is in its batch does not matter (beyond rounding).

    Args:
        seeds: one an image.
        guide: pushes samples along a gradient (models/guidance.py, models/clip_guidance.py), besides classifier-free guidance.
        low_res: for an upsampler, the images to enlarge, (n, 3, small, small) in [-1, 1].
        edit: starts from, or keeps part of, an image.
        batch_size: images at a time. None is 1 on a CPU, where more gain little and each is then the same to the last bit; 16 on a GPU.
        device: None takes a GPU if there is one.
        done: told the number of finished images after each batch.

    Raises:
        ConfigError: before any work.
    """
    settings = settings or SampleSettings()
    _check(spec, prompts, seeds, low_res, guide, edit)
    sampler, steps = settings.settled
    whole = spec.schedule()
    schedule = settled_schedule(sampler, steps, whole)
    device = device_for(device)
    batch_size = batch_size or (1 if device.type == "cpu" else 16)
    unet = cast(UNet, model).to(device).eval()
    empty = unet.encode_text(*empty_captions(1, spec.context_length).to(device)) if settings.guidance_scale != 1 else None
    warn_of_cut_prompts(spec, prompts)

    images = [torch.empty(0, 3, spec.image_size_px, spec.image_size_px)]
    for begin in range(0, len(prompts), batch_size):
        part = slice(begin, begin + batch_size)
        captions = list(prompts[part])
        edited = None if edit is None else edit.rows(part, device)
        denoise = guided_denoiser(
            unet,
            unet.encode_text(*spec.tokenizer(captions, spec.context_length).to(device)),
            empty,
            scale=settings.guidance_scale,
            interval=settings.guidance_interval,
            low_res=None if low_res is None else low_res[part].to(device),
            **({} if edited is None else edited.shown),
        )
        guided = Guided(captions=captions, seeds=seeds[part], denoise=denoise, schedule=whole, device=device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        x_T = draw_noise(generators, (3, spec.image_size_px, spec.image_size_px)).to(device) * spec.initial_noise_scale
        walked = schedule
        if edited is not None and edited.strength < 1:
            walked, x_T = start_from_image(edited, schedule, sampler, generators, x_T, num_timesteps=len(whole))
        process = Process(
            denoise=denoise,
            schedule=walked,
            generators=generators,
            eta=settings.eta,
            gradient=None if guide is None else guide.gradient(guided),
            change_x_0=None if edited is None else keep_known(edited),
            change_x_t=None if edited is None else replace_known(edited, walked, generators),
        )
        finished = sampler.run(process, x_T)
        images.append((finished if edited is None else edited.with_known(finished)).float().cpu())
        if done is not None:
            done(min(begin + batch_size, len(prompts)))
    return torch.cat(images)


def sample_images(
    model: nn.Module,
    spec: ModelSpec,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: str | None = None,
    guidance_scale: float = 3.0,
    sampler: str | None = None,
    guide: Guide | None = None,
    low_res: Tensor | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """As `draw_samples`, with the usual settings as arguments, to pixels: (n, height, width, 3) uint8 RGB, on the CPU."""
    settings = SampleSettings(sampler=sampler, steps=steps, guidance_scale=guidance_scale)
    return to_pixels(
        draw_samples(
            model, spec, prompts, seeds=seeds, settings=settings, guide=guide, low_res=low_res, batch_size=batch_size, device=device
        )
    )


def to_pixels(images: Tensor) -> Tensor:
    """(n, 3, height, width) in [-1, 1] to (n, height, width, 3) uint8 RGB; what lies outside is clipped."""
    return to_uint8(images).permute(0, 2, 3, 1).contiguous()


def device_for(name: torch.device | str | None) -> torch.device:
    """The named device; None takes a GPU if there is one. Raises ConfigError if it is not there."""
    try:
        device = torch.device(name if name is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as problem:
        raise ConfigError(f"there is no device {name!r}; name cpu, cuda or cuda:1") from problem
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"this machine has {torch.cuda.device_count()} GPUs and no {device}; leave the device out, or name cpu")
    return device


def guided_denoiser(
    unet: UNet,
    text: TextEncoding,
    empty: TextEncoding | None,
    *,
    scale: float,
    interval: tuple[float, float] | None = None,
    **beside: Tensor | None,
) -> Denoise:
    """A network with classifier-free guidance, for captions that were encoded once.

    Args:
        text: one caption an image.
        empty: the empty caption, one row; None for no guidance.
        interval: timesteps at which there is guidance, both included; elsewhere the caption alone is asked for, at half the work.
        beside: what the network sees beside x_t, one row an image or one for all: low_res, inpaint_image, inpaint_mask.
    """
    given = {name: value for name, value in beside.items() if value is not None}

    def repeated(count: int) -> dict[str, Tensor]:
        return {name: value.expand(count, *value.shape[1:]) for name, value in given.items()}

    def alone(x_t: Tensor, timesteps: Tensor) -> Tensor:
        return unet.denoise(x_t, timesteps, text, **repeated(len(x_t)))

    if empty is None:
        return alone
    both = TextEncoding.cat([text, empty.repeat(len(text.pooled))])

    def denoise(x_t: Tensor, timesteps: Tensor) -> Tensor:
        if interval is not None and not interval[0] <= timesteps[0].item() <= interval[1]:
            return alone(x_t, timesteps)
        twice = {name: torch.cat([value, value]) for name, value in repeated(len(x_t)).items()}
        output = unet.denoise(torch.cat([x_t, x_t]), torch.cat([timesteps, timesteps]), both, **twice)
        output_text, output_empty = output.chunk(2)
        return guided_output(output_text, output_empty, scale=scale)

    return denoise


def sample_loop(
    denoise: Denoise,
    schedule: Schedule,
    x_T: Tensor,
    *,
    generators: Sequence[torch.Generator],
    sampler: str = "ddpm",
    eta: float = 0.0,
    gradient: Gradient | None = None,
    change_x_0: Change | None = None,
    change_x_t: ChangeNoised | None = None,
) -> Tensor:
    """From noise to images (batch, 3, height, width), nominally in [-1, 1], through every step of a (respaced) schedule.

    Arguments are those of models/solvers.py's `Process`; `sampler` is a name of models/samplers.py.
    """
    process = Process(
        denoise=denoise,
        schedule=schedule,
        generators=generators,
        eta=eta,
        gradient=gradient,
        change_x_0=change_x_0,
        change_x_t=change_x_t,
    )
    return find_sampler(sampler).run(process, x_T)


def _check(
    spec: ModelSpec, prompts: Sequence[str], seeds: Sequence[int], low_res: Tensor | None, guide: Guide | None, edit: Edit | None
) -> None:
    if spec.kind != "diffusion":
        raise ConfigError(f"{spec.name} does not make images; name a diffusion model of models/catalog.py")
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise ConfigError(f"seeds must be 0 or more and less than 2^63, got {min(seeds, key=lambda seed: 0 <= seed < 2**63)}")
    if low_res is not None and len(low_res) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts need as many images to enlarge, got {len(low_res)}")
    if guide is not None:
        guide.check(spec)
    if edit is not None:
        edit.check(spec)
        if len(edit.image) not in (1, len(prompts)):
            raise ConfigError(f"{len(prompts)} prompts need one image to edit, or as many; got {len(edit.image)}")
