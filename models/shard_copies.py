"""Local copies of shards that are on an object store: shared by all training processes of a machine, and bounded.

A copy is named by its sha256, which is checked when it arrives; so it is right for whoever finds it. A reader opens it while it
holds the copy's lock and reads on from its descriptor: a copy that is removed meanwhile goes from the folder, not from its readers.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models.training_data import ShardEntry
from winnow.digests import sha256_of
from winnow.errors import ConfigError, ShardError
from winnow.storage import Storage

LIMIT_VARIABLE = "WINNOW_SHARD_CACHE_GB"
LIMIT_GB = 32.0
"""Of copies on one machine, unless WINNOW_SHARD_CACHE_GB says otherwise; never more than half of what the disk has for them."""


@contextlib.contextmanager
def local_shard(storage: Storage, shard: ShardEntry) -> Iterator[Path]:
    """A shard as a local file that is there while the block lasts: itself, or a copy.

    Raises:
        FileNotFoundError: there is no such shard.
        ShardError: its content is not what index.json says.
        StorageError: the store does not answer.
    """
    if storage.is_local:
        yield Path(storage.full(shard.name))
        return
    folder = copies_folder()
    with _locked(folder / f"{shard.sha256}.lock"):
        copy = folder / f"{shard.sha256}.tar"
        if not copy.exists():
            arriving = copy.with_suffix(".part")  # one for all: who writes it holds the lock
            _make_room(folder, storage.size(shard.name))
            storage.fetch(shard.name, arriving)
            with open(arriving, "rb") as stream:
                found = sha256_of(stream)
            if found != shard.sha256:
                arriving.unlink()
                raise ShardError(f"{storage.place(shard.name)} is not what index.json says (sha256 {found[:12]}); make the shards again")
            os.replace(arriving, copy)
        os.utime(copy)
        yield copy


def copies_folder() -> Path:
    """Where the copies of this user are. Raises ConfigError if somebody else made a folder of that name."""
    folder = Path(tempfile.gettempdir()) / f"winnow-shards-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{folder} is somebody else's: name another place for temporary files (TMPDIR)")
    return folder


def clear_copies() -> None:
    """Removes the copies of which nobody is just opening one."""
    _remove_until(copies_folder(), 0)


def limit_bytes(folder: Path, held: int) -> int:
    """How much the copies may take, those that are there included. Raises ConfigError if WINNOW_SHARD_CACHE_GB is no size."""
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise ConfigError(f"{LIMIT_VARIABLE} must be a number of gigabytes, more than 0, got {text!r}")
    return int(min(gigabytes * 1e9, (shutil.disk_usage(folder).free + held) / 2))


def _make_room(folder: Path, wanted: int) -> None:
    held = sum(size for _, size, _ in _copies(folder))
    _remove_until(folder, max(0, limit_bytes(folder, held) - wanted))


def _remove_until(folder: Path, limit: int) -> None:
    """Removes those longest not opened until the rest takes no more than `limit` bytes."""
    copies = _copies(folder)
    held = sum(size for _, size, _ in copies)
    for _, size, path in copies:
        if held <= limit:
            return
        with _locked(path.with_suffix(".lock"), wait=False) as ours:
            if ours:
                path.unlink(missing_ok=True)
                held -= size


def _copies(folder: Path) -> list[tuple[int, int, Path]]:
    """(when it was opened last, bytes, path) of each copy, whole or not, the one longest not opened first."""
    found = []
    for path in folder.iterdir():
        if path.suffix in (".tar", ".part"):
            with contextlib.suppress(FileNotFoundError):  # another process made room, too
                entry = path.stat()
                found.append((entry.st_mtime_ns, entry.st_size, path))
    return sorted(found)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether this process has the lock, which the kernel frees when it ends. Its file stays: two processes could lock two of one name."""
    with open(path, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
