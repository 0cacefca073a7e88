"""From an encoded image to CLIP's crops: the pixels of Pillow's path, which CLIP was trained with, or near enough to them."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import crops
from models.crops import MAX_PIXELS, crops_of, cut, decode, difference_hash, jpeg_shape, luminance, resized
from winnow.demo.world import WorldConfig, make_world, render

PHOTOS = Path(os.environ.get("WINNOW_TEST_DATA", ".")) / "photos"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def by_pillow(data: bytes, size_px: int) -> np.ndarray:
    """CLIP's own preprocessing up to the crops: decoded, converted and resized by Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    scaled = tuple(max(size_px, round(side * size_px / short)) for side in image.size)
    return np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))


def check_pixels(files: list[bytes]) -> None:
    """The bounds on what CLIP sees, in steps of 1/255: at most 2 anywhere, 0.01 on average."""
    total, count = 0, 0
    for data in files:
        decoded = decode(data)
        assert decoded is not None and decoded.by == "opencv"
        assert np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        difference = np.abs(resized(decoded.pixels, 224).astype(int) - by_pillow(data, 224))
        assert difference.max() <= 2
        total, count = total + int(difference.sum()), count + difference.size
    assert total / count <= 0.01


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs real photos: WINNOW_TEST_DATA names their folder")
def test_on_real_photos_pixels_are_within_two_255ths_of_pillows() -> None:
    files = sorted(path for path in PHOTOS.rglob("*.jpg") if "vww" not in str(path))
    check_pixels([path.read_bytes() for path in files[:: len(files) // 60]])


def test_on_drawn_pictures_pixels_are_within_two_255ths_of_pillows() -> None:
    drawn = [render(scene) for scene in make_world(WorldConfig(num_scenes=24, seed=5)) if scene.fault is None]
    files = [encoded(Image.open(io.BytesIO(data)).convert("RGB"), quality=90) for data in drawn]
    noise = np.random.default_rng(0).integers(0, 255, (300, 401, 3), dtype=np.uint8)  # the worst case for a resampler
    check_pixels([*files, encoded(Image.fromarray(noise), quality=95), encoded(picture(320, 1100), progressive=True, subsampling=0)])


@pytest.mark.parametrize("size", [(640, 480), (224, 224), (225, 224), (100, 80), (30, 400)])
def test_the_smaller_side_comes_to_the_size_and_the_other_keeps_the_shape(size: tuple[int, int]) -> None:
    height, width = resized(np.array(picture(*size)), 224).shape[:2]
    assert min(height, width) == 224
    assert width / height == pytest.approx(size[0] / size[1], rel=0.005)


def test_a_wide_image_is_cropped_at_its_left_end_middle_and_right_end() -> None:
    stripes = np.zeros((32, 96, 3), np.uint8)
    stripes[:, 32:64], stripes[:, 64:] = 100, 200
    assert [crop[:, 4:28].mean() for crop in crops_of(Image.fromarray(stripes), 32)] == [0, 100, 200]


def test_a_tall_image_is_cropped_at_its_top_middle_and_bottom() -> None:
    stripes = np.zeros((96, 32, 3), np.uint8)
    stripes[32:64], stripes[64:] = 100, 200
    assert [crop[4:28].mean() for crop in crops_of(stripes, 32)] == [0, 100, 200]


def test_the_three_crops_of_a_square_image_coincide_and_are_computed_once() -> None:
    assert crops_of(picture(50, 50), 32).shape == (1, 32, 32, 3)
    assert cut(np.zeros((32, 33, 3), np.uint8), 32).shape == (3, 32, 32, 3)


@pytest.mark.parametrize(
    ("image", "form", "options"),
    [
        (picture(60, 40), "PNG", {}),
        (picture(60, 40), "WEBP", {"lossless": True}),
        (picture(60, 40).convert("CMYK"), "JPEG", {}),
        (picture(60, 40).convert("L"), "JPEG", {}),
        (picture(60, 40).convert("P"), "GIF", {}),
    ],
    ids=["png", "webp", "cmyk", "grey", "palette"],
)
def test_all_but_plain_jpegs_are_left_to_pillow(image: Image.Image, form: str, options: dict[str, object]) -> None:
    data = encoded(image, form, **options)
    assert jpeg_shape(data) is None
    decoded = decode(data)
    assert decoded is not None and decoded.by == "pillow"
    assert np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_without_opencv_pillow_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(301, 200))
    fast = decode(data)
    monkeypatch.setattr(crops, "_opencv", lambda: None)
    slow = decode(data)
    assert fast is not None and slow is not None
    assert (fast.by, slow.by) == ("opencv", "pillow") and np.array_equal(fast.pixels, slow.pixels)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_no_image(keep: float) -> None:
    data = encoded(picture(200, 150), quality=95)
    assert decode(data[: int(keep * len(data))]) is None


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\xff\xd8" + b"\xff" * 50, b"\xff\xd8\xff\xe0\x00\x00" * 9, b"GIF89a"]
)
def test_headers_that_lead_nowhere_are_no_image(data: bytes) -> None:
    assert jpeg_shape(data) is None and decode(data) is None


def test_a_header_that_announces_too_many_pixels_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(60, 40))
    place = data.index(b"\xff\xc0")
    bomb = data[: place + 5] + struct.pack(">HH", 60_000, 60_000) + data[place + 9 :]
    assert jpeg_shape(bomb) == (60_000, 60_000) and MAX_PIXELS < 60_000**2
    monkeypatch.setattr(crops, "_opencv", lambda: pytest.fail("was to be decoded"))
    assert decode(bomb) is None


def test_the_header_is_read_behind_padding_and_a_thumbnail() -> None:
    thumbnail = encoded(picture(16, 16))
    data = encoded(picture(60, 40), progressive=True)
    inside = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert jpeg_shape(data[:2] + inside + b"\xff\xff\xff" + data[2:]) == (60, 40)


def test_difference_hashes_of_a_reencoded_resized_image_are_close_and_of_others_far() -> None:
    def mark(image: Image.Image) -> int:
        return difference_hash(Image.open(io.BytesIO(encoded(image, quality=80))).convert("L"))

    def bits(one: int, other: int) -> int:
        return ((one ^ other) & (2**64 - 1)).bit_count()

    assert bits(mark(picture(200, 150, 1)), mark(picture(120, 90, 1))) <= 6
    assert bits(mark(picture(200, 150, 1)), mark(picture(200, 150, 2))) > 12


def test_white_has_brightness_one_and_half_black_half() -> None:
    assert luminance(Image.new("L", (40, 30), 255)) == 1
    half = np.zeros((64, 64), np.uint8)
    half[:32] = 255
    assert luminance(Image.fromarray(half)) == pytest.approx(0.5)
