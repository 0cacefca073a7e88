"""A second stage of training begins with the weights of a first: the same model, or one that sees more beside x_t."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.catalog import ModelSpec
from models.checkpoints import WeightsPath, put_weights, read_weights, told
from models.unet import UNetConfig

logger = logging.getLogger(__name__)

FIRST_CONVOLUTION = "input_blocks.0.0.weight"
IMAGE_CHANNELS = 3
INPAINT_CHANNELS = 4
"""The known image and its mask, which come right after x_t."""


def start_from(path: WeightsPath, spec: ModelSpec) -> nn.Module:
    """A model to go on training, on the CPU: with the weights of a checkpoint (its `ema`) or file of the same model, or, for an
    inpainting model, of the same model without inpainting.

    Raises:
        CheckpointError: it is neither; names the first parameter that differs.
    """
    weights, model = read_weights(path), spec.build()
    if isinstance(spec.config, UNetConfig) and lacks_inpainting(weights, spec.config):
        weights = inflate_for_inpainting(weights)
        logger.info("%s is no inpainting model: %d input channels at zero were put into it for %s", told(path), INPAINT_CHANNELS, spec.name)
    put_weights(model, weights, f"{told(path)} is not a {spec.name}")
    return model.train()


def lacks_inpainting(weights: Mapping[str, Tensor], config: UNetConfig) -> bool:
    """Whether the weights have the four input channels too few that make an inpainting model."""
    first = weights.get(FIRST_CONVOLUTION)
    return config.inpaint and first is not None and first.ndim == 4 and first.shape[1] == config.in_channels - INPAINT_CHANNELS


def inflate_for_inpainting(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model, for the inpainting model of the same sizes, which starts as the same function (arXiv:2112.10741, section 4.3).

    The weights of the new input channels are zero. They lie between those of x_t and, in an upsampler, those of the small image.
    """
    first = weights[FIRST_CONVOLUTION]
    new = first.new_zeros(first.shape[0], INPAINT_CHANNELS, *first.shape[2:])
    inflated = torch.cat([first[:, :IMAGE_CHANNELS], new, first[:, IMAGE_CHANNELS:]], dim=1)
    return {**weights, FIRST_CONVOLUTION: inflated}
