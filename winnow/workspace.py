"""Where everything lies in a workspace, and the lock that keeps two runs apart."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from winnow.errors import ConfigError, WorkspaceBusy, WorkspaceLost
from winnow.processes import holder_text
from winnow.storage import Storage, fence

LOCK = ".lock"
UNLOCKED = "WINNOW_UNLOCKED"
"""Environment variable by which a person answers for there being one run at a time."""
ABANDONED_SECONDS = 24 * 3600.0
"""An upload in parts that began this long ago is no writer's at work."""


def manifest_part(partition: str) -> str:
    return f"manifest/{partition}.parquet"


MANIFEST_INDEX = "manifest/index.json"
WITHDRAWN = "manifest/withdrawn.parquet"
"""uids that a partition holds but no source lists any more."""


def raw_tar(partition: str) -> str:
    return f"raw/{partition}.tar"


def raw_table(partition: str) -> str:
    """What became of every url of the partition: downloaded, or failed with its cause."""
    return f"raw/{partition}.parquet"


def embeddings(partition: str) -> str:
    return f"embeddings/{partition}.parquet"


def decisions(partition: str) -> str:
    return f"decisions/{partition}.parquet"


def filter_folder(name: str, version: str) -> str:
    return f"filters/{name}/{version}"


def shard_folder(dataset: str) -> str:
    return f"shards/{dataset}"


def checkpoint_folder(model: str) -> str:
    return f"checkpoints/{model}"


REPORT = "report/index.html"


def open_workspace(url: str) -> Storage:
    """The workspace at a path or url; made if it does not exist.

    Raises:
        ConfigError: it cannot be written to, or there is no such bucket.
        StorageError: its store does not answer, or refuses.
    """
    storage = Storage(url if "://" in url else os.path.abspath(url))
    if not storage.is_local:
        storage.names("")  # a store that is not there, or refuses, is told before anything runs
        return storage
    try:
        os.makedirs(storage.full(""), exist_ok=True)
        probe = storage.full(f".probe-{os.getpid()}")
        with open(probe, "wb"):
            pass
        os.unlink(probe)
    except OSError as problem:
        raise ConfigError(
            f"workspace {url} cannot be written to: {problem.strerror}. Give another one (workspace: in the config, or --workspace)."
        ) from problem
    return storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """A run's lock on a workspace, as its workers see it from wherever they are."""

    storage: Storage
    token: str
    """Stands in the lock until another run takes it, or this one lets go of it."""

    def ensure(self) -> None:
        """Raises WorkspaceLost if the lock says anything else."""
        try:
            content = json.loads(self.storage.read_bytes(LOCK))
        except (FileNotFoundError, ValueError):  # half written: by the next holder
            content = {}
        if content.get("token") != self.token:
            raise WorkspaceLost(f"the run that this worker works for does not hold {self.storage.url} any more: nothing more is written")


_holds: dict[str, Hold] = {}
"""Url of a workspace -> this process's hold on it."""


def hold_on(storage: Storage) -> Hold | None:
    """This process's hold on the workspace that a storage is, or is a folder of; None if it has none, or one that cannot be told."""
    return next((hold for url, hold in _holds.items() if f"{storage.url}/".startswith(f"{url}/")), None)


@contextlib.contextmanager
def _holding(storage: Storage, token: str) -> Iterator[None]:
    _holds[storage.url] = Hold(storage=storage, token=token)
    try:
        yield
    finally:
        del _holds[storage.url]


@contextlib.contextmanager
def locked(storage: Storage, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds a workspace for this process, and clears away what killed runs left unfinished in it.

    On a local disk the kernel frees the lock when the process ends, however it ends. On an object store it is kept by heartbeats
    (winnow/store_lock.py), and every write of this process is preceded by a look at it.

    Args:
        wait_seconds: for another run to end; a holder that gives no sign of life is waited for until it counts as gone.

    Raises:
        WorkspaceBusy: another process holds it; says which.
        ConfigError: the store cannot hold a lock.
    """
    if storage.is_local:
        with _locked_disk(storage, wait_seconds) as token, _holding(storage, token):
            storage.clear_temporary()
            yield
    elif storage.url.startswith("memory://"):
        yield  # no other process can see it
    elif not storage.store.honours_conditions():
        if os.environ.get(UNLOCKED) != "1":
            raise ConfigError(
                f"{storage.url} cannot be locked: its store has no conditional writes (If-None-Match, If-Match), or none that this "
                "program knows, so that two runs could spoil each other's work unnoticed. Use a store that has them (Amazon S3, MinIO); "
                f"if only one run at a time will ever use this one, set {UNLOCKED}=1."
            )
        print(f"note: {storage.url} is not locked ({UNLOCKED}=1); start one run at a time", file=sys.stderr)
        yield
    else:
        from winnow.store_lock import StoreLock

        lock = StoreLock(store=storage.store, path=storage.full(LOCK))
        lock.take(wait_seconds)
        try:
            with fence(storage.url, lock.check), _holding(storage, lock.token):
                storage.clear_abandoned(ABANDONED_SECONDS)
                yield
        finally:
            lock.release()


@contextlib.contextmanager
def _locked_disk(storage: Storage, wait_seconds: float) -> Iterator[str]:
    """Its token, which stands in the file."""
    # The file stays for ever: removing it would let two processes lock two files of one name.
    with open(storage.full(LOCK), "a+") as stream:
        deadline = time.monotonic() + wait_seconds
        while not _flock(stream):
            if time.monotonic() >= deadline:
                stream.seek(0)
                raise WorkspaceBusy(
                    f"workspace {storage.url} is in use by another run ({holder_text(stream.read())}). "
                    "Wait for it to end (--wait SECONDS), stop it, or use another workspace."
                )
            time.sleep(min(1.0, wait_seconds / 20))
        stream.seek(0)
        stream.truncate()
        token = uuid.uuid4().hex
        stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv), "token": token}))
        stream.flush()
        yield token


def _flock(stream: TextIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def existing_workspace(url: str) -> Storage:
    """The workspace of an earlier run, to read.

    Raises:
        ConfigError: nothing ran there.
    """
    storage = Storage(url if "://" in url else os.path.abspath(url))
    if not storage.exists(MANIFEST_INDEX):
        raise ConfigError(
            f"{url} is no workspace: there is no {MANIFEST_INDEX} in it. Name the folder that a run wrote (workspace: in its config)."
        )
    return storage
