"""Which of several samples show their prompt best, to a CLIP (reranking as in DALL-E, arXiv:2102.12092, section 2.6)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from winnow.errors import ConfigError

if TYPE_CHECKING:
    from models.clip_embedder import Clip


def clip_scores(clip: "Clip", images: Tensor, prompts: Sequence[str]) -> np.ndarray:
    """Cosine of each image with its prompt, (n,) float32.

    Args:
        images: (n, height, width, 3) uint8 RGB.
    """
    from models.crop_stream import embed_images

    if len(images) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts need as many images, got {len(images)}")
    if not prompts:
        return np.empty(0, np.float32)
    texts = list(dict.fromkeys(prompts))
    z_texts = clip.encode_texts(texts)
    z_images = np.stack(list(embed_images(clip, iter(images.cpu().numpy()))))
    return (z_images * z_texts[[texts.index(prompt) for prompt in prompts]]).sum(axis=1)


def best_first(scores: np.ndarray, num_samples: int, keep: int) -> np.ndarray:
    """Rows of the best `keep` samples of each prompt, best first; (prompts * keep,) int64.

    Args:
        scores: (prompts * num_samples,), the samples of a prompt in a row. Of equal ones the first comes first.
    """
    if not 1 <= keep <= num_samples:
        raise ConfigError(f"of {num_samples} samples a prompt between 1 and {num_samples} can be kept, not {keep}")
    order = np.argsort(-scores.reshape(-1, num_samples), axis=1, kind="stable")[:, :keep]
    return (order + np.arange(len(order))[:, None] * num_samples).reshape(-1)
