"""The opt-out list against what is listed: a step over partitions that finds who is meant and leaves a note for whoever forgets them.

forgotten/found/<partition>.json    uids that are on the list; gone when they have been forgotten
"""

import json
from functools import lru_cache

from winnow.digests import digest
from winnow.errors import ConfigError
from winnow.forget_match import Match, Wanted, match_partition, read_list
from winnow.forgotten import FOLDER
from winnow.partitions import Outcome
from winnow.storage import Storage

VERSION = 1
STAGE = "opt-out"
FOUND = f"{FOLDER}/found"


def list_digest(wanted: Wanted) -> str:
    """Of what a list says, in whatever order and form."""
    return digest([sorted(wanted.uids), sorted(wanted.urls), sorted(wanted.sha256s), sorted(wanted.domains)])


def find_opted_out(storage: Storage, name: str, *, path: str, sha256: str) -> Outcome:
    """Notes which samples of a partition are on the list.

    Args:
        path: of the list.
        sha256: `list_digest` of it, as the run was planned with.

    Raises:
        ConfigError: the list has changed since.
    """
    found = match_partition(storage, name, _wanted(path, sha256))
    if found:
        storage.write_text(f"{FOUND}/{name}.json", json.dumps([match.uid for match in found], indent=1) + "\n")
    return Outcome(outputs=(), counts={"opted_out": len(found)})


@lru_cache(maxsize=1)
def _wanted(path: str, sha256: str) -> Wanted:
    """One a worker process: a list may have millions of lines."""
    wanted = read_list(path)
    if list_digest(wanted) != sha256:
        raise ConfigError(f"{path} changed while it was being worked through. Run again.")
    return wanted


def noted(storage: Storage) -> list[Match]:
    """Everyone who is meant and has not been forgotten yet."""
    found = []
    for name in storage.names(FOUND):
        uids = json.loads(storage.read_bytes(f"{FOUND}/{name}"))
        found += match_partition(storage, name.removesuffix(".json"), Wanted(uids=frozenset(uids)))
    return found


def clear_notes(storage: Storage) -> None:
    for name in storage.names(FOUND):
        storage.remove(f"{FOUND}/{name}")
