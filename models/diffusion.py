"""The diffusion process: noise schedules, q(x_t | x_0), and one step back (or forth) by DDPM or DDIM with a learned variance.

After Improved DDPM (arXiv:2102.09672), as GLIDE uses it. Tables are float64 and cast to the image's dtype on lookup. Images are
NCHW in [-1, 1]; `t` is (batch,) int64, an index into the schedule's own steps; `schedule.timesteps[t]` is what a network is told.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.devices import onto
from winnow.errors import ConfigError

ScheduleName = Literal["squaredcos_cap_v2", "linear"]


@dataclass(frozen=True)
class Schedule:
    """The process, whole or respaced. All tables have one entry a step."""

    betas: np.ndarray
    """Variance added by each step, in (0, 1], float64."""
    timesteps: np.ndarray
    """The step's number in the whole process, int64: what networks are told."""

    def __post_init__(self) -> None:
        if self.betas.ndim != 1 or not len(self.betas) or self.betas.min() <= 0 or self.betas.max() > 1:
            raise ConfigError("Schedule: betas must be a row of numbers in (0, 1]")
        if self.timesteps.shape != self.betas.shape:
            raise ConfigError(f"Schedule: {len(self.timesteps)} timesteps for {len(self.betas)} betas")

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def alphas_cumprod_next(self) -> np.ndarray:
        return np.append(self.alphas_cumprod[1:], 0.0)

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """Of q(x_{t-1} | x_t, x_0)."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """Its logarithm; the variance is 0 at the first step, where the second one's is taken."""
        if len(self) == 1:
            return np.log(np.maximum(self.posterior_variance, 1e-20))
        return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

    @cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        return (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    def first(self, count: int) -> "Schedule":
        """The `count` least noisy steps alone: what is left to do for an image that is noised only so far (SDEdit)."""
        return Schedule(self.betas[:count], self.timesteps[:count])

    def model_timesteps(self, t: Tensor) -> Tensor:
        """What a network is told at the schedule's own steps `t`."""
        return onto(torch.from_numpy(self.timesteps), t.device)[t]

    def respaced(self, kept: Sequence[int]) -> "Schedule":
        """The process that visits only these steps, with the same marginals q(x_t | x_0) there."""
        index = np.asarray(sorted(kept))
        alphas_cumprod = self.alphas_cumprod[index]
        return Schedule(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]), self.timesteps[index])


