"""What was fetched survives the process that fetched it, and nothing that was cut is taken for whole."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow import journal as journals
from winnow.journal import SETTLED, Fetched, Journal, journal_of, journals_folder, remove_journals
from winnow.storage import Storage

IMAGE = Fetched(cause=None, sha256="ab" * 32, width=64, height=48)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def filled(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.add("a", IMAGE, b"first image")
    journal.add("b", Fetched(cause="timeout", detail="no answer, é"))
    journal.add("c", IMAGE, b"second")
    journal.add("b", Fetched(cause="http_404", detail="Not Found"))
    journal.add("d", Fetched(cause="broken_url", detail=""), settled=True)
    journal.note(base="x")
    return journal


def test_another_process_goes_on_where_one_was_killed(folder: Path) -> None:
    filled(folder)  # and never closed
    journal = Journal(folder)
    assert {uid: (result.cause, journal.tries[uid]) for uid, result in journal.results.items()} == {
        "a": (None, 1), "b": ("http_404", 2), "c": (None, 1), "d": ("broken_url", SETTLED),
    }  # fmt: skip
    assert (journal.image("a"), journal.image("c"), journal.notes) == (b"first image", b"second", {"base": "x"})
    assert (journal.results["b"].http_status, journal.results["b"].detail, journal.results["a"].width) == (404, "Not Found", 64)
    journal.add("e", IMAGE, b"third")
    again = Journal(folder)
    assert [again.image(uid) for uid in "ace"] == [b"first image", b"second", b"third"]


@given(cut=st.integers(0, 800), images=st.booleans())
@settings(max_examples=60, deadline=None)
def test_wherever_a_file_ends_what_is_there_is_right(cut: int, images: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = filled(folder)
    path = folder / ("images" if images else "index.jsonl")
    os.truncate(path, min(cut, path.stat().st_size))
    journal = Journal(folder)
    for uid, result in journal.results.items():
        if result.bytes is not None:
            assert journal.image(uid) == whole.image(uid) == {"a": b"first image", "c": b"second"}[uid]
    journal.add("e", IMAGE, b"third")
    assert Journal(folder).image("e") == b"third"


def test_a_changed_byte_is_noticed(folder: Path) -> None:
    filled(folder).close()
    data = bytearray((folder / "images").read_bytes())
    data[3] ^= 1
    (folder / "images").write_bytes(data)
    assert set(Journal(folder).results) == {"b", "c", "d"}
    text = bytearray((folder / "index.jsonl").read_bytes())
    text[len(text) // 2] ^= 1
    (folder / "index.jsonl").write_bytes(text)
    assert "d" not in Journal(folder).results


def test_what_is_forgotten_stays_forgotten(folder: Path) -> None:
    journal = filled(folder)
    journal.forget("a")
    journal.forget("b")
    assert set(Journal(folder).results) == {"c", "d"}
    journal.clear()
    assert (Journal(folder).results, Journal(folder).notes) == ({}, {})


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with journal_of(storage, "p", {"max_bytes": 1}) as journal:
        journal.add("a", IMAGE, b"x")
    with journal_of(storage, "p", {"max_bytes": 2}) as journal:
        assert journal.results == {}
    with journal_of(storage, "p", {"max_bytes": 1}) as journal:
        assert set(journal.results) == {"a"}
    remove_journals(storage)
    assert not journals_folder(storage).exists()
    with journal_of(storage, "p", {"max_bytes": 1}) as journal:
        assert journal.results == {}


def test_two_at_once_do_not_write_into_one_another(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with journal_of(storage, "p", 1) as first:
        first.add("a", IMAGE, b"x")
        with journal_of(storage, "p", 1) as second:
            assert (second.results, second.folder == first.folder) == ({}, False)
            second.add("a", IMAGE, b"y")
        assert not second.folder.exists()
        assert first.image("a") == b"x"


def test_a_journal_that_was_left_behind_is_not_believed_for_ever(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with journal_of(storage, "p", 1) as journal:
        journal.add("a", IMAGE, b"x")
    long_ago = time.time() - journals.GOOD_SECONDS - 1
    os.utime(journal.folder / "index.jsonl", (long_ago, long_ago))
    with journal_of(storage, "p", 1) as journal:
        assert journal.results == {}


def test_of_a_workspace_elsewhere_it_lies_among_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, other = (journals_folder(Storage(url)) for url in ("memory://one", "memory://other"))
    assert one.parent == other.parent == tmp_path
    assert one != other


def test_a_kill_loses_nothing_that_was_added(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from winnow.journal import Journal, Fetched\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(50): journal.add(str(n), Fetched(cause=None, sha256='x'), b'%d' % n)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    journal = Journal(tmp_path)
    assert [journal.image(str(n)) for n in range(50)] == [b"%d" % n for n in range(50)]
