"""Where a training's checkpoints and metrics are: a folder on a disk, or one on an object store, which needs no disk that workers share.

On a disk the loop works in the folder itself. On an object store it works in scratch, and rank 0 puts what it makes there: metrics.jsonl
and a checkpoint's tensors first, its state.json last; when one is removed, state.json goes first. A checkpoint there is complete if it has
all four: a kill at any moment leaves none that seems to be one.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.checkpoints import (
    STATE,
    clear_unfinished,
    is_url,
    list_checkpoints,
    newest_checkpoint,
    no_weights,
    remote_weights,
    remove_checkpoint,
    step_of,
)
from models.metrics_log import FILE, lines_of, read_metrics
from winnow.storage import Storage

logger = logging.getLogger(__name__)

METRICS_SECONDS = 10.0
"""A store is given metrics.jsonl with each checkpoint, and no more often than this in between: it cannot append."""
TENSORS = ("ema.safetensors", "model.safetensors", "optimizer.safetensors")


class TrainingFolder:
    """What a training loop reads and writes. Its methods are for rank 0 alone."""

    def __init__(self, path: Path, store: Storage | None = None) -> None:
        self.path = path
        """Local."""
        self._store = store
        self._put_at = time.monotonic()

    @property
    def told(self) -> str:
        """For messages."""
        return str(self.path) if self._store is None else self._store.url

    def ensure_held(self) -> None:
        """Raises WorkspaceLost if this process works for a run that is gone, or does not hold the workspace any more."""
        (self._store or Storage(str(self.path))).ensure_held()

    def begin(self) -> None:
        """Removes what killed trainings left half written or half removed."""
        self.ensure_held()
        self.path.mkdir(parents=True, exist_ok=True)
        clear_unfinished(self.path)
        if self._store is not None:
            for name, files in _checkpoint_files(self._store).items():
                if STATE not in files:
                    self._store.remove_folder(name)

    def taken(self, checkpoint: Path) -> None:
        """It is in memory: a copy of it in scratch is of no more use. For every rank."""
        if self._store is not None:
            shutil.rmtree(checkpoint)

    def logged(self) -> None:
        """A line was written to the local metrics.jsonl."""
        if self._store is not None and time.monotonic() - self._put_at > METRICS_SECONDS:
            self._put_metrics(self._store)

    def saved(self, checkpoint: Path, *, keep: int) -> None:
        """A checkpoint was written locally: brings it where it belongs, then removes all but the newest `keep`."""
        if self._store is None:
            for _, path in list_checkpoints(self.path)[:-keep]:
                remove_checkpoint(path)
            return
        self._store.remove(f"{checkpoint.name}/{STATE}")  # of one that lost a file, and which is made again now
        self._put_metrics(self._store)  # before the checkpoint: who goes on from it finds every line up to it
        for file in sorted(checkpoint.iterdir(), key=lambda file: (file.name == STATE, file.name)):
            self._store.put(file, f"{checkpoint.name}/{file.name}")
        shutil.rmtree(checkpoint)
        for name in _complete(self._store)[:-keep]:
            self._store.remove(f"{name}/{STATE}")  # first: what is left is no checkpoint any more
            self._store.remove_folder(name)

    def _put_metrics(self, store: Storage) -> None:
        store.write_bytes(FILE, (self.path / FILE).read_bytes())
        self._put_at = time.monotonic()


@contextlib.contextmanager
def working_folder(out_dir: str | os.PathLike[str]) -> Iterator[TrainingFolder]:
    """The folder to train in: `out_dir`, or scratch with the newest complete checkpoint and the metrics that the store has.

    Raises:
        StorageError: the store does not answer.
    """
    if not is_url(out_dir):
        yield TrainingFolder(Path(out_dir))
        return
    store = Storage(str(out_dir))
    with store.scratch() as scratch:
        _fetch(store, scratch, (*TENSORS, STATE))
        yield TrainingFolder(scratch, store)


@contextlib.contextmanager
def small_files(out_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """A local folder to read metrics.jsonl and the newest checkpoint's state.json in: `out_dir`, or copies of these two from the store."""
    if not is_url(out_dir):
        yield Path(out_dir)
        return
    store = Storage(str(out_dir))
    with store.scratch() as scratch:
        _fetch(store, scratch, (STATE,))
        yield scratch


@contextlib.contextmanager
def local_weights(path: str | None) -> Iterator[str | None]:
    """Weights to start from, as a local path: `path` itself, or a copy of what is at a url. Raises CheckpointError if nothing is."""
    if path is None or not is_url(path):
        yield path
        return
    store, name = remote_weights(path)
    try:
        with store.local_file(name) as copy:
            yield str(copy)
    except FileNotFoundError:
        raise no_weights(path) from None


def newest_place(out_dir: str) -> str | None:
    """Path or url of the complete checkpoint of most steps; None if there is none."""
    if not is_url(out_dir):
        found = newest_checkpoint(out_dir)
        return None if found is None else str(found)
    store = Storage(out_dir)
    names = _complete(store)
    return store.place(names[-1]) if names else None


def metrics_at(out_dir: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, as far as they were written; none if there is no such file."""
    if not is_url(out_dir):
        return read_metrics(out_dir)
    try:
        return lines_of(Storage(out_dir).read_text(FILE))
    except FileNotFoundError:
        return []


def scratch_folder() -> Path:
    """A new folder on this machine, for the caller to remove."""
    return Path(tempfile.mkdtemp(prefix="winnow-train-"))


def _fetch(store: Storage, folder: Path, files: tuple[str, ...]) -> None:
    """These files of the newest complete checkpoint, and metrics.jsonl."""
    for name in _complete(store)[-1:]:
        (folder / name).mkdir()
        for file in files:
            store.fetch(f"{name}/{file}", folder / name / file)
    with contextlib.suppress(FileNotFoundError):
        store.fetch(FILE, folder / FILE)


def _complete(store: Storage) -> list[str]:
    """Complete checkpoints, oldest first."""
    names = []
    for name, files in _checkpoint_files(store).items():
        missing = sorted({*TENSORS, STATE} - files)
        if not missing:
            names.append(name)
        elif STATE not in missing:
            logger.warning("%s has lost %s: it is passed over", store.place(name), ", ".join(missing))
    return sorted(names, key=lambda name: step_of(name) or 0)


def _checkpoint_files(store: Storage) -> dict[str, set[str]]:
    """Name of a checkpoint, complete or not -> its files."""
    found: dict[str, set[str]] = {}
    for path in store.walk():
        name, _, file = path.partition("/")
        if file and step_of(name) is not None:
            found.setdefault(name, set()).add(file)
    return found
