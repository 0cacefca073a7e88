"""The Python API and the files it makes: models by name, the cascade in one call, edits of pictures, PNGs that say how they were made."""

import json
import os
import platform
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from models import precision
from models.catalog import MODELS
from models.checkpoints import Checkpoint, save_checkpoint
from models.generate import Loaded, Models, Runs, check_guide, edit, generate, load_guide, load_models, load_public_clip, public_clip_config
from models.image_files import grid_of, mask_to_known, picture_to_tensor, read_edited, read_picture, read_settings, save_grid, save_png
from models.sample_files import check_folder, read_prompts, write_samples
from models.sampling import SampleSettings, device_for
from winnow.errors import CheckpointError, ConfigError, MissingWeights

sys.path.insert(0, str(Path(__file__).parent))
from parity import small_model, small_spec, woken

FAST = SampleSettings(steps="ddim4")


def loaded(kind: str, size: int = 8) -> Loaded:
    spec = small_spec(kind, size)
    return Loaded(spec=spec, network=small_model(spec), sha256="0" * 64)


@pytest.fixture(scope="module")
def cascade() -> Models:
    return Models(base=loaded("inpaint"), upsampler=loaded("upsample_inpaint", 16))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The folder of a training of tiny-base, as a run leaves it in checkpoints/demo-base."""
    folder = tmp_path_factory.mktemp("checkpoints") / "demo-base"
    for step in (1, 2):
        torch.manual_seed(step)
        weights = dict(woken(MODELS["tiny-base"].build()).state_dict())
        save_checkpoint(folder, step, Checkpoint(weights, weights, {}, {"step": step}))
    return folder


def scene() -> Image.Image:
    picture = Image.new("RGB", (64, 64), (200, 30, 60))
    ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), fill=(20, 90, 220))
    return picture


def hole() -> Image.Image:
    mask = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=255)
    return mask


def test_small_and_large_in_one_call_and_each_image_as_if_alone(cascade):
    counts: list[int] = []
    images = generate(cascade, ["a", "b", "c"], seeds=[1, 2, 3], settings=FAST, runs=Runs(done=counts.append, device="cpu"))
    assert images.shape == (3, 16, 16, 3) and images.dtype == torch.uint8
    assert counts == [1, 2, 3, 1, 2, 3]
    assert torch.equal(generate(cascade, ["c"], seeds=[3], settings=FAST, runs=Runs(device="cpu"))[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_bfloat16_changes_an_image_by_its_rounding_alone_where_it_is_faster(cascade, monkeypatch):
    def drawn(allowed: precision.Precision) -> torch.Tensor:
        return generate(cascade, ["a"], seeds=[1], settings=FAST, runs=Runs(device="cpu", precision=allowed)).float()

    whole = drawn("float32")
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: False)
    assert torch.equal(drawn("bfloat16"), whole)
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: True)
    difference = (drawn("bfloat16") - whole).abs()
    assert 0 < difference.mean() < 8


@pytest.mark.parametrize(
    ("capability", "flags", "fast"),
    [
        ("AVX512", {"GenuineIntel", "avx512_bf16"}, False),
        ("AVX512", {"GenuineIntel", "avx512_bf16", "amx_bf16"}, True),
        ("AVX512", {"AuthenticAMD", "avx512_bf16"}, True),
        ("AVX512", {"AuthenticAMD"}, False),
        ("AVX2", {"AuthenticAMD", "avx512_bf16"}, False),
    ],
)
def test_which_cpus_are_faster_in_bfloat16(capability, flags, fast):
    assert precision.has_fast_cpu_bfloat16(capability, frozenset(flags)) == fast


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="not Linux")
def test_the_cpu_s_features_are_read():
    assert {"fpu", "sse2"} <= precision.cpu_flags() or platform.machine() != "x86_64"


def test_an_edited_picture_keeps_what_is_black_in_the_mask_at_both_sizes(cascade):
    for models in (cascade, Models(base=cascade.base), Models(base=loaded("base"), upsampler=loaded("upsample", 16))):
        size = models.image_size_px
        kept = picture_to_tensor(scene(), size)
        edited = edit(models, scene(), ["a", "b"], seeds=[1, 2], mask=hole(), settings=FAST)
        known = ((kept + 1) * 127.5).round().byte()[0].permute(1, 2, 0)
        assert torch.equal(edited[0, :, size // 2 :], known[:, size // 2 :])
        assert not torch.equal(edited[0, :, : size // 2], known[:, : size // 2])
        assert not torch.equal(edited[0], edited[1])


def test_a_model_that_was_trained_to_fill_in_does_unless_told_otherwise(cascade):
    base = Models(base=cascade.base)
    usual, trained, replaced = (
        edit(base, scene(), ["a"], seeds=[1], mask=hole(), fill_in=way, settings=FAST) for way in (None, "model", "replacement")
    )
    assert torch.equal(usual, trained) and not torch.equal(usual, replaced)


def test_a_picture_drawn_anew_stays_like_itself_if_little_noise_is_put_on_it():
    models = Models(base=loaded("base"))
    target = ((picture_to_tensor(scene(), 8)[0] + 1) * 127.5).permute(1, 2, 0)
    distance = []
    for strength in (0.1, 0.99):
        edited = edit(models, scene(), ["a"], seeds=[1], strength=strength, settings=SampleSettings(steps="20"))
        distance.append((edited[0].float() - target).abs().mean())
    assert distance[0] < 0.5 * distance[1]


def test_edits_of_pictures_that_do_not_fit_are_refused(cascade):
    for picture, mask, message in (
        (scene(), hole().resize((32, 32)), "64 x 64 pixels and its mask 32 x 32: they must be of one size"),
        (scene().crop((0, 0, 64, 32)), None, "64 x 32 pixels; give a square one"),
        (scene(), Image.new("L", (64, 64)), "black all over: there is nothing to fill in"),
        (scene(), None, "nothing of the image would be left"),
    ):
        with pytest.raises(ConfigError, match=message):
            edit(cascade, picture, ["a"], seeds=[1], mask=mask)
    with pytest.raises(ConfigError, match="small-base was not trained to fill in"):
        edit(Models(base=loaded("base")), scene(), ["a"], seeds=[1], mask=hole(), fill_in="model")


def test_models_come_from_checkpoints_and_folders_of_them(checkpoint):
    newest, first = (load_models("tiny-base", path) for path in (checkpoint, checkpoint / "step-000001"))
    assert newest.base.sha256 == load_models("tiny-base", checkpoint / "step-000002" / "ema.safetensors").base.sha256 != first.base.sha256
    images = generate(newest, ["a red barn"], seeds=[0], settings=SampleSettings(sampler="dpm++2m", steps="3"))
    assert images.shape == (1, 32, 32, 3)


def test_weights_are_never_made_up(checkpoint):
    with pytest.raises(
        MissingWeights, match=r"no weights of base were given, and none are made up\. Fetch them with `winnow weights fetch"
    ):
        load_models("base", None)
    with pytest.raises(MissingWeights, match="no weights of upsampler were given"):
        load_models("tiny-base", checkpoint, upsampler="upsampler")
    with pytest.raises(MissingWeights, match=r"no weights of tiny-noised-clip were given, and none are made up\. Train the model"):
        load_guide("tiny-noised-clip", scale=1)
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is not there"):
        load_models("tiny-base", "gone.safetensors")


def test_models_that_do_something_else_are_refused(checkpoint):
    for arguments, message in (
        ({"model": "nope", "weights": None}, "there is no model 'nope'"),
        ({"model": "upsampler", "weights": None}, "upsampler does not make images of captions alone; models/catalog.py has base"),
        ({"model": "tiny-base", "weights": checkpoint, "upsampler": "base"}, "base is no upsampler"),
        ({"model": "tiny-base", "weights": checkpoint, "upsampler_weights": "x"}, "not which upsampler they are of"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_models(**arguments)
    with pytest.raises(ConfigError, match="there is no guide 'nope'; choose from public, noised-clip"):
        check_guide("nope")
    with pytest.raises(ConfigError, match="must be named with its weights, as in ViT-B-16/openai"):
        public_clip_config("ViT-B-16")
    with pytest.raises(ConfigError, match="there is no device 'tpu9000'"):
        device_for("tpu9000")
    with pytest.raises(ConfigError, match="GPUs and no cuda:99; leave the device out, or name cpu"):
        device_for("cuda:99")


def test_the_best_samples_are_written_first_with_all_that_made_them(tmp_path):
    def painted(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        return torch.stack([torch.full((40, 40, 3), 20 * seed, dtype=torch.uint8) for seed in seeds])

    clip = load_public_clip("demo", device="cpu").clip
    hostile = 'ünï "; <script>alert(1)</script>\x00\x1b[31m ‮ 🙂\n%s {x}'
    count = write_samples(tmp_path, [hostile, "a red circle"], painted, {"model": "m"}, seed=5, num_samples=3, keep=2, clip=clip)
    assert count == 4 and sorted(path.name for path in tmp_path.iterdir()) == [*(f"{number:05d}.png" for number in range(4)), "grid.png"]
    made = [read_settings(tmp_path / f"{number:05d}.png") for number in range(4)]
    assert [settings["prompt"] for settings in made] == [hostile] * 2 + ["a red circle"] * 2
    assert {settings["seed"] for settings in made[:2]} < {5, 6, 7} and {settings["seed"] for settings in made[2:]} < {8, 9, 10}
    assert made[0]["clip_score"] >= made[1]["clip_score"] and made[2]["clip_score"] >= made[3]["clip_score"]
    with Image.open(tmp_path / "00002.png") as image:
        assert image.getpixel((0, 0)) == (20 * made[2]["seed"],) * 3
        assert json.loads(image.text["winnow"])["model"] == "m" and image.text["winnow"].isascii()
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (82, 82)


def test_many_prompts_are_drawn_in_parts_with_the_seeds_of_one_order(tmp_path):
    calls: list[tuple[int, int, int]] = []

    def painted(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        calls.append((len(prompts), seeds[0], seeds[-1]))
        return torch.zeros(len(prompts), 4, 4, 3, dtype=torch.uint8)

    assert write_samples(tmp_path, [str(number) for number in range(35)], painted, {}, seed=100, num_samples=4) == 140
    assert calls == [(64, 100, 163), (64, 164, 227), (12, 228, 239)]
    assert read_settings(tmp_path / "00139.png") == {"prompt": "34", "seed": 239}


def test_a_grid_shows_every_image_in_its_place():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 4, 5, 3)
    grid = grid_of(images, 2)
    assert grid.shape == (4 + 2 + 4, 5 + 2 + 5, 3)
    assert (grid[:4, :5] == 0).all() and (grid[:4, 7:] == 1).all() and (grid[6:, :5] == 2).all()
    assert (grid[4:6] == 255).all() and (grid[:, 5:7] == 255).all() and (grid[6:, 7:] == 255).all()


def test_the_same_image_makes_the_same_file(tmp_path):
    pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("a.png", "b.png"):
        save_png(tmp_path / name, pixels, {"prompt": "ü", "seed": 1})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == pixels.numpy().tobytes()
    save_grid(pixels[None], tmp_path / "grid.png")
    with pytest.raises(ConfigError, match=r"grid\.png is no PNG that Winnow sampled"):
        read_settings(tmp_path / "grid.png")


def test_a_pixel_is_known_only_if_all_of_it_is():
    mask = Image.new("L", (32, 32), 0)
    mask.putpixel((9, 0), 255)
    known = mask_to_known(mask, 8)
    assert known.shape == (1, 1, 8, 8) and known[0, 0, 0, 2] == 0 and known.sum() == 63
    assert mask_to_known(Image.new("L", (3, 3), 127), 8).sum() == 64


def test_pictures_are_read_upright_and_whole(tmp_path, caplog):
    sideways = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.jpg", exif=exif)
    assert read_picture(tmp_path / "sideways.jpg").size == (20, 40)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    edited = read_edited(tmp_path / "sideways.jpg", None)
    assert edited.picture.size == (20, 20) and edited.mask is None
    assert "20 x 40 pixels: its middle square is edited" in caplog.text


def test_files_that_are_no_pictures_or_prompts_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 20)
    scene().save(tmp_path / "scene.png")
    Image.new("L", (10, 10)).save(tmp_path / "small.png")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "prompts.txt").write_text("a barn\n\nzwei Boote\u2028am See\n")
    for name in ("text.png", "cut.png"):
        with pytest.raises(ConfigError, match=f"{name} is no picture that can be edited"):
            read_picture(tmp_path / name)
    with pytest.raises(ConfigError, match=r"gone\.png cannot be read: No such file"):
        read_picture(tmp_path / "gone.png")
    with pytest.raises(ConfigError, match=r"scene\.png is 64 x 64 pixels and its mask .*small\.png 10 x 10: they must be of one size"):
        read_edited(tmp_path / "scene.png", tmp_path / "small.png")
    with pytest.raises(ConfigError, match=r"latin\.txt is no UTF-8 text: .* at byte 3"):
        read_prompts(tmp_path / "latin.txt")
    with pytest.raises(ConfigError, match=r"empty\.txt holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    assert read_prompts(tmp_path / "prompts.txt") == ["a barn", "", "zwei Boote\u2028am See"]
    with pytest.raises(ConfigError, match="holds images already; name another folder"):
        check_folder(tmp_path)
    with pytest.raises(ConfigError, match="cannot be made a folder for samples"):
        check_folder(tmp_path / "text.png" / "out")
