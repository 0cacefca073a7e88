"""Timestep sampling, min-SNR weighting, regions to erase and fine-tuning do what their papers, or their own words, say."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models.batch_loss import batch_loss, beside
from models.catalog import MODELS, TINY_BASE, diffusion_model
from models.diffusion import make_schedule, q_sample
from models.fine_tuning import inflate_for_inpainting, start_from
from models.objectives import hybrid_loss, min_snr_weight
from models.recipes import RECIPES, STARTS_FROM, TrainConfig, stages_of
from models.regions import MAX_BOXES, RegionMix, erased_regions
from models.text import empty_captions
from models.timestep_sampling import HISTORY, UNIFORM_SHARE, LossSecondMoment, UniformTimesteps, make_timestep_sampler
from models.training import train
from models.unet import UNet
from tasks.config import run_config
from winnow.errors import CheckpointError, ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from toy_shards import make_shards

TEXT = dataclasses.replace(TINY_BASE.text, width=32, num_layers=1, num_heads=2)
SMALL = dataclasses.replace(TINY_BASE, image_size_px=16, channel_mult=(1, 1), head_channels=16, text=TEXT)
KINDS = {
    "small": SMALL,
    "small-inpaint": dataclasses.replace(SMALL, inpaint=True),
    "small-upsampler": dataclasses.replace(SMALL, upsample=True),
    "small-upsampler-inpaint": dataclasses.replace(SMALL, upsample=True, inpaint=True),
}
SPECS = {name: diffusion_model(name, config, MODELS["tiny-base"].tokenizer) for name, config in KINDS.items()}


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in SPECS.items():
        monkeypatch.setitem(MODELS, name, spec)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(num_timesteps: int, losses: np.ndarray) -> LossSecondMoment:
    """A sampler that was shown losses (rounds, num_timesteps)."""
    sampler = LossSecondMoment(num_timesteps)
    for row in losses:
        sampler.see(torch.arange(num_timesteps), torch.from_numpy(row))
    return sampler


# --- timesteps


def test_timesteps_are_drawn_by_the_second_moment_of_their_losses():
    losses = np.random.default_rng(0).random((HISTORY, 7)) * np.arange(1, 8)
    sampler = seen(7, losses)
    size = np.sqrt((losses**2).mean(axis=0))
    expected = size / size.sum() * (1 - UNIFORM_SHARE) + UNIFORM_SHARE / 7
    np.testing.assert_allclose(sampler.probabilities(), expected, rtol=1e-12)
    t, weights = sampler.draw(200_000, generator())
    np.testing.assert_allclose(torch.bincount(t) / len(t), expected, atol=5e-3)
    np.testing.assert_allclose(weights, 1 / (7 * expected[t]), rtol=1e-6)


def test_the_weighted_mean_estimates_what_uniform_draws_do():
    losses = np.linspace(1, 50, 20)
    t, weights = seen(20, np.tile(losses, (HISTORY, 1))).draw(400_000, generator())
    assert (torch.from_numpy(losses)[t] * weights).mean().item() == pytest.approx(losses.mean(), rel=1e-2)


def test_until_every_timestep_was_seen_often_enough_draws_are_uniform():
    sampler = seen(5, np.arange(1.0, 6.0)[None].repeat(HISTORY - 1, axis=0))
    sampler.see(torch.arange(4), torch.ones(4))
    assert set(sampler.probabilities().tolist()) == {0.2}
    assert sampler.draw(10, generator()).weights.tolist() == [1.0] * 10
    sampler.see(torch.tensor([4]), torch.tensor([5.0]))
    assert len(set(sampler.probabilities().tolist())) == 5
    assert seen(3, np.zeros((HISTORY, 3))).probabilities().tolist() == pytest.approx([1 / 3] * 3)


class OneByOne:
    """What is remembered, as the released trainer's words have it: a list a timestep, the oldest goes."""

    def __init__(self, num_timesteps: int) -> None:
        self.lists: list[list[float]] = [[] for _ in range(num_timesteps)]

    def see(self, t: list[int], losses: list[float]) -> None:
        for index, loss in zip(t, losses, strict=True):
            self.lists[index] = [*self.lists[index], loss][-HISTORY:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 9)), max_size=30), max_size=8))
def test_many_losses_at_once_are_remembered_as_if_one_by_one(batches):
    sampler, plain = LossSecondMoment(4), OneByOne(4)
    for batch in batches:
        t, losses = [pair[0] for pair in batch], [pair[1] for pair in batch]
        sampler.see(torch.tensor(t, dtype=torch.int64), torch.tensor(losses, dtype=torch.float64))
        plain.see(t, losses)
    assert sampler.counts.tolist() == [len(values) for values in plain.lists]
    assert [sampler.losses[t, :count].tolist() for t, count in enumerate(sampler.counts)] == plain.lists


