"""Guidance by a public CLIP: the right gradient, crops that are each image's own, samples that come closer; and reranking by it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.clip_guidance import PublicClipGuide, random_crops
from models.diffusion import make_schedule
from models.guidance import Guided
from models.reranking import best_first, clip_scores
from models.samplers import SAMPLERS
from models.sampling import SampleSettings, draw_samples, to_pixels
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import small_model, small_spec


class Colours(nn.Module):
    """A CLIP whose image features are the mean colour, linear in the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3), requires_grad=False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3)) @ self.weight


class ColourClip:
    """As much of a Clip as guidance needs; captions are names of colours."""

    network = Colours()
    image_size_px = 8
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def encode_texts(self, texts):
        return np.array([{"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}[text] for text in texts], np.float32)


def batch(captions: list[str], seeds: list[int], denoise=None) -> Guided:
    def nothing(x_t: Tensor, timesteps: Tensor) -> Tensor:
        return torch.zeros(len(x_t), 6, *x_t.shape[2:])

    schedule = make_schedule("squaredcos_cap_v2")
    return Guided(captions=captions, seeds=seeds, denoise=denoise or nothing, schedule=schedule, device=torch.device("cpu"))


def test_the_gradient_is_that_of_the_cosine_with_the_caption():
    guide = PublicClipGuide(clip=ColourClip(), scale=2.0, num_crops=1, largest_rms=1e9)
    x = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5).double()
    t = torch.tensor([300])
    found = guide.gradient(batch(["green"], [0]))(x, t)

    def logit(x: Tensor) -> float:
        x_0 = x / make_schedule("squaredcos_cap_v2").alphas_cumprod[300] ** 0.5
        colour = ((x_0 + 1) / 2).mean(dim=(2, 3))[0]
        return 100 * (colour[1] / colour.norm()).item()

    for channel in range(3):
        step = torch.zeros_like(x)
        step[0, channel, 2, 3] = 1e-3
        slope = (logit(x + step) - logit(x - step)) / 2e-3
        assert found[0, channel, 2, 3].item() == pytest.approx(2 * slope, rel=1e-3)


def test_the_gradient_goes_through_the_network():
    def half(x_t: Tensor, timesteps: Tensor) -> Tensor:
        return torch.cat([x_t / 2, x_t], dim=1)

    guide = PublicClipGuide(clip=ColourClip(), scale=1.0, num_crops=1, largest_rms=1e9)
    x, t = torch.full((1, 3, 8, 8), 0.01), torch.tensor([500])
    through, alone = (guide.gradient(batch(["red"], [0], denoise))(x, t) for denoise in (half, None))
    alpha_bar = make_schedule("squaredcos_cap_v2").alphas_cumprod[500]
    # d x_0 / d x_t is (1 - sqrt(1 - alpha_bar) / 2) / sqrt(alpha_bar) instead of 1 / sqrt(alpha_bar), and the colour hardly differs.
    assert (through / alone).mean().item() == pytest.approx(1 - (1 - alpha_bar) ** 0.5 / 2, rel=0.02)


def test_a_large_gradient_is_limited_and_points_the_same_way():
    x, t = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 999])
    free, limited = (
        PublicClipGuide(clip=ColourClip(), scale=3.0, num_crops=1, largest_rms=rms).gradient(batch(["red", "blue"], [0, 1]))(x, t)
        for rms in (1e9, 0.5)
    )
    rms = limited.square().mean(dim=(1, 2, 3)).sqrt()
    assert (rms <= 0.5 + 1e-6).all() and (free.square().mean(dim=(1, 2, 3)).sqrt() > 0.5).all()
    torch.testing.assert_close(limited / rms.view(2, 1, 1, 1), free / free.square().mean(dim=(1, 2, 3), keepdim=True).sqrt())


def test_crops_are_squares_within_the_image_the_first_of_them_all_of_it():
    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 3, 16, 16)
    crops = random_crops(rows, [torch.Generator().manual_seed(0)], 50, 0.5, 16)
    assert crops.shape == (50, 3, 16, 16)
    torch.testing.assert_close(crops[:1], rows.contiguous())
    heights = (crops[1:, 0, -3, 0] - crops[1:, 0, 2, 0]) / 11 * 16
    assert heights.min() > 0.5 * 16 - 1 and heights.max() < 16 + 1 and heights.std() > 1
    assert crops.min() > -0.5 and crops.max() < 15.5


def test_crops_of_an_image_do_not_depend_on_the_others():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pair = random_crops(images, [torch.Generator().manual_seed(seed) for seed in (1, 2)], 4, 0.5, 8)
    alone = random_crops(images[1:], [torch.Generator().manual_seed(2)], 4, 0.5, 8)
    torch.testing.assert_close(pair[4:], alone)


def test_crops_follow_from_the_seed_of_their_image():
    guide = PublicClipGuide(clip=ColourClip(), scale=1.0, num_crops=3)
    x, t = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([300])
    one, same, other = (guide.gradient(batch(["red"], [seed]))(x, t) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.allclose(one, other)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_take_the_colour_that_clip_is_asked_for(sampler):
    spec = small_spec()
    model, settings = small_model(spec), SampleSettings(sampler=sampler, steps="snr5", guidance_scale=1.0)

    def redness(scale: float) -> float:
        guide = PublicClipGuide(clip=ColourClip(), scale=scale, num_crops=2)
        images = to_pixels(draw_samples(model, spec, ["red"] * 2, seeds=[1, 2], settings=settings, guide=guide, device="cpu")).float()
        return (images[..., 0] - images[..., 1:].mean(dim=-1)).mean().item()

    assert redness(30.0) > redness(0.0) + 5


def test_the_shipped_clip_guides_and_judges():
    from models.generate import load_public_clip

    clip, sha256 = load_public_clip("demo", device="cpu")
    assert len(sha256) == 64
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    guide = PublicClipGuide(clip=clip, scale=1.0, num_crops=4, largest_rms=1e9)
    t = torch.tensor([50])
    caption = "a red circle"
    gradient = guide.gradient(batch([caption], [0]))(x, t)
    step = 0.02 * gradient / gradient.square().mean().sqrt()
    before, after = clip_scores(clip, to_pixels(torch.cat([x - step, x + step])), [caption] * 2)
    assert after > before


def test_the_best_samples_of_each_prompt_come_first():
    scores = np.array([0.1, 0.3, 0.2, 0.9, 0.9, 0.5])
    assert best_first(scores, 3, 2).tolist() == [1, 2, 3, 4]
    assert best_first(scores, 3, 3).tolist() == [1, 2, 0, 3, 4, 5]
    assert best_first(scores, 1, 1).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="of 3 samples a prompt between 1 and 3 can be kept, not 4"):
        best_first(scores, 3, 4)


def test_guides_with_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="num_crops must be at least 1"):
        PublicClipGuide(clip=ColourClip(), scale=1.0, num_crops=0)
    with pytest.raises(ConfigError, match="2 prompts need as many images, got 1"):
        clip_scores(None, torch.zeros(1, 4, 4, 3), ["a", "b"])
