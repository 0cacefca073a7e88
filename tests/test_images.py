"""Images from strangers: what is kept as it is, what is encoded anew, what is refused."""

import contextlib
import io
import random
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from winnow.errors import ConfigError
from winnow.image_costs import costly_file, costly_jpeg
from winnow.images import DECODE_ERRORS, ImageLimits, ImageRefused, check_image
from winnow.jpeg_segments import read_jpeg

LIMITS = ImageLimits()
RED, GREEN = (200, 30, 40), (20, 180, 60)


def two_halves(size: tuple[int, int] = (80, 48)) -> Image.Image:
    """Red above, green below."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (0, size[1] // 2, size[0], size[1]))
    return image


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def noise(size: tuple[int, int] = (200, 200)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.getexif().get(0x0112, 1) == 1
        return np.asarray(image).astype(int)


def close(pixel: Any, color: tuple[int, ...]) -> bool:
    return bool(np.abs(np.asarray(pixel) - color).max() < 12)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 2}], ids=str)
def test_an_upright_rgb_jpeg_is_kept_byte_for_byte(options: dict[str, Any]) -> None:
    data = encoded(two_halves(), **options)
    image = check_image(data, LIMITS)
    assert (image.jpeg, image.width, image.height) == (data, 80, 48)


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def located() -> bytes:
    """EXIF with a place, a name and an upright orientation."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 1, "Ada Lovelace"
    exif.get_ifd(0x8825)[2] = (51.0, 30.0, 26.0)
    return exif.tobytes()


PRIVATE = {
    "EXIF with a place": segment(0xE1, located()),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>Ada Lovelace</x:xmpmeta>"),
    "IPTC": segment(0xED, b"Photoshop 3.0\0" + b"8BIM Ada Lovelace"),
    "comment": segment(0xFE, b"Ada Lovelace"),
    "a small copy": segment(0xE0, b"JFXX\0" + bytes(50)),
    "an unheard-of segment": segment(0xEB, b"Ada Lovelace"),
    "padding before it": b"\xff\xff" + segment(0xFE, b"Ada Lovelace"),
}


@pytest.mark.parametrize("decode_all", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"icc_profile": b"a profile" * 9_000}], ids=["baseline", "progressive", "profile"]
)
@pytest.mark.parametrize("private", PRIVATE.values(), ids=PRIVATE)
def test_what_is_said_beside_a_picture_is_left_out_and_the_picture_stays_bit_for_bit(
    private: bytes, options: dict[str, Any], decode_all: bool
) -> None:
    plain = encoded(noise((80, 48)), **options)
    behind = b"\0\0" + encoded(two_halves())  # as cameras put a second picture there
    for data in (plain[:2] + private + plain[2:] + behind, plain[:20] + private + plain[20:]):
        image = check_image(data, ImageLimits(decode_all=decode_all))
        assert image.jpeg in (plain, plain[:20] + b"\xff\xff" + plain[20:], plain[:2] + b"\xff\xff" + plain[2:])
        assert (pixels_of(image.jpeg) == pixels_of(data)).all()
        assert check_image(data, ImageLimits(keep_metadata=True, decode_all=decode_all)).jpeg == data


def test_nothing_private_is_left_in_a_picture_that_is_encoded_anew() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Ada Lovelace"
    for data in (
        encoded(two_halves(), exif=exif, comment=b"Ada Lovelace"),
        encoded(two_halves().quantize(4), "GIF", comment=b"Ada Lovelace"),
        encoded(two_halves(), "PNG", exif=exif),
    ):
        assert b"Lovelace" in data
        assert b"Lovelace" not in check_image(data, LIMITS).jpeg


def test_a_colour_profile_stays_with_the_colours_it_describes() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for data in (encoded(two_halves(), icc_profile=b"wide"), encoded(two_halves(), exif=turned, icc_profile=b"wide")):
        with Image.open(io.BytesIO(check_image(data, LIMITS).jpeg)) as image:
            assert image.info["icc_profile"] == b"wide"
    with Image.open(io.BytesIO(check_image(encoded(Image.new("CMYK", (64, 64)), icc_profile=b"ink"), LIMITS).jpeg)) as image:
        assert "icc_profile" not in image.info


def test_an_orientation_that_only_xmp_tells_is_heard() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = encoded(two_halves())
    image = check_image(plain[:2] + segment(0xE1, xmp) + plain[2:], LIMITS)
    assert (image.width, image.height) == (48, 80)


