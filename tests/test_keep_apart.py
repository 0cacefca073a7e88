"""A training of another purpose is set aside, not lost, and taken up when its purpose comes back."""

import dataclasses
import logging

from models.recipes import RECIPES
from tasks.training import keep_apart

FIRST = {"recipe": {"lr": 0.1}, "shards": "a"}
SECOND = {"recipe": {"lr": 0.1}, "shards": "b"}


def test_checkpoints_on_other_shards_are_set_aside_and_come_back(tmp_path, caplog):
    folder = tmp_path / "base"
    with caplog.at_level(logging.WARNING):
        keep_apart(folder, FIRST)
        (folder / "step-000010").mkdir()
        keep_apart(folder, FIRST)
        assert (folder / "step-000010").is_dir() and not caplog.messages

        keep_apart(folder, SECOND)
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    (aside,) = (path for path in tmp_path.iterdir() if path != folder)
    assert (aside / "step-000010").is_dir() and str(aside) in caplog.text

    keep_apart(folder, FIRST)
    assert (folder / "step-000010").is_dir()
    keep_apart(folder, SECOND)
    assert not (folder / "step-000010").exists() and (aside / "step-000010").is_dir()


def test_a_kill_between_setting_aside_and_beginning_loses_nothing(tmp_path):
    folder = tmp_path / "base"
    keep_apart(folder, FIRST)
    (folder / "step-000010").mkdir()
    keep_apart(folder, SECOND)
    (folder / "run.json").unlink()
    keep_apart(folder, SECOND)
    keep_apart(folder, FIRST)
    assert (folder / "step-000010").is_dir()


def test_how_long_and_how_closely_watched_does_not_set_a_training_aside():
    config = RECIPES["base"]
    assert config.what_was_chosen() == dataclasses.replace(config, num_steps=1, log_every=50).what_was_chosen()
    assert config.what_was_chosen() != dataclasses.replace(config, lr=0.5).what_was_chosen()
    assert "seed" not in config.what_was_chosen()
