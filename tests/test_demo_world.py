import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from winnow.demo.drawing import EMBLEMS, PEOPLE, SETTINGS, THINGS, WEAPONS
from winnow.demo.world import ENCODINGS, FAULTS, WorldConfig, draw, emblem_images, encode, make_world, render, write_truth, write_url_list
from winnow.errors import ConfigError

SMALL = WorldConfig(num_scenes=300, seed=11)


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def test_a_larger_world_begins_with_the_smaller_one() -> None:
    assert make_world(replace(SMALL, num_scenes=400))[:300] == make_world(SMALL)


def test_another_seed_is_another_world() -> None:
    assert {scene.caption for scene in make_world(SMALL)} != {scene.caption for scene in make_world(replace(SMALL, seed=12))}


def test_a_scene_gives_the_same_bytes_each_time() -> None:
    first, second = make_world(SMALL), make_world(SMALL)
    assert [render(scene) for scene in first[:20]] == [render(scene) for scene in second[:20]]


def test_the_drawing_is_the_one_the_shipped_clip_was_trained_on() -> None:
    # Who changes what is drawn must train the demo's CLIP anew (models/clip_training.py): it knows this world only.
    scenes = make_world(WorldConfig(num_scenes=8, seed=1))
    means = [np.asarray(draw(scene)).mean(axis=(0, 1)).round(1).tolist() for scene in scenes]
    assert np.abs(np.array(means) - np.array(KNOWN_MEANS)).max() <= 0.5


def test_every_encoding_comes_back_upright_and_looks_like_what_was_drawn() -> None:
    scene = next(scene for scene in make_world(SMALL) if scene.width > scene.height and scene.crop == 0)
    drawn = draw(scene)
    for encoding in sorted(set(ENCODINGS)):
        back = opened(encode(drawn, encoding, 90))
        assert back.size == drawn.size, encoding
        wanted = drawn.convert("L").convert("RGB") if encoding == "grey" else drawn
        error = np.abs(np.asarray(back, dtype=np.float32) - np.asarray(wanted, dtype=np.float32)).mean()
        # Turned the wrong way it would differ by about 50; conversion to CMYK and to 128 colours cost the most.
        assert error < 8, (encoding, error)


def test_a_rotated_file_lies_on_its_side_until_its_tag_is_obeyed() -> None:
    scene = next(scene for scene in make_world(SMALL) if scene.width > scene.height)
    with Image.open(io.BytesIO(encode(draw(scene), "rotated", 90))) as image:
        assert image.size == (scene.height, scene.width)


def test_every_file_has_the_size_its_scene_says() -> None:
    for scene in make_world(SMALL)[:40]:
        assert opened(render(scene)).size == (scene.width, scene.height), scene.path


def test_shares_come_out_as_asked() -> None:
    config = WorldConfig(num_scenes=4_000, seed=5, people_share=0.3, violence_share=0.2, hate_symbol_share=0.05, duplicate_share=0.1)
    scenes = make_world(config)
    for name in ("people", "violence", "hate_symbol"):
        share = np.mean([getattr(scene, name) for scene in scenes])
        wanted = getattr(config, f"{name}_share")
        # Four standard deviations, a little more for near-duplicates, which come in pairs.
        assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / len(scenes)) ** 0.5, (name, share)
    copies = np.mean([scene.group != scene.number for scene in scenes])
    assert 0.07 < copies < 0.13


def test_what_must_be_dropped_is_drawn_and_nothing_else_is_said_to_be() -> None:
    for scene in make_world(SMALL):
        families = {figure.family for figure in scene.figures}
        assert scene.people == ("person" in families)
        assert scene.violence == ("weapon" in families)
        assert scene.hate_symbol == ("emblem" in families)


def test_a_person_takes_half_of_the_smaller_side_and_stands_inside_the_picture() -> None:
    for scene in make_world(SMALL):
        for figure in scene.figures:
            if figure.family == "person":
                assert figure.height >= 0.5 and 0.1 <= figure.x <= 0.9 and figure.y <= 0.95


def test_everything_that_can_be_drawn_is_met() -> None:
    scenes = make_world(WorldConfig(num_scenes=2_000, hate_symbol_share=0.2))
    for family, kinds in (("thing", THINGS), ("person", PEOPLE), ("weapon", WEAPONS), ("emblem", EMBLEMS)):
        assert {figure.kind for scene in scenes for figure in scene.figures if figure.family == family} == set(kinds)
    assert {scene.setting for scene in scenes} == set(SETTINGS)
    assert {scene.encoding for scene in scenes} == set(ENCODINGS)


