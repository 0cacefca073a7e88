"""What is known stays, what is noised a little stays alike, and an edit follows from its own seed, with every sampler."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.cascade import ENLARGE, check_upsampler, enlarge, enlarged_mask, in_8_bits
from models.catalog import MODELS
from models.diffusion import make_schedule
from models.editing import Edit, noised, replace_known, start_from_image
from models.samplers import SAMPLERS
from models.sampling import SampleSettings, draw_samples, sample_loop
from models.solvers import draw_noise, other_seed
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import small_model, small_spec

SIZE = 8
WAYS = ["model", "replacement"]


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def left_half() -> Tensor:
    known = torch.zeros(1, 1, SIZE, SIZE)
    known[..., : SIZE // 2] = 1
    return known


@pytest.fixture(scope="module")
def spec():
    return small_spec("inpaint")


@pytest.fixture(scope="module")
def model(spec):
    return small_model(spec)


@pytest.mark.parametrize("fill_in", WAYS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_edit_keeps_what_is_known_and_is_the_same_alone_and_among_others(spec, model, sampler, fill_in):
    edit = Edit(image=picture(), known=left_half(), fill_in=fill_in)
    settings = SampleSettings(sampler=sampler, steps="4", guidance_scale=2.0)
    together = draw_samples(model, spec, ["a", "b", "c"], seeds=[1, 2, 3], settings=settings, edit=edit, device="cpu")
    alone = draw_samples(model, spec, ["c"], seeds=[3], settings=settings, edit=edit, device="cpu")
    assert (together[2] - alone[0]).abs().max() <= 1e-5
    half = SIZE // 2
    assert torch.equal(together[..., :half], picture().expand(3, -1, -1, -1)[..., :half])
    assert (together[0, ..., half:] - together[1, ..., half:]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_known_has_a_say_in_what_is_not(spec, model, sampler):
    settings = SampleSettings(sampler=sampler, steps="4", guidance_scale=1.0)
    for fill_in in WAYS:
        one, other = (
            draw_samples(
                model, spec, ["a"], seeds=[1], settings=settings, edit=Edit(image=picture(seed), known=left_half(), fill_in=fill_in)
            )
            for seed in (0, 1)
        )
        assert (one - other)[..., SIZE // 2 :].abs().max() > 1e-3, fill_in


def one_image_denoiser(schedule, image: Tensor):
    """The perfect network of a world with one image in it."""

    def denoise(x_t: Tensor, timesteps: Tensor) -> Tensor:
        low = timesteps.floor().long()[0].item()
        high = min(low + 1, len(schedule) - 1)
        share = timesteps[0].item() - low
        alpha_bar = schedule.alphas_cumprod[low] * (1 - share) + schedule.alphas_cumprod[high] * share
        return torch.cat([(x_t - alpha_bar**0.5 * image) / (1 - alpha_bar) ** 0.5, torch.zeros_like(x_t)], dim=1)

    return denoise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_filling_in_by_replacement_finds_the_rest_of_the_one_image_there_is(sampler):
    schedule = make_schedule("squaredcos_cap_v2").respaced(range(0, 1000, 50))
    generators = [torch.Generator().manual_seed(0)]
    edit = Edit(image=picture(), known=left_half(), fill_in="replacement")
    found = sample_loop(
        one_image_denoiser(make_schedule("squaredcos_cap_v2"), picture()),
        schedule,
        torch.randn(1, 3, SIZE, SIZE, generator=generators[0]),
        generators=generators,
        sampler=sampler,
        change_x_t=replace_known(edit, schedule, generators),
    )
    # PLMS ends with the noise of the first step, which is 0.006. Of the known half no sampler of several steps makes sense: it was redrawn.
    torch.testing.assert_close(found[..., SIZE // 2 :], picture()[..., SIZE // 2 :], atol=0.02, rtol=0)


def test_replaced_regions_carry_the_noise_of_their_step():
    schedule = make_schedule("linear")
    known = torch.ones(1, 1, 64, 64)
    edit = Edit(image=torch.full((1, 3, 64, 64), 0.5), known=known, fill_in="replacement")
    change = replace_known(edit, schedule, [torch.Generator().manual_seed(0)])
    for step in (0, 300, 999):
        changed = change(torch.zeros(1, 3, 64, 64), step)
        # 12,288 pixels: standard errors of 0.01 and 0.007 at most.
        assert changed.mean().item() == pytest.approx(0.5 * schedule.alphas_cumprod[step] ** 0.5, abs=0.04)
        assert changed.std().item() == pytest.approx((1 - schedule.alphas_cumprod[step]) ** 0.5, abs=0.03)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_weaker_edit_leaves_more_of_the_picture(spec, model, sampler):
    settings = SampleSettings(sampler=sampler, steps="20", guidance_scale=1.0)
    distances = []
    for strength in (0.15, 0.9):
        edit = Edit(image=picture(), strength=strength)
        distances.append((draw_samples(model, spec, ["a"], seeds=[1], settings=settings, edit=edit) - picture()).abs().mean())
    assert distances[0] < 0.6 * distances[1]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda sampler: sampler.name)
def test_an_edit_starts_at_the_noise_that_its_sampler_begins_with(sampler):
    whole = make_schedule("squaredcos_cap_v2")
    schedule = whole.respaced(range(0, 1000, 10))
    like, generator = torch.zeros(1, 3, 64, 64), torch.Generator().manual_seed(0)
    edit = Edit(image=torch.zeros(1, 3, 64, 64), strength=0.05)
    left, x = start_from_image(edit, schedule, sampler, [generator], like, num_timesteps=1000)
    assert left.timesteps[-1] == 40
    variance = 1 - left.alphas_cumprod[sampler.first_step(len(left))]
    assert x.std().item() == pytest.approx(variance**0.5, rel=0.03)
    shortest, _ = start_from_image(Edit(image=edit.image, strength=1e-6), schedule, sampler, [generator], like, num_timesteps=1000)
    assert len(shortest) == sampler.fewest_steps


def test_noise_of_an_edit_is_each_images_own():
    schedule = make_schedule("linear")
    pair = noised(torch.zeros(2, 3, 4, 4), schedule, 500, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(pair[1:], noised(torch.zeros(1, 3, 4, 4), schedule, 500, [torch.Generator().manual_seed(2)]))


def test_edits_that_cannot_be_are_refused():
    image, known = picture(), left_half()
    for wrong, message in (
        ({"image": image}, "nothing of the image would be left"),
        ({"image": image, "strength": 0}, "strength must be more than 0 and at most 1, got 0"),
        ({"image": image, "known": known[..., :4]}, "the mask is 1x4x8 and the image 1x8x8"),
        ({"image": image, "known": known * 0.5}, "1 where the image is known and 0 elsewhere"),
        ({"image": image[0], "known": known}, r"image must be \(n, 3, height, width\), got \(3, 8, 8\)"),
        ({"image": image, "known": known, "fill_in": "magic"}, "fill_in must be model or replacement, got 'magic'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Edit(**wrong)
    with pytest.raises(ConfigError, match="tiny-base edits images of 32x32 px, got 1x8x8"):
        Edit(image=image, known=known).check(MODELS["tiny-base"])
    with pytest.raises(ConfigError, match="small-base was not trained to fill in"):
        Edit(image=image, known=known).check(small_spec("base"))
    spec = small_spec("inpaint")
    with pytest.raises(ConfigError, match="3 prompts need one image to edit, or as many; got 2"):
        draw_samples(None, spec, ["a"] * 3, seeds=[1, 2, 3], edit=Edit(image=image.expand(2, -1, -1, -1), strength=0.5))


def test_an_upsampler_sees_its_small_images_in_8_bits_and_starts_from_less_noise():
    spec = small_spec("upsample", image_size_px=16)
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(type(small_model(spec))):
        def denoise(self, x_t, timesteps, text, **beside):
            seen.append((x_t, beside["low_res"]))
            return super().denoise(x_t, timesteps, text, **beside)

    torch.manual_seed(0)
    model = Watched(spec.config)
    small = torch.rand(2, 3, 8, 8) * 2.2 - 1.1
    large = enlarge(model, spec, small, ["a", "b"], seeds=[1, 2], batch_size=2, device="cpu")
    assert large.shape == (2, 3, 16, 16) and len(seen) == 27
    levels = (seen[0][1] + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0][1], small.clamp(-1, 1), atol=1 / 255 + 1e-6, rtol=0)
    noise = draw_noise([torch.Generator().manual_seed(other_seed(seed, "enlarge")) for seed in (1, 2)], (3, 16, 16))
    assert torch.equal(seen[0][0], noise * 0.997) and ENLARGE.guidance_scale == 1
    same_seeds = draw_noise([torch.Generator().manual_seed(seed) for seed in (1, 2)], (3, 16, 16))
    assert torch.corrcoef(torch.stack([noise.flatten(), same_seeds.flatten()]))[0, 1].abs() < 0.1


def test_8_bits_are_the_256_values_of_a_stored_image():
    pixels = torch.arange(256)
    assert torch.equal(((in_8_bits(pixels / 127.5 - 1) + 1) * 127.5).round().long(), pixels)
    assert in_8_bits(torch.tensor([-1.5, 0.0001, 1.5])).tolist() == pytest.approx([-1, 1 / 255, 1], abs=1e-6)


def test_large_masks_are_squares_of_the_small_ones():
    small = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert enlarged_mask(small, 4)[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_only_upsamplers_enlarge():
    with pytest.raises(ConfigError, match="tiny-base is no upsampler"):
        check_upsampler(MODELS["tiny-base"])
