"""Editing images: filling in (arXiv:2112.10741, section 4.3), and starting from an image instead of noise (arXiv:2108.01073).

Two ways to fill in. `fill_in="model"`: a network that was trained for it sees the known region beside x_t, and each predicted x_0 is
replaced by the image there, as the released notebook does. `fill_in="replacement"`: any network; before each step the known region of
x_t is replaced by the image under that step's noise. The network then never sees the known region free of noise, which can leave
seams: what GLIDE calls implicit, and compares with in appendix E.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.catalog import ModelSpec
from models.devices import onto
from models.diffusion import Change, Schedule, q_sample
from models.samplers import Sampler
from models.solvers import ChangeNoised, draw_noise
from models.unet import UNetConfig
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """An edit of one image a sample. Raises ConfigError if it contradicts itself."""

    image: Tensor
    """(n, 3, size, size) in [-1, 1]; one image serves all samples."""
    known: Tensor | None = None
    """(n, 1, size, size): 1 where the image is kept, 0 where it is filled in. None: nothing is kept as it is."""
    fill_in: Literal["model", "replacement"] = "model"
    """How what is known has its say."""
    strength: float = 1.0
    """How far the image is noised before it is denoised again, in (0, 1] (SDEdit). 1 starts from noise alone."""

    def __post_init__(self) -> None:
        if self.image.ndim != 4 or self.image.shape[1] != 3:
            raise ConfigError(f"Edit: image must be (n, 3, height, width), got {tuple(self.image.shape)}")
        if self.known is None and self.strength == 1:
            raise ConfigError("Edit: nothing of the image would be left: give a mask of what is known, or a strength below 1")
        if not 0 < self.strength <= 1:
            raise ConfigError(f"Edit: strength must be more than 0 and at most 1, got {self.strength}")
        if self.fill_in not in ("model", "replacement"):
            raise ConfigError(f"Edit: fill_in must be model or replacement, got {self.fill_in!r}")
        if self.known is None:
            return
        if self.known.shape[1:] != (1, *self.image.shape[2:]) or len(self.known) != len(self.image):
            raise ConfigError(
                f"Edit: the mask is {_size(self.known)} and the image {_size(self.image)} (images x width x height): they must be alike"
            )
        if not ((self.known == 0) | (self.known == 1)).all():
            raise ConfigError("Edit: the mask must be 1 where the image is known and 0 elsewhere, nothing in between")

    def check(self, spec: ModelSpec) -> None:
        """Raises ConfigError if this model cannot make the edit."""
        size = (spec.image_size_px, spec.image_size_px)
        if self.image.shape[2:] != size:
            raise ConfigError(f"Edit: {spec.name} edits images of {size[0]}x{size[1]} px, got {_size(self.image)}")
        fills_in = isinstance(spec.config, UNetConfig) and spec.config.inpaint
        if self.known is not None and self.fill_in == "model" and not fills_in:
            raise ConfigError(
                f"{spec.name} was not trained to fill in: take an inpainting model of models/catalog.py, "
                "or fill in by replacement, which every model can"
            )

    def rows(self, part: slice, device: torch.device) -> "Edit":
        """The edit of some of the samples."""
        one = len(self.image) == 1
        image, known = (None if x is None else (x if one else x[part]).to(device) for x in (self.image, self.known))
        assert image is not None
        return Edit(image=image, known=known, fill_in=self.fill_in, strength=self.strength)

    @property
    def shown(self) -> dict[str, Tensor]:
        """What a network trained to fill in is given beside x_t. It blanks out what is not known itself."""
        if self.known is None or self.fill_in != "model":
            return {}
        return {"inpaint_image": self.image, "inpaint_mask": self.known}

    def with_known(self, x: Tensor) -> Tensor:
        """Images (n, 3, size, size) with the known region as it is in the image."""
        return x if self.known is None else torch.where(self.known.bool(), self.image, x)


def keep_known(edit: Edit) -> Change | None:
    """Changes a predicted x_0 so that it agrees with what is known."""
    return edit.with_known if edit.known is not None and edit.fill_in == "model" else None


def replace_known(edit: Edit, schedule: Schedule, generators: Sequence[torch.Generator]) -> ChangeNoised | None:
    """Changes x_t so that the known region is the image under that step's noise, drawn anew at each step."""
    known = edit.known
    if known is None or edit.fill_in != "replacement":
        return None

    def change(x_t: Tensor, step: int) -> Tensor:
        return torch.where(known.bool(), noised(edit.image.expand_as(x_t), schedule, step, generators), x_t)

    return change


def start_from_image(
    edit: Edit,
    schedule: Schedule,
    sampler: Sampler,
    generators: Sequence[torch.Generator],
    like: Tensor,
    *,
    num_timesteps: int,
) -> tuple[Schedule, Tensor]:
    """The steps that are left, and the image noised to where they begin (arXiv:2108.01073, algorithm 1).

    Args:
        schedule: the (respaced) one that a whole sample would walk through; its steps below `strength` of the whole process are left, or
            the sampler's fewest.
        like: noise (batch, 3, size, size) whose shape, type and device the result has.
        num_timesteps: of the whole process.
    """
    below = int((schedule.timesteps < edit.strength * num_timesteps).sum())
    left = schedule.first(max(below, sampler.fewest_steps))
    return left, noised(edit.image.expand_as(like).to(like), left, sampler.first_step(len(left)), generators)


def noised(image: Tensor, schedule: Schedule, step: int, generators: Sequence[torch.Generator]) -> Tensor:
    """q(x_t | x_0) at a step: images (batch, ...) under noise, each row from its own generator."""
    noise = onto(draw_noise(generators, image.shape[1:]), image.device).to(image.dtype)
    return q_sample(schedule, image, torch.full((len(image),), step, device=image.device), noise)


def _size(x: Tensor) -> str:
    return f"{len(x)}x{x.shape[-1]}x{x.shape[-2]}"
