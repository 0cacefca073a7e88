"""Every sampler there is. The command line and the tests loop over SAMPLERS; adding one is one more entry."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.diffusion import Schedule
from models.dpm_solver import dpm_solver_2m
from models.plms import FEWEST_STEPS, plms
from models.plms import first_step as plms_first_step
from models.respacing import BY_SNR, FAST27, kept_by_snr, kept_timesteps
from models.solvers import Process, ddim, ddpm
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """A rule by which noise becomes an image."""

    name: str
    about: str
    """A sentence for those who choose."""
    run: Callable[[Process, Tensor], Tensor]
    """Process and x_T (batch, 3, height, width) to images in that shape."""
    steps: str
    """What to ask for if nothing else is said, as models/respacing.py reads it."""
    count_means: str = ""
    """Put before steps that are a mere count, where a sampler wants another spacing than GLIDE's."""
    first_step: Callable[[int], int] = lambda num_steps: num_steps - 1
    """Of a schedule of so many steps, the one whose noise x_T must have."""
    fewest_steps: int = 1
    """That a schedule must have."""
    draws_noise: bool = False
    """Draws noise on the way; all others are deterministic from x_T."""


_ALL = (
    Sampler(
        name="ddpm",
        about="The released notebooks' for the base model: draws from p(x_{t-1} | x_t). 100 to 250 steps.",
        run=ddpm,
        steps="100",
        draws_noise=True,
    ),
    Sampler(name="ddim", about="Deterministic, or with eta as noisy as DDPM. 50 steps; the upsampler's 27.", run=ddim, steps="ddim50"),
    Sampler(
        name="plms",
        about="Pseudo linear multistep, deterministic, 27 to 100 steps; its first three cost four evaluations each.",
        run=plms,
        steps="50",
        first_step=plms_first_step,
        fewest_steps=FEWEST_STEPS,
    ),
    Sampler(
        name="dpm++2m",
        about="DPM-Solver++ 2M, deterministic and of second order: 20 to 25 steps, evenly spread in log SNR.",
        run=dpm_solver_2m,
        steps="snr25",
        # Spread evenly in time as GLIDE's are, 20 steps of it are worse than DDIM's: the last one covers too much.
        count_means=BY_SNR,
    ),
)

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in _ALL}


def find_sampler(name: str) -> Sampler:
    """The entry of that name. Raises ConfigError, listing the names there are."""
    if name not in SAMPLERS:
        raise ConfigError(f"there is no sampler {name!r}; models/samplers.py has {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def settled_sampler(name: str | None, steps: str | None) -> tuple[Sampler, str]:
    """A sampler and its steps, where one or both may be left to the other.

    Args:
        name: None takes what the steps say: DDIM for 'ddimN' and 'fast27', DDPM for all else, as the released notebooks do.
        steps: None takes the sampler's own.
    """
    if name is None:
        steps = "100" if steps is None else steps
        name = "ddim" if steps.startswith("ddim") or steps == FAST27 else "ddpm"
    sampler = find_sampler(name)
    if steps is None:
        return sampler, sampler.steps
    return sampler, sampler.count_means + steps if steps.isdigit() else steps


def settled_schedule(sampler: Sampler, steps: str, whole: Schedule) -> Schedule:
    """The steps that a sampler walks through. Raises ConfigError if they cannot be, or are too few for it."""
    kept = kept_by_snr(whole.alphas_cumprod, steps) if steps.startswith(BY_SNR) else kept_timesteps(len(whole), steps)
    if len(kept) < sampler.fewest_steps:
        raise ConfigError(f"{sampler.name} needs at least {sampler.fewest_steps} steps, got {len(kept)} (steps {steps!r})")
    return whole.respaced(kept)
