"""Ends what a killed run left running: Prefect starts a temporary server for a run, and SIGKILL gives nobody time to stop it."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

DRIVER = "WINNOW_DRIVER"
"""Environment variable that tells a run's children the process they belong to."""


def mark_driver() -> None:
    """From here on, children of this process are known as its own."""
    os.environ[DRIVER] = str(os.getpid())


def end_orphaned_servers(prefect_home: str) -> list[int]:
    """Asks the temporary Prefect servers of this home whose run is no more to end; their pids. Does nothing where there is no /proc."""
    ended = []
    for pid, environment in _environments():
        driver = environment.get(DRIVER, "")
        if (
            environment.get("PREFECT__SERVER_EPHEMERAL") == "1"
            and environment.get("PREFECT_HOME") == prefect_home
            and driver.isdigit()
            and not Path("/proc", driver).exists()
        ):
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGTERM)
                ended.append(pid)
    return ended


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    """Processes whose environment we may read, which are our user's."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            content = (folder / "environ").read_bytes()
        except OSError:  # another user's, or gone
            continue
        pairs = (entry.partition("=") for entry in content.decode(errors="replace").split("\0"))
        yield int(folder.name), {name: value for name, _, value in pairs}
