"""A recipe that goes on from another waits for it, starts from its average, and is trained again when it was."""

import dataclasses
from pathlib import Path

import pytest
import torch

from models.checkpoints import Checkpoint, save_checkpoint
from models.metrics_log import append_metrics
from models.recipes import RECIPES
from models.training import TrainSummary
from tasks import training
from tasks.config import RunConfig, run_config
from winnow.errors import MissingWeights

TRAIN = ("base-inpaint", "base-pretrain", "demo-base")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A launch that trains nothing, and what it was called for: (folder's name, what it starts from)."""
    calls: list[tuple[str, str | None]] = []

    def launch(config, shards, out_dir, *, num_workers, init_from):
        calls.append((Path(out_dir).name, init_from))
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


def test_a_missing_vocabulary_stops_a_run_before_anything_is_curated(tmp_path, monkeypatch):
    monkeypatch.setenv("WINNOW_GLIDE_BPE", str(tmp_path / "nowhere"))
    with pytest.raises(MissingWeights, match=r"nowhere/encoder\.json\.gz is not there"):
        training.find_vocabularies(run(tmp_path))
    with pytest.raises(MissingWeights, match=r"nowhere/encoder\.json\.gz is not there"):
        training.train_stage(run(tmp_path))
