"""What an object store's bad days do: busy, broken off, silent. Nothing is lost, nothing half is seen, no outage is taken for absence."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.s3_server import BUCKET, FaultyStore, Plan, S3Server, fresh_url, surroundings
from winnow import s3 as s3_store
from winnow.errors import ConfigError, DiskFull, StepFailed, StorageError
from winnow.object_store import open_store
from winnow.partitions import Outcome, run_step
from winnow.receipts import Work, list_done
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.verify_receipts import check_receipts

OPERATIONS: dict[str, Callable[[Storage, Path], object]] = {
    "exists": lambda storage, local: storage.exists("f/a"),
    "size": lambda storage, local: storage.size("f/a"),
    "names": lambda storage, local: storage.names("f"),
    "names of an absent folder": lambda storage, local: storage.names("absent"),
    "walk": lambda storage, local: storage.walk(),
    "read_bytes": lambda storage, local: storage.read_bytes("f/a"),
    "read_many": lambda storage, local: storage.read_many(["f/a", "f/b"]),
    "open": lambda storage, local: storage.open("f/a").read(),
    "sha256": lambda storage, local: storage.sha256("f/a"),
    "local_file": lambda storage, local: _copied(storage),
    "write_bytes": lambda storage, local: storage.write_bytes("f/new", b"new"),
    "put": lambda storage, local: storage.put(local, "f/new"),
    "remove": lambda storage, local: storage.remove("f/b"),
    "remove_folder": lambda storage, local: storage.remove_folder("f"),
    "clear_abandoned": lambda storage, local: storage.clear_abandoned(0),
    "list_done": lambda storage, local: list_done(storage, "embed"),
    "conditional write": lambda storage, local: storage.store.write_if(storage.full("f/new"), b"new", etag=None),
}

SILENT = 1000.0
"""Seconds until there is an answer."""


def _copied(storage: Storage) -> bytes:
    with storage.local_file("f/a") as path:
        return path.read_bytes()


def filled() -> Storage:
    storage = Storage(fresh_url())
    storage.write_bytes("f/a", b"content" * 1000)
    storage.write_bytes("f/b", b"b")
    return storage


def every(number: int, fault: str) -> Plan:
    """Each so-manieth request meets the fault."""
    asked = [0]

    def plan(line: str) -> str | None:
        asked[0] += 1
        return fault if asked[0] % number == 0 else None

    return plan


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "lost"])
def test_faults_that_pass_are_overcome(faulty: FaultyStore, fault: str, tmp_path: Path) -> None:
    storage = Storage(fresh_url())
    with faulty.doing(every(3, fault)):
        for number in range(4):
            storage.write_bytes(f"f/{number}", b"y" * 1000 * number)
            assert storage.read_bytes(f"f/{number}") == b"y" * 1000 * number
        assert (storage.names("f"), storage.exists("f/1"), storage.exists("f/9")) == (["0", "1", "2", "3"], True, False)
        storage.remove("f/0")
        (tmp_path / "built").write_bytes(b"z" * 5000)
        storage.put(tmp_path / "built", "f/put")
        with storage.local_file("f/put") as copy:
            assert copy.read_bytes() == b"z" * 5000
    assert storage.names("f") == ["1", "2", "3", "put"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try: these stores never recover."""
    monkeypatch.setattr(s3_store, "TRIES", 1)


@pytest.mark.parametrize("fault", ["503", "reset", "cut", SILENT])
def test_an_outage_is_an_error_in_every_operation_and_never_an_empty_answer(
    faulty: FaultyStore, fault: str | float, short: None, tmp_path: Path
) -> None:
    storage = filled()
    storage.store.seconds = 0.5 if fault == SILENT else 20.0
    operations = OPERATIONS if fault == "503" else {name: OPERATIONS[name] for name in ("names", "read_bytes", "write_bytes", "exists")}
    with faulty.doing(lambda line: fault):
        for name, operation in operations.items():
            local = tmp_path / "built"
            local.write_bytes(b"x")
            with pytest.raises(StorageError, match=rf"{storage.url}: .* failed: .*the same command goes on from here") as caught:
                pytest.fail(f"{name} answered {operation(storage, local)!r}")
            assert local.exists(), name
            if fault == SILENT:
                assert "no usable answer within" in str(caught.value)
    assert storage.walk() == ["f/a", "f/b"]


def test_a_table_that_cannot_be_reached_is_not_called_damaged(faulty: FaultyStore, short: None) -> None:
    storage = Storage(fresh_url())
    write_table(storage, "t.parquet", pa.table({"uid": ["a"]}))
    with faulty.doing(lambda line: "503"), pytest.raises(StorageError):
        read_table(storage, "t.parquet")
    with faulty.doing(lambda line: None if line.startswith("HEAD") else "503"), pytest.raises(StorageError):
        read_table(storage, "t.parquet")
    assert read_table(storage, "t.parquet").num_rows == 1


def step(storage: Storage, name: str, **unused: object) -> Outcome:
    return Outcome.of(storage.write_text(f"out/{name}", name), counts={"rows": 1})


def test_an_outage_ends_a_stage_at_once_and_what_was_done_stays_done(faulty: FaultyStore, short: None) -> None:
    storage = Storage(fresh_url())
    storage.store.seconds = 0.5
    works = [Work(name=f"{number:02}", inputs={}) for number in range(20)]

    def cut_off(storage: Storage, name: str) -> Outcome:
        if name == "03":
            faulty.proxy.plan = lambda line: SILENT
        return step(storage, name)

    with pytest.raises(
        StepFailed, match=r"(?s)1 of 20 partitions failed, 3 are done\. First, 03: StorageError: .* run the same command again"
    ):
        run_step(cut_off, works, storage, stage="s", version=1)
    with pytest.raises(StorageError):  # nor does the next run take it for a stage of which nothing is done
        run_step(step, works, storage, stage="s", version=1)
    faulty.proxy.plan = lambda line: None
    result = run_step(step, works, storage, stage="s", version=1)
    assert (result.ran, result.skipped, result.counts) == (17, 3, {"rows": 20})


