"""Whole loops equal the released code's; a sample follows from its prompt and seed alone."""

import sys
from pathlib import Path

import pytest
import torch

from models.catalog import MODELS, ModelSpec, diffusion_model
from models.diffusion import make_schedule
from models.guidance import classifier_free_guidance, guided_output
from models.respacing import kept_timesteps
from models.sampling import ClipGuide, draw_noise, guided_denoiser, sample_images, sample_loop
from models.text import Captions, empty_captions
from models.unet import UNet
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import load_vectors, unet_config, weights


def letters(captions, context_length: int) -> Captions:
    """A tokenizer for these tests: a token a letter."""
    tokens, mask = empty_captions(len(captions), context_length)
    for row, caption in enumerate(captions):
        codes = [1 + ord(letter) % 300 for letter in caption[:context_length]]
        tokens[row, : len(codes)] = torch.tensor(codes, dtype=torch.long)
        mask[row, : len(codes)] = True
    return Captions(tokens, mask)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return diffusion_model("for-tests", unet_config("base"), letters)


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> UNet:
    """Not trained, but with weights in its zero-initialised layers, so that prompts and timesteps matter."""
    torch.manual_seed(0)
    unet = spec.build()
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return unet.eval()


@pytest.mark.parametrize(("loop", "respacing"), [("ddpm8", "8"), ("ddim5", "ddim5")])
def test_a_whole_guided_loop_equals_the_released_codes(monkeypatch, loop, respacing):
    vectors, base = load_vectors("diffusion"), load_vectors("base")
    unet = UNet(unet_config("base")).eval()
    unet.load_state_dict(weights(base))
    noises = iter(vectors[f"loop/{loop}/noises"]) if f"loop/{loop}/noises" in vectors else pytest.skip("the selection has no loops")
    monkeypatch.setattr("models.sampling.draw_noise", lambda generators, shape: next(noises)[None])
    with torch.no_grad():
        text, empty = unet.encode_text(base["in/tokens"][:1], base["in/mask"][:1]), unet.encode_text(*empty_captions(1, 16))
        found = sample_loop(
            guided_denoiser(unet, text, empty, scale=3.0),
            make_schedule("squaredcos_cap_v2").respaced(kept_timesteps(1000, respacing)),
            vectors[f"loop/{loop}/xT"],
            generators=[],
            ddim=loop.startswith("ddim"),
        )
    torch.testing.assert_close(found, vectors[f"loop/{loop}/sample"], atol=5e-4, rtol=0)


@pytest.mark.parametrize("steps", ["ddim5", "10"])
def test_a_sample_does_not_depend_on_its_batch(spec, model, steps):
    prompts, seeds = ["a red barn", "two boats", "a hill", "a tree at night", "rain"], [3, 1, 4, 1, 5]
    together = sample_images(model, spec, prompts, seeds=seeds, steps=steps, batch_size=5)
    apart = sample_images(model, spec, prompts[::-1], seeds=seeds[::-1], steps=steps, batch_size=2).flip(0)
    # Sums are rounded differently in another batch, which an untrained network makes more of: a few of 255, not another image.
    assert (together.int() - apart.int()).abs().max() <= 3
    assert (together[1].int() - together[3].int()).abs().max() > 100  # same seed, other prompt


def test_samples_are_8_bit_rgb_in_rows_and_follow_their_seed(spec, model):
    images = sample_images(model, spec, ["a barn"] * 3, seeds=[1, 2, 1], steps="ddim2")
    assert images.shape == (3, 32, 32, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_guidance_of_one_is_the_caption_alone_and_zero_the_empty_one():
    text, empty = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 5.0])
    assert torch.equal(classifier_free_guidance(text, empty, scale=1), text)
    assert torch.equal(classifier_free_guidance(text, empty, scale=0), empty)
    assert classifier_free_guidance(text, empty, scale=3).tolist() == [2.0, -4.0]


def test_guidance_leaves_the_variance_to_the_caption():
    text, empty = torch.full((1, 6, 1, 1), 2.0), torch.full((1, 6, 1, 1), 1.0)
    assert guided_output(text, empty, scale=3).flatten().tolist() == [4, 4, 4, 2, 2, 2]


def test_guidance_pushes_a_sample(spec, model):
    weak, strong = (sample_images(model, spec, ["a barn"], seeds=[1], steps="ddim2", guidance_scale=scale) for scale in (1.0, 6.0))
    assert not torch.equal(weak, strong)


def test_a_noised_clip_pulls_a_sample_towards_its_caption(spec, model):
    clip_spec = MODELS["tiny-noised-clip"]
    torch.manual_seed(1)
    clip = clip_spec.build().eval()

    def similarity(scale: float) -> float:
        guide = ClipGuide(model=clip, spec=clip_spec, scale=scale)
        images = sample_images(model, spec, ["a red barn"] * 2, seeds=[1, 2], steps="10", guidance_scale=1, guide=guide)
        captions = clip_spec.tokenizer(["a red barn"] * 2, 24)
        with torch.no_grad():
            z = clip.embed_images(images.permute(0, 3, 1, 2) / 127.5 - 1, torch.zeros(2, dtype=torch.long))
            return (z * clip.embed_texts(captions.tokens, captions.lengths)).sum(dim=1).mean().item()

    assert similarity(60.0) > similarity(0.0) + 0.05


def test_an_upsampler_enlarges_what_it_is_given():
    spec = diffusion_model("for-tests", unet_config("upsample"), letters)
    torch.manual_seed(0)
    low_res = torch.rand(2, 3, 8, 8) * 2 - 1
    images = sample_images(spec.build(), spec, ["a", "b"], seeds=[1, 2], steps="fast27", guidance_scale=1, low_res=low_res)
    assert images.shape == (2, 32, 32, 3)


def test_noise_of_an_image_is_its_own_generators():
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    pair = draw_noise([one, two], (3, 2, 2))
    assert torch.equal(draw_noise([torch.Generator().manual_seed(2)], (3, 2, 2))[0], pair[1])


def test_wrong_settings_are_refused(spec, model):
    with pytest.raises(ConfigError, match="2 prompts need as many seeds, got 1"):
        sample_images(model, spec, ["a", "b"], seeds=[1])
    with pytest.raises(ConfigError, match="tiny-noised-clip does not make images"):
        sample_images(model, MODELS["tiny-noised-clip"], ["a"], seeds=[1])
    assert sample_images(model, spec, [], seeds=[]).shape == (0, 32, 32, 3)
