"""Files of a workspace on a local disk or any fsspec filesystem (s3://, gs://): whole or absent, never half.

On a local disk a file is written under a temporary name, flushed and renamed. An object store has neither: a put is
atomic by itself. So nothing here streams into its final place; files are built locally and put whole, because leaving a
remote `with open(..., "wb")` block by an exception commits the half that was written.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from winnow.digests import sha256_of
from winnow.errors import ConfigError
from winnow.full_disks import telling_full_disks

if TYPE_CHECKING:
    from winnow.object_store import ObjectStore

TEMPORARY = ".tmp"
"""Folder of unfinished files below a local root. What a killed run left there is removed by the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A file as it was written: its digest is taken on the way, so that nobody need read it again for it."""

    path: str
    sha256: str
    bytes: int


_fences: dict[str, Callable[[], None]] = {}
"""Url -> what must not raise before anything changes there; see `fence`."""


@contextlib.contextmanager
def fence(url: str, check: Callable[[], None]) -> Iterator[None]:
    """For this while, every write of this process below `url` is preceded by `check`, which raises if the workspace was lost."""
    _fences[url] = check
    try:
        yield
    finally:
        del _fences[url]


@dataclass(frozen=True)
class Storage:
    """A folder somewhere; every path below is relative to it, with forward slashes. Cheap to pickle: only the url travels.

    On an object store every method ends within its deadline and raises StorageError if the store does not answer (see
    winnow/object_store.py); FileNotFoundError always means that a file is absent.
    """

    url: str

    @cached_property
    def _root(self) -> str:
        if not self.is_local:
            return self.store.root
        return os.path.abspath(self.url.removeprefix("file://")).rstrip("/")

    @cached_property
    def store(self) -> "ObjectStore":
        """The store of objects behind a url; not for local folders."""
        from winnow.object_store import open_store  # a local workspace does without fsspec

        return open_store(self.url)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.url,)  # a filesystem must be made anew in each process: s3fs is not fork-safe

    @cached_property
    def is_local(self) -> bool:
        return "://" not in self.url or self.url.startswith("file://")

    def full(self, path: str) -> str:
        """The path as the filesystem knows it. Refuses to leave the root."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ConfigError(f"path {path!r} leaves the workspace {self.url}")
        return f"{self._root}/{path}" if path else self._root

    def place(self, path: str) -> str:
        """Where a file is, for people: a path, or a url."""
        return self.full(path) if self.is_local else f"{self.url.rstrip('/')}/{path}"

    def ensure_held(self) -> None:
        """Raises WorkspaceLost if this process held the workspace and does not any more."""
        for url, check in list(_fences.items()):
            if f"{self.url}/".startswith(f"{url}/"):
                check()

    def exists(self, path: str) -> bool:
        """Whether there is such a file; on a disk also such a folder."""
        if self.is_local:
            return os.path.exists(self.full(path))
        return self.store.find(self.full(path)) is not None

    def size(self, path: str) -> int:
        """Bytes. Raises FileNotFoundError."""
        if self.is_local:
            return os.path.getsize(self.full(path))
        if (found := self.store.find(self.full(path))) is None:
            raise FileNotFoundError(f"{self.url}/{path}")
        return found.size

    def read_bytes(self, path: str) -> bytes:
        """For small files: a big one is read by `open` or `local_file`. Raises FileNotFoundError."""
        if self.is_local:
            return Path(self.full(path)).read_bytes()
        return self.store.read(self.full(path))

    def read_text(self, path: str) -> str:
        return self.read_bytes(path).decode()

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Contents of many small files, in the order of `paths`; from an object store many at a time. Raises FileNotFoundError."""
        if self.is_local:
            return [self.read_bytes(path) for path in paths]
        return self.store.read_many([self.full(path) for path in paths])

    def open(self, path: str) -> BinaryIO:
        """For reading only: files are written whole, by `write_bytes` or `put`."""
        if self.is_local:
            return open(self.full(path), "rb")
        return self.store.open(self.full(path))

    def sha256(self, path: str) -> str:
        with self.open(path) as stream:
            return sha256_of(stream)

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; none if there is no such folder."""
        full = self.full(folder)
        if not self.is_local:
            return sorted(os.path.basename(path) for path in self.store.list_files(full, deep=False))
        try:
            with os.scandir(full) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return []

    def walk(self, folder: str = "") -> list[str]:
        """Relative paths of all files below a folder, sorted."""
        full = self.full(folder)
        if not self.is_local:
            return sorted(path[len(self._root) + 1 :] for path in self.store.list_files(full, deep=True))
        found = (os.path.join(parent, name) for parent, _, names in os.walk(full, onerror=_raise_unless_absent) for name in names)
        return sorted(path[len(self._root) + 1 :] for path in found)

    def write_bytes(self, path: str, data: bytes) -> Written:
        """The file appears whole, or not at all."""
        self.ensure_held()
        if self.is_local:
            with telling_full_disks(path, self.url):
                temporary = self._temporary()
                with open(temporary, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                self._rename(temporary, path)
        else:
            self.store.write(self.full(path), data)
        return Written(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def write_text(self, path: str, text: str) -> Written:
        return self.write_bytes(path, text.encode())

    def put(self, local: str | os.PathLike[str], path: str, *, sha256: str | None = None) -> Written:
        """Moves a finished local file to its place; it appears whole, or not at all. The local file is gone afterwards.

        Args:
            sha256: its digest, if the caller took it while writing; otherwise the file is read once more, from the local disk.
        """
        self.ensure_held()
        size = os.path.getsize(local)
        if sha256 is None:
            with open(local, "rb") as stream:
                sha256 = sha256_of(stream)
        if self.is_local:
            with telling_full_disks(path, self.url):
                temporary = self._temporary()
                shutil.move(local, temporary)
                with open(temporary, "rb") as stream:
                    os.fsync(stream.fileno())
                self._rename(temporary, path)
        else:
            self.store.upload(str(local), self.full(path))
            os.unlink(local)
        return Written(path=path, sha256=sha256, bytes=size)

    def fetch(self, path: str, local: str | os.PathLike[str]) -> None:
        """Copies a file to a local path. Raises FileNotFoundError."""
        if self.is_local:
            shutil.copyfile(self.full(path), local)
        else:
            self.store.download(self.full(path), str(local))

    def copy(self, path: str, to: str) -> None:
        """Copies a file to another place here, whole or not at all; an object store does it by itself. Raises FileNotFoundError."""
        self.ensure_held()
        if self.is_local:
            with self.scratch() as folder:
                self.fetch(path, folder / "copy")
                self.put(folder / "copy", to)
        else:
            self.store.copy(self.full(path), self.full(to))

    def remove(self, path: str) -> None:
        """Removes a file; nothing happens if it is already gone."""
        self.ensure_held()
        full = self.full(path)
        if not self.is_local:
            self.store.remove(full)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(full)

    def remove_folder(self, folder: str) -> None:
        """Removes a folder and all files below it; nothing happens if it is already gone."""
        self.ensure_held()
        if self.is_local:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.full(folder))
            return
        for path in self.walk(folder):
            self.remove(path)

    @contextlib.contextmanager
    def local_file(self, path: str) -> Iterator[Path]:
        """A local path with the file's bytes, for readers that need one (tar, SQLite): the file itself, or a copy for a while."""
        if self.is_local:
            yield Path(self.full(path))
            return
        with self.scratch() as folder:
            copy = folder / os.path.basename(path)
            self.store.download(self.full(path), str(copy))
            yield copy

    @property
    def scratch_parent(self) -> str:
        """Where scratch folders are: on an object store's workspace, where TMPDIR says."""
        return self.full(TEMPORARY) if self.is_local else tempfile.gettempdir()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder that is gone afterwards: on the workspace's own disk if that is local, so that `put` is a rename."""
        parent = self.scratch_parent
        if self.is_local:
            os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix="work-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def clear_temporary(self) -> None:
        """Removes what killed runs left unfinished. Only for the holder of the workspace's lock."""
        if self.is_local:
            shutil.rmtree(self.full(TEMPORARY), ignore_errors=True)

    def clear_abandoned(self, older_than_seconds: float) -> int:
        """Aborts uploads in parts that killed writers left on an object store; how many. Only for the holder of the workspace's lock."""
        return 0 if self.is_local else self.store.abort_uploads(older_than_seconds)

    def _temporary(self) -> str:
        folder = self.full(TEMPORARY)
        os.makedirs(folder, exist_ok=True)
        return f"{folder}/{uuid.uuid4().hex}"

    def _rename(self, temporary: str, path: str) -> None:
        target = self.full(path)
        parent = os.path.dirname(target)
        os.makedirs(parent, exist_ok=True)
        os.replace(temporary, target)
        # The rename itself must survive a power cut: flush the folder, too.
        descriptor = os.open(parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _raise_unless_absent(problem: OSError) -> None:
    """os.walk would pass over a folder that cannot be read, and an unreadable folder is not an empty one."""
    if not isinstance(problem, FileNotFoundError):
        raise problem
