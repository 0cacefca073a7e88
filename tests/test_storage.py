"""Files are whole or absent, on a disk and in a store of objects."""

import io
import os
import pickle
from pathlib import Path

import fsspec
import pytest

from tests.s3_server import fresh_url
from winnow.digests import sha256_of
from winnow.errors import ConfigError, DiskFull, ShardError, WorkspaceLost
from winnow.storage import Storage, Written, fence
from winnow.tables import read_table


@pytest.fixture(params=["disk", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A folder on a disk, one of an S3 server, and one of fsspec's memory store; the last two have neither folders nor renames."""
    if request.param == "disk":
        return Storage(str(tmp_path / "run"))
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Storage(fresh_url())
    fsspec.filesystem("memory").store.clear()
    return Storage("memory://bucket/run")


def test_what_was_written_can_be_read(storage: Storage) -> None:
    storage.write_bytes("a/b.bin", b"\x00\xff")
    storage.write_text("a/c.txt", "größe")
    assert (storage.read_bytes("a/b.bin"), storage.read_text("a/c.txt"), storage.size("a/b.bin")) == (b"\x00\xff", "größe", 2)
    assert storage.sha256("a/b.bin") == sha256_of(io.BytesIO(b"\x00\xff"))
    with storage.open("a/b.bin") as stream:
        assert stream.read() == b"\x00\xff"


def test_a_file_is_replaced_whole(storage: Storage) -> None:
    storage.write_bytes("a", b"long before")
    storage.write_bytes("a", b"short")
    assert storage.read_bytes("a") == b"short"


def test_a_built_file_is_moved_into_its_place(storage: Storage) -> None:
    with storage.scratch() as scratch:
        (scratch / "built").write_bytes(b"x" * 1000)
        storage.put(scratch / "built", "deep/folder/name.tar")
        assert not (scratch / "built").exists()
    assert storage.read_bytes("deep/folder/name.tar") == b"x" * 1000
    assert not scratch.exists()


def test_names_are_the_files_of_one_folder_and_walk_finds_all(storage: Storage) -> None:
    for path in ("f/b", "f/a", "f/deep/c", "g"):
        storage.write_bytes(path, b"")
    assert storage.names("f") == ["a", "b"]
    assert storage.walk("f") == ["f/a", "f/b", "f/deep/c"]
    assert [path for path in storage.walk() if not path.startswith(".")] == ["f/a", "f/b", "f/deep/c", "g"]
    assert (storage.names("absent"), storage.walk("absent")) == ([], [])


def test_what_another_process_writes_is_seen(storage: Storage) -> None:
    assert storage.names("f") == []
    Storage(storage.url).write_bytes("f/a", b"")
    assert (storage.names("f"), storage.exists("f/a")) == (["a"], True)


def test_removing_what_is_gone_is_no_error(storage: Storage) -> None:
    storage.write_bytes("f/a", b"")
    storage.remove("f/a")
    storage.remove("f/a")
    storage.write_bytes("f/b", b"")
    storage.write_bytes("f/deep/c", b"")
    storage.remove_folder("f")
    storage.remove_folder("f")
    assert storage.walk("f") == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "a/../../outside"])
def test_no_path_leaves_the_workspace(storage: Storage, path: str) -> None:
    with pytest.raises(ConfigError, match="leaves the workspace"):
        storage.write_bytes(path, b"")


def test_a_reader_that_needs_a_local_file_gets_one(storage: Storage) -> None:
    storage.write_bytes("a/t.tar", b"content")
    with storage.local_file("a/t.tar") as path:
        assert (path.read_bytes(), path.name) == (b"content", "t.tar")
    assert path.exists() == storage.is_local


