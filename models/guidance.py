"""Pushing samples towards a caption: classifier-free guidance, and guidance by a noised CLIP (arXiv:2112.10741, sections 2.2 to 2.4)."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.noised_clip import LOGIT_SCALE, NoisedClip
from models.text import Captions

Gradient = Callable[[Tensor, Tensor], Tensor]
"""x_t (batch, 3, height, width) and timesteps (batch,) of the whole process, to a direction in x_t's shape."""


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
            logits = torch.tensor(LOGIT_SCALE).exp() * (clip.embed_images(x, timesteps) * z_text).sum()
            return torch.autograd.grad(logits, x)[0] * scale

    return gradient
