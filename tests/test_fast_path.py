"""The fast path is the plain one: outputs and gradients, in float32 and bfloat16; what is kept between steps is kept rightly."""

import contextlib
import copy
import dataclasses
import io
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import winograd
from models.catalog import TINY_BASE, TINY_NOISED_CLIP
from models.kernels import GroupNorm, plain_path
from models.noised_clip import NoisedClip
from models.precision import computing, has_fast_bfloat16
from models.text import TextEncoding, empty_captions
from models.unet import UNet, UNetConfig

sys.path.insert(0, str(Path(__file__).parent))
from parity import TEXT, UNET_KINDS, unet_config

WIDE = UNetConfig(
    image_size_px=32, model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_sizes_px=(16,), head_channels=32, text=TEXT
)
CONFIGS = {
    **{kind: unet_config(kind) for kind in UNET_KINDS},
    "tiny": TINY_BASE,
    "wide": WIDE,
    "odd size": dataclasses.replace(WIDE, image_size_px=18, attention_sizes_px=(18, 9)),
    "three levels": dataclasses.replace(
        WIDE,
        image_size_px=20,
        channel_mult=(1, 2, 3),
        head_channels=16,
        text=dataclasses.replace(TEXT, context_length=5),
    ),
}


def scattered(model: nn.Module) -> nn.Module:
    """Random numbers in every weight, zero-initialised ones included; no dropout."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def given_to(config: UNetConfig, batch: int = 2) -> tuple[list[Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    size, context = config.image_size_px, config.text.context_length
    tokens = torch.randint(config.text.vocab_size, (batch, context), generator=generator)
    mask = torch.arange(context)[None] < torch.arange(2, 2 + batch)[:, None]
    beside = {}
    if config.inpaint:
        beside["inpaint_image"] = torch.randn(batch, 3, size, size, generator=generator)
        beside["inpaint_mask"] = (torch.randn(batch, 1, size, size, generator=generator) > 0).float()
    if config.upsample:
        beside["low_res"] = torch.randn(batch, 3, size // 4, size // 4, generator=generator)
    return [torch.randn(batch, 3, size, size, generator=generator), torch.arange(batch) * 300 + 7, tokens, mask], beside


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def output_and_gradients(model: nn.Module, given: list[Tensor], beside: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The output, and all gradients as one vector: some are zero but for rounding, and say nothing by themselves."""
    x = given[0].clone().requires_grad_()
    output = model(x, *given[1:], **beside)
    upstream = torch.sin(torch.arange(output.numel()).float()).view(output.shape)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((output.float() * upstream).sum(), [x, *parameters])
    return output.detach(), torch.cat([gradient.flatten().float() for gradient in gradients])


