"""The loop on Ray Train gives what the plain loop gives, and goes on from what a kill leaves."""

import sys
from pathlib import Path

import pytest

from models.launch import gpu_for_each, launch, tell_if_short
from models.metrics_log import read_metrics
from models.recipes import TrainConfig
from models.training_folder import metrics_at
from tests.s3_server import fresh_url
from winnow.errors import ConfigError, ShardError
from winnow.storage import Storage

sys.path.insert(0, str(Path(__file__).parent))
from toy_shards import make_shards

CONFIG = TrainConfig(
    model="tiny-noised-clip",
    num_steps=6,
    batch_size=8,
    lr=1e-3,
    warmup_steps=2,
    ema_rate=0.9,
    log_every=1,
    checkpoint_every=2,
    keep_checkpoints=9,
)


def test_without_workers_it_trains_in_this_process_and_a_second_call_does_nothing(tmp_path, capsys):
    shards = make_shards(tmp_path / "shards")
    summary = launch(CONFIG, shards, str(tmp_path / "out"), num_workers=0)
    assert summary.steps == 6
    before = (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns
    assert launch(CONFIG, shards, str(tmp_path / "out"), num_workers=2) == summary
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns == before


def test_what_cannot_be_is_refused_before_any_worker_starts(tmp_path):
    with pytest.raises(ShardError, match=r"no index\.json there"):
        launch(CONFIG, str(tmp_path), str(tmp_path / "out"))
    shards = make_shards(tmp_path / "shards")
    with pytest.raises(ConfigError, match="batch_size 8 cannot be shared evenly among 3 workers"):
        launch(CONFIG, shards, str(tmp_path / "out"), num_workers=3)


@pytest.mark.parametrize(
    ("resources", "joins", "expected"),
    [({"CPU": 4.0}, False, False), ({"GPU": 2.0}, False, True), ({"GPU": 1.0}, True, True), ({}, True, False)],
)
def test_workers_take_gpus_where_ray_has_them_wherever_the_driver_is(monkeypatch, resources, joins, expected):
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    monkeypatch.setattr("models.launch.joined", lambda: joins)
    assert gpu_for_each(2) is expected


def test_a_machine_with_fewer_gpus_than_workers_is_refused_instead_of_waited_for(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 1.0})
    with pytest.raises(ConfigError, match="2 training workers, but this machine has 1 GPU: set train_workers to 1"):
        gpu_for_each(2)


def test_gpus_are_waited_for_on_a_cluster_that_is_told_to_use_them_and_left_alone_if_it_is_told_not_to(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ConfigError, match="2 training workers, but this machine has 0 GPUs: set train_gpu to false"):
        gpu_for_each(2, True)
    monkeypatch.setattr("models.launch.joined", lambda: True)
    assert gpu_for_each(2, True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    assert not gpu_for_each(2, False)


def test_a_gpu_that_is_not_there_is_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"training is to use a GPU \(train_gpu\), and this machine has none"):
        launch(CONFIG, make_shards(tmp_path / "shards"), str(tmp_path / "out"), num_workers=0, use_gpu=True)


def test_a_training_that_no_node_has_room_for_says_what_it_waits_for(monkeypatch, caplog):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    tell_if_short(4, gpu=True)
    assert "training with 4 workers waits until the cluster has 1 more CPUs and 3 more GPUs" in caplog.text
    caplog.clear()
    tell_if_short(3, gpu=False)
    assert not caplog.text


@pytest.mark.slow
def test_two_workers_on_ray_train_on_a_disk_and_go_on_from_a_kill_on_a_store_to_the_same_weights(tmp_path, ray_with_store):
    shards = make_shards(tmp_path / "shards")
    whole = launch(CONFIG, shards, str(tmp_path / "whole"), num_workers=ray_with_store)
    assert (whole.steps, whole.images) == (6, 48)
    assert [line["step"] for line in read_metrics(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "whole" / ".ray-train").exists()

    # What a kill -9 in the fifth step leaves: checkpoints up to 4 and half of another one, and half a line. No disk is shared now.
    store = Storage(fresh_url())
    for path in sorted((tmp_path / "whole").rglob("step-*/*")):
        if (path.parent.name, path.name) != ("step-000006", "state.json"):
            store.write_bytes(f"out/{path.parent.name}/{path.name}", path.read_bytes())
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)
    store.write_text("out/metrics.jsonl", "".join(lines[:4]) + '{"step": 5, "lo')
    for path in Path(shards).iterdir():
        store.write_bytes(f"shards/{path.name}", path.read_bytes())
    launch(CONFIG, f"{store.url}/shards", f"{store.url}/out", num_workers=ray_with_store)
    assert [line["step"] for line in metrics_at(f"{store.url}/out")] == [1, 2, 3, 4, 5, 6]
    assert store.read_bytes("out/step-000006/ema.safetensors") == (tmp_path / "whole/step-000006/ema.safetensors").read_bytes()
    assert {path.split("/")[1] for path in store.walk("out")} == {"metrics.jsonl", *(f"step-{step:06d}" for step in (2, 4, 6))}
