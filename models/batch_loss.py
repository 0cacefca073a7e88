"""What a model is shown in one training step, and its loss: timesteps, noise, dropped captions, what stands beside x_t."""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.catalog import ModelSpec
from models.diffusion import Schedule, q_sample
from models.objectives import contrastive_loss, hybrid_loss
from models.text import Captions
from models.unet import UNetConfig


def batch_loss(
    model: nn.Module,
    spec: ModelSpec,
    schedule: Schedule,
    images: Tensor,
    captions: Captions,
    *,
    generator: torch.Generator,
    caption_dropout: float = 0.0,
) -> dict[str, Tensor]:
    """Loss of a batch of images (batch, 3, size, size) in [-1, 1] at random timesteps, and what else is worth logging. Scalars.

    Args:
        generator: on the CPU, whatever the images' device.
        caption_dropout: share of captions that become empty, in [0, 1).
    """
    t = torch.randint(len(schedule), (len(images),), generator=generator).to(images.device)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    x_t = q_sample(schedule, images, t, noise)
    dropped = torch.rand(len(images), generator=generator) < caption_dropout
    captions = Captions(captions.tokens, captions.mask & ~dropped[:, None]).to(images.device)
    timesteps = schedule.model_timesteps(t)
    if spec.kind == "noised_clip":
        z_image, z_text = model(x_t, timesteps, captions.tokens, captions.lengths)
        z_image, z_text = gather_rows(z_image), gather_rows(z_text)
        loss = contrastive_loss(z_image, z_text)
        target = torch.arange(len(z_image), device=z_image.device)
        return {"loss": loss, "accuracy": ((z_image @ z_text.T).argmax(dim=1) == target).float().mean()}
    losses = hybrid_loss(
        schedule, model(x_t, timesteps, captions.tokens, captions.mask, **beside(spec, images, generator)), images, x_t, t, noise
    )
    return {"loss": losses.loss.mean(), "mse": losses.mse.mean(), "vb": losses.vb.mean()}


def beside(spec: ModelSpec, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """What a UNet is shown beside x_t: a quarter of the size to an upsampler, a rectangle erased to an inpainting model."""
    config = cast(UNetConfig, spec.config)
    shown: dict[str, Tensor] = {}
    if config.upsample:
        shown["low_res"] = F.avg_pool2d(images, 4)
    if config.inpaint:
        # Departs from GLIDE, which erases "random regions" but does not say which: one rectangle, of any size and place.
        batch, _, height, width = images.shape
        (top, bottom), (left, right) = (
            (torch.rand(2, batch, generator=generator) * (side + 1)).long().sort(dim=0).values.to(images.device) for side in (height, width)
        )
        rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        erased_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
        erased_columns = (columns >= left[:, None]) & (columns < right[:, None])
        shown["inpaint_image"] = images
        shown["inpaint_mask"] = (~(erased_rows[:, None, :, None] & erased_columns[:, None, None, :])).to(images.dtype)
    return shown


class _GatherRows(torch.autograd.Function):
    """Rows of all workers; the gradient of each row flows back to the worker it came from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (batch, width) of all workers, in order of rank: every caption of the step is a negative, as if one worker had it all."""
    return _GatherRows.apply(rows) if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else rows
