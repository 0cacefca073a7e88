"""A JPEG read segment by segment, without decoding it: what picture it holds, whether it comes to its end, what is said beside it.

Photos from the web carry EXIF with the place they were taken at, XMP and IPTC with names and addresses, a small copy of the
picture before it was cropped, and behind the picture further ones, or a film. `Jpeg.picture` leaves that out; the picture
stays bit for bit. Kept are the segments that decoders need (tables, frames, scans, JFIF and Adobe's mark) and the colour
profile (ICC).
"""

import re
from dataclasses import dataclass

ICC = b"ICC_PROFILE\0"
EXIF = b"Exif\0\0"
KEPT_MARKS = {0xE0: b"JFIF\0", 0xE2: ICC, 0xEE: b"Adobe"}
"""Marker -> how its content must begin to be kept."""
STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
EOI, SOS, COMMENT, EXIF_SEGMENT = 0xD9, 0xDA, 0xFE, 0xE1
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Baseline, extended and progressive, Huffman coded: what every decoder reads."""
EIGHT_BITS_RGB = (b"\x08", b"\x03")
MAX_SEGMENTS = 10_000
"""Further ones are not looked at: they hold 64 kB each, and a real JPEG has a few hundred at most."""
MAX_JUNK_BYTES = 64 * 1024
"""The same for bytes that belong to none."""
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""In the data of a scan: there 0xFF is followed by 0 or a restart mark."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Jpeg:
    """What the segments of a JPEG tell."""

    width: int
    height: int
    is_common: bool
    """One frame of a common kind, eight bits, three components; at least one scan; nothing between segments that is none."""
    is_whole: bool
    """The end mark is there, behind the last scan."""
    has_frame: bool
    """A size is told before the data end."""
    segments: int
    scans: int
    junk: int
    """Bytes between segments that belong to none."""
    exif_segments: int
    exif: bytes | None
    """The first of them."""
    picture: bytes
    """The same picture alone; the very same object if there was nothing else."""


def read_jpeg(data: bytes) -> Jpeg:
    """Reads to the end mark, to the end of the data, or to MAX_SEGMENTS or MAX_JUNK_BYTES. Damage is no error: it shows in the fields."""
    pieces: list[bytes] = []
    frames, segments, scans, exifs, strange, junk, exif = [], 0, 0, 0, False, 0, None
    kept_from, position, size = 0, 2, len(data)
    while position + 4 <= size and segments <= MAX_SEGMENTS and junk <= MAX_JUNK_BYTES:
        marker = data[position + 1]
        if data[position] != 0xFF:  # decoders skip what stands between two segments
            strange = True
            found = NEXT_MARKER.search(data, position)
            skipped_to = found.start() if found else size
            junk, position = junk + skipped_to - position, skipped_to
        elif marker == 0xFF:  # padding
            position, junk = position + 1, junk + 1
        elif marker in STANDALONE:
            position, junk = position + 2, junk + 2
        elif marker == EOI:
            break
        else:
            segments += 1
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            if marker in FRAMES:
                frames.append((marker, data[position + 4 : position + 10]))
            elif marker == SOS:
                scans += 1
                found = NEXT_MARKER.search(data, end)
                end = found.start() if found else size
            elif _is_metadata(marker, data, position + 4):
                if marker == EXIF_SEGMENT and data.startswith(EXIF, position + 4):
                    exif = data[position + 10 : end] if exif is None else exif
                    exifs += 1
                strange = strange or b"tiff:Orientation" in data[position:end]  # XMP, which can turn a picture, too
                pieces.append(data[kept_from:position])
                kept_from = end
            position = end
    is_whole = data[position : position + 2] == b"\xff\xd9"
    end = position + 2 if is_whole else size
    kind, shape = frames[0] if frames else (0, b"")
    return Jpeg(
        width=int.from_bytes(shape[3:5], "big"),
        height=int.from_bytes(shape[1:3], "big"),
        is_common=len(frames) == 1
        and kind in COMMON_FRAMES
        and shape[:1] == b"\x08"
        and shape[5:] == b"\x03"
        and scans > 0
        and not strange,
        is_whole=is_whole,
        has_frame=bool(frames),
        segments=segments,
        scans=scans,
        junk=junk,
        exif_segments=exifs,
        exif=exif,
        picture=data if not pieces and end == size else b"".join((*pieces, data[kept_from:end])),
    )


def _is_metadata(marker: int, data: bytes, start: int) -> bool:
    if 0xE0 <= marker <= 0xEF:
        return not (marker in KEPT_MARKS and data.startswith(KEPT_MARKS[marker], start))
    return marker == COMMENT
