"""A workspace: made if absent, refused if it cannot be written, held by one run at a time."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from winnow.errors import ConfigError, WorkspaceBusy
from winnow.storage import Storage
from winnow.workspace import MANIFEST_INDEX, existing_workspace, locked, open_workspace

HOLDER = """
import sys
from winnow.workspace import locked, open_workspace
with locked(open_workspace(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_workspace_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    storage = open_workspace(str(tmp_path / "a b" / "run"))
    assert (storage.url, os.listdir(tmp_path / "a b" / "run")) == (str(tmp_path / "a b" / "run"), [])
    assert open_workspace(str(tmp_path / "a b" / "run")) == storage


def test_a_relative_path_is_settled_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_workspace("run")
    monkeypatch.chdir("/")
    storage.write_text("a", "x")
    assert (tmp_path / "run" / "a").read_text() == "x"


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"workspace .*/run cannot be written to: File exists. Give another one"):
        open_workspace(str(tmp_path / "run"))


def test_a_workspace_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"workspace /proc/winnow cannot be written to: .* Give another one"):
        open_workspace("/proc/winnow")


def test_a_second_run_is_refused_and_told_who_holds_the_workspace(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        storage = open_workspace(str(tmp_path / "run"))
        with (
            pytest.raises(
                WorkspaceBusy,
                match=rf"is in use by another run \(process {holder.pid} on .*\)\. Wait for it to end \(--wait SECONDS\), stop it",
            ),
            locked(storage),
        ):
            pass
        # A run that is killed outright frees the workspace: no lock is left behind.
        holder.kill()
        holder.wait()
        with locked(storage):
            assert json.loads(storage.read_text(".lock"))["pid"] == os.getpid()


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    storage = open_workspace(str(tmp_path / "run"))
    storage.write_text("finished", "x")
    storage.write_text(".tmp/half", "y")
    with locked(storage):
        assert storage.walk() == [".lock", "finished"]


def test_a_second_run_may_wait_for_the_first_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.3, holder.stdin.close).start()
        with locked(open_workspace(str(tmp_path / "run")), wait_seconds=60):
            assert holder.wait() == 0


def test_a_folder_that_no_run_wrote_is_no_workspace_to_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"is no workspace: there is no {MANIFEST_INDEX} in it"):
        existing_workspace(str(tmp_path))
    Storage(str(tmp_path)).write_text(MANIFEST_INDEX, "{}")
    assert existing_workspace(str(tmp_path)).url == str(tmp_path)
