"""One pass over some urls: img2dataset's Downloader, with our opener, our check of images and our journal inside.

Its threads, its loop and its hashing are used; where it has a resizer and a writer it gets `_Checker` and `_Collector`. It never
sees a url: its rows are numbered turns, and the opener that is installed meanwhile fetches for each of them the url whose turn it
is (winnow/turns.py), if its site lets us (winnow/refusals.py), through the guard (winnow/guard.py). It reports failures as text,
so causes travel as `slug: detail`.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import pyarrow as pa

from winnow.bodies import LARGE_BYTES, Room
from winnow.errors import ConfigError
from winnow.fetch_failures import FetchError
from winnow.guard import Answer, GuardedOpener, Moved, installed
from winnow.images import ImageLimits, ImageRefused, check_image
from winnow.journal import Fetched, Journal
from winnow.refusals import Origins
from winnow.turns import Hosts, Job, Turns
from winnow.urls import check_url

IMG2DATASET = "1.47.0"
COLUMNS = ("uid", "url")
M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
TURN = "winnow-turn:"
"""What img2dataset takes for urls; nothing else could open them."""


@dataclass(frozen=True, kw_only=True)
class Web:
    """How a partition is fetched: the guard, and what this worker knows of sites."""

    guard: GuardedOpener
    origins: Origins
    hosts: Hosts
    limits: ImageLimits
    threads: int


def fetch(rows: Sequence[Mapping[str, Any]], journal: Journal, scratch: Path, web: Web) -> None:
    """One pass over these urls: every one of them has a result in the journal afterwards.

    Args:
        rows: of the manifest part: uid, url, sha256. Their urls have passed `check_url`.
        scratch: a folder for what img2dataset reads and writes besides.
    """
    _hand_back_large_blocks()
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    numbers = [str(number) for number in range(len(rows))]
    feed = pa.table([numbers, [TURN + number for number in numbers]], schema=schema)
    with pa.OSFile(str(scratch / "turns.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(feed)
    web.origins.forget_failures()
    jobs = [Job(row=row, url=row["url"], seconds_left=web.guard.config.timeout_seconds) for row in rows]
    turns = Turns(web.hosts, jobs, knows=web.origins.knows)
    collector = _Collector(journal, turns)
    room = Room()
    opener = _Taker(web, turns, collector.taken, room)
    downloader = downloader_class()(
        sample_writer_class=lambda *_: collector,
        resizer=_Checker(web.limits, room),
        thread_count=min(web.threads, len(rows)),
        save_caption=False,
        extract_exif=False,
        output_folder=str(scratch),
        column_list=list(COLUMNS),
        timeout=None,  # the guard has its own
        number_sample_per_shard=len(rows),
        oom_shard_count=1,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=None,
    )
    with installed(opener):
        _run(lambda: downloader.download_shard((0, str(scratch / "turns.arrow"))), opener.stop)
    for job, why in turns.postponed:
        journal.add(job.row["uid"], Fetched(cause="postponed", detail=why))
    for job in collector.taken.values():
        # img2dataset prints an exception it did not expect and leaves the sample out: here it still ends as a row.
        journal.add(job.row["uid"], Fetched(cause="unexpected", detail="the worker's log has the traceback"))


@functools.cache
def _hand_back_large_blocks() -> None:
    """Has glibc return large blocks to the system as soon as they are freed; other C libraries do, or are left alone.

    By itself it comes to keep blocks of up to 32 MB for each thread once such have been freed: with 32 threads and bodies of 20 MB a
    worker held 557 MB instead of 265.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _run(call: Callable[[], None], stop: Callable[[], object]) -> None:
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
        stop()
        thread.join()
        raise
    if failures:
        raise failures[0]


