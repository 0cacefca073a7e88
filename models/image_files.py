"""Images of people's own and samples as files: reading pictures and masks for edits, writing PNGs that say how they were made, and a grid.

Pillow is imported where it is needed: the rest of models/ runs without it.
"""

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from winnow.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

SETTINGS = "winnow"
"""Keyword of the PNG text that holds a sample's settings, as JSON in ASCII."""
WHITE = 128
"""Brightness, 0 to 255, from which a pixel of a mask is white."""
GAP_PX = 2


def read_picture(path: str | Path) -> "Image.Image":
    """An upright RGB picture, transparency on white. Raises ConfigError if the file is not there or is no picture."""
    from PIL import Image, ImageOps

    from winnow.images import ImageLimits, ImageRefused, check_image

    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read: {problem.strerror}") from problem
    try:
        check_image(data, ImageLimits(min_side_px=1))
    except ImageRefused as problem:
        raise ConfigError(f"{path} is no picture that can be edited ({problem}); give a JPEG, PNG, WebP, GIF or BMP file") from problem
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Edited:
    """A picture to edit and its mask, squares of one size, with the digests of the files that they came from."""

    picture: "Image.Image"
    mask: "Image.Image | None"
    picture_sha256: str
    mask_sha256: str | None


def read_edited(image: str | Path, mask: str | Path | None) -> Edited:
    """Reads a picture and its mask, and takes the middle square of both. Raises ConfigError, also if they are not of one size."""
    picture = read_picture(image)
    pale = None if mask is None else read_picture(mask)
    if pale is not None and pale.size != picture.size:
        raise ConfigError(
            f"{image} is {picture.width} x {picture.height} pixels and its mask {mask} {pale.width} x {pale.height}: "
            "they must be of one size"
        )
    if picture.width != picture.height:
        logger.warning("%s is %d x %d pixels: its middle square is edited", image, picture.width, picture.height)
    return Edited(
        picture=middle_square(picture),
        mask=None if pale is None else middle_square(pale),
        picture_sha256=hashlib.sha256(Path(image).read_bytes()).hexdigest(),
        mask_sha256=None if mask is None else hashlib.sha256(Path(mask).read_bytes()).hexdigest(),
    )


def middle_square(picture: "Image.Image") -> "Image.Image":
    """The largest square in the middle of a picture: models make squares."""
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


def picture_to_tensor(picture: "Image.Image", size_px: int) -> Tensor:
    """A square picture at a model's size: (1, 3, size, size) in [-1, 1], resized as the released notebook does (bicubic, antialiased)."""
    from PIL import Image

    pixels = np.asarray(picture.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def mask_to_known(mask: "Image.Image", size_px: int) -> Tensor:
    """A square mask at a model's size: (1, 1, size, size), 1 where it is black and the picture stays, 0 where white is filled in.

    A pixel of the model counts as known only if everything in it is, so that nothing of what must go shines through.
    """
    white = torch.from_numpy(np.asarray(mask.convert("L")).copy() >= WHITE)
    return (F.adaptive_max_pool2d(white[None, None].float(), size_px) == 0).float()


def save_png(path: str | Path, pixels: Tensor, settings: Mapping[str, Any]) -> None:
    """Writes one image, (height, width, 3) uint8 RGB, with the settings it was made with. Same content, same bytes."""
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    # ASCII: a PNG's text is Latin-1, and prompts are in every script.
    text.add_text(SETTINGS, json.dumps(settings, sort_keys=True, ensure_ascii=True))
    partial = Path(f"{path}.part")
    Image.fromarray(pixels.cpu().numpy()).save(partial, "PNG", pnginfo=text)
    os.replace(partial, path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a sample was made with. Raises ConfigError if the file does not hold any."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            settings: dict[str, Any] = json.loads(image.info[SETTINGS])
    except (OSError, UnidentifiedImageError, KeyError, ValueError) as problem:
        raise ConfigError(f"{path} is no PNG that Winnow sampled: {problem}") from problem
    return settings


def save_grid(pixels: Tensor, path: str | Path, *, columns: int | None = None) -> None:
    """Writes images (n, height, width, 3) uint8 RGB side by side, in rows. None: about as many columns as rows."""
    from PIL import Image

    Image.fromarray(grid_of(pixels, columns or math.ceil(math.sqrt(len(pixels)))).numpy()).save(path, "PNG")


def grid_of(pixels: Tensor, columns: int) -> Tensor:
    """Images (n, height, width, 3) uint8 as one, with narrow white gaps; what the last row lacks is white."""
    count, height, width, _ = pixels.shape
    rows = math.ceil(count / columns)
    grid = torch.full((rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, 3), 255, dtype=torch.uint8)
    for number, image in enumerate(pixels.cpu()):
        top, left = (number // columns) * (height + GAP_PX), (number % columns) * (width + GAP_PX)
        grid[top : top + height, left : left + width] = image
    return grid
