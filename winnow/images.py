"""Checks one image from a stranger and brings it into the one form that is stored: an upright RGB JPEG.

Header before pixels: format, size and shape are checked before anything is decoded, so that a small file that unfolds to a
billion pixels costs nothing. Of an RGB JPEG that is upright already every bit of the picture is kept, and what is said beside it
(places, names: see winnow/jpeg_segments.py) is left out; all else (other modes and formats, rotated ones) is decoded and encoded
anew. JPEGs that are kept are followed segment by segment to their end mark, which finds those that were cut short; whether their
pixels decode is seen by the first who needs them, the embedding, or here if `decode_all` says so.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

from winnow.errors import ConfigError, WinnowError
from winnow.image_costs import costly_file, costly_jpeg, decoding_bytes
from winnow.jpeg_segments import MAX_JUNK_BYTES, MAX_SEGMENTS, Jpeg, read_jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded. Of animations the first frame."""
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"GIF8", b"BM")
JPEG_SIGNATURE = SIGNATURES[0]
ORIENTATION = 0x0112
UPRIGHT = 1
MAX_STORED_BYTES = 25_000_000
"""Of an image encoded anew: a PNG of one MB that repeats itself can become a JPEG of a hundred."""
ROWS = 256
"""Turned into RGB at a time."""

# What Pillow's decoders raise for hostile bytes. Anything else is a fault of ours or the machine's and not hidden.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


