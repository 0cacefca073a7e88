"""Which of the process's steps a sampler visits, as GLIDE writes it: '100', 'ddim50', 'fast27', '10,10,3,2,2'; and ours, 'snr25'."""

import numpy as np

from winnow.errors import ConfigError

FAST27 = "fast27"
BY_SNR = "snr"
NOISIEST = -5.1
"""log(alpha / sigma) from where 'snrN' begins: the end of the linear schedule, and a sigma of 164 times alpha."""


def kept_timesteps(num_timesteps: int, respacing: str) -> tuple[int, ...]:
    """Steps that are visited, ascending.

    Args:
        respacing: '' for all; 'N' for N evenly spread from first to last; 'N,M,...' for as many in each of equally long
            sections; 'ddimN' for N at a whole-numbered stride from 0; 'fast27' for GLIDE's hand-tuned 27 (of 1000).
    """
    if not respacing:
        return tuple(range(num_timesteps))
    if respacing.startswith("ddim"):
        return _strided(num_timesteps, respacing)
    if respacing == FAST27:
        # GLIDE's own: the last step moves from 999 to 997, because the cosine schedule's last beta is capped.
        kept = _sections(num_timesteps, respacing, [10, 10, 3, 2, 2])
        return (*kept[:-1], num_timesteps - 3)
    counts = respacing.split(",")
    if not all(count.strip().isdigit() for count in counts):
        raise ConfigError(f"steps {respacing!r} is not understood: write '100', 'ddim50', 'fast27', '10,10,3,2,2' or 'snr25'")
    return _sections(num_timesteps, respacing, [int(count) for count in counts])


def kept_by_snr(alphas_cumprod: np.ndarray, respacing: str) -> tuple[int, ...]:
    """Steps that are visited, ascending, for 'snrN': N whose log signal-to-noise ratio is evenly spread, as solvers of higher order want it
    (arXiv:2206.00927, section 3.3 and appendix). Fewer where neighbours fall on the same step.

    Ours, not GLIDE's: the cosine schedule's last steps are left out, which are hardly more than noise and would take half of all steps.
    """
    count = respacing.removeprefix(BY_SNR)
    if not count.isdigit() or not 1 <= int(count) <= len(alphas_cumprod):
        raise ConfigError(f"steps {respacing!r}: write a count between 1 and {len(alphas_cumprod)} after 'snr', as in 'snr25'")
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    wanted = np.linspace(log_snr[0], max(log_snr[-1], NOISIEST), int(count))
    if len(wanted) == 1:
        wanted = np.array([max(log_snr[-1], NOISIEST)])
    nearest = np.interp(-wanted, -log_snr, np.arange(len(log_snr))).round().astype(int)
    return tuple(sorted({int(step) for step in nearest}))


def _strided(num_timesteps: int, respacing: str) -> tuple[int, ...]:
    count = respacing.removeprefix("ddim")
    if count.isdigit() and int(count):
        for stride in range(1, num_timesteps + 1):
            if len(range(0, num_timesteps, stride)) == int(count):
                return tuple(range(0, num_timesteps, stride))
    raise ConfigError(
        f"steps {respacing!r}: no whole-numbered stride gives that many of {num_timesteps} steps; try ddim20, ddim50 or ddim100"
    )


def _sections(num_timesteps: int, respacing: str, counts: list[int]) -> tuple[int, ...]:
    if sum(counts) > num_timesteps:
        raise ConfigError(
            f"steps {respacing!r}: the process has {num_timesteps} steps, so that at most {num_timesteps} can be visited, not {sum(counts)}"
        )
    size, extra = divmod(num_timesteps, len(counts))
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        length = size + (index < extra)
        if not 0 < count <= length:
            raise ConfigError(f"steps {respacing!r}: cannot visit {count} steps of a section of {length}")
        stride = 1.0 if count == 1 else (length - 1) / (count - 1)
        # Summed up step by step and rounded half to even, as the released code does: multiplying rounds some differently.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return tuple(kept)
