"""What earlier stages left in the workspace: stages find their inputs by receipts, never by what was passed along."""

import json
from collections import Counter

from winnow.digests import digest
from winnow.errors import ConfigError
from winnow.receipts import list_done
from winnow.storage import Storage
from winnow.workspace import MANIFEST_INDEX

COMMANDS = {"train": "train models", "sample": "audit-samples", "contamination": "duplicates"}
"""What runs a stage alone, where that is not its own name."""


def partitions(storage: Storage) -> list[str]:
    """Names of the manifest's partitions, in order."""
    if not storage.exists(MANIFEST_INDEX):
        raise ConfigError(f"{storage.url} has no manifest yet: run `winnow manifest CONFIG` first")
    return [entry["name"] for entry in json.loads(storage.read_bytes(MANIFEST_INDEX))["partitions"]]


def outputs(storage: Storage, stage: str, wanted: list[str] | None = None) -> dict[str, str]:
    """Partition -> output digest of a stage that must be done.

    Raises:
        ConfigError: it is not done, for some of the `wanted` partitions or at all.
    """
    standing = list_done(storage, stage)
    receipts = Counter(done.partition for done in standing)
    # Of two receipts neither may speak: see `run_step`, which does such a partition again.
    found = {done.partition: done.output for done in standing if receipts[done.partition] == 1}
    missing = [name for name in wanted if name not in found] if wanted is not None else ([] if found else ["everything"])
    if missing:
        command = f"winnow {COMMANDS.get(stage, stage)} CONFIG"
        raise ConfigError(f"{stage} is not done for {missing[0]} ({len(missing)} missing): run `{command}` first")
    return {name: found[name] for name in wanted} if wanted is not None else found


def outputs_digest(storage: Storage, stage: str, wanted: list[str] | None = None) -> str:
    """One digest over a stage's outputs."""
    return digest(outputs(storage, stage, wanted))