def test_a_jpeg_of_an_uncommon_kind_goes_through_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    load = ImageFile.ImageFile.load

    def counted(self: Any) -> Any:
        decoded.append(self)
        return load(self)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", counted)
    plain = encoded(two_halves())
    check_image(plain, LIMITS)
    assert decoded == []
    for data in (encoded(two_halves().convert("L")), plain[:20] + b"junk" + plain[20:], plain[:-2]):
        before = len(decoded)
        with contextlib.suppress(ImageRefused):
            check_image(data, LIMITS)
        assert len(decoded) > before


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_rotated_jpeg_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What the camera's sensor saw so that the turned picture is red above and green below, 80 wide.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = check_image(encoded(two_halves().transpose(undo[orientation]), exif=exif), LIMITS)
    pixels = pixels_of(image.jpeg)
    assert (image.width, image.height, pixels.shape) == (80, 48, (48, 80, 3))
    assert close(pixels[5, 40], RED)
    assert close(pixels[43, 40], GREEN)


MODES: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "grey JPEG": (encoded(Image.new("L", (64, 64), 100)), (100, 100, 100)),
    "CMYK JPEG": (encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0))), (254, 0, 0)),
    "RGB PNG": (encoded(Image.new("RGB", (64, 64), RED), "PNG"), RED),
    "clear PNG": (encoded(Image.new("RGBA", (64, 64), (*RED, 0)), "PNG"), (255, 255, 255)),
    "half clear PNG": (encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    "grey PNG with alpha": (encoded(Image.new("LA", (64, 64), (0, 0)), "PNG"), (255, 255, 255)),
    "palette PNG": (encoded(Image.new("RGB", (64, 64), RED).quantize(4), "PNG"), RED),
    "palette PNG with a clear colour": (encoded(Image.new("RGB", (64, 64), RED).quantize(4), "PNG", transparency=0), (255, 255, 255)),
    "black and white PNG": (encoded(Image.new("1", (64, 64), 1), "PNG"), (255, 255, 255)),
    "16-bit PNG": (encoded(Image.fromarray(np.full((64, 64), 40_000, np.uint16)), "PNG"), (155, 155, 155)),
    "dark 16-bit PNG": (encoded(Image.fromarray(np.full((64, 64), 200, np.uint16)), "PNG"), (0, 0, 0)),
    "WebP": (encoded(Image.new("RGB", (64, 64), RED), "WEBP", quality=95), RED),
    "WebP with alpha": (encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "WEBP", lossless=True), (255, 255, 255)),
    "GIF": (encoded(Image.new("RGB", (64, 64), GREEN), "GIF"), GREEN),
    "BMP": (encoded(Image.new("RGB", (64, 64), GREEN), "BMP"), GREEN),
    "animation": (
        encoded(Image.new("RGB", (64, 64), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), GREEN)]),
        RED,
    ),
}


@pytest.mark.parametrize(("data", "color"), MODES.values(), ids=MODES)
def test_everything_else_becomes_an_rgb_jpeg_of_the_same_picture(data: bytes, color: tuple[int, int, int]) -> None:
    image = check_image(data, LIMITS)
    pixels = pixels_of(image.jpeg)
    assert (image.width, image.height, pixels.shape) == (64, 64, (64, 64, 3))
    assert close(pixels[32, 32], color), pixels[32, 32]
    assert check_image(image.jpeg, LIMITS).jpeg == image.jpeg


@pytest.mark.parametrize("size", [(1_900, 100), (100, 1_900), (640, 32)])
def test_very_wide_and_very_tall_pictures_are_taken(size: tuple[int, int]) -> None:
    image = check_image(encoded(noise(size)), LIMITS)
    assert (image.width, image.height) == size


