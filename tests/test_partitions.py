"""Running a step over partitions: what is done again, what is skipped, what a failure or a kill leaves."""

import dataclasses
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from winnow import partitions
from winnow.errors import ShardError, StepFailed, WorkspaceLost
from winnow.nodes import Owner
from winnow.partitions import Outcome, StageRun, perform, run_step
from winnow.processes import Process
from winnow.receipts import Work, list_done, read_receipts, write_receipt
from winnow.storage import Storage
from winnow.workspace import hold_on, locked


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def note(storage: Storage, name: str, *, word: str = "a", **unused: Any) -> Outcome:
    """A step that writes one file, and beside it how often it ran."""
    runs = int(storage.read_text(f"runs/{name}")) if storage.exists(f"runs/{name}") else 0
    storage.write_text(f"runs/{name}", str(runs + 1))
    storage.write_text(f"out/{name}", f"{name} {word}")
    return Outcome(outputs=(f"out/{name}",), counts={"rows": 2}, facts={"run": runs})


def works(*names: str, **arguments: Any) -> list[Work]:
    return [Work(name=name, inputs={"in": "1"}, arguments=arguments) for name in names]


def run(storage: Storage, todo: list[Work], step: Callable[..., Outcome] = note, **settings: Any) -> StageRun:
    return run_step(step, todo, storage, stage="note", **{"version": 1} | settings)


def runs(storage: Storage) -> dict[str, int]:
    return {name: int(storage.read_text(f"runs/{name}")) for name in storage.names("runs")}


def test_every_partition_is_done_once_with_a_receipt(storage: Storage) -> None:
    result = run(storage, works("b", "a"))
    assert (result.ran, result.skipped, result.counts) == (2, 0, {"rows": 4})
    assert [done.partition for done in result.partitions] == ["a", "b"]
    (first, _) = read_receipts(storage, "note")
    assert first.outputs == {"out/a": {"sha256": storage.sha256("out/a"), "bytes": 3}}
    assert (first.counts, first.facts, first.arguments) == ({"rows": 2}, {"run": 0}, {})
    assert result.outputs == {done.partition: done.output for done in list_done(storage, "note")}


def test_what_is_up_to_date_is_skipped_and_still_counted(storage: Storage) -> None:
    first = run(storage, works("a", "b"))
    second = run(storage, works("a", "b", "c"))
    assert (second.ran, second.skipped, second.counts) == (1, 2, {"rows": 6})
    assert second.partitions[:2] == first.partitions
    assert runs(storage) == {"a": 1, "b": 1, "c": 1}


def test_changed_inputs_settings_or_code_are_done_again(storage: Storage) -> None:
    run(storage, works("a"))
    run(storage, [Work(name="a", inputs={"in": "2"})])
    run(storage, works("a", word="b"))
    run(storage, works("a", word="b"), version=2)
    assert runs(storage) == {"a": 4}
    assert storage.read_text("out/a") == "a b"
    assert len(list_done(storage, "note")) == 1


def test_what_cannot_change_the_result_is_passed_on_and_does_not_count(storage: Storage) -> None:
    seen: list[Any] = []

    def step(storage: Storage, name: str, **arguments: Any) -> Outcome:
        seen.append(arguments)
        return note(storage, name)

    for place in ("here", "there"):
        run(storage, [Work(name="a", inputs={}, unhashed={"place": place})], step)
    assert seen == [{"place": "here"}]


def test_partitions_no_longer_wanted_are_taken_away_with_their_files(storage: Storage) -> None:
    run(storage, works("a", "b"))
    result = run(storage, works("b"))
    assert (storage.names("out"), [done.partition for done in list_done(storage, "note")]) == (["b"], ["b"])
    assert result.counts == {"rows": 2}
    run(storage, works("a"), prune=False)
    assert storage.names("out") == ["a", "b"]


def test_one_failure_fails_the_stage_and_the_others_are_done(storage: Storage) -> None:
    def step(storage: Storage, name: str, **arguments: Any) -> Outcome:
        if name == "b":
            raise ShardError("raw/b.tar is damaged")
        return note(storage, name)

    with pytest.raises(StepFailed) as caught:
        run(storage, works("a", "b", "c"), step)
    assert str(caught.value).startswith("note: 1 of 3 partitions failed, 2 are done. First, b: ShardError: raw/b.tar is damaged\n")
    assert runs(storage) == {"a": 1, "c": 1}
    assert run(storage, works("a", "b", "c")).ran == 1
    assert runs(storage) == {"a": 1, "b": 1, "c": 1}


