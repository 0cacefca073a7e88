"""When a labeller must rest. Told by the times of their decisions alone, so that neither a reload nor a restart starts the count anew."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of one session of work."""

    images: int
    seconds: float
    break_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What somebody has done since their last rest."""

    images: int
    began: float | None
    """Seconds since 1970; None: no decision yet."""
    rest_until: float | None
    """No images before this; None: none is due."""


def session_at(times: Sequence[float], limits: Limits, at: float) -> Session:
    """
    Args:
        times: of a person's decisions, ascending, seconds since 1970.
        at: now.
    """
    if not times or at - times[-1] >= limits.break_seconds:
        return Session(images=0, began=None, rest_until=None)
    first = len(times) - 1
    while first > 0 and times[first] - times[first - 1] < limits.break_seconds:
        first -= 1
    images, began = len(times) - first, times[first]
    over = images >= limits.images or at - began >= limits.seconds
    return Session(images=images, began=began, rest_until=times[-1] + limits.break_seconds if over else None)
