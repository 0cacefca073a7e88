"""The lock of a workspace on an object store: one holder, told to others, taken over only from one that is gone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.s3_server import FaultyStore, S3Server, fresh_url, surroundings
from winnow import processes, store_lock
from winnow.errors import ConfigError, StorageError, WorkspaceBusy, WorkspaceLost
from winnow.partitions import Outcome, run_step
from winnow.processes import Process
from winnow.receipts import Work, list_done
from winnow.storage import Storage, fence
from winnow.store_lock import StoreLock
from winnow.workspace import LOCK, locked, open_workspace

HOLDER = """
import sys
from winnow.workspace import locked, open_workspace
with locked(open_workspace(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ELSEWHERE = {"host": "elsewhere", "pid": 1, "machine": "another kernel", "started": "1", "command": "winnow run x.yaml"}
"""A holder that nobody here can look at."""


@pytest.fixture
def storage(faulty: FaultyStore) -> Storage:
    return Storage(fresh_url())


def lock_of(storage: Storage, *, beat: float = 0.05, stale: float = 0.4) -> StoreLock:
    return StoreLock(store=Storage(storage.url).store, path=storage.full(LOCK), beat_seconds=beat, stale_seconds=stale)


def held_elsewhere(storage: Storage, beat: int = 0) -> None:
    storage.write_text(LOCK, json.dumps(ELSEWHERE | {"beat": beat}))


@pytest.fixture
def beating_elsewhere(storage: Storage) -> Iterator[None]:
    """A living holder on another machine."""
    ended = threading.Event()

    def beat() -> None:
        number = 1
        while not ended.wait(0.05):
            held_elsewhere(storage, number)
            number += 1

    held_elsewhere(storage)
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def eventually(what: Any) -> None:
    for _ in range(400):
        if what():
            return
        time.sleep(0.02)
    pytest.fail("it did not come to that")


def test_of_many_who_start_at_once_one_gets_it(storage: Storage) -> None:
    locks = [lock_of(storage, stale=60) for _ in range(6)]
    got: list[StoreLock] = []
    refused: list[WorkspaceBusy] = []

    def start(lock: StoreLock) -> None:
        try:
            lock.take()
            got.append(lock)
        except WorkspaceBusy as problem:
            refused.append(problem)

    threads = [threading.Thread(target=start, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)
    got[0].release()
    locks[0].take()
    locks[0].release()


def test_a_second_run_is_told_who_holds_the_workspace_and_a_killed_one_frees_it_at_once(
    s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_workspace(fresh_url())
    command = [sys.executable, "-c", HOLDER, storage.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(WorkspaceBusy, match=rf"is in use by another run \(process {holder.pid} on .*\)\. Wait for it to end \(--wait"),
            locked(storage),
        ):
            pass
        # On the same machine nobody need wait for missing heartbeats: a process that is gone is gone.
        holder.kill()
        holder.wait()
        with locked(storage):
            assert json.loads(storage.read_text(LOCK))["pid"] == os.getpid()
    assert "is gone: took it over" in caplog.text
    assert storage.walk() == [LOCK]


def test_a_stopped_holder_is_taken_over_and_writes_nothing_when_it_wakes(storage: Storage) -> None:
    code = (
        "import sys\nfrom winnow import processes, store_lock\nstore_lock.BEAT_SECONDS, store_lock.STALE_SECONDS = 0.05, 0.4\n"
        "processes._machine = lambda: ''\n"  # as on another machine
        "from winnow.errors import WorkspaceLost\nfrom winnow.storage import Storage\nfrom winnow.workspace import locked\n"
        "storage = Storage(sys.argv[1])\n"
        "with locked(storage):\n"
        "    print('held', flush=True)\n    sys.stdin.readline()\n"
        "    try:\n        storage.write_text('shared', 'of the one that slept')\n        print('wrote')\n"
        "    except WorkspaceLost as problem:\n        print(problem)\n"
    )
    environment = surroundings(os.environ["AWS_ENDPOINT_URL"])
    command = [sys.executable, "-c", code, storage.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        lock = lock_of(storage)
        lock.take()
        storage.write_text("shared", "of the one that took over")
        holder.send_signal(signal.SIGCONT)
        said, _ = holder.communicate("go on\n")
    assert (
        said
        == f"another run has taken over the workspace {storage.url}. Nothing is written any more; the same command goes on from here.\n"
    )
    assert storage.read_text("shared") == "of the one that took over"
    lock.check()
    lock.release()


def test_a_living_holder_elsewhere_is_waited_for_as_long_as_asked(storage: Storage, beating_elsewhere: None) -> None:
    with pytest.raises(WorkspaceBusy, match=r"in use by another run \(process 1 on elsewhere: winnow run x\.yaml\)"):
        lock_of(storage).take()
    with pytest.raises(WorkspaceBusy):
        lock_of(storage).take(wait_seconds=0.5)


def test_a_silent_holder_elsewhere_is_taken_over(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    held_elsewhere(storage)
    lock = lock_of(storage)
    lock.take()
    lock.check()
    assert "process 1 on elsewhere" in capsys.readouterr().err
    lock.release()
    assert storage.read_text(LOCK) == "{}\n"


def test_a_holder_that_was_taken_over_stops_at_its_next_write(storage: Storage) -> None:
    lock = lock_of(storage, stale=60)
    lock.take()
    with fence(storage.url, lock.check):
        storage.write_text("a", "mine")
        Storage(storage.url).store.write(storage.full(LOCK), json.dumps(ELSEWHERE).encode())
        eventually(lambda: lock._lost is not None)
        for write in (lambda: storage.write_text("a", "late"), lambda: storage.remove("a"), lambda: storage.put(__file__, "a")):
            with pytest.raises(WorkspaceLost, match="another run has taken over the workspace"):
                write()
    lock.release()
    assert (storage.read_text("a"), json.loads(storage.read_text(LOCK))["host"]) == ("mine", "elsewhere")


def test_a_stage_ends_when_the_workspace_is_lost(storage: Storage) -> None:
    lock = lock_of(storage, stale=60)
    lock.take()

    def step(storage: Storage, name: str) -> Outcome:
        if name == "2":
            storage.store.write(storage.full(LOCK), json.dumps(ELSEWHERE).encode())
            eventually(lambda: lock._lost is not None)
        return Outcome.of(storage.write_text(f"out/{name}", name))

    with fence(storage.url, lock.check), pytest.raises(WorkspaceLost):
        run_step(step, [Work(name=str(number), inputs={}) for number in range(5)], storage, stage="s", version=1)
    lock.release()
    assert [done.partition for done in list_done(storage, "s")] == ["0", "1"]


def test_a_holder_without_network_gives_up_before_another_may_take_over(faulty: FaultyStore, storage: Storage) -> None:
    storage.store.seconds = 0.2
    lock = StoreLock(store=storage.store, path=storage.full(LOCK), beat_seconds=0.05, stale_seconds=0.9)
    lock.take()
    with faulty.doing(lambda line: 1000.0):
        cut = time.monotonic()
        eventually(lambda: lock._lost is not None)
        assert time.monotonic() - cut > 0.9 * store_lock.GIVE_UP_SHARE - 0.2  # not at the first heartbeat that fails
        with pytest.raises(WorkspaceLost, match=r"the lock of .* could not be kept: .*no usable answer"):
            lock.check()
    lock.release()


def test_a_short_outage_is_survived(faulty: FaultyStore, storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    lock = lock_of(storage, stale=60)
    lock.take()
    with faulty.doing(lambda line: "403"):
        eventually(lambda: "a heartbeat did not arrive" in caplog.text)
    kept = lock._kept_at
    eventually(lambda: lock._kept_at > kept)
    lock.check()
    lock.release()


def test_a_lost_answer_is_not_taken_for_a_refusal(faulty: FaultyStore, storage: Storage) -> None:
    # The write was done, its answer is lost; asked again, the store refuses: the object is there, and it is this holder's own.
    lost = iter([True])
    with faulty.doing(lambda line: "lost" if line.startswith("PUT") and next(lost, False) else None):
        lock = lock_of(storage, beat=60, stale=60)
        lock.take()
    lost = iter([True])
    with faulty.doing(lambda line: "lost" if line.startswith("PUT") and next(lost, False) else None):
        lock._beat()
    lock.check()
    lock.release()
    assert storage.read_text(LOCK) == "{}\n"


def test_a_lock_that_cannot_be_reached_is_not_free(faulty: FaultyStore, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.store.seconds = 0.3
    held_elsewhere(storage)
    with faulty.doing(lambda line: 1000.0), pytest.raises(StorageError):
        StoreLock(store=storage.store, path=storage.full(LOCK)).take()


def test_a_store_that_overlooks_conditions_is_refused_unless_somebody_answers_for_it(
    faulty: FaultyStore, storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty.doing(lambda line: "ignorant"):
        with (
            pytest.raises(ConfigError, match=r"cannot be locked: its store has no conditional writes .* set WINNOW_UNLOCKED=1"),
            locked(storage),
        ):
            pass
        monkeypatch.setenv("WINNOW_UNLOCKED", "1")
        with locked(storage):
            storage.write_text("a", "x")
    assert "is not locked (WINNOW_UNLOCKED=1); start one run at a time" in capsys.readouterr().err
    assert storage.walk() == ["a"]  # the probe is gone


def test_what_is_no_lock_of_ours_is_waited_for_too(storage: Storage) -> None:
    storage.write_text(LOCK, "not JSON")
    lock = lock_of(storage)
    lock.take()
    lock.release()


def test_only_this_process_sees_a_workspace_in_memory() -> None:
    with locked(Storage("memory://bucket/locked")) as held:
        assert held is None


def test_a_process_is_known_by_more_than_its_number() -> None:
    this = Process.this()
    assert (this.runs_here(), this.has_ended()) == (True, False)
    recycled = Process(host=this.host, pid=this.pid, machine=this.machine, started="1")
    assert (recycled.runs_here(), recycled.has_ended()) == (False, True)
    elsewhere = Process(host=this.host, pid=this.pid, machine="another", started="1")
    assert (elsewhere.runs_here(), elsewhere.has_ended()) == (False, False)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        started = processes._started(child.pid)
        child.wait()
    assert Process(host=this.host, pid=child.pid, machine=this.machine, started=started).has_ended()
