"""From an encoded image to the crops that CLIP sees: the pixels of CLIP's own preprocessing (Pillow's), in half the time or less.

A plain JPEG is decoded by OpenCV, all else by Pillow; both hold libjpeg-turbo and give the same pixels. Resizing is torch's, on
bytes, bicubic with antialias: on real photos at most 2/255 from Pillow's, 0.004/255 on average. Decoders that scale while they
decode, and OpenCV's own resizing, are faster still and off by up to 140/255: features would no longer be CLIP's.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 200_000_000
"""Raw shards hold checked images; this only keeps a damaged header from asking for all memory."""
FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of JPEG frames that are decoded fast: baseline, extended and progressive, all Huffman-coded."""
OTHER_FRAMES = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
"""Lossless, differential or arithmetic-coded ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An image's pixels, and who decoded them."""

    pixels: np.ndarray
    """uint8 (height, width, 3), RGB."""
    by: str
    """"opencv" or "pillow"."""


def decode(data: bytes) -> Decoded | None:
    """The pixels of an encoded image, or None if the bytes are no image that can be decoded within MAX_PIXELS."""
    shape = jpeg_shape(data)
    if shape is not None and shape[0] * shape[1] > MAX_PIXELS:
        return None
    opencv = _opencv()
    if shape is not None and opencv is not None:
        flags = opencv.IMREAD_COLOR_RGB | opencv.IMREAD_IGNORE_ORIENTATION
        pixels = opencv.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None:
            return Decoded(pixels, "opencv")
        # What it refuses (a file cut short), Pillow judges again: one of them decides, whichever libraries are here.
    return _decode_with_pillow(data)


def jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG of three channels of 8 bits; None for any other file."""
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if marker in FRAMES:
            bits, channels = data[place + 4 : place + 5], data[place + 9 : place + 10]
            height, width = (int.from_bytes(data[place + at : place + at + 2], "big") for at in (5, 7))
            return (width, height) if (bits, channels) == (b"\x08", b"\x03") and width and height else None
        if marker in OTHER_FRAMES or 0xD0 <= marker <= 0xDA:  # its pixels begin, and no frame was announced
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


@cache
def _opencv() -> Any:
    """OpenCV, or None where it is not installed."""
    try:
        import cv2
    except ModuleNotFoundError:
        return None
    return cv2


def opencv_version() -> str | None:
    """Of the OpenCV that decodes here; None where Pillow does all of it."""
    opencv = _opencv()
    return None if opencv is None else str(opencv.__version__)


def _decode_with_pillow(data: bytes) -> Decoded | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return Decoded(np.array(image.convert("RGB")), "pillow")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # the closed list of what Pillow raises for damaged files


def resized(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """An image with its smaller side brought to `size_px`: uint8 (height, width, 3), RGB."""
    height, width = pixels.shape[:2]
    short = min(width, height)
    scaled = (max(size_px, round(height * size_px / short)), max(size_px, round(width * size_px / short)))
    if scaled == (height, width):
        return pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(image, size=scaled, mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).contiguous().numpy()


def crops_of(image: "Image.Image | np.ndarray", size_px: int) -> np.ndarray:
    """Crops at both ends and in the middle of the longer side, of the image with its smaller side resized to `size_px`.

    Args:
        image: RGB; as an array uint8 (height, width, 3).

    Returns:
        uint8 (3, size_px, size_px, 3), RGB; or (1, ...) for a square image, whose three crops coincide.
    """
    pixels = image if isinstance(image, np.ndarray) else np.array(image)  # a copy: torch wants memory it may write to
    return cut(resized(pixels, size_px), size_px)


def cut(small: np.ndarray, size_px: int) -> np.ndarray:
    """The crops of an image that has been `resized`; as `crops_of` returns them."""
    height, width = small.shape[:2]
    spare = max(height, width) - size_px
    if spare == 0:
        return small[None]
    starts = (0, spare // 2, spare)
    if width > height:
        return np.stack([small[:, start : start + size_px] for start in starts])
    return np.stack([small[start : start + size_px] for start in starts])


def difference_hash(grey: "Image.Image") -> int:
    """64 bits: is each pixel of a 9 x 8 miniature brighter than its right neighbour? Near-duplicates differ in few bits. Signed."""
    from PIL import Image

    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, :-1] > small[:, 1:])
    return int.from_bytes(bits.tobytes(), "big", signed=True)


def luminance(grey: "Image.Image") -> float:
    """Mean brightness, 0 to 1."""
    from PIL import Image

    return float(np.asarray(grey.resize((32, 32), Image.Resampling.BOX), dtype=np.float32).mean()) / 255
