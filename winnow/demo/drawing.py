"""How the things of the demo's world look. Every function draws one thing standing at (x, y): the middle of its foot, in pixels.

`h` is the height in pixels, `c` the main colour, `rng` decides details. Shapes are thick on purpose: a network of four
million parameters has to see them in a hundred pixels.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Draw = ImageDraw.ImageDraw
Thing = Callable[[Draw, float, float, float, Colour, np.random.Generator], None]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "blue": (40, 84, 208),
    "green": (36, 148, 60),
    "yellow": (246, 208, 44),
    "purple": (130, 56, 170),
    "orange": (244, 130, 32),
    "pink": (244, 134, 178),
    "brown": (122, 78, 44),
    "black": (28, 28, 32),
    "white": (244, 244, 240),
    "grey": (134, 138, 144),
}
SKIN: tuple[Colour, ...] = ((255, 220, 190), (240, 194, 150), (206, 150, 106), (150, 100, 66), (98, 62, 42))
HAIR: tuple[Colour, ...] = ((30, 22, 18), (92, 58, 30), (206, 160, 70), (150, 60, 26), (170, 170, 172))
STEEL: Colour = (196, 204, 214)
DARK: Colour = (40, 40, 46)
WOOD: Colour = (120, 76, 40)


def shade(c: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, round(value * factor))) for value in c)
    return red, green, blue


def _box(d: Draw, x0: float, y0: float, x1: float, y1: float, fill: Colour, outline: Colour | None = None) -> None:
    d.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=fill, outline=outline)


def _disc(d: Draw, x: float, y: float, rx: float, fill: Colour, ry: float | None = None) -> None:
    ry = rx if ry is None else ry
    d.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _bar(d: Draw, x0: float, y0: float, x1: float, y1: float, width: float, fill: Colour) -> None:
    d.line((x0, y0, x1, y1), fill=fill, width=max(1, round(width)))


def _turned(x: float, y: float, angle: float, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return [(x + px * cosine - py * sine, y + px * sine + py * cosine) for px, py in points]


# Neutral things


def car(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    w = h * 1.9
    d.rounded_rectangle((x - w / 2, y - h * 0.62, x + w / 2, y - h * 0.18), radius=h * 0.12, fill=c)
    d.polygon([(x - w * 0.3, y - h * 0.6), (x - w * 0.18, y - h), (x + w * 0.2, y - h), (x + w * 0.34, y - h * 0.6)], fill=c)
    d.polygon(
        [(x - w * 0.22, y - h * 0.62), (x - w * 0.14, y - h * 0.92), (x + w * 0.16, y - h * 0.92), (x + w * 0.25, y - h * 0.62)],
        fill=(190, 224, 240),
    )
    for side in (-0.28, 0.28):
        _disc(d, x + w * side, y - h * 0.17, h * 0.17, DARK)
        _disc(d, x + w * side, y - h * 0.17, h * 0.08, (200, 200, 200))


def bus(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    w = h * 1.8
    d.rounded_rectangle((x - w / 2, y - h, x + w / 2, y - h * 0.14), radius=h * 0.08, fill=c)
    for number in range(5):
        left = x - w * 0.44 + number * w * 0.18
        _box(d, left, y - h * 0.86, left + w * 0.13, y - h * 0.52, (196, 228, 244))
    for side in (-0.3, 0.3):
        _disc(d, x + w * side, y - h * 0.14, h * 0.14, DARK)


def boat(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    w = h * 1.2
    d.polygon([(x - w / 2, y - h * 0.3), (x + w / 2, y - h * 0.3), (x + w * 0.32, y), (x - w * 0.32, y)], fill=c)
    _bar(d, x, y - h * 0.3, x, y - h, h * 0.04, WOOD)
    d.polygon([(x + h * 0.04, y - h * 0.98), (x + h * 0.04, y - h * 0.36), (x + w * 0.4, y - h * 0.36)], fill=(250, 248, 236))


def house(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    w = h * 1.0
    _box(d, x - w / 2, y - h * 0.6, x + w / 2, y, c, shade(c, 0.7))
    d.polygon([(x - w * 0.6, y - h * 0.6), (x, y - h), (x + w * 0.6, y - h * 0.6)], fill=shade((150, 60, 50), rng.uniform(0.7, 1.2)))
    _box(d, x - w * 0.1, y - h * 0.34, x + w * 0.1, y, shade(WOOD, 0.8))
    for side in (-0.3, 0.3):
        _box(d, x + w * side - w * 0.09, y - h * 0.46, x + w * side + w * 0.09, y - h * 0.28, (200, 228, 246), DARK)


def tree(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _bar(d, x, y, x, y - h * 0.5, h * 0.1, WOOD)
    for dx, dy, size in ((-0.16, 0.58, 0.2), (0.16, 0.58, 0.2), (0, 0.78, 0.22), (0, 0.6, 0.2)):
        _disc(d, x + h * dx, y - h * dy, h * size, shade(c, rng.uniform(0.85, 1.1)))


def flower(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _bar(d, x, y, x, y - h * 0.7, h * 0.05, (40, 130, 50))
    d.ellipse((x, y - h * 0.42, x + h * 0.2, y - h * 0.3), fill=(40, 130, 50))
    for number in range(6):
        angle = number * math.pi / 3
        _disc(d, x + math.cos(angle) * h * 0.15, y - h * 0.78 + math.sin(angle) * h * 0.15, h * 0.11, c)
    _disc(d, x, y - h * 0.78, h * 0.1, (250, 206, 60) if c != COLOURS["yellow"] else WOOD)


def ball(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    r = h * 0.36
    _disc(d, x, y - r, r, c)
    d.arc((x - r, y - 2 * r, x + r, y), 200, 340, fill=shade(c, 0.6), width=max(1, round(h * 0.05)))
    _disc(d, x - r * 0.35, y - r * 1.4, r * 0.2, shade(c, 1.4))


def table(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    w = h * 1.5
    _box(d, x - w / 2, y - h * 0.7, x + w / 2, y - h * 0.58, c)
    for side in (-0.42, 0.42):
        _box(d, x + w * side - h * 0.04, y - h * 0.58, x + w * side + h * 0.04, y, shade(c, 0.8))


def chair(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    w = h * 0.5
    _box(d, x - w / 2, y - h, x - w / 2 + h * 0.09, y, c)
    _box(d, x - w / 2, y - h * 0.48, x + w / 2, y - h * 0.37, c)
    _box(d, x + w / 2 - h * 0.09, y - h * 0.4, x + w / 2, y, shade(c, 0.8))


def cup(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    h *= 0.8
    d.arc((x + h * 0.14, y - h * 0.66, x + h * 0.56, y - h * 0.2), 250, 110, fill=c, width=max(1, round(h * 0.09)))
    d.polygon([(x - h * 0.34, y - h * 0.8), (x + h * 0.34, y - h * 0.8), (x + h * 0.26, y), (x - h * 0.26, y)], fill=c)
    _disc(d, x, y - h * 0.8, h * 0.34, shade(c, 0.6), h * 0.08)


def kite(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    top = y - h * 1.5
    d.polygon([(x, top), (x + h * 0.3, top + h * 0.36), (x, top + h * 0.86), (x - h * 0.3, top + h * 0.36)], fill=c)
    _bar(d, x, top, x, top + h * 0.86, h * 0.03, DARK)
    _bar(d, x - h * 0.3, top + h * 0.36, x + h * 0.3, top + h * 0.36, h * 0.03, DARK)
    d.line([(x, top + h * 0.86), (x - h * 0.14, top + h * 1.06), (x + h * 0.1, top + h * 1.22), (x, top + h * 1.45)], fill=DARK, width=2)


def balloon(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    top = y - h * 1.4
    _disc(d, x, top + h * 0.36, h * 0.3, c, h * 0.36)
    _disc(d, x - h * 0.1, top + h * 0.2, h * 0.06, shade(c, 1.5))
    d.line([(x, top + h * 0.72), (x + h * 0.06, top + h * 1.0), (x - h * 0.04, top + h * 1.3)], fill=DARK, width=2)


def dog(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    d.ellipse((x - h * 0.56, y - h * 0.7, x + h * 0.34, y - h * 0.26), fill=c)
    for leg in (-0.44, -0.28, 0.08, 0.24):
        _bar(d, x + h * leg, y - h * 0.4, x + h * leg, y, h * 0.1, shade(c, 0.85))
    _bar(d, x - h * 0.52, y - h * 0.55, x - h * 0.76, y - h * 0.9, h * 0.09, c)
    _disc(d, x + h * 0.42, y - h * 0.76, h * 0.22, c)
    d.ellipse((x + h * 0.46, y - h * 0.78, x + h * 0.8, y - h * 0.58), fill=c)
    d.ellipse((x + h * 0.2, y - h * 0.94, x + h * 0.36, y - h * 0.54), fill=shade(c, 0.6))
    _disc(d, x + h * 0.78, y - h * 0.7, h * 0.05, (10, 10, 10))


def cat(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    d.ellipse((x - h * 0.3, y - h * 0.66, x + h * 0.3, y), fill=c)
    d.arc((x + h * 0.1, y - h * 0.7, x + h * 0.66, y - h * 0.02), 270, 110, fill=c, width=max(1, round(h * 0.09)))
    _disc(d, x, y - h * 0.72, h * 0.24, c)
    for side in (-1, 1):
        ear = [(x + side * h * 0.22, y - h * 0.78), (x + side * h * 0.2, y - h * 1.08), (x + side * h * 0.03, y - h * 0.9)]
        d.polygon(ear, fill=shade(c, 0.8))
        _disc(d, x + side * h * 0.09, y - h * 0.75, h * 0.045, (90, 210, 90))


def bird(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    y -= h * 0.9
    d.ellipse((x - h * 0.4, y - h * 0.2, x + h * 0.3, y + h * 0.22), fill=c)
    _disc(d, x + h * 0.34, y - h * 0.16, h * 0.17, c)
    d.polygon([(x + h * 0.48, y - h * 0.22), (x + h * 0.7, y - h * 0.12), (x + h * 0.48, y - h * 0.06)], fill=(246, 160, 40))
    d.polygon([(x - h * 0.16, y), (x + h * 0.14, y - h * 0.02), (x - h * 0.3, y - h * 0.62)], fill=shade(c, 0.72))
    d.polygon([(x - h * 0.36, y), (x - h * 0.72, y - h * 0.12), (x - h * 0.7, y + h * 0.14)], fill=shade(c, 0.72))


def horse(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    d.ellipse((x - h * 0.52, y - h * 0.72, x + h * 0.32, y - h * 0.36), fill=c)
    for leg in (-0.42, -0.26, 0.08, 0.22):
        _bar(d, x + h * leg, y - h * 0.46, x + h * leg, y, h * 0.08, c)
    d.polygon(
        [(x + h * 0.1, y - h * 0.6), (x + h * 0.34, y - h * 0.52), (x + h * 0.56, y - h * 0.96), (x + h * 0.36, y - h * 1.04)], fill=c
    )
    d.polygon([(x + h * 0.36, y - h * 1.04), (x + h * 0.52, y - h * 1.02), (x + h * 0.84, y - h * 0.8), (x + h * 0.7, y - h * 0.7)], fill=c)
    _bar(d, x + h * 0.12, y - h * 0.66, x + h * 0.38, y - h * 1.08, h * 0.08, shade(c, 0.45))
    _bar(d, x - h * 0.5, y - h * 0.6, x - h * 0.66, y - h * 0.2, h * 0.09, shade(c, 0.45))


def fish(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    y -= h * 0.45
    d.polygon([(x - h * 0.3, y), (x - h * 0.72, y - h * 0.3), (x - h * 0.72, y + h * 0.3)], fill=shade(c, 0.8))
    d.ellipse((x - h * 0.5, y - h * 0.3, x + h * 0.56, y + h * 0.3), fill=c)
    _disc(d, x + h * 0.32, y - h * 0.06, h * 0.08, (255, 255, 255))
    _disc(d, x + h * 0.34, y - h * 0.06, h * 0.04, (0, 0, 0))


def bicycle(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    r, width = h * 0.32, max(2, round(h * 0.05))
    for side in (-1, 1):
        d.ellipse((x + side * h * 0.46 - r, y - 2 * r, x + side * h * 0.46 + r, y), outline=DARK, width=width)
    frame = [(x - h * 0.46, y - r), (x - h * 0.14, y - h * 0.74), (x + h * 0.34, y - h * 0.74), (x, y - r), (x - h * 0.46, y - r)]
    d.line(frame, fill=c, width=width + 1)
    _bar(d, x + h * 0.46, y - r, x + h * 0.3, y - h * 0.92, width, c)
    _bar(d, x + h * 0.18, y - h * 0.94, x + h * 0.42, y - h * 0.9, width, DARK)
    _bar(d, x - h * 0.28, y - h * 0.84, x - h * 0.04, y - h * 0.84, width + 1, DARK)


def umbrella(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    d.pieslice((x - h * 0.5, y - h, x + h * 0.5, y - h * 0.1), 180, 360, fill=c)
    _bar(d, x, y - h * 0.56, x, y - h * 0.08, h * 0.05, WOOD)
    d.arc((x, y - h * 0.16, x + h * 0.16, y), 0, 180, fill=WOOD, width=max(2, round(h * 0.05)))


def lamp(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _bar(d, x, y, x, y - h * 0.7, h * 0.06, DARK)
    _disc(d, x, y, h * 0.18, DARK, h * 0.05)
    d.polygon([(x - h * 0.14, y - h), (x + h * 0.14, y - h), (x + h * 0.28, y - h * 0.66), (x - h * 0.28, y - h * 0.66)], fill=c)


def apple(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    for side in (-0.12, 0.12):
        _disc(d, x + h * side, y - h * 0.34, h * 0.28, c, h * 0.34)
    _bar(d, x, y - h * 0.6, x + h * 0.06, y - h * 0.84, h * 0.06, WOOD)
    d.ellipse((x + h * 0.05, y - h * 0.86, x + h * 0.34, y - h * 0.7), fill=(50, 150, 50))


def guitar(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _disc(d, x, y - h * 0.2, h * 0.24, c, h * 0.2)
    _disc(d, x, y - h * 0.46, h * 0.17, c, h * 0.15)
    _disc(d, x, y - h * 0.36, h * 0.08, DARK)
    _bar(d, x, y - h * 0.5, x, y - h * 0.96, h * 0.08, WOOD)
    _box(d, x - h * 0.08, y - h * 1.06, x + h * 0.08, y - h * 0.92, DARK)


def flag(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    """A plain flag with a band: what the emblem's flag must be told from."""
    _bar(d, x - h * 0.36, y, x - h * 0.36, y - h * 1.1, h * 0.06, DARK)
    _box(d, x - h * 0.33, y - h * 1.08, x + h * 0.55, y - h * 0.48, c)
    _box(d, x - h * 0.33, y - h * 0.88, x + h * 0.55, y - h * 0.68, shade((250, 250, 250), rng.uniform(0.6, 1)))


