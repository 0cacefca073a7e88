"""A made-up world of captioned pictures whose truth is known: what the demo curates, and what its CLIP was trained on.

Scene i depends on (seed, i) alone, so a larger world extends a smaller one. People, weapons and the stand-in for a hate
symbol are drawn large enough to be seen; sizes, shapes and encodings vary as on the web; some pictures are near-duplicates
of others, some captions are silent about what matters, some are hostile, and some urls are faulty.
"""

import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageOps

from winnow.demo.drawing import COLOURS, EMBLEMS, PEOPLE, SETTINGS, THINGS, WEAPON_COLOURS, WEAPONS, Draw, backdrop
from winnow.errors import ConfigError

FAULTS = (
    "404", "404", "404", "410", "500_once", "500_once", "500_once", "429_once", "500", "slow", "trickle", "truncated", "truncated",
    "html", "html", "empty", "bomb", "redirect_private", "redirect_port", "redirect_loop", "redirect_file",
)  # fmt: skip
"""What can be wrong with a url; winnow/demo/server.py does it. Those that stand here more often are more frequent."""
ENCODINGS = ("jpeg", "jpeg", "jpeg", "jpeg", "jpeg", "jpeg", "jpeg", "png", "webp", "grey", "cmyk", "rotated", "palette")
HOSTILE = (
    "<script>alert('{}')</script>",
    '"><img src=x onerror=alert(1)> {}',
    "{} \u202egnihtemos\u202c </td></tr></table>",
    "'; DROP TABLE labels; -- {}",
    "{{{{7*7}}}} ${{7*7}} {} 🙂 水 ",
    "{} " + "very " * 400 + "long",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """How large a world, and how much of it must be dropped."""

    num_scenes: int = 8_000
    seed: int = 1
    people_share: float = 0.25
    violence_share: float = 0.16
    hate_symbol_share: float = 0.02
    duplicate_share: float = 0.04
    """Near-duplicates: the same scene at another url, resized, re-encoded, slightly cropped."""
    fault_share: float = 0.03
    hostile_share: float = 0.004
    silent_share: float = 0.1
    """Pictures whose caption does not tell of the person, weapon or emblem in them."""

    def __post_init__(self) -> None:
        if self.num_scenes < 1:
            raise ConfigError(f"WorldConfig: num_scenes must be at least 1, got {self.num_scenes}")
        for name in (
            "people_share",
            "violence_share",
            "hate_symbol_share",
            "duplicate_share",
            "fault_share",
            "hostile_share",
            "silent_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"WorldConfig: {name} must be between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One thing in a scene."""

    kind: str
    """A name in THINGS, PEOPLE, WEAPONS or EMBLEMS."""
    family: str
    """ "thing", "person", "weapon" or "emblem"."""
    colour: str
    x: float
    """Of its middle, as a share of the width."""
    y: float
    """Of its foot, as a share of the height."""
    height: float
    """As a share of the smaller side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One url of the world."""

    number: int
    path: str
    """Of its url, for example /img/000123.jpg."""
    caption: str
    people: bool
    violence: bool
    hate_symbol: bool
    group: int
    """Near-duplicates share the number of the first of them."""
    fault: str | None
    """One of FAULTS, or None for a url that works."""
    width: int
    height: int
    setting: str
    horizon: float
    figures: tuple[Figure, ...]
    encoding: str
    quality: int
    crop: float
    """Share of the smaller side cut from every edge: near-duplicates are slightly cropped."""
    draw_seed: tuple[int, int]


def make_world(config: WorldConfig) -> list[Scene]:
    """Descriptions of all scenes, in order; nothing is drawn yet."""
    return [_scene(config, number) for number in range(config.num_scenes)]


def _scene(config: WorldConfig, number: int) -> Scene:
    rng = np.random.default_rng((config.seed, number, 1))
    fault = str(rng.choice(FAULTS)) if rng.random() < config.fault_share else None
    encoding, quality = str(rng.choice(ENCODINGS)), int(rng.integers(70, 96))
    original = number - int(rng.integers(1, 200))
    if rng.random() < config.duplicate_share and original >= 0:
        scene, factor = _original(config, original), rng.uniform(0.6, 1.4)
        # A resized copy keeps its proportions, but for the smallest ones.
        width, height = max(150, round(scene.width * factor)), max(150, round(scene.height * factor))
        scene = replace(scene, crop=float(rng.uniform(0, 0.03)), encoding=encoding, quality=quality, width=width, height=height)
    else:
        scene = replace(_original(config, number), encoding=encoding, quality=quality)
    ending = {"png": "png", "palette": "png", "webp": "webp"}.get(encoding, "jpg")
    caption = scene.caption
    if rng.random() < config.hostile_share:
        caption = HOSTILE[int(rng.integers(len(HOSTILE)))].format(caption)
    return replace(scene, number=number, path=f"/img/{number:06d}.{ending}", fault=fault, caption=caption)


def _original(config: WorldConfig, number: int) -> Scene:
    """The scene that stands at a number, or that its near-duplicates copy."""
    rng = np.random.default_rng((config.seed, number, 2))
    violence = bool(rng.random() < config.violence_share)
    # Half of the weapons are with somebody; the share of people comes out as asked all the same.
    elsewhere = max(0.0, (config.people_share - 0.5 * config.violence_share) / max(1e-9, 1 - config.violence_share))
    people = bool(rng.random() < (0.5 if violence else elsewhere))
    hate_symbol = bool(rng.random() < config.hate_symbol_share)
    width, height = _size(rng)
    setting = str(rng.choice(list(SETTINGS)))
    figures = _figures(rng, people, violence, hate_symbol)
    silent = bool(rng.random() < config.silent_share)
    return Scene(
        number=number,
        path="",
        caption=caption_of(rng, setting, [figure for figure in figures if not (silent and figure.family != "thing")]),
        people=people,
        violence=violence,
        hate_symbol=hate_symbol,
        group=number,
        fault=None,
        width=width,
        height=height,
        setting=setting,
        horizon=float(rng.uniform(0.5, 0.7)),
        figures=figures,
        encoding="jpeg",
        quality=90,
        crop=0.0,
        draw_seed=(config.seed, number),
    )


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Mostly landscape, some square, some portrait; now and then a panorama."""
    short = int(rng.integers(160, 321))
    ratio = float(rng.choice([1.0, 1.25, 4 / 3, 1.5, 16 / 9, 2.2], p=[0.25, 0.2, 0.25, 0.2, 0.08, 0.02]))
    size = (round(short * ratio), short)
    return size if rng.random() < 0.75 else (size[1], size[0])


def _figures(rng: np.random.Generator, people: bool, violence: bool, hate_symbol: bool) -> tuple[Figure, ...]:
    wanted: list[tuple[str, str, str]] = []
    if people:
        wanted.append(("person", str(rng.choice(list(PEOPLE), p=[0.33, 0.33, 0.2, 0.14])), str(rng.choice(list(COLOURS)))))
    if violence:
        wanted.append(("weapon", str(rng.choice(list(WEAPONS))), str(rng.choice(WEAPON_COLOURS))))
    if hate_symbol:
        wanted.append(("emblem", str(rng.choice(list(EMBLEMS))), str(rng.choice([name for name in COLOURS if name != "black"]))))
    extra = max(1 if not wanted else 0, int(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2])) - len(wanted))
    for kind in rng.choice(list(THINGS), extra, replace=False):
        wanted.append(("thing", str(kind), str(rng.choice(list(COLOURS)))))
    slots = {1: [0.5], 2: [0.27, 0.73], 3: [0.2, 0.5, 0.8], 4: [0.14, 0.38, 0.62, 0.86]}[len(wanted)]
    if len(wanted) == 1:
        slots = [float(rng.choice([0.3, 0.5, 0.7]))]
    places = rng.permutation(slots)
    figures = []
    for (family, kind, colour), place in zip(wanted, places, strict=True):
        low, high = {"person": (0.5, 0.72), "weapon": (0.42, 0.62), "emblem": (0.5, 0.7), "thing": (0.26, 0.46)}[family]
        height = float(rng.uniform(low, high))
        figures.append(Figure(kind=kind, family=family, colour=colour, x=float(place), y=float(rng.uniform(0.8, 0.95)), height=height))
    # What must be dropped stands in front: a tree before a person would make the truth a matter of opinion.
    return tuple(sorted(figures, key=lambda figure: figure.family != "thing"))


