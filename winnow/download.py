"""One partition of urls -> one raw tar and a table of what became of every url. img2dataset fetches, inside our guard.

    raw/<partition>.tar      <uid>.jpg, <uid>.txt, <uid>.json of every downloaded sample, sorted by uid
    raw/<partition>.parquet  a row for EVERY listed uid: downloaded, or failed with its cause

img2dataset's Downloader brings threads and the loop over urls; which url may be asked for when (winnow/turns.py), what sites refuse
(winnow/refusals.py), the opener (winnow/guard.py), the check of images (winnow/images.py) and the writer are ours. Samples go to a
journal on this machine's disk as they arrive (winnow/journal.py), so that a killed download goes on where it was, and are written
out in the order of uids, so that the result does not depend on which answered first.
"""

import functools
import importlib.metadata
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from winnow.download_config import DownloadConfig
from winnow.fetch_failures import FetchError, is_passing
from winnow.fetching import IMG2DATASET, Web, failed, fetch
from winnow.forgotten import slug_of
from winnow.guard import guarded
from winnow.journal import SETTLED, Fetched, Journal, journal_of
from winnow.later import Later, write_later
from winnow.partitions import Outcome, at_work, known_of
from winnow.receipts import Work
from winnow.refusals import Origins, RefusalPolicy
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.tars import TarWriter, read_members
from winnow.turns import Hosts, Pace
from winnow.urls import check_url
from winnow.workspace import manifest_part, raw_table, raw_tar