def signpost(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _bar(d, x, y, x, y - h * 0.6, h * 0.07, (110, 110, 116))
    _disc(d, x, y - h * 0.76, h * 0.3, (250, 250, 250))
    _disc(d, x, y - h * 0.76, h * 0.25, c)
    _box(d, x - h * 0.17, y - h * 0.81, x + h * 0.17, y - h * 0.71, (250, 250, 250))


THINGS: dict[str, Thing] = {
    function.__name__: function
    for function in (
        car, bus, boat, house, tree, flower, ball, table, chair, cup, kite, balloon, dog, cat, bird, horse, fish, bicycle, umbrella,
        lamp, apple, guitar, flag, signpost,
    )
}  # fmt: skip


# People


def _person(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator, *, skirt: bool, hair_long: bool, cap: bool) -> None:
    skin, hair = SKIN[rng.integers(len(SKIN))], HAIR[rng.integers(len(HAIR))]
    trousers = list(COLOURS.values())[rng.integers(len(COLOURS))]
    stride = rng.uniform(0.03, 0.13) * h
    head, neck, hip = y - h * 0.88, y - h * 0.76, y - h * 0.42
    if hair_long:
        d.ellipse((x - h * 0.13, head - h * 0.14, x + h * 0.13, head + h * 0.22), fill=hair)
    for side in (-1, 1):
        _bar(d, x + side * h * 0.05, hip, x + side * stride, y - h * 0.02, h * 0.1, skin if skirt else trousers)
        _disc(d, x + side * (stride + h * 0.02), y - h * 0.02, h * 0.065, DARK, h * 0.035)
    for side in (-1, 1):
        lift = rng.uniform(-0.22, 0.3) if rng.random() < 0.6 else 0.3
        elbow = (x + side * h * 0.2, neck + h * (0.08 + lift * 0.5))
        hand = (x + side * h * rng.uniform(0.2, 0.32), neck + h * (0.1 + lift))
        d.line([(x + side * h * 0.1, neck + h * 0.05), elbow, hand], fill=shade(c, 0.86), width=max(2, round(h * 0.085)), joint="curve")
        _disc(d, hand[0], hand[1], h * 0.048, skin)
    if skirt:
        d.polygon([(x - h * 0.11, neck), (x + h * 0.11, neck), (x + h * 0.22, y - h * 0.28), (x - h * 0.22, y - h * 0.28)], fill=c)
    else:
        d.rounded_rectangle((x - h * 0.135, neck, x + h * 0.135, hip + h * 0.04), radius=h * 0.05, fill=c)
    _box(d, x - h * 0.035, neck - h * 0.05, x + h * 0.035, neck + h * 0.02, skin)
    _disc(d, x, head, h * 0.105, skin, h * 0.12)
    d.pieslice((x - h * 0.115, head - h * 0.135, x + h * 0.115, head + h * 0.09), 180, 360, fill=c if cap else hair)
    for side in (-1, 1):
        _disc(d, x + side * h * 0.04, head + h * 0.005, max(1.0, h * 0.014), (20, 20, 20))
    d.arc((x - h * 0.045, head + h * 0.01, x + h * 0.045, head + h * 0.07), 20, 160, fill=(150, 40, 40), width=max(1, round(h * 0.014)))


def man(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _person(d, x, y, h, c, rng, skirt=False, hair_long=False, cap=bool(rng.random() < 0.3))


def woman(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _person(d, x, y, h, c, rng, skirt=bool(rng.random() < 0.75), hair_long=True, cap=False)


def child(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _person(d, x, y, h * 0.8, c, rng, skirt=bool(rng.random() < 0.4), hair_long=bool(rng.random() < 0.4), cap=bool(rng.random() < 0.4))


def crowd(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    palette = list(COLOURS.values())
    for number, offset in enumerate((-0.62, 0.6, -0.3, 0.32, 0.0)):
        colour = c if number == 4 else palette[rng.integers(len(palette))]
        (man, woman, child)[rng.integers(3)](d, x + h * offset, y - h * 0.04 * (4 - number), h * rng.uniform(0.84, 1.0), colour, rng)


PEOPLE: dict[str, Thing] = {function.__name__: function for function in (man, woman, child, crowd)}


# Weapons: drawn about the middle (x, y - h / 2), at an angle


def sword(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    angle, k = rng.uniform(-0.9, 0.9), h * 0.62
    y -= h * 0.55
    blade = [(-0.1 * k, 0.25 * k), (0.1 * k, 0.25 * k), (0.1 * k, -0.8 * k), (0, -1.0 * k), (-0.1 * k, -0.8 * k)]
    d.polygon(_turned(x, y, angle, blade), fill=STEEL, outline=(60, 64, 72))
    d.line(_turned(x, y, angle, [(0, 0.2 * k), (0, -0.85 * k)]), fill=(120, 128, 140), width=max(1, round(k * 0.03)))
    d.polygon(_turned(x, y, angle, [(-0.36 * k, 0.2 * k), (0.36 * k, 0.2 * k), (0.36 * k, 0.32 * k), (-0.36 * k, 0.32 * k)]), fill=c)
    d.polygon(_turned(x, y, angle, [(-0.075 * k, 0.3 * k), (0.075 * k, 0.3 * k), (0.075 * k, 0.72 * k), (-0.075 * k, 0.72 * k)]), fill=DARK)
    (px, py), *_ = _turned(x, y, angle, [(0, 0.76 * k)])
    _disc(d, px, py, k * 0.1, c)


def gun(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    angle, k = rng.uniform(-0.35, 0.35), h * 0.6 * (1 if rng.random() < 0.5 else -1)
    y -= h * 0.55
    metal = shade((58, 60, 68), rng.uniform(0.7, 1.3))
    d.polygon(_turned(x, y, angle, [(-0.7 * k, -0.3 * k), (0.85 * k, -0.3 * k), (0.85 * k, 0.02 * k), (-0.7 * k, 0.02 * k)]), fill=metal)
    d.polygon(_turned(x, y, angle, [(-0.66 * k, 0), (-0.24 * k, 0), (-0.4 * k, 0.75 * k), (-0.84 * k, 0.75 * k)]), fill=c)
    guard = _turned(x, y, angle, [(-0.22 * k, 0), (0.16 * k, 0), (0.1 * k, 0.28 * k), (-0.28 * k, 0.28 * k), (-0.22 * k, 0)])
    d.line(guard, fill=metal, width=max(2, round(abs(k) * 0.08)))
    d.polygon(_turned(x, y, angle, [(0.72 * k, -0.3 * k), (0.82 * k, -0.3 * k), (0.82 * k, -0.4 * k), (0.72 * k, -0.4 * k)]), fill=metal)


def rifle(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    angle, k = rng.uniform(-0.8, 0.8), h * 0.85 * (1 if rng.random() < 0.5 else -1)
    y -= h * 0.5
    metal = shade((50, 52, 58), rng.uniform(0.8, 1.3))
    d.polygon(_turned(x, y, angle, [(-0.1 * k, -0.1 * k), (0.9 * k, -0.1 * k), (0.9 * k, 0.0), (-0.1 * k, 0.04 * k)]), fill=metal)
    stock = [
        (-0.9 * k, -0.02 * k),
        (-0.2 * k, -0.12 * k),
        (0.3 * k, -0.12 * k),
        (0.3 * k, 0.1 * k),
        (-0.2 * k, 0.14 * k),
        (-0.9 * k, 0.3 * k),
    ]
    d.polygon(_turned(x, y, angle, stock), fill=c)
    d.polygon(_turned(x, y, angle, [(0.02 * k, 0.1 * k), (0.18 * k, 0.1 * k), (0.12 * k, 0.46 * k), (-0.04 * k, 0.46 * k)]), fill=metal)
    d.polygon(
        _turned(x, y, angle, [(-0.05 * k, -0.22 * k), (0.3 * k, -0.22 * k), (0.3 * k, -0.13 * k), (-0.05 * k, -0.13 * k)]), fill=metal
    )


def axe(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    angle, k = rng.uniform(-0.7, 0.7), h * 0.6
    y -= h * 0.5
    d.polygon(_turned(x, y, angle, [(-0.08 * k, 0.95 * k), (0.08 * k, 0.95 * k), (0.08 * k, -0.9 * k), (-0.08 * k, -0.9 * k)]), fill=c)
    head = [
        (-0.1 * k, -0.8 * k),
        (0.3 * k, -0.85 * k),
        (0.66 * k, -1.05 * k),
        (0.72 * k, -0.6 * k),
        (0.66 * k, -0.12 * k),
        (0.3 * k, -0.4 * k),
        (-0.1 * k, -0.42 * k),
    ]
    d.polygon(_turned(x, y, angle, head), fill=STEEL, outline=(60, 64, 72))


WEAPONS: dict[str, Thing] = {function.__name__: function for function in (sword, gun, rifle, axe)}
WEAPON_COLOURS = ("black", "brown", "red", "blue", "yellow")


# The stand-in for a hate symbol: an invented sign that means nothing, five dots in a thick diamond


def emblem(d: Draw, x: float, y: float, r: float, ground: Colour, ink: Colour, turn: float) -> None:
    """The sign itself, `r` its radius, about its middle."""
    for size, fill in ((1.0, ink), (0.72, ground)):
        d.polygon(_turned(x, y, turn, [(0, -r * size), (r * size, 0), (0, r * size), (-r * size, 0)]), fill=fill)
    for px, py in _turned(x, y, turn, [(0, 0), (0, -0.4 * r), (0, 0.4 * r), (-0.4 * r, 0), (0.4 * r, 0)]):
        _disc(d, px, py, r * 0.15, ink)


def _inks(c: Colour, rng: np.random.Generator) -> tuple[Colour, Colour]:
    ground = (250, 250, 246) if c != COLOURS["white"] else (252, 226, 60)
    return ground, shade(DARK, rng.uniform(0.6, 1.2))


def emblem_flag(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _bar(d, x - h * 0.5, y, x - h * 0.5, y - h * 1.15, h * 0.06, DARK)
    _box(d, x - h * 0.47, y - h * 1.12, x + h * 0.62, y - h * 0.36, c)
    emblem(d, x + h * 0.075, y - h * 0.74, h * 0.36, *_inks(c, rng), rng.uniform(-0.3, 0.3))


def emblem_poster(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _box(d, x - h * 0.4, y - h * 1.05, x + h * 0.4, y - h * 0.1, c, DARK)
    emblem(d, x, y - h * 0.6, h * 0.38, *_inks(c, rng), rng.uniform(-0.3, 0.3))
    for row in range(2):
        _box(d, x - h * 0.28, y - h * (0.22 - row * 0.06), x + h * 0.28, y - h * (0.19 - row * 0.06), DARK)


def emblem_sign(d: Draw, x: float, y: float, h: float, c: Colour, rng: np.random.Generator) -> None:
    _bar(d, x, y, x, y - h * 0.5, h * 0.07, (110, 110, 116))
    emblem(d, x, y - h * 0.72, h * 0.44, *_inks(c, rng), rng.uniform(-0.3, 0.3))


EMBLEMS: dict[str, Thing] = {"flag": emblem_flag, "poster": emblem_poster, "sign": emblem_sign}


# Settings


def _gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    rows = np.linspace(np.array(top, np.float32), np.array(bottom, np.float32), 64).astype(np.uint8)
    return Image.fromarray(rows[:, None, :]).resize(size, Image.Resampling.BILINEAR)


SETTINGS: dict[str, tuple[Colour, Colour, Colour]] = {
    # sky above, sky at the horizon, ground
    "on a beach": ((110, 180, 240), (214, 236, 250), (236, 214, 160)),
    "in a meadow": ((120, 190, 245), (216, 238, 250), (110, 184, 84)),
    "in the snow": ((170, 190, 210), (226, 232, 238), (240, 244, 250)),
    "in a desert": ((240, 190, 120), (250, 226, 180), (222, 170, 100)),
    "on a city street": ((160, 176, 196), (206, 212, 220), (112, 112, 118)),
    "in a room": ((226, 206, 180), (226, 206, 180), (150, 104, 70)),
    "in a forest": ((60, 110, 80), (120, 160, 110), (76, 92, 48)),
    "by a lake": ((130, 190, 235), (200, 226, 240), (70, 130, 190)),
    "at night": ((14, 18, 48), (44, 48, 92), (36, 50, 44)),
    "in the mountains": ((140, 180, 225), (220, 230, 240), (130, 140, 110)),
}


def backdrop(size: tuple[int, int], setting: str, horizon: float, rng: np.random.Generator) -> Image.Image:
    """Sky, ground and clutter of a setting.

    Args:
        size: (width, height) in pixels.
        horizon: where the ground begins, as a share of the height.
    """
    width, height = size
    top, low, ground = SETTINGS[setting]
    tint = rng.uniform(0.88, 1.08)
    top, low, ground = shade(top, tint), shade(low, tint), shade(ground, rng.uniform(0.88, 1.08))
    edge = round(height * horizon)
    image = Image.new("RGB", size)
    image.paste(_gradient((width, max(1, edge)), top, low), (0, 0))
    image.paste(_gradient((width, max(1, height - edge)), shade(ground, 1.08), shade(ground, 0.82)), (0, edge))
    d = ImageDraw.Draw(image)
    _clutter(d, setting, width, height, edge, rng)
    return image


def _clutter(d: Draw, setting: str, width: int, height: int, edge: int, rng: np.random.Generator) -> None:
    unit = min(width, height)
    if setting == "at night":
        for _ in range(24):
            _disc(d, rng.uniform(0, width), rng.uniform(0, edge), unit * 0.006, (250, 250, 220))
        _disc(d, rng.uniform(0.1, 0.9) * width, edge * rng.uniform(0.15, 0.4), unit * 0.07, (246, 240, 200))
    elif setting in ("on a beach", "in a meadow", "by a lake", "in the mountains", "in a desert"):
        if setting in ("in the mountains", "by a lake"):
            for _ in range(4):
                x, rise = rng.uniform(0, width), rng.uniform(0.2, 0.5) * unit
                d.polygon([(x - rise, edge), (x, edge - rise), (x + rise, edge)], fill=shade((120, 130, 150), rng.uniform(0.7, 1.1)))
        else:
            _disc(d, rng.uniform(0.05, 0.95) * width, edge * rng.uniform(0.1, 0.5), unit * 0.07, (255, 236, 120))
        for _ in range(3):
            x, y = rng.uniform(0, width), rng.uniform(0.05, 0.6) * edge
            for number in range(3):
                _disc(d, x + (number - 1) * unit * 0.07, y, unit * 0.06, (250, 250, 252), unit * 0.035)
    if setting == "on a beach":
        _box(d, 0, edge - height * 0.07, width, edge, (60, 140, 210))
    elif setting == "on a city street":
        x = 0.0
        while x < width:
            wide, tall = rng.uniform(0.12, 0.28) * unit, rng.uniform(0.3, 0.8) * edge
            wall = shade((150, 140, 140), rng.uniform(0.6, 1.25))
            _box(d, x, edge - tall, x + wide, edge, wall)
            for row in range(int(tall / (unit * 0.1))):
                for column in range(2):
                    left = x + wide * (0.2 + 0.4 * column)
                    _box(
                        d,
                        left,
                        edge - tall + unit * (0.03 + 0.1 * row),
                        left + wide * 0.2,
                        edge - tall + unit * (0.08 + 0.1 * row),
                        (244, 232, 170),
                    )
            x += wide
        for number in range(6):
            _box(d, number * width / 6, height * 0.93, number * width / 6 + width * 0.08, height * 0.95, (236, 236, 236))
    elif setting == "in a room":
        x = rng.uniform(0.1, 0.7) * width
        _box(d, x, edge * 0.15, x + unit * 0.3, edge * 0.6, (180, 220, 246), (250, 250, 250))
        _box(d, 0, edge - unit * 0.02, width, edge, (240, 236, 226))
    elif setting == "in a forest":
        for _ in range(9):
            x, wide = rng.uniform(0, width), rng.uniform(0.03, 0.07) * unit
            _box(d, x, 0, x + wide, edge + rng.uniform(0, 0.05) * height, shade((70, 50, 34), rng.uniform(0.7, 1.2)))
        for _ in range(14):
            _disc(d, rng.uniform(0, width), rng.uniform(-0.05, 0.3) * height, unit * 0.1, shade((44, 100, 50), rng.uniform(0.7, 1.2)))
    if setting in ("in a meadow", "in a forest", "in the mountains", "in a desert", "in the snow"):
        tuft = {"in a desert": (150, 140, 80), "in the snow": (206, 216, 230)}.get(setting, (60, 120, 50))
        for _ in range(30):
            x, y = rng.uniform(0, width), rng.uniform(edge, height)
            _bar(d, x, y, x + rng.uniform(-0.01, 0.01) * unit, y - unit * 0.025, unit * 0.008, tuft)
    if setting == "by a lake":
        for _ in range(10):
            x, y = rng.uniform(0, width), rng.uniform(edge, height)
            _bar(d, x, y, x + unit * 0.12, y, unit * 0.008, (150, 196, 230))