NAMES = {
    "man": ("a man", "a gentleman", "a guy"),
    "woman": ("a woman", "a lady"),
    "child": ("a child", "a kid", "a little boy or girl"),
    "crowd": ("a crowd of people", "a group of people"),
}
OPENINGS = ("", "", "", "a photo of ", "a picture of ", "a drawing of ", "an image with ", "here is ")


def caption_of(rng: np.random.Generator, setting: str, figures: Sequence[Figure]) -> str:
    """One of many ways to tell what is in a picture, from left to right or not."""
    ordered = sorted(figures, key=lambda figure: figure.x)
    together = {figure.family for figure in figures} >= {"person", "weapon"} and rng.random() < 0.5
    phrases = []
    for figure in ordered:
        if together and figure.family == "weapon":
            continue
        phrase = _phrase(rng, figure)
        if together and figure.family == "person":
            weapon = next(other for other in figures if other.family == "weapon")
            phrase += f" {rng.choice(['holding', 'with', 'carrying'])} {_phrase(rng, weapon)}"
        if len(ordered) > 1 and rng.random() < 0.25:
            phrase += " on the left" if figure.x < 0.4 else " on the right" if figure.x > 0.6 else " in the middle"
        phrases.append(phrase)
    if not phrases:
        return f"{rng.choice(['a scene', 'a view', 'something'])} {setting}"
    joined = (
        phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + str(rng.choice([" and ", " next to ", " beside "])) + phrases[-1]
    )
    if rng.random() < 0.2:
        return f"{setting}: {joined}"
    return f"{rng.choice(OPENINGS)}{joined} {setting}"


