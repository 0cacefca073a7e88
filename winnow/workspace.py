"""Where everything lies in a workspace, and the lock that keeps two runs apart."""

import contextlib
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator

from winnow.errors import ConfigError, WorkspaceBusy
from winnow.storage import Storage

LOCK = ".lock"


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
        ConfigError: it cannot be written to.
    """
    storage = Storage(url if "://" in url else os.path.abspath(url))
    if not storage.is_local:
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


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Holds a local workspace for this process. The kernel frees the lock when the process ends, however it ends.

    Raises:
        WorkspaceBusy: another process holds it; says which.
    """
    if not storage.is_local:
        # A lock on an object store needs conditional puts; until then partitions' idempotence is all that protects it.
        print(f"note: {storage.url} is not on a local disk and is not locked; start one run at a time", file=sys.stderr)
        yield
        return
    # The file stays for ever: removing it would let two processes lock two files of one name.
    with open(storage.full(LOCK), "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise WorkspaceBusy(
                f"workspace {storage.url} is in use by another run ({stream.read().strip() or 'just starting'}). "
                "Wait for it to end, stop it, or use another workspace."
            ) from None
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)}))
        stream.flush()
        storage.clear_temporary()
        yield


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
