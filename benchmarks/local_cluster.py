"""A Ray cluster of several nodes on this machine, each node as `ray start` makes it, and a way to kill one as a power cut would.

The nodes share this machine's disk and host name; otherwise they are what pods are: processes of their own that know each
other by address and token. A lost node is noticed after 2 s instead of Ray's 15 or more.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
SECONDS_TO_START = 120
STORE = "--object-store-memory=80000000"
TOKEN = secrets.token_hex(32)
"""One for all clusters of a process: Ray reads it once."""
QUICK = {"RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "400", "RAY_health_check_failure_threshold": "5"}


class LocalCluster:
    """`with LocalCluster(nodes=2, cpus=1) as cluster: ...`: RAY_ADDRESS names it meanwhile.

    The head has no CPU, so that no step runs where the driver is, and no kill hits the driver.
    """

    def __init__(self, *, nodes: int, cpus: int, code: Path | None = None) -> None:
        """`code`: folder that the nodes import Winnow from; None: this one."""
        self.num_nodes, self.cpus = nodes, cpus
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._started = 0
        # AF_UNIX paths have 107 letters: no deep folder.
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.settings = {
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **QUICK,
        }  # fmt: skip
        if code is not None:
            self.settings["PYTHONPATH"] = str(code)
        self.head: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> "LocalCluster":
        try:
            port = self.address.rpartition(":")[2]
            self.head = self._start(["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self.folder}"])
            for _ in range(self.num_nodes):
                self.add_node()
        except BaseException:
            self.__exit__()
            raise
        self._before = {name: os.environ.get(name) for name in (*self.settings, "RAY_ADDRESS")}
        os.environ.update(self.settings, RAY_ADDRESS=self.address)
        return self

    def __exit__(self, *exception: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for process in [*self.workers, *([self.head] if self.head else [])]:
            _kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self, before: str = "") -> subprocess.Popen[bytes]:
        """Starts one more worker node and returns it.

        Args:
            before: a shell command that the node runs first, in a mount namespace of its own: it may see other disks (needs root).
        """
        wrapper = ["unshare", "--mount", "sh", "-c", f'{before} && exec "$@"', "node"] if before else []
        self.workers.append(self._start([f"--address={self.address}", f"--num-cpus={self.cpus}"], wrapper))
        return self.workers[-1]

    def node_of(self, pid: int) -> subprocess.Popen[bytes] | None:
        """The worker node that a process belongs to; None if it is gone."""
        return next((node for node in self.workers if pid in _below(node.pid)), None)

    def kill_node(self, node: subprocess.Popen[bytes]) -> int:
        """SIGKILL to every process of a node at once; returns how many."""
        self.workers.remove(node)
        return _kill(node)

    @property
    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.settings}

    def _start(self, arguments: list[str], wrapper: list[str] | None = None) -> subprocess.Popen[bytes]:
        command = [*(wrapper or []), RAY, "start", "--block", STORE, "--min-worker-port=0", "--max-worker-port=0", *arguments]
        log = Path(self.folder) / f"node-{self._started}.log"
        self._started += 1
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=self._env, stdout=stream, stderr=stream, start_new_session=True)
        # One after the other: nodes that start at the same moment on one machine take the same name for their sockets.
        end = time.monotonic() + SECONDS_TO_START
        while "Ray runtime started" not in log.read_text():  # said when the head knows the node
            if process.poll() is not None or time.monotonic() > end:
                _kill(process)
                raise RuntimeError(f"a node did not start within {SECONDS_TO_START} s:\n{log.read_text()}")
            time.sleep(0.05)
        return process


def _kill(process: subprocess.Popen[bytes]) -> int:
    """Stops the whole tree first, so that no parent can react to the death of a child, then kills it."""
    tree = [process.pid, *_below(process.pid)]
    for sign in (signal.SIGSTOP, signal.SIGKILL):
        for pid in tree:
            _send(pid, sign)
        tree = sorted({*tree, *(below for pid in tree for below in _below(pid))})
    process.wait(30)
    return len(tree)


def _send(pid: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


def _below(pid: int) -> Iterator[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        found = [int(child) for child in children.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in found:
        yield child
        yield from _below(child)
