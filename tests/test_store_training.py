"""A training whose folder is on an object store: the same bytes as on a disk, whatever is killed, and no disk that workers share."""

import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from models import training_folder
from models.catalog import MODELS, TINY_NOISED_CLIP, noised_clip_model
from models.launch import launch
from models.recipes import TrainConfig
from models.shard_copies import clear_copies, copies_folder, local_shard
from models.training import train
from models.training_data import ShardEntry, read_index
from models.training_folder import metrics_at, newest_place
from tasks.checkpoints_apart import keep_apart_on_store
from tests.s3_server import FaultyStore, S3Server, fresh_url, surroundings
from tests.toy_shards import make_shards
from winnow.errors import CheckpointError, ConfigError, ShardError, WorkspaceLost
from winnow.storage import Storage, fence

# As in test_training.py: little to write.
SIZES = {"image_size_px": 16, "image_width": 36, "image_layers": 1, "text_width": 36, "text_layers": 1}
SMALL = noised_clip_model("small-clip", dataclasses.replace(TINY_NOISED_CLIP, **SIZES), MODELS["tiny-noised-clip"].tokenizer)
SETTINGS = {"num_steps": 6, "batch_size": 4, "lr": 1e-3, "warmup_steps": 2, "ema_rate": 0.9, "log_every": 1, "checkpoint_every": 2}


def clip(**changes) -> TrainConfig:
    return TrainConfig(model="small-clip", **{**SETTINGS, **changes})


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The small model, and a folder of temporary files of this test alone."""
    monkeypatch.setitem(MODELS, SMALL.name, SMALL)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def uploaded(folder: str) -> str:
    """The shards on the store."""
    url = fresh_url()
    for path in Path(folder).iterdir():
        Storage(url).write_bytes(path.name, path.read_bytes())
    return url


def trained(place: str) -> dict[str, object]:
    """What a training left: every file, metrics.jsonl without its speeds."""
    storage = Storage(place)
    found: dict[str, object] = {path: hashlib.sha256(storage.read_bytes(path)).hexdigest() for path in storage.walk()}
    found["metrics.jsonl"] = [{**line, "images_per_second": 0} for line in metrics_at(place)]
    return found


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, SMALL.name, SMALL)
        train(clip(), shards, folder)
    return trained(str(folder))


class Killed(Exception):
    """A kill, as a test can make one."""


@contextlib.contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The `number`-th change of the store (from 0) does not happen, and nothing after it; yields those that did."""
    done: list[str] = []

    def before(method: str) -> None:
        real = getattr(Storage, method)

        def changed(self: Storage, *arguments, **settings):
            if len(done) >= number:
                raise Killed
            result = real(self, *arguments, **settings)
            done.append(f"{method} {arguments[-1]}")
            return result

        patch.setattr(Storage, method, changed)

    with monkeypatch.context() as patch:
        for method in ("put", "write_bytes", "remove", "copy"):
            before(method)
        yield done


def test_on_an_object_store_a_training_leaves_the_same_bytes_as_on_a_disk(s3: S3Server, shards, undisturbed, tmp_path):
    out, data = fresh_url(), uploaded(shards)
    summary = launch(clip(), data, out, num_workers=0)
    assert (summary.steps, summary.checkpoint) == (6, "step-000006")
    assert trained(out) == undisturbed
    assert sorted(path.partition("/")[0] for path in undisturbed if path.endswith("state.json")) == ["step-000004", "step-000006"]
    assert launch(clip(), data, out, num_workers=2) == summary  # finished: no worker starts
    assert [path.name for path in (tmp_path / "tmp").iterdir() if "shards" not in path.name] == []  # scratch is gone
    assert not list((tmp_path / "tmp").rglob("*.tar"))


def test_fine_tuning_starts_from_weights_on_a_store(shards, tmp_path):
    fsspec.filesystem("memory").store.clear()
    out = "memory://bucket/first"
    train(clip(num_steps=2), shards, out)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "ema.safetensors").write_bytes(Storage(f"{out}/step-000002").read_bytes("ema.safetensors"))
    tuned = ("memory://bucket/tuned", str(tmp_path / "tuned"))
    for place, start in zip(tuned, (newest_place(out), str(tmp_path / "start")), strict=True):
        train(clip(num_steps=2), shards, place, init_from=start)
    assert trained(tuned[0]) == trained(tuned[1])
    with pytest.raises(CheckpointError, match=r"memory://.*holds a training with other weights to start from"):
        train(clip(num_steps=2), shards, tuned[0])
    with pytest.raises(CheckpointError, match=r"memory://.*/nowhere is not there; give a checkpoint folder"):
        launch(clip(), shards, out, num_workers=0, init_from=f"{out}/nowhere")


