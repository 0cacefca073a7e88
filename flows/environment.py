"""Prefect's surroundings for a run started by hand: its own home in the workspace, nothing sent anywhere.

A server that PREFECT_API_URL names is used as it is; every variable that is already set stays.
"""

import contextlib
import os
from collections.abc import Iterator

from flows.leftovers import end_orphaned_servers, mark_driver
from winnow.digests import SHORT, digest
from winnow.workspace import open_workspace


def prepare(workspace: str) -> None:
    """Sets what Prefect reads when it is first imported: call it before that.

    Raises:
        ConfigError: the workspace cannot be written to.
    """
    storage = open_workspace(workspace)
    # Two servers on one home end in "database is locked": each workspace has its own, and only one run at a time.
    os.environ.setdefault("PREFECT_HOME", storage.full(".prefect") if storage.is_local else _home_of(storage.url))
    end_orphaned_servers(os.environ["PREFECT_HOME"])
    mark_driver()
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # Stages announce themselves; the command line prints errors. Prefect would print both a second time.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")


def _home_of(url: str) -> str:
    """Prefect's home for a workspace that is on no disk: its database is a file."""
    home = os.path.join(os.path.expanduser("~"), ".cache", "winnow", "prefect", digest(url)[:SHORT])
    os.makedirs(home, exist_ok=True)  # Prefect makes the last folder alone
    return home


@contextlib.contextmanager
def by_hand() -> Iterator[None]:
    """Switches flows' heartbeats off for a run without a server: nobody listens, and ending each flow would wait a second for them."""
    if "PREFECT_API_URL" in os.environ:
        yield
        return
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
