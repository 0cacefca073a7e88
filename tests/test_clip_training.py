import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import models.clip_training as clip_training
from models.clip_pool import names_of_things, shows
from models.clip_training import RECIPES, ClipTrainConfig, contrastive_loss, evaluate_clip, names_loss, train_clip
from winnow.demo.world import WorldConfig, make_world
from winnow.errors import ConfigError

TINY = dataclasses.replace(RECIPES["tiny"], threads=1)
ROUNDS = dataclasses.replace(TINY, first=dataclasses.replace(TINY, names_weight=0.0, sought_share=0.0))


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_training, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(clip_training, "evaluate_clip", functools.partial(evaluate_clip, num_scenes=300))


def test_a_killed_training_goes_on_to_the_very_weights_of_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = train_clip(TINY, str(tmp_path / "calm"), say=lambda line: None)
    assert set(metrics) == {"retrieval_r1_of_256"}

    kept = clip_training._checkpoint

    def killed_after(*arguments: object) -> None:
        kept(*arguments)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(clip_training, "_checkpoint", killed_after)
        with pytest.raises(Killed):
            train_clip(TINY, str(tmp_path / "killed"), say=lambda line: None)
    assert json.loads((tmp_path / "killed" / "checkpoint" / "state.json").read_text())["step"] == 2
    lines: list[str] = []
    train_clip(TINY, str(tmp_path / "killed"), say=lines.append)
    assert any("goes on at step 2" in line for line in lines)
    for name in ("demo_clip.safetensors", "demo_clip.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()

    # The facts beside the weights are what the embedder goes by.
    facts = json.loads((tmp_path / "calm" / "demo_clip.json").read_text())
    assert facts["sha256"] == hashlib.sha256((tmp_path / "calm" / "demo_clip.safetensors").read_bytes()).hexdigest()
    assert facts["model"] == TINY.architecture() and facts["recipe"]["steps"] == TINY.steps


def test_a_second_round_begins_with_the_first_and_does_not_repeat_it(tmp_path: Path) -> None:
    lines: list[str] = []
    train_clip(ROUNDS, str(tmp_path), say=lines.append)
    assert sum("rendering" in line for line in lines) == 2
    first = (tmp_path / "first" / "demo_clip.safetensors").read_bytes()
    assert first != (tmp_path / "demo_clip.safetensors").read_bytes()
    (tmp_path / "checkpoint" / "state.json").unlink()
    lines.clear()
    train_clip(ROUNDS, str(tmp_path), say=lines.append)
    assert sum("rendering" in line for line in lines) == 1
    assert (tmp_path / "first" / "demo_clip.safetensors").read_bytes() == first


def test_matching_pairs_cost_nothing_and_chance_costs_log_n() -> None:
    same = torch.eye(8)
    assert contrastive_loss(same, same, torch.tensor(100.0)).item() == pytest.approx(0, abs=1e-6)
    equal = torch.ones(8, 4)
    assert contrastive_loss(equal, equal, torch.tensor(100.0)).item() == pytest.approx(math.log(8))


def test_names_loss_counts_the_rare_yes_as_much_as_all_the_noes_and_leaves_out_the_unknown() -> None:
    images, names = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    shown = torch.tensor([[1.0, 0.0, 0.0, math.nan]])
    # Cosines 1, 0, 0 become logits 12, -4, -4; the last is unknown.
    wanted = math.log1p(math.exp(-12)) + math.log1p(math.exp(-4))
    assert names_loss(images, names, shown).item() == pytest.approx(wanted, rel=1e-4)


def test_names_of_a_square_picture_fit_all_its_crops_and_say_what_is_there() -> None:
    names = names_of_things()
    scenes = [scene for scene in make_world(WorldConfig(num_scenes=300)) if scene.width == scene.height]
    assert len(scenes) > 20
    for scene in scenes:
        shown = shows(scene)
        assert np.array_equal(shown[0], shown[1]) and np.array_equal(shown[0], shown[2])
        for name, truth in (("a person", scene.people), ("a weapon", scene.violence), ("a hate symbol", scene.hate_symbol)):
            assert shown[0, names.index(name)] == float(truth)


def test_what_stands_at_the_end_of_a_panorama_is_in_the_crop_of_that_end_only() -> None:
    names = names_of_things()
    scene = next(scene for scene in make_world(WorldConfig(num_scenes=300)) if scene.violence and not scene.people)
    weapon = next(figure for figure in scene.figures if figure.family == "weapon")
    for x, wanted in ((0.1, [1, 0, 0]), (0.5, [0, 1, 0]), (0.9, [0, 0, 1])):
        placed = dataclasses.replace(scene, width=600, height=200, figures=(dataclasses.replace(weapon, x=x, height=0.5),))
        assert shows(placed)[:, names.index("a weapon")].tolist() == wanted
        assert shows(placed)[:, names.index(f"a{'n' if weapon.kind == 'axe' else ''} {weapon.kind}")].tolist() == wanted
        assert not shows(placed)[:, names.index("a person holding a weapon")].any()
    between = dataclasses.replace(scene, width=600, height=200, figures=(dataclasses.replace(weapon, x=1 / 3, height=0.5),))
    assert np.isnan(shows(between)[:2, names.index("a weapon")]).all()


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = ClipTrainConfig(num_scenes=1_000, steps=1_000)
    shares = [clip_training._schedule(step, config) for step in range(1_000)]
    assert shares[0] == pytest.approx(0.01) and max(shares) == 1.0 and 0 < shares[-1] < 0.01
    assert shares[100:] == sorted(shares[100:], reverse=True)


def test_more_pictures_a_step_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_scenes \(100\) must be at least batch_size \(256\)"):
        ClipTrainConfig(num_scenes=100, steps=1)


def test_the_shipped_weights_are_those_their_facts_speak_of() -> None:
    folder = Path(clip_training.__file__).parent / "weights"
    facts = json.loads((folder / "demo_clip.json").read_text())
    data = (folder / "demo_clip.safetensors").read_bytes()
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["recipe_digest"] == clip_training.digest(RECIPES["demo"]), "the recipe was changed, its weights were not"
    assert len(data) < 10_000_000


def test_the_shipped_clip_tells_unseen_pictures_apart() -> None:
    from models.clip_embedder import DEMO, ClipConfig, load_clip, resolve_weights

    config = ClipConfig(model=DEMO)
    measured = evaluate_clip(load_clip(config, resolve_weights(config), "cpu"), num_scenes=300, seed=7_000_007)
    # 0.6 is what the demo needs; chance is 1 in 256.
    assert measured["retrieval_r1_of_256"] >= 0.6
