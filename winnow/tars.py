"""Tars of samples: the same bytes for the same members, and nothing read past damage.

Written are plain USTAR files with owner, mode and time fixed, byte for byte what Python's tarfile makes of them. Read are
such files only. tarfile itself takes a damaged header in the middle, or a file cut between two members, for the end of the
archive and says nothing; here both are a ShardError.

A sample is a run of members with the same name before the first dot. Its blocks, headers included, can be copied from tar to tar as
they stand: nothing is decoded, and nothing composed anew.
"""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from winnow.errors import ShardError

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE
"""A tar's length is a multiple of it, in bytes."""
ZEROS = bytes(BLOCK)
_EMPTY = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)  # mtime, uid and gid are 0, owner names empty, mode 644
_SIZE, _SUM = slice(124, 136), slice(148, 156)
_EMPTY_SUM = sum(_EMPTY) - sum(_EMPTY[_SIZE]) - sum(_EMPTY[_SUM]) + 8 * 32


class Sink(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes, /) -> int: ...


class HashingSink:
    """Passes bytes on to a file and takes their sha256 on the way."""

    def __init__(self, stream: Sink) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self._hash.update(data)
        return self._stream.write(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class TarWriter:
    """Writes members one after the other to an open file; `close` writes the end mark and leaves the file open."""

    def __init__(self, stream: Sink) -> None:
        self._stream = stream
        self.bytes = 0

    def add(self, name: str, data: bytes) -> None:
        """Appends a file. The name must fit USTAR: at most 100 bytes without a folder."""
        self._write(header_of(name, len(data)))
        self._write(data)
        if padding := -len(data) % BLOCK:
            self._write(bytes(padding))

    def add_blocks(self, blocks: bytes) -> None:
        """Appends members as they stand in another tar: headers, contents and padding."""
        assert len(blocks) % BLOCK == 0, "members end at a block"
        self._write(blocks)

    def close(self) -> None:
        self._write(2 * ZEROS)
        self._write(bytes(-self.bytes % RECORD))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self.bytes += len(data)


def header_of(name: str, size: int) -> bytes:
    """The header that tarfile makes of a name and a size in bytes, in a thirtieth of the time."""
    encoded = name.encode("ascii")
    assert 0 < len(encoded) <= 100 and 0 <= size < 8**11, f"{name!r} of {size} bytes does not fit USTAR"
    digits = b"%011o\0" % size
    checksum = _EMPTY_SUM + sum(encoded) + sum(digits)
    return b"".join((encoded.ljust(100, b"\0"), _EMPTY[100:124], digits, _EMPTY[136:148], b"%06o\0 " % checksum, _EMPTY[156:]))


@dataclass(frozen=True, slots=True)
class SamplePlace:
    """Where a sample's members lie in a tar."""

    uid: str
    """What their names have before the first dot."""
    offset: int
    """Of the first member's header, in bytes."""
    size: int
    """Of all members with headers and padding, in bytes."""
    members: dict[str, tuple[int, int]]
    """Extension -> offset and size of the content, in bytes."""


def read_members(path: str | Path, *, only: frozenset[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Names and contents, in order; memory holds one member.

    Args:
        only: members of these samples alone (a sample is what stands before the first dot); others are not even read.

    Raises:
        ShardError: the file is damaged, cut or not plain USTAR; file and place are named.
    """
    with open(path, "rb", buffering=0) as stream:
        file = stream.fileno()
        for name, offset, size in _places(lambda count, at: os.pread(file, count, at), path):
            if only is None or name.partition(".")[0] in only:
                data = os.pread(file, size, offset)
                if len(data) < size:
                    raise _damaged(path, f"it ends in the middle of {name}")
                yield name, data


def find_samples(path: str | Path) -> Iterator[SamplePlace]:
    """Every sample's place, in order; contents are not read.

    Raises:
        ShardError: the file is damaged, cut or not plain USTAR; file and place are named.
    """
    with open(path, "rb", buffering=0) as stream:
        file, length = stream.fileno(), os.path.getsize(path)
        uid, start, end, members = "", 0, 0, dict[str, tuple[int, int]]()
        for name, offset, size in _places(lambda count, at: os.pread(file, count, at), path):
            if offset + size > length:
                raise _damaged(path, f"it ends in the middle of {name}")
            key, _, extension = name.partition(".")
            if key != uid and members:
                yield SamplePlace(uid, start, end - start, members)
                members = {}
            if not members:
                uid, start = key, offset - BLOCK
            members[extension] = (offset, size)
            end = offset + size + -size % BLOCK
        if members:
            yield SamplePlace(uid, start, end - start, members)


def find_members(stream: BinaryIO, path: str | Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of every member, in order, without reading their contents.

    Args:
        stream: the tar; it must be able to seek.
        path: of the tar, for messages.

    Raises:
        ShardError: the file is damaged, cut or not plain USTAR; file and place are named.
    """

    def read(count: int, at: int) -> bytes:
        stream.seek(at)
        return stream.read(count)

    yield from _places(read, path)


def _places(read: Callable[[int, int], bytes], path: str | Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every member.

    Args:
        read: gives so many bytes at an offset.
    """
    last, at = "the beginning", 0
    while True:
        header = read(BLOCK, at)
        if header == ZEROS and read(BLOCK, at + BLOCK) == ZEROS:
            return
        last, size = _parse(header, path, last)
        yield last, at + BLOCK, size
        at += BLOCK + size + -size % BLOCK


def _parse(header: bytes, path: str | Path, last: str) -> tuple[str, int]:
    if len(header) < BLOCK:
        raise _damaged(path, f"it ends after {last}, without an end mark")
    try:
        claimed = int(header[_SUM].rstrip(b" \0"), 8)
        size = int(header[_SIZE].rstrip(b" \0"), 8)
        name = header[:100].rstrip(b"\0").decode("ascii")
        if size < 0:
            raise ValueError("a negative size would lead back to where the reader has been")
    except ValueError:
        raise _damaged(path, f"the header after {last} is not one of a tar") from None
    # The checksum is the sum of all bytes, its own eight counted as spaces. Adler-32's lower half is 1 plus that sum, modulo 65,521:
    # as strict for all but sums that are off by just that, and fourteen times as fast as adding up in Python.
    found = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[_SUM]) + 8 * 32
    if (found - claimed) % 65_521:
        raise _damaged(path, f"the header after {last} has a wrong checksum")
    if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar" or header[345:346] != b"\0":
        raise _damaged(path, f"{name} is not a plain USTAR file (type {header[156:157]!r})")
    return name, size


def _damaged(path: str | Path, what: str) -> ShardError:
    return ShardError(f"{path} is damaged: {what}. Remove it and its receipt, and run again.")
