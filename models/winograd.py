"""3x3 convolutions on a CPU by Winograd's minimal filtering (Lavin and Gray, arXiv:1509.09308): a quarter of the multiplications.

An output tile of m x m pixels needs (m + 2)^2 products a pair of channels instead of 9 m^2: 36 instead of 144 for m = 4. Input
tiles, filters and products each pass through a constant matrix, here the Kronecker product of the one-dimensional one, so that
everything is a matrix product of float32 numbers. Layout is channels_last throughout.

How exact: relative L2 errors of an output are 4e-7 for m = 2 and 1.8e-6 for m = 4, where oneDNN's direct convolutions have
2e-7 to 9e-7 (192 to 1152 channels, standard normal input).
"""

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

MAX_BUFFER_ELEMENTS = 1 << 21
"""Of one intermediate array: larger convolutions run in parts. 8 MiB: the best of 2^17 to 2^23 on the sizes of the base model, and
below the 32 MiB from which on C libraries get each array from the system anew, which takes longer than filling it."""
MAX_WHOLE_ELEMENTS = 6 << 20
"""Of transformed filters in training: more are worked on in blocks."""
MIN_CHANNELS = 64
"""On both sides: below, the transforms cost more than they save."""
WIDE = 256
"""Channels on both sides, from which on training takes tiles for however few pixels: direct convolutions spend too long on the weights."""


@dataclass(frozen=True, slots=True)
class Transform:
    """The bilinear algorithm for tiles of m x m pixels, with a = m + 2. All float32."""

    m: int
    image: Tensor
    """(a^2, a^2): input tile to its a^2 numbers; B^T of the paper, for rows and columns at once."""
    filters: Tensor
    """(a^2, 9): 3x3 filter to its a^2 numbers; G."""
    output: Tensor
    """(m^2, a^2): products to output tile; A^T."""

    @property
    def a(self) -> int:
        return self.m + 2


@cache
def transform(m: int) -> Transform:
    """F(m x m, 3 x 3) for m 2 or 4. For m = 4 the points of interpolation are 0, +-5/8 and +-3/2 (and infinity): of 40
    symmetric sets of binary fractions the one with the smallest rounding errors, two thirds of those of 0, +-1, 1/2, -2."""
    points = torch.tensor({2: [0, 1, -1], 4: [0, 0.625, -0.625, 1.5, -1.5]}[m], dtype=torch.float64)
    a = m + 2

    def evaluated(degree: int) -> Tensor:
        """Polynomials with `degree` coefficients at the points and at infinity, (a, degree)."""
        at_infinity = torch.zeros(1, degree, dtype=torch.float64)
        at_infinity[0, -1] = 1
        return torch.cat([points[:, None] ** torch.arange(degree), at_infinity])

    # A row's scale is free as long as the filter's takes it back. Here rows are sums of binary fractions, near 1: exact in float32.
    distances = points[:, None] - points + torch.eye(a - 1, dtype=torch.float64)
    image = torch.linalg.inv(evaluated(a)).T
    image[:-1] *= distances.prod(dim=1, keepdim=True)
    size = image.abs().amax(dim=1, keepdim=True).log2().round().exp2()
    image, filters, output = (image / size * 2**20).round() / 2**20, evaluated(3) * size, evaluated(m).T
    filters[:-1] /= distances.prod(dim=1, keepdim=True)
    return Transform(m, *(torch.kron(matrix, matrix).float() for matrix in (image, filters, output)))


def transformed_filters(weight: Tensor, m: int) -> Tensor:
    """Filters (out, in, 3, 3) as (a^2, out, in)."""
    return (transform(m).filters @ weight.reshape(-1, 9).T).view(-1, *weight.shape[:2])


def state_of(weight: Tensor) -> tuple[int, int]:
    """Changes when the numbers of a weight may have."""
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version


_packed: MutableMapping[Tensor, tuple[tuple[int, int, int], Tensor]] = WeakTensorKeyDictionary()


def packed_filters(weight: Tensor, m: int) -> Tensor:
    """Filters (out, in, 3, 3) as (a^2, in, out), kept as long as the weight is and does not change: for sampling, which uses them at
    every step. In this order matrix products need not turn them around."""
    key = (m, *state_of(weight))
    found = _packed.get(weight)
    if found is None or found[0] != key:
        found = _packed[weight] = (key, transformed_filters(weight.detach(), m).transpose(1, 2).contiguous())
    return found[1]


def drop_packed_filters() -> None:
    """Frees what `packed_filters` keeps."""
    _packed.clear()


@dataclass(frozen=True, slots=True)
class Part:
    """Some images, and of them some rows of tiles, that are worked on together."""

    images: slice
    rows: slice
    """In tiles."""
    height: int
    """Rows of tiles."""
    width: int
    """Columns of tiles."""
    count: int
    """Images."""

    @property
    def num_tiles(self) -> int:
        return self.count * self.height * self.width