def test_many_failures_in_a_row_stop_the_stage(storage: Storage) -> None:
    tried: list[str] = []

    def step(storage: Storage, name: str, **arguments: Any) -> Outcome:
        tried.append(name)
        raise ShardError("the disk is gone")

    with pytest.raises(StepFailed, match="8 of 50 partitions failed"):
        run(storage, works(*(f"{number:02d}" for number in range(50))), step)
    assert len(tried) == partitions.MAX_FAILURES_IN_A_ROW


def test_a_mistake_in_the_code_is_not_taken_for_a_failed_partition(storage: Storage) -> None:
    def step(storage: Storage, name: str, **arguments: Any) -> Outcome:
        raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        run(storage, works("a"), step)


@pytest.mark.parametrize("moment", ["before any file", "between file and receipt"])
def test_a_kill_leaves_no_receipt_and_the_redo_gives_the_same(storage: Storage, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(storage, works("a", word="old"))
    before = run(storage, works("a", word="new")).outputs
    run(storage, works("a", word="old"))

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "before any file":
            run(storage, works("a", word="new"), killed)
        else:
            patch.setattr(partitions, "write_receipt", killed)
            run(storage, works("a", word="new"))
    # Neither the old receipt (its file may be overwritten) nor a new one.
    assert list_done(storage, "note") == []
    assert run(storage, works("a", word="new")).outputs == before


def test_a_full_disk_ends_the_stage_at_once_and_names_what_it_was_doing(storage: Storage) -> None:
    def step(storage: Storage, name: str) -> Outcome:
        if name == "b":
            raise OSError(errno.ENOSPC, "No space left on device", "/scratch/work-1/shard.tar")
        return note(storage, name)

    with pytest.raises(
        StepFailed,
        match=r"1 of 4 .* 1 are done\. First, b: DiskFull: no space left for note of b in /scratch/work-1/shard\.tar .*Make room",
    ):
        run(storage, works("a", "b", "c", "d"), step)
    assert runs(storage) == {"a": 1}
    assert run(storage, works("a", "b", "c", "d")).ran == 3


def test_memory_that_does_not_suffice_fails_one_partition_and_says_what_helps(storage: Storage) -> None:
    def step(storage: Storage, name: str) -> Outcome:
        if name == "b":
            raise MemoryError("Unable to allocate 9 TiB")
        return note(storage, name)

    with pytest.raises(
        StepFailed, match=r"1 of 3 .* 2 are done\. First, b: NotEnoughMemory: not enough memory for note of b .*9 TiB.*workers"
    ):
        run(storage, works("a", "b", "c"), step)


FULL_DISK = """
import resource, sys
from winnow.errors import StepFailed
from winnow.partitions import Outcome, run_step
from winnow.receipts import Work
from winnow.storage import Storage
def step(storage, name):
    with storage.scratch() as scratch:
        with open(scratch / "big", "wb") as stream:
            stream.write(bytes(200_000))
        return Outcome.of(storage.put(scratch / "big", f"out/{name}"))
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    run_step(step, [Work(name=name, inputs={}) for name in "ab"], Storage(sys.argv[1]), stage="s", version=1)
except StepFailed as problem:
    sys.exit(str(problem))
"""


def test_a_run_goes_on_when_there_is_room_again(storage: Storage) -> None:
    def start(how: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", FULL_DISK, storage.url, how], capture_output=True, text=True)

    full = start("full")
    message = f"0 are done. First, a: DiskFull: no space left for s of a in {storage.url}/.tmp (File too large). Make room"
    assert full.returncode == 1 and message in full.stderr
    assert "Traceback" not in full.stderr and storage.names("out") == []
    assert start("room").returncode == 0
    assert (storage.names("out"), storage.size("out/a")) == (["a", "b"], 200_000)


# On Ray


def killed_for_memory(storage: Storage, name: str, **unused: Any) -> Outcome:
    """What the kernel does to a process when memory has run out."""
    if name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return note(storage, name)


@pytest.mark.slow
def test_on_ray_a_partition_whose_workers_are_killed_fails_alone(storage: Storage, ray_cluster: int) -> None:
    with pytest.raises(StepFailed, match=r"1 of 3 partitions failed, 2 are done\. First, b: its worker .* 2 times .*out of memory\?"):
        run(storage, works("a", "b", "c"), killed_for_memory, workers=ray_cluster, retries=1)
    assert run(storage, works("a", "b", "c"), workers=ray_cluster).ran == 1


def dies_once(storage: Storage, name: str, **unused: Any) -> Outcome:
    """Kills its worker the first time, fails like a disk the second."""
    tries = len(storage.names(f"tries/{name}"))
    storage.write_text(f"tries/{name}/{tries}", "")
    if name == "b" and tries == 0:
        os._exit(1)
    if name == "b" and tries == 1:
        raise OSError("the disk was busy")
    return note(storage, name)


def refuses(storage: Storage, name: str, **unused: Any) -> Outcome:
    if name == "b":
        raise ShardError("raw/b.tar is damaged")
    if name == "c":
        json.loads("{")
    return note(storage, name)


@pytest.mark.slow
def test_on_ray_the_result_is_the_same(storage: Storage, tmp_path: Path, ray_cluster: int) -> None:
    other = Storage(str(tmp_path / "other"))
    here, there = run(storage, works("a", "b", "c")), run(other, works("a", "b", "c"), workers=ray_cluster)
    assert (there.outputs, there.counts) == (here.outputs, here.counts)
    assert [other.read_bytes(f"out/{name}") for name in "abc"] == [storage.read_bytes(f"out/{name}") for name in "abc"]


@pytest.mark.slow
def test_on_ray_a_dead_worker_and_a_busy_disk_are_tried_again(storage: Storage, ray_cluster: int) -> None:
    result = run(storage, works("a", "b"), dies_once, workers=ray_cluster)
    assert (result.ran, storage.names("tries/b")) == (2, ["0", "1", "2"])


@pytest.mark.slow
def test_on_ray_failures_are_named_and_the_others_are_done(storage: Storage, ray_cluster: int) -> None:
    with pytest.raises(StepFailed, match=r"2 of 4 partitions failed, 2 are done\. First, b: ShardError: raw/b\.tar is damaged"):
        run(storage, works("a", "b", "c", "d"), refuses, workers=ray_cluster)
    assert sorted(runs(storage)) == ["a", "d"]


def writes(storage: Storage, name: str) -> Outcome:
    return Outcome.of(storage.write_text(f"out/{name}", "what a worker of the run before makes"))


def ended_process() -> Process:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return dataclasses.replace(Process.this(), pid=child.pid)


def test_a_worker_whose_run_has_ended_writes_and_records_nothing(tmp_path: Path) -> None:
    storage, work = Storage(str(tmp_path / "run")), Work(name="00000", inputs={})
    gone, here = Owner(process=ended_process()), Owner(process=Process.this())
    with pytest.raises(WorkspaceLost, match="the run that asked for this has ended; nothing was recorded"):
        perform(writes, storage, "some", 1, "f" * 16, work, [], gone)
    assert storage.walk() == []
    perform(writes, storage, "some", 1, "f" * 16, work, [], here)
    assert [done.partition for done in list_done(storage, "some")] == ["00000"]
    Owner(process=dataclasses.replace(gone.process, machine="another")).ensure_at_work()  # which cannot be seen from here


def test_a_worker_of_a_killed_run_leaves_alone_what_the_next_run_with_other_settings_makes(storage: Storage) -> None:
    # A worker on another node does not see that its run was killed; the second run takes the workspace while it is at work.
    elsewhere = dataclasses.replace(ended_process(), machine="another")
    work = Work(name="00000", inputs={})

    def slow(storage: Storage, name: str) -> Outcome:
        with locked(storage):  # the next run: it does the same partition otherwise, and ends
            Path(storage.full("out")).mkdir()
            Path(storage.full(f"out/{name}")).write_text("by other settings")
        return writes(storage, name)

    Path(storage.full("")).mkdir()
    with locked(storage):
        hold = hold_on(storage)
        assert hold is not None and hold_on(Storage(f"{storage.url}/checkpoints/base")) is hold
        before = Owner(process=elsewhere, hold=pickle.loads(pickle.dumps(hold)))
    hold.ensure()  # nobody has taken it since
    with pytest.raises(WorkspaceLost, match=r"does not hold .* any more: nothing more is written"):
        perform(slow, storage, "some", 1, "f" * 16, work, [], before)
    assert (storage.read_text("out/00000"), list_done(storage, "some")) == ("by other settings", [])


def test_a_partition_with_two_receipts_is_done_again(storage: Storage) -> None:
    # A late worker's put may still arrive: then two receipts stand, and the files are only one's.
    run(storage, works("a", "b"))
    (first, _) = read_receipts(storage, "note")
    write_receipt(storage, dataclasses.replace(first, fingerprint="e" * 16))
    assert len(list_done(storage, "note")) == 3
    assert run(storage, works("a", "b")).ran == 1
    assert [done.partition for done in list_done(storage, "note")] == ["a", "b"]
