"""Setting a training's folder aside on an object store, where folders cannot be renamed: its files are copied there, then removed.

`run.json` is copied last and removed first. So a folder that has one is all there, whatever was killed; what is in one without stands
elsewhere, too.
"""

import json
import logging
from typing import Any

from winnow.digests import SHORT, digest
from winnow.storage import Storage

logger = logging.getLogger(__name__)

MARKER = "run.json"
SET_ASIDE = "%s was trained on other shards or with another recipe: kept as %s. Remove it if it is not needed."


def keep_apart_on_store(storage: Storage, folder: str, purpose: dict[str, Any]) -> None:
    """Makes `folder` the one of a training with this purpose, new or as it was left; one of another purpose is set aside."""
    marker = f"{folder}/{MARKER}"
    found = json.loads(storage.read_bytes(marker)) if storage.exists(marker) else None
    if found == purpose:
        return
    if found is not None:
        aside = name_aside(folder, found)
        _move(storage, folder, aside)
        logger.warning(SET_ASIDE, storage.place(folder), storage.place(aside))
    storage.remove_folder(folder)  # what a kill left of moving one: it is aside
    earlier = name_aside(folder, purpose)
    if storage.exists(f"{earlier}/{MARKER}"):
        _move(storage, earlier, folder)
    else:
        storage.write_text(marker, json.dumps(purpose, sort_keys=True) + "\n")


def name_aside(folder: str, purpose: dict[str, Any]) -> str:
    """What the folder of a training with this purpose is called while another one has its place."""
    return f"{folder}.{digest(purpose)[:SHORT]}"


def _move(storage: Storage, folder: str, to: str) -> None:
    marker = f"{folder}/{MARKER}"
    paths = sorted(storage.walk(folder), key=lambda path: path == marker)
    for path in paths:
        storage.copy(path, to + path.removeprefix(folder))
    storage.remove(marker)
    storage.remove_folder(folder)