def parts(batch: int, height: int, width: int, channels: int, m: int, *, limit: int) -> Iterator[Part]:
    """Cuts (batch, height, width) into parts whose arrays hold at most `limit` numbers, one row of tiles at least."""
    rows, columns = height // m, width // m
    fitting = max(1, limit // ((m + 2) ** 2 * columns * channels))
    if fitting >= rows:
        step = fitting // rows
        for begin in range(0, batch, step):
            end = min(begin + step, batch)
            yield Part(slice(begin, end), slice(0, rows), rows, columns, end - begin)
        return
    for image in range(batch):
        for begin in range(0, rows, fitting):
            end = min(begin + fitting, rows)
            yield Part(slice(image, image + 1), slice(begin, end), end - begin, columns, 1)


class Filters:
    """The filters of a weight (out, in, 3, 3) for one use: transformed whole if they are few, otherwise block by block, again for each
    part of the images. A block stays in the cache, where the whole would go to memory and come back."""

    def __init__(self, weight: Tensor, m: int) -> None:
        self.weight, self.m = weight, m
        outputs, inputs = weight.shape[:2]
        self.num_elements = (m + 2) ** 2 * outputs * inputs
        self.are_few = self.num_elements <= MAX_WHOLE_ELEMENTS
        # In full vectors: a matrix product of 151 columns takes as long as one of 192.
        step = outputs if self.are_few else max(1, MAX_BUFFER_ELEMENTS // ((m + 2) ** 2 * inputs * 64)) * 64
        self.blocks = [slice(begin, min(begin + step, outputs)) for begin in range(0, outputs, step)]
        """Of output channels."""

    @cached_property
    def _whole(self) -> Tensor:
        return transformed_filters(self.weight, self.m)

    def __getitem__(self, block: slice) -> Tensor:
        """(a^2, channels of the block, in)."""
        return self._whole if self.are_few else transformed_filters(self.weight[block], self.m)

    def parts(self, x: Tensor) -> Iterator[Part]:
        """Parts of x: larger where there are several blocks, so that their transforms stay the smaller share of the work."""
        batch, inputs, height, width = x.shape
        limit = MAX_BUFFER_ELEMENTS if self.are_few else self.num_elements
        return parts(batch, height, width, max(inputs, len(self.weight)), self.m, limit=limit)


def padded(x: Tensor) -> Tensor:
    """(batch, channels, height, width) as (batch, height + 2, width + 2, channels) with a frame of zeros."""
    batch, channels, height, width = x.shape
    frame = x.new_empty(batch, height + 2, width + 2, channels)
    frame[:, 0].zero_()
    frame[:, -1].zero_()
    frame[:, :, 0].zero_()
    frame[:, :, -1].zero_()
    frame[:, 1:-1, 1:-1].copy_(x.permute(0, 2, 3, 1))
    return frame


def tiles(frame: Tensor, part: Part, size: int, m: int) -> Tensor:
    """View (size, size, images, rows, columns, channels) of a part's tiles of size x size in (batch, height, width, channels)."""
    image, row, column, channel = frame.stride()
    offset = frame.storage_offset() + part.images.start * image + part.rows.start * m * row
    shape = (size, size, part.count, part.height, part.width, frame.shape[-1])
    return frame.as_strided(shape, (row, column, image, m * row, m * column, channel), offset)


def image_numbers(frame: Tensor, part: Part, kind: Transform) -> Tensor:
    """A part's input tiles, transformed: (a^2, tiles, channels)."""
    gathered = tiles(frame, part, kind.a, kind.m).reshape(kind.a**2, -1)
    return (kind.image @ gathered).view(kind.a**2, part.num_tiles, -1)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, m: int) -> Tensor:
    """(batch, in, height, width) to (batch, out, height, width), channels_last; height and width are multiples of m.

    Args:
        filters: (a^2, in, out), from `packed_filters`.
    """
    kind = transform(m)
    batch, inputs, height, width = x.shape
    outputs = filters.shape[2]
    frame = padded(x)
    y = x.new_empty(batch, height, width, outputs)
    for part in parts(batch, height, width, max(inputs, outputs), m, limit=MAX_BUFFER_ELEMENTS):
        put_pixels(tiles(y, part, m, m), torch.bmm(image_numbers(frame, part, kind), filters), bias, kind)
    return y.permute(0, 3, 1, 2)


def put_pixels(target: Tensor, products: Tensor, bias: Tensor | None, kind: Transform) -> None:
    """Products (a^2, tiles, out) as pixels (m, m, images, rows, columns, out) to where they belong."""
    pixels = (kind.output @ products.view(kind.a**2, -1)).view(target.shape)
    if bias is None:
        target.copy_(pixels)
    else:
        torch.add(pixels, bias, out=target)


def convolve_forward(x: Tensor, weight: Tensor, bias: Tensor | None, m: int) -> Tensor:
    """As `convolve`, for filters (out, in, 3, 3) that are used once: transformed in blocks, which never leave the cache."""
    kind = transform(m)
    batch, _, height, width = x.shape
    frame = padded(x)
    y = x.new_empty(batch, height, width, len(weight))
    filters = Filters(weight, m)
    for part in filters.parts(x):
        numbers, target = image_numbers(frame, part, kind), tiles(y, part, m, m)
        for block in filters.blocks:
            products = torch.bmm(numbers, filters[block].transpose(1, 2))
            put_pixels(target[..., block], products, None if bias is None else bias[block], kind)
    return y.permute(0, 3, 1, 2)


def convolve_backward(
    x: Tensor, weight: Tensor, gradient: Tensor, m: int, *, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to x and weight, by the transposed algorithm: each constant matrix transposed, in reverse order."""
    kind = transform(m)
    batch, inputs, height, width = x.shape
    gradient = gradient.permute(0, 2, 3, 1).contiguous()
    frame = padded(x) if needs_weight else None
    frame_gradient = x.new_zeros(batch, height + 2, width + 2, inputs) if needs_x else None
    weight_gradient = torch.zeros_like(weight, memory_format=torch.contiguous_format) if needs_weight else None
    filters = Filters(weight, m)
    for part in filters.parts(x):
        source = tiles(gradient, part, m, m)
        numbers = None if frame is None else image_numbers(frame, part, kind)
        pieces = None
        for block in filters.blocks:
            products = (kind.output.T @ source[..., block].reshape(m * m, -1)).view(kind.a**2, part.num_tiles, -1)
            if numbers is not None and weight_gradient is not None:
                filter_gradient = torch.bmm(products.transpose(1, 2), numbers)
                weight_gradient[block].view(-1, 9).addmm_(filter_gradient.view(kind.a**2, -1).T, kind.filters)
            if needs_x:
                pieces = torch.bmm(products, filters[block]) if pieces is None else pieces.baddbmm_(products, filters[block])
        if pieces is not None and frame_gradient is not None:
            shape = (kind.a, kind.a, part.count, part.height, part.width, inputs)
            add_tiles(frame_gradient, part, (kind.image.T @ pieces.view(kind.a**2, -1)).view(shape), m)
    x_gradient = None if frame_gradient is None else frame_gradient[:, 1:-1, 1:-1].contiguous().permute(0, 3, 1, 2)
    return x_gradient, weight_gradient


def add_tiles(frame: Tensor, part: Part, pieces: Tensor, m: int) -> None:
    """Adds overlapping tiles (a, a, images, rows, columns, channels) to where `tiles` would take them from."""
    target = tiles(frame, part, len(pieces), m)
    # What lies within m x m does not overlap within the part, so it goes in one call.
    target[:m, :m].add_(pieces[:m, :m])
    for i in range(len(pieces)):
        for j in range(len(pieces)):
            if i >= m or j >= m:
                target[i, j].add_(pieces[i, j])


class Winograd(torch.autograd.Function):
    """A 3x3 convolution of step 1 and padding 1 with tiles of m x m."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, m: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.m = m
        return convolve_forward(x, weight, bias, m)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        # The way back may be taken within an autocast that did not hold on the way there.
        with torch.autocast("cpu", enabled=False):
            x_gradient, weight_gradient = convolve_backward(x, weight, gradients[0], ctx.m, needs_x=needs_x, needs_weight=needs_weight)
        return x_gradient, weight_gradient, gradients[0].sum(dim=(0, 2, 3)) if needs_bias else None, None


def tile_size(x: Tensor, weight: Tensor, *, trains: bool) -> int:
    """The m that pays for this convolution, 4 or 2; 0 where a direct one is faster.

    Small images have few tiles to spread the work on the filters over. Sampling keeps transformed filters, and must choose by one
    image's size alone: what else is in a batch may not change an image.
    """
    batch, _, height, width = x.shape
    if min(weight.shape[:2]) < MIN_CHANNELS or height % 2 or width % 2:
        return 0
    fours = height % 4 == 0 and width % 4 == 0
    if not trains:
        return 4 if fours and height * width >= 256 else 2
    if fours and batch * height * width >= 48 * 16:
        return 4
    return 2 if batch * height * width >= 128 * 4 or min(weight.shape[:2]) >= WIDE else 0


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor | None, m: int) -> Tensor:
    """The convolution with tiles of m x m, with a gradient if one may be asked for."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return Winograd.apply(x, weight, bias, m)
    return convolve(x, packed_filters(weight, m), bias, m)