def test_a_killed_process_leaves_no_half_checkpoint_and_the_next_one_ends_where_it_would_have(
    faulty: FaultyStore, shards, undisturbed, tmp_path
):
    out, data, seen = fresh_url(), uploaded(shards), threading.Event()

    def plan(line: str) -> float | None:
        if line.startswith("PUT") and "step-000004/state.json" in line:
            seen.set()
            return 1000.0
        return None

    script = f"""
import dataclasses
from models.catalog import MODELS, TINY_NOISED_CLIP, noised_clip_model
from models.recipes import TrainConfig
from models.training import train
sizes = dataclasses.replace(TINY_NOISED_CLIP, **{SIZES!r})
MODELS["small-clip"] = noised_clip_model("small-clip", sizes, MODELS["tiny-noised-clip"].tokenizer)
train(TrainConfig(model="small-clip", **{SETTINGS!r}), {data!r}, {out!r})
"""
    surrounding = surroundings(faulty.proxy.endpoint) | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    with faulty.doing(plan):
        process = subprocess.Popen([sys.executable, "-c", script], env=surrounding)
        try:
            assert seen.wait(120)
        finally:
            process.kill()
            process.wait()
    left = Storage(out).walk()
    assert "step-000004/model.safetensors" in left and "step-000004/state.json" not in left
    assert newest_place(out) == f"{out}/step-000002"
    train(clip(), data, out)
    assert trained(out) == undisturbed


def test_wherever_a_training_is_killed_it_goes_on_from_a_whole_checkpoint(shards, tmp_path, monkeypatch):
    fsspec.filesystem("memory").store.clear()
    config = clip(num_steps=2, checkpoint_every=1, keep_checkpoints=1)
    train(config, shards, tmp_path / "whole")
    undisturbed = trained(str(tmp_path / "whole"))
    for number in (3, *range(6, 99)):  # in the first checkpoint, and at every change from the second one's first on
        out = f"memory://bucket/out-{number}"
        with contextlib.suppress(Killed), killed_at(number, monkeypatch) as done:
            train(config, shards, out)
            break
        complete = [path.partition("/")[0] for path in Storage(out).walk() if path.endswith("state.json")]
        assert all(len(Storage(out).walk(name)) == 4 for name in complete), number
        if number in (3, 12):  # clearing away may be killed, too
            with contextlib.suppress(Killed), killed_at(1, monkeypatch):
                train(config, shards, out)
        train(config, shards, out)
        found = trained(out)
        # As on a disk, a kill after the last checkpoint and before the pruning leaves the one before, whole.
        more = {path.partition("/")[0] for path in set(found) - set(undisturbed)}
        assert {path: found[path] for path in undisturbed} == undisturbed, number
        assert not more or (more == {"step-000001"} and complete == ["step-000001", "step-000002"]), number
    assert number == len(done) == 16


def test_a_checkpoint_that_lost_a_file_is_passed_over_and_made_again(shards, undisturbed, caplog):
    fsspec.filesystem("memory").store.clear()
    out = "memory://bucket/out"
    train(clip(), shards, out)
    Storage(out).remove("step-000006/optimizer.safetensors")
    assert newest_place(out) == f"{out}/step-000004"
    assert "out/step-000006 has lost optimizer.safetensors: it is passed over" in caplog.text
    train(clip(), shards, out)
    assert trained(out) == undisturbed


def test_metrics_are_on_the_store_between_checkpoints(shards, monkeypatch):
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(training_folder, "METRICS_SECONDS", 0.0)
    out, seen = "memory://bucket/out", []
    train(clip(), shards, out, report=lambda line: seen.append([one["step"] for one in metrics_at(out)]))
    assert seen == [list(range(1, step + 1)) for step in range(1, 7)]
    assert metrics_at("memory://bucket/none") == []


def test_a_training_in_a_workspace_that_was_lost_writes_no_more(shards):
    fsspec.filesystem("memory").store.clear()

    def lost() -> None:
        raise WorkspaceLost("lost")

    with fence("memory://bucket/run", lost), pytest.raises(WorkspaceLost):
        train(clip(), shards, "memory://bucket/run/checkpoints/a")
    assert Storage("memory://bucket/run").walk() == []
    with fence("memory://bucket/run", lost):
        Storage("memory://bucket/run-2").write_bytes("a", b"")


