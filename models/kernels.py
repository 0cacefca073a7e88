"""The fast forms of what UNets are made of, and the switch back to the plain ones.

Both compute the same function; `plain_path` is there to compare them. Images are channels_last here: a CPU's and a GPU's
convolutions want it, and attention then needs no transposing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.winograd import tile_size, winograd_conv

MAX_OFFSET = 1.0
"""Mean of a group over its deviation, up to which the faster of two kernels of the norm is exact."""
_plain = 0


@contextmanager
def plain_path() -> Iterator[None]:
    """Within it, all models of this process compute by the textbook: direct convolutions, nothing fused, nothing kept."""
    global _plain
    _plain += 1
    try:
        yield
    finally:
        _plain -= 1


def is_plain() -> bool:
    return _plain > 0


class Conv3x3(nn.Conv2d):
    """3x3 convolution that keeps height and width; by Winograd's algorithm where that is faster (float32 on a CPU)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not is_plain() and takes_winograd(x, self.weight):
            m = tile_size(x, self.weight, trains=torch.is_grad_enabled())
            if m:
                return winograd_conv(x, self.weight, self.bias, m)
        return F.conv2d(x, self.weight, self.bias, padding=1)


def takes_winograd(x: Tensor, weight: Tensor) -> bool:
    """Whether the algorithm is for this device and precision at all. A compiler takes convolutions whole, so it gets the direct one."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return x.dtype == weight.dtype == torch.float32


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution (batch, in, height, width) to (batch, out, height, width), as one matrix product of channels_last pixels."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class Pointwise(nn.Conv2d):
    """1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if is_plain() else pointwise(x, self.weight, self.bias)


class GroupNorm(nn.GroupNorm):
    """32 groups; statistics in float32 whatever the input is. May be followed by a scale and a shift, and by SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False) -> Tensor:
        """silu(norm(x) (1 + scale) + shift), with scale and shift (batch, channels, 1, 1) or neither; the shape and type of x."""
        if is_plain() or torch.compiler.is_compiling():
            return self._plain_forward(x, scale, shift, silu)
        # The kernels take statistics in float32 by themselves; autocast would have them make a float32 copy of x.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            if scale is not None and shift is not None:
                scale, shift = scale.to(x.dtype), shift.to(x.dtype)
            y: Tensor = NormActivation.apply(x, weight, bias, scale, shift, self.num_groups, self.eps, silu)
            return y

    def _plain_forward(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
        y = F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)
        if scale is not None and shift is not None:
            y = y * (1 + scale.to(y.dtype)) + shift.to(y.dtype)
        return F.silu(y) if silu else y


class NormActivation(torch.autograd.Function):
    """Norm, scale, shift and SiLU, which keeps x alone for the way back and computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        num_groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        y, mean, rstd = _group_norm(x, weight, bias, num_groups, eps)
        ctx.save_for_backward(x, weight, bias, scale, shift, mean, rstd)
        ctx.num_groups, ctx.eps, ctx.silu = num_groups, eps, silu
        if scale is not None and shift is not None:
            torch.addcmul(shift, y, 1 + scale, out=y)
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=_layout(x))
        normed = None
        if ctx.silu or scale is not None:
            normed = _group_norm(x, weight, bias, ctx.num_groups, ctx.eps)[0]
        if ctx.silu and normed is not None:
            before = normed if scale is None else torch.addcmul(shift, normed, 1 + scale)
            gradient = torch.ops.aten.silu_backward(gradient, before)
        scale_gradient = shift_gradient = None
        if scale is not None and normed is not None:
            scale_gradient = _sum_pixels(normed.mul_(gradient))
            shift_gradient = _sum_pixels(gradient)
            gradient = gradient * (1 + scale)
        batch, channels, height, width = x.shape
        x_gradient, weight_gradient, bias_gradient = torch.ops.aten.native_group_norm_backward(
            gradient, x, mean, rstd, weight, batch, channels, height * width, ctx.num_groups, [True, True, True]
        )
        return x_gradient, weight_gradient, bias_gradient, scale_gradient, shift_gradient, None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    """In which of its two layouts the norm's kernels take x: as it is, if they know it, for they refuse what they do not."""
    last = x.is_contiguous(memory_format=torch.channels_last) and _norms_channels_last(x.device.type)
    return torch.channels_last if last else torch.contiguous_format


@cache
def _norms_channels_last(device_type: str) -> bool:
    """Whether a device's kernel of the norm knows channels_last. A GPU's does from torch 2.15 on."""
    if device_type != "cuda":
        return True
    x = torch.zeros(1, 64, 2, 2, device=device_type).contiguous(memory_format=torch.channels_last)
    try:
        y = torch.native_group_norm(x, None, None, 1, 64, 4, 32, 1e-5)[0]
    except RuntimeError:
        return False
    return y.is_contiguous(memory_format=torch.channels_last)


def _sum_pixels(x: Tensor) -> Tensor:
    return x.sum(dim=(2, 3), keepdim=True, dtype=torch.float32).to(x.dtype)


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    sizes = (batch, channels, height * width, num_groups, eps)
    y, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes)
    # A CPU's channels_last kernel takes the variance as the difference of two sums, which loses digits where the mean is large
    # against the deviation: at 5 deviations the result is off by 8e-6. Its kernel for the other layout does not.
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last) and bool((mean * rstd).abs().max() > MAX_OFFSET):
        y, mean, rstd = torch.native_group_norm(x.contiguous(), weight, bias, *sizes)
        y = y.contiguous(memory_format=torch.channels_last)
    return y, mean, rstd
