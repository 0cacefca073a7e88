"""What a model is shown in one training step, and its loss: timesteps, noise, dropped captions, what stands beside x_t."""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.catalog import ModelSpec
from models.devices import onto
from models.diffusion import Schedule, q_sample
from models.objectives import contrastive_loss, hybrid_loss
from models.regions import erased_regions
from models.text import Captions
from models.timestep_sampling import TimestepSampler, UniformTimesteps
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
    timesteps: TimestepSampler | None = None,
    min_snr_gamma: float | None = None,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss of a batch of images (batch, 3, size, size) in [-1, 1] at random timesteps, and what else is worth logging. Scalars.

    Args:
        generator: on the CPU, whatever the images' device.
        caption_dropout: share of captions that become empty, in [0, 1).
        timesteps: draws them, and is shown the losses of all workers. None: uniform.
        min_snr_gamma: as in `hybrid_loss`.
        weights: (batch,) of the samples, 1 on average over the data: the loss is the mean of weight times loss, not divided by the
            batch's own sum, which would pull every batch to the same total. None: all 1. Of a noised CLIP those of this worker.
    """
    sampler = UniformTimesteps(len(schedule)) if timesteps is None else timesteps
    drawn = sampler.draw(len(images), generator)
    t = onto(drawn.t, images.device)
    noise = onto(torch.randn(images.shape, generator=generator), images.device)
    x_t = q_sample(schedule, images, t, noise)
    dropped = torch.rand(len(images), generator=generator) < caption_dropout
    captions = Captions(captions.tokens, captions.mask & ~dropped[:, None]).to(images.device)
    model_t = schedule.model_timesteps(t)
    if spec.kind == "noised_clip":
        z_image, z_text = model(x_t, model_t, captions.tokens, captions.lengths)
        z_image, z_text = gather_rows(z_image), gather_rows(z_text)
        loss = contrastive_loss(z_image, z_text, None if weights is None else gather_rows(onto(weights, images.device)))
        target = torch.arange(len(z_image), device=z_image.device)
        return {"loss": loss, "accuracy": ((z_image @ z_text.T).argmax(dim=1) == target).float().mean()}
    output = model(x_t, model_t, captions.tokens, captions.mask, **beside(spec, images, generator))
    losses = hybrid_loss(schedule, output, images, x_t, t, noise, min_snr_gamma=min_snr_gamma)
    show_losses(sampler, drawn.t, losses.loss)
    loss = losses.loss if drawn.weights is None else losses.loss * onto(drawn.weights, images.device)
    loss = loss if weights is None else loss * onto(weights, images.device)
    return {"loss": loss.mean(), "mse": losses.mse.mean(), "vb": losses.vb.mean()}


def beside(spec: ModelSpec, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """What a UNet is shown beside x_t: a quarter of the size to an upsampler, what is left of the image to an inpainting model."""
    config = cast(UNetConfig, spec.config)
    shown: dict[str, Tensor] = {}
    if config.upsample:
        shown["low_res"] = F.avg_pool2d(images, 4)
    if config.inpaint:
        batch, _, height, width = images.shape
        erased = erased_regions(batch, height, width, generator, device=images.device)
        # An upsampler is shown all of the small image all the same: only what is known of the large one is cut (section 4.3).
        shown |= {"inpaint_image": images, "inpaint_mask": (~erased).to(images.dtype)}
    return shown


def show_losses(sampler: TimestepSampler, t: Tensor, losses: Tensor) -> None:
    """Shows a timestep sampler what all workers saw, in order of rank: t (batch,) on the CPU, losses (batch,) on any device."""
    if isinstance(sampler, UniformTimesteps):
        return
    # One message is cheaper than two, and a timestep is exact in float64.
    pairs = torch.stack([t.to(losses.device, torch.float64), losses.detach().to(torch.float64)])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gathered = [torch.empty_like(pairs) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, pairs)
        pairs = torch.cat(gathered, dim=1)
    pairs = pairs.cpu()
    sampler.see(pairs[0].long(), pairs[1])


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
