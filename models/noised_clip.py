"""Noised CLIP: image and text towers that compare a *noised* image at timestep t with a caption (arXiv:2112.10741, section 4.4).

Parameter names and shapes equal the released checkpoints', which keep the two towers in two files.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels import is_plain
from winnow.errors import ConfigError

PIXEL_MEAN = (122.77093945, 116.74601272, 104.09373519)
"""Of 8-bit RGB, as CLIP has it."""
PIXEL_STD = (68.50053285, 66.63215831, 70.32316309)
LOGIT_SCALE = math.log(100.0)
"""Fixed, and in no checkpoint: similarities are multiplied by exp(LOGIT_SCALE) = 100."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisedClipConfig:
    """Sizes of both towers."""

    image_size_px: int
    patch_size_px: int
    image_width: int
    image_layers: int
    image_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int
    vocab_size: int
    """Rows of the embedding table."""
    embedding_width: int
    """Of the space both towers meet in."""
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.image_size_px % self.patch_size_px:
            raise ConfigError(
                f"NoisedClipConfig: image_size_px {self.image_size_px} is not a multiple of patch_size_px {self.patch_size_px}"
            )
        for tower, width, heads in (("image", self.image_width, self.image_heads), ("text", self.text_width, self.text_heads)):
            if width % heads:
                raise ConfigError(f"NoisedClipConfig: {tower}_width {width} is not a multiple of {tower}_heads {heads}")


def normal(*shape: int, std: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * std)


class Linear(nn.Module):
    """A linear layer whose parameters are called w and b."""

    def __init__(self, inputs: int, outputs: int, *, std: float, bias: bool = True) -> None:
        super().__init__()
        self.w = normal(outputs, inputs, std=std)
        self.b = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w, self.b)


class LayerNorm(nn.Module):
    """A layer norm whose parameters are called g and b, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.g.shape, self.g, self.b).to(x.dtype)


class Attention(nn.Module):
    """Pre-LN self-attention; keys have no bias."""

    def __init__(self, width: int, num_heads: int, num_layers: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.ln = LayerNorm(width)
        self.f_q = Linear(width, width, std=width**-0.5)
        self.f_k = Linear(width, width, std=width**-0.5, bias=False)
        self.f_v = Linear(width, width, std=width**-0.5)
        self.f_c = Linear(width, width, std=width**-0.5 / (2 * num_layers))

    def forward(self, x: Tensor, *, num_asking: int | None = None) -> Tensor:
        """(batch, tokens, width) to the same; or to (batch, num_asking, width), where only the first tokens ask all others."""
        h = self.ln(x)
        asked = ((self.f_q, h[:, :num_asking]), (self.f_k, h), (self.f_v, h))
        q, k, v = (f(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for f, tokens in asked)
        return self.f_c(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.ln = LayerNorm(width)
        self.f_1 = Linear(width, 4 * width, std=(2 / (4 * width)) ** 0.5)
        self.f_2 = Linear(4 * width, width, std=(4 * width) ** -0.5 / (2 * num_layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.f_2(F.gelu(self.f_1(self.ln(x))))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, num_layers: int, *, causal: bool) -> None:
        super().__init__()
        self.f_attn = Attention(width, num_heads, num_layers, causal=causal)
        self.f_mlp = MLP(width, num_layers)

    def forward(self, x: Tensor, *, num_asking: int | None = None) -> Tensor:
        """(batch, tokens, width) to the same; or to (batch, num_asking, width), the first tokens only, without computing the others."""
        x = x[:, :num_asking] + self.f_attn(x, num_asking=num_asking)
        return x + self.f_mlp(x)


class ImageInput(nn.Module):
    """Pixels to patch tokens; a learned vector of the timestep stands where CLIP has its class token."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        width, patch = config.image_width, config.patch_size_px
        num_patches = (config.image_size_px // patch) ** 2
        self.w_t = normal(config.num_timesteps, width, std=width**-0.5)
        self.patch_proj = normal(width, 3, patch, patch, std=(2 / (width * patch**2)) ** 0.5)
        self.w_pos = normal(num_patches + 1, width, std=width**-0.5)
        self.ln = LayerNorm(width)

    def forward(self, image: Tensor, timesteps: Tensor) -> Tensor:
        patches = F.conv2d(image, self.patch_proj, stride=self.patch_proj.shape[-1]).flatten(2).transpose(1, 2)
        return self.ln(torch.cat([self.w_t[timesteps][:, None].to(patches.dtype), patches], dim=1) + self.w_pos)


class TextInput(nn.Module):
    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        self.w_voc = normal(config.vocab_size, config.text_width, std=0.02)
        self.w_pos = normal(config.context_length, config.text_width, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.w_voc) + self.w_pos


class Output(nn.Module):
    """From one token to the common space."""

    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__()
        self.ln = LayerNorm(width)
        self.f = Linear(width, embedding_width, std=width**-0.5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.ln(x))


def _blocks(first: nn.Module, width: int, heads: int, layers: int, out: int, *, causal: bool) -> nn.ModuleDict:
    middle = {f"block_{index}": Block(width, heads, layers, causal=causal) for index in range(layers)}
    return nn.ModuleDict({"input": first, **middle, "output": Output(width, out)})


class ImageTower(nn.Module):
    """Noised images to (batch, embedding), not normalised."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        self.num_layers = config.image_layers
        self.blocks = _blocks(
            ImageInput(config), config.image_width, config.image_heads, config.image_layers, config.embedding_width, causal=False
        )

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (batch, 3, size, size), nominally in [-1, 1], at integer timesteps (batch,)."""
        mean, std = (x_t.new_tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        h = self.blocks["input"](((x_t + 1) * 127.5 - mean) / std, timesteps)
        for index in range(self.num_layers):
            # Only the first token is read out, so the last block need not compute the others.
            last = index == self.num_layers - 1 and not is_plain()
            h = self.blocks[f"block_{index}"](h, num_asking=1 if last else None)
        return self.blocks["output"](h[:, 0])


class TextTower(nn.Module):
    """Captions to (batch, embedding), not normalised."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        self.num_layers = config.text_layers
        self.blocks = _blocks(
            TextInput(config), config.text_width, config.text_heads, config.text_layers, config.embedding_width, causal=True
        )

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (batch, context), of which the first `lengths` (batch,) are real; the last real one, the end token, is read out."""
        h = self.blocks["input"](tokens)
        for index in range(self.num_layers):
            h = self.blocks[f"block_{index}"](h)
        return self.blocks["output"](h[torch.arange(len(h), device=h.device), lengths - 1])


def unit(z: Tensor) -> Tensor:
    """Rows at length one, in float32."""
    z = z.float()
    return z / (z.norm(dim=-1, keepdim=True) + 1e-12)


class NoisedClip(nn.Module):
    """Both towers. Their parameters stand under `image.` and `text.`, followed by the released names."""

    def __init__(self, config: NoisedClipConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config)
        self.text = TextTower(config)

    def embed_images(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """(batch, embedding), rows at length one."""
        return unit(self.image(x_t, timesteps))

    def embed_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(batch, embedding), rows at length one."""
        return unit(self.text(tokens, lengths))

    def forward(self, x_t: Tensor, timesteps: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed_images(x_t, timesteps), self.embed_texts(tokens, lengths)
