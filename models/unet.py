"""GLIDE's UNet: the 64 px base model, the 256 px upsampler, and their inpainting variants (arXiv:2112.10741, section 2 and B.1).

One class covers all four; they differ in the channels that are put beside x_t. Parameter names and shapes equal the
released checkpoints'. The blocks are ADM's (arXiv:2105.05233): BigGAN up and down blocks, scale-shift norm, attention
that sees image and caption in one softmax.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.kernels import Conv3x3, GroupNorm, Pointwise, is_plain
from models.text import TextConfig, TextEncoder, TextEncoding
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """Sizes of a UNet."""

    image_size_px: int
    model_channels: int
    channel_mult: tuple[int, ...]
    """Width of each level, in model_channels; every level but the last halves the image."""
    num_res_blocks: int
    """Residual blocks a level on the way down; one more on the way up."""
    attention_sizes_px: tuple[int, ...]
    """Levels of these image sizes have attention, and the middle has."""
    head_channels: int = 64
    dropout: float = 0.1
    text: TextConfig
    inpaint: bool = False
    """Sees a known image and its mask beside x_t."""
    upsample: bool = False
    """Sees a small image, enlarged, beside x_t."""
    enlarge: Literal["bilinear", "bicubic"] = "bilinear"
    """How an upsampler enlarges. The released code and weights use bilinear, GLIDE's text (section 2.1) says bicubic."""

    def __post_init__(self) -> None:
        smallest = 2 ** (len(self.channel_mult) - 1)
        if self.image_size_px % smallest:
            raise ConfigError(f"UNetConfig: image_size_px {self.image_size_px} cannot be halved {len(self.channel_mult) - 1} times")
        if self.model_channels % 32:
            raise ConfigError(f"UNetConfig: model_channels {self.model_channels} is not a multiple of 32, the number of norm groups")
        if self.enlarge not in ("bilinear", "bicubic"):
            raise ConfigError(f"UNetConfig: enlarge must be bilinear or bicubic, got {self.enlarge!r}")

    @property
    def in_channels(self) -> int:
        return 3 + 4 * self.inpaint + 3 * self.upsample


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def zeroed(module: ModuleT) -> ModuleT:
    """The module with all parameters at zero: a block that ends in it begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Timesteps (batch,), fractional ones allowed, to (batch, width): cosines, then sines."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """What the released 16-bit models keep in float32 as well: embedding, scale and shift, and the last layer."""
    return torch.autocast(x.device.type, enabled=False)


class ResBlock(nn.Module):
    """Residual block that may halve or double the image. Takes the embedding of time and caption as a scale and a shift."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, dropout: float, *, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(GroupNorm(in_channels), nn.SiLU(), Conv3x3(in_channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels), nn.SiLU(), nn.Dropout(dropout), zeroed(Conv3x3(out_channels, out_channels))
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else Pointwise(in_channels, out_channels)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(batch, in, height, width) and (batch, emb) to (batch, out, height', width')."""
        norm, _, conv = self.in_layers
        h = conv(self.resampled(norm(x, silu=True)))
        with in_float32(h):
            scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        norm, _, dropout, conv = self.out_layers
        h = conv(dropout(norm(h, scale, shift, silu=True)))
        return self.skip_connection(self.resampled(x)) + h


class AttentionBlock(nn.Module):
    """Attention of the image to the caption and itself, in one softmax. Channels lie per head as [q | k | v]."""

    def __init__(self, channels: int, head_channels: int, text_width: int) -> None:
        super().__init__()
        self.num_heads = channels // head_channels
        self.norm = GroupNorm(channels)
        # One-dimensional convolutions in name and shape only, as the released checkpoints have them: they run as matrix products.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = nn.Conv1d(text_width, 2 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, text: TextEncoding) -> Tensor:
        """(batch, channels, height, width) and its captions to the shape of x."""
        batch, channels, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        q, k, v = self._heads(pixels, self.qkv).chunk(3, dim=-1)
        text_k, text_v = text.keys_values(self)
        k, v = torch.cat([text_k.to(k.dtype), k], dim=2), torch.cat([text_v.to(v.dtype), v], dim=2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        h = F.linear(h, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + h.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def keys_values(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, context, head_channels) of captions (batch, text_width, context)."""
        k, v = self._heads(sequence.transpose(1, 2), self.encoder_kv).chunk(2, dim=-1)
        return k, v

    def _heads(self, tokens: Tensor, layer: nn.Conv1d) -> Tensor:
        """(batch, tokens, in) through a layer, to (batch, heads, tokens, out / heads)."""
        h = F.linear(tokens, layer.weight.flatten(1), layer.bias)
        return h.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Stage(nn.ModuleList):
    """Layers one after the other, each given what it takes: the embedding, the caption, or neither."""

    def forward(self, h: Tensor, emb: Tensor, text: TextEncoding) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, AttentionBlock):
                h = layer(h, text)
            else:
                h = layer(h)
        return h