REFUSED: dict[str, tuple[bytes, ImageLimits, str]] = {
    "nothing": (b"", LIMITS, "empty: "),
    "html": (b"<html>", LIMITS, "not_an_image: it starts with b'<html>'"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", LIMITS, "not_an_image: "),
    "tiff, which is not decoded": (encoded(two_halves(), "TIFF"), LIMITS, "not_an_image: "),
    "postscript, which would start a program": (encoded(two_halves(), "EPS"), LIMITS, "not_an_image: "),
    "a JPEG's first bytes": (b"\xff\xd8\xff\xe0junk", LIMITS, "truncated: "),
    "a GIF's first bytes": (b"GIF89b" + bytes(90), LIMITS, "damaged: its header cannot be read"),
    "bomb": (png_header(30_000, 30_000), LIMITS, "too_many_pixels: "),
    "bomb below Pillow's own limit": (png_header(8_000, 8_000), LIMITS, "too_many_pixels: 8000 x 8000 pixels, 50,000,000 allowed"),
    "tracking pixel": (encoded(Image.new("RGB", (1, 1)), "GIF"), LIMITS, "too_small: 1 x 1 pixels, at least 32 a side wanted"),
    "ribbon": (encoded(Image.new("RGB", (700, 34))), LIMITS, "too_elongated: 700 x 34 pixels, sides of at most 20 to 1 allowed"),
    "half a JPEG": (encoded(noise())[:20_000], LIMITS, "truncated: image file is truncated"),
    "half a progressive JPEG": (encoded(noise(), progressive=True)[:20_000], LIMITS, "truncated: image file is truncated"),
    "half a grey JPEG": (encoded(noise().convert("L"))[:10_000], LIMITS, "truncated: image file is truncated"),
    "half a PNG": (encoded(noise(), "PNG")[:20_000], LIMITS, "truncated: "),
    "half a GIF": (encoded(noise(), "GIF")[:10_000], LIMITS, "truncated: "),
    "half a BMP": (encoded(noise(), "BMP")[:20_000], LIMITS, "truncated: "),
    "half a WebP": (encoded(noise(), "WEBP")[:8_000], LIMITS, "truncated: "),
    "a PNG without pixels": (png_header(64, 64), LIMITS, "(truncated|damaged): "),
}


@pytest.mark.parametrize(("data", "limits", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, limits: ImageLimits, message: str) -> None:
    with pytest.raises(ImageRefused, match=f"^{message}"):
        check_image(data, limits)


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\xff\xd0", b"\xff\xd8"], ids=["zeros", "padding", "restarts", "starts"])
def test_megabytes_of_nothing_are_refused_before_the_decoder_walks_through_them(filling: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(data: bytes) -> Any:
        raise AssertionError("opened")

    monkeypatch.setattr("winnow.images._opened", opened)
    nothing, plain = filling * 400_000, encoded(two_halves())
    with pytest.raises(ImageRefused, match=r"^(truncated|damaged): "):
        check_image(b"\xff\xd8\xff" + nothing, LIMITS)
    with pytest.raises(ImageRefused, match=r"^(truncated|damaged): "):
        check_image(plain[:20] + b"junk" + nothing + plain[20:], LIMITS)


def many_chunks(kind: bytes) -> bytes:
    """A PNG of 64 x 64 pixels with 20,000 chunks of nothing."""
    whole = encoded(two_halves((64, 64)), "PNG")
    return whole[:33] + (struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))) * 20_000 + whole[33:]


def behind_start(jpeg: bytes, segments: bytes) -> bytes:
    return jpeg[:2] + segments + jpeg[2:]


def many_scans(mode: str, times: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = encoded(two_halves((64, 64)).convert(mode), progressive=True)
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * times + whole[-2:]


RGB, GREY = encoded(two_halves()), encoded(two_halves().convert("L"))
RLE = b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + struct.pack("<IiiHHIIiiII", 40, 640, 640, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
GIF = encoded(two_halves().quantize(4), "GIF")
GIF_HEAD = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
COSTLY: dict[str, tuple[bytes, str]] = {
    "a PNG of many chunks": (many_chunks(b"teSt"), "more than 20,000 chunks"),
    "a PNG of many pieces": (many_chunks(b"IDAT"), "more than 20,000 chunks"),
    "a GIF of many comments": (GIF[:GIF_HEAD] + b"!\xfe\1a\0" * 10_001 + GIF[GIF_HEAD:], "more than 20,000 blocks before its picture"),
    "a GIF of one long comment": (GIF[:GIF_HEAD] + b"!\xfe" + b"\1a" * 20_001 + b"\0" + GIF[GIF_HEAD:], "more than 20,000 blocks"),
    "a GIF of what is no block": (GIF[:GIF_HEAD] + bytes(20_001) + GIF[GIF_HEAD:], "more than 20,000 blocks"),
    "a BMP that Python would decode": (RLE + b"\1\0" * 500_000, "1,001,078 bytes of run-length coding"),
    "a JPEG of many segments": (behind_start(RGB, b"\xff\xeb\0\2" * 10_001), "more than 10,000 segments"),
    "a grey JPEG of many comments": (behind_start(GREY, b"\xff\xfe\0\2" * 10_001), "more than 10,000 segments"),
    "a grey JPEG of many EXIFs": (behind_start(GREY, segment(0xE1, b"Exif\0\0") * 33), "33 segments of EXIF"),
    "a JPEG of many scans, which would be kept": (many_scans("RGB", 100), r"1\d\d scans of 64 x 64 pixels"),
    "a grey JPEG of many scans": (many_scans("L", 100), r"10\d scans of 64 x 64 pixels"),
}


@pytest.mark.parametrize(("data", "why"), COSTLY.values(), ids=COSTLY)
def test_a_file_made_to_cost_much_is_refused_before_it_is_decoded(data: bytes, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.images._opened", lambda data: pytest.fail("opened"))
    with pytest.raises(ImageRefused, match=f"^too_costly: {why}"):
        check_image(data, LIMITS)


def test_scans_cost_by_the_pixels_they_go_over() -> None:
    jpeg = read_jpeg(many_scans("RGB", 20))
    assert costly_jpeg(jpeg) is None
    large = replace(jpeg, width=7_000, height=7_000)
    assert costly_jpeg(large) == f"{jpeg.scans} scans of 7000 x 7000 pixels"
    assert costly_jpeg(replace(large, scans=12)) is None  # more than any encoder makes


def test_real_files_are_far_from_those_limits() -> None:
    photo = noise((400, 300))
    for data in (encoded(photo, "PNG"), encoded(photo.quantize(64), "GIF"), encoded(photo, "BMP")):
        assert costly_file(data) is None
    assert costly_file(encoded(two_halves().quantize(4), "GIF", comment=b"c" * 60_000)) is None


@pytest.mark.parametrize(
    ("data", "num_bytes"),
    [
        (encoded(two_halves((100, 100)), "PNG"), 4),
        (encoded(Image.new("RGBA", (100, 100)), "PNG"), 8),
        (encoded(Image.new("L", (100, 100)), "PNG"), 5),
        (encoded(Image.new("P", (100, 100)), "GIF"), 5),
        (encoded(Image.new("CMYK", (100, 100))), 8),
        (encoded(two_halves((100, 100)), "WEBP"), 16),
        (encoded(Image.new("L", (100, 100)), progressive=True), 5),
        (encoded(two_halves((100, 100)), exif=b"Exif\0\0MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"), 8),
    ],
)
def test_a_picture_that_would_take_too_much_memory_is_refused_before_it_is_decoded(
    data: bytes, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_image(data, ImageLimits(max_decoding_bytes=10_000 * num_bytes)).width == 100
    with pytest.raises(ImageRefused, match=f"^too_many_pixels: to decode a .* takes {10_000 * num_bytes:,} bytes"):
        check_image(data, ImageLimits(max_decoding_bytes=10_000 * num_bytes - 1))


def test_a_picture_that_stays_as_it_came_takes_no_memory_to_decode() -> None:
    assert check_image(RGB, ImageLimits(max_decoding_bytes=1)).jpeg == RGB


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_some_rows_at_a_time_make_the_same_picture_as_all_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise((60, 130)).convert("L") if mode == "I;16" else noise((60, 130)).convert(mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 251)
    elif mode in ("LA", "RGBA"):
        picture.putalpha(noise((60, 130)).convert("L"))
    data = encoded(picture, "JPEG" if mode == "CMYK" else "PNG", **({"transparency": 3} if mode == "P" else {}))
    at_once = check_image(data, LIMITS)
    monkeypatch.setattr("winnow.images.ROWS", 7)
    assert check_image(data, LIMITS) == at_once


def test_a_small_file_that_would_be_stored_as_a_large_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(), "PNG")
    size = len(check_image(data, LIMITS).jpeg)
    monkeypatch.setattr("winnow.images.MAX_STORED_BYTES", size)
    assert len(check_image(data, LIMITS).jpeg) == size
    monkeypatch.setattr("winnow.images.MAX_STORED_BYTES", size - 1)
    with pytest.raises(ImageRefused, match=f"^too_costly: as a JPEG it would be larger than {size - 1:,} bytes"):
        check_image(data, LIMITS)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ImageRefused, match="too_many_pixels"):
        check_image(png_header(8_000, 8_000), LIMITS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_scrambled_files_are_used_or_refused_and_nothing_else(form: str) -> None:
    rng = random.Random(0)
    whole = encoded(noise((48, 40)), form)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            # Mostly the header: that is where decoders stumble.
            data[rng.randrange(min(len(data), rng.choice((60, len(data)))))] = rng.randrange(256)
        try:
            assert pixels_of(check_image(bytes(data), ImageLimits(decode_all=True)).jpeg).ndim == 3
        except ImageRefused as problem:
            assert problem.slug in str(problem)
            continue
        # What the decoder takes is taken without it, too, and stored the same.
        assert check_image(bytes(data), LIMITS).jpeg == check_image(bytes(data), ImageLimits(decode_all=True)).jpeg


def test_an_error_that_is_no_fault_of_the_image_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not issubclass(MemoryError, DECODE_ERRORS)

    def exhausted(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
    with pytest.raises(MemoryError):
        check_image(encoded(two_halves(), "PNG"), LIMITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_pixels": 0}, "max_pixels must be at least 1, got 0"),
        ({"max_decoding_bytes": 0}, "max_decoding_bytes must be at least 1, got 0"),
        ({"min_side_px": 0}, "min_side_px must be at least 1, got 0"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio must be at least 1, got 0.5"),
        ({"jpeg_quality": 100}, "jpeg_quality must be between 1 and 95, got 100"),
    ],
)
def test_wrong_limits_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageLimits(**change)
