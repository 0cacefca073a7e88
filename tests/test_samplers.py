"""Every sampler: whole loops equal the released code's, solutions in closed form, and a sample that follows from its seed alone."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.diffusion import Schedule, make_schedule
from models.respacing import kept_by_snr, kept_timesteps
from models.samplers import SAMPLERS, find_sampler, settled_sampler, settled_schedule
from models.sampling import guided_denoiser
from models.solvers import Process, ddim_encode
from models.text import empty_captions
from models.unet import UNet
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import load_vectors, unet_config, weights

NAMES = list(SAMPLERS)
MEAN, STD = 0.1, 0.3


def released_base() -> tuple[UNet, dict[str, Tensor]]:
    vectors = load_vectors("base")
    unet = UNet(unet_config("base")).eval()
    unet.load_state_dict(weights(vectors))
    return unet, vectors


def released_process(respacing: str) -> Process:
    """The tiny base under classifier-free guidance of 3."""
    unet, vectors = released_base()
    with torch.no_grad():
        text, empty = unet.encode_text(vectors["in/tokens"][:1], vectors["in/mask"][:1]), unet.encode_text(*empty_captions(1, 16))
    schedule = make_schedule("squaredcos_cap_v2").respaced(kept_timesteps(1000, respacing))
    return Process(denoise=guided_denoiser(unet, text, empty, scale=3.0), schedule=schedule)


@pytest.mark.parametrize(("loop", "sampler", "respacing"), [("ddpm8", "ddpm", "8"), ("ddim5", "ddim", "ddim5")])
def test_a_whole_guided_loop_equals_the_released_codes(monkeypatch, loop, sampler, respacing):
    vectors = load_vectors("diffusion")
    if f"loop/{loop}/noises" not in vectors:
        pytest.skip("the selection of vectors has no loops: WINNOW_TEST_VECTORS names all of them")
    process, noises = released_process(respacing), iter(vectors[f"loop/{loop}/noises"])
    monkeypatch.setattr("models.solvers.draw_noise", lambda generators, shape: next(noises)[None])
    with torch.no_grad():
        found = SAMPLERS[sampler].run(process, vectors[f"loop/{loop}/xT"])
    torch.testing.assert_close(found, vectors[f"loop/{loop}/sample"], atol=5e-4, rtol=0)


@pytest.mark.parametrize("respacing", ["10", "27"])
def test_a_whole_plms_loop_equals_crowsonkbs(respacing):
    vectors, process = load_vectors("plms"), released_process(respacing)
    told: list[float] = []

    def denoise(x_t: Tensor, timesteps: Tensor) -> Tensor:
        told.append(timesteps.item())
        return process.denoise(x_t, timesteps)

    with torch.no_grad():
        found = SAMPLERS["plms"].run(Process(denoise=denoise, schedule=process.schedule), vectors[f"plms/{respacing}/xT"])
    torch.testing.assert_close(found, vectors[f"plms/{respacing}/sample"], atol=5e-4, rtol=0)
    assert told == vectors[f"plms/{respacing}/model_t_sequence"].tolist()


def gaussian_denoiser(whole: Schedule) -> Process:
    """The perfect network for images whose pixels are all drawn from N(MEAN, STD^2); knows fractional timesteps."""
    grid = np.arange(len(whole))

    def denoise(x_t: Tensor, timesteps: Tensor) -> Tensor:
        alpha_bar = float(np.interp(timesteps[0].item(), grid, whole.alphas_cumprod))
        alpha, variance = math.sqrt(alpha_bar), 1 - alpha_bar
        x_0 = MEAN + STD**2 * alpha / (alpha_bar * STD**2 + variance) * (x_t - alpha * MEAN)
        return torch.cat([(x_t - alpha * x_0) / math.sqrt(variance), torch.zeros_like(x_t)], dim=1)

    return Process(denoise=denoise, schedule=whole)


def error_after(sampler: str, steps: str) -> float:
    """Largest distance from the closed solution of the probability flow, over a few pixels."""
    whole = make_schedule("squaredcos_cap_v2")
    schedule = settled_schedule(*settled_sampler(sampler, steps), whole)
    z = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    alpha_bar = schedule.alphas_cumprod[SAMPLERS[sampler].first_step(len(schedule))]
    x_T = math.sqrt(alpha_bar) * MEAN + math.sqrt(alpha_bar * STD**2 + 1 - alpha_bar) * z
    found = SAMPLERS[sampler].run(Process(denoise=gaussian_denoiser(whole).denoise, schedule=schedule), x_T)
    return (found - (MEAN + STD * z)).abs().max().item()


def test_dpm_solver_is_of_second_order_and_ddim_of_first():
    order = {}
    for sampler in ("ddim", "dpm++2m"):
        few, many = error_after(sampler, "snr25"), error_after(sampler, "snr100")
        order[sampler] = math.log2(few / many) / 2
    assert 0.8 < order["ddim"] < 1.2, order
    assert 1.7 < order["dpm++2m"] < 2.5, order


def test_dpm_solver_is_closer_in_20_steps_than_ddim_in_50():
    assert error_after("dpm++2m", "20") < 0.3 * error_after("ddim", "20")
    assert error_after("dpm++2m", "20") < 0.6 * error_after("ddim", "50")


def test_a_mere_count_of_steps_is_spread_as_the_sampler_wants_it():
    assert settled_sampler("dpm++2m", "20")[1] == "snr20"
    assert settled_sampler("dpm++2m", "ddim20")[1] == "ddim20"
    assert settled_sampler("plms", "20")[1] == "20"


@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_steps_by_snr_are_evenly_spread_in_log_snr(name):
    alphas_cumprod = make_schedule(name).alphas_cumprod
    kept = kept_by_snr(alphas_cumprod, "snr20")
    assert len(kept) == 20 and kept[0] == 0
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod))[list(kept)] / 2
    # As evenly as whole steps allow: the first few of the process lie up to 0.5 apart.
    assert np.abs(np.diff(log_snr) + np.ptp(log_snr) / 19).max() < 0.3
    assert log_snr[-1] == pytest.approx(-5.1, abs=0.1)
    with pytest.raises(ConfigError, match="steps 'snr0': write a count between 1 and 1000"):
        kept_by_snr(alphas_cumprod, "snr0")


def test_samplers_follow_from_the_steps_where_none_is_named():
    named = {steps: settled_sampler(None, steps)[0].name for steps in ("ddim20", "fast27", "100", "10,10,3,2,2", "")}
    assert named == {"ddim20": "ddim", "fast27": "ddim", "100": "ddpm", "10,10,3,2,2": "ddpm", "": "ddpm"}
    assert settled_sampler("ddpm", "fast27")[0].name == "ddpm"
    assert {name: settled_sampler(name, None)[1] for name in NAMES} == {name: sampler.steps for name, sampler in SAMPLERS.items()}


def test_unknown_samplers_list_those_there_are():
    with pytest.raises(ConfigError, match=r"there is no sampler 'euler'; models/samplers\.py has ddpm, ddim, plms, dpm"):
        find_sampler("euler")


def test_plms_refuses_a_schedule_too_short_for_it():
    with pytest.raises(ConfigError, match="plms needs at least 3 steps, got 2"):
        settled_schedule(SAMPLERS["plms"], "2", make_schedule("linear"))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda sampler: sampler.name)
def test_every_sampler_says_what_it_is_and_draws_the_distribution_it_is_given(sampler):
    # 2,000 pixels: the mean is known to 0.002 and the deviation to 0.0016 (standard errors), beside what 100 steps leave.
    whole = make_schedule("squaredcos_cap_v2")
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(1, 3, 23, 29, generator=generator)
    schedule = settled_schedule(*settled_sampler(sampler.name, "100"), whole)
    process = gaussian_denoiser(whole)
    found = sampler.run(Process(denoise=process.denoise, schedule=schedule, generators=[generator]), x_T)
    assert sampler.about.endswith(".") and settled_schedule(sampler, sampler.steps, whole)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, abs=0.02)


def test_ddim_with_eta_draws_noise_and_draws_the_distribution_it_is_given():
    whole = make_schedule("squaredcos_cap_v2")
    schedule, process = whole.respaced(kept_timesteps(1000, "100")), gaussian_denoiser(whole)
    x_T = torch.randn(1, 3, 23, 29, generator=torch.Generator().manual_seed(0))

    def drawn(eta: float, seed: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed)]
        return SAMPLERS["ddim"].run(Process(denoise=process.denoise, schedule=schedule, generators=generators, eta=eta), x_T)

    assert torch.equal(drawn(0.0, 1), drawn(0.0, 2))
    assert (drawn(1.0, 1) - drawn(1.0, 2)).std() > STD
    assert drawn(1.0, 1).std().item() == pytest.approx(STD, abs=0.02)


def test_ddim_backwards_finds_the_noise_that_ddim_makes_the_image_of():
    whole = make_schedule("linear")
    process = gaussian_denoiser(whole)
    x_T = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distance = []
    for count in (50, 200):
        walk = Process(denoise=process.denoise, schedule=whole.respaced(kept_timesteps(1000, str(count))))
        encoded = ddim_encode(walk, SAMPLERS["ddim"].run(walk, x_T))
        distance.append((encoded - x_T).abs().max().item())
    # Exact in the limit: four times the steps, about a quarter of the distance.
    assert distance[1] < 0.4 * distance[0] and distance[1] < 0.2
    with pytest.raises(ConfigError, match=r"only DDIM with eta 0 runs backwards; eta is 0\.5"):
        ddim_encode(Process(denoise=process.denoise, schedule=whole, eta=0.5), x_T)