def test_a_loss_that_is_not_finite_does_not_poison_the_memory():
    sampler = LossSecondMoment(2)
    sampler.see(torch.tensor([0, 1, 0]), torch.tensor([float("nan"), 2.0, float("inf")]))
    assert sampler.counts.tolist() == [0, 1]


def test_state_is_all_there_is_to_know():
    sampler = seen(6, np.random.default_rng(0).random((12, 6)))
    other = make_timestep_sampler("loss-second-moment", 6)
    other.take(sampler.state())
    sampler.see(torch.arange(6), torch.arange(6.0))
    assert not torch.equal(other.probabilities(), sampler.probabilities())  # a copy, not the same memory
    other.see(torch.arange(6), torch.arange(6.0))
    assert torch.equal(other.draw(50, generator()).t, sampler.draw(50, generator()).t)


def test_uniform_draws_are_what_they_always_were():
    assert torch.equal(UniformTimesteps(1000).draw(8, generator()).t, torch.randint(1000, (8,), generator=generator()))
    with pytest.raises(ConfigError, match="no timestep sampling 'often'; choose from uniform, loss-second-moment"):
        make_timestep_sampler("often", 10)


def test_a_batch_shows_the_sampler_its_losses_and_is_weighted_by_what_it_drew():
    spec, schedule = MODELS["tiny-base"], make_schedule("squaredcos_cap_v2")
    images, captions = torch.rand(6, 3, 32, 32, generator=generator()) * 2 - 1, empty_captions(6, 24)

    def model(x_t, timesteps, tokens, mask):
        return torch.zeros(len(x_t), 6, 32, 32)

    sampler = seen(1000, np.tile(np.linspace(1, 3, 1000), (HISTORY, 1)))
    t, weights = sampler.draw(6, generator(3))
    result = batch_loss(model, spec, schedule, images, captions, generator=generator(3), timesteps=sampler)
    losses = sampler.losses[t, -1]
    assert result["loss"].item() == pytest.approx((losses * weights).mean().item(), rel=1e-5)
    assert result["loss"].item() != pytest.approx(losses.mean().item(), rel=1e-3)


# --- min-SNR


def test_min_snr_weights_are_the_closed_form():
    schedule = make_schedule("squaredcos_cap_v2")
    t = torch.arange(1000)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weights = min_snr_weight(schedule, t, 5.0, torch.zeros(1000, dtype=torch.float64)).numpy()
    assert (weights[snr <= 5] == 1).all() and 0 < (snr > 5).sum() < 1000
    np.testing.assert_allclose(weights[snr > 5], 5 / snr[snr > 5], rtol=1e-12)
    # Of x_0 the same loss weighs min(SNR, gamma): the squared error of eps is SNR times that of x_0 (arXiv:2303.09556, section 3.4).
    np.testing.assert_allclose(weights * snr, np.minimum(snr, 5), rtol=1e-12)


def test_min_snr_weighs_the_squared_error_only_and_is_off_by_default():
    schedule = make_schedule("linear")
    x_0, noise = torch.randn(2, 3, 3, 4, 4, generator=generator()).unbind()
    output, t = torch.randn(3, 6, 4, 4, generator=generator(1)), torch.tensor([0, 100, 999])
    arguments = (schedule, output, x_0, q_sample(schedule, x_0, t, noise), t, noise)
    plain, weighted = hybrid_loss(*arguments), hybrid_loss(*arguments, min_snr_gamma=5.0)
    assert torch.equal(plain.mse, weighted.mse) and torch.equal(plain.vb, weighted.vb)
    assert torch.equal(plain.loss, plain.mse + plain.vb)
    expected = plain.mse * min_snr_weight(schedule, t, 5.0, plain.mse) + plain.vb
    torch.testing.assert_close(weighted.loss, expected)
    assert weighted.loss[0] < plain.loss[0] and weighted.loss[2] == plain.loss[2]


# --- regions


def test_kinds_of_regions_come_as_often_as_they_should():
    erased = erased_regions(4000, 16, 16, generator())
    assert erased.shape == (4000, 1, 16, 16) and erased.dtype == torch.bool
    whole = erased.flatten(1).all(dim=1).float().mean().item()
    assert whole == pytest.approx(0.2, abs=0.02)
    for mix, low, high in ((RegionMix(boxes=1, strokes=0, whole=0), 0.25, 0.4), (RegionMix(boxes=0, strokes=1, whole=0), 0.12, 0.25)):
        share = erased_regions(2000, 32, 32, generator(), mix=mix).float().mean(dim=(1, 2, 3))
        assert low < share.mean() < high and share.std() > 0.08
    assert erased_regions(5, 8, 8, generator(), mix=RegionMix(boxes=0, strokes=0, whole=1)).all()


