"""One partition of urls -> one raw tar and a table of what became of every url. img2dataset fetches, inside our guard.

    raw/<partition>.tar      <uid>.jpg, <uid>.txt, <uid>.json of every downloaded sample, sorted by uid
    raw/<partition>.parquet  a row for EVERY listed uid: downloaded, or failed with its cause

img2dataset's Downloader brings threads and the loop over urls; the opener (winnow/guard.py), the check of images
(winnow/images.py) and the writer are ours. It hands over samples as they arrive; here they go to one file on scratch disk
and are written out in the order of uids, so that the result does not depend on which answered first.
"""

import importlib.metadata
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pyarrow as pa

from winnow.configs import STRICT
from winnow.errors import ConfigError
from winnow.fetching import IMG2DATASET, Fetched, failed, fetch
from winnow.guard import FetchError, GuardConfig, check_url, guarded
from winnow.images import ImageLimits
from winnow.partitions import Outcome
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.tars import TarWriter
from winnow.workspace import manifest_part, raw_table, raw_tar

VERSION = 1
STAGE = "download"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """How urls are fetched and what their images must be like."""

    __pydantic_config__: ClassVar = STRICT

    timeout_seconds: float = 20.0
    """For one url from name lookup to last byte, redirects included."""
    max_bytes: int = 20_000_000
    """Of a response. Up to twice `threads` responses are in memory at once."""
    max_redirects: int = 5
    threads: int = 32
    """Urls at a time, in each worker."""
    retries: int = 2
    """Further tries of urls that failed for a passing cause (timeout, reset, 429, 5xx)."""
    retry_pause_seconds: float = 5.0
    """Before the first further try; twice as long before each next one."""
    allow: tuple[str, ...] = ()
    """Addresses that are not public but may be fetched from, each with its port: "127.0.0.1:8731"."""
    user_agent: str = GuardConfig.user_agent
    """Says who is asking and how to reach them."""
    opt_out: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Directives in an X-Robots-Tag header by which a site refuses: cause `opt_out`."""
    max_pixels: int = ImageLimits.max_pixels
    min_side_px: int = ImageLimits.min_side_px
    max_aspect_ratio: float = ImageLimits.max_aspect_ratio
    jpeg_quality: int = ImageLimits.jpeg_quality
    """Of images that cannot be kept as they came: 1 to 95."""

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("retries", 0), ("retry_pause_seconds", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        _ = self.guard, self.images  # they check themselves

    @property
    def guard(self) -> GuardConfig:
        return GuardConfig(
            timeout_seconds=self.timeout_seconds,
            max_bytes=self.max_bytes,
            max_redirects=self.max_redirects,
            allow=tuple(self.allow),
            user_agent=self.user_agent,
        )

    @property
    def images(self) -> ImageLimits:
        return ImageLimits(
            max_pixels=self.max_pixels,
            min_side_px=self.min_side_px,
            max_aspect_ratio=self.max_aspect_ratio,
            jpeg_quality=self.jpeg_quality,
        )


def plan_downloads(partitions: Iterable[str], config: DownloadConfig) -> list[Work]:
    """One piece of work a partition.

    A partition's name holds the hash of its rows and is its digest. Of the config only what may be kept (limits of images and
    bytes, refusals of sites) is in the fingerprint: more threads, patience or allowed addresses fetch nothing again.
    """
    limits = {"images": config.images, "max_bytes": config.max_bytes, "opt_out": config.opt_out}
    return [
        Work(name=name, inputs={manifest_part(name): name}, arguments={"limits": limits}, unhashed={"config": config})
        for name in partitions
    ]


def download_partition(storage: Storage, name: str, *, config: DownloadConfig, limits: Mapping[str, Any] | None = None) -> Outcome:
    """Fetches every url of a partition and writes its raw tar and table.

    Args:
        limits: the part of `config` that is in the fingerprint (see `plan_downloads`); not read.
    """
    listed = read_table(storage, manifest_part(name)).to_pylist()
    results: dict[str, Fetched] = {}
    tried_again = 0
    with storage.scratch() as scratch:
        with open(scratch / "images", "w+b") as spool, guarded(config.guard) as opener:
            pending = [row for row in listed if not _settle(row, results)]
            for attempt in range(config.retries + 1):
                if attempt:
                    time.sleep(config.retry_pause_seconds * 2 ** (attempt - 1))
                    tried_again += len(pending)
                if pending:
                    fetch(pending, results, spool, scratch, opener, limits=config.images, threads=config.threads, opt_out=config.opt_out)
                pending = [row for row in pending if results[row["uid"]].passing]
                if not pending:
                    break
            _write_tar(scratch / "raw.tar", listed, results, spool)
        storage.put(scratch / "raw.tar", raw_tar(name))
    write_table(storage, raw_table(name), _table(listed, results))
    causes: dict[str, int] = {}
    for result in results.values():
        if result.cause is not None:
            causes[result.cause] = causes.get(result.cause, 0) + 1
    num_failed = sum(causes.values())
    return Outcome(
        outputs=(raw_tar(name), raw_table(name)),
        counts={"downloaded": len(listed) - num_failed, "failed": num_failed},
        facts={
            "causes": dict(sorted(causes.items())),
            "tried_again": tried_again,
            "img2dataset": IMG2DATASET,
            "pillow": importlib.metadata.version("pillow"),
        },
    )


def _settle(row: Mapping[str, Any], results: dict[str, Fetched]) -> bool:
    """Whether the url alone says that it will not be fetched."""
    try:
        check_url(row["url"])
    except FetchError as problem:
        results[row["uid"]] = failed(str(problem))
        return True
    return False


def _write_tar(path: Path, listed: Iterable[Mapping[str, Any]], results: Mapping[str, Fetched], spool: BinaryIO) -> None:
    with open(path, "wb") as stream:
        tar = TarWriter(stream)
        for row in listed:
            result = results[row["uid"]]
            if result.bytes is None:
                continue
            spool.seek(result.offset)
            jpeg = spool.read(result.bytes)
            meta = {key: row[key] for key in ("uid", "url", "caption", "source", "licence")}
            meta |= {"width": result.width, "height": result.height, "sha256": result.sha256}
            tar.add(f"{row['uid']}.jpg", jpeg)
            tar.add(f"{row['uid']}.txt", row["caption"].encode())
            tar.add(f"{row['uid']}.json", json.dumps(meta, sort_keys=True, ensure_ascii=False).encode())
        tar.close()


def _table(listed: Iterable[Mapping[str, Any]], results: Mapping[str, Fetched]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "uid": row["uid"],
                "status": "failed" if result.cause else "downloaded",
                **{key: getattr(result, key) for key in TABLE.names[2:]},
            }
            for row in listed
            for result in [results[row["uid"]]]
        ],
        schema=TABLE,
    )