@pytest.mark.parametrize("everywhere", [False, True], ids=["as it is", "Winograd in every layer"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fast_and_plain_path_are_the_same_function_in_float32(monkeypatch, name, everywhere):
    if everywhere:
        monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    model = scattered(UNet(CONFIGS[name]))
    given, beside = given_to(CONFIGS[name])
    output, gradients = output_and_gradients(model, given, beside)
    with plain_path():
        plain_output, plain_gradients = output_and_gradients(model, given, beside)
    assert error(output, plain_output) < 1e-5
    assert error(gradients, plain_gradients) < 1e-5
    with torch.no_grad():
        assert error(model(*given, **beside), plain_output) < 1e-5


@pytest.mark.parametrize("name", ["base", "upsample_inpaint", "wide"])
def test_bfloat16_costs_the_fast_path_no_more_than_the_plain_one(name):
    torch.manual_seed(0)
    model = UNet(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    given, beside = given_to(CONFIGS[name])
    with plain_path():
        exact = output_and_gradients(model, given, beside)
        with torch.autocast("cpu", torch.bfloat16):
            plain = output_and_gradients(model, given, beside)
    with torch.autocast("cpu", torch.bfloat16):
        fast = output_and_gradients(model, given, beside)
    assert 0 < error(fast[0], exact[0]) < 3e-2
    # Eight significant bits and some dozen layers: the textbook's gradients are off by 2e-2 to 4e-2 themselves.
    assert error(fast[1], exact[1]) < max(3e-2, 1.2 * error(plain[1], exact[1]))
    with computing(torch.device("cpu"), "bfloat16"):
        chosen = output_and_gradients(model, given, beside)
    if not has_fast_bfloat16(torch.device("cpu")):
        assert max(error(*both) for both in zip(chosen, exact, strict=True)) < 1e-5


@pytest.mark.parametrize("name", ["base", "wide"])
def test_gradient_checkpointing_changes_no_bit(name):
    model = UNet(CONFIGS[name]).train()
    given, beside = given_to(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.out.parameters():
            parameter.add_(0.1)
    results = []
    for model.gradient_checkpointing in (False, True):
        torch.manual_seed(3)  # dropout
        results.append(output_and_gradients(model, given, beside))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert results[0][1].any()


@pytest.mark.parametrize("name", ["base", "wide"])
def test_an_image_is_the_same_alone_among_seven_and_as_the_third_of_four(name):
    model = scattered(UNet(CONFIGS[name])).eval()
    given, _ = given_to(CONFIGS[name], batch=7)
    with torch.no_grad():
        seven = model(*given)
        four = model(*(one[:4] for one in given))
        alone = model(*(one[2:3] for one in given))
    assert (alone[0] - seven[2]).abs().max() < 1e-5
    assert (alone[0] - four[2]).abs().max() < 1e-5


def test_keys_and_values_of_a_caption_are_computed_once(monkeypatch):
    model = scattered(UNet(CONFIGS["base"])).eval()
    (x, t, tokens, mask), _ = given_to(CONFIGS["base"], batch=3)
    counted = []
    for block in model.modules():
        if hasattr(block, "encoder_kv"):
            real = block.keys_values
            monkeypatch.setattr(block, "keys_values", lambda sequence, real=real: (counted.append(len(sequence)), real(sequence))[1])
    with torch.no_grad():
        text, empty = model.encode_text(tokens, mask), model.encode_text(*empty_captions(1, 16))
        both = TextEncoding.cat([text, empty.repeat(3)])
        twice = torch.cat([x, x]), torch.cat([t, t])
        first = model.denoise(*twice, both)
        blocks = len(counted) // 2
        assert sorted(counted) == [1] * blocks + [3] * blocks  # the empty caption has one row for its three images
        assert torch.equal(model.denoise(*twice, both), first)
        model.denoise(x, t, text)
        model.denoise(x[:2], t[:2], model.encode_text(*empty_captions(2, 16)))
        assert len(counted) == 2 * blocks
        with plain_path():
            plain = model(*twice, torch.cat([tokens, tokens]), torch.cat([mask, torch.zeros_like(mask)]))
    assert error(first, plain) < 1e-5


def test_the_empty_caption_is_encoded_once_and_again_when_a_weight_changes():
    model = scattered(UNet(CONFIGS["base"])).eval()
    empty = empty_captions(2, 16)
    with torch.no_grad():
        before = model.encode_text(*empty)
        assert model.encode_text(*empty).sequence.data_ptr() == before.sequence.data_ptr()
        model.padding_embedding.mul_(torch.linspace(-1, 2, 32))
        after = model.encode_text(*empty)
        with plain_path():
            assert error(after.sequence, model.encode_text(*empty).sequence) < 1e-6
        assert error(after.sequence, before.sequence) > 1e-2
    assert model.encode_text(*empty).sequence.requires_grad  # in training nothing is kept


def test_a_model_that_has_sampled_can_be_copied_and_pickled():
    model = scattered(UNet(CONFIGS["base"])).eval()
    given, _ = given_to(CONFIGS["base"])
    with torch.no_grad():
        model.encode_text(*empty_captions(1, 16))
        expected = model(*given)
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
            assert torch.equal(other(*given), expected)


def test_repeating_several_captions_repeats_them_in_order():
    text = TextEncoding(torch.arange(4.0).view(2, 2), torch.arange(8.0).view(2, 2, 2))
    assert torch.equal(text.repeat(3).pooled, text.pooled.repeat(3, 1))
    assert len(text.repeat(3)) == 6
    assert torch.equal(TextEncoding.cat([text, text.repeat(2)]).sequence, text.sequence.repeat(3, 1, 1))


@pytest.mark.parametrize("mean", [0.0, 0.5, 5.0, 30.0])
@pytest.mark.parametrize("modulated", [False, True])
def test_norm_scale_shift_and_silu_in_one_are_the_steps_one_by_one(mean, modulated):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    norm = GroupNorm(64).double()
    x = drawn(2, 64, 32, 30) + mean
    modulation = [drawn(2, 64, 1, 1), drawn(2, 64, 1, 1)] if modulated else []
    upstream = drawn(2, 64, 32, 30)
    with torch.no_grad():
        norm.weight.copy_(drawn(64)), norm.bias.copy_(drawn(64))
    results = {}
    for name, kind in (("fast", torch.float32), ("textbook", torch.float64)):
        norm = norm.to(kind)
        ins = [x.to(kind).contiguous(memory_format=torch.channels_last), *(one.to(kind) for one in modulation)]
        ins = [one.detach().requires_grad_() for one in ins]
        if name == "fast":
            y = norm(*ins, silu=True)
        else:
            y = nn.functional.group_norm(ins[0], 32, norm.weight, norm.bias, norm.eps)
            y = nn.functional.silu(y * (1 + ins[1]) + ins[2] if modulated else y)
        results[name] = [y, *torch.autograd.grad(y, [*ins, norm.weight, norm.bias], upstream.to(kind))]
    assert error(results["fast"][0].detach(), results["textbook"][0].detach()) < 3e-6  # 1e-5 and 4e-4 if its one kernel were always taken
    for mine, right in zip(results["fast"][1:], results["textbook"][1:], strict=True):
        assert error(mine.detach(), right.detach()) < (2e-6 if mean < 1 else 1e-4)


def test_noised_clip_is_the_same_on_both_paths():
    model = scattered(NoisedClip(TINY_NOISED_CLIP)).eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.tensor([0, 500, 999])
    fast = model.embed_images(x, t)
    upstream = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    gradient = torch.autograd.grad(fast, x, upstream)[0]
    with plain_path():
        plain = model.embed_images(x, t)
        assert error(gradient, torch.autograd.grad(plain, x, upstream)[0]) < 1e-5
    assert error(fast.detach(), plain.detach()) < 1e-5


def test_bfloat16_is_taken_where_it_is_faster_and_never_asked_of_float32():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with computing(torch.device("cpu"), "float32"):
        assert layer(x).dtype == torch.float32
    with computing(torch.device("cpu"), "bfloat16"):
        assert layer(x).dtype == (torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32)
    assert has_fast_bfloat16(torch.device("cuda"))
    assert isinstance(computing(torch.device("cuda"), "float32"), contextlib.nullcontext)