def test_what_a_step_wrote_is_not_fetched_again_for_its_receipt(faulty: FaultyStore) -> None:
    storage = Storage(fresh_url())
    faulty.proxy.seen.clear()
    run_step(step, [Work(name="a", inputs={})], storage, stage="s", version=1)
    assert not [line for line in faulty.proxy.seen if "/out/" in line and not line.startswith("PUT")]
    assert storage.sha256("out/a") in storage.read_text(f"receipts/s/{list_done(storage, 's')[0].file_name}")


def test_an_exception_in_the_middle_leaves_nothing_visible(s3: S3Server, tmp_path: Path) -> None:
    storage = Storage(fresh_url())

    def fails(storage: Storage, name: str) -> Outcome:
        with storage.scratch() as scratch:
            (scratch / "half").write_bytes(b"half of it")
            raise StorageError("in the middle")

    with pytest.raises(StepFailed):
        run_step(fails, [Work(name="a", inputs={})], storage, stage="s", version=1)
    assert storage.walk() == []


def test_a_large_file_goes_up_in_parts_and_comes_back_whole(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "PART_BYTES", 5 * 2**20)  # the smallest the protocol allows
    storage, content = Storage(fresh_url()), bytes(range(256)) * (12 * 2**20 // 256)
    (tmp_path / "big").write_bytes(content)
    digest = storage.put(tmp_path / "big", "big").sha256
    with s3.client() as client:
        assert client.head_object(Bucket=BUCKET, Key=storage.full("big").partition("/")[2])["ETag"].endswith('-3"')
    assert storage.sha256("big") == digest
    with storage.local_file("big") as copy:
        assert copy.read_bytes() == content


KILLED = """
import os, sys, threading, time
from winnow import s3
from winnow.storage import Storage
s3.PART_BYTES = 5 * 2**20
s3.PARTS_AT_A_TIME = 1
storage = Storage(sys.argv[1])
with open(sys.argv[2], "wb") as stream:
    stream.truncate(40 * 2**20)
threading.Thread(target=lambda: storage.put(sys.argv[2], "big"), daemon=True).start()
sys.stdin.read()
os._exit(9)
"""


def test_a_killed_upload_is_invisible_and_its_parts_are_taken_away_when_they_are_old(faulty: FaultyStore, tmp_path: Path) -> None:
    storage, other = Storage(fresh_url()), Storage(fresh_url())
    with faulty.server.client() as client:
        key = other.full("theirs").partition("/")[2]
        theirs = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        code = [sys.executable, "-c", KILLED, storage.url, str(tmp_path / "big")]
        with (
            faulty.doing(lambda line: SILENT if "partNumber=2" in line else None),
            subprocess.Popen(code, stdin=subprocess.PIPE, env=surroundings(faulty.proxy.endpoint)) as writer,
        ):
            while not any("partNumber=2" in line for line in faulty.proxy.seen):
                assert writer.poll() is None
            writer.kill()
        assert storage.walk() == []
        assert storage.clear_abandoned(1e12) == 0  # nothing is that old: some writer may be at work
        assert storage.clear_abandoned(24 * 3600) == 1  # the server dates all uploads to 2010
        assert storage.clear_abandoned(24 * 3600) == 0
        left = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
        assert [upload["UploadId"] for upload in left] == [theirs]  # of another prefix: not ours to take away
        client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=theirs)


def test_a_missing_bucket_is_not_an_empty_one(s3: S3Server) -> None:
    storage = Storage("s3://no-such-bucket/run")
    for look in (lambda: storage.names("receipts/embed"), lambda: storage.walk(), lambda: storage.write_text("a", "x")):
        with pytest.raises(ConfigError, match=r"s3://no-such-bucket/run: there is no such bucket\. Make it, or name another one"):
            look()


def test_wrong_credentials_are_told_as_such(faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = filled()
    with faulty.doing(lambda line: "403"), pytest.raises(StorageError, match=r"the store refuses .*AWS_ACCESS_KEY_ID"):
        storage.names("f")
    assert "test-secret" not in repr(storage) + str(vars(storage))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/run", r"s3://…@bucket/run carries credentials, which would end in logs"),
        ("nothing://bucket/run", r"no way to open nothing:// here .* Local folders and s3:// always work"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_an_address_that_is_no_url_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "store.example.org")
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL must be a url"):
        open_store("s3://bucket/run")


@pytest.mark.parametrize("seconds", ["0", "soon", "-1", "nan"])
def test_a_deadline_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("WINNOW_STORAGE_SECONDS", seconds)
    with pytest.raises(ConfigError, match=rf"WINNOW_STORAGE_SECONDS must be a number of seconds.*got '{seconds}'"):
        open_store("memory://bucket/run")


def test_a_scratch_disk_that_is_full_is_told_as_such(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = filled()

    async def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/work-1/a")

    monkeypatch.setattr(storage.store.filesystem, "_get_file", full)
    with pytest.raises(DiskFull, match=r"no space left for .* in /tmp/work-1/a \(No space left on device\)"), storage.local_file("f/a"):
        pass


def test_verify_does_not_call_a_store_out_of_reach_a_missing_file(faulty: FaultyStore, short: None) -> None:
    from winnow.findings import Ledger

    storage = Storage(fresh_url())
    run_step(step, [Work(name="a", inputs={})], storage, stage="s", version=1)
    with faulty.doing(lambda line: "503"), pytest.raises(StorageError):
        check_receipts(storage, Ledger())
