"""What a killed run leaves running is ended by the next one, and nothing else is."""

import os
import subprocess
import sys

import pytest

from flows.leftovers import DRIVER, end_orphaned_servers

HOME = "/somewhere/.prefect"


@pytest.fixture
def start():
    """Starts a stand-in for a server that waits for its end."""
    running = []

    def start(**environment):
        process = subprocess.Popen(
            [sys.executable, "-c", "print('up', flush=True); input()"],
            env={**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_HOME": HOME, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"up\n"
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def gone():
    """The pid of a process that was, as text."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_only_the_server_whose_run_is_no_more_is_ended(start, gone):
    orphan = start(**{DRIVER: gone})
    others = [
        start(**{DRIVER: str(os.getpid())}),
        start(**{DRIVER: gone, "PREFECT_HOME": "/elsewhere/.prefect"}),
        start(**{DRIVER: gone, "PREFECT__SERVER_EPHEMERAL": "0"}),
        start(),
    ]
    assert end_orphaned_servers(HOME) == [orphan.pid]
    orphan.wait(timeout=10)
    assert [process.poll() for process in others] == [None] * len(others)
