"""Flows under Prefect: a stage's policy, and the deployments on a real server, with a real worker."""

import contextlib
import contextvars
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.config import RunConfig
from tasks.policy import stage_task
from tasks.relabelling import DRIFT_EVENT
from winnow.errors import NotEnoughLabels, StepFailed
from winnow.partitions import StageRun

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prefect_database() -> Iterator[None]:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


CONFIG = RunConfig(workspace="unused", manifest="unused.yaml")
DONE = StageRun(stage="some-stage", partitions=(), ran=1, skipped=2, counts={"rows": 30}, seconds=0.1)


@pytest.mark.filterwarnings("default")
def test_a_stage_that_failed_for_a_passing_reason_is_tried_again_and_leaves_a_table(
    prefect_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.artifacts import Artifact

    calls = []

    def stage(config: RunConfig) -> StageRun:
        calls.append(config)
        if len(calls) == 1:
            raise StepFailed("a worker died")
        return DONE

    work = stage_task(stage, name="some-stage").with_options(retry_delay_seconds=0)

    @flow
    def once() -> None:
        work(CONFIG)

    once()
    assert len(calls) == 2
    table = Artifact.get("winnow-some-stage")
    assert table is not None and '"rows": 30' in str(table.data)


@pytest.mark.filterwarnings("default")
def test_a_stage_that_lacks_labels_is_not_tried_again(prefect_database: None) -> None:
    from prefect import flow

    calls = []

    def stage(config: RunConfig) -> StageRun:
        calls.append(config)
        raise NotEnoughLabels("label 30 more")

    work = stage_task(stage, name="lacking")

    @flow
    def once() -> None:
        work(CONFIG)

    with pytest.raises(NotEnoughLabels, match="label 30 more"):
        once()
    assert len(calls) == 1


@pytest.mark.filterwarnings("default")
def test_a_drift_is_told_as_an_event_until_somebody_resumes(
    prefect_database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.events.clients import AssertingEventsClient
    from prefect.events.worker import EventsWorker

    from filters.promotion import note
    from tasks.relabelling import drift_stage, tell_drift
    from tests.test_drift import add
    from winnow.storage import Storage

    storage = Storage(str(tmp_path))
    names = ["0-a", "1-b"]
    config = RunConfig(workspace=str(tmp_path), manifest="unused.yaml", filters=("people",))
    used = {"name": "people", "version": "v1", "threshold": 9.0, "certificate_sha256": "0" * 64}
    storage.write_text("decisions/filters.json", json.dumps([used]))
    for number, name in enumerate(names):
        add(storage, name, seed=number, shift=3.0 * number)
        listed = [{"name": one, "rows": 300} for one in names[: number + 1]]
        storage.write_text("manifest/index.json", json.dumps({"partitions": listed}))
        drift_stage(config)  # the first look writes down the reference
    worker = EventsWorker.instance(AssertingEventsClient)
    monkeypatch.setattr(EventsWorker, "instance", lambda *_: worker)

    @flow
    def tells() -> int:
        return tell_drift(config)

    assert tells() == 1
    note(storage, "people", "resumed", {"person": "eve", "reason": "looked"})
    assert tells() == 0
    worker.drain()
    assert isinstance(worker._client, AssertingEventsClient)
    (event,) = [event for event in worker._client.events if event.event == DRIFT_EVENT]
    assert event.resource["prefect.resource.id"] == "winnow.filter.people"
    assert event.payload["new_images"] == 300 and "stability index" in event.payload["reasons"][0]


@pytest.mark.filterwarnings("default")
def test_a_relabel_run_that_was_asked_to_wait_goes_on_when_its_form_is_sent(
    prefect_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import task
    from prefect.client.orchestration import get_client

    from filters.relabel import Round
    from flows import relabel as module

    rounds = iter([Round(number=1, state="waiting", message="20 images wait"), Round(number=1, state="promoted", message="better")])
    monkeypatch.setattr(module, "relabel_one", task(lambda config, name: next(rounds), name="relabel"))
    monkeypatch.setattr(module, "session", contextlib.nullcontext)
    monkeypatch.setattr(module, "POLL_SECONDS", 1)

    def send_the_form() -> None:
        end = time.monotonic() + 120
        with get_client(sync_client=True) as client:
            while time.monotonic() < end:
                for run in client.read_flow_runs():
                    if run.state is not None and run.state.is_paused():
                        client.resume_flow_run(run.id, run_input={"person": "eve"})
                        return
                time.sleep(0.5)

    sender = threading.Thread(target=contextvars.copy_context().run, args=(send_the_form,))
    sender.start()
    states = module.relabel(CONFIG, ("people",), "pause")
    sender.join()
    assert states == {"people": "promoted"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Prefect server of its own; yields the environment to reach it."""
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "WINNOW_ROOT": str(ROOT),
        "WINNOW_WORKSPACE": str(tmp_path / "workspace"),
        "WINNOW_MANIFEST": str(tmp_path / "manifest.yaml"),
        "WINNOW_CONTACT": "tests@example.org",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/health", process)
        yield environment
    finally:
        _stop(process)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, "the Prefect server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children, all of which this test started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _ask(server: dict[str, str], path: str, data: Any = None) -> Any:
    """The server's own interface: each start of the `prefect` command costs seconds."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(f"{server['PREFECT_API_URL']}/{path}", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def _drift_pauses_relabelling(server: dict[str, str]) -> None:
    """The automation that ships, on a real server: an event of drift pauses the deployment."""

    def relabel_is_paused() -> bool:
        return bool(_ask(server, "deployments/name/relabel/relabel")["paused"])

    for _ in range(2):  # the second time it is there already
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "filter", "automation"], env=server, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 and "drift pauses promotion" in done.stdout, done.stdout + done.stderr
    assert not relabel_is_paused()
    drift = {"event": DRIFT_EVENT, "resource": {"prefect.resource.id": "winnow.filter.people"}}
    _ask(server, "events", [{**drift, "id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat()}])
    end = time.monotonic() + 120
    while not relabel_is_paused():
        assert time.monotonic() < end, "the automation did not fire"
        time.sleep(0.5)


def test_the_deployments_deploy_and_a_worker_runs_the_nightly_one(server: dict[str, str], tmp_path: Path) -> None:
    """Everything up to the labels, which nobody has given: the flow must say so, and nothing else."""
    (tmp_path / "urls.csv").write_text("url,caption\nhttp://127.0.0.1:9/a.jpg,a dog\nfile:///etc/passwd,a cat\n")
    (tmp_path / "manifest.yaml").write_text(
        "name: m\nsources:\n- {name: s, path: urls.csv, licence: CC0-1.0, columns: {url: url, caption: caption}}\n"
    )

    def prefect(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments], env=server, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    prefect("work-pool", "create", "local", "--type", "process")
    prefect("--no-prompt", "deploy", "--all")
    deployments = {
        name: _ask(server, f"deployments/name/{name}")["id"]
        for name in ("curate/nightly", "train/train", "evaluate/evaluate", "audit/audit", "relabel/relabel", "pipeline/pipeline")
    }
    _drift_pauses_relabelling(server)
    worker = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--type", "process"],
        env=server, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        config = {
            "workspace": server["WINNOW_WORKSPACE"], "manifest": server["WINNOW_MANIFEST"], "embed": {"model": "demo"}, "workers": 1,
            "download": {"contact": server["WINNOW_CONTACT"]},
        }  # fmt: skip
        path = f"deployments/{deployments['curate/nightly']}/create_flow_run"
        flow_run = _ask(server, path, {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}})
        end = time.monotonic() + 540
        while flow_run["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            assert time.monotonic() < end, flow_run["state"]
            time.sleep(0.5)
            flow_run = _ask(server, f"flow_runs/{flow_run['id']}")
    finally:
        _stop(worker)
    workspace = Path(server["WINNOW_WORKSPACE"])
    assert list((workspace / "receipts" / "download").iterdir()), flow_run["state"]
    assert list((workspace / "receipts" / "embed").iterdir())
    assert flow_run["state"]["name"] == "Failed"
    assert "NotEnoughLabels" in flow_run["state"]["message"]
