"""The lock of a workspace on an object store: one object, changed only on the condition that nobody else changed it.

    taken     by a write on the condition that it is absent, or that it still is what was seen to be free
    kept      by a heartbeat: a write every BEAT_SECONDS on the condition that it is what this holder wrote last
    taken over  when it has not changed for STALE_SECONDS by the waiter's own clock; clocks of two machines are never compared
    released  by writing that it is free; the object itself stays

A holder that was stopped or cut off and wakes up late may still have a write under way: such a lock makes two writers unlikely, it
cannot rule them out. The holder looks at the lock before every write (winnow/storage.py, `fence`) and gives up well before another may
take over; so do its workers (winnow/nodes.py). docs/storage.md says what is left.
"""

import json
import logging
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from winnow.errors import StorageError, WorkspaceBusy, WorkspaceLost
from winnow.object_store import ObjectStore
from winnow.processes import Process, holder_text

logger = logging.getLogger(__name__)

BEAT_SECONDS = 30.0
STALE_SECONDS = 120.0
"""Without a heartbeat for this long, the holder counts as gone."""
GIVE_UP_SHARE = 2 / 3
"""Of STALE_SECONDS: a holder whose heartbeats do not arrive for this long stops, before anyone may take over."""


@dataclass(kw_only=True)
class StoreLock:
    """The lock at `path` of a store that honours conditions."""

    store: ObjectStore
    path: str
    beat_seconds: float = field(default_factory=lambda: BEAT_SECONDS)
    stale_seconds: float = field(default_factory=lambda: STALE_SECONDS)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this holder: stands in the lock as long as it is its."""
    _etag: str | None = None
    _beats: int = 0
    _kept_at: float = 0.0
    """When the last heartbeat that arrived was sent; monotonic."""
    _lost: str | None = None
    _ending: threading.Event = field(default_factory=threading.Event)
    _beating: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def take(self, wait_seconds: float = 0.0) -> None:
        """Takes the lock, waiting for a living holder this long, and for a silent one until it counts as gone.

        Raises:
            WorkspaceBusy: another run holds it and lives; says which.
            StorageError: the store does not answer.
        """
        began = time.monotonic()
        seen, since, told = None, began, False
        while True:
            etag, content = self._look()
            alive = content is not None and (_holder(content).runs_here() or seen not in (None, etag))
            if etag != seen:
                seen, since = etag, time.monotonic()
            gone = content is None or _holder(content).has_ended() or time.monotonic() - since > self.stale_seconds
            if gone and self._try(etag):
                break
            if content is None or gone:
                continue  # somebody else was quicker
            if alive and time.monotonic() - began >= wait_seconds:
                raise WorkspaceBusy(
                    f"workspace {self.store.url} is in use by another run ({_told(content)}). Wait for it to end (--wait SECONDS), "
                    "stop it, or use another workspace."
                )
            if not told:
                told = True
                print(f"{self.store.url} is held by {_told(content)}; waiting for a sign of life or its end", file=sys.stderr)
            time.sleep(min(self.beat_seconds / 5, 2.0))
        if content is not None:
            logger.warning("the run that held %s (%s) is gone: took it over", self.store.url, _told(content))
        self._thread = threading.Thread(target=self._keep, name="workspace-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises WorkspaceLost if the lock is no longer this holder's."""
        if self._lost is None and time.monotonic() - self._kept_at > self.stale_seconds * GIVE_UP_SHARE:
            self._beat()  # this process slept, or its heartbeats do not arrive: is the lock still ours?
        if self._lost is not None:
            raise WorkspaceLost(f"{self._lost} Nothing is written any more; the same command goes on from here.")

    def release(self) -> None:
        """Ends the heartbeats and leaves the lock free, if it is still this holder's."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        if self._lost is not None:
            return
        with self._beating:
            try:
                self.store.write_if(self.path, b"{}\n", etag=self._etag)
            except StorageError as problem:
                logger.warning("the lock could not be released; others may take it after %.0f s: %s", self.stale_seconds, problem)

    def _keep(self) -> None:
        while not self._ending.wait(self.beat_seconds) and self._lost is None:
            self._beat()

    def _beat(self) -> None:
        with self._beating:
            if self._lost is not None:
                return
            sent = time.monotonic()
            try:
                if not self._try(self._etag):
                    self._lost = f"another run has taken over the workspace {self.store.url}."
            except StorageError as problem:
                if sent - self._kept_at > self.stale_seconds * GIVE_UP_SHARE:
                    self._lost = f"the lock of {self.store.url} could not be kept: {problem}"
                else:
                    logger.warning("a heartbeat did not arrive: %s", problem)

    def _try(self, etag: str | None) -> bool:
        """Writes this holder's name on the condition that the object is still that one (absent, without an etag)."""
        sent = time.monotonic()
        self._beats += 1
        found = self.store.write_if(self.path, self._content(), etag=etag)
        if found is not None:
            self._etag, self._kept_at = found, sent
        return found is not None

    def _content(self) -> bytes:
        """Never twice the same: a store may make the etag of the content alone."""
        holder = asdict(Process.this())
        return json.dumps({**holder, "token": self.token, "beat": self._beats, "command": " ".join(sys.argv)}).encode()

    def _look(self) -> tuple[str | None, dict[str, Any] | None]:
        """Etag and content of the lock as it is; no content if it is free, no etag either if it is absent."""
        found = self.store.find(self.path)
        if found is None:
            return None, None
        try:
            content = json.loads(self.store.read(self.path))
        except FileNotFoundError:
            return None, None
        except ValueError:
            content = {"command": "unknown"}  # what is no lock of ours is waited for, too
        return found.etag, content if content else None


def _holder(content: dict[str, Any]) -> Process:
    return Process(
        host=str(content.get("host")),
        pid=int(content.get("pid", 0)),
        machine=content.get("machine", ""),
        started=content.get("started", ""),
    )


def _told(content: dict[str, Any]) -> str:
    return holder_text(json.dumps(content))
