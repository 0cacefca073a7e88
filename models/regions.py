"""What is erased of an image when a model learns to inpaint: boxes, free-form strokes, or all of it.

Ours. GLIDE erases "random regions of training examples" (arXiv:2112.10741, section 4.3) and says no more. Boxes are what people
select, strokes what they paint (as in free-form inpainting, arXiv:1806.03589), and erasing everything keeps the model able to
draw without a known image, which is what sampling without one asks of it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.devices import onto
from winnow.errors import ConfigError

GRID = 64
"""Regions are drawn at this size at most, and enlarged without blending, as the base model's masks are for the upsampler."""
MAX_BOXES = 4
BOX_SIDE = (0.15, 0.75)
"""Of the image's side. A box may reach over the edge."""
MAX_STROKES = 4
SEGMENTS = 8
"""Of a stroke: straight, with rounded ends."""
STROKE_RADIUS = (0.025, 0.1)
SEGMENT_LENGTH = (0.05, 0.25)
TURN = 0.8
"""Standard deviation, in radians, of how far a stroke turns from one segment to the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionMix:
    """How often each kind of region is erased: shares that sum to 1."""

    boxes: float = 0.4
    strokes: float = 0.4
    whole: float = 0.2

    def __post_init__(self) -> None:
        shares = (self.boxes, self.strokes, self.whole)
        if min(shares) < 0 or not math.isclose(sum(shares), 1):
            raise ConfigError(f"RegionMix: shares must be 0 or more and sum to 1, got {shares}")


def erased_regions(
    batch: int,
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    mix: RegionMix = RegionMix(),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Where each image is erased: (batch, 1, height, width) bool, True is erased.

    Args:
        generator: on the CPU, whatever the device: the same regions everywhere.
        device: where they are painted, and end up.
    """
    rows, columns = min(height, GRID), min(width, GRID)
    kind = torch.rand(batch, generator=generator)
    boxes, strokes = _draw_boxes(batch, generator), _draw_strokes(batch, generator)
    erased = torch.ones(batch, rows, columns, dtype=torch.bool, device=device)
    for paint, drawn, chosen in (
        (_paint_boxes, boxes, kind < mix.boxes),
        (_paint_strokes, strokes, (kind >= mix.boxes) & (kind < mix.boxes + mix.strokes)),
    ):
        # Which images are of a kind is known on the CPU; nothing waits for the device.
        which = chosen.nonzero()[:, 0]
        if len(which):
            erased[onto(which, device)] = paint([onto(values[which], device) for values in drawn], rows, columns)
    if (rows, columns) != (height, width):
        erased = F.interpolate(erased[:, None].float(), size=(height, width), mode="nearest")[:, 0].bool()
    return erased[:, None]


def _between(low: float, high: float, *shape: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _draw_boxes(batch: int, generator: torch.Generator) -> list[Tensor]:
    """Centres and half sides (batch, MAX_BOXES, 2), in sides of the image; and how many of the boxes are there, (batch,)."""
    centres = torch.rand(batch, MAX_BOXES, 2, generator=generator)
    sides = _between(*BOX_SIDE, batch, MAX_BOXES, 2, generator=generator)
    return [centres, sides / 2, torch.randint(1, MAX_BOXES + 1, (batch,), generator=generator)]


def _paint_boxes(drawn: list[Tensor], rows: int, columns: int) -> Tensor:
    """(batch, rows, columns) bool."""
    centres, half_sides, count = drawn
    y, x = _pixel_centres(rows, columns, centres.device)
    erased = torch.zeros(len(centres), rows, columns, dtype=torch.bool, device=centres.device)
    for box in range(MAX_BOXES):
        (top, left), (half_height, half_width) = centres[:, box].unbind(1), half_sides[:, box].unbind(1)
        in_rows = (y - top[:, None]).abs() <= half_height[:, None]
        in_columns = (x - left[:, None]).abs() <= half_width[:, None]
        erased |= in_rows[:, :, None] & in_columns[:, None, :] & (box < count)[:, None, None]
    return erased


def _draw_strokes(batch: int, generator: torch.Generator) -> list[Tensor]:
    """Corners (batch, MAX_STROKES, SEGMENTS + 1, 2) and radii (batch, MAX_STROKES), in sides of the image; and how many, (batch,)."""
    shape = (batch, MAX_STROKES)
    start = torch.rand(*shape, 1, 2, generator=generator)
    heading = _between(0, 2 * math.pi, *shape, 1, generator=generator)
    turns = TURN * torch.randn(*shape, SEGMENTS, generator=generator)
    angles = heading + turns.cumsum(dim=2)
    lengths = _between(*SEGMENT_LENGTH, *shape, SEGMENTS, generator=generator)
    steps = lengths[..., None] * torch.stack([angles.sin(), angles.cos()], dim=-1)
    corners = torch.cat([start, start + steps.cumsum(dim=2)], dim=2)
    radii = _between(*STROKE_RADIUS, *shape, generator=generator)
    return [corners, radii, torch.randint(1, MAX_STROKES + 1, (batch,), generator=generator)]


def _paint_strokes(drawn: list[Tensor], rows: int, columns: int) -> Tensor:
    """(batch, rows, columns) bool: what is nearer than the radius to a segment."""
    corners, radii, count = drawn
    y, x = _pixel_centres(rows, columns, corners.device)
    erased = torch.zeros(len(corners), rows, columns, dtype=torch.bool, device=corners.device)
    for stroke in range(MAX_STROKES):
        within = (radii[:, stroke].square() * (stroke < count))[:, None, None]
        for segment in range(SEGMENTS):
            distance = _squared_distance(y, x, corners[:, stroke, segment], corners[:, stroke, segment + 1])
            erased |= distance < within
    return erased


def _squared_distance(y: Tensor, x: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Of pixels at y (rows,), x (columns,) from the segments between points (batch, 2): (batch, rows, columns)."""
    along = other - one
    dy, dx = y[None, :, None] - one[:, 0, None, None], x[None, None, :] - one[:, 1, None, None]
    along_y, along_x = along[:, 0, None, None], along[:, 1, None, None]
    part = ((dy * along_y + dx * along_x) / along.square().sum(1)[:, None, None]).clamp(0, 1)
    return (dy - part * along_y).square() + (dx - part * along_x).square()


def _pixel_centres(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    y, x = ((torch.arange(size, device=device) + 0.5) / size for size in (rows, columns))
    return y, x
