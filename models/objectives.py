"""What is minimised: the hybrid loss of a diffusion model with learned variance, and noised CLIP's symmetric contrastive loss."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.diffusion import Schedule, at, predict, q_posterior_mean
from models.noised_clip import LOGIT_SCALE


class DiffusionLoss(NamedTuple):
    """One number an image, (batch,)."""

    loss: Tensor
    """mse + vb, mse times its min-SNR weight where one is asked for."""
    mse: Tensor
    """Mean squared error of the noise, not weighted."""
    vb: Tensor
    """Variational bound of this step in bits per channel value, times T / 1000. Trains the variance only."""


def hybrid_loss(
    schedule: Schedule,
    model_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    min_snr_gamma: float | None = None,
) -> DiffusionLoss:
    """L_simple + L_vlb of Improved DDPM (arXiv:2102.09672, section 3.1), the mean's share of L_vlb detached.

    Args:
        model_output: (batch, 6, height, width), eps and variance of x_t.
        t: (batch,) int64, steps of `schedule`.
        min_snr_gamma: weighs L_simple by `min_snr_weight`. None: all timesteps alike, as GLIDE does.
    """
    eps, between = model_output.chunk(2, dim=1)
    mse = per_image_mean((noise - eps) ** 2)
    vb = variational_bound(schedule, torch.cat([eps.detach(), between], dim=1), x_0, x_t, t) * (len(schedule) / 1000)
    weighted = mse if min_snr_gamma is None else mse * min_snr_weight(schedule, t, min_snr_gamma, mse)
    return DiffusionLoss(weighted + vb, mse, vb)


def min_snr_weight(schedule: Schedule, t: Tensor, gamma: float, like: Tensor) -> Tensor:
    """min(SNR, gamma) / SNR with SNR = alphas_cumprod / (1 - alphas_cumprod), (batch,): arXiv:2303.09556, section 3.4, for eps.

    Nearly clean images, whose noise matters least to the picture, weigh least. Gamma is 5 in the paper.

    Args:
        like: (batch,), of the wanted precision.
    """
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    return at(np.minimum(snr, gamma) / snr, t, like)


def variational_bound(schedule: Schedule, model_output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """One term of the bound, (batch,), in bits per channel value: the KL of the step back, or the likelihood of 8-bit x_0 at t = 0."""
    prediction = predict(schedule, model_output, x_t, t, clip=False)
    true_mean = q_posterior_mean(schedule, x_0, x_t, t)
    true_log_variance = at(schedule.posterior_log_variance_clipped, t, x_t)
    kl = per_image_mean(normal_kl(true_mean, true_log_variance, prediction.mean, prediction.log_variance))
    nll = -per_image_mean(discretized_log_likelihood(x_0, prediction.mean, 0.5 * prediction.log_variance))
    return torch.where(t == 0, nll, kl) / math.log(2)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL of one normal from another, elementwise, in nats."""
    difference = log_variance2 - log_variance1
    return 0.5 * (-1 + difference + (-difference).exp() + (mean1 - mean2) ** 2 * (-log_variance2).exp())


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, elementwise in nats, of 8-bit values (scaled to [-1, 1]) under a normal rounded to 8 bits."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    centred, inverse = x - mean, (-log_scale).exp()
    above, below = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
    # The outermost bins reach to infinity.
    probability = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return probability.clamp(min=1e-12).log()


def contrastive_loss(z_image: Tensor, z_text: Tensor, weights: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (arXiv:2103.00020, figure 3) over rows (batch, embedding) of length one; the i-th of both belong together.

    Args:
        weights: (batch,) of each pair as the one to be found; as one of the wrong ones it counts like any other. None: all 1.
    """
    logits = math.exp(LOGIT_SCALE) * z_image @ z_text.T
    return (weighted_cross_entropy(logits, weights) + weighted_cross_entropy(logits.T, weights)) / 2


def weighted_cross_entropy(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over rows of (batch, batch) logits of weight times cross entropy, the i-th row's target being i."""
    target = torch.arange(len(logits), device=logits.device)
    if weights is None:
        return F.cross_entropy(logits, target)
    log_p = F.log_softmax(logits, dim=1)
    # The plain mean and what weights add to it: weights of 1 give the bits that no weights give.
    return F.nll_loss(log_p, target) + ((weights - 1) * F.nll_loss(log_p, target, reduction="none")).mean()


def per_image_mean(values: Tensor) -> Tensor:
    """Mean over all but the batch."""
    return values.flatten(1).mean(dim=1)
