"""PLMS: pseudo linear multistep sampling (arXiv:2202.09778), in the variant that crowsonkb's fork of GLIDE made common.

The first three steps are pseudo Runge-Kutta (four evaluations of the network each, two of them half a step ahead); from there each
step needs one evaluation and the three before it (Adams-Bashforth of order 4). As in that fork, the walk begins one step after the
schedule's last and ends at its first, and the predicted x_0 is not clipped on the way: eps is what is extrapolated.
"""

import numpy as np
import torch
from torch import Tensor

from models.solvers import Process

WARM_UP_STEPS = 3
FEWEST_STEPS = 3
"""The first and the last are not walked through, and one must remain."""


def first_step(num_steps: int) -> int:
    """The step whose noise PLMS begins with, of a schedule of so many."""
    return num_steps - 2


def plms(process: Process, x_T: Tensor) -> Tensor:
    """From noise to images (batch, 3, height, width), nominally in [-1, 1]. Deterministic."""
    x_t = x_T
    before: list[Tensor] = []
    for step in range(first_step(len(process.schedule)), 0, -1):
        x_t = process.arrive(x_t, step)
        if len(before) < WARM_UP_STEPS:
            eps = _runge_kutta(process, x_t, step)
            direction = eps
        else:
            eps = _eps(process, x_t, step)
            direction = (55 * eps - 59 * before[-1] + 37 * before[-2] - 9 * before[-3]) / 24
        before = [*before[-2:], eps]
        x_t = _transfer(process, x_t, direction, step, step - 1)
    return x_t


def _runge_kutta(process: Process, x: Tensor, step: int) -> Tensor:
    """The mean eps over a step, of order 4."""
    middle = step - 0.5
    eps_1 = _eps(process, x, step)
    eps_2 = _eps(process, _transfer(process, x, eps_1, step, middle), middle)
    eps_3 = _eps(process, _transfer(process, x, eps_2, step, middle), middle)
    eps_4 = _eps(process, _transfer(process, x, eps_3, step, step - 1), step - 1)
    return (eps_1 + 2 * eps_2 + 2 * eps_3 + eps_4) / 6


def _eps(process: Process, x: Tensor, position: float) -> Tensor:
    """The guided eps at a step, or between two."""
    timesteps = torch.full((len(x),), _between(process.schedule.timesteps, position), device=x.device)
    eps = process.denoise(x, timesteps)[:, : x.shape[1]]
    alpha_bar = _between(process.schedule.alphas_cumprod, position)
    if process.gradient is not None:
        eps = eps - (1 - alpha_bar) ** 0.5 * process.gradient(x, timesteps)
    if process.change_x_0 is not None:
        # Departs from the fork, where this only changes what is reported: here inpainting works as with every sampler.
        x_0 = process.change_x_0((x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5)
        eps = (x - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
    return eps


def _transfer(process: Process, x: Tensor, eps: Tensor, start: float, end: float) -> Tensor:
    """x moved from one noise level to another along eps."""
    here, there = (_between(process.schedule.alphas_cumprod, position) for position in (start, end))
    x_0 = (x - eps * (1 - here) ** 0.5) / here**0.5
    return x_0 * there**0.5 + (1 - there) ** 0.5 * eps


def _between(table: np.ndarray, position: float) -> float:
    """A table's entry at a whole or half step, linear in between."""
    low = int(position)
    return float(table[low] if low == position else table[low] * (1 - (position - low)) + table[low + 1] * (position - low))