def test_a_box_has_straight_sides_and_a_stroke_is_round():
    boxes = erased_regions(300, 32, 32, generator(), mix=RegionMix(boxes=1, strokes=0, whole=0))[:, 0]
    # A union of n boxes has at most 2 n + 1 different rows.
    assert max(len(image.unique(dim=0)) for image in boxes) <= 2 * MAX_BOXES + 1
    strokes = erased_regions(300, 32, 32, generator(), mix=RegionMix(boxes=0, strokes=1, whole=0))[:, 0]
    assert sum(len(image.unique(dim=0)) > 2 * MAX_BOXES + 1 for image in strokes) > 100


def test_regions_follow_the_generator_alone_and_large_ones_are_the_small_ones_enlarged():
    small, again = (erased_regions(40, 64, 64, generator(7)) for _ in range(2))
    assert torch.equal(small, again)
    assert not torch.equal(small, erased_regions(40, 64, 64, generator(8)))
    large = erased_regions(40, 256, 256, generator(7))
    assert torch.equal(large, small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3))


def test_shares_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="must be 0 or more and sum to 1"):
        RegionMix(boxes=0.5, strokes=0.5, whole=0.5)


def test_an_upsampler_that_inpaints_sees_all_of_the_small_image():
    images = torch.rand(30, 3, 16, 16, generator=generator()) * 2 - 1
    shown = beside(SPECS["small-upsampler-inpaint"], images, generator())
    torch.testing.assert_close(shown["low_res"][:, :, 0, 0], images[:, :, :4, :4].mean(dim=(2, 3)))
    assert torch.equal(shown["inpaint_mask"], 1 - erased_regions(30, 16, 16, generator()).float())  # 1 is known
    assert shown["inpaint_image"] is images  # the model cuts it itself


# --- fine-tuning


def scattered(config, seed: int = 0) -> UNet:
    """A model with no weight at zero."""
    torch.manual_seed(seed)
    model = UNet(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("plain", ["small", "small-upsampler"])
def test_an_inpainting_model_starts_as_the_model_it_was_made_from(tmp_path, plain, caplog):
    model = scattered(KINDS[plain])
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with caplog.at_level("INFO"):
        inpaint = start_from(tmp_path / "w.safetensors", SPECS[f"{plain}-inpaint"]).eval()
    assert "4 input channels at zero were put into it" in caplog.text
    x, t, captions = torch.randn(2, 3, 16, 16, generator=generator()), torch.tensor([5, 900]), empty_captions(2, 24)
    low_res = {"low_res": torch.randn(2, 3, 4, 4, generator=generator(1))} if "upsampler" in plain else {}
    known = {"inpaint_image": torch.randn(2, 3, 16, 16, generator=generator(2)), "inpaint_mask": torch.ones(2, 1, 16, 16)}
    with torch.no_grad():
        torch.testing.assert_close(inpaint(x, t, *captions, **low_res, **known), model(x, t, *captions, **low_res))
    inpaint(x, t, *captions, **low_res, **known).sum().backward()
    new = inpaint.input_blocks[0][0].weight.grad[:, 3:7]
    assert new.abs().amax(dim=(0, 2, 3)).min() > 0  # at zero, but not for ever


def test_new_channels_stand_between_x_t_and_the_small_image():
    weights = inflate_for_inpainting({"input_blocks.0.0.weight": torch.arange(6.0).view(1, 6, 1, 1), "other": torch.ones(1)})
    assert weights["input_blocks.0.0.weight"].flatten().tolist() == [0, 1, 2, 0, 0, 0, 0, 3, 4, 5]
    assert weights["other"].item() == 1


def test_other_weights_are_still_refused(tmp_path):
    model = scattered(KINDS["small-upsampler"])
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w\.safetensors is not a small-inpaint: input_blocks\.0\.0\.weight is \[32, 6, 3, 3\]"):
        start_from(tmp_path / "w.safetensors", SPECS["small-inpaint"])
    with pytest.raises(CheckpointError, match="is not a small: "):
        start_from(tmp_path / "w.safetensors", SPECS["small"])


SETTINGS = {"num_steps": 4, "batch_size": 4, "lr": 1e-3, "ema_rate": 0.5, "log_every": 1, "checkpoint_every": 2}


class Stopped(Exception):
    """A kill, as a test can make one."""


def stop_at_three(line):
    if line["step"] == 3:
        raise Stopped


def test_a_training_by_importance_resumes_with_the_same_bytes(tmp_path, small_models, monkeypatch):
    monkeypatch.setattr("models.timestep_sampling.HISTORY", 1)  # so that importance counts from the first steps on
    spec = dataclasses.replace(SPECS["small"], num_timesteps=2)
    monkeypatch.setitem(MODELS, "small", spec)
    shards = make_shards(tmp_path / "shards")
    config = TrainConfig(model="small", timestep_sampling="loss-second-moment", min_snr_gamma=5.0, **SETTINGS)
    whole = train(config, shards, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, shards, tmp_path / "broken", report=stop_at_three)
    train(config, shards, tmp_path / "broken")
    one, other = (tmp_path / folder / whole.checkpoint for folder in ("whole", "broken"))
    assert all((one / file.name).read_bytes() == file.read_bytes() for file in other.iterdir())
    half_way = load_file(tmp_path / "whole" / "step-000002" / "optimizer.safetensors")
    assert half_way["timestep_sampler/counts"].tolist() == [1, 1]  # so the later steps depend on what was remembered
    assert len(half_way["timestep_sampler/losses"].unique()) == 2


def test_fine_tuning_for_inpainting_begins_with_the_plain_models_weights(tmp_path, small_models):
    shards = make_shards(tmp_path / "shards")
    first = train(TrainConfig(model="small", **SETTINGS), shards, tmp_path / "first")
    start = tmp_path / "first" / first.checkpoint
    tuned = TrainConfig(model="small-inpaint", caption_dropout=0.2, **{**SETTINGS, "lr": 1e-12})
    second = train(tuned, shards, tmp_path / "second", init_from=str(start))
    before, after = load_file(start / "ema.safetensors"), load_file(tmp_path / "second" / second.checkpoint / "model.safetensors")
    for name, tensor in inflate_for_inpainting(before).items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)


