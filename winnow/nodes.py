"""What ties a worker to the run it works for, on whatever node of a cluster it is: who asked, with which code, in which workspace.

A node that has other code, or does not see the workspace, would do work that looks done and is wrong or nowhere. So a run
leaves a mark in its workspace and says who it is; each node is asked before the stage begins, and each worker looks again
before its first partition, since nodes may join later. Knows nothing of Ray.
"""

import contextlib
import functools
import hashlib
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from winnow.errors import ConfigError, WorkspaceLost
from winnow.processes import Process
from winnow.storage import TEMPORARY, Storage, fence
from winnow.workspace import Hold, hold_on

PACKAGES = ("filters", "models", "winnow")
"""What runs in workers. Steps are functions of these; tasks/ and flows/ run in the driver alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The process that runs the stage and holds the workspace."""

    process: Process
    code: str | None = None
    """`code_digest` of the run; None: not compared."""
    mark: str | None = None
    """A file of the workspace that is there while the stage runs; None: not looked for."""
    hold: Hold | None = None
    """On the workspace; None: nobody has locked it."""

    def ensure_at_work(self) -> None:
        """Raises WorkspaceLost if that process has ended (which is seen on its own machine alone), or has lost the workspace."""
        if self.process.has_ended():
            raise WorkspaceLost("the run that asked for this has ended; nothing was recorded")
        if self.hold is not None:
            self.hold.ensure()

    @contextlib.contextmanager
    def guarding(self, storage: Storage) -> Iterator[None]:
        """In a worker: for this while, each of its writes is preceded by `ensure_at_work`.

        Workers live on for seconds when their run is killed, and longer where the network to them is broken. What they write then
        would lie among the files of the next run, which may have other settings.
        """
        with fence(storage.url, self.ensure_at_work):
            yield

    def refusal(self, storage: Storage) -> str | None:
        """Why this node must not work for the owner; None if it may."""
        if self.code is not None and self.code != code_digest():
            return (
                f"{socket.gethostname()} has other code of Winnow than the run ({code_digest()[:12]}, the run has {self.code[:12]}). "
                "Install the same version on every node (docs/cluster.md, Upgrades)."
            )
        if self.mark is not None and not storage.exists(self.mark):
            return (
                f"{socket.gethostname()} does not see the run's files in {storage.url}: its folder of that name is another one. "
                "Put the workspace on a file system that all nodes mount at that path, or on an object store (s3://...)."
            )
        return None


@contextlib.contextmanager
def owner_of(storage: Storage, *, compare: bool, folder: str = TEMPORARY) -> Iterator[Owner]:
    """This process as the owner of a stage.

    Args:
        compare: whether workers may be elsewhere, so that they have to look at their code and, if it is on a disk, their workspace.
        folder: of the workspace, for the mark that they look for.
    """
    hold = hold_on(storage)
    if not compare:
        yield Owner(process=Process.this(), hold=hold)
        return
    mark = f"{folder}/run-{uuid.uuid4().hex}" if storage.is_local else None
    if mark is not None:
        storage.write_text(mark, "a stage runs; its workers look for this file\n")
    try:
        yield Owner(process=Process.this(), code=code_digest(), mark=mark, hold=hold)
    finally:
        if mark is not None:
            storage.remove(mark)


@functools.lru_cache(maxsize=64)
def check_node(owner: Owner, storage: Storage) -> None:
    """Once a process and owner: may it work for the owner?

    Raises:
        ConfigError: it may not, and why.
    """
    refusal = owner.refusal(storage)
    if refusal is not None:
        raise ConfigError(refusal)


@functools.cache
def code_digest() -> str:
    """sha256 over the source files of what runs in workers."""
    total = hashlib.sha256()
    for package in PACKAGES:
        root = Path(__file__).parent.parent / package
        for file in sorted(root.rglob("*.py")):
            total.update(f"{file.relative_to(root.parent).as_posix()}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
