"""Which timesteps a training step looks at: all alike, or those whose loss is large (Improved DDPM, arXiv:2102.09672, section 3.3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from winnow.errors import ConfigError

HISTORY = 10
"""Losses remembered of each timestep."""
UNIFORM_SHARE = 0.001
"""Of the draws that stay uniform, so that no timestep is forgotten."""


class DrawnTimesteps(NamedTuple):
    """Timesteps of a batch, on the CPU."""

    t: Tensor
    """(batch,) int64."""
    weights: Tensor | None
    """(batch,) float32: what each loss is multiplied by, so that its mean is that of uniform draws. None: 1 each."""


class UniformTimesteps:
    """Every timestep is as likely as any other. Remembers nothing."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps

    def draw(self, count: int, generator: torch.Generator) -> DrawnTimesteps:
        return DrawnTimesteps(torch.randint(self.num_timesteps, (count,), generator=generator), None)

    def see(self, t: Tensor, losses: Tensor) -> None:
        """Does nothing."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def take(self, state: dict[str, Tensor]) -> None:
        """Does nothing."""


class LossSecondMoment:
    """Draws t with p(t) proportional to sqrt(E[L_t^2]) over the last losses of t; uniform until each t was seen HISTORY times.

    All workers of a training must be shown the same losses, in the same order: then they agree on p without a word.
    """

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps
        self.losses = torch.zeros(num_timesteps, HISTORY, dtype=torch.float64)
        """The oldest first."""
        self.counts = torch.zeros(num_timesteps, dtype=torch.int64)
        """Losses remembered so far, at most HISTORY."""

    def probabilities(self) -> Tensor:
        """p(t), (num_timesteps,) float64."""
        uniform = torch.full((self.num_timesteps,), 1 / self.num_timesteps, dtype=torch.float64)
        size = self.losses.square().mean(dim=1).sqrt()
        if (self.counts < HISTORY).any() or not size.any():
            return uniform
        return (1 - UNIFORM_SHARE) * size / size.sum() + UNIFORM_SHARE * uniform

    def draw(self, count: int, generator: torch.Generator) -> DrawnTimesteps:
        p = self.probabilities()
        t = torch.multinomial(p, count, replacement=True, generator=generator)
        return DrawnTimesteps(t, (1 / (self.num_timesteps * p[t])).float())

    def see(self, t: Tensor, losses: Tensor) -> None:
        """Remembers losses (batch,) at timesteps t (batch,), not weighted. One that is not finite tells nothing and is left out."""
        t, losses = t.cpu(), losses.detach().to("cpu", torch.float64)
        finite = losses.isfinite()
        t, losses = t[finite], losses[finite]
        # The same timestep may come several times: one of each at a time, in their order.
        while len(t):
            order = torch.argsort(t, stable=True)
            first = torch.ones(len(t), dtype=torch.bool)
            first[order[1:]] = t[order[1:]] != t[order[:-1]]
            self._remember(t[first], losses[first])
            t, losses = t[~first], losses[~first]

    def _remember(self, t: Tensor, losses: Tensor) -> None:
        """As `see`, no timestep twice."""
        full = self.counts[t] == HISTORY
        self.losses[t[full]] = self.losses[t[full]].roll(-1, dims=1)
        self.losses[t, self.counts[t].clamp(max=HISTORY - 1)] = losses
        self.counts[t] = (self.counts[t] + 1).clamp(max=HISTORY)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def take(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`."""
        self.losses, self.counts = state["losses"].clone(), state["counts"].clone()


TimestepSampler = UniformTimesteps | LossSecondMoment

SAMPLERS: dict[str, type[UniformTimesteps] | type[LossSecondMoment]] = {
    "uniform": UniformTimesteps,
    "loss-second-moment": LossSecondMoment,
}


def make_timestep_sampler(name: str, num_timesteps: int) -> TimestepSampler:
    """A fresh sampler. Raises ConfigError, listing those there are."""
    if name not in SAMPLERS:
        raise ConfigError(f"there is no timestep sampling {name!r}; choose from {', '.join(SAMPLERS)}")
    return SAMPLERS[name](num_timesteps)
