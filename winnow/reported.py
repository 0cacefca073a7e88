"""Images that a person reported as illegal: dropped whatever their scores, and never shown again.

`decisions/reported.json`: uid -> partition. It comes from the label store before every scoring.
"""

import json
from collections.abc import Collection, Sequence

from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import manifest_part

REPORTED = "decisions/reported.json"
REASON = "reported"
"""Stands among the reasons of such an image, like a filter's name."""


def read_reported(storage: Storage) -> dict[str, frozenset[str]]:
    """Partition -> its reported uids."""
    if not storage.exists(REPORTED):
        return {}
    found: dict[str, set[str]] = {}
    for uid, partition in json.loads(storage.read_bytes(REPORTED)).items():
        found.setdefault(partition, set()).add(uid)
    return {partition: frozenset(uids) for partition, uids in found.items()}


def write_reported(storage: Storage, uids: Collection[str], partitions: Sequence[str]) -> None:
    """Records reported uids with the partition each is in; those that no partition lists are left out. What stands is left alone."""
    known: dict[str, str] = json.loads(storage.read_bytes(REPORTED)) if storage.exists(REPORTED) else {}
    found = {uid: partition for uid, partition in known.items() if uid in uids and partition in partitions}
    sought = set(uids) - set(found)
    for partition in sorted(partitions):
        if not sought:
            break
        here = sought.intersection(read_table(storage, manifest_part(partition), ["uid"]).column("uid").to_pylist())
        found.update(dict.fromkeys(here, partition))
        sought -= here
    if found != known:
        storage.write_text(REPORTED, json.dumps(found, sort_keys=True, indent=1) + "\n")
