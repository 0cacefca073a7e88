"""Is what was forgotten nowhere, and is every other row of the lists the one it was? The record of forgetting alone is believed."""

import hashlib
from collections.abc import Mapping
from typing import Any

from winnow.findings import Ledger
from winnow.forgotten import FOLDER, SLUGS, forgotten_uids, open_events, slug_of, tombstone_url
from winnow.progress import Progress
from winnow.run_files import read_json, rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.tars import find_members
from winnow.workspace import embeddings, manifest_part, raw_table, raw_tar

CHECK = "forgotten"


def check_forgotten(storage: Storage, partitions: list[str], ledger: Ledger, progress: Progress) -> None:
    """Tombstones against the record, and uids against the urls and captions that they are hashes of."""
    for event in open_events(storage):
        ledger.add(CHECK, f"{event.stem}.json", "was begun and not completed: run `winnow forget CONFIG`, or any stage")
    gone = forgotten_uids(storage)
    for partition in partitions:
        own = gone.get(partition, {})
        with ledger.reading(CHECK, manifest_part(partition)):
            _check_manifest(storage, partition, own, ledger)
        with ledger.reading(CHECK, raw_table(partition)):
            _check_download(storage, partition, own, ledger)
        if own:
            ledger.count(CHECK, len(own))
            with ledger.reading(CHECK, embeddings(partition)):
                _check_absent(storage, embeddings(partition), own, ledger)
        progress.advance()
    for partition in sorted(gone.keys() - set(partitions)):
        if not partition.startswith("imports/"):
            ledger.add(CHECK, FOLDER, f"names the partition {partition}, which the manifest does not have")
            continue
        ledger.count(CHECK, len(gone[partition]))
        with ledger.reading(CHECK, f"{partition}.parquet"):
            _check_absent(storage, f"{partition}.parquet", gone[partition], ledger)
    everything = {uid: slug for own in gone.values() for uid, slug in own.items()}
    if everything:
        _check_filters(storage, everything, ledger)
        _check_samples(storage, everything, ledger)


def _check_manifest(storage: Storage, partition: str, own: Mapping[str, str], ledger: Ledger) -> None:
    path = manifest_part(partition)
    table = read_table(storage, path, ["uid", "url", "caption", "sha256"])
    listed = set()
    for row in rows(table):
        uid = row["uid"]
        listed.add(uid)
        if uid in own:
            if (row["url"], row["caption"], row["sha256"]) != (tombstone_url(own[uid]), "", None):
                ledger.add(CHECK, path, f"{uid} was forgotten, but its url, caption or sha256 is there")
        elif slug_of(row["url"]):
            ledger.add(CHECK, path, f"{uid} is a tombstone, but {FOLDER}/ does not say that it was forgotten")
        elif hashlib.sha256(f"{row['url']}\0{row['caption']}".encode()).hexdigest()[:32] != uid:
            ledger.add(CHECK, path, f"{uid} is not the hash of its url and caption: they were changed")
        else:
            ledger.count(CHECK)
    for uid in sorted(own.keys() - listed):
        ledger.add(CHECK, path, f"lacks the tombstone of {uid}")


def _check_download(storage: Storage, partition: str, own: Mapping[str, str], ledger: Ledger) -> None:
    path = raw_table(partition)
    if not storage.exists(path):
        return
    for row in rows(read_table(storage, path)):
        uid = row["uid"]
        if uid in own:
            if row != {**dict.fromkeys(row), "uid": uid, "status": "failed", "cause": own[uid]}:
                ledger.add(CHECK, path, f"{uid} was forgotten, but more than that is said of it")
        elif row["status"] != "downloaded" and row["cause"] in SLUGS:
            ledger.add(CHECK, path, f"{uid} failed as {row['cause']}, but {FOLDER}/ does not name it")
    if own and storage.exists(raw_tar(partition)):
        with storage.open(raw_tar(partition)) as stream:
            held = {name.partition(".")[0] for name, _, _ in find_members(stream, raw_tar(partition))}
        for uid in sorted(held & own.keys()):
            ledger.add(CHECK, raw_tar(partition), f"holds {uid}, which was forgotten")


def _check_absent(storage: Storage, path: str, own: Mapping[str, str], ledger: Ledger) -> None:
    if storage.exists(path):
        for uid in sorted(own.keys() & set(read_table(storage, path, ["uid"])["uid"].to_pylist())):
            ledger.add(CHECK, path, f"holds {uid}, which was forgotten")


def _check_filters(storage: Storage, gone: Mapping[str, str], ledger: Ledger) -> None:
    for path in storage.walk("filters"):
        if path.endswith("/labelled.parquet"):
            with ledger.reading(CHECK, path):
                table = read_table(storage, path, ["uid", "feature"])
                there = zip(table["uid"].to_pylist(), table["feature"].is_valid().to_pylist(), strict=True)
                for uid in sorted(uid for uid, has_feature in there if has_feature and uid in gone):
                    ledger.add(CHECK, path, f"holds the features of {uid}, which was forgotten")


def _check_samples(storage: Storage, gone: Mapping[str, str], ledger: Ledger) -> None:
    for path in storage.walk("samples"):
        if path.endswith("/index.json"):
            with ledger.reading(CHECK, path):
                drawn: list[dict[str, Any]] = read_json(storage, path)["samples"]
                for entry in drawn:
                    if entry["uid"] in gone:
                        ledger.add(CHECK, path, f"{entry['file']} was drawn for the caption of {entry['uid']}, which was forgotten")
    _check_absent(storage, "regurgitation/pairs.parquet", gone, ledger)