class UNet(TextEncoder):
    """Predicts the noise in x_t and the variance of the step back: (batch, 6, height, width) = 3 of eps, 3 of variance."""

    def __init__(self, config: UNetConfig) -> None:
        emb_channels = 4 * config.model_channels
        super().__init__(config.text, emb_channels)
        self.config = config
        self.gradient_checkpointing = False
        """Training keeps what passes between stages alone, and computes a stage again on the way back: less memory, a third more work."""
        self.time_embed = nn.Sequential(nn.Linear(config.model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels))

        def res(inputs: int, outputs: int, resample: str = "") -> ResBlock:
            return ResBlock(inputs, outputs, emb_channels, config.dropout, resample=resample)

        def attention(channels: int, size: int) -> list[nn.Module]:
            return [AttentionBlock(channels, config.head_channels, config.text.width)] if size in config.attention_sizes_px else []

        widths = [mult * config.model_channels for mult in config.channel_mult]
        sizes = [config.image_size_px // 2**level for level in range(len(widths))]
        channels = widths[0]
        self.input_blocks = nn.ModuleList([Stage([Conv3x3(config.in_channels, channels)])])
        skips = [channels]
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(Stage([res(channels, width), *attention(width, size)]))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage([res(channels, channels, "down")]))
                skips.append(channels)
        middle_attention = AttentionBlock(channels, config.head_channels, config.text.width)
        self.middle_block = Stage([res(channels, channels), middle_attention, res(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level, width, size in reversed(list(zip(range(len(widths)), widths, sizes, strict=True))):
            for block in range(config.num_res_blocks + 1):
                layers = [res(channels + skips.pop(), width), *attention(width, size)]
                channels = width
                if level and block == config.num_res_blocks:
                    layers.append(res(channels, channels, "up"))
                self.output_blocks.append(Stage(layers))
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), zeroed(Conv3x3(channels, 6)))

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        tokens: Tensor,
        mask: Tensor,
        *,
        inpaint_image: Tensor | None = None,
        inpaint_mask: Tensor | None = None,
        low_res: Tensor | None = None,
    ) -> Tensor:
        """As `denoise`, with the captions given as tokens (batch, context) and mask (batch, context)."""
        text = self.encode_text(tokens, mask)
        return self.denoise(x_t, timesteps, text, inpaint_image=inpaint_image, inpaint_mask=inpaint_mask, low_res=low_res)

    def denoise(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        text: TextEncoding,
        *,
        inpaint_image: Tensor | None = None,
        inpaint_mask: Tensor | None = None,
        low_res: Tensor | None = None,
    ) -> Tensor:
        """Noise and variance of x_t.

        Args:
            x_t: (batch, 3, size, size).
            timesteps: (batch,) on the scale of the full process, 0 to 999; fractions are allowed.
            inpaint_image: (batch, 3, size, size) in [-1, 1]; what is not known is masked out here. None: nothing is known.
            inpaint_mask: (batch, 1, size, size): 1 where the image is known, 0 where it is to be filled.
            low_res: (batch, 3, small, small) in [-1, 1]: what an upsampler enlarges.
        """
        embedded = timestep_embedding(timesteps, self.config.model_channels).to(next(self.time_embed.parameters()).dtype)
        with in_float32(x_t):
            emb = self.time_embed(embedded) + text.pooled
        h = torch.cat([x_t, *self._beside(x_t, inpaint_image, inpaint_mask, low_res)], dim=1)
        if not is_plain():
            h = h.contiguous(memory_format=torch.channels_last)
        skips = []
        for stage in self.input_blocks:
            h = self._run(stage, h, emb, text)
            skips.append(h)
        h = self._run(self.middle_block, h, emb, text)
        for stage in self.output_blocks:
            h = self._run(stage, torch.cat([h, skips.pop()], dim=1), emb, text)
        norm, _, conv = self.out
        with in_float32(x_t):
            output = conv(norm(h.to(cast(nn.Conv2d, conv).weight.dtype), silu=True))
        return cast(Tensor, output.to(x_t.dtype, memory_format=torch.contiguous_format))

    def _run(self, stage: nn.Module, h: Tensor, emb: Tensor, text: TextEncoding) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(stage, h, emb, text, use_reentrant=False))
        return cast(Tensor, stage(h, emb, text))

    def _beside(self, x_t: Tensor, image: Tensor | None, mask: Tensor | None, low_res: Tensor | None) -> list[Tensor]:
        """What is put beside x_t: known image and mask, then the enlarged small image."""
        beside = []
        if self.config.inpaint:
            mask = torch.zeros_like(x_t[:, :1]) if mask is None else mask
            beside += [torch.zeros_like(x_t) if image is None else image * mask, mask]
        if self.config.upsample:
            if low_res is None:
                raise ConfigError("an upsampler needs low_res, the small image that it is to enlarge")
            beside.append(F.interpolate(low_res, size=x_t.shape[-2:], mode=self.config.enlarge, align_corners=False))
        return beside


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
