"""A recipe that goes on from another waits for it, starts from its average, and is trained again when it was."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoints import Checkpoint, save_checkpoint
from models.metrics_log import append_metrics
from models.recipes import RECIPES
from models.training import TrainSummary
from models.training_data import DataShare, read_data
from tasks import training
from tasks.config import RunConfig, read_config, run_config
from winnow.errors import ConfigError, MissingWeights, ShardError
from winnow.receipts import read_receipts
from winnow.storage import Storage

sys.path.insert(0, str(Path(__file__).parent))
from toy_shards import give_weights, make_shards

TRAIN = ("base-inpaint", "base-pretrain", "demo-base")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A launch that trains nothing, and what it was called for: (folder's name, what it starts from); with a GPU if it is told to."""
    calls: list[tuple[str, str | None]] = []

    def launch(config, shards, out_dir, *, num_workers, use_gpu, init_from):
        calls.append((Path(out_dir).name, init_from if use_gpu is None else f"gpu {use_gpu}"))
        weights = {"w": torch.tensor([float(config.num_steps)])}
        save_checkpoint(out_dir, 1, Checkpoint(weights, weights, {}, {"step": 1}))
        append_metrics(Path(out_dir), {"step": 1, "loss": 1.0})
        values = {field.name: 0 for field in dataclasses.fields(TrainSummary)}
        return TrainSummary(**{**values, "checkpoint": "step-000001", "device": "cpu"})

    monkeypatch.setattr(training, "launch", launch)
    monkeypatch.setattr(training, "start_ray", lambda workers: None)
    monkeypatch.setattr(training, "find_vocabularies", lambda config: None)
    monkeypatch.setattr("tasks.upstream.outputs_digest", lambda storage, stage: "shards")
    return calls


def run(folder: Path) -> RunConfig:
    values = {"workspace": str(folder), "manifest": "m.yaml", "embed": {"model": "demo"}, "train": TRAIN, "sample": {"recipe": "demo-base"}}
    return run_config(values)


def test_a_stage_waits_for_the_one_before_and_starts_from_it(tmp_path, launched):
    done = training.train_stage(run(tmp_path))
    assert [name for name, _ in launched] == ["base-pretrain", "demo-base", "base-inpaint"]
    starts = dict(launched)
    assert starts["base-inpaint"] == str(tmp_path / "checkpoints" / "base-pretrain" / "step-000001")
    assert starts["base-pretrain"] is starts["demo-base"] is None
    assert (len(done.partitions), done.ran, done.skipped) == (3, 3, 0)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(TRAIN)


def test_a_finished_run_trains_nothing_again_until_an_early_stage_changes(tmp_path, launched, monkeypatch):
    training.train_stage(run(tmp_path))
    again = training.train_stage(run(tmp_path))
    assert (len(launched), again.ran, again.skipped) == (3, 0, 3)
    monkeypatch.setitem(RECIPES, "base-pretrain", dataclasses.replace(RECIPES["base-pretrain"], seed=1))
    training.train_stage(run(tmp_path))
    assert [name for name, _ in launched[3:]] == ["base-pretrain", "base-inpaint"]


def test_whether_gpus_are_used_reaches_the_launch_and_trains_nothing_again(tmp_path, launched):
    config = dataclasses.replace(run(tmp_path), train=("demo-base",))
    training.train_stage(dataclasses.replace(config, train_gpu=True))
    assert training.train_stage(config).ran == 0
    assert launched == [("demo-base", "gpu True")]


def test_a_missing_vocabulary_stops_a_run_before_anything_is_curated(tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_GLIDE_BPE", str(tmp_path / "nowhere"))
    with pytest.raises(MissingWeights, match=r"nowhere/encoder\.json\.gz is not there"):
        training.find_vocabularies(run(tmp_path))
    with pytest.raises(MissingWeights, match=r"nowhere/encoder\.json\.gz is not there"):
        training.train_stage(run(tmp_path))


def mixed(folder: Path, share: float, **more) -> RunConfig:
    data = [{"shards": "own", "share": share}, {"shards": str(folder / "elsewhere" / "second"), "share": 1 - share}]
    values = {"workspace": str(folder), "manifest": "m.yaml", "embed": {"model": "demo"}, "train": ["demo-base", "demo-noised-clip"]}
    return run_config({**values, "sample": {"recipe": "demo-base"}, "train_data": {"demo-noised-clip": data}, **more})


def test_a_recipe_that_mixes_is_trained_again_when_shares_or_data_change_and_others_are_not(tmp_path, launched):
    make_shards(tmp_path / "shards" / "own", counts=(8,))
    second = make_shards(tmp_path / "elsewhere" / "second", counts=(8,), seed=1)
    training.train_stage(mixed(tmp_path, 0.25))
    assert training.train_stage(mixed(tmp_path, 0.25)).ran == 0
    training.train_stage(mixed(tmp_path, 0.5))
    make_shards(Path(second), counts=(9,), seed=2)
    training.train_stage(mixed(tmp_path, 0.5))
    assert [name for name, _ in launched] == ["demo-base", "demo-noised-clip", "demo-noised-clip", "demo-noised-clip"]
    (receipt,) = read_receipts(Storage(str(tmp_path)), "train", ["demo-noised-clip"])
    shares = [DataShare(shards=str(tmp_path / "shards" / "own"), share=0.5), DataShare(shards=second, share=0.5)]
    assert receipt.inputs == {"shards": read_data(shares).digest}
    # Checkpoints of the other mixtures were set aside, none was gone on from.
    assert len(list((tmp_path / "checkpoints").glob("demo-noised-clip.*"))) == 2


def test_weights_of_samples_are_an_input_of_the_recipes_that_use_them(tmp_path, launched):
    own = make_shards(tmp_path / "shards" / "own", counts=(8,))
    config = mixed(tmp_path, 0.5, train_data={}, sample_weights=["demo-base"], shard={"dataset": "own"})
    with pytest.raises(ShardError, match=r"no weights/index\.json there"):
        training.train_stage(config)
    give_weights(own, lambda number: 1.0)
    training.train_stage(config)
    give_weights(own, lambda number: 0.5 + number % 2)
    training.train_stage(config)
    assert [name for name, _ in launched] == ["demo-base", "demo-noised-clip", "demo-base"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_data": {"base": [{"shards": "own", "share": 1.0}]}}, "'base' is not one of the recipes in train"),
        ({"sample_weights": ["base"]}, "'base' is not one of the recipes in train"),
        ({"train_data": {"demo-base": [{"shards": "own", "share": 0}]}}, "the share of 'own' must be more than 0"),
        (
            {"train_data": {"demo-base": [{"shards": "own", "part": 1}]}},
            r"demo-base.*part: unknown setting\. Known: shards, share",
        ),
    ],
)
def test_data_that_no_recipe_can_use_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        mixed(tmp_path, 0.5, **change)


def test_a_folder_of_shards_is_taken_relative_to_the_config(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "{workspace: w, manifest: m.yaml, embed: {model: demo}, train: [demo-base], sample: {recipe: demo-base},"
        " train_data: {demo-base: [{shards: own, share: 0.5}, {shards: ../other/shards/b, share: 0.5}]}}"
    )
    config = read_config(str(tmp_path / "run.yaml"))
    assert [one.shards for one in config.train_data["demo-base"]] == ["own", str(tmp_path / "../other/shards/b")]
