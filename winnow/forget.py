"""Takes samples out of every file of a workspace, and leaves tombstones: recorded first, then done, in an order that a kill cannot spoil.

The record (winnow/forgotten.py) is the authority. Everything after it can be done twice: files come out the same, receipts are safe
(winnow/amending.py). So whatever was cut short is completed by calling `apply` again. Nothing is fetched, embedded, fitted or scored.
"""

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from winnow import resharding, shards
from winnow.amending import ALL, Amender, Edits
from winnow.cell_files import without
from winnow.digests import digest
from winnow.duplicates import CELLS_ENDING
from winnow.errors import ConfigError
from winnow.forget_edits import Gone, decision_edits, download_edits, feature_edits, manifest_edits, rows_edits
from winnow.forget_lineage import filters_holding, models_trained_on
from winnow.forget_match import Match
from winnow.forget_samples import forget_samples
from winnow.forgotten import Event, begin, finish, holes, now, read_events, read_rows
from winnow.journal import journals_folder
from winnow.manifest import STAGE as MANIFEST
from winnow.manifest import manifest_rows
from winnow.partitions import perform
from winnow.receipts import FOLDER as RECEIPTS
from winnow.receipts import Done, Receipt, Work, list_done, read_receipts
from winnow.run_files import read_json
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import MANIFEST_INDEX, embeddings, manifest_part

logger = logging.getLogger(__name__)

