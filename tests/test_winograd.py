"""Winograd's convolution is the direct one: in exact numbers as a bilinear algorithm, in float32 to rounding, gradients included."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import winograd
from models.kernels import Conv3x3, plain_path
from models.winograd import packed_filters, parts, tile_size, transform, transformed_filters, winograd_conv


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("m", [2, 4])
def test_one_tile_and_one_filter_give_the_textbooks_sum(m):
    kind = transform(m)
    tile, taps = drawn(kind.a, kind.a).double(), drawn(3, 3, seed=1).double()
    products = (kind.image.double() @ tile.flatten()) * (kind.filters.double() @ taps.flatten())
    expected = F.conv2d(tile[None, None], taps[None, None])[0, 0]
    torch.testing.assert_close((kind.output.double() @ products).view(m, m), expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("m", [2, 4])
@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 3),
    inputs=st.sampled_from([1, 3, 40, 70]),
    outputs=st.sampled_from([1, 5, 64]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    bias=st.booleans(),
)
def test_output_and_gradients_are_the_direct_convolutions(m, batch, inputs, outputs, rows, columns, bias):
    x = drawn(batch, inputs, m * rows, m * columns).requires_grad_()
    weight = drawn(outputs, inputs, 3, 3, seed=1).requires_grad_()
    given = [x, weight, drawn(outputs, seed=2).requires_grad_()] if bias else [x, weight]
    found, expected = winograd_conv(*given, *([] if bias else [None]), m), F.conv2d(*(one.double() for one in given), padding=1)
    assert error(found, expected) < 1e-5
    upstream = drawn(*found.shape, seed=3)
    both = (torch.autograd.grad(y, given, upstream.to(y.dtype)) for y in (found, expected))
    for mine, right in zip(*both, strict=True):
        assert error(mine, right) < 1e-5


def test_the_way_back_is_float32_within_an_autocast_too():
    x, weight = drawn(1, 64, 8, 8).requires_grad_(), drawn(64, 64, 3, 3, seed=1)
    y = winograd_conv(x, weight, None, 2)
    expected = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_without_gradients_the_same_comes_out():
    x, weight, bias = drawn(2, 64, 16, 16), drawn(64, 64, 3, 3, seed=1), drawn(64, seed=2)
    with_gradient = winograd_conv(x.requires_grad_(), weight, bias, 4)
    with torch.no_grad():
        assert torch.equal(winograd_conv(x, weight, bias, 4), with_gradient)


@pytest.mark.parametrize("limit", [1, 5_000, 40_000])
def test_work_in_parts_is_the_same_work(monkeypatch, limit):
    x, weight = drawn(3, 16, 16, 12).requires_grad_(), drawn(150, 16, 3, 3, seed=1).requires_grad_()
    whole = winograd_conv(x, weight, None, 4)
    gradients = torch.autograd.grad(whole.square().sum(), [x, weight])
    monkeypatch.setattr(winograd, "MAX_BUFFER_ELEMENTS", limit)
    monkeypatch.setattr(winograd, "MAX_WHOLE_ELEMENTS", limit)
    in_parts = winograd_conv(x, weight, None, 4)
    assert error(in_parts, whole) < 1e-6
    for mine, right in zip(torch.autograd.grad(in_parts.square().sum(), [x, weight]), gradients, strict=True):
        assert error(mine, right) < 1e-6


@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 400),
    st.sampled_from([2, 4]),
    st.sampled_from([1, 2**12, 2**21]),
)
def test_parts_cover_every_tile_once(batch, rows, columns, channels, m, limit):
    seen = torch.zeros(batch, rows, dtype=torch.int)
    for part in parts(batch, m * rows, m * columns, channels, m, limit=limit):
        seen[part.images, part.rows] += 1
        assert (part.count, part.height, part.width) == (*seen[part.images, part.rows].shape, columns)
    assert (seen == 1).all()


def test_kept_filters_follow_the_weight_and_go_with_it():
    gc.collect()
    before = len(winograd._packed)
    layer = Conv3x3(64, 64)
    x = drawn(1, 64, 16, 16)
    with torch.no_grad():
        layer(x)
        kept = packed_filters(layer.weight, 4)
        assert packed_filters(layer.weight, 4) is kept
        layer.weight.mul_(2)
        torch.testing.assert_close(packed_filters(layer.weight, 4), 2 * kept)
        assert error(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)) < 1e-5
        other = copy.deepcopy(layer)
        other.weight.zero_()
        assert torch.equal(other(x), layer.bias[:, None, None].expand(1, 64, 16, 16))
    del layer, other
    gc.collect()
    assert len(winograd._packed) == before


def test_a_layer_takes_the_direct_way_where_it_is_asked_to_or_the_faster(monkeypatch):
    calls: list[int] = []
    real = winograd_conv
    monkeypatch.setattr("models.kernels.winograd_conv", lambda *given: (calls.append(given[3]), real(*given))[1])
    wide, narrow = Conv3x3(64, 64), Conv3x3(8, 64)
    with torch.no_grad():
        wide(drawn(1, 64, 16, 16)), wide(drawn(1, 64, 8, 8)), wide(drawn(1, 64, 18, 18))
        assert calls == [4, 2, 2]
        wide(drawn(1, 64, 15, 16)), narrow(drawn(1, 8, 16, 16)), wide.double()(drawn(1, 64, 16, 16).double())
        with plain_path():
            wide.float()(drawn(1, 64, 16, 16))
        with torch.autocast("cpu", torch.bfloat16):
            assert wide(drawn(1, 64, 16, 16)).dtype == torch.bfloat16
    assert calls == [4, 2, 2]


def test_sampling_chooses_the_tile_by_the_image_and_not_by_the_batch():
    weight = torch.empty(64, 64, 3, 3, device="meta")
    for size in (4, 8, 12, 16, 64):
        chosen = {tile_size(torch.empty(batch, 64, size, size, device="meta"), weight, trains=False) for batch in (1, 7, 100)}
        assert len(chosen) == 1


def test_training_takes_tiles_for_few_pixels_where_the_filters_are_many():
    def chosen(channels: int, batch: int, size: int) -> int:
        weight, x = torch.empty(channels, channels, 3, 3, device="meta"), torch.empty(batch, channels, size, size, device="meta")
        return tile_size(x, weight, trains=True)

    assert [chosen(64, 1, 8), chosen(64, 8, 8), chosen(256, 1, 8), chosen(256, 8, 16), chosen(256, 1, 9)] == [0, 2, 2, 4, 0]


def test_filters_transform_to_values_at_the_points():
    # F(2 x 2): a filter (g0, g1, g2) is g0 + g1 p + g2 p^2 at the points 0, 1, -1 and at infinity, up to the rows' scales.
    ones = transformed_filters(torch.ones(1, 1, 3, 3), 2).view(4, 4)
    assert torch.equal(ones, ones.T)
    centre = torch.zeros(1, 1, 3, 3)
    centre[..., 1, 1] = 1
    assert transformed_filters(centre, 2).view(4, 4)[0].abs().max() == 0  # at 0, the middle tap's polynomial p is 0
