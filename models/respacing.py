"""Which of the process's steps a sampler visits, as GLIDE writes it: '100', 'ddim50', 'fast27', '10,10,3,2,2'."""

from dataclasses import dataclass

from winnow.errors import ConfigError

FAST27 = "fast27"


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """How to sample: which steps, and by which rule."""

    kept: tuple[int, ...]
    """Steps of the whole process, ascending."""
    ddim: bool
    """DDIM with eta 0; otherwise DDPM."""


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
        raise ConfigError(f"steps {respacing!r} is not understood: write '100', 'ddim50', 'fast27' or '10,10,3,2,2'")
    return _sections(num_timesteps, respacing, [int(count) for count in counts])


def parse_steps(steps: str, num_timesteps: int = 1000) -> Steps:
    """A sampler's setting: 'ddimN' and 'fast27' are sampled by DDIM, everything else by DDPM."""
    return Steps(kept=kept_timesteps(num_timesteps, steps), ddim=steps.startswith("ddim") or steps == FAST27)


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
