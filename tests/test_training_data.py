"""A training reads one dataset or a mixture, weighted or not; what it reads stands in its checkpoints."""

import dataclasses
import json
import logging
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.batch_loss import batch_loss
from models.catalog import MODELS, TINY_BASE, TINY_NOISED_CLIP, diffusion_model, noised_clip_model
from models.checkpoints import newest_checkpoint, read_state
from models.objectives import contrastive_loss
from models.recipes import TrainConfig
from models.shard_loader import batches
from models.training import train
from models.training_data import DataShare, read_data
from winnow.errors import CheckpointError, ConfigError, ShardError

sys.path.insert(0, str(Path(__file__).parent))
from toy_shards import give_weights, make_shards

SMALL_BASE = diffusion_model(
    "small-base",
    dataclasses.replace(
        TINY_BASE,
        image_size_px=16,
        channel_mult=(1, 1),
        head_channels=16,
        text=dataclasses.replace(TINY_BASE.text, width=32, num_layers=1, num_heads=2),
    ),
    MODELS["tiny-base"].tokenizer,
)
SMALL = noised_clip_model(
    "small-clip",
    dataclasses.replace(TINY_NOISED_CLIP, image_size_px=16, image_width=36, image_layers=1, text_width=36, text_layers=1),
    MODELS["tiny-noised-clip"].tokenizer,
)
CONFIG = TrainConfig(model="tiny-noised-clip", num_steps=4, batch_size=8, lr=1e-3, ema_rate=0.9, log_every=1, checkpoint_every=2)


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (SMALL, SMALL_BASE):
        monkeypatch.setitem(MODELS, spec.name, spec)


@pytest.fixture
def two(tmp_path) -> tuple[str, str]:
    return make_shards(tmp_path / "one", counts=(9, 8)), make_shards(tmp_path / "two", counts=(12,), seed=1)


def halves(*folders: str) -> list[DataShare]:
    return [DataShare(shards=folder, share=1 / len(folders)) for folder in folders]


def stream(data, **changes):
    return list(batches(data, **{"image_size_px": 16, "batch_size": 6, "first_batch": 0, "num_batches": 8, "seed": 0} | changes))


def test_a_mixture_gives_each_batch_samples_of_both_in_their_shares(two):
    data = read_data([DataShare(shards=two[0], share=2 / 3), DataShare(shards=two[1], share=1 / 3)])
    assert data.shares == (Fraction(2, 3), Fraction(1, 3))
    give_weights(two[0], lambda number: 1.0)
    give_weights(two[1], lambda number: 2.0)
    weighted = read_data([DataShare(shards=two[0], share=2 / 3), DataShare(shards=two[1], share=1 / 3)], weighted=True)
    found, plain = stream(weighted), stream(data)
    assert [batch.weights.tolist().count(2.0) for batch in found] == [2] * 8
    assert [batch.captions for batch in found] == [batch.captions for batch in plain]
    assert all(torch.equal(one.images, other.images) for one, other in zip(found, plain, strict=True))


def test_weights_stay_with_their_samples(two):
    give_weights(two[0], lambda number: 0.5 + number)
    data = read_data(two[0], weighted=True)
    seen = dict(zip(("".join(map(str, image.flatten()[:40].tolist())) for batch in stream(data) for image in batch.images),
                    (weight for batch in stream(data) for weight in batch.weights.tolist()), strict=True))  # fmt: skip
    assert sorted(seen.values()) == [0.5 + number for number in range(17)]


def test_one_dataset_named_as_a_mixture_is_that_dataset(two):
    alone, named = read_data(two[0]), read_data([DataShare(shards=two[0], share=1.0)])
    assert (alone.digest, alone.dataset, alone.weights_digest) == (named.digest, named.dataset, None)
    assert [batch.captions for batch in stream(alone)] == [batch.captions for batch in stream(named)]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.4), r"must add up to 1: 0\.5 \+ 0\.4 = 0\.9"),
        ((1.0, 1.0), r"must add up to 1: 1 \+ 1 = 2"),
        ((1e-8, 1 - 1e-8), "a share is too small: at least one in 1,000,000"),
    ],
)
def test_shares_that_do_not_fit_are_refused(two, shares, message):
    with pytest.raises(ConfigError, match=message):
        read_data([DataShare(shards=folder, share=share) for folder, share in zip(two, shares, strict=True)])


def test_a_share_of_nothing_and_a_dataset_named_twice_are_refused(two, tmp_path):
    with pytest.raises(ConfigError, match="must be more than 0 and at most 1, got 0"):
        DataShare(shards=two[0], share=0)
    copy = make_shards(tmp_path / "copy", counts=(9, 8))
    with pytest.raises(ConfigError, match="the same samples are mixed with themselves"):
        read_data(halves(two[0], copy))


