"""Files of others, fetched over HTTP once and kept: they appear whole and with the right digest, or not at all.

Where the right digest is known it is written down here, beside the url. Where it is not, the digest of the first download is
written beside the file and holds from then on: a file that changed later, here or there, is refused.
"""

import hashlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from winnow.digests import sha256_of
from winnow.errors import CheckpointError, MissingWeights

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60
"""Of silence."""
RECORD = ".sha256"
"""Ending of the file that holds the digest of a first download, in the form that `sha256sum -c` reads."""

Seen = Callable[[int, int | None], None]
"""Called with the bytes that came so far, and how many there will be, if the server said so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file that someone else serves."""

    name: str
    url: str
    sha256: str | None = None
    """None: not known to us; the digest of the first download is recorded instead."""


def cache_folder(kind: str) -> Path:
    """Where fetched files of a kind are kept: `$WINNOW_CACHE`, or `winnow` in the user's cache folder."""
    root = os.environ.get("WINNOW_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "winnow")
    return Path(root) / kind


def fetched(file: RemoteFile, folder: Path, *, seen: Seen | None = None) -> Path:
    """The file in `folder`, fetched if it is not there yet.

    Raises:
        MissingWeights: it is not here and cannot be fetched; says what to fetch, from where, and where to put it.
        CheckpointError: what is in the folder is not what was fetched first, or not what is written here.
    """
    path = folder / file.name
    known = file.sha256 or recorded_digest(path)
    if path.is_file():
        found = file_digest(path)
        if known is None:
            record_digest(path, found)  # someone put it here by hand, as our message asks
        elif found != known:
            raise CheckpointError(f"{path} has sha256 {found}, not {known}. Remove it to fetch it again from {file.url}")
        return path
    try:
        found = download(file.url, path, sha256=known, seen=seen)
    except (OSError, HTTPException, ValueError) as problem:
        wanted = f" (sha256 {known})" if known else ""
        raise MissingWeights(
            f"{file.name} is not in {folder} and cannot be fetched: {reason(problem)}. On a machine with a network, fetch "
            f"{file.url}{wanted} and bring it to {path}"
        ) from problem
    if file.sha256 is None and known is None:
        record_digest(path, found)
        logger.info("%s: no digest of it was known; from now on it is %s", path, found)
    return path


def download(url: str, path: Path, *, sha256: str | None = None, seen: Seen | None = None) -> str:
    """Fetches a url to a path; the file appears there whole, or not at all. Returns its sha256.

    Raises:
        OSError, HTTPException: no network, no such file, a broken answer.
        ValueError: the answer is shorter than announced, or has another digest than `sha256`, or the url is not one of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is no http(s) url")
    path.parent.mkdir(parents=True, exist_ok=True)
    # With our process id: two runs may fetch the same file at the same time; each finishes its own, the last one stays.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(temporary, "wb") as out:
            announced = response.headers.get("Content-Length")
            total = int(announced) if announced is not None and announced.isdigit() else None
            hasher, count = hashlib.sha256(), 0
            while chunk := response.read(CHUNK_BYTES):
                out.write(chunk)
                hasher.update(chunk)
                count += len(chunk)
                if seen is not None:
                    seen(count, total)
            out.flush()
            os.fsync(out.fileno())
        if total is not None and count != total:
            raise ValueError(f"{url} broke off after {count:,} of {total:,} bytes")
        if sha256 is not None and hasher.hexdigest() != sha256:
            raise ValueError(f"{url} answered with {count:,} bytes of sha256 {hasher.hexdigest()}, expected {sha256}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return hasher.hexdigest()


def reason(problem: Exception) -> str:
    """A failed download in a few words."""
    if isinstance(problem, urllib.error.HTTPError):
        return f"the server answered {problem.code} {problem.reason}"
    if isinstance(problem, urllib.error.URLError):
        return f"no connection ({problem.reason})"
    return str(problem) or type(problem).__name__


def file_digest(path: Path) -> str:
    """sha256 of a file, as hex."""
    with open(path, "rb") as stream:
        return sha256_of(stream)


def record_digest(path: Path, sha256: str) -> None:
    """Writes down the digest of a first download, beside the file."""
    beside = path.with_name(path.name + RECORD)
    temporary = beside.with_name(f".{beside.name}.{os.getpid()}")
    temporary.write_text(f"{sha256}  {path.name}\n")
    os.replace(temporary, beside)


def recorded_digest(path: Path) -> str | None:
    """The digest of the first download of a file, if there was one."""
    beside = path.with_name(path.name + RECORD)
    return beside.read_text().split()[0] if beside.is_file() else None
