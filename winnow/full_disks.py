"""A full disk, told as such: what was written, where, and how to go on."""

import contextlib
import errno
from collections.abc import Iterator

from winnow.errors import DiskFull

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, a used up quota and a limit on file sizes (RLIMIT_FSIZE) answer."""


def disk_full(problem: OSError, what: str, folder: str | None = None) -> DiskFull:
    """The error for a full disk, naming what was written and where."""
    place = problem.filename or folder
    where = f" in {place}" if place else ""
    cure = "Make room, or raise the quota; the same command goes on from here."
    return DiskFull(f"no space left for {what}{where} ({problem.strerror or problem}). {cure}")


@contextlib.contextmanager
def telling_full_disks(what: str, folder: str | None = None) -> Iterator[None]:
    """Turns the operating system's word for a full disk into DiskFull; leaves other errors alone."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        raise disk_full(problem, what, folder) from problem