def shard_of(storage: Storage, name: str, content: bytes) -> ShardEntry:
    storage.write_bytes(name, content)
    return ShardEntry(name, 1, hashlib.sha256(content).hexdigest())


def test_copies_of_shards_are_shared_checked_and_bounded(monkeypatch):
    fsspec.filesystem("memory").store.clear()
    storage = Storage("memory://bucket/shards")
    entries = [shard_of(storage, f"{number}.tar", bytes([number]) * 400_000) for number in range(4)]
    monkeypatch.setenv("WINNOW_SHARD_CACHE_GB", "0.001")  # two and a half shards
    with local_shard(storage, entries[0]) as held:
        for entry in entries[1:]:
            with local_shard(storage, entry) as path:
                assert path.read_bytes() == storage.read_bytes(entry.name)
        assert held.read_bytes() == storage.read_bytes("0.tar")  # being opened: not removed
    assert {path.stem for path in copies_folder().glob("*.tar")} == {entries[number].sha256 for number in (0, 3)}
    storage.remove("3.tar")
    with local_shard(storage, entries[3]) as path:  # it is here already
        assert path.stat().st_size == 400_000
    with pytest.raises(FileNotFoundError), local_shard(storage, entries[3]._replace(sha256="0" * 64)):
        pass
    with (
        pytest.raises(ShardError, match=r"shards/2\.tar is not what index\.json says"),
        local_shard(storage, entries[2]._replace(sha256="1")),
    ):
        pass
    clear_copies()
    assert not [path for path in copies_folder().iterdir() if path.suffix != ".lock"]
    monkeypatch.setenv("WINNOW_SHARD_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="WINNOW_SHARD_CACHE_GB must be a number of gigabytes"), local_shard(storage, entries[0]):
        pass


def test_shards_that_are_gone_or_damaged_on_a_store_are_told_by_their_url(shards):
    fsspec.filesystem("memory").store.clear()
    url = "memory://bucket/shards"
    for path in Path(shards).iterdir():
        Storage(url).write_bytes(path.name, path.read_bytes())
    assert read_index(url).digest == read_index(shards).digest
    Storage(url).write_bytes("00001.tar", b"other")
    with pytest.raises(ShardError, match=r"memory://bucket/shards/00001\.tar is not what index\.json says"):
        train(clip(), url, "memory://bucket/out")
    Storage(url).remove("00001.tar")
    with pytest.raises(ShardError, match=r"memory://bucket/shards/00001\.tar is listed in index\.json, but is not there"):
        train(clip(), url, "memory://bucket/out")


FIRST, SECOND = {"recipe": {"lr": 0.1}, "shards": "a"}, {"recipe": {"lr": 0.1}, "shards": "b"}


@pytest.mark.parametrize("again", [FIRST, SECOND], ids=["first", "second"])
def test_a_training_of_another_purpose_is_set_aside_and_no_kill_loses_any(again, monkeypatch):
    for number in range(99):
        fsspec.filesystem("memory").store.clear()
        storage = Storage("memory://bucket/run")
        keep_apart_on_store(storage, "c/base", FIRST)
        storage.write_bytes("c/base/metrics.jsonl", b"")
        storage.write_bytes("c/base/step-000010/ema.safetensors", b"first")
        storage.write_bytes("c/base/step-000010/state.json", b"{}")
        with contextlib.suppress(Killed), killed_at(number, monkeypatch) as done:
            keep_apart_on_store(storage, "c/base", SECOND)
            keep_apart_on_store(storage, "c/base", FIRST)
            keep_apart_on_store(storage, "c/base", SECOND)
            done.append("all")
        keep_apart_on_store(storage, "c/base", again)
        assert json.loads(storage.read_bytes("c/base/run.json")) == again
        left = ["c/base/metrics.jsonl", "c/base/run.json", "c/base/step-000010/ema.safetensors", "c/base/step-000010/state.json"]
        expected = left if again == FIRST else ["c/base/run.json"]
        assert storage.walk("c/base") == expected, number
        keep_apart_on_store(storage, "c/base", FIRST)
        assert storage.read_bytes("c/base/step-000010/ema.safetensors") == b"first"
        if done and done[-1] == "all":
            break
    assert 15 < number < 45