class _Taker:
    """Stands where urllib has its opener: for a numbered turn, the answer of whichever url may be asked for now."""

    def __init__(self, web: Web, turns: Turns, taken: dict[str, Job], room: Room) -> None:
        self._web, self._turns, self._taken, self._room = web, turns, taken, room

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Answer:
        """Raises FetchError: the url was refused, failed, or there is none left."""
        turn = fullurl.full_url.removeprefix(TURN)
        while (job := self._turns.take()) is not None:
            self._taken[turn] = job
            answer = self._visit(job)
            if answer is not None:
                return answer
        self._taken.pop(turn, None)
        raise FetchError("stopped", "no url is left for this turn")

    def stop(self) -> None:
        """Nothing more is fetched."""
        self._web.guard.stopped.set()
        self._turns.stop()

    def _visit(self, job: Job) -> Answer | None:
        """One request; None if it led elsewhere, where the url now waits for a turn."""
        web, turns, asked = self._web, self._turns, False
        try:
            news = not web.origins.knows(job.url)
            rules = web.origins.rules(job.url, web.guard)
            if news:
                turns.crawl_delay(job.url, rules.crawl_delay)
            web.origins.check(job.url, rules)
            asked, began = True, time.monotonic()
            found = web.guard.ask(
                job.url,
                began + job.seconds_left,
                look=lambda headers: web.origins.check_answer(job.url, headers, rules),
                room=self._room,
            )
            job.seconds_left -= time.monotonic() - began
            if isinstance(found, Moved):
                web.guard.check_hops(job.hops, found)
                check_url(found.url)
        except FetchError as problem:
            turns.done(job, problem.slug, retry_after=problem.retry_after, asked=asked)
            raise
        except BaseException:
            turns.done(job, "unexpected")
            raise
        if isinstance(found, Moved):
            turns.moved(job, found.url)
            return None
        turns.done(job, None)
        return found


class _Checker:
    """Stands where img2dataset has its resizer: whatever was fetched comes here, one after the other."""

    def __init__(self, limits: ImageLimits, room: Room) -> None:
        self._limits, self._room = limits, room

    def __call__(self, stream: BinaryIO, boxes: None = None) -> tuple[bytes | None, int | None, int | None, None, None, str | None]:
        data = stream.read()
        try:
            image = check_image(data, self._limits)
        except ImageRefused as problem:
            return None, None, None, None, None, str(problem)
        finally:
            self._room.give_back(len(data))
        return image.jpeg, image.width, image.height, None, None, None


class _Collector:
    """Stands where img2dataset has its writer: everything to the journal. Called by one thread."""

    def __init__(self, journal: Journal, turns: Turns) -> None:
        self._journal, self._turns = journal, turns
        self._failure: OSError | None = None
        self.taken: dict[str, Job] = {}
        """Turn -> its url, until there is a result."""

    def write(self, jpeg: bytes | None, key: str, caption: None, meta: Mapping[str, Any]) -> None:
        job = self.taken.get(meta["uid"])
        if job is None or self._failure is not None:
            return
        uid, expected = job.row["uid"], job.row["sha256"]
        if jpeg is None:
            result = failed(meta["error_message"])
            if result.cause == "stopped":  # by us: no word about the url
                return
        elif expected is not None and meta["sha256"] != expected:
            result, jpeg = Fetched(cause="hash_mismatch", detail=f"expected {expected}", sha256=meta["sha256"]), None
        else:
            result = Fetched(cause=None, sha256=meta["sha256"], width=meta["width"], height=meta["height"])
        try:
            self._journal.add(uid, result, jpeg)
        except OSError as problem:  # a full disk: kept for close, since exceptions from here are printed and forgotten
            self._failure = problem
            self._turns.stop()
            return
        del self.taken[meta["uid"]]

    def close(self) -> None:
        if self._failure is not None:
            raise self._failure


def failed(message: str) -> Fetched:
    """A failure from its text, `slug: detail`."""
    match = re.fullmatch(r"([a-z0-9_]+): (.*)", message)
    return Fetched(cause=match[1], detail=match[2]) if match else Fetched(cause="unexpected", detail=message[:300])


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
