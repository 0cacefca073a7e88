"""Forgetting on an object store: the same files as on a disk, whatever the store does and wherever a call is killed."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tasks.config import RunConfig
from tasks.forgetting import forget_samples, settings_of
from tests.forget_world import LABELS, label, make_world, places, report, samples, traces, well_known
from tests.s3_server import FaultyStore, fresh_url
from tests.test_forget import Killed, counting, strip_seconds
from tests.test_store_faults import every
from winnow import s3
from winnow.errors import StorageError
from winnow.forget_match import Wanted, read_list
from winnow.forgotten import open_events
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.verify import render, verify
from winnow.workspace import LOCK, raw_table


@dataclasses.dataclass
class World:
    """A run on a disk, what is to be forgotten of it, and what is left of the run then."""

    disk: Storage
    wanted: Wanted
    traces: dict[str, bytes]
    """Of the sample that is named by its uid."""
    expected: dict[str, bytes]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    disk = make_world(folder / "run", parts=1)
    by_uid = well_known(disk)
    label(disk, by_uid, next(row["uid"] for row in samples(disk) if row["uid"] != by_uid["uid"]))
    report(disk, "before")
    by_sha256, by_url = [row for row in samples(disk) if row["verdict"] == "kept" and row["uid"] != by_uid["uid"]][:2]
    fetched = read_table(disk, raw_table(by_sha256["partition"]), ["uid", "sha256"]).to_pylist()
    (folder / "list.txt").write_text(f"{by_url['url']}\n")
    sha256 = next(row["sha256"] for row in fetched if row["uid"] == by_sha256["uid"])
    wanted = Wanted(uids=frozenset([by_uid["uid"]]), sha256s=frozenset([sha256])) | read_list(folder / "list.txt")
    there = Storage(str(folder / "there"))
    config = placed(disk, there, folder / "there.sqlite")
    assert forget_samples(config, wanted, reason="request 7").counts == {"kept": 3}
    found = verify(there)
    assert found.ok, render(found)
    return World(disk, wanted, traces(disk, by_uid), contents(there))


def placed(disk: Storage, there: Storage, labels: Path) -> RunConfig:
    """Puts a copy of a run somewhere, but its labels on a disk; its settings."""
    for path in disk.walk():
        there.write_bytes(path, disk.read_bytes(path))
    shutil.copyfile(disk.full(LABELS), labels)
    there.remove(LABELS)
    there.write_text("run.json", json.dumps({"workspace": "before", "manifest": "photos.yaml", "workers": 1, "label_store": str(labels)}))
    return settings_of(there.url)


def contents(storage: Storage) -> dict[str, bytes]:
    """All files but those that tell when and how fast: the record, the report, the lock."""
    found = {path: storage.read_bytes(path) for path in storage.walk()}
    told = ("forgotten/", "report/", "receipts/report/", ".", "tallies/", "run.json")
    return {
        path: strip_seconds(data) if path.startswith("receipts/") else data for path, data in found.items() if not path.startswith(told)
    }


@pytest.fixture
def memory() -> Iterator[Storage]:
    yield Storage("memory://bucket/run")
    fsspec.filesystem("memory").store.clear()


def test_a_kill_within_the_report_is_made_good_by_the_next_call(world: World, memory: Storage, tmp_path: Path) -> None:
    def changes(at: int | None) -> int:
        fsspec.filesystem("memory").store.clear()
        config = placed(world.disk, memory, tmp_path / "labels.sqlite")
        with pytest.MonkeyPatch.context() as patch:
            count = counting(patch, at)
            try:
                forget_samples(config, world.wanted, reason="request 7")
            except Killed:
                assert at is not None
        return count[0]

    whole = changes(None)
    assert whole > 50
    # Within the report: its receipt is gone, and at first it still pictures the sample. (Earlier ones are in test_forget.py.)
    for moment in (whole - 4, whole - 3):
        changes(moment)
        forget_samples(settings_of(memory.url), world.wanted, reason="request 7")
        assert contents(memory) == world.expected, f"killed before change {moment}"
        assert places(memory, world.traces) == {name: set() for name in world.traces}, f"killed before change {moment}"
        assert memory.names("receipts/report") and not open_events(memory), f"killed before change {moment}"


def test_a_store_that_fails_half_way_is_left_resumable_and_faults_that_pass_change_nothing(
    world: World, faulty: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = placed(world.disk, Storage(fresh_url()), tmp_path / "labels.sqlite")
    storage = Storage(config.workspace)
    with monkeypatch.context() as patch, faulty.doing(busy_after(20)), pytest.raises(StorageError, match=r"writing .* failed: .*please"):
        patch.setattr(s3, "TRIES", 1)
        forget_samples(config, world.wanted, reason="request 7")
    assert len(open_events(storage)) == 1
    plans = [every(299, fault) for fault in ("503", "cut", "lost", "reset")]
    with faulty.doing(lambda line: next(filter(None, [plan(line) for plan in plans]), None)):
        forget_samples(config, Wanted(), reason="")
    assert contents(storage) == world.expected


def busy_after(writes: int) -> Any:
    """So many files are written; from then on none is, but for the lock."""
    seen = [0]

    def plan(line: str) -> str | None:
        if not line.startswith("PUT") or LOCK in line:
            return None
        seen[0] += 1
        return "503" if seen[0] > writes else None

    return plan
