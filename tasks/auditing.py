"""Audits of a run's filters: draw a batch for the label page, and take its result into the workspace for the report."""

import json
from typing import Any

from filters.audit_batch import AuditPlan, draw_audit
from filters.audit_result import audit_result
from filters.catalog import FILTERS
from filters.label_batches import find_batch
from filters.label_records import Batch
from filters.labels import LabelStore
from tasks.config import RunConfig
from tasks.filtering import label_store_path
from winnow.errors import ConfigError
from winnow.report.audits import audit_path
from winnow.workspace import existing_workspace


def draw(config: RunConfig, filter_name: str, plan: AuditPlan, *, person: str) -> Batch:
    """An audit batch, to be answered with `winnow label CONFIG FILTER --mode audit`.

    Raises:
        ConfigError: an unknown filter, or nothing scored with it yet.
        NotEnoughLabels: too few confirmed positives for the honeypots.
    """
    _check(filter_name)
    storage = existing_workspace(config.workspace)
    with LabelStore.open(label_store_path(storage, config)) as store:
        return draw_audit(storage, store, filter_name, plan, person=person)


def result(config: RunConfig, filter_name: str, batch_name: str | None, *, person: str, command: str) -> tuple[dict[str, Any], str]:
    """Takes the result of a batch (None: the latest audit) and writes it where the report looks; returns it and its path.

    Raises:
        ConfigError: an unknown filter or batch.
    """
    _check(filter_name)
    storage = existing_workspace(config.workspace)
    with LabelStore.open(label_store_path(storage, config)) as store:
        batch = find_batch(store, filter_name, batch_name or _latest(store, filter_name))
        found = audit_result(storage, store, batch, person=person, command=command)
    path = audit_path(filter_name, batch.name)
    storage.write_text(path, json.dumps(found, sort_keys=True, indent=1) + "\n")
    return found, storage.place(path)


def _latest(store: LabelStore, filter_name: str) -> str:
    audits = [batch for batch in store.all_batches(filter_name) if batch.mode == "audit"]
    if not audits:
        raise ConfigError(f"{filter_name} has no audit batch yet: draw one with `winnow audit draw CONFIG {filter_name} --seed N`")
    return max(audits, key=lambda batch: batch.created_at).name


def _check(filter_name: str) -> None:
    if filter_name not in FILTERS:
        raise ConfigError(f"there is no filter {filter_name!r}. Choose from: {', '.join(FILTERS)}")
