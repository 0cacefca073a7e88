"""The second half of GLIDE's cascade: small samples to large ones, edited ones too (arXiv:2112.10741, section 4.1; its notebooks)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.catalog import ModelSpec
from models.editing import Edit
from models.sampling import SampleSettings, draw_samples
from models.solvers import other_seed
from models.unet import UNetConfig
from winnow.errors import ConfigError

ENLARGE = SampleSettings(sampler="ddim", steps="fast27", guidance_scale=1.0)
"""As the released notebooks enlarge: 27 steps, no guidance. The start from slightly less noise is the model's own (models/catalog.py)."""
ENLARGE_EDITED = SampleSettings(sampler="ddpm", steps="fast27", guidance_scale=1.0)
"""As the released notebook enlarges what it filled in."""


def enlarge(
    model: nn.Module,
    spec: ModelSpec,
    images: Tensor,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    settings: SampleSettings | None = None,
    edit: Edit | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """Samples (n, 3, small, small) in [-1, 1] to (n, 3, large, large) by an upsampler; arguments else as `draw_samples`.

    Args:
        seeds: those of the small samples; the noise here is other noise than theirs.
        edit: the edit of the small samples at the large size.
    """
    check_upsampler(spec)
    return draw_samples(
        model,
        spec,
        prompts,
        seeds=[other_seed(seed, "enlarge") for seed in seeds],
        settings=settings or (ENLARGE if edit is None else ENLARGE_EDITED),
        low_res=in_8_bits(images),
        edit=edit,
        batch_size=batch_size,
        device=device,
        done=done,
    )


def check_upsampler(spec: ModelSpec) -> None:
    """Raises ConfigError if the model does not enlarge."""
    if not (isinstance(spec.config, UNetConfig) and spec.config.upsample):
        raise ConfigError(f"{spec.name} is no upsampler; models/catalog.py has upsampler and upsampler-inpaint")


def in_8_bits(images: Tensor) -> Tensor:
    """Images in [-1, 1] at the 256 values that a stored image can have: what upsamplers were trained on."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def enlarged_mask(known: Tensor, size_px: int) -> Tensor:
    """A mask (n, 1, small, small) at a larger size: each value becomes a square of it."""
    return F.interpolate(known, size=(size_px, size_px), mode="nearest")