def make_schedule(name: ScheduleName, num_timesteps: int = 1000) -> Schedule:
    """The whole process: the cosine schedule of the base model, or the linear one of the upsampler."""
    if name == "linear":
        scale = 1000 / num_timesteps
        betas = np.linspace(scale * 0.0001, scale * 0.02, num_timesteps, dtype=np.float64)
    elif name == "squaredcos_cap_v2":

        def alpha_bar(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        steps = range(num_timesteps)
        betas = np.array([min(1 - alpha_bar((i + 1) / num_timesteps) / alpha_bar(i / num_timesteps), 0.999) for i in steps])
    else:
        raise ConfigError(f"there is no schedule {name!r}; there are 'squaredcos_cap_v2' and 'linear'")
    return Schedule(betas, np.arange(num_timesteps))


def at(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a table at steps `t`, shaped to multiply a batch of images."""
    return onto(torch.from_numpy(table), like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def q_sample(schedule: Schedule, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t: the image after t steps of noise, in one go."""
    return at(np.sqrt(schedule.alphas_cumprod), t, x_0) * x_0 + at(np.sqrt(1 - schedule.alphas_cumprod), t, x_0) * noise


def q_posterior_mean(schedule: Schedule, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0)."""
    return at(schedule.posterior_mean_coef1, t, x_t) * x_0 + at(schedule.posterior_mean_coef2, t, x_t) * x_t


def x_0_from_eps(schedule: Schedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    return at(np.sqrt(1 / schedule.alphas_cumprod), t, x_t) * x_t - at(np.sqrt(1 / schedule.alphas_cumprod - 1), t, x_t) * eps


def eps_from_x_0(schedule: Schedule, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
    scaled = at(np.sqrt(1 / schedule.alphas_cumprod), t, x_t) * x_t
    return (scaled - x_0) / at(np.sqrt(1 / schedule.alphas_cumprod - 1), t, x_t)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network's output says about the step back. All (batch, 3, height, width)."""

    mean: Tensor
    """Of p(x_{t-1} | x_t)."""
    log_variance: Tensor
    x_0: Tensor

    @property
    def variance(self) -> Tensor:
        return self.log_variance.exp()


Change = Callable[[Tensor], Tensor]


def predict(
    schedule: Schedule, model_output: Tensor, x_t: Tensor, t: Tensor, *, clip: bool = True, change_x_0: Change | None = None
) -> Prediction:
    """Reads a network's output as mean and variance of p(x_{t-1} | x_t).

    Args:
        model_output: (batch, 6, height, width): eps, then where log variance lies between its bounds, nominally in [-1, 1].
        clip: clip the predicted x_0 to [-1, 1].
        change_x_0: applied to the predicted x_0 before it is clipped (inpainting by replacement).
    """
    eps, between = model_output.chunk(2, dim=1)
    fraction = (between + 1) / 2
    upper, lower = at(np.log(schedule.betas), t, x_t), at(schedule.posterior_log_variance_clipped, t, x_t)
    log_variance = fraction * upper + (1 - fraction) * lower
    x_0 = x_0_from_eps(schedule, x_t, t, eps)
    if change_x_0 is not None:
        x_0 = change_x_0(x_0)
    if clip:
        x_0 = x_0.clamp(-1, 1)
    return Prediction(q_posterior_mean(schedule, x_0, x_t, t), log_variance, x_0)


def _unless_last(t: Tensor, like: Tensor) -> Tensor:
    """1, but 0 at t = 0: no noise is added by the last step."""
    return (t != 0).to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def ddpm_step(prediction: Prediction, t: Tensor, noise: Tensor, *, gradient: Tensor | None = None) -> Tensor:
    """x_{t-1}, drawn from p(x_{t-1} | x_t).

    Args:
        gradient: of a classifier's log probability with respect to x_t; the mean moves along it (arXiv:2105.05233, algorithm 1).
    """
    mean = prediction.mean
    if gradient is not None:
        mean = mean + prediction.variance * gradient
    return mean + _unless_last(t, mean) * (0.5 * prediction.log_variance).exp() * noise


def ddim_step(
    schedule: Schedule, prediction: Prediction, x_t: Tensor, t: Tensor, noise: Tensor, *, eta: float = 0.0, gradient: Tensor | None = None
) -> Tensor:
    """x_{t-1} by DDIM (arXiv:2010.02502, equation 12).

    Args:
        noise: not looked at if eta is 0.
        eta: 0 is deterministic; 1 has as much noise as DDPM.
        gradient: of a classifier's log probability with respect to x_t; eps moves against it (arXiv:2105.05233, algorithm 2).
    """
    x_0, eps = guided_x_0(schedule, prediction.x_0, x_t, t, gradient)
    alpha_bar, alpha_bar_prev = at(schedule.alphas_cumprod, t, x_t), at(schedule.alphas_cumprod_prev, t, x_t)
    sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt() * (1 - alpha_bar / alpha_bar_prev).sqrt()
    mean = x_0 * alpha_bar_prev.sqrt() + (1 - alpha_bar_prev - sigma**2).sqrt() * eps
    return mean + _unless_last(t, mean) * sigma * noise if eta else mean


def ddim_reverse_step(schedule: Schedule, prediction: Prediction, x_t: Tensor, t: Tensor, *, gradient: Tensor | None = None) -> Tensor:
    """x_{t+1}: DDIM's step with eta 0 run backwards, by which an image is encoded as noise (arXiv:2010.02502, section 4.3).

    Args:
        t: the last step has none after it: the tables say alpha_bar = 0 there, and x_{t+1} is eps alone.
    """
    x_0, eps = guided_x_0(schedule, prediction.x_0, x_t, t, gradient)
    alpha_bar_next = at(schedule.alphas_cumprod_next, t, x_t)
    return x_0 * alpha_bar_next.sqrt() + (1 - alpha_bar_next).sqrt() * eps


def guided_x_0(schedule: Schedule, x_0: Tensor, x_t: Tensor, t: Tensor, gradient: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The predicted x_0 and the eps that agrees with it, both moved along a gradient (arXiv:2105.05233, algorithm 2)."""
    # eps is taken from the clipped x_0, so that it agrees with it.
    eps = eps_from_x_0(schedule, x_t, t, x_0)
    if gradient is None:
        return x_0, eps
    eps = eps - at(np.sqrt(1 - schedule.alphas_cumprod), t, x_t) * gradient
    x_0 = x_0_from_eps(schedule, x_t, t, eps)
    return x_0, eps_from_x_0(schedule, x_t, t, x_0)
