"""Pictures of the demo's world rendered into memory, to train its CLIP on."""

import io
import multiprocessing
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.crops import crops_of
from winnow.demo.drawing import THINGS
from winnow.demo.world import Scene, WorldConfig, make_world, render

if TYPE_CHECKING:
    from PIL import Image

NAMES = (
    "a person", "a man", "a woman", "a child", "a crowd of people",
    "a weapon", "a sword", "a gun", "a rifle", "an axe", "a person holding a weapon",
    "a hate symbol", "a flag with a hate symbol", "a poster with a hate symbol", "a sign with a hate symbol",
)  # fmt: skip
"""What pictures are compared with one by one; the names of all harmless kinds of things follow (`names_of_things`)."""


def names_of_things() -> tuple[str, ...]:
    """Names of everything that `shows` knows, in the order of its columns."""
    return (*NAMES, *(f"a{'n' if kind[0] in 'aeiou' else ''} {kind}" for kind in THINGS))


@dataclass(frozen=True)
class Pool:
    """Rendered training pictures."""

    crops: np.ndarray
    """uint8 (n, 3, size, size, 3): each picture's three crops, RGB."""
    captions: list[str]
    shown: np.ndarray
    """float32 (n, 3, names): 1 where a crop shows what the name says, 0 where not, NaN where it is cut through."""


def render_pool(world: WorldConfig, size_px: int) -> Pool:
    """Renders a world on all CPUs, faults and all. About 83 kB a picture at 96 px."""
    scenes = make_world(world)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        rendered = pool.imap(_Render(size_px), scenes, chunksize=64)
        crops = np.empty((len(scenes), 3, size_px, size_px, 3), np.uint8)
        for row, picture in enumerate(rendered):
            crops[row] = picture
    shown = np.stack([shows(scene) for scene in scenes])
    return Pool(crops=crops, captions=[scene.caption for scene in scenes], shown=shown)


@dataclass(frozen=True)
class _Render:
    """A function of a scene that can be sent to another process."""

    size_px: int

    def __call__(self, scene: Scene) -> np.ndarray:
        crops = crops_of(decoded(scene), self.size_px)
        return np.broadcast_to(crops, (3, *crops.shape[1:])) if len(crops) == 1 else crops


def decoded(scene: Scene) -> "Image.Image":
    """A scene as the pipeline's embedder sees it: rendered, encoded, decoded, upright RGB."""
    return opened(render(scene))


def opened(data: bytes) -> "Image.Image":
    """The upright RGB picture in an encoded one."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def shows(scene: Scene) -> np.ndarray:
    """Which names fit which of a scene's three crops: float32 (3, names), as in `Pool.shown`."""
    names = names_of_things()
    column = {name: place for place, name in enumerate(names)}
    found = np.zeros((3, len(names)), np.float32)
    short = min(scene.width, scene.height)
    wide, high = scene.width / short, scene.height / short
    for start, row in zip((0.0, (max(wide, high) - 1) / 2, max(wide, high) - 1), found, strict=True):
        seen_of: dict[str, float] = {}
        for figure in scene.figures:
            middle = figure.x * wide if wide >= high else figure.y * high - figure.height / 2
            beyond = max(start - middle, middle - start - 1)
            # Its middle well inside: seen. Far outside: not. Between: nobody can say.
            seen = 1.0 if beyond <= -0.15 * figure.height else 0.0 if beyond > 0.7 * figure.height else np.nan
            seen_of[figure.family] = seen
            for name in _names(figure.kind, figure.family):
                row[column[name]] = seen
        if {"person", "weapon"} <= seen_of.keys():
            # Sure to be absent if one of them is; else unknown (NaN) if one of them is.
            pair = (seen_of["person"], seen_of["weapon"])
            row[column["a person holding a weapon"]] = 0.0 if 0.0 in pair else sum(pair) / 2
    return found


def _names(kind: str, family: str) -> tuple[str, ...]:
    if family == "person":
        return ("a person", "a crowd of people" if kind == "crowd" else f"a {kind}")
    if family == "weapon":
        return ("a weapon", f"a{'n' if kind[0] in 'aeiou' else ''} {kind}")
    if family == "emblem":
        return ("a hate symbol", f"a {kind} with a hate symbol")
    return (f"a{'n' if kind[0] in 'aeiou' else ''} {kind}",)
