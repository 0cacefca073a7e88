"""`winnow sample` and `winnow edit`: from options to files, and wrong ones in a line before any work."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from flows.cli import main
from models.catalog import MODELS
from models.checkpoints import Checkpoint, save_checkpoint
from models.image_files import read_settings

sys.path.insert(0, str(Path(__file__).parent))
from parity import woken


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves in its checkpoints/demo-base."""
    torch.manual_seed(0)
    weights = dict(woken(MODELS["tiny-base"].build()).state_dict())
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "demo-base", 160, Checkpoint(weights, weights, {}, {"step": 160}))


@pytest.fixture
def winnow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs a command in a folder of its own; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["winnow", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_prompts_of_the_line_and_of_a_file_become_pngs_that_say_how_they_were_made(winnow, checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("two boats\n\n")
    options = ("--model", "tiny-base", "--weights", str(checkpoint), "--sampler", "dpm++2m", "--steps", "3", "--guidance", "2.5")
    further = ("--interval", "100", "900", "--seed", "7", "--samples", "2", "--device", "cpu", "--out", "drawn")
    assert winnow("sample", "a red barn", "--file", "prompts.txt", *options, *further) == (0, "6 images and grid.png in drawn\n")
    made = [read_settings(tmp_path / "drawn" / f"{number:05d}.png") for number in range(6)]
    assert [(settings["prompt"], settings["seed"]) for settings in made] == [
        ("a red barn", 7),
        ("a red barn", 8),
        ("two boats", 9),
        ("two boats", 10),
        ("", 11),
        ("", 12),
    ]
    assert {
        key: made[0][key] for key in ("model", "sampler", "steps", "guidance_scale", "guidance_interval", "upsampler", "guide", "edit")
    } == {
        "model": "tiny-base",
        "sampler": "dpm++2m",
        "steps": "snr3",
        "guidance_scale": 2.5,
        "guidance_interval": [100, 900],
        "upsampler": None,
        "guide": None,
        "edit": None,
    }
    assert len(made[0]["weights_sha256"]) == 64
    with Image.open(tmp_path / "drawn" / "grid.png") as grid:
        assert grid.size == (32 * 2 + 2, 32 * 3 + 4)


def test_the_best_are_kept_and_the_guide_is_named(winnow, checkpoint, tmp_path):
    options = ("--model", "tiny-base", "--weights", str(checkpoint), "--steps", "ddim2", "--device", "cpu", "--out", "drawn")
    code, said = winnow("sample", "a barn", *options, "--samples", "3", "--rerank", "1", "--clip", "demo", "--guide", "public")
    assert (code, said) == (0, "1 image and grid.png in drawn\n")
    made = read_settings(tmp_path / "drawn" / "00000.png")
    assert made["guide"] == {"model": "demo", "weights_sha256": made["rerank"]["weights_sha256"], "scale": 3.0}
    assert made["rerank"]["of"] == 3 and -1 <= made["clip_score"] <= 1


def test_a_picture_is_edited(winnow, checkpoint, tmp_path):
    Image.effect_mandelbrot((48, 48), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "picture.png")
    mask = Image.new("L", (48, 48), 0)
    mask.paste(255, (0, 0, 24, 48))
    mask.save(tmp_path / "mask.png")
    options = ("--image", "picture.png", "--model", "tiny-base", "--weights", str(checkpoint), "--steps", "4", "--device", "cpu")
    assert winnow("edit", "a barn", *options, "--mask", "mask.png", "--out", "filled")[0] == 0
    assert winnow("edit", *options, "--strength", "0.5", "--out", "redrawn")[0] == 0
    with Image.open(tmp_path / "picture.png") as picture, Image.open(tmp_path / "filled" / "00000.png") as filled:
        box = (16, 0, 32, 32)
        assert filled.crop(box).tobytes() == picture.resize((32, 32), Image.Resampling.BICUBIC).crop(box).tobytes()
    edited = read_settings(tmp_path / "filled" / "00000.png")
    assert edited["edit"]["fill_in"] == "replacement" and edited["edit"]["strength"] == 1 and edited["guidance_scale"] == 5
    assert len(edited["edit"]["image_sha256"]) == len(edited["edit"]["mask_sha256"]) == 64
    assert read_settings(tmp_path / "redrawn" / "00000.png")["edit"]["strength"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "x"), "no weights of base were given, and none are made up. Fetch them with `winnow weights fetch base"),
        (("sample", "x", "--sampler", "euler"), "there is no sampler 'euler'; models/samplers.py has ddpm, ddim, plms, dpm++2m"),
        (("sample", "x", "--model", "big"), "there is no model 'big'; models/catalog.py has base,"),
        (("sample", "x", "--steps", "1001"), "the process has 1000 steps, so that at most 1000 can be visited, not 1001"),
        (("sample", "x", "--guide", "taste"), "there is no guide 'taste'; choose from public, noised-clip"),
        (("sample", "x", "--samples", "2", "--rerank", "3"), "of 2 samples a prompt between 1 and 2 can be kept, not 3"),
        (("sample", "caf\udce9"), r"the prompt 'caf\udce9' is no text: it holds bytes that are not UTF-8"),
        (("sample", "x", "--seed", str(2**63)), "all samples' seeds less than 2^63"),
        (("sample",), "there is no prompt to draw for"),
        (("sample", "--file", "gone.txt"), "gone.txt cannot be read: No such file"),
        (("edit", "x", "--image", "gone.png", "--strength", "0.5"), "gone.png cannot be read: No such file"),
        (("edit", "x", "--image", "gone.png"), "nothing of the picture would be left: give a mask (--mask) or a strength below 1"),
        (("edit", "x", "--image", "gone.png", "--strength", "1.5"), "strength must be more than 0 and at most 1, got 1.5"),
    ],
)
def test_wrong_options_are_one_message_and_exit_code_2(winnow, arguments, message):
    code, said = winnow(*arguments, "--out", "drawn")
    assert code == 2 and message in said and said.count("\n") == 1
