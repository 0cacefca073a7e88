"""A run holds its workspace: one process at a time, Ray started when there is work, everything checked before anything runs."""

import contextlib
import json
import os
from collections.abc import Iterator

from models.clip_embedder import resolve_weights
from models.embedding import folder_images
from models.references import reference_digest
from tasks.config import RunConfig, label_store_path, plain
from winnow.errors import ConfigError
from winnow.forget_match import read_list
from winnow.forgotten import open_events
from winnow.manifest import load_manifest
from winnow.partitions import stop_ray
from winnow.storage import Storage
from winnow.workspace import locked, open_workspace

WAIT = "WINNOW_WAIT_SECONDS"
_held: set[str] = set()
"""Workspaces this process holds: a flow within a flow works in its caller's session."""


@contextlib.contextmanager
def session(config: RunConfig) -> Iterator[Storage]:
    """Opens and locks the config's workspace, and ends Ray afterwards.

    Raises:
        ConfigError: a setting cannot work (see `preflight`).
        WorkspaceBusy: another run holds the workspace.
    """
    storage = open_workspace(config.workspace)
    if storage.url in _held:
        yield storage
        return
    preflight(config)
    with locked(storage, wait_seconds=wait_seconds()):
        _held.add(storage.url)
        try:
            storage.write_text("run.json", json.dumps(plain(config), sort_keys=True, indent=1) + "\n")
            _complete_forgetting(storage, config)
            yield storage
        finally:
            _held.discard(storage.url)
            stop_ray()


def _complete_forgetting(storage: Storage, config: RunConfig) -> None:
    """What was to be forgotten goes before anything is done with what there is: a call that should have done it was killed."""
    if open_events(storage):
        from tasks.forgetting import complete  # it needs stages, which most commands do not

        complete(storage, config)


def wait_seconds() -> float:
    """How long to wait for another run's end, from WINNOW_WAIT_SECONDS. Raises ConfigError if it is no time."""
    text = os.environ.get(WAIT, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{WAIT} must be a number of seconds, 0 or more, got {text!r}")
    return seconds


def preflight(config: RunConfig) -> None:
    """Looks at everything a run needs before it does any work.

    Raises:
        ConfigError: manifest, weights, labels or imports are missing or wrong.
    """
    load_manifest(config.manifest)
    label_store_path(Storage(config.workspace), config)
    resolve_weights(config.embed)
    if config.labels is not None and not Storage(config.labels).exists(""):
        raise ConfigError(f"labels: there is no table {config.labels}")
    for source in config.duplicates.references.values():
        reference_digest(source)
    if config.opt_out is not None:
        read_list(config.opt_out)
    for name, folder in config.imports.items():
        if not folder_images(folder):
            raise ConfigError(f"imports: the folder {folder} for {name} is empty")