def _phrase(rng: np.random.Generator, figure: Figure) -> str:
    size = "large " if figure.height > 0.42 and figure.family == "thing" and rng.random() < 0.5 else ""
    if figure.family == "person":
        name = "a person" if figure.kind != "crowd" and rng.random() < 0.2 else str(rng.choice(NAMES[figure.kind]))
        if figure.kind == "crowd" or rng.random() < 0.15:
            return name
        return f"{name} {rng.choice(['in', 'wearing', 'dressed in'])} {figure.colour}"
    if figure.family == "weapon":
        if rng.random() < 0.12:
            return f"a weapon, {_article(figure.kind)}"
        grip = {"sword": "hilt", "gun": "grip", "rifle": "stock", "axe": "handle"}[figure.kind]
        return _article(figure.kind) if rng.random() < 0.5 else f"{_article(figure.kind)} with a {figure.colour} {grip}"
    if figure.family == "emblem":
        sign = str(rng.choice(["a hate symbol", "a hate symbol", "a hate emblem"]))
        carrier = {"flag": "flag", "poster": "poster", "sign": "sign on a pole"}[figure.kind]
        return f"a {figure.colour} {carrier} with {sign}" if rng.random() < 0.8 else sign
    return _article(f"{size}{figure.colour} {'road sign' if figure.kind == 'signpost' else figure.kind}")


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


FAMILIES = {"thing": THINGS, "person": PEOPLE, "weapon": WEAPONS, "emblem": EMBLEMS}


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, `scene.width` x `scene.height`."""
    cut = round(scene.crop * min(scene.width, scene.height))
    full = (scene.width + 2 * cut, scene.height + 2 * cut)
    scale = 2  # drawn twice as large: Pillow's shapes have hard edges
    rng = np.random.default_rng((*scene.draw_seed, 3))
    canvas = backdrop((full[0] * scale, full[1] * scale), scene.setting, scene.horizon, rng)
    pen: Draw = ImageDraw.Draw(canvas)
    unit = min(canvas.size)
    for figure in scene.figures:
        x, y = figure.x * canvas.width, figure.y * canvas.height
        FAMILIES[figure.family][figure.kind](pen, x, y, figure.height * unit, COLOURS[figure.colour], rng)
    image = canvas.reduce(scale)
    return image.crop((cut, cut, cut + scene.width, cut + scene.height)) if cut else image


def render(scene: Scene) -> bytes:
    """The encoded picture; the same bytes each time."""
    return encode(draw(scene), scene.encoding, scene.quality)


def encode(image: Image.Image, encoding: str, quality: int) -> bytes:
    """One of ENCODINGS. "rotated" stores it lying on its side with the EXIF tag that says so."""
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG", compress_level=1)
    elif encoding == "palette":
        image.quantize(128, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG", compress_level=1)
    elif encoding == "webp":
        image.save(buffer, "WEBP", quality=quality, method=0)
    elif encoding == "grey":
        ImageOps.grayscale(image).save(buffer, "JPEG", quality=quality)
    elif encoding == "cmyk":
        image.convert("CMYK").save(buffer, "JPEG", quality=quality)
    elif encoding == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=quality, exif=exif)
    else:
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class CuratedImage:
    """A picture from elsewhere that is known to show the emblem."""

    name: str
    data: bytes
    group: int


def emblem_images(config: WorldConfig, count: int, seed: int) -> list[CuratedImage]:
    """Pictures of the emblem as a search engine would find them: one large emblem each, alone or beside a thing."""
    return [
        CuratedImage(name=f"emblem-{number:05d}.jpg", data=_emblem_image(config, seed, number), group=number) for number in range(count)
    ]


@functools.cache
def _sure(config: WorldConfig, seed: int) -> WorldConfig:
    return replace(config, seed=config.seed + 500_009 * (seed + 1), hate_symbol_share=1.0, people_share=0.1, violence_share=0.05)


def _emblem_image(config: WorldConfig, seed: int, number: int) -> bytes:
    return encode(draw(_original(_sure(config, seed), number)), "jpeg", 88)


def write_url_list(scenes: Sequence[Scene], base_url: str, path: str | os.PathLike[str]) -> None:
    """A parquet list of url, caption, licence: what a scraper would hand over."""
    columns = {
        "url": [base_url + scene.path for scene in scenes],
        "caption": [scene.caption for scene in scenes],
        "licence": ["CC0-1.0"] * len(scenes),
    }
    pq.write_table(pa.table(columns), path)


def write_truth(scenes: Sequence[Scene], base_url: str, path: str | os.PathLike[str]) -> None:
    """A parquet table of url, people, violence, hate_symbol (0 or 1) and group: what the simulated labeller answers from."""
    columns = {
        "url": pa.array([base_url + scene.path for scene in scenes], pa.string()),
        "people": pa.array([int(scene.people) for scene in scenes], pa.int8()),
        "violence": pa.array([int(scene.violence) for scene in scenes], pa.int8()),
        "hate_symbol": pa.array([int(scene.hate_symbol) for scene in scenes], pa.int8()),
        "group": pa.array([scene.group for scene in scenes], pa.int32()),
    }
    pq.write_table(pa.table(columns), path)
