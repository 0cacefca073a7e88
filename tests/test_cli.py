import contextlib
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from flows.cli import cli, main

ROOT = Path(__file__).resolve().parent.parent


def winnow(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command does, in this process: starting one that imports torch takes seconds each time."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    command = ["winnow", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.setattr(os, "environ", os.environ.copy())  # a run sets Prefect's and Ray's variables
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_each_command_answers_help_with_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["winnow", *path, "--help"])
    main()
    assert f"Example: winnow {' '.join(path)}" in capsys.readouterr().out


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_each_command_is_in_the_docs(path: tuple[str, ...]) -> None:
    assert f"`winnow {' '.join(path)}" in (ROOT / "docs" / "cli.md").read_text()


def test_help_imports_neither_prefect_nor_torch_nor_ray() -> None:
    code = (
        "import sys; from flows.cli import cli; cli(['-h'], standalone_mode=False); print({'prefect', 'torch', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A config that is right in everything."""
    (tmp_path / "urls.csv").write_text("url,caption\nhttp://127.0.0.1:9/a.jpg,a dog\n")
    (tmp_path / "manifest.yaml").write_text(
        "name: m\nsources:\n- {name: s, path: urls.csv, licence: CC0-1.0, columns: {url: url, caption: caption}}\n"
    )
    (tmp_path / "run.yaml").write_text(
        # Demo recipes: the others read a vocabulary that must be fetched.
        "workspace: out\nmanifest: manifest.yaml\nembed: {model: demo}\ntrain: [demo-base]\nsample: {recipe: demo-base}\n"
        "download: {contact: you@example.org}\n"
    )
    return tmp_path


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """One screen, exit code 2, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 12


def test_a_dry_run_prints_the_settled_config_and_does_nothing(photos: Path) -> None:
    done = winnow("run", str(photos / "run.yaml"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"workspace: {photos}/out" in done.stdout and "num_prompts: 30000" in done.stdout
    assert not (photos / "out" / "manifest").exists()


def test_an_unknown_key_stops_the_run_before_any_work(photos: Path) -> None:
    (photos / "run.yaml").write_text("workspace: out\nmanifest: manifest.yaml\nlables: x\n")
    refused(winnow("run", str(photos / "run.yaml")), "lables: unknown setting. Known: workspace, manifest")


def test_missing_weights_stop_the_run_and_say_what_to_fetch(photos: Path) -> None:
    (photos / "run.yaml").write_text("workspace: out\nmanifest: manifest.yaml\nembed: {weights: gone.safetensors}\n")
    done = winnow("run", str(photos / "run.yaml"))
    refused(done, f"CLIP weights {photos}/gone.safetensors do not exist. On a machine with a network, fetch https://huggingface.co/")
    assert not (photos / "out" / "manifest").exists()


def test_an_empty_manifest_stops_the_stage(photos: Path) -> None:
    (photos / "urls.csv").write_text("url,caption\n")
    done = winnow("manifest", str(photos / "run.yaml"))
    refused(done, "urls.csv")
    assert "empty" in done.stderr or "no rows" in done.stderr


def test_an_unwritable_workspace_stops_the_run(photos: Path) -> None:
    (photos / "file").write_text("")
    (photos / "run.yaml").write_text("workspace: file/out\nmanifest: manifest.yaml\nembed: {model: demo}\n")
    refused(winnow("run", str(photos / "run.yaml")), "cannot be written to: Not a directory. Give another one")


def test_a_port_in_use_stops_the_demo(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(winnow("demo", "--workspace", str(tmp_path), "--port", str(port)), f"port {port} of 127.0.0.1 is in use")


def test_a_second_run_on_the_same_workspace_is_told_who_holds_it(photos: Path) -> None:
    code = (
        "import sys, time; from winnow.workspace import *; s = open_workspace(sys.argv[1])\n"
        "with locked(s): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(photos / "out")], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = winnow("manifest", str(photos / "run.yaml"))
        holder.kill()
    refused(done, "is in use by another run")
    assert str(holder.pid) in done.stderr


def test_verify_of_a_folder_without_a_run_says_what_is_missing(tmp_path: Path) -> None:
    refused(winnow("verify", str(tmp_path)), "is no workspace: there is no manifest/index.json in it")