LEFT_ALONE = ("train", "report")
"""Stages whose receipts keep the inputs they name: a model was trained on what it was trained on; the report is written anew."""
MADE_AGAIN = ("words", "weigh-shard")
"""Stages whose files cannot be edited but are quickly made again (filters/forget_derived.py)."""
OWN_EDITS = (MANIFEST, "download", "embed", "score", shards.STAGE, *MADE_AGAIN, "sample", "regurgitation", *LEFT_ALONE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What forgetting would touch. Made before anything is changed."""

    matches: tuple[Match, ...]
    partitions: tuple[str, ...]
    groups: tuple[str, ...]
    """Of shards, that will be gone through."""
    models: tuple[str, ...]
    filters: tuple[str, ...]
    before: Mapping[str, Mapping[str, str]]
    shards_digest: str


def plan(storage: Storage, matches: Sequence[Match]) -> Plan:
    """Looks at everything that will be touched.

    Raises:
        ConfigError: the shards were made by another version of Winnow.
    """
    uids = {match.uid for match in matches}
    affected = sorted({match.partition for match in matches})
    before = _before(storage, affected)
    groups = []
    for receipt in read_receipts(storage, shards.STAGE):
        if not set(affected).isdisjoint(receipt.arguments.get("partitions", ())):
            groups.append(receipt.partition)
    if list_done(storage, shards.STAGE) and any(receipt.version != resharding.VERSION for receipt in read_receipts(storage, shards.STAGE)):
        raise ConfigError(f"the shards of {storage.url} were made by another version of Winnow: run `winnow shard CONFIG` first")
    shards_digest = before.get(shards.STAGE, {}).get(ALL, "")
    return Plan(
        matches=tuple(matches),
        partitions=tuple(affected),
        groups=tuple(groups),
        models=tuple(models_trained_on(storage, matches, shards_digest)),
        filters=tuple(filters_holding(storage, uids)),
        before=before,
        shards_digest=shards_digest,
    )


def start(storage: Storage, planned: Plan, *, slug: str, reason: str, erase_labels: bool = False) -> Event:
    """Records that these samples are forgotten. To be followed by `apply`."""
    event = Event(
        number=1 + max((event.number for event in read_events(storage)), default=0),
        slug=slug,
        reason=reason,
        at=now(),
        samples=len(planned.matches),
        erase_labels=erase_labels,
        before={stage: dict(marks) for stage, marks in planned.before.items()},
        models=list(planned.models),
        filters=list(planned.filters),
        shards={"before": planned.shards_digest},
    )
    begin(storage, event, planned.matches)
    return event


ForgetLabels = Callable[[Collection[str], Collection[str], Collection[str]], None]
Redo = Callable[[Amender, Collection[str]], None]


def apply(storage: Storage, event: Event, *, forget_labels: ForgetLabels, redo: Redo) -> None:
    """Brings every artefact up to date with the record, but for the report. May be called again after a kill, with the same result.

    Args:
        forget_labels: takes uids, captions and pictures (paths in the workspace) out of the label store.
        redo: runs the stages of MADE_AGAIN again where they had to do with these partitions.
    """
    gone: dict[str, dict[str, str]] = {}
    for row in read_rows(storage, event):
        gone.setdefault(row["partition"], {})[row["uid"]] = event.slug
    uids = {uid for own in gone.values() for uid in own}
    # People's labels first: they are found by captions and pictures, too, which are gone once the files are done.
    forget_labels(uids, _captions(storage, gone), _pictures(storage, uids))
    amender = Amender(storage, _stages(storage), event.before)
    listed = {partition: own for partition, own in gone.items() if not partition.startswith("imports/")}
    _forget_manifest(amender, listed)
    for partition, own in sorted(listed.items()):
        _forget_partition(amender, partition, own)
    for partition in sorted(gone.keys() - listed.keys()):
        path = f"{partition}.parquet"
        amender.amend("import", partition.partition("/")[2], rows_edits(storage, path, gone[partition], count="imported"))
    _forget_elsewhere(amender, uids, set(manifest_rows(storage)))
    _forget_features(amender, uids)
    _forget_shards(amender, set(listed))
    redo(amender, set(listed))
    forget_samples(amender, uids)
    _remove_pages(storage, uids)
    _remove_journals(storage, set(listed))
    logger.info("forgotten: %d samples of %d partitions", len(uids), len(gone))


def close(storage: Storage, event: Event) -> Event:
    """Marks an event as done: nothing of its samples is left."""
    amender = Amender(storage, [shards.STAGE], {})
    return finish(storage, event, after=amender.total(shards.STAGE))


def _stages(storage: Storage) -> list[str]:
    return sorted({path.split("/")[1] for path in storage.walk(RECEIPTS)})


def _before(storage: Storage, affected: Sequence[str]) -> dict[str, dict[str, str]]:
    """Output digests of the partitions concerned, of stages that do not work on partitions, and over each stage as a whole."""
    listed = set(manifest_rows(storage))
    found = {}
    for stage in _stages(storage):
        outputs = {done.partition: done.output for done in list_done(storage, stage)}
        found[stage] = {name: mark for name, mark in outputs.items() if name in affected or name not in listed}
        found[stage][ALL] = digest(outputs)
    return found


def _captions(storage: Storage, gone: Mapping[str, Gone]) -> set[str]:
    found = set()
    for partition, own in gone.items():
        if storage.exists(manifest_part(partition)):
            table = read_table(storage, manifest_part(partition), ["uid", "caption"])
            found |= {row["caption"] for row in table.to_pylist() if row["uid"] in own}
    return found - {"", None}


def _pictures(storage: Storage, uids: Collection[str]) -> set[str]:
    """Samples that were drawn for captions of these images."""
    found = set()
    for path in storage.walk("samples"):
        if path.endswith("/index.json"):
            found |= {entry["file"] for entry in read_json(storage, path)["samples"] if entry["uid"] in uids}
    return found


def _forget_manifest(amender: Amender, gone: Mapping[str, Gone]) -> None:
    storage = amender.storage
    files: dict[str, bytes | Path | None] = {}
    for partition, own in sorted(gone.items()):
        files |= manifest_edits(storage, partition, own)
    index = read_json(storage, MANIFEST_INDEX)
    for entry in index["partitions"]:
        path = manifest_part(entry["name"])
        content = files.get(path)
        if isinstance(content, bytes):
            entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        elif entry["name"] in gone:  # written by a call that was killed before it came to the index
            entry |= {"sha256": storage.sha256(path), "bytes": storage.size(path)}
    text = (json.dumps(index, indent=1, sort_keys=True) + "\n").encode()
    if text != storage.read_bytes(MANIFEST_INDEX):
        files[MANIFEST_INDEX] = text
    amender.amend(MANIFEST, MANIFEST, Edits(files=files))


def _forget_partition(amender: Amender, partition: str, gone: Gone) -> None:
    storage = amender.storage
    with storage.scratch() as scratch:
        amender.amend("download", partition, download_edits(storage, partition, gone, scratch))
    amender.amend("embed", partition, rows_edits(storage, embeddings(partition), gone, count="embedded"))
    # Stages before and after scoring that we do not know by name: tables by uid.
    for _ in range(2):
        for stage in sorted(amender.done.keys() - set(OWN_EDITS)):
            if partition in amender.partitions(stage):
                amender.amend(stage, partition, _table_edits(amender, stage, partition, gone))
        amender.amend("score", partition, decision_edits(storage, partition, gone))


def _forget_elsewhere(amender: Amender, uids: Collection[str], listed: Collection[str]) -> None:
    """Tables of stages that do not work on partitions of the manifest, other than filters' own."""
    for stage in sorted(amender.done.keys() - set(OWN_EDITS)):
        if not stage.startswith("fit"):
            for name in sorted(amender.partitions(stage) - set(listed)):
                amender.amend(stage, name, _table_edits(amender, stage, name, uids))


def _table_edits(amender: Amender, stage: str, name: str, uids: Collection[str]) -> Edits:
    receipt = amender.receipt(stage, name)
    files: dict[str, bytes | Path | None] = {}
    for path in [] if receipt is None else receipt.outputs:
        if path.endswith(".parquet"):
            files |= rows_edits(amender.storage, path, uids).files
        elif path.endswith(CELLS_ENDING) and amender.storage.exists(path) and (left := without(amender.storage, path, uids)):
            files[path] = left
    return Edits(files=files)


def _forget_features(amender: Amender, uids: Collection[str]) -> None:
    """What filters were fitted from. Inputs of their receipts stay: they were fitted from what they were fitted from."""
    for stage in sorted(amender.done):
        if stage.startswith("fit"):
            for name in sorted(amender.partitions(stage)):
                receipt = amender.receipt(stage, name)
                for path in [] if receipt is None else receipt.outputs:
                    if path.endswith("/labelled.parquet"):
                        amender.amend(stage, name, feature_edits(amender.storage, path, uids))


def _forget_shards(amender: Amender, affected: Collection[str]) -> None:
    """Writes the shards anew that held one of the samples; others of their group are compared and left alone."""
    storage, empty, datasets = amender.storage, holes(amender.storage), set()
    for name in sorted(amender.partitions(shards.STAGE)):
        receipt = amender.receipt(shards.STAGE, name)
        if receipt is None or set(affected).isdisjoint(receipt.arguments["partitions"]):
            continue
        own = sorted(uid for partition in receipt.arguments["partitions"] for uid in empty.get(partition, ()))
        work = Work(
            name=name,
            inputs={key: amender.now(mark) for key, mark in receipt.inputs.items()},
            arguments={**receipt.arguments, "holes": own},
        )
        amender.redo(shards.STAGE, name, receipt, functools.partial(_write_group, storage, work))
    for path in storage.walk("shards"):
        if path.endswith("/index.json"):
            datasets.add(path.split("/")[1])
    for dataset in sorted(datasets):
        shards.write_index(storage, dataset)


def _write_group(storage: Storage, work: Work, standing: Done | None) -> Receipt:
    version = resharding.VERSION
    mark = work.fingerprint(shards.STAGE, version)
    return perform(resharding.write_group, storage, shards.STAGE, version, mark, work, [standing] if standing else [])


def _remove_journals(storage: Storage, partitions: Collection[str]) -> None:
    """Downloads of these partitions that were cut short: what had arrived is fetched again, but for the samples."""
    for partition in sorted(partitions):
        for folder in journals_folder(storage).glob(f"{partition}.*"):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_pages(storage: Storage, uids: Collection[str]) -> None:
    """Cards of filters that picture one of them: `winnow filter card` makes them again."""
    for path in storage.walk("filters"):
        if path.endswith(".html"):
            text = storage.read_text(path)
            if any(uid in text for uid in uids):
                storage.remove(path)
