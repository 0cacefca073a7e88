"""Forgetting of samples, on request and by the opt-out list: who is meant, what it touches, and doing it. How is in winnow/forget.py."""

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from filters.forget_derived import redo_derived
from filters.forget_labels import forget_in_labels
from filters.labels import LabelStore
from tasks.config import RunConfig, read_config, run_config
from tasks.evaluation import report_stage
from tasks.filtering import label_store_path
from tasks.session import wait_seconds
from winnow import forget
from winnow.errors import ConfigError
from winnow.forget_match import UNDECIDED, Match, Wanted, find_imported, find_listed, tell
from winnow.forgotten import FORGOTTEN, Event, open_events, read_rows
from winnow.run_files import partitions
from winnow.storage import Storage
from winnow.workspace import REPORT, existing_workspace, locked


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """What was forgotten, or would be."""

    events: tuple[Event, ...]
    """Those completed now; none of a dry run."""
    plan: forget.Plan | None
    """None: nothing new was to be forgotten."""

    @property
    def counts(self) -> dict[str, int]:
        """What the decision log said of them -> samples."""
        return tell(self.plan.matches) if self.plan else {}


def settings_of(where: str) -> RunConfig:
    """The settings of a workspace: from a config, or from what its last run wrote down.

    Args:
        where: a config file, or a workspace.

    Raises:
        ConfigError: neither.
    """
    if "://" not in where and Path(where).is_file():
        return read_config(where)
    storage = existing_workspace(where)
    if not storage.exists("run.json"):
        raise ConfigError(f"{where} holds no run.json, so its label store is not known: give the config it was made with instead")
    values = json.loads(storage.read_bytes("run.json"))
    try:
        return run_config({**values, "workspace": storage.url})  # it may have been moved since
    except ConfigError as problem:
        raise ConfigError(f"{storage.place('run.json')} is of another version: {problem}\nGive a config instead.") from problem


def forget_samples(config: RunConfig, wanted: Wanted, *, reason: str, erase_labels: bool = False, dry_run: bool = False) -> Forgotten:
    """Forgets what is wanted, after completing whatever was cut short before.

    Raises:
        ConfigError: nothing is wanted that this run lists, and nothing was left to complete.
        WorkspaceBusy: a run holds the workspace.
    """
    storage = existing_workspace(config.workspace)
    if dry_run:
        return Forgotten(events=(), plan=forget.plan(storage, _matches(storage, wanted)))
    with locked(storage, wait_seconds=wait_seconds()):
        events = complete(storage, config)
        matches = _matches(storage, wanted)
        if not matches and not events:
            raise ConfigError(
                f"none of the {len(wanted):,} uids, urls, domains and digests given names a sample of {storage.url} "
                "that has not been forgotten yet"
            )
        if matches:
            planned = forget.plan(storage, matches)
            event = forget.start(storage, planned, slug=FORGOTTEN, reason=reason, erase_labels=erase_labels)
            events.append(_apply(storage, config, event))
        return Forgotten(events=tuple(events), plan=planned if matches else None)


def _matches(storage: Storage, wanted: Wanted) -> list[Match]:
    if not len(wanted):
        return []
    return [*find_listed(storage, partitions(storage), wanted), *find_imported(storage, wanted)]


def forget_matches(storage: Storage, config: RunConfig, matches: Sequence[Match], *, slug: str, reason: str) -> Event:
    """Forgets samples that were found already. For whoever holds the workspace."""
    event = forget.start(storage, forget.plan(storage, matches), slug=slug, reason=reason)
    return _apply(storage, config, event)


def complete(storage: Storage, config: RunConfig) -> list[Event]:
    """Completes what was recorded and cut short. For whoever holds the workspace; every run begins with it."""
    return [_apply(storage, config, event) for event in open_events(storage)]


def _apply(storage: Storage, config: RunConfig, event: Event) -> Event:
    labels = functools.partial(_forget_labels, storage, config, erase=event.erase_labels)
    forget.apply(storage, event, forget_labels=labels, redo=redo_derived)
    # The report pictures samples: it is written again, if there is one that can know of them. Its receipt may be gone: a kill came before.
    if storage.exists(REPORT) and any(row["was"] != UNDECIDED for row in read_rows(storage, event)):
        report_stage(config)
    return forget.close(storage, event)


def _forget_labels(
    storage: Storage, config: RunConfig, uids: Collection[str], captions: Collection[str], pictures: Collection[str], *, erase: bool
) -> None:
    path = label_store_path(storage, config) if config.label_store or storage.is_local else None
    if path is None or ("://" not in path and not Path(path).exists()):
        return
    with LabelStore.open(path) as store:
        forget_in_labels(store.database, uids, captions=captions, pictures=pictures, erase=erase)
