"""What was fetched of a partition so far, on this machine's disk, so that a killed download goes on where it was.

    <folder>/images         images one after the other, as they will be stored
    <folder>/index.jsonl    a line for each result: checksum, then JSON; written after its image

Both are only ever appended to, without a buffer of ours: after a kill all is there but what had not been handed over. A line or
an image that was cut (by a power failure, say) fails its checksum and is fetched again. The folder is locked by the process
that writes to it: a second one (a partition given to another worker while the first still lives) gets a folder that is gone
afterwards.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from winnow.digests import SHORT, digest
from winnow.storage import Storage

FOLDER = ".journal"
"""Below a local workspace's root. Of another workspace: below the machine's folder for temporary files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What became of one url."""

    cause: str | None
    """None: its image is here."""
    detail: str | None = None
    sha256: str | None = None
    """Of the bytes that came over the net."""
    offset: int = 0
    """In the journal's images."""
    bytes: int | None = None
    crc32: int = 0
    width: int | None = None
    height: int | None = None

    @property
    def http_status(self) -> int | None:
        slug = self.cause or ""
        return int(slug[5:]) if slug.startswith("http_") and slug[5:].isdecimal() else None


GOOD_SECONDS = 3 * 24 * 3600.0
"""A journal that nothing was added to for longer is begun anew."""
SETTLED = 1_000_000
"""As a number of tries: more than any run makes."""
FIELDS = tuple(field.name for field in fields(Fetched))


class Journal:
    """One partition's results, the last one of each uid. Written to by one thread."""

    def __init__(self, folder: Path) -> None:
        """Goes on from what is in the folder, which must be locked."""
        self.folder = folder
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._index = os.open(folder / "index.jsonl", flags, 0o600)
        self._images = os.open(folder / "images", flags, 0o600)
        self.results: dict[str, Fetched] = {}
        self.tries: dict[str, int] = {}
        """How often each uid was asked for; SETTLED for what shall not be asked for again."""
        self.notes: dict[str, Any] = {}
        self._end = 0
        self._load()

    def add(self, uid: str, result: Fetched, image: bytes | None = None, *, settled: bool = False) -> None:
        """Raises OSError if the disk is full; what was there stays."""
        if image is not None:
            result = replace(result, offset=self._end, bytes=len(image), crc32=zlib.crc32(image))
            _write(self._images, image, self._end)
            self._end += len(image)
        tries = SETTLED if settled else self.tries.get(uid, 0) + 1
        self._append({"uid": uid, "tries": tries, **{key: value for key in FIELDS if (value := getattr(result, key))}})
        self.results[uid], self.tries[uid] = result, tries

    def note(self, **notes: Any) -> None:
        """Something about the whole partition."""
        self._append({"notes": notes})
        self.notes |= notes

    def forget(self, uid: str) -> None:
        """As if it had not been asked for."""
        self._append({"uid": uid, "forgotten": True})
        self.results.pop(uid, None)
        self.tries.pop(uid, None)

    def image(self, uid: str) -> bytes:
        """As it will be stored."""
        result = self.results[uid]
        assert result.bytes is not None
        return os.pread(self._images, result.bytes, result.offset)

    def clear(self) -> None:
        """Forgets all."""
        for descriptor in (self._index, self._images):
            os.ftruncate(descriptor, 0)
        self.results, self.tries, self.notes, self._end = {}, {}, {}, 0
        self._length = 0

    def close(self) -> None:
        for descriptor in (self._index, self._images):
            os.close(descriptor)

    def _append(self, entry: Mapping[str, Any]) -> None:
        text = json.dumps(entry, separators=(",", ":"))
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        _write(self._index, line, self._length)
        self._length += len(line)

    def _load(self) -> None:
        size = os.fstat(self._images).st_size
        self._length = 0
        with open(self._index, "rb", closefd=False) as stream:
            for line in stream:
                entry = _parsed(line)
                if entry is None:
                    break
                self._length += len(line)
                self._replay(entry, size)
        os.ftruncate(self._index, self._length)
        os.ftruncate(self._images, self._end)

    def _replay(self, entry: dict[str, Any], size: int) -> None:
        if "notes" in entry:
            self.notes |= entry["notes"]
            return
        uid = entry.pop("uid")
        if entry.pop("forgotten", False):
            self.results.pop(uid, None)
            self.tries.pop(uid, None)
            return
        tries = entry.pop("tries")
        result = Fetched(**{"cause": None, **entry})
        if result.bytes is not None:
            end = result.offset + result.bytes
            if end > size or zlib.crc32(os.pread(self._images, result.bytes, result.offset)) != result.crc32:
                return
            self._end = max(self._end, end)
        self.results[uid], self.tries[uid] = result, tries


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """All of it: a single call may write less, for example when the disk fills up."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of the index; None if it was cut or changed."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        if not line.endswith(b"\n") or int(checksum, 16) != zlib.crc32(text):
            return None
        entry: dict[str, Any] = json.loads(text)
        return entry
    except ValueError:
        return None


@contextlib.contextmanager
def journal_of(storage: Storage, partition: str, settings: Any) -> Iterator[Journal]:
    """The journal of a partition under these settings; it stays when the block is left.

    Args:
        settings: what decides what is kept: under others everything is fetched anew.
    """
    folder = journals_folder(storage) / f"{partition}.{digest(settings)[:SHORT]}"
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(_locked(folder)):
            folder = stack.enter_context(storage.scratch())
        _remove_if_old(folder)
        journal = Journal(folder)
        stack.callback(journal.close)
        yield journal


def _remove_if_old(folder: Path) -> None:
    """One that a machine was left with, when another went on: what stands in it may no longer be true."""
    index = folder / "index.jsonl"
    if index.exists() and time.time() - index.stat().st_mtime > GOOD_SECONDS:
        for name in ("index.jsonl", "images"):
            (folder / name).unlink(missing_ok=True)


def journals_folder(storage: Storage) -> Path:
    """Where journals of a workspace lie on this machine."""
    if storage.is_local:
        return Path(storage.full(FOLDER))
    return Path(tempfile.gettempdir()) / f"winnow-journal-{os.getuid()}-{digest(storage.url)[:SHORT]}"


def remove_journals(storage: Storage) -> None:
    """Removes this machine's journals of a workspace. For the holder of its lock, when every partition has its receipt."""
    shutil.rmtree(journals_folder(storage), ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours for the while. The kernel frees it when this process ends, however it ends."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    # In a folder for temporary files, which others may write to, a stranger could have put it there.
    if folder.parent.stat().st_uid != os.getuid():
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
