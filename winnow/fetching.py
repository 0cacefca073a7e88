"""One pass over some urls: img2dataset's Downloader, with our check of images and our writer inside.

Its threads and its loop over urls are used; where it has a resizer and a writer it gets `_Checker` and `_Collector`, and what
it fetches by is the opener that winnow/guard.py installed. It reports failures as text, so causes travel as `slug: detail`.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import pyarrow as pa

from winnow.errors import ConfigError
from winnow.guard import GuardedOpener, is_passing
from winnow.images import ImageLimits, ImageRefused, check_image

IMG2DATASET = "1.47.0"
COLUMNS = ("uid", "url", "expected")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What became of one url."""

    cause: str | None
    detail: str | None = None
    passing: bool = False
    sha256: str | None = None
    offset: int = 0
    bytes: int | None = None
    width: int | None = None
    height: int | None = None

    @property
    def http_status(self) -> int | None:
        match = re.fullmatch(r"http_(\d+)", self.cause or "")
        return int(match[1]) if match else None


def fetch(
    rows: Sequence[Mapping[str, Any]],
    results: dict[str, Fetched],
    spool: BinaryIO,
    scratch: Path,
    opener: GuardedOpener,
    *,
    limits: ImageLimits,
    threads: int,
    opt_out: Sequence[str],
) -> None:
    """One pass over these urls: every one of them has an entry in `results` afterwards.

    Args:
        rows: of the manifest part: uid, url, sha256.
        spool: where images are appended; `results` says where each one lies.
        scratch: a folder for what img2dataset reads and writes besides.
        opt_out: directives of an X-Robots-Tag header by which a site refuses.
    """
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    feed = pa.table([[row[key] for row in rows] for key in ("uid", "url", "sha256")], schema=schema)
    with pa.OSFile(str(scratch / "urls.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(feed)
    for row in rows:
        results.pop(row["uid"], None)
    collector = _Collector(results, spool, opener)
    downloader = downloader_class()(
        sample_writer_class=lambda *_: collector,
        resizer=_Checker(limits),
        thread_count=min(threads, len(rows)),
        save_caption=False,
        extract_exif=False,
        output_folder=str(scratch),
        column_list=list(COLUMNS),
        timeout=None,  # the opener has its own
        number_sample_per_shard=len(rows),
        oom_shard_count=1,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token="winnow",
        disallowed_header_directives=list(opt_out) or None,
    )
    _run(lambda: downloader.download_shard((0, str(scratch / "urls.arrow"))), opener)
    for row in rows:
        # img2dataset prints an exception it did not expect and leaves the sample out: here it still ends as a row.
        results.setdefault(row["uid"], Fetched(cause="unexpected", detail="the worker's log has the traceback"))


def _run(call: Callable[[], None], opener: GuardedOpener) -> None:
    """Calls it in a thread of its own, so that Ctrl-C ends the fetching: the Downloader's pool would wait for ever for its feeder."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as problem:
            failures.append(problem)

    thread = threading.Thread(target=work, name="winnow-fetch", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        opener.stopped.set()
        thread.join()
        raise
    if failures:
        raise failures[0]


def _append(spool: BinaryIO, data: bytes) -> int:
    """Where it lies in the spool."""
    offset = spool.seek(0, 2)
    spool.write(data)
    return offset


class _Checker:
    """Stands where img2dataset has its resizer."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    def __call__(self, stream: BinaryIO, boxes: None = None) -> tuple[bytes | None, int | None, int | None, None, None, str | None]:
        try:
            image = check_image(stream.read(), self._limits)
        except ImageRefused as problem:
            return None, None, None, None, None, str(problem)
        return image.jpeg, image.width, image.height, None, None, None


class _Collector:
    """Stands where img2dataset has its writer: images to the spool, the rest to `results`. Called by one thread."""

    def __init__(self, results: dict[str, Fetched], spool: BinaryIO, opener: GuardedOpener) -> None:
        self._results, self._spool, self._opener = results, spool, opener
        self._failure: OSError | None = None

    def write(self, jpeg: bytes | None, key: str, caption: None, meta: Mapping[str, Any]) -> None:
        if jpeg is None:
            self._results[meta["uid"]] = failed(meta["error_message"], fetched=meta["status"] == "failed_to_resize")
            return
        if meta["expected"] is not None and meta["sha256"] != meta["expected"]:
            self._results[meta["uid"]] = Fetched(cause="hash_mismatch", detail=f"expected {meta['expected']}", sha256=meta["sha256"])
            return
        try:
            offset = _append(self._spool, jpeg)
        except OSError as problem:  # a full disk: kept for close, since exceptions from here are printed and forgotten
            self._failure = problem
            self._opener.stopped.set()
            return
        self._results[meta["uid"]] = Fetched(
            cause=None, sha256=meta["sha256"], offset=offset, bytes=len(jpeg), width=meta["width"], height=meta["height"]
        )

    def close(self) -> None:
        if self._failure is not None:
            raise self._failure


def failed(message: str, *, fetched: bool = False) -> Fetched:
    """A failure from its text, `slug: detail`.

    Args:
        fetched: the bytes came and are at fault, so that trying again is no use.
    """
    if message == "Use of image disallowed by X-Robots-Tag directive":
        return Fetched(cause="opt_out", detail=message)
    match = re.fullmatch(r"([a-z0-9_]+): (.*)", message)
    if match is None:
        return Fetched(cause="unexpected", detail=message[:300])
    return Fetched(cause=match[1], detail=match[2], passing=not fetched and is_passing(match[1]))


def downloader_class() -> Any:
    """img2dataset's Downloader alone. Its package's own import brings torch, Ray and pandas: seconds and hundreds of MB a worker."""
    if "img2dataset.downloader" not in sys.modules:
        found = importlib.metadata.version("img2dataset")
        if found != IMG2DATASET:
            raise ConfigError(f"img2dataset {found} is installed; the guard rests on how {IMG2DATASET} fetches. Run `make install`.")
        if "img2dataset" in sys.modules:
            importlib.import_module("img2dataset.downloader")
        else:
            spec = importlib.util.find_spec("img2dataset")
            assert spec is not None and spec.submodule_search_locations is not None
            shell = ModuleType("img2dataset")
            shell.__path__ = list(spec.submodule_search_locations)
            sys.modules["img2dataset"] = shell
            try:
                importlib.import_module("img2dataset.downloader")
            finally:
                del sys.modules["img2dataset"]
    return sys.modules["img2dataset.downloader"].Downloader
