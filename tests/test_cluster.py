"""A cluster of several nodes: one is lost in the middle of a stage, one sees another disk, one has other code."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401  # here: Ray keeps the way of authentication that it finds when it is first imported

from benchmarks.local_cluster import LocalCluster
from winnow import nodes, partitions
from winnow.errors import ConfigError
from winnow.nodes import Owner, check_node, code_digest, owner_of
from winnow.partitions import EVERY_CPU, run_step
from winnow.processes import Process
from winnow.receipts import list_done
from winnow.storage import Storage

sys.path.insert(0, str(Path(__file__).parent))
from node_loss import NUM_PARTITIONS, slow, works

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    # From a copy: whoever edits a file meanwhile would make it other code than that of the nodes.
    code = tmp_path_factory.mktemp("code")
    for package in nodes.PACKAGES:
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    with LocalCluster(nodes=2, cpus=1, code=code) as cluster:
        yield cluster


def start(workspace: Path) -> "subprocess.Popen[str]":
    """The driver; LocalCluster has set what it needs to know. Workers import from where it stands, too."""
    command = [sys.executable, str(ROOT / "tests" / "node_loss.py"), str(workspace)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.environ["PYTHONPATH"])


def answer(driver: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors[-3000:]
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def busy_node(cluster: LocalCluster, storage: Storage) -> "subprocess.Popen[bytes]":
    """A node in the middle of a partition."""
    while True:
        done = {done.partition for done in list_done(storage, "slow")}
        begun = [int(pid) for work in works() if work.name not in done for pid in storage.names(f"begun/{work.name}")]
        for pid in begun:
            if (node := cluster.node_of(pid)) is not None:
                return node
        time.sleep(0.01)


def test_a_node_killed_in_the_middle_of_a_stage_changes_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    alone, storage = Storage(str(tmp_path / "alone")), Storage(str(tmp_path / "cluster"))
    expected = run_step(slow, works()[:2], alone, stage="slow", version=1).outputs
    driver = start(tmp_path / "cluster")
    while len(storage.names("receipts/slow")) < 3:
        assert driver.poll() is None, driver.communicate()[1][-3000:]
        time.sleep(0.01)
    cluster.kill_node(busy_node(cluster, storage))
    done_before = len(storage.names("receipts/slow"))
    found = answer(driver)
    assert done_before < NUM_PARTITIONS
    assert (found["ran"], found["counts"], len(found["outputs"])) == (NUM_PARTITIONS, {"rows": 3 * NUM_PARTITIONS}, NUM_PARTITIONS)
    assert {name: found["outputs"][name] for name in expected} == expected
    assert [storage.read_text(f"out/{work.name}") for work in works()] == [f"what {work.name} holds" for work in works()]
    begun = [len(storage.names(f"begun/{work.name}")) for work in works()]
    assert sum(begun) > NUM_PARTITIONS, "the kill hit nothing that was running"
    assert [name for name in storage.names(".tmp") if name.startswith("run-")] == [], "the run's mark is left"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a node another disk")
def test_a_node_that_sees_another_disk_is_named_before_anything_runs(cluster: LocalCluster, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    node = cluster.add_node(before=f"mount -t tmpfs none '{workspace}'")
    try:
        refused = answer(start(workspace))["refused"]
    finally:
        cluster.kill_node(node)
    assert refused.startswith("ConfigError: ") and f"does not see the run's files in {workspace}" in refused
    assert "on an object store" in refused
    assert not (workspace / "receipts").exists() and not (workspace / "begun").exists()


# Without a cluster: what the driver decides, what each worker looks at


def test_the_client_server_of_a_cluster_is_refused_with_the_way_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"`ray start --address=HOST:6379 --num-cpus=0`"):
        partitions.start_ray(2)


def test_the_window_follows_the_cluster_and_begins_without_any_node(monkeypatch: pytest.MonkeyPatch) -> None:
    resources: dict[str, float] = {}
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert partitions._window(EVERY_CPU, 0) == 8
    resources.update({"CPU": 64.0, "GPU": 4.0})
    assert (partitions._window(EVERY_CPU, 0), partitions._window(EVERY_CPU, 0.5), partitions._window(12, 0)) == (128, 16, 12)
    monkeypatch.delenv("RAY_ADDRESS")
    assert partitions._window(EVERY_CPU, 0) == os.cpu_count()


def test_the_run_itself_may_work_for_itself(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with owner_of(storage, compare=True) as owner:
        assert owner.mark is not None and storage.exists(owner.mark)
        assert owner.refusal(storage) is None
        owner.ensure_at_work()
        check_node(owner, storage)
    assert not storage.exists(owner.mark)


def test_a_worker_whose_workspace_has_no_mark_refuses(tmp_path: Path) -> None:
    with (
        owner_of(Storage(str(tmp_path / "here")), compare=True) as owner,
        pytest.raises(ConfigError, match="Put the workspace on a file system"),
    ):
        check_node(owner, Storage(str(tmp_path / "there")))


def test_a_worker_with_other_code_refuses(tmp_path: Path) -> None:
    owner = Owner(process=Process.this(), code="0" * 64)
    with pytest.raises(ConfigError, match=rf"other code of Winnow than the run \({code_digest()[:12]}, the run has 000000000000\)"):
        check_node(owner, Storage(str(tmp_path)))


def test_the_digest_of_the_code_follows_every_file_that_runs_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("winnow/nodes.py", "filters/svm.py", "models/unet.py", "tasks/data.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(nodes, "__file__", str(tmp_path / "winnow" / "nodes.py"))
    before = code_digest.__wrapped__()
    for name, counts in (("filters/svm.py", True), ("models/unet.py", True), ("tasks/data.py", False)):
        (tmp_path / name).write_text("x = 2\n")
        assert (code_digest.__wrapped__() != before) == counts
        before = code_digest.__wrapped__()
