"""What a GPU needs, as far as it can be seen without one: nothing on the wrong device, no waiting in a loop, layouts alike."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.cuda.amp import common

from models import kernels, text
from models.batch_loss import batch_loss
from models.catalog import MODELS, ModelSpec
from models.editing import noised
from models.kernels import GroupNorm
from models.precision import computing
from models.samplers import SAMPLERS, settled_schedule
from models.sampling import guided_denoiser
from models.solvers import Process, draw_noise
from models.text import TextConfig, empty_captions
from models.training import laid_out_like
from models.unet import UNet, UNetConfig

GPU = torch.device("cuda")
SMALL = UNetConfig(
    image_size_px=16,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_sizes_px=(8,),
    head_channels=32,
    text=TextConfig(context_length=8, width=32, num_layers=1, num_heads=2, vocab_size=16),
)
TINY = dataclasses.replace(MODELS["tiny-base"], config=SMALL)
UPSAMPLER = dataclasses.replace(TINY, config=dataclasses.replace(SMALL, upsample=True))
SPECS = {"base": TINY, "upsampler": UPSAMPLER, "noised CLIP": MODELS["tiny-noised-clip"]}


@pytest.fixture()
def pretended_gpu(monkeypatch):
    """Tensors without numbers, that are told to be on a GPU: mixing devices and asking for a number raise. No way back: it needs a GPU."""
    monkeypatch.setattr(common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *given: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    kernels._norms_channels_last.cache_clear()
    with FakeTensorMode():
        yield
    kernels._norms_channels_last.cache_clear()


def encoded(unet: UNet, count: int) -> text.TextEncoding:
    """Any captions: which they are is asked once a batch, of numbers that are not there."""
    return unet._encoded(unet.padding_embedding.expand(count, -1, -1))


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_no_sampler_mixes_devices_or_waits_for_the_gpu(pretended_gpu, sampler):
    with GPU:
        unet = UNet(TINY.config).eval()
    assert next(unet.parameters()).device.type == "cuda"
    whole = TINY.schedule()
    schedule = settled_schedule(SAMPLERS[sampler], "3", whole)
    generators = [torch.Generator(), torch.Generator()]
    x_T = draw_noise(generators, (3, 16, 16)).to(GPU)
    process = Process(
        denoise=guided_denoiser(unet, encoded(unet, 2), encoded(unet, 1), scale=3.0),
        schedule=schedule,
        generators=generators,
        gradient=lambda x, timesteps: torch.zeros_like(x),
        change_x_t=lambda x, step: noised(torch.zeros_like(x), whole, step, generators),
    )
    with computing(GPU, "bfloat16"):
        image = SAMPLERS[sampler].run(process, x_T)
    assert image.device.type == "cuda" and image.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "precision"), [("base", "float32"), ("base", "bfloat16"), ("upsampler", "bfloat16"), ("noised CLIP", "bfloat16")]
)
def test_no_loss_mixes_devices_or_waits_for_the_gpu(pretended_gpu, name, precision):
    spec: ModelSpec = SPECS[name]
    with GPU:
        model = UNet(spec.config).train() if spec.kind == "diffusion" else spec.build().train()
        images = torch.zeros(2, 3, spec.image_size_px, spec.image_size_px)
    captions = empty_captions(2, spec.context_length)
    with computing(GPU, precision):
        losses = batch_loss(
            model, spec, spec.schedule(), images, captions, generator=torch.Generator(), caption_dropout=0.2, weights=torch.ones(2)
        )
    assert losses["loss"].device.type == "cuda" and losses["loss"].dtype == torch.float32


def test_a_norm_gives_its_kernel_a_layout_that_it_knows(monkeypatch):
    norm = GroupNorm(64)
    x = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    taken: list[bool] = []
    real = torch.native_group_norm
    monkeypatch.setattr(torch, "native_group_norm", lambda x, *rest: (taken.append(x.is_contiguous()), real(x, *rest))[1])
    results = []
    for known in (True, False):
        monkeypatch.setattr(kernels, "_norms_channels_last", lambda device_type, known=known: known)
        mine = x.clone().requires_grad_()
        y = norm(mine, silu=True)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [mine, norm.weight, norm.bias])])
    assert taken == [False, False, True, True]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_moment_takes_the_layout_of_its_weight():
    moment = torch.arange(24.0).view(2, 3, 2, 2)
    weight = torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    assert laid_out_like(weight, moment).stride() == weight.stride() != moment.stride()
    assert torch.equal(laid_out_like(weight, moment), moment)
    assert laid_out_like(torch.zeros(2, 3, 2, 2), moment) is moment
