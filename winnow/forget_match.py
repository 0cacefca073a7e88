"""Which listed samples are meant: by uid, url, site or digest of the image. Also reads lists of them."""

import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from winnow.errors import ConfigError
from winnow.forgotten import slug_of
from winnow.progress import Progress
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, manifest_part, raw_table

HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)")
UNDECIDED = "undecided"
COLUMNS = {"uid": "uids", "url": "urls", "sha256": "sha256s", "domain": "domains"}
"""Of a list in parquet -> field of `Wanted`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What names samples. A sample is meant if any of it does."""

    uids: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    """As they are listed; every caption of a url is meant."""
    sha256s: frozenset[str] = frozenset()
    """Of the bytes that came over the net, or that the manifest names."""
    domains: frozenset[str] = frozenset()
    """Hosts with all that is below them: example.org means www.example.org, too."""

    def __post_init__(self) -> None:
        for name, pattern, form in (("uids", "[0-9a-f]{32}", "32 hex digits"), ("sha256s", "[0-9a-f]{64}", "64 hex digits")):
            for value in getattr(self, name):
                if not re.fullmatch(pattern, value):
                    raise ConfigError(f"{value!r} is no {name[:-1]}: it must be {form} in lower case")

    def __or__(self, other: "Wanted") -> "Wanted":
        return Wanted(**{field.name: getattr(self, field.name) | getattr(other, field.name) for field in fields(Wanted)})

    def __len__(self) -> int:
        return sum(len(getattr(self, field.name)) for field in fields(Wanted))


class Match(NamedTuple):
    """A sample that is meant."""

    uid: str
    partition: str
    was: str
    """What the decision log says of it: kept, dropped, failed; UNDECIDED if it says nothing."""


def read_list(path: str | Path) -> Wanted:
    """A list of uids, urls, domains and digests: a text file with one a line (# begins a comment), or parquet with columns of these names.

    Raises:
        ConfigError: it cannot be read, names nothing, or a line is none of these.
    """
    try:
        if Path(path).suffix == ".parquet":
            return _of_table(pq.read_table(path), path)
        return _of_lines(Path(path).read_text("utf-8").splitlines(), path)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as problem:
        raise ConfigError(f"the list {path} cannot be read: {problem}") from problem


def _of_table(table: pa.Table, path: str | Path) -> Wanted:
    known = [name for name in table.column_names if name in COLUMNS]
    if not known:
        raise ConfigError(f"{path} has none of the columns {', '.join(COLUMNS)}; it has {', '.join(table.column_names)}")
    columns = {name: (str(value).strip() for value in table[name].to_pylist() if value is not None) for name in known}
    return Wanted(**{COLUMNS[name]: frozenset(_as(name, value) for value in column) for name, column in columns.items()})


def _of_lines(lines: Sequence[str], path: str | Path) -> Wanted:
    found: dict[str, set[str]] = {name: set() for name in COLUMNS}
    for number, line in enumerate(lines, 1):
        text = line.split(" #")[0].strip() if not line.startswith("#") else ""
        if text:
            kind = _kind(text)
            if kind is None:
                raise ConfigError(
                    f"{path}, line {number}: {text!r} is no url, domain, uid (32 hex digits) or sha256 (64 hex digits). Nothing was done."
                )
            found[kind].add(_as(kind, text))
    if not any(found.values()):
        raise ConfigError(f"{path} names nothing: write a url, domain, uid or sha256 on each line")
    return Wanted(**{COLUMNS[name]: frozenset(values) for name, values in found.items()})


def _kind(text: str) -> str | None:
    for kind, pattern in (
        ("uid", "[0-9a-fA-F]{32}"),
        ("sha256", "[0-9a-fA-F]{64}"),
        ("url", r"[A-Za-z][A-Za-z0-9+.-]*:\S+"),
        ("domain", r"[^\s/:]+\.[^\s/:]+"),
    ):
        if re.fullmatch(pattern, text):
            return kind
    return None


def _as(kind: str, value: str) -> str:
    return value if kind == "url" else value.lower().strip(".")


def find_listed(storage: Storage, partitions: Sequence[str], wanted: Wanted, *, title: str = "look for samples") -> Iterator[Match]:
    """Every listed sample that is meant and not forgotten yet; one partition is in memory at a time."""
    with Progress(title, total=len(partitions)) as progress:
        for partition in sorted(partitions):
            found = match_partition(storage, partition, wanted)
            yield from found
            progress.advance({"found": len(found)})


def match_partition(storage: Storage, partition: str, wanted: Wanted) -> list[Match]:
    """Those of one partition, sorted by uid."""
    listed = read_table(storage, manifest_part(partition), ["uid", "url", "sha256"]).to_pydict()
    fetched: dict[str, str | None] = {}
    if wanted.sha256s and storage.exists(raw_table(partition)):
        raw = read_table(storage, raw_table(partition), ["uid", "sha256"])
        fetched = dict(zip(raw["uid"].to_pylist(), raw["sha256"].to_pylist(), strict=True))
    # Sets of Python, not arrow's is_in: a list may be far longer than a partition, and arrow would hash all of it each time.
    uids = sorted(
        uid
        for uid, url, sha256 in zip(listed["uid"], listed["url"], listed["sha256"], strict=True)
        if slug_of(url) is None
        and (
            uid in wanted.uids
            or url in wanted.urls
            or (wanted.sha256s and (sha256 in wanted.sha256s or fetched.get(uid) in wanted.sha256s))
            or (wanted.domains and in_domains(url, wanted.domains))
        )
    )
    was = _verdicts(storage, partition, uids) if uids else {}
    return [Match(uid, partition, was.get(uid, UNDECIDED)) for uid in uids]


def in_domains(url: str, domains: Container[str]) -> bool:
    """Whether a url's host is one of the domains or below one."""
    found = HOST.match(url)
    parts = found["host"].lower().strip(".").split(".") if found else []
    return any(".".join(parts[start:]) in domains for start in range(len(parts)))


def _verdicts(storage: Storage, partition: str, uids: Sequence[str]) -> dict[str, str]:
    if not storage.exists(decisions(partition)):
        return {}
    table = read_table(storage, decisions(partition), ["uid", "verdict"])
    found = table.filter(pc.is_in(table["uid"], pa.array(uids, pa.string())))
    return dict(zip(found["uid"].to_pylist(), found["verdict"].to_pylist(), strict=True))


def find_imported(storage: Storage, wanted: Wanted) -> list[Match]:
    """Curated images that are meant: their uid is the beginning of their digest."""
    sought = wanted.uids | {value[:32] for value in wanted.sha256s}
    found = []
    for name in storage.names("imports"):
        uids = read_table(storage, f"imports/{name}", ["uid"])["uid"].to_pylist()
        found += [Match(uid, f"imports/{name.removesuffix('.parquet')}", "import") for uid in uids if uid in sought]
    return found


def tell(matches: Sequence[Match]) -> dict[str, int]:
    """How many of what."""
    return dict(sorted(Counter(match.was for match in matches).items()))
