"""Stores of objects (s3://, gs://, fsspec's memory://): every operation has one deadline, and an outage is never taken for absence.

All filesystems of the project are made here. Three rules hold that fsspec's own functions do not keep:

- An operation ends within OPERATION_SECONDS, and the time its bytes may take, however often a library below tries again.
- Only FileNotFoundError means that something is absent. Whatever else goes wrong is a StorageError, never an empty answer.
- Nothing is cached: what another process wrote is seen.

What is peculiar to S3 (listings by page, conditional writes, uploads in parts) is in winnow/s3.py.
"""

import contextlib
import errno
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.asyn import sync

from winnow.errors import ConfigError, StorageError
from winnow.full_disks import FULL, disk_full

SECONDS_VARIABLE = "WINNOW_STORAGE_SECONDS"
OPERATION_SECONDS = 60.0
"""Deadline of one operation, tries and pauses included, unless WINNOW_STORAGE_SECONDS says otherwise."""
SLOWEST_BYTES_PER_SECOND = 1_000_000
"""A deadline grows with the bytes to be moved: a link slower than this counts as broken."""
READ_BLOCK_BYTES = 4 * 1024 * 1024
"""Of a file that is read piece by piece."""
READS_AT_A_TIME = 32
"""Of small files, where many are read."""


def operation_seconds() -> float:
    """Deadline of one operation without its bytes. Raises ConfigError if WINNOW_STORAGE_SECONDS is no time."""
    text = os.environ.get(SECONDS_VARIABLE)
    if text is None:
        return OPERATION_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise ConfigError(f"{SECONDS_VARIABLE} must be a number of seconds, more than 0 and less than a day, got {text!r}")
    return seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a store says of an object."""

    size: int
    """Bytes."""
    etag: str | None
    """Changes with the content; None where the store gives none."""


class ObjectStore(ABC):
    """A folder of a store of objects. Paths are the filesystem's own (bucket/key)."""

    faults: tuple[type[BaseException], ...] = (OSError, TimeoutError)
    """What the libraries below raise when the store cannot be reached, answers nonsense or refuses."""

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        self.url = url
        self.filesystem = filesystem
        self.root = root
        self.seconds = operation_seconds()

    @abstractmethod
    def list_files(self, folder: str, *, deep: bool) -> list[str]:
        """Full paths of the files in a folder (of all below it, if deep), in no order; none if there is no such folder."""

    @abstractmethod
    def write_if(self, path: str, data: bytes, *, etag: str | None) -> str | None:
        """Writes only if the object still has this etag, or, without one, only if it is absent. The new etag; None if refused."""

    @abstractmethod
    def honours_conditions(self) -> bool:
        """Whether `write_if` can be relied on here: tried, not assumed."""

    def abort_uploads(self, older_than_seconds: float) -> int:
        """Takes away what killed writers left half uploaded below the root; how many there were. Few stores can be left with any."""
        return 0

    def find(self, path: str) -> Found | None:
        """Size and etag of an object; None if it is absent."""
        try:
            found = self.call(f"looking at {path}", "info", path)
        except FileNotFoundError:
            return None
        return None if found["type"] == "directory" else Found(size=int(found["size"]), etag=found.get("ETag") or None)

    def read(self, path: str, *, num_bytes: int = 0) -> bytes:
        return cast(bytes, self.call(f"reading {path}", "cat_file", path, num_bytes=num_bytes))

    def open(self, path: str) -> BinaryIO:
        """Reads an object piece by piece; each piece has a deadline of its own. Raises FileNotFoundError if it is absent."""
        found = self.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        reader = RangeReader(lambda start, end: self._piece(path, start, end), found.size)
        return cast(BinaryIO, io.BufferedReader(reader, READ_BLOCK_BYTES))

    def _piece(self, path: str, start: int, end: int) -> bytes:
        data = cast(bytes, self.call(f"reading {path}", "cat_file", path, start=start, end=end, num_bytes=end - start))
        if len(data) != end - start:
            raise StorageError(f"{self.url}: {path} changed while it was read. Run again; if it happens again, another run writes here.")
        return data

    def write(self, path: str, data: bytes) -> None:
        self.call(f"writing {path}", "pipe_file", path, data, num_bytes=len(data))

    def upload(self, local: str, path: str) -> None:
        self.call(f"writing {path}", "put_file", local, path, num_bytes=os.path.getsize(local))

    def download(self, path: str, local: str) -> None:
        """Raises StorageError if fewer or more bytes came than the store has."""
        found = self.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self.call(f"reading {path}", "get_file", path, local, num_bytes=found.size)
        if os.path.getsize(local) != found.size:
            raise StorageError(f"{self.url}: of {path} came {os.path.getsize(local):,} bytes, the store has {found.size:,}. Run again.")

    def copy(self, path: str, to: str) -> None:
        """Within the store. Raises FileNotFoundError."""
        found = self.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self.call(f"copying {path} to {to}", "cp_file", path, to, num_bytes=found.size)

    def remove(self, path: str) -> None:
        """Nothing happens if it is already gone."""
        with contextlib.suppress(FileNotFoundError):
            self.call(f"removing {path}", "rm_file", path)

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Contents in the order of `paths`. Raises FileNotFoundError if one is absent."""
        return [self.read(path) for path in paths]

    def call(self, what: str, method: str, *arguments: Any, num_bytes: int = 0, **settings: Any) -> Any:
        """One operation of the filesystem, within its deadline.

        Args:
            what: is done, for messages.
            method: of the filesystem.
            num_bytes: that may have to travel.

        Raises:
            FileNotFoundError: it is absent.
            ConfigError: the bucket does not exist.
            StorageError: no answer in time, or a refusal.
            DiskFull: a local file could not be written.
        """
        filesystem = self.filesystem
        with self.telling(what):
            if filesystem.async_impl:
                limit = self.seconds + num_bytes / SLOWEST_BYTES_PER_SECOND
                return sync(filesystem.loop, getattr(filesystem, f"_{method}"), *arguments, timeout=limit, **settings)
            return getattr(filesystem, method)(*arguments, **settings)

    @contextlib.contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Turns what the libraries below raise into errors of ours; that a file is absent, or there already, stays as it is."""
        try:
            yield
        except (FileNotFoundError, FileExistsError) as problem:
            self._check_bucket(problem)
            raise
        except self.faults as problem:
            self._check_bucket(problem)
            if isinstance(problem, OSError) and problem.errno in FULL:
                raise disk_full(problem, "a copy of what the store holds") from problem
            raise StorageError(f"{self.url}: {what} failed: {_describe(problem)}") from problem

    def _check_bucket(self, problem: BaseException) -> None:
        """Stores say "not found" of an absent bucket, too; that must not be read as an empty one."""
        if error_code(problem) == "NoSuchBucket":
            raise ConfigError(f"{self.url}: there is no such bucket. Make it, or name another one.") from problem