def test_a_file_is_copied_to_a_local_path_and_to_another_place(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("a/b", b"content")
    storage.copy("a/b", "other/c")
    storage.fetch("other/c", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == storage.read_bytes("a/b") == b"content"
    for absent in (lambda: storage.copy("absent", "c"), lambda: storage.fetch("absent", tmp_path / "c")):
        with pytest.raises(FileNotFoundError):
            absent()


def test_what_was_written_is_told_with_its_digest(storage: Storage, tmp_path: Path) -> None:
    digest = sha256_of(io.BytesIO(b"content"))
    assert storage.write_bytes("a", b"content") == Written(path="a", sha256=digest, bytes=7)
    for known in (None, digest):
        (tmp_path / "built").write_bytes(b"content")
        assert storage.put(tmp_path / "built", "b", sha256=known) == Written(path="b", sha256=digest, bytes=7)
    assert storage.sha256("b") == digest


def test_many_small_files_come_in_the_order_asked_for(storage: Storage) -> None:
    paths = [f"f/{number}" for number in range(40)]
    for number, path in enumerate(paths):
        storage.write_bytes(path, str(number).encode())
    assert storage.read_many(paths[::-1]) == [str(number).encode() for number in range(40)][::-1]
    with pytest.raises(FileNotFoundError):
        storage.read_many([*paths, "f/absent"])


def test_absent_is_absent_and_nothing_else(storage: Storage) -> None:
    assert not storage.exists("absent")
    for look in (storage.size, storage.read_bytes, storage.open, storage.sha256):
        with pytest.raises(FileNotFoundError):
            look("absent")
    with pytest.raises(FileNotFoundError), storage.local_file("absent") as path:
        path.read_bytes()


def test_a_file_is_read_piece_by_piece_and_sought_in(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.object_store.READ_BLOCK_BYTES", 16)
    content = bytes(range(100))
    storage.write_bytes("a", content)
    with storage.open("a") as stream:
        assert stream.read(40) == content[:40]
        stream.seek(-10, os.SEEK_END)
        assert (stream.tell(), stream.read(100), stream.read()) == (90, content[90:], b"")
        stream.seek(5)
        assert stream.read() == content[5:]


def test_while_a_fence_stands_nothing_is_written_past_it(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("f/a", b"old")
    (tmp_path / "built").write_bytes(b"new")

    def lost() -> None:
        raise WorkspaceLost("taken over")

    writes = (
        lambda: storage.write_bytes("f/a", b"new"),
        lambda: storage.put(tmp_path / "built", "f/a"),
        lambda: storage.remove("f/a"),
        lambda: storage.remove_folder("f"),
        storage.ensure_held,
    )
    with fence(storage.url, lost):
        for write in writes:
            with pytest.raises(WorkspaceLost):
                write()
    assert (storage.read_bytes("f/a"), storage.names("f")) == (b"old", ["a"])
    storage.write_bytes("f/a", b"new")


def test_only_the_url_travels_to_other_processes(storage: Storage) -> None:
    storage.exists("anything")  # so that the filesystem is there and could travel, too
    again = pickle.loads(pickle.dumps(storage))
    assert (again, vars(again)) == (storage, {"url": storage.url})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path / "run"))
    storage.write_bytes("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"no space left for a in .*/run \(No space left on device\)\. Make room"):
        storage.write_bytes("a", b"new")
    with storage.scratch() as scratch, pytest.raises(DiskFull, match="no space left for b"):
        (scratch / "built").write_bytes(b"new")
        storage.put(scratch / "built", "b")
    monkeypatch.undo()
    assert [path for path in storage.walk() if not path.startswith(".tmp/")] == ["a"]
    assert storage.read_bytes("a") == b"old"
    storage.clear_temporary()
    assert storage.walk() == ["a"]


def test_file_urls_and_paths_with_spaces_are_local(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/a b")
    storage.write_bytes("c d", b"x")
    assert storage.is_local
    assert (tmp_path / "a b" / "c d").read_bytes() == b"x"


def test_a_damaged_table_is_named(storage: Storage) -> None:
    storage.write_bytes("t.parquet", b"PAR1 nothing PAR1")
    with pytest.raises(ShardError, match=r"t\.parquet cannot be read as parquet: .* Remove it and its receipt, and run again"):
        read_table(storage, "t.parquet")
