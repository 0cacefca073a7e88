"""Which files the report speaks of: their digests, the sources listed, and what the receipts say of settings."""

from collections.abc import Sequence
from typing import Any

from winnow.digests import digest
from winnow.receipts import FOLDER, Done, list_done, read_receipt
from winnow.run_files import FILTERS_USED, datasets, filters_used, manifest_index
from winnow.storage import Storage
from winnow.workspace import MANIFEST_INDEX

READ = 16
"""Receipts of a stage that are read for settings: what has more partitions has the same for all."""


def gather_lineage(storage: Storage) -> dict[str, Any]:
    """Digests that name exactly what was audited."""
    index = manifest_index(storage)
    stages = sorted({path.split("/")[1] for path in storage.walk(FOLDER)} - {"report"})
    outputs, settings = {}, {}
    for stage in stages:
        done = list_done(storage, stage)
        outputs[stage] = digest({entry.partition: entry.output for entry in done})
        if done:
            settings[stage] = _settings(storage, stage, done[:READ])
    return {
        "manifest": index["manifest"],
        "manifest_sha256": storage.sha256(MANIFEST_INDEX),
        "sources": index["sources"],
        "partitions": len(index["partitions"]),
        "filters_sha256": storage.sha256(FILTERS_USED) if storage.exists(FILTERS_USED) else None,
        "certificates": {used.name: used.certificate_sha256 for used in filters_used(storage)},
        "datasets": {name: storage.sha256(f"shards/{name}/index.json") for name in datasets(storage)},
        "stage_outputs": outputs,
        "settings": settings,
    }


def _settings(storage: Storage, stage: str, done: Sequence[Done]) -> Any:
    """Of a stage's partitions, by name where they differ: filters and recipes have their own."""
    each = {one.partition: _short(read_receipt(storage, stage, one).arguments) for one in done}
    settings = list(each.values())
    return settings[0] if all(one == settings[0] for one in settings) else each


def _short(value: Any) -> Any:
    """Settings without the long lists of work that some stages are given."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > 6:
        return f"{len(value):,} entries"
    return value