def error_code(problem: BaseException | None) -> str:
    """What the store called its refusal; empty if it did not answer."""
    while problem is not None:
        response = getattr(problem, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", ""))
        problem = problem.__cause__
    return ""


def _describe(problem: BaseException) -> str:
    if isinstance(problem, PermissionError) or "Credentials" in type(problem).__name__:
        return (
            f"the store refuses ({type(problem).__name__}: {problem}). Check the credentials and what they allow: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role; AWS_ENDPOINT_URL for a store that is not Amazon's."
        )
    if isinstance(problem, TimeoutError):
        return f"no usable answer within {operation_seconds():.0f} s. Check the network and the store; the same command goes on from here."
    return f"{type(problem).__name__}: {problem}".rstrip(": .") + ". Check the network and the store; the same command goes on from here."


class GenericStore(ObjectStore):
    """Any filesystem of fsspec, by what all of them can do. No conditional writes."""

    def open(self, path: str) -> BinaryIO:
        # Not by ranges: a web server may know neither ranges nor sizes.
        with self.telling(f"reading {path}"):
            return cast(BinaryIO, self.filesystem.open(path, "rb"))

    def list_files(self, folder: str, *, deep: bool) -> list[str]:
        try:
            if deep:
                return list(self.call(f"listing {folder}", "find", folder))
            return [entry["name"] for entry in self.call(f"listing {folder}", "ls", folder, detail=True) if entry["type"] == "file"]
        except FileNotFoundError:
            return []

    def write_if(self, path: str, data: bytes, *, etag: str | None) -> str | None:
        raise AssertionError("only to be called where honours_conditions is true")

    def honours_conditions(self) -> bool:
        return False


class RangeReader(io.RawIOBase):
    """An object as a file that can be read and sought in, by pieces."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._at = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._fetch(self._at, end)
        buffer[: len(data)] = data
        self._at = end
        return len(data)


def open_store(url: str) -> ObjectStore:
    """The store behind a url.

    Credentials and the address of a store that is not Amazon's come from each machine's surroundings (AWS_* variables and files):
    nothing of them is in the url, and so in no receipt, log or argument of a worker.

    Raises:
        ConfigError: there is no such kind of store here, or the url carries credentials.
    """
    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0]:
        raise ConfigError(
            f"{scheme}://…@{rest.partition('@')[2]} carries credentials, which would end in logs: give them by the environment"
        )
    if scheme in ("s3", "s3a"):
        from winnow.s3 import open_s3

        return open_s3(url)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as problem:
        raise ConfigError(f"{url}: no way to open {scheme}:// here ({problem}). Local folders and s3:// always work.") from problem
    return GenericStore(url, filesystem, root.rstrip("/"))
