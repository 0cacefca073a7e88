"""Failures that another run may mend: which partitions hold some, and when they were last tried.

    later/<partition>.<runs>.<seconds since 1970>.<rows>-<of how many>.json

One small file a partition with passing failures, written by the download. All that decides whether it is tried again stands in the
name: one listing says what is due. The clock is in these files only, never in what is downloaded.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from winnow.errors import ConfigError
from winnow.storage import Storage

FOLDER = "later"


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterConfig:
    """Whether failures that may have passed are tried again on later runs."""

    runs: int = 3
    """In which a url is tried at most; 1: in no later run."""
    pause_hours: float = 12.0
    """Since the last try."""
    min_share: float = 0.01
    """Of a partition's urls that must have failed so. All that follows from a partition is done again after it changed, and features of
    ten thousand images are a high price for a few."""

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ConfigError(f"later_runs must be at least 1, got {self.runs}")
        if not self.pause_hours >= 0:
            raise ConfigError(f"later_pause_hours must be 0 or more, got {self.pause_hours}")
        if not 0 <= self.min_share <= 1:
            raise ConfigError(f"later_min_share must be between 0 and 1, got {self.min_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Later:
    """A partition with passing failures."""

    partition: str
    runs: int
    """That tried them."""
    asked_at: int
    """Seconds since 1970."""
    num_rows: int
    """That failed for a passing cause."""
    of_rows: int

    @property
    def path(self) -> str:
        return f"{FOLDER}/{self.partition}.{self.runs}.{self.asked_at}.{self.num_rows}-{self.of_rows}.json"

    def is_due(self, config: LaterConfig, now: float) -> bool:
        return (
            self.runs < config.runs
            and now - self.asked_at >= config.pause_hours * 3600
            and self.num_rows >= max(1.0, config.min_share * self.of_rows)
        )


def list_later(storage: Storage) -> dict[str, Later]:
    """Partition -> what is known of it. Where a kill left two files, the one of more runs counts."""
    found: dict[str, Later] = {}
    for name in storage.names(FOLDER):
        entry = _parsed(name)
        if entry is not None and (entry.partition not in found or found[entry.partition].runs <= entry.runs):
            found[entry.partition] = entry
    return found


def write_later(storage: Storage, entry: Later, causes: Mapping[str, Any], *, earlier: Later | None) -> None:
    """Replaces what was known of a partition; with no rows, nothing is known any more."""
    if entry.num_rows:
        storage.write_text(entry.path, json.dumps(dict(causes), sort_keys=True) + "\n")
    if earlier is not None and (earlier.path != entry.path or not entry.num_rows):
        storage.remove(earlier.path)


def forget_later(storage: Storage, known: Mapping[str, Later], partitions: Iterable[str]) -> None:
    """Removes what is known of any other partition than these."""
    for name in known.keys() - set(partitions):
        storage.remove(known[name].path)


def _parsed(name: str) -> Later | None:
    try:
        partition, runs, asked_at, rows, ending = name.split(".")
        num_rows, _, of_rows = rows.partition("-")
        entry = Later(partition=partition, runs=int(runs), asked_at=int(asked_at), num_rows=int(num_rows), of_rows=int(of_rows))
    except ValueError:
        return None
    return entry if ending == "json" else None
