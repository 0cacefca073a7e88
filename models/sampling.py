"""Sampling: DDPM and DDIM loops, classifier-free and CLIP guidance, one seed an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.catalog import ModelSpec
from models.diffusion import Change, Schedule, ddim_step, ddpm_step, predict
from models.guidance import Gradient, clip_guidance, guided_output
from models.noised_clip import NoisedClip
from models.respacing import parse_steps
from models.shard_loader import to_uint8
from models.text import TextEncoding, empty_captions
from models.unet import UNet
from winnow.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t and timesteps (batch,) of the whole process, to a network's output (batch, 6, height, width)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGuide:
    """A noised CLIP that pushes samples towards their captions."""

    model: NoisedClip
    spec: ModelSpec
    scale: float
    """Of the gradient; GLIDE takes 2 to 3."""


@torch.no_grad()
def sample_images(
    model: nn.Module,
    spec: ModelSpec,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: str = "100",
    guidance_scale: float = 3.0,
    guide: ClipGuide | None = None,
    low_res: Tensor | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> Tensor:
    """An image for each prompt: (n, height, width, 3) uint8 RGB, on the CPU.

    An image follows from its prompt, its seed and the settings; what else is in its batch does not matter (beyond rounding).

    Args:
        seeds: one an image.
        steps: which steps of the process, as models/respacing.py reads it: '100', 'ddim20', 'fast27'.
        guidance_scale: of classifier-free guidance; 1 is none, at half the work. Upsamplers are made for 1.
        low_res: for an upsampler, the images to enlarge, (n, 3, small, small) in [-1, 1].
        device: None takes a GPU if there is one.
    """
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    if spec.kind != "diffusion":
        raise ConfigError(f"{spec.name} does not make images; name a diffusion model of models/catalog.py")
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    unet = cast(UNet, model).to(device).eval()
    settings = parse_steps(steps, spec.num_timesteps)
    schedule = spec.schedule().respaced(settings.kept)
    empty = unet.encode_text(*empty_captions(1, spec.context_length).to(device)) if guidance_scale != 1 else None
    images = []
    for begin in range(0, len(prompts), batch_size):
        part = slice(begin, begin + batch_size)
        captions = list(prompts[part])
        text = unet.encode_text(*spec.tokenizer(captions, spec.context_length).to(device))
        small = None if low_res is None else low_res[part].to(device)
        gradient = None
        if guide is not None:
            clip = guide.model.to(device).eval()
            gradient = clip_guidance(clip, guide.spec.tokenizer(captions, guide.spec.context_length).to(device), scale=guide.scale)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
        size = spec.image_size_px
        x_T = draw_noise(generators, (3, size, size)).to(device) * spec.initial_noise_scale
        denoise = guided_denoiser(unet, text, empty, scale=guidance_scale, low_res=small)
        images.append(to_uint8(sample_loop(denoise, schedule, x_T, generators=generators, ddim=settings.ddim, gradient=gradient)).cpu())
    return (
        torch.cat(images).permute(0, 2, 3, 1).contiguous() if images else torch.empty(0, spec.image_size_px, spec.image_size_px, 3).byte()
    )


def guided_denoiser(unet: UNet, text: TextEncoding, empty: TextEncoding | None, *, scale: float, low_res: Tensor | None = None) -> Denoise:
    """A network with classifier-free guidance, for captions that were encoded once.

    Args:
        text: one caption an image.
        empty: the empty caption, one row; None for no guidance.
    """
    if empty is None:
        return lambda x_t, timesteps: unet.denoise(x_t, timesteps, text, low_res=low_res)
    others = empty.repeat(len(text.pooled))
    both = TextEncoding(torch.cat([text.pooled, others.pooled]), torch.cat([text.sequence, others.sequence]))
    twice_low_res = None if low_res is None else torch.cat([low_res, low_res])

    def denoise(x_t: Tensor, timesteps: Tensor) -> Tensor:
        output = unet.denoise(torch.cat([x_t, x_t]), torch.cat([timesteps, timesteps]), both, low_res=twice_low_res)
        output_text, output_empty = output.chunk(2)
        return guided_output(output_text, output_empty, scale=scale)

    return denoise


def sample_loop(
    denoise: Denoise,
    schedule: Schedule,
    x_T: Tensor,
    *,
    generators: Sequence[torch.Generator],
    ddim: bool,
    eta: float = 0.0,
    gradient: Gradient | None = None,
    change_x_0: Change | None = None,
) -> Tensor:
    """From noise to images (batch, 3, height, width), nominally in [-1, 1], through every step of a (respaced) schedule.

    Args:
        generators: one an image, on the CPU, so that a seed means the same image on every device.
        eta: noise of DDIM, 0 to 1.
        gradient: guides each step (models/guidance.py); told timesteps of the whole process.
        change_x_0: applied to each predicted x_0.
    """
    x_t = x_T
    draws = not ddim or eta > 0
    for step in reversed(range(len(schedule))):
        t = torch.full((len(x_t),), step, device=x_t.device)
        timesteps = schedule.model_timesteps(t)
        prediction = predict(schedule, denoise(x_t, timesteps), x_t, t, change_x_0=change_x_0)
        push = None if gradient is None else gradient(x_t, timesteps)
        noise = draw_noise(generators, x_t.shape[1:]).to(x_t.device) if draws else torch.zeros_like(x_t)
        if ddim:
            x_t = ddim_step(schedule, prediction, x_t, t, noise, eta=eta, gradient=push)
        else:
            x_t = ddpm_step(prediction, t, noise, gradient=push)
    return x_t


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (batch, *shape), each row from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
