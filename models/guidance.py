"""Pushing samples towards a caption: classifier-free guidance, and guidance by a noised CLIP (arXiv:2112.10741, sections 2.2 to 2.4).

Guidance by a CLIP that has never seen noise is in models/clip_guidance.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.catalog import ModelSpec
from models.diffusion import Schedule
from models.noised_clip import LOGIT_SCALE, NoisedClip
from models.prompts import warn_of_cut_prompts
from models.text import Captions
from winnow.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t and timesteps (batch,) of the whole process, to a network's output (batch, 6, height, width)."""
Gradient = Callable[[Tensor, Tensor], Tensor]
"""x_t (batch, 3, height, width) and timesteps (batch,) of the whole process, to a direction in x_t's shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guided:
    """A batch of samples, as far as a guide needs to know it."""

    captions: Sequence[str]
    seeds: Sequence[int]
    """For guides that draw at random: one an image, so that an image does not depend on its batch."""
    denoise: Denoise
    schedule: Schedule
    """The whole process, whose steps are the timesteps that a gradient is told."""
    device: torch.device


class Guide(Protocol):
    """What pushes samples along a gradient."""

    def gradient(self, batch: Guided) -> Gradient: ...

    def check(self, spec: ModelSpec) -> None:
        """Raises ConfigError if samples of this model cannot be guided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipGuide:
    """A noised CLIP that pushes samples towards their captions."""

    model: NoisedClip
    spec: ModelSpec
    scale: float
    """Of the gradient; GLIDE takes 2 to 3."""
    weights_sha256: str = ""
    """Of the file that the model's weights are from, where that is known."""

    def gradient(self, batch: Guided) -> Gradient:
        warn_of_cut_prompts(self.spec, batch.captions)
        clip = self.model.to(batch.device).eval()
        return clip_guidance(clip, self.spec.tokenizer(batch.captions, self.spec.context_length).to(batch.device), scale=self.scale)

    def check(self, spec: ModelSpec) -> None:
        if spec.image_size_px != self.spec.image_size_px:
            raise ConfigError(
                f"{self.spec.name} sees images of {self.spec.image_size_px} px and cannot guide {spec.name}, "
                f"which makes {spec.image_size_px} px"
            )


def classifier_free_guidance(eps_text: Tensor, eps_empty: Tensor, *, scale: float) -> Tensor:
    """Noise estimate pushed from the empty caption towards the text (section 2.3), any shape.

    Args:
        scale: 1 leaves `eps_text` as it is; larger trades variety for fidelity to the text.
    """
    return eps_empty + scale * (eps_text - eps_empty)


def guided_output(output_text: Tensor, output_empty: Tensor, *, scale: float) -> Tensor:
    """A network's output (batch, 6, height, width) under classifier-free guidance: eps is guided, the variance is the text's."""
    eps_text, variance = output_text.chunk(2, dim=1)
    eps_empty, _ = output_empty.chunk(2, dim=1)
    return torch.cat([classifier_free_guidance(eps_text, eps_empty, scale=scale), variance], dim=1)


def clip_guidance(clip: NoisedClip, captions: Captions, *, scale: float) -> Gradient:
    """The direction in which x_t comes to look more like its caption to a noised CLIP (section 2.4).

    Args:
        captions: one for each image, in the CLIP's own tokens.
        scale: of the gradient of the logit, 100 times the cosine; GLIDE samples with 2 to 3.
    """
    with torch.no_grad():
        z_text = clip.embed_texts(captions.tokens, captions.lengths)

    def gradient(x_t: Tensor, timesteps: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            # PLMS asks between two steps; a noised CLIP knows whole ones only.
            z_image = clip.embed_images(x, timesteps.round().long())
            logits = torch.tensor(LOGIT_SCALE).exp() * (z_image * z_text).sum()
            return torch.autograd.grad(logits, x)[0] * scale

    return gradient