class ImageRefused(WinnowError):
    """An image is damaged or out of limits. As text: `slug: detail`."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(f"{slug}: {''.join(c if c.isprintable() else '?' for c in detail)[:300]}")
        self.slug = slug


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image must be like, and how those are stored that cannot stay as they are."""

    max_pixels: int = 50_000_000
    """Width times height."""
    max_decoding_bytes: int = 80_000_000
    """Of memory, for one picture that has to be encoded anew: 8 bytes a pixel of a turned photo, 4 of an RGB PNG, 16 of a WebP."""
    min_side_px: int = 32
    """Of the smaller side."""
    max_aspect_ratio: float = 20.0
    """Longer side by smaller side: what is resized to a fixed smaller side must not become endless."""
    jpeg_quality: int = 95
    """Of those encoded anew, 1 to 95, without chroma subsampling."""
    keep_metadata: bool = False
    """Whether EXIF, XMP, IPTC and comments stay in JPEGs that are kept as they came: they name places and people."""
    decode_all: bool = False
    """Whether JPEGs that are kept are decoded, too: finds the few that come to an end but cannot be decoded, at twice the cost."""

    def __post_init__(self) -> None:
        for name, least in (("max_pixels", 1), ("max_decoding_bytes", 1), ("min_side_px", 1), ("max_aspect_ratio", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 1 <= self.jpeg_quality <= 95:
            raise ConfigError(f"jpeg_quality must be between 1 and 95, got {self.jpeg_quality}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedImage:
    """An image as it is stored."""

    jpeg: bytes
    width: int
    """Pixels, upright."""
    height: int


def check_image(data: bytes, limits: ImageLimits) -> CheckedImage:
    """The image behind these bytes, as an upright RGB JPEG.

    Raises:
        ImageRefused: empty, not_an_image, too_many_pixels, too_small, too_elongated, too_costly, truncated or damaged.
    """
    import PIL.Image

    if not data:
        raise ImageRefused("empty", "no bytes")
    found = read_jpeg(data) if data.startswith(JPEG_SIGNATURE) else None
    if found is not None:
        _check_segments(found)
        check_shape(found.width, found.height, limits)
        _check_cost(costly_jpeg(found))
    if found is not None and _can_stay(found, limits):
        return CheckedImage(jpeg=data if limits.keep_metadata else found.picture, width=found.width, height=found.height)
    _check_cost(costly_file(data))
    # Pillow warns about strange metadata and large sizes; both are common, and sizes are checked here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _opened(data) as image:
                check_shape(image.width, image.height, limits)
                return _upright_jpeg(image, data, found, limits)
        except PIL.Image.DecompressionBombError as problem:
            raise ImageRefused("too_many_pixels", str(problem)) from None
        except PIL.UnidentifiedImageError:
            if data.startswith(SIGNATURES):
                raise ImageRefused("damaged", "its header cannot be read") from None
            raise ImageRefused("not_an_image", f"it starts with {data[:16]!r}") from None
        except DECODE_ERRORS as problem:
            raise _decode_refusal(problem, data) from None


def _check_segments(found: Jpeg) -> None:
    """Raises ImageRefused. Pillow goes through segments, and byte by byte through what is none, in Python: 20 MB would take a minute."""
    if found.junk > MAX_JUNK_BYTES:
        raise ImageRefused("damaged", f"more than {MAX_JUNK_BYTES:,} bytes between its segments belong to none")
    _check_cost(f"more than {MAX_SEGMENTS:,} segments" if found.segments > MAX_SEGMENTS else None)
    if not found.has_frame:
        raise ImageRefused("truncated", "it ends before its picture begins")


def _check_cost(why: str | None) -> None:
    if why is not None:
        raise ImageRefused("too_costly", why)


def _can_stay(found: Jpeg, limits: ImageLimits) -> bool:
    """Whether nothing but its segments need be looked at. All others go through the decoder."""
    upright = found.exif is None or _orientation_in(found.exif) == UPRIGHT
    return found.is_common and found.is_whole and upright and not limits.decode_all


def _orientation_in(exif: bytes) -> int:
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = PIL.Image.Exif()
            tags.load(exif)
            return _orientation(tags)
    except DECODE_ERRORS:
        return UPRIGHT


def check_shape(width: int, height: int, limits: ImageLimits) -> None:
    """Raises ImageRefused: too_many_pixels, too_small or too_elongated."""
    shape = f"{width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise ImageRefused("too_many_pixels", f"{shape}, {limits.max_pixels:,} allowed")
    if min(width, height) < limits.min_side_px:
        raise ImageRefused("too_small", f"{shape}, at least {limits.min_side_px} a side wanted")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageRefused("too_elongated", f"{shape}, sides of at most {limits.max_aspect_ratio:g} to 1 allowed")


def _upright_jpeg(image: Any, data: bytes, found: Jpeg | None, limits: ImageLimits) -> CheckedImage:
    import PIL.ImageOps

    width, height = image.size
    _check_memory(image, limits, turned=False)
    # MPO: a JPEG with further pictures behind it, as some cameras make them.
    orientation = _orientation_of(image)
    if found is not None and image.mode == "RGB" and orientation == UPRIGHT:
        jpeg = data if limits.keep_metadata else found.picture
        with image if jpeg is data else _opened(jpeg) as stored:
            # Only to see whether it decodes to the end: at an eighth of the size that takes a quarter less time.
            stored.draft("RGB", (width // 8, height // 8))
            stored.load()
        return CheckedImage(jpeg=jpeg, width=width, height=height)
    _check_memory(image, limits, turned=orientation != UPRIGHT)
    image.load()
    upright = PIL.ImageOps.exif_transpose(image) if orientation != UPRIGHT else image
    # Other modes' profiles do not describe the RGB they were turned into.
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "P") else None
    sink = _Sink()
    # Comments would be carried over from the original.
    _as_rgb(upright).save(sink, "JPEG", quality=limits.jpeg_quality, subsampling=0, icc_profile=profile, comment=b"")
    return CheckedImage(jpeg=sink.getvalue(), width=upright.width, height=upright.height)


def _check_memory(image: Any, limits: ImageLimits, *, turned: bool) -> None:
    """Raises ImageRefused: too_many_pixels."""
    size = decoding_bytes(
        image.format,
        image.mode,
        image.width * image.height,
        turned=turned,
        becomes_rgb=not _is_plain_rgb(image),
        progressive="progressive" in image.info,
    )
    if size > limits.max_decoding_bytes:
        kind = f"{image.format} of {image.width} x {image.height} pixels ({image.mode}{', turned' if turned else ''})"
        raise ImageRefused("too_many_pixels", f"to decode a {kind} takes {size:,} bytes, {limits.max_decoding_bytes:,} allowed")


class _Sink(io.BytesIO):
    """What is encoded anew, unless it becomes too large to be stored."""

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > MAX_STORED_BYTES:
            raise ImageRefused("too_costly", f"as a JPEG it would be larger than {MAX_STORED_BYTES:,} bytes")
        return super().write(data)


def _opened(data: bytes) -> Any:
    import PIL.Image

    return PIL.Image.open(io.BytesIO(data), formats=FORMATS)


def _orientation_of(image: Any) -> int:
    try:
        return _orientation(image.getexif())
    except DECODE_ERRORS:
        return UPRIGHT


def _orientation(exif: Any) -> int:
    """As the tags say; upright if they say something unheard of."""
    value = exif.get(ORIENTATION, UPRIGHT)
    return value if value in range(1, 9) else UPRIGHT


def _is_plain_rgb(image: Any) -> bool:
    return bool(image.mode == "RGB" and not image.has_transparency_data)


def _as_rgb(image: Any) -> Any:
    """8 bits, three channels, transparency on white; some rows at a time, for the steps between make up to four copies."""
    import PIL.Image

    if _is_plain_rgb(image):
        return image
    rgb = PIL.Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        rgb.paste(_rows_as_rgb(image.crop((0, top, image.width, min(top + ROWS, image.height)))), (0, top))
    return rgb


def _rows_as_rgb(image: Any) -> Any:
    import numpy as np
    import PIL.Image

    if image.mode.startswith("I"):  # 16 bits: Pillow would cut at 255 instead of scaling
        return PIL.Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _decode_refusal(problem: BaseException, data: bytes) -> ImageRefused:
    text = str(problem) or type(problem).__name__
    # WebP's decoder does not tell; the file says itself how long it is.
    short_webp = data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")
    cut = short_webp or isinstance(problem, EOFError | struct.error) or "truncated" in text.lower()
    return ImageRefused("truncated" if cut else "damaged", text)