VERSION = 2
STAGE = "download"
PASSING = "passing"
"""Stands for every cause that may have passed."""
TABLE = pa.schema(
    [
        ("uid", pa.string()),
        ("status", pa.string()),
        ("cause", pa.string()),
        ("detail", pa.string()),
        ("http_status", pa.int32()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
"""status "downloaded" or "failed"; cause a slug; sha256 of the bytes that came over the net, where a check got that far;
bytes of the stored JPEG; width and height upright."""


def plan_downloads(
    partitions: Iterable[str], config: DownloadConfig, *, workers: int = 1, earlier: Mapping[str, Later] | None = None
) -> list[Work]:
    """One piece of work a partition.

    A partition's name holds the hash of its rows and is its digest. Of the config only what decides what may be kept is in the
    fingerprint (see `DownloadConfig.limits`): more threads, patience or allowed addresses fetch nothing again.

    Args:
        workers: as `run_step` is told: those that work at the same time share each host's limits.
        earlier: partition -> what earlier runs left to be tried again.
    """
    names = list(partitions)
    return [
        Work(
            name=name,
            inputs={manifest_part(name): name},
            arguments={"limits": config.limits},
            unhashed={"config": config, "workers": workers, "num_works": len(names), "earlier": (earlier or {}).get(name)},
        )
        for name in names
    ]


def download_partition(
    storage: Storage,
    name: str,
    *,
    config: DownloadConfig,
    limits: Mapping[str, Any] | None = None,
    workers: int = 1,
    num_works: int = 1,
    earlier: Later | None = None,
    again: Collection[str] = (),
    forget_old: Callable[[], None] = lambda: None,
) -> Outcome:
    """Fetches every url of a partition and writes its raw tar and table.

    Args:
        limits: the part of `config` that is in the fingerprint (see `plan_downloads`); not read.
        workers, num_works: so many partitions share each host's limits (see `at_work`).
        earlier: what an earlier run left to be tried again.
        again: causes, or PASSING: of a partition that is finished, only failures by these are fetched, and all else stays as it is.
        forget_old: called before files of the finished partition are overwritten; never if no failure was mended.
    """
    listed = read_table(storage, manifest_part(name)).to_pylist()
    before = read_table(storage, raw_table(name)).to_pylist() if again else []
    with journal_of(storage, name, {"limits": config.limits, "version": VERSION}) as journal, storage.scratch() as scratch:
        if again:
            _take_over(storage, name, journal, before, again)
        tried_again = _fetch_all(listed, journal, scratch, config, at_work(workers, num_works))
        rows = _rows(listed, journal)
        if _num_downloaded(rows) > _num_downloaded(before) or not again:
            _write_tar(scratch / "raw.tar", listed, journal)
            forget_old()
            tar = storage.put(scratch / "raw.tar", raw_tar(name))
            known = known_of(tar, write_table(storage, raw_table(name), pa.Table.from_pylist(rows, schema=TABLE)))
        else:
            rows, known = before, {}
        leftovers = (str(journal.folder),)
    causes = _counted(row["cause"] for row in rows if row["cause"])
    passing = {cause: count for cause, count in causes.items() if is_passing(cause)}
    runs = earlier.runs + 1 if again and earlier is not None else 1
    later = Later(partition=name, runs=runs, asked_at=int(time.time()), num_rows=sum(passing.values()), of_rows=len(rows))
    write_later(storage, later, passing, earlier=earlier)
    return Outcome(
        outputs=(raw_tar(name), raw_table(name)),
        known=known,
        counts={"downloaded": _num_downloaded(rows), "failed": sum(causes.values())},
        facts={
            "causes": causes,
            "tried_again": tried_again,
            "img2dataset": IMG2DATASET,
            "pillow": importlib.metadata.version("pillow"),
        },
        leftovers=leftovers,
    )


def is_meant(cause: str, again: Collection[str]) -> bool:
    return cause in again or (PASSING in again and is_passing(cause))


@functools.lru_cache(maxsize=2)
def known_sites(policy: RefusalPolicy, pace: Pace) -> tuple[Origins, Hosts]:
    """What this process remembers of sites from one partition to the next."""
    return Origins(policy), Hosts(pace)


def _fetch_all(listed: list[dict[str, Any]], journal: Journal, scratch: Path, config: DownloadConfig, workers: int) -> int:
    """Until every url has a result that will do. Returns how many were asked for again."""
    for row in listed:
        if row["uid"] not in journal.results:
            _settle(row, journal)
    tried_again = 0
    origins, hosts = known_sites(config.refusals, config.pace(workers))
    hosts.trim()
    with guarded(config.guard) as guard:
        web = Web(guard=guard, origins=origins, hosts=hosts, limits=config.images, threads=config.threads)
        while pending := [row for row in listed if _is_pending(journal, row["uid"], config.retries)]:
            # A download that goes on after a kill has some urls that were tried and some that were not.
            tries = min(journal.tries.get(row["uid"], 0) for row in pending)
            pending = [row for row in pending if journal.tries.get(row["uid"], 0) == tries]
            if tries:
                time.sleep(config.retry_pause_seconds * 2 ** (tries - 1))
                tried_again += len(pending)
            fetch(pending, journal, scratch, web)
    return tried_again


def _is_pending(journal: Journal, uid: str, retries: int) -> bool:
    result = journal.results.get(uid)
    if result is None:
        return True
    return result.cause is not None and result.cause != "postponed" and is_passing(result.cause) and journal.tries[uid] <= retries


def _settle(row: Mapping[str, Any], journal: Journal) -> None:
    """If the url alone says that it will not be fetched."""
    if slug := slug_of(row["url"]):
        journal.add(row["uid"], Fetched(cause=slug), settled=True)
        return
    try:
        check_url(row["url"])
    except FetchError as problem:
        journal.add(row["uid"], failed(str(problem)), settled=True)


def _take_over(storage: Storage, name: str, journal: Journal, before: list[dict[str, Any]], again: Collection[str]) -> None:
    """Brings a finished partition into the journal, but for the failures that are to be fetched again."""
    base = storage.sha256(raw_table(name))
    if journal.notes != {"base": base, "whole": True}:  # else this was done already, by a run that was killed
        journal.clear()
        journal.note(base=base)
        rows = {row["uid"]: row for row in before}
        with storage.local_file(raw_tar(name)) as path:
            for member, data in read_members(path):
                uid, _, kind = member.partition(".")
                if kind == "jpg":
                    kept = {key: rows[uid][key] for key in ("sha256", "width", "height")}
                    journal.add(uid, Fetched(cause=None, **kept), data, settled=True)
        for row in before:
            if row["cause"] is not None:
                journal.add(row["uid"], Fetched(cause=row["cause"], detail=row["detail"], sha256=row["sha256"]), settled=True)
        journal.note(whole=True)
    for uid, result in list(journal.results.items()):
        if result.cause is not None and is_meant(result.cause, again) and journal.tries[uid] == SETTLED:
            journal.forget(uid)


def _write_tar(path: Path, listed: Iterable[Mapping[str, Any]], journal: Journal) -> None:
    with open(path, "wb") as stream:
        tar = TarWriter(stream)
        for row in listed:
            result = journal.results[row["uid"]]
            if result.cause is not None:
                continue
            meta = {key: row[key] for key in ("uid", "url", "caption", "source", "licence")}
            meta |= {"width": result.width, "height": result.height, "sha256": result.sha256}
            tar.add(f"{row['uid']}.jpg", journal.image(row["uid"]))
            tar.add(f"{row['uid']}.txt", row["caption"].encode())
            tar.add(f"{row['uid']}.json", json.dumps(meta, sort_keys=True, ensure_ascii=False).encode())
        tar.close()


def _rows(listed: Iterable[Mapping[str, Any]], journal: Journal) -> list[dict[str, Any]]:
    return [
        {
            "uid": row["uid"],
            "status": "failed" if result.cause else "downloaded",
            **{key: getattr(result, key) for key in TABLE.names[2:]},
        }
        for row in listed
        for result in [journal.results[row["uid"]]]
    ]


def _num_downloaded(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["status"] == "downloaded" for row in rows)


def _counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items()))
