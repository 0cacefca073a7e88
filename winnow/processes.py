"""Which process it was that holds a lock or runs a stage, and whether it still runs."""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One process, as others see it: whether it still runs is known on its own machine alone."""

    host: str
    pid: int
    machine: str
    """Of the running kernel and the namespace that the pid counts in; empty where there is no /proc."""
    started: str
    """In ticks since boot: pids come round."""

    @classmethod
    def this(cls) -> "Process":
        return cls(host=socket.gethostname(), pid=os.getpid(), machine=_machine(), started=_started(os.getpid()))

    def runs_here(self) -> bool:
        """Whether it certainly still runs, on this machine."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) == self.started

    def has_ended(self) -> bool:
        """Whether it certainly ran here and is gone; False whenever that cannot be known."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


def holder_text(lock: str) -> str:
    """Who holds a lock, for people, from what the lock says: `process 12 on host: winnow run photos.yaml`."""
    try:
        content = json.loads(lock)
        return f"process {content['pid']} on {content['host']}: {content['command']}"
    except (ValueError, KeyError, TypeError):
        return "it does not say which"  # just starting, or no lock of ours


def _machine() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Empty if there is no such process; a zombie counts as none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else rest[18]