def test_a_checkpoint_older_than_a_setting_is_gone_on_from(tmp_path, small_models):
    shards = make_shards(tmp_path / "shards")
    first = train(TrainConfig(model="small", **SETTINGS), shards, tmp_path / "out")
    path = tmp_path / "out" / first.checkpoint / "state.json"
    state = json.loads(path.read_text())
    del state["config"]["timestep_sampling"], state["config"]["min_snr_gamma"]
    path.write_text(json.dumps(state))
    assert train(TrainConfig(model="small", **{**SETTINGS, "num_steps": 6}), shards, tmp_path / "out").steps == 6
    with pytest.raises(CheckpointError, match="min_snr_gamma None instead of 5"):
        train(TrainConfig(model="small", min_snr_gamma=5.0, **{**SETTINGS, "num_steps": 8}), shards, tmp_path / "out")


# --- recipes


def test_stages_of_glide_filtered_are_the_papers():
    assert (RECIPES["base-pretrain"].num_steps, RECIPES["base-pretrain"].caption_dropout) == (1_100_000, 0)
    for name in ("base-finetune", "base-inpaint"):
        assert (RECIPES[name].num_steps, RECIPES[name].caption_dropout) == (500_000, 0.2)
        assert stages_of(name) == ("base-pretrain", name)
    assert RECIPES["upsampler"].num_steps == 400_000
    assert (RECIPES["noised-clip"].num_steps, RECIPES["noised-clip"].batch_size) == (390_000, 32_768)
    assert stages_of("demo-base") == ("demo-base",)


def test_a_recipe_starts_from_one_whose_weights_fit_it():
    for name, start in STARTS_FROM.items():
        ours, theirs = (MODELS[RECIPES[recipe].model].config for recipe in (name, start))
        assert ours == theirs or (ours == dataclasses.replace(theirs, inpaint=True)), name


def test_the_demos_recipes_are_what_they_were():
    base, clip = RECIPES["demo-base"], RECIPES["demo-noised-clip"]
    assert (base.num_steps, base.batch_size, base.lr, base.warmup_steps, base.ema_rate, base.caption_dropout) == (
        160,
        32,
        2e-3,
        10,
        0.95,
        0.2,
    )
    assert (clip.num_steps, clip.batch_size, clip.lr, clip.warmup_steps, clip.weight_decay) == (360, 64, 4e-4, 20, 0.0125)
    assert {recipe.timestep_sampling for recipe in (base, clip)} == {"uniform"} and base.min_snr_gamma is clip.min_snr_gamma is None


def test_a_run_that_leaves_out_what_a_recipe_starts_from_is_refused(tmp_path):
    settings = {"workspace": str(tmp_path), "manifest": "m.yaml", "embed": {"model": "demo"}}
    with pytest.raises(ConfigError, match="base-inpaint goes on from base-pretrain: add base-pretrain to the list"):
        run_config({**settings, "train": ["base-inpaint"], "sample": {"recipe": "base"}})
