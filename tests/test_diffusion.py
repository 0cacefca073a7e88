"""Schedules, single steps and losses equal the released code's numbers."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.diffusion import Schedule, ddim_reverse_step, ddim_step, ddpm_step, make_schedule, predict, q_sample
from models.objectives import discretized_log_likelihood, hybrid_loss, normal_kl
from models.respacing import kept_timesteps
from models.unet import UNet
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import UNET_KINDS, inputs, load_vectors, unet_config, weights

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
STEP_SCHEDULES = {"100": "squaredcos_cap_v2", "fast27": "linear"}


def test_every_table_of_every_respacing_equals_the_released_codes():
    checked = 0
    for key, expected in load_vectors("diffusion").items():
        name, *rest = key.split("/")
        if name not in ("linear", "squaredcos_cap_v2"):
            continue
        num_timesteps, respacing, table = rest
        schedule = make_schedule(name, int(num_timesteps))
        if respacing != "full":
            schedule = schedule.respaced(kept_timesteps(int(num_timesteps), respacing))
        found = schedule.timesteps if table == "timestep_map" else getattr(schedule, table)
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-9, err_msg=key)
        checked += 1
    assert checked >= 90


def test_fast27_visits_the_released_steps():
    expected = [
        0,
        22,
        44,
        66,
        88,
        111,
        133,
        155,
        177,
        199,
        200,
        222,
        244,
        266,
        288,
        311,
        333,
        355,
        377,
        399,
        400,
        500,
        599,
        600,
        799,
        800,
        997,
    ]
    assert list(kept_timesteps(1000, "fast27")) == expected


@pytest.mark.parametrize("steps", ["ddim999", "ddim0", "ddim", "0", "2000", "-3", "fast28", "10,x", "1.5", "600,600"])
def test_steps_that_cannot_be_are_refused_by_name(steps):
    with pytest.raises(ConfigError, match=f"steps '{steps}'"):
        kept_timesteps(1000, steps)


@pytest.fixture(params=STEP_SCHEDULES)
def step(request: pytest.FixtureRequest) -> "StepVectors":
    return StepVectors(request.param)


class StepVectors:
    """One step with a given model output."""

    def __init__(self, respacing: str) -> None:
        self._all = load_vectors("diffusion")
        self._respacing = respacing
        self.schedule = make_schedule(STEP_SCHEDULES[respacing]).respaced(kept_timesteps(1000, respacing))
        self.output, self.x, self.noise = (self._all[f"step/{name}"] for name in ("model_output", "x", "noise"))
        self.known, self.known_mask, self.gradient = (self._all[f"step/{name}"] for name in ("known", "known_mask", "cond_grad"))
        self.t = self["t"]

    def __getitem__(self, name: str) -> Tensor:
        return self._all[f"step/{self._respacing}/{name}"]


def test_networks_are_told_the_steps_of_the_whole_process(step):
    assert torch.equal(step.schedule.model_timesteps(step.t), step["model_t"])


def test_mean_variance_and_x_0_equal_the_released_codes(step):
    prediction = predict(step.schedule, step.output, step.x, step.t)
    torch.testing.assert_close(prediction.mean, step["mean"], **CLOSE)
    torch.testing.assert_close(prediction.variance, step["variance"], **CLOSE)
    torch.testing.assert_close(prediction.log_variance, step["log_variance"], **CLOSE)
    torch.testing.assert_close(prediction.x_0, step["pred_xstart"], **CLOSE)
    unclipped = predict(step.schedule, step.output, step.x, step.t, clip=False)
    torch.testing.assert_close(unclipped.mean, step["mean_noclip"], **CLOSE)


@pytest.mark.parametrize("variant", ["plain", "noclip", "inpaint", "cond"])
def test_a_step_back_equals_the_released_codes(step, variant):
    def known_kept(x_0: Tensor) -> Tensor:
        return x_0 * (1 - step.known_mask) + step.known * step.known_mask

    prediction = predict(
        step.schedule, step.output, step.x, step.t, clip=variant != "noclip", change_x_0=known_kept if variant == "inpaint" else None
    )
    gradient = step.gradient if variant == "cond" else None
    torch.testing.assert_close(ddpm_step(prediction, step.t, step.noise, gradient=gradient), step[f"p_sample/{variant}"], **CLOSE)
    for eta in (0, 1):
        found = ddim_step(step.schedule, prediction, step.x, step.t, step.noise, eta=float(eta), gradient=gradient)
        torch.testing.assert_close(found, step[f"ddim{eta}/{variant}"], **CLOSE)


def test_a_step_of_ddim_backwards_equals_the_released_codes(step):
    # The last step has no next one; in its place the vectors hold the one before it, with the same network output.
    t = step.t.clamp(max=len(step.schedule) - 2)
    found = ddim_reverse_step(step.schedule, predict(step.schedule, step.output, step.x, t), step.x, t)
    torch.testing.assert_close(found, step["ddim_reverse"], **CLOSE)


def test_ddim_backwards_from_the_last_step_is_the_noise_alone():
    # What the released code returns there, too: its tables say alpha_bar = 0 after the last step.
    schedule = make_schedule("squaredcos_cap_v2").respaced(kept_timesteps(1000, "10"))
    x_t, output = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 6, 4, 4)
    prediction = predict(schedule, output, x_t, torch.tensor([9]))
    found = ddim_reverse_step(schedule, prediction, x_t, torch.tensor([9]))
    torch.testing.assert_close(found, x_t - 2.43e-9**0.5 * prediction.x_0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", UNET_KINDS)
def test_losses_and_gradients_equal_the_released_codes(kind):
    vectors = load_vectors(kind)
    model = UNet(unet_config(kind)).eval()
    model.load_state_dict(weights(vectors))
    schedule = make_schedule("linear" if kind.startswith("upsample") else "squaredcos_cap_v2")
    x_0, t, noise = (vectors[f"train/{name}"] for name in ("x0", "t", "noise"))
    x_t = q_sample(schedule, x_0, t, noise)
    torch.testing.assert_close(x_t, vectors["train/x_t"], **CLOSE)
    given = inputs(vectors, "inpaint_image", "inpaint_mask", "low_res")
    losses = hybrid_loss(schedule, model(x_t, t, vectors["in/tokens"], vectors["in/mask"], **given), x_0, x_t, t, noise)
    for name in ("loss", "mse", "vb"):
        torch.testing.assert_close(getattr(losses, name), vectors[f"train/{name}"], **CLOSE)
    losses.loss.mean().backward()
    gradients = {name: parameter.grad for name, parameter in sorted(model.named_parameters())}
    norms = torch.stack([gradient.norm() for gradient in gradients.values()])
    # atol: biases in front of a norm have a gradient of zero, give or take rounding.
    torch.testing.assert_close(norms, vectors["grad/norms_sorted_by_name"], rtol=1e-3, atol=1e-6)
    for name in gradients:
        if f"grad/full/{name}" in vectors:
            torch.testing.assert_close(gradients[name], vectors[f"grad/full/{name}"], rtol=1e-3, atol=1e-5)


def test_the_mean_learns_nothing_from_the_variational_bound():
    schedule = make_schedule("squaredcos_cap_v2")
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 2, 3, 4, 4, generator=generator).unbind()
    output = torch.randn(2, 6, 4, 4, generator=generator, requires_grad=True)
    t = torch.tensor([0, 500])
    hybrid_loss(schedule, output, x_0, q_sample(schedule, x_0, t, noise), t, noise).vb.sum().backward()
    assert output.grad[:, :3].abs().max() == 0
    assert output.grad[:, 3:].abs().min() > 0


def test_noise_at_the_end_of_the_process_is_all_there_is():
    for name in ("linear", "squaredcos_cap_v2"):
        assert make_schedule(name).alphas_cumprod[-1] < 5e-5


def test_respacing_keeps_the_marginals():
    schedule = make_schedule("squaredcos_cap_v2")
    kept = kept_timesteps(1000, "ddim50")
    np.testing.assert_allclose(schedule.respaced(kept).alphas_cumprod, schedule.alphas_cumprod[list(kept)], rtol=1e-12)


def test_ddim_finds_the_image_again_when_the_noise_is_known():
    # With the true eps, every step of DDIM stays on the straight line between image and noise.
    schedule = make_schedule("linear").respaced(kept_timesteps(1000, "ddim10"))
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1, torch.randn(1, 3, 4, 4, generator=generator)
    x_t = q_sample(schedule, x_0, torch.tensor([9]), noise)
    for index in reversed(range(10)):
        t = torch.tensor([index])
        prediction = predict(schedule, torch.cat([noise, torch.zeros_like(noise)], dim=1), x_t, t)
        x_t = ddim_step(schedule, prediction, x_t, t, torch.zeros_like(x_t))
    torch.testing.assert_close(x_t, x_0, atol=1e-4, rtol=0)


def test_more_steps_than_the_process_has_are_refused_in_words():
    with pytest.raises(ConfigError, match="steps '1001': the process has 1000 steps, so that at most 1000 can be visited, not 1001"):
        kept_timesteps(1000, "1001")
    assert kept_timesteps(1000, "1000") == tuple(range(1000))


def test_kl_of_a_normal_from_itself_is_zero_and_grows_with_the_distance():
    zero = torch.zeros(())
    assert normal_kl(zero, zero, zero, zero) == 0
    assert normal_kl(zero, zero, zero + 3, zero).item() == pytest.approx(4.5)


def test_likelihoods_of_all_256_values_sum_to_one():
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for scale in (0.01, 0.3, 2.0):
        mean, log_scale = torch.full_like(values, 0.21), torch.full_like(values, math.log(scale))
        assert discretized_log_likelihood(values, mean, log_scale).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_a_schedule_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="no schedule 'cosine'"):
        make_schedule("cosine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"betas must be a row of numbers in \(0, 1\]"):
        Schedule(np.array([0.1, 1.5]), np.arange(2))
