"""Guidance by a public CLIP, one that has never seen noise (arXiv:2112.10741, section 2.4; appendix D compares it with a noised one).

It looks at crops of the image that the network predicts from x_t, and the gradient goes back through the network to x_t. GLIDE's text
leaves open how; these choices are ours, after common practice: crops are squares of random place and of a side between half and all of
the image's (at 64 px smaller ones show CLIP nothing), the first is the whole image; x_0 is clipped to [-1, 1] for CLIP, but the gradient
passes as if it were not, since early predictions lie outside nearly everywhere; and where the gradient is very large, as it is at the
noisiest steps, its root mean square is limited.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from models.catalog import ModelSpec
from models.diffusion import x_0_from_eps
from models.guidance import Gradient, Guided
from models.noised_clip import LOGIT_SCALE
from models.solvers import other_seed
from winnow.errors import ConfigError

if TYPE_CHECKING:
    from models.clip_embedder import Clip


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicClipGuide:
    """An open_clip network that pushes samples towards their captions. Costs a step and its gradient more at each step."""

    clip: "Clip"
    scale: float
    """Of the gradient of the logit, 100 times the cosine, as for a noised CLIP."""
    weights_sha256: str = ""
    """Of the file that the network's weights are from, where that is known."""
    num_crops: int = 16
    """The network sees at each step, of each image."""
    smallest_crop: float = 0.5
    """Side of the smallest crop, as a share of the image's."""
    largest_rms: float = 1.0
    """Of a gradient after scaling: 1 is as large as the noise that eps estimates."""

    def __post_init__(self) -> None:
        if self.num_crops < 1 or not 0 < self.smallest_crop <= 1 or self.largest_rms <= 0:
            raise ConfigError(
                f"PublicClipGuide: num_crops must be at least 1, smallest_crop in (0, 1] and largest_rms more than 0, "
                f"got {self.num_crops}, {self.smallest_crop} and {self.largest_rms}"
            )

    def check(self, spec: ModelSpec) -> None:
        """It looks at images of any size."""

    def gradient(self, batch: Guided) -> Gradient:
        z_text = torch.from_numpy(self.clip.encode_texts(batch.captions)).to(batch.device)
        # Not the generators of the noise: a sample's noise must not depend on what guides it.
        generators = [torch.Generator().manual_seed(other_seed(seed, "crops")) for seed in batch.seeds]

        def gradient(x_t: Tensor, timesteps: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x_t.detach().requires_grad_(True)
                eps = batch.denoise(x, timesteps)[:, : x.shape[1]]
                x_0 = x_0_from_eps(batch.schedule, x, timesteps.round().long(), eps)
                x_0 = x_0 + (x_0.clamp(-1, 1) - x_0).detach()
                z_crops = self._embed(random_crops(x_0, generators, self.num_crops, self.smallest_crop, self.clip.image_size_px))
                cosines = (z_crops.view(len(x), self.num_crops, -1) * z_text[:, None]).sum(dim=2)
                logits = torch.tensor(LOGIT_SCALE).exp() * cosines.mean(dim=1).sum()
                found = torch.autograd.grad(logits, x)[0] * self.scale
            rms = found.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            return found * (self.largest_rms / rms.clamp(min=self.largest_rms))

        return gradient

    def _embed(self, crops: Tensor) -> Tensor:
        """(n, 3, size, size) in [-1, 1] to (n, dim) at length one."""
        mean, std = (crops.new_tensor(values).view(1, 3, 1, 1) for values in (self.clip.mean, self.clip.std))
        pixels = ((crops + 1) / 2 - mean) / std
        features = self.clip.network.encode_image(pixels.to(next(self.clip.network.parameters())))  # type: ignore[operator]
        return F.normalize(features.to(crops), dim=-1)


def random_crops(images: Tensor, generators: Sequence[torch.Generator], num_crops: int, smallest: float, size_px: int) -> Tensor:
    """Square crops of square images (batch, 3, side, side), resized: (batch * num_crops, 3, size_px, size_px), an image's in a row.

    Args:
        generators: one an image.
        smallest: side of the smallest crop, as a share of the image's. Each image's first crop is all of it.
    """
    side = images.shape[-1]
    crops = []
    for image, generator in zip(images, generators, strict=True):
        for number in range(num_crops):
            share, left, top = torch.rand(3, generator=generator).tolist()
            length = side if number == 0 else round(side * (smallest + (1 - smallest) * share))
            x, y = (int(place * (side - length + 1)) for place in (left, top))
            crop = image[None, :, y : y + length, x : x + length]
            crops.append(F.interpolate(crop, size=(size_px, size_px), mode="bicubic", align_corners=False, antialias=True))
    return torch.cat(crops)