def test_near_duplicates_show_the_same_at_another_url_in_other_bytes() -> None:
    scenes = make_world(replace(SMALL, num_scenes=600, duplicate_share=0.3))
    pairs = [(scenes[scene.group], scene) for scene in scenes if scene.group != scene.number and scenes[scene.group].group == scene.group]
    assert len(pairs) > 20
    for original, copy in pairs[:10]:
        assert (original.people, original.violence, original.hate_symbol) == (copy.people, copy.violence, copy.hate_symbol)
        assert original.path != copy.path and render(original) != render(copy)
        small = [np.asarray(draw(scene).resize((16, 16)), dtype=np.float32) for scene in (original, copy)]
        assert np.abs(small[0] - small[1]).mean() < 12


def test_urls_are_unique_and_end_like_what_they_hold() -> None:
    scenes = make_world(SMALL)
    assert len({scene.path for scene in scenes}) == len(scenes)
    for scene in scenes[:60]:
        with Image.open(io.BytesIO(render(scene))) as image:
            assert image.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[scene.path.rsplit(".", 1)[1]]


def test_all_faults_are_met_and_about_as_many_as_asked() -> None:
    scenes = make_world(WorldConfig(num_scenes=3_000, fault_share=0.1))
    faulty = [scene.fault for scene in scenes if scene.fault is not None]
    assert set(faulty) == set(FAULTS)
    assert 240 < len(faulty) < 360


def test_some_captions_are_hostile_and_some_are_silent() -> None:
    scenes = make_world(WorldConfig(num_scenes=4_000))
    captions = [scene.caption for scene in scenes]
    assert any("<script>" in caption for caption in captions)
    assert any("\u202e" in caption for caption in captions)
    assert any(len(caption) > 1_500 for caption in captions)
    named = ("man", "guy", "woman", "lady", "child", "kid", "boy", "crowd", "group", "person")
    silent = [scene for scene in scenes if scene.people and not any(name in scene.caption for name in named)]
    assert 0.05 < len(silent) / sum(scene.people for scene in scenes) < 0.15


def test_captions_tell_pictures_apart() -> None:
    captions = [scene.caption for scene in make_world(WorldConfig(num_scenes=1_000, duplicate_share=0))]
    assert len(set(captions)) > 960


def test_curated_emblems_are_many_different_pictures_of_it_and_none_of_the_world(tmp_path) -> None:  # type: ignore[no-untyped-def]
    images = emblem_images(SMALL, 12, seed=1)
    assert images == emblem_images(SMALL, 12, seed=1)
    assert len({image.data for image in images}) == len({image.name for image in images}) == 12
    assert not {image.data for image in images} & {render(scene) for scene in make_world(SMALL)[:50]}
    assert {image.data for image in images}.isdisjoint(image.data for image in emblem_images(SMALL, 12, seed=2))
    for image in images:
        assert min(opened(image.data).size) >= 150


def test_url_list_and_truth_speak_of_the_same_urls(tmp_path) -> None:  # type: ignore[no-untyped-def]
    scenes = make_world(SMALL)
    write_url_list(scenes, "http://127.0.0.1:1", tmp_path / "urls.parquet")
    write_truth(scenes, "http://127.0.0.1:1", tmp_path / "truth.parquet")
    urls, truth = pq.read_table(tmp_path / "urls.parquet"), pq.read_table(tmp_path / "truth.parquet")
    assert urls.column_names == ["url", "caption", "licence"]
    assert urls["url"].to_pylist() == truth["url"].to_pylist()
    assert urls["url"][0].as_py() == "http://127.0.0.1:1" + scenes[0].path
    assert truth["people"].to_pylist() == [int(scene.people) for scene in scenes]
    assert str(truth.schema.field("violence").type) == "int8"
    assert json.loads(json.dumps(urls["caption"].to_pylist())) == [scene.caption for scene in scenes]


@pytest.mark.parametrize(("field", "value"), [("people_share", 1.2), ("fault_share", -0.1), ("silent_share", float("nan"))])
def test_a_share_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"WorldConfig: {field} must be between 0 and 1"):
        WorldConfig(**{field: value})


def test_an_empty_world_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_scenes must be at least 1, got 0"):
        WorldConfig(num_scenes=0)


KNOWN_MEANS = [
    [181.6, 151.2, 128.9],
    [221.2, 177.3, 119.5],
    [185.2, 187.2, 174.2],
    [73.3, 101.8, 61.0],
    [132.7, 171.9, 203.4],
    [100.0, 110.7, 77.6],
    [221.2, 187.4, 126.8],
    [226.1, 183.3, 121.5],
]
"""RGB of the first pictures of world 1."""
