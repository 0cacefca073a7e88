"""DPM-Solver++ 2M (arXiv:2211.01095, algorithm 2): second order, one evaluation of the network a step, good images in 20 to 25 steps.

It solves the probability flow in the predicted x_0 ("data prediction"), which may therefore be clipped like DDPM's, and takes the
change of x_0 since the step before into account. Time is lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio.
"""

import math

from torch import Tensor

from models.solvers import Process


def dpm_solver_2m(process: Process, x_T: Tensor) -> Tensor:
    """From noise to images (batch, 3, height, width) in [-1, 1] (beyond only as far as a gradient moves them). Deterministic.

    The last step, to no noise at all, is of first order and returns the predicted x_0: lambda is infinite there.
    """
    alphas_cumprod = process.schedule.alphas_cumprod
    alpha = [math.sqrt(value) for value in alphas_cumprod]
    sigma = [math.sqrt(1 - value) for value in alphas_cumprod]
    log_snr = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]

    x_t = x_T
    last_x_0: Tensor | None = None
    for step in range(len(alphas_cumprod) - 1, 0, -1):
        x_t = process.arrive(x_t, step)
        x_0, push = process.predict_x_0(x_t, step)
        h = log_snr[step - 1] - log_snr[step]
        estimate = x_0
        if last_x_0 is not None:
            ratio = (log_snr[step] - log_snr[step + 1]) / h
            estimate = x_0 + (x_0 - last_x_0) / (2 * ratio)
        # A gradient moves x_0 by very different amounts from step to step: it is not extrapolated, or it would turn against itself.
        x_t = sigma[step - 1] / sigma[step] * x_t - alpha[step - 1] * math.expm1(-h) * (estimate + push)
        last_x_0 = x_0
    x_0, push = process.predict_x_0(process.arrive(x_t, 0), 0)
    return x_0 + push