def test_weights_that_are_missing_stale_or_damaged_are_told_apart(two):
    with pytest.raises(ShardError, match=r"no weights/index\.json there.* run `winnow weigh CONFIG`"):
        read_data(two[0], weighted=True)
    give_weights(two[0], lambda number: 1.0)
    assert read_data(halves(*two), weighted=True).unweighted == [two[1]]
    path = Path(two[0]) / "weights" / "00000.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ShardError, match=r"weights/00000\.npy is (damaged|not what)"):
        stream(read_data(two[0], weighted=True))
    path.write_bytes(whole[:-1] + b"\x40")
    with pytest.raises(ShardError, match=r"weights/00000\.npy is not what weights/index\.json says"):
        stream(read_data(two[0], weighted=True))
    index = Path(two[0]) / "index.json"
    index.write_text(index.read_text().replace(json.loads(index.read_text())["shards"][1]["sha256"], "0" * 64))
    with pytest.raises(ShardError, match=r"was made for other shards: 00001\.tar has changed"):
        read_data(two[0], weighted=True)


def test_a_weighted_contrastive_loss_is_the_mean_of_weight_times_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    z_image, z_text = (F.normalize(torch.randn(6, 5, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    weights = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 0.25], dtype=torch.float64)
    logits = 100 * z_image @ z_text.T
    rows = -(logits.log_softmax(dim=1).diagonal() + logits.log_softmax(dim=0).diagonal()) / 2
    torch.testing.assert_close(contrastive_loss(z_image, z_text, weights), (weights * rows).mean())


@pytest.mark.parametrize("name", ["small-base", "small-clip"])
def test_weights_multiply_losses_and_weights_of_one_change_no_bit(name):
    spec = MODELS[name]
    torch.manual_seed(0)
    model = spec.build().eval()
    images = torch.rand(4, 3, spec.image_size_px, spec.image_size_px) * 2 - 1
    captions = spec.tokenizer(["a red barn", "a blue boat", "", "a lake"], spec.context_length)

    def run(weights):
        model.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(0)
        found = batch_loss(model, spec, spec.schedule(), images, captions, generator=generator, weights=weights)["loss"]
        found.backward()
        return found.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain, gradients = run(None)
    ones, same = run(torch.ones(4))
    assert torch.equal(plain, ones) and all(map(torch.equal, gradients, same))
    # Linear in each weight: the losses of single samples add up.
    single = torch.stack([run(torch.eye(4)[row])[0] for row in range(4)])
    torch.testing.assert_close(run(torch.tensor([0.5, 2.0, 0.0, 1.5]))[0], single @ torch.tensor([0.5, 2.0, 0.0, 1.5]))
    torch.testing.assert_close(single.sum(), plain)


class Stopped(Exception):
    pass


def stop(metrics):
    if metrics["step"] == 3:
        raise Stopped


def test_a_weighted_mixture_resumes_with_the_same_bytes_and_its_checkpoint_names_both(two, tmp_path, caplog):
    give_weights(two[0], lambda number: 0.5 + number % 2)
    config = dataclasses.replace(CONFIG, model="small-clip", sample_weights=True)
    with caplog.at_level(logging.WARNING):
        train(config, halves(*two), tmp_path / "whole")
    assert caplog.messages == [f"{two[1]} has no weights of its samples: each weighs 1"]
    with pytest.raises(Stopped):
        train(config, halves(*two), tmp_path / "broken", report=stop)
    summary = train(config, halves(*two), tmp_path / "broken")
    one, other = (newest_checkpoint(tmp_path / folder) for folder in ("whole", "broken"))
    assert [path.read_bytes() for path in sorted(one.iterdir())] == [path.read_bytes() for path in sorted(other.iterdir())]
    state = read_state(one)
    assert state["dataset"] == "50 % toy + 50 % toy"
    assert state["data"] == summary.data == [
        {"dataset": "toy", "digest": read_data(two[0]).digest, "samples": 17, "share": "1/2", "weighted": True},
        {"dataset": "toy", "digest": read_data(two[1]).digest, "samples": 12, "share": "1/2", "weighted": False},
    ]  # fmt: skip

    for change, message in (
        ([DataShare(shards=two[0], share=0.4), DataShare(shards=two[1], share=0.6)], r"other shards \(50 % toy \+ 50 % toy\) than"),
        (two[0], "other shards"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(config, change, tmp_path / "whole")
    give_weights(two[0], lambda number: 1.0)
    with pytest.raises(CheckpointError, match="other weights of samples than"):
        train(config, halves(*two), tmp_path / "whole")
    with pytest.raises(CheckpointError, match="sample_weights True instead of False"):
        train(dataclasses.replace(config, sample_weights=False), halves(*two), tmp_path / "whole")


def test_a_mixture_with_too_small_a_part_for_the_workers_is_refused_by_name(two, tmp_path):
    config = dataclasses.replace(CONFIG, batch_size=26)
    with pytest.raises(ConfigError, match=rf"{re.escape(two[1])} holds 12 samples, fewer than 13 workers"):
        train(config, halves(*two), tmp_path / "out", world=13)
