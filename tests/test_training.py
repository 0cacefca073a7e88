"""A training resumes bit by bit, does not depend on how it is shared among workers, and refuses what it cannot go on from."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.batch_loss import batch_loss, beside
from models.catalog import MODELS, TINY_BASE, TINY_NOISED_CLIP, diffusion_model, noised_clip_model
from models.checkpoints import Checkpoint, checkpoint_name, load_weights, newest_checkpoint, save_checkpoint
from models.metrics_log import read_metrics
from models.recipes import RECIPES, TrainConfig
from models.training import step_seed, train
from models.training_data import read_index
from winnow.errors import CheckpointError, ConfigError, ShardError, WinnowError

sys.path.insert(0, str(Path(__file__).parent))
from toy_shards import make_shards

SETTINGS = {"num_steps": 6, "batch_size": 4, "lr": 1e-3, "warmup_steps": 2, "ema_rate": 0.9, "log_every": 1, "checkpoint_every": 2}

# The tiny models' tokens, in a tenth of their weights: checkpoints are written often here.
TEXT = dataclasses.replace(TINY_BASE.text, width=32, num_layers=1, num_heads=2)
SMALL_BASE = dataclasses.replace(TINY_BASE, image_size_px=16, channel_mult=(1, 1), head_channels=16, text=TEXT)
SMALL_CLIP = dataclasses.replace(TINY_NOISED_CLIP, image_size_px=16, image_width=36, image_layers=1, text_width=36, text_layers=1)
SMALL = (
    diffusion_model("small-base", SMALL_BASE, MODELS["tiny-base"].tokenizer),
    noised_clip_model("small-clip", SMALL_CLIP, MODELS["tiny-noised-clip"].tokenizer),
)


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in SMALL:
        monkeypatch.setitem(MODELS, spec.name, spec)


def base(**changes) -> TrainConfig:
    return TrainConfig(**{"model": "small-base", "caption_dropout": 0.3, **SETTINGS, **changes})


def clip(**changes) -> TrainConfig:
    return TrainConfig(model="small-clip", **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


class Stopped(Exception):
    """A kill, as a test can make one."""


def stop_at(step: int):
    def report(metrics):
        if metrics["step"] == step:
            raise Stopped

    return report


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(folder)]


@pytest.mark.parametrize("make", [base, clip])
def test_interrupted_and_resumed_ends_with_the_bytes_of_undisturbed(tmp_path, shards, make):
    config = make()
    whole = train(config, shards, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, shards, tmp_path / "broken", report=stop_at(5))
    assert newest_checkpoint(tmp_path / "broken").name == "step-000004"
    assert losses(tmp_path / "broken")[-1][0] == 5  # a step that was logged, but lost
    resumed = train(config, shards, tmp_path / "broken")
    assert files(tmp_path / "broken" / resumed.checkpoint) == files(tmp_path / "whole" / whole.checkpoint)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_training_is_left_alone(tmp_path, shards):
    first = train(clip(), shards, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert train(clip(), shards, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == before


def test_a_longer_training_goes_on_from_a_shorter_one(tmp_path, shards):
    train(clip(num_steps=4), shards, tmp_path / "out")
    train(clip(), shards, tmp_path / "out")
    train(clip(), shards, tmp_path / "whole")
    one, other = (load_file(tmp_path / folder / "step-000006" / "ema.safetensors") for folder in ("out", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_loss_falls(tmp_path, shards):
    config = base(num_steps=40, batch_size=8, lr=3e-3, log_every=5, checkpoint_every=40)
    summary = train(config, shards, tmp_path / "out")
    assert summary.final_loss < 0.6 * summary.first_loss
    assert (summary.steps, summary.images, summary.checkpoint, summary.device) == (40, 320, "step-000040", "cpu")
    json.dumps(dataclasses.asdict(summary))


def test_metrics_tell_what_a_report_draws(tmp_path, shards):
    train(base(num_steps=2), shards, tmp_path / "out")
    line = read_metrics(tmp_path / "out")[0]
    assert set(line) == {"step", "loss", "mse", "vb", "lr", "images_per_second"}
    assert line["lr"] == pytest.approx(5e-4)  # half way through two steps of warming up
    assert line["loss"] == pytest.approx(line["mse"] + line["vb"], abs=2e-6)


def test_only_the_newest_checkpoints_are_kept(tmp_path, shards):
    train(clip(keep_checkpoints=1), shards, tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["metrics.jsonl", "step-000006"]


def test_bfloat16_trains_float32_weights(tmp_path, shards):
    train(clip(precision="bfloat16", num_steps=2), shards, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "step-000002" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert losses(tmp_path / "out")[1][1] < 20


def test_gradient_checkpointing_trains_the_same_weights_and_may_be_switched_on_half_way(tmp_path, shards):
    train(base(), shards, tmp_path / "whole")
    train(base(num_steps=4), shards, tmp_path / "switched")
    train(base(gradient_checkpointing=True), shards, tmp_path / "switched")
    one, other = (load_file(tmp_path / folder / "step-000006" / "ema.safetensors") for folder in ("whole", "switched"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    with pytest.raises(ConfigError, match="gradient_checkpointing must be off for a noised CLIP"):
        clip(gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"lr": 2e-3}, r"lr 0\.001 instead of 0\.002"), ({"seed": 1}, "seed 0 instead of 1"), ({"num_steps": 4}, "6 steps already")],
)
def test_a_folder_with_another_training_is_refused(tmp_path, shards, change, message):
    train(clip(), shards, tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"holds a training with {message}.*Train into another folder"):
        train(clip(**change), shards, tmp_path / "out")


def test_a_folder_with_a_training_on_other_shards_is_refused(tmp_path, shards):
    train(clip(), shards, tmp_path / "out")
    others = make_shards(tmp_path / "others", seed=1)
    with pytest.raises(CheckpointError, match=r"other shards \(toy\) than .*others holds now"):
        train(clip(), others, tmp_path / "out")


def test_a_damaged_checkpoint_is_named(tmp_path, shards):
    train(clip(), shards, tmp_path / "out")
    path = tmp_path / "out" / "step-000006" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"step-000006/optimizer\.safetensors is damaged"):
        train(clip(num_steps=8), shards, tmp_path / "out")
    shutil.rmtree(path.parent)
    assert train(clip(num_steps=8), shards, tmp_path / "out").steps == 8


def test_a_half_written_checkpoint_does_not_count(tmp_path, shards):
    train(clip(), shards, tmp_path / "out")
    shutil.move(tmp_path / "out" / "step-000006", tmp_path / "out" / ".writing-step-000006")
    assert newest_checkpoint(tmp_path / "out").name == "step-000004"
    assert train(clip(), shards, tmp_path / "out").checkpoint == "step-000006"


def test_fine_tuning_starts_from_given_weights_and_knows_them_again(tmp_path, shards):
    train(clip(), shards, tmp_path / "first")
    start = str(tmp_path / "first" / "step-000006")
    config = clip(num_steps=2, lr=1e-12, warmup_steps=0)
    train(config, shards, tmp_path / "second", init_from=start)
    tuned, given = (load_file(folder / "ema.safetensors") for folder in (tmp_path / "second" / "step-000002", Path(start)))
    assert all(torch.allclose(tuned[name], given[name], atol=1e-6) for name in given)
    with pytest.raises(CheckpointError, match="other weights to start from"):
        train(config, shards, tmp_path / "second")
    with pytest.raises(CheckpointError, match="nowhere is not there"):
        train(config, shards, tmp_path / "third", init_from=str(tmp_path / "nowhere"))


def test_two_workers_learn_what_one_with_the_whole_batch_learns(tmp_path):
    result = subprocess.run([sys.executable, str(Path(__file__).parent / "two_workers.py")], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    differences = json.loads(result.stdout.splitlines()[-1])
    assert set(differences) == {"tiny-base", "tiny-noised-clip", "timesteps"}
    assert max(differences.values()) < 1e-5  # sums are taken in another order


def test_each_step_and_worker_draws_its_own_numbers():
    assert len({step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}) == 600


def test_dropped_captions_are_padding_only():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x_t, timesteps, tokens, mask):
            seen.append(mask)
            return torch.zeros(len(x_t), 6, 32, 32)

    spec = MODELS["tiny-base"]
    captions = spec.tokenizer(["a red barn"] * 400, 24)
    images = torch.zeros(400, 3, 32, 32)
    batch_loss(Spy(), spec, spec.schedule(), images, captions, generator=torch.Generator().manual_seed(0), caption_dropout=0.2)
    empty = ~seen[0].any(dim=1)
    assert 0.12 < empty.float().mean() < 0.28
    assert (seen[0][~empty].sum(dim=1) == 6).all()


@pytest.mark.parametrize("name", ["upsampler", "upsampler-inpaint", "base-inpaint"])
def test_what_stands_beside_x_t_is_made_from_the_image(name):
    images = torch.rand(50, 3, 16, 16) * 2 - 1
    shown = beside(MODELS[name], images, torch.Generator().manual_seed(0))
    if "upsampler" in name:
        torch.testing.assert_close(shown["low_res"][0, 0, 0, 0], images[0, 0, :4, :4].mean())
    if "inpaint" in name:
        assert shown["inpaint_mask"].shape == (50, 1, 16, 16)
        assert set(shown["inpaint_mask"].unique().tolist()) == {0, 1}
        assert 0.5 < shown["inpaint_mask"].mean() < 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "tiny"}, "no model 'tiny'"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"lr": 0.0}, r"lr must be more than 0, got 0\.0"),
        ({"ema_rate": 1.0}, r"ema_rate must be in \[0, 1\), got 1\.0"),
        ({"caption_dropout": -0.1}, r"caption_dropout must be in \[0, 1\)"),
        ({"precision": "float16"}, "precision must be float32 or bfloat16, got 'float16'"),
        ({"log_every": 4}, "checkpoint_every must be a multiple of log_every, got 2"),
        ({"model": "small-clip"}, "caption_dropout must be 0 for a noised CLIP"),
        ({"timestep_sampling": "often"}, "timestep_sampling must be uniform or loss-second-moment, got 'often'"),
        ({"model": "small-clip", "caption_dropout": 0.0, "timestep_sampling": "loss-second-moment"}, "must be uniform for a noised CLIP"),
        ({"min_snr_gamma": 0.0}, r"min_snr_gamma must be more than 0, or None, got 0\.0"),
        ({"model": "small-clip", "caption_dropout": 0.0, "min_snr_gamma": 5.0}, "min_snr_gamma must be None for a noised CLIP"),
    ],
)
def test_a_wrong_setting_is_named_with_its_range(change, message):
    with pytest.raises(ConfigError, match=message):
        base(**change)


def test_a_batch_that_cannot_be_shared_is_refused_before_any_work(tmp_path, shards):
    with pytest.raises(ConfigError, match="batch_size 4 cannot be shared evenly among 3 workers"):
        train(base(), shards, tmp_path / "out", world=3)
    with pytest.raises(ConfigError, match="32 samples, fewer than 64 workers"):
        train(base(batch_size=64), shards, tmp_path / "out", world=64)
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_stops_the_training_with_its_name(tmp_path):
    folder = make_shards(tmp_path / "shards", counts=(8,))
    path = tmp_path / "shards" / "00000.tar"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ShardError, match=r"00000\.tar"):
        train(base(), folder, tmp_path / "out")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_shares_its_batch_between_two_workers(recipe):
    assert RECIPES[recipe].batch_size % 2 == 0


def test_weights_of_another_model_are_refused_by_the_first_parameter_that_differs(tmp_path):
    save_file({"input_blocks.0.0.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w\.safetensors is not a tiny-base: final_ln\.bias is missing"):
        load_weights(tmp_path / "w.safetensors", MODELS["tiny-base"])
    weights = MODELS["tiny-base"].build().state_dict()
    save_file(weights | {"out.2.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"out\.2\.bias is \[3\] where \[6\] is expected"):
        load_weights(tmp_path / "w.safetensors", MODELS["tiny-base"])
    save_file(weights | {"aaa": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="aaa does not belong to it"):
        load_weights(tmp_path / "w.safetensors", MODELS["tiny-base"])


def test_released_pt_files_are_read_and_the_two_of_noised_clip_put_together(tmp_path):
    torch.manual_seed(0)
    clip = MODELS["tiny-noised-clip"].build()
    torch.save(clip.image.state_dict(), tmp_path / "image.pt")
    torch.save(clip.text.half().state_dict(), tmp_path / "text.pt")
    loaded = load_weights([tmp_path / "image.pt", tmp_path / "text.pt"], MODELS["tiny-noised-clip"])
    assert all(torch.equal(mine.float(), theirs.float()) for mine, theirs in zip(loaded.parameters(), clip.parameters(), strict=True))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


class Planted:
    """A pickle that would run code when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pt_file_with_more_than_tensors_is_refused_and_does_nothing(tmp_path):
    torch.save({"w": Planted(tmp_path / "was-here")}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt is not a file of tensors alone"):
        load_weights(tmp_path / "w.pt", MODELS["tiny-base"])
    assert not (tmp_path / "was-here").exists()
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="something else than named tensors"):
        load_weights(tmp_path / "w.pt", MODELS["tiny-base"])


def test_a_checkpoint_of_the_same_content_has_the_same_bytes(tmp_path):
    content = Checkpoint({"b": torch.ones(2), "a": torch.zeros(3)}, {"a": torch.ones(1)}, {"a/step": torch.tensor(3.0)}, {"step": 7})
    one, other = save_checkpoint(tmp_path / "one", 7, content), save_checkpoint(tmp_path / "other", 7, content)
    assert one.name == checkpoint_name(7) == "step-000007"
    assert files(one) == files(other)
    assert files(save_checkpoint(tmp_path / "one", 7, content)) == files(other)  # over itself


def test_the_index_digest_follows_the_data_not_the_place(tmp_path):
    one, other = make_shards(tmp_path / "one"), make_shards(tmp_path / "other")
    assert read_index(one).digest == read_index(other).digest
    assert read_index(one).digest != read_index(make_shards(tmp_path / "third", seed=2)).digest
    assert issubclass(CheckpointError, WinnowError)
