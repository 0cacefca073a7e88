"""The conservation law: every listed pair ends in exactly one place, recomputed from the files alone.

    listed = failed (by cause) + dropped (by filters) + kept,   kept = rows of the shards' sidecars = members of their tars

One partition's uids are in memory at a time; shards follow the order of partitions, so a partition's kept uids are let go
as soon as its last shard is read.
"""

import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from winnow.errors import ConservationError, ShardError
from winnow.progress import Progress
from winnow.run_files import datasets, manifest_index, rows, sidecar, withdrawn_uids
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, manifest_part

EXAMPLES = 3
"""uids named in a message."""
SAMPLE_MEMBERS = ("jpg", "json", "txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetCount:
    shards: int
    samples: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Conservation:
    """Where all listed pairs went."""

    listed: int
    """Distinct pairs that the sources list today."""
    failed_by_cause: dict[str, int]
    """Reason slug (`download:http_404`) -> pairs."""
    dropped_by_filter: dict[str, int]
    """Filter -> pairs it drops; a pair that two filters drop counts for both."""
    dropped_by_reasons: dict[str, int]
    """`people`, `people+violence`, ... -> pairs; each dropped pair counts once."""
    kept: int
    datasets: dict[str, DatasetCount]

    @property
    def failed(self) -> int:
        return sum(self.failed_by_cause.values())

    @property
    def dropped(self) -> int:
        return sum(self.dropped_by_reasons.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Breach:
    """One way in which one file breaks the law."""

    file: str
    what: str
    uids: tuple[str, ...] = ()
    """Up to EXAMPLES uids concerned."""

    def __str__(self) -> str:
        named = f" ({', '.join(self.uids)}{', ...' if len(self.uids) == EXAMPLES else ''})" if self.uids else ""
        return f"{self.file}: {self.what}{named}"


@dataclass(kw_only=True)
class _Tally:
    listed: int = 0
    kept: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    filters: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    breaches: list[Breach] = field(default_factory=list)

    def breach(self, file: str, what: str, uids: Iterable[str] = ()) -> None:
        self.breaches.append(Breach(file=file, what=what, uids=tuple(sorted(uids)[:EXAMPLES])))


def check_conservation(storage: Storage) -> Conservation:
    """Counts where every listed pair went.

    Raises:
        ConservationError: some pair is lost, invented or counted twice; names files and example uids.
    """
    found, breaches = examine(storage)
    if breaches:
        more = f"\nand {len(breaches) - 10} more" if len(breaches) > 10 else ""
        raise ConservationError(
            f"{storage.url}: listed = failed + dropped + kept does not hold.\n"
            + "\n".join(str(breach) for breach in breaches[:10])
            + f"{more}\nRemove the receipts of the partitions named and run again: their files are made anew."
        )
    return found


def examine(storage: Storage, progress: Progress | None = None) -> tuple[Conservation, list[Breach]]:
    """Like `check_conservation`, but goes on after a breach and returns all of them.

    Args:
        progress: advances once a partition and once a shard.
    """
    tally = _Tally()
    index = manifest_index(storage)
    withdrawn = withdrawn_uids(storage)
    names = sorted(part["name"] for part in index["partitions"])
    kept_counts: dict[str, int] = {}
    for part in sorted(index["partitions"], key=lambda part: str(part["name"])):
        name = part["name"]
        listed = _listed_uids(storage, name, withdrawn.get(name, frozenset()), tally)
        if listed is not None and len(listed) != part["listed"]:
            tally.breach(
                "manifest/index.json", f"says that partition {name} has {part['listed']:,} listed rows; its file has {len(listed):,}"
            )
        kept_counts[name] = _tally_decisions(storage, name, listed, tally)
        if progress is not None:
            progress.advance()
    if tally.listed != index["listed"]:
        tally.breach("manifest/index.json", f"says {index['listed']:,} pairs are listed; the partitions hold {tally.listed:,}")

    counts = {}
    indexes = datasets(storage)
    if not indexes and tally.kept:
        tally.breach("shards", f"{tally.kept:,} kept samples are in no shard: no dataset has an index.json")
    for dataset, content in indexes.items():
        counts[dataset] = _tally_dataset(storage, dataset, content["shards"], names, kept_counts, tally, progress)
    found = Conservation(
        listed=tally.listed,
        failed_by_cause=dict(sorted(tally.causes.items())),
        dropped_by_filter=dict(sorted(tally.filters.items())),
        dropped_by_reasons=dict(sorted(tally.reasons.items())),
        kept=tally.kept,
        datasets=counts,
    )
    return found, tally.breaches


def _listed_uids(storage: Storage, name: str, withdrawn: frozenset[str], tally: _Tally) -> set[str] | None:
    path = manifest_part(name)
    if not storage.exists(path):
        tally.breach(path, "is missing, though manifest/index.json names it")
        return None
    uids = read_table(storage, path, ["uid"])["uid"].to_pylist()
    twice = [uid for uid, count in Counter(uids).items() if count > 1]
    if twice:
        tally.breach(path, f"{len(twice):,} uids are listed twice", twice)
    listed = set(uids) - withdrawn
    tally.listed += len(listed)
    return listed


def _tally_decisions(storage: Storage, name: str, listed: set[str] | None, tally: _Tally) -> int:
    """Counts one partition of the decision log; returns how many it keeps."""
    path = decisions(name)
    if not storage.exists(path):
        if listed:
            tally.breach(path, f"is missing: {len(listed):,} listed uids have no decision", listed)
        return 0
    seen: Counter[str] = Counter()
    kept = 0
    for row in rows(read_table(storage, path, ["uid", "verdict", "reasons"])):
        uid, verdict, reasons = row["uid"], row["verdict"], sorted(row["reasons"] or [])
        seen[uid] += 1
        wrong = _wrong_row(verdict, reasons)
        if wrong:
            tally.breach(path, wrong, [uid])
        if verdict == "failed":
            tally.causes["+".join(reasons)] += 1
        elif verdict == "dropped":
            tally.filters.update(reasons)
            tally.reasons["+".join(reasons)] += 1
        elif verdict == "kept":
            kept += 1
    tally.kept += kept
    twice = [uid for uid, count in seen.items() if count > 1]
    if twice:
        tally.breach(path, f"{len(twice):,} uids are decided twice", twice)
    if listed is not None:
        missing, extra = listed - seen.keys(), seen.keys() - listed
        if missing:
            tally.breach(path, f"{len(missing):,} listed uids have no decision", missing)
        if extra:
            tally.breach(path, f"{len(extra):,} uids are decided that the partition does not list", extra)
    return kept


def _wrong_row(verdict: str, reasons: list[str]) -> str | None:
    if verdict == "failed":
        return (
            None
            if len(reasons) == 1 and ":" in reasons[0]
            else f"a failed sample needs one reason such as download:http_404, has {reasons}"
        )
    if verdict == "dropped":
        return None if reasons else "a dropped sample has no reason"
    if verdict == "kept":
        return f"a kept sample has reasons to be dropped: {reasons}" if reasons else None
    return f"unknown verdict {verdict!r}"


def _kept_uids(storage: Storage, name: str) -> set[str]:
    table = read_table(storage, decisions(name), ["uid", "verdict"])
    return {uid for uid, verdict in zip(table["uid"].to_pylist(), table["verdict"].to_pylist(), strict=True) if verdict == "kept"}


def _tally_dataset(
    storage: Storage,
    dataset: str,
    shards: list[dict[str, object]],
    names: list[str],
    kept_counts: dict[str, int],
    tally: _Tally,
    progress: Progress | None,
) -> DatasetCount:
    waiting: dict[str, set[str]] = {}  # kept uids of partitions whose shards are being read
    finished: set[str] = set()
    samples = size = 0
    for shard in shards:
        tar = str(shard["name"])
        path = sidecar(dataset, tar)
        if progress is not None:
            progress.advance()
        if not storage.exists(path):
            tally.breach(path, "is missing, though index.json names its tar")
            continue
        in_order = []
        for row in rows(read_table(storage, path, ["uid", "partition"])):
            uid, partition = row["uid"], row["partition"]
            in_order.append(uid)
            if partition not in waiting and partition not in finished:
                if partition not in kept_counts:
                    tally.breach(path, f"names a partition that the manifest does not have: {partition}", [uid])
                    continue
                waiting[partition] = _kept_uids(storage, partition) if kept_counts[partition] else set()
            if uid in waiting.get(partition, ()):
                waiting[partition].remove(uid)
                if not waiting[partition]:
                    del waiting[partition]
                    finished.add(partition)
            else:
                tally.breach(path, f"holds a sample that is not kept in decisions/{partition}.parquet, or that an earlier row holds", [uid])
        samples += len(in_order)
        size += _check_members(storage, f"shards/{dataset}/{tar}", in_order, tally)
    for partition in names:
        missing = waiting.get(partition)
        if missing is None and kept_counts[partition] and partition not in finished:
            missing = _kept_uids(storage, partition)
        if missing:
            tally.breach(f"shards/{dataset}", f"{len(missing):,} kept uids of decisions/{partition}.parquet are in no shard", missing)
    return DatasetCount(shards=len(shards), samples=samples, bytes=size)


def _check_members(storage: Storage, path: str, uids: list[str], tally: _Tally) -> int:
    """Compares a tar's members with its sidecar's rows; returns the tar's bytes."""
    if not storage.exists(path):
        tally.breach(path, "is missing, though index.json names it")
        return 0
    try:
        members = tar_members(storage, path)
    except ShardError as problem:
        tally.breach(path, str(problem))
        return storage.size(path)
    wanted = [f"{uid}.{kind}" for uid in uids for kind in SAMPLE_MEMBERS]
    if sorted(members) != sorted(wanted):
        missing, extra = set(wanted) - set(members), set(members) - set(wanted)
        what = "members missing" if missing else "members its sidecar does not have" if extra else "members twice"
        twice = [name for name, count in Counter(members).items() if count > 1]
        tally.breach(path, f"{len(missing or extra or twice):,} {what}", missing or extra or twice)
    return storage.size(path)


def tar_members(storage: Storage, path: str) -> list[str]:
    """Names of a tar's members in order. Raises ShardError if the tar is damaged."""
    try:
        with storage.open(path) as stream, tarfile.open(fileobj=stream, mode="r:", errorlevel=2) as tar:
            return [member.name for member in tar]
    except tarfile.TarError as problem:
        raise ShardError(f"cannot be read as a tar ({problem})") from problem
