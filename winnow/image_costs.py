"""What a decoder would spend on a file, told from its structure before anything is decoded.

A file of some kB can ask for seconds of work or for a gigabyte: decoders walk through chunks, blocks and scans one by one, however many
there are, some of them in Python, and a picture is in memory several times while it becomes an upright RGB JPEG. Real files are far
from these limits: 2,500 chunks of 8 kB make 20 MB of PNG, a progressive JPEG has about ten scans.
"""

from winnow.jpeg_segments import Jpeg

MAX_STEPS = 20_000
"""Chunks of a PNG; blocks of a GIF before its picture. Pillow takes 3 to 4 microseconds for each."""
MAX_SCANS = 100
MAX_EXIF_SEGMENTS = 32
"""Pillow joins them, each to a copy of all before it."""
SCANNED_PIXELS = 1_000_000_000
"""Scans times pixels: each scan goes over the whole picture, at 1 to 3 ns a pixel. Ten scans of 50 megapixels are half of it."""
MAX_RUN_LENGTH_BYTES = 1_000_000
"""Of a run-length coded BMP, which Pillow decodes in Python at 0.4 microseconds a byte."""


def costly_jpeg(jpeg: Jpeg) -> str | None:
    """Why it would take too long, if it would."""
    if jpeg.scans > MAX_SCANS or jpeg.scans * jpeg.width * jpeg.height > SCANNED_PIXELS:
        return f"{jpeg.scans:,} scans of {jpeg.width} x {jpeg.height} pixels"
    if jpeg.exif_segments > MAX_EXIF_SEGMENTS:
        return f"{jpeg.exif_segments:,} segments of EXIF"
    return None


def costly_file(data: bytes) -> str | None:
    """The same for other formats."""
    if data.startswith(b"\x89PNG") and _num_chunks(data) > MAX_STEPS:
        return f"more than {MAX_STEPS:,} chunks"
    if data.startswith(b"GIF8") and _num_blocks(data) > MAX_STEPS:
        return f"more than {MAX_STEPS:,} blocks before its picture"
    if data.startswith(b"BM") and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0") and len(data) > MAX_RUN_LENGTH_BYTES:
        return f"{len(data):,} bytes of run-length coding"
    return None


def decoding_bytes(form: str, mode: str, num_pixels: int, *, turned: bool, becomes_rgb: bool, progressive: bool) -> int:
    """Memory that a picture takes, at the moment it takes most.

    Args:
        form, mode: as Pillow calls them.
        turned: a second picture is made, upright.
        becomes_rgb: a further one is made, in RGB.
        progressive: of a JPEG: its coefficients are kept until the last scan.
    """
    # Pillow keeps RGB, too, in four bytes a pixel.
    stored = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    once_decoded = stored * (2 if turned else 1) + (4 if becomes_rgb else 0)
    while_decoding = stored + (2 * min(stored, 3) if progressive else 0)
    # WebP's decoder holds two canvases, and hands over a third; they stay until the file is closed.
    beside = 12 if form == "WEBP" else 0
    return num_pixels * (max(once_decoded, while_decoding) + beside)


def _num_chunks(data: bytes) -> int:
    """Of a PNG, as far as MAX_STEPS + 1."""
    position, found = 8, 0
    while position + 8 <= len(data) and found <= MAX_STEPS:
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        found += 1
    return found


def _num_blocks(data: bytes) -> int:
    """Of a GIF before its first picture, blocks of extensions one by one, as far as MAX_STEPS + 1."""
    position, found = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0), 0
    while position < len(data) and found <= MAX_STEPS and data[position] not in b",;":
        found += 1
        if data[position] != ord("!"):  # no block at all: decoders skip such bytes one by one
            position += 1
            continue
        position += 2
        while position < len(data) and data[position] and found <= MAX_STEPS:
            position += 1 + data[position]
            found += 1
        position += 1
    return found
