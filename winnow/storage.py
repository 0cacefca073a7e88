"""Files of a workspace on a local disk or any fsspec filesystem (s3://, gs://): whole or absent, never half.

On a local disk a file is written under a temporary name, flushed and renamed. An object store has neither: a put is
atomic by itself. So nothing here streams into its final place; files are built locally and put whole, because leaving a
remote `with open(..., "wb")` block by an exception commits the half that was written.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import fsspec

from winnow.digests import sha256_of
from winnow.errors import ConfigError

TEMPORARY = ".tmp"
"""Folder of unfinished files below a local root. What a killed run left there is removed by the next one."""


@dataclass(frozen=True)
class Storage:
    """A folder somewhere; every path below is relative to it, with forward slashes. Cheap to pickle: only the url travels."""

    url: str

    @cached_property
    def _resolved(self) -> tuple[fsspec.AbstractFileSystem, str]:
        # use_listings_cache: another process's writes must be seen, and s3fs caches listings otherwise.
        options = {} if self.is_local else {"use_listings_cache": False}
        filesystem, root = fsspec.core.url_to_fs(self.url, **options)
        return filesystem, root.rstrip("/")

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.url,)  # a filesystem must be made anew in each process: s3fs is not fork-safe

    @cached_property
    def is_local(self) -> bool:
        return "://" not in self.url or self.url.startswith("file://")

    def full(self, path: str) -> str:
        """The path as the filesystem knows it. Refuses to leave the root."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ConfigError(f"path {path!r} leaves the workspace {self.url}")
        root = self._resolved[1]
        return f"{root}/{path}" if path else root

    def exists(self, path: str) -> bool:
        return bool(self._resolved[0].exists(self.full(path)))

    def size(self, path: str) -> int:
        return int(self._resolved[0].size(self.full(path)))

    def read_bytes(self, path: str) -> bytes:
        return cast(bytes, self._resolved[0].cat_file(self.full(path)))

    def read_text(self, path: str) -> str:
        return self.read_bytes(path).decode()

    def open(self, path: str) -> BinaryIO:
        """For reading only: files are written whole, by `write_bytes` or `put`."""
        return cast(BinaryIO, self._resolved[0].open(self.full(path), "rb"))

    def sha256(self, path: str) -> str:
        with self.open(path) as stream:
            return sha256_of(stream)

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; none if there is no such folder."""
        filesystem = self._resolved[0]
        filesystem.invalidate_cache(self.full(folder))
        try:
            entries = filesystem.ls(self.full(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(os.path.basename(entry["name"]) for entry in entries if entry["type"] == "file")

    def walk(self, folder: str = "") -> list[str]:
        """Relative paths of all files below a folder, sorted."""
        filesystem, root = self._resolved
        filesystem.invalidate_cache()
        try:
            found = filesystem.find(self.full(folder))
        except FileNotFoundError:
            return []
        return sorted(path[len(root) + 1 :] for path in found)

    def write_bytes(self, path: str, data: bytes) -> None:
        """The file appears whole, or not at all."""
        if not self.is_local:
            self._resolved[0].pipe_file(self.full(path), data)
            return
        temporary = self._temporary()
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        self._rename(temporary, path)

    def write_text(self, path: str, text: str) -> None:
        self.write_bytes(path, text.encode())

    def put(self, local: str | os.PathLike[str], path: str) -> None:
        """Moves a finished local file to its place; it appears whole, or not at all. The local file is gone afterwards."""
        if not self.is_local:
            self._resolved[0].put_file(str(local), self.full(path))
            os.unlink(local)
            return
        temporary = self._temporary()
        shutil.move(local, temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        self._rename(temporary, path)

    def remove(self, path: str) -> None:
        """Removes a file; nothing happens if it is already gone."""
        with contextlib.suppress(FileNotFoundError):
            self._resolved[0].rm_file(self.full(path))

    def remove_folder(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._resolved[0].rm(self.full(folder), recursive=True)

    @contextlib.contextmanager
    def local_file(self, path: str) -> Iterator[Path]:
        """A local path with the file's bytes, for readers that need one (tar, SQLite): the file itself, or a copy for a while."""
        if self.is_local:
            yield Path(self.full(path))
            return
        with self.scratch() as folder:
            copy = folder / os.path.basename(path)
            self._resolved[0].get_file(self.full(path), str(copy))
            yield copy

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder that is gone afterwards: on the workspace's own disk if that is local, so that `put` is a rename."""
        parent: str | None = None
        if self.is_local:
            parent = self.full(TEMPORARY)
            os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix="work-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def clear_temporary(self) -> None:
        """Removes what killed runs left unfinished. Only for the holder of the workspace's lock."""
        if self.is_local:
            shutil.rmtree(self.full(TEMPORARY), ignore_errors=True)

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
