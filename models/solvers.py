"""What every sampler walks through, and the two that GLIDE released: DDPM and DDIM, and DDIM backwards.

A sampler is a loop from noise to an image over a schedule's steps. What guides or edits a sample (classifier-free guidance, CLIP,
a known region) is in the `Process` it is given, so that each works with every sampler. models/samplers.py lists them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.devices import onto
from models.diffusion import Change, Prediction, Schedule, ddim_reverse_step, ddim_step, ddpm_step, guided_x_0, predict
from models.guidance import Denoise, Gradient
from winnow.errors import ConfigError

ChangeNoised = Callable[[Tensor, int], Tensor]
"""x_t (batch, 3, height, width) and the schedule's step it stands at, to an x_t to go on from."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One batch of samples in the making: who denoises, along which schedule, and what else has a say."""

    denoise: Denoise
    schedule: Schedule
    """Whole or respaced; a sampler visits its steps from the last to the first."""
    generators: Sequence[torch.Generator] = ()
    """One an image, on the CPU, so that a seed means the same image on every device."""
    eta: float = 0.0
    """Noise of DDIM, 0 to 1; other samplers take no notice."""
    gradient: Gradient | None = None
    """Guides each step (models/guidance.py); told timesteps of the whole process."""
    change_x_0: Change | None = None
    """Applied to each predicted x_0, before it is clipped (inpainting by a trained model)."""
    change_x_t: ChangeNoised | None = None
    """Applied before each step (inpainting by replacement)."""

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard normal noise for x (batch, ...), each row from its own generator."""
        return onto(draw_noise(self.generators, x.shape[1:]), x.device).to(x.dtype)

    def arrive(self, x_t: Tensor, step: int) -> Tensor:
        """x_t as a step begins."""
        return x_t if self.change_x_t is None else self.change_x_t(x_t, step)

    def predict(self, x_t: Tensor, step: int) -> tuple[Prediction, Tensor | None, Tensor]:
        """What the network says at a step, the gradient there if there is one, and the step as (batch,) int64."""
        t = torch.full((len(x_t),), step, device=x_t.device)
        timesteps = self.schedule.model_timesteps(t)
        prediction = predict(self.schedule, self.denoise(x_t, timesteps), x_t, t, change_x_0=self.change_x_0)
        return prediction, None if self.gradient is None else self.gradient(x_t, timesteps), t

    def predict_x_0(self, x_t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The predicted x_0, clipped to [-1, 1], and by how much the gradient moves it (zeros if there is none)."""
        prediction, gradient, t = self.predict(x_t, step)
        moved, _ = guided_x_0(self.schedule, prediction.x_0, x_t, t, gradient)
        return prediction.x_0, moved - prediction.x_0


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (batch, *shape), each row from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def other_seed(seed: int, purpose: str) -> int:
    """A seed that follows from an image's own, for noise that must have nothing to do with the rest of that image's."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:8], "big") >> 1


def ddpm(process: Process, x_T: Tensor) -> Tensor:
    """From noise to images (batch, 3, height, width), nominally in [-1, 1], drawing from p(x_{t-1} | x_t) at every step."""
    x_t = x_T
    for step in reversed(range(len(process.schedule))):
        x_t = process.arrive(x_t, step)
        prediction, gradient, t = process.predict(x_t, step)
        x_t = ddpm_step(prediction, t, process.noise_like(x_t), gradient=gradient)
    return x_t


def ddim(process: Process, x_T: Tensor) -> Tensor:
    """As `ddpm`, by DDIM: deterministic with eta 0, as noisy as DDPM with eta 1."""
    x_t = x_T
    for step in reversed(range(len(process.schedule))):
        x_t = process.arrive(x_t, step)
        prediction, gradient, t = process.predict(x_t, step)
        noise = process.noise_like(x_t) if process.eta else torch.zeros_like(x_t)
        x_t = ddim_step(process.schedule, prediction, x_t, t, noise, eta=process.eta, gradient=gradient)
    return x_t


def ddim_encode(process: Process, x_0: Tensor) -> Tensor:
    """From images to the noise that `ddim` makes them of (arXiv:2010.02502, section 4.3): the same steps, backwards.

    Exact in the limit of many steps: each step takes eps from where it begins, the step back from where that begins.
    Departs from a plain inverse: the image is taken to stand at the first step, which is all but free of noise.

    Returns:
        x_T at the noise of the schedule's last step, the shape of x_0.
    """
    if process.eta:
        raise ConfigError(f"only DDIM with eta 0 runs backwards; eta is {process.eta}")
    x_t = x_0
    # The last step has no next one: its noise level is where encoding ends.
    for step in range(len(process.schedule) - 1):
        prediction, gradient, t = process.predict(x_t, step)
        x_t = ddim_reverse_step(process.schedule, prediction, x_t, t, gradient=gradient)
    return x_t
