"""Tars of samples: the same bytes for the same members, and nothing read past damage.

Written are plain USTAR files with owner, mode and time fixed, byte for byte what Python's tarfile makes of them. Read are
such files only. tarfile itself takes a damaged header in the middle, or a file cut between two members, for the end of the
archive and says nothing; here both are a ShardError.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from winnow.errors import ShardError

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)


class TarWriter:
    """Writes members one after the other to an open file; `close` writes the end mark and leaves the file open."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes = 0

    def add(self, name: str, data: bytes) -> None:
        """Appends a file. The name must fit USTAR: at most 100 bytes without a folder."""
        member = tarfile.TarInfo(name)  # mtime, uid and gid are 0, owner names empty, mode 644
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))

    def close(self) -> None:
        self._write(2 * ZEROS)
        self._write(bytes(-self.bytes % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self.bytes += len(data)


def read_members(path: str | Path, *, only: frozenset[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Names and contents, in order; memory holds one member.

    Args:
        only: members of these samples alone (a sample is what stands before the first dot); others are not even read.

    Raises:
        ShardError: the file is damaged, cut or not plain USTAR; file and place are named.
    """
    with open(path, "rb") as stream:
        last = "the beginning"
        while True:
            header = stream.read(BLOCK)
            if header == ZEROS and stream.read(BLOCK) == ZEROS:
                return
            name, size = _parse(header, path, last)
            last = name
            if only is not None and name.partition(".")[0] not in only:
                stream.seek(size + -size % BLOCK, 1)
                continue
            data = stream.read(size)
            if len(data) < size:
                raise _damaged(path, f"it ends in the middle of {name}")
            stream.seek(-size % BLOCK, 1)
            yield name, data


def _parse(header: bytes, path: str | Path, last: str) -> tuple[str, int]:
    if len(header) < BLOCK:
        raise _damaged(path, f"it ends after {last}, without an end mark")
    try:
        claimed = int(header[148:156].rstrip(b" \0"), 8)
        size = int(header[124:136].rstrip(b" \0"), 8)
        name = header[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        raise _damaged(path, f"the header after {last} is not one of a tar") from None
    # The checksum counts its own eight bytes as spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 != claimed:
        raise _damaged(path, f"the header after {last} has a wrong checksum")
    if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar" or header[345:346] != b"\0":
        raise _damaged(path, f"{name} is not a plain USTAR file (type {header[156:157]!r})")
    return name, size


def _damaged(path: str | Path, what: str) -> ShardError:
    return ShardError(f"{path} is damaged: {what}. Remove it and its receipt, and run again.")


def find_members(stream: BinaryIO, path: str | Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of every member, in order, without reading their contents.

    Args:
        stream: the tar, at its beginning; it must be able to seek.
        path: of the tar, for messages.

    Raises:
        ShardError: the file is damaged, cut or not plain USTAR; file and place are named.
    """
    last = "the beginning"
    while True:
        header = stream.read(BLOCK)
        if header == ZEROS and stream.read(BLOCK) == ZEROS:
            return
        last, size = _parse(header, path, last)
        offset = stream.tell()
        yield last, offset, size
        stream.seek(offset + size + -size % BLOCK)
