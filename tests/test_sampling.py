"""A sample follows from its prompt and seed alone, under every sampler; guidance pushes it; wrong settings are refused."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from models.catalog import MODELS, ModelSpec
from models.guidance import ClipGuide, classifier_free_guidance, guided_output
from models.prompts import num_cut_tokens
from models.samplers import SAMPLERS
from models.sampling import SampleSettings, draw_samples, guided_denoiser, sample_images
from models.solvers import draw_noise
from models.unet import UNet
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import letters, small_model, small_spec

PROMPTS = ["a red barn", "two boats", "a hill", "a tree at night", "rain", "", "a dog"]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return small_spec()


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> UNet:
    return small_model(spec)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_is_the_same_alone_and_among_others(spec, model, sampler):
    settings = SampleSettings(sampler=sampler, steps="4", eta=0.5 if sampler == "ddim" else 0.0)

    def drawn(rows: list[int]) -> torch.Tensor:
        return draw_samples(model, spec, [PROMPTS[row] for row in rows], seeds=[row + 10 for row in rows], settings=settings, device="cpu")

    alone = drawn([3])[0]
    for others in ([0, 1, 2, 3, 4, 5, 6], [6, 0, 3, 1]):
        assert (drawn(others)[others.index(3)] - alone).abs().max() <= 1e-5 * max(1, alone.abs().max().item())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_in_one_batch_with_others_differs_by_rounding_only(spec, model, sampler):
    # From where x_0 is 164 times as uncertain as eps; from the whole process's last step it is 20,000 times.
    settings = SampleSettings(sampler=sampler, steps="snr5")
    prompts, seeds = PROMPTS[:3], [3, 1, 3]
    together, apart = (draw_samples(model, spec, prompts, seeds=seeds, settings=settings, batch_size=size, device="cpu") for size in (3, 1))
    # Sums are rounded differently in another batch, and an untrained network makes more of it from step to step.
    assert (together - apart).abs().max() <= 1e-3 * max(1, apart.abs().max().item())
    assert (together[0] - together[2]).abs().max() > 0.5  # same seed, other prompt


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_on_a_gpu_too_a_sample_is_the_same_one_at_a_time(spec, sampler):
    settings, model = SampleSettings(sampler=sampler, steps="5"), small_model(spec)
    together = draw_samples(model, spec, PROMPTS, seeds=range(7), settings=settings, batch_size=1, device="cuda")
    alone = draw_samples(model, spec, PROMPTS[3:4], seeds=[3], settings=settings, device="cuda")
    assert (together[3] - alone[0]).abs().max() <= 1e-5 * max(1, alone.abs().max().item())


def test_samples_are_8_bit_rgb_in_rows_and_follow_their_seed(spec, model):
    images = sample_images(model, spec, ["a barn"] * 3, seeds=[1, 2, 1], steps="ddim2")
    assert images.shape == (3, 8, 8, 3)
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


def test_a_noised_clip_pulls_a_sample_towards_its_caption():
    spec, clip_spec = small_spec(image_size_px=32), MODELS["tiny-noised-clip"]
    model = small_model(spec)
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


def test_guidance_on_an_interval_of_steps_is_guidance_there_and_none_elsewhere(spec, model):
    with torch.no_grad():
        text, empty = (model.encode_text(*letters([caption], 16)) for caption in ("a barn", ""))
    whole, part = (guided_denoiser(model, text, empty, scale=4.0, interval=interval) for interval in (None, (200, 500)))
    alone = guided_denoiser(model, text, None, scale=4.0)
    x_t = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for timestep, expected in {0: alone, 199: alone, 200: whole, 500: whole, 501: alone, 999: alone}.items():
            t = torch.tensor([timestep])
            torch.testing.assert_close(part(x_t, t), expected(x_t, t))
        assert not torch.allclose(whole(x_t, t), alone(x_t, t))


def test_noise_of_an_image_is_its_own_generators():
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    pair = draw_noise([one, two], (3, 2, 2))
    assert torch.equal(draw_noise([torch.Generator().manual_seed(2)], (3, 2, 2))[0], pair[1])


def test_a_long_prompt_is_cut_and_says_by_how_much(spec, model, caplog):
    with caplog.at_level(logging.WARNING):
        long, short = (sample_images(model, spec, [prompt], seeds=[1], steps="ddim2") for prompt in ("x" * 10_000, "x" * 16))
    assert torch.equal(long, short)
    assert [record.getMessage() for record in caplog.records] == [
        f"the prompt '{'x' * 40}...' is longer than small-base reads: 9984 tokens at its end are cut, 16 are read"
    ]


def test_cut_tokens_are_counted_by_the_models_own_tokenizer():
    tiny = MODELS["tiny-base"]
    assert num_cut_tokens(tiny.tokenizer, "a red barn", tiny.context_length) == 0
    # Start and end are tokens, too: 30 words of a token each in a context of 24.
    assert num_cut_tokens(tiny.tokenizer, " ".join(["a"] * 30), tiny.context_length) == 8


def test_an_empty_prompt_is_drawn_unconditionally(spec, model):
    guided, unguided = (sample_images(model, spec, [""], seeds=[1], steps="ddim2", guidance_scale=scale) for scale in (7.0, 1.0))
    assert (guided.int() - unguided.int()).abs().max() <= 1


def test_wrong_settings_are_refused(spec, model):
    with pytest.raises(ConfigError, match="2 prompts need as many seeds, got 1"):
        sample_images(model, spec, ["a", "b"], seeds=[1])
    with pytest.raises(ConfigError, match="tiny-noised-clip does not make images"):
        sample_images(model, MODELS["tiny-noised-clip"], ["a"], seeds=[1])
    with pytest.raises(ConfigError, match="the process has 1000 steps, so that at most 1000 can be visited, not 1001"):
        sample_images(model, spec, ["a"], seeds=[1], steps="1001")
    with pytest.raises(ConfigError, match="seeds must be 0 or more and less than 2\\^63, got -1"):
        sample_images(model, spec, ["a"], seeds=[-1])
    with pytest.raises(ConfigError, match="eta is noise of DDIM, and plms is another sampler"):
        SampleSettings(sampler="plms", eta=0.5)
    with pytest.raises(ConfigError, match="eta must be between 0 and 1, got 2"):
        SampleSettings(sampler="ddim", eta=2)
    with pytest.raises(ConfigError, match="from a lower to a higher timestep, got 500 to 200"):
        SampleSettings(guidance_interval=(500, 200))
    with pytest.raises(ConfigError, match="sees images of 32 px and cannot guide base, which makes 64 px"):
        ClipGuide(model=None, spec=MODELS["tiny-noised-clip"], scale=1).check(MODELS["base"])
    assert sample_images(model, spec, [], seeds=[]).shape == (0, 8, 8, 3)
