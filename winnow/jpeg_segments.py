"""A JPEG without what is said beside its pixels: places, cameras, names, thumbnails. Nothing is decoded; the picture stays bit for bit.

Photos from the web carry EXIF with the place they were taken at, XMP and IPTC with names and addresses, a small copy of the
picture before it was cropped, and behind the picture further ones, or a film. Kept are the segments that decoders need
(tables, frames, scans, JFIF and Adobe's mark) and the colour profile (ICC).
"""

import re

ICC = b"ICC_PROFILE\0"
KEPT_MARKS = {0xE0: b"JFIF\0", 0xE2: ICC, 0xEE: b"Adobe"}
"""Marker -> how its content must begin to be kept."""
STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
SOI, EOI, SOS, COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""In the data of a scan: there 0xFF is followed by 0 or a restart mark."""


def without_metadata(jpeg: bytes) -> bytes:
    """The same picture alone; the very same object if there was nothing else."""
    pieces = [jpeg[:2]]
    position = kept_from = 2
    while position + 4 <= len(jpeg):
        if jpeg[position] != 0xFF:  # decoders skip what stands between two segments
            found = NEXT_MARKER.search(jpeg, position)
            position = found.start() if found else len(jpeg)
            continue
        marker = jpeg[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in STANDALONE:
            position += 2
            continue
        if marker == EOI:
            break
        end = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if _is_metadata(marker, jpeg[position + 4 : position + 16]):
            pieces.append(jpeg[kept_from:position])
            kept_from = end
        elif marker == SOS:
            found = NEXT_MARKER.search(jpeg, end)
            end = found.start() if found else len(jpeg)
        position = end
    end = position + 2 if jpeg[position : position + 2] == b"\xff\xd9" else len(jpeg)
    if len(pieces) == 1 and end == len(jpeg):
        return jpeg
    pieces.append(jpeg[kept_from:end])
    return b"".join(pieces)


def _is_metadata(marker: int, beginning: bytes) -> bool:
    if marker == COMMENT:
        return True
    return 0xE0 <= marker <= 0xEF and not (marker in KEPT_MARKS and beginning.startswith(KEPT_MARKS[marker]))
