"""Digests that decide whether two things are the same: of bytes, of files and of settings."""

import dataclasses
import hashlib
import json
from typing import Any, BinaryIO

SHORT = 16
"""Hex digits of a digest in a file name: 64 bits, enough for partitions of one workspace."""


def canonical_json(value: Any) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, dataclasses as dicts, tuples as lists."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        raise TypeError(f"{type(item).__name__} has no canonical JSON form")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=plain).encode()


def digest(value: Any) -> str:
    """sha256 of a JSON-able value or dataclass, as hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_of(stream: BinaryIO) -> str:
    """sha256 of everything left in a stream, as hex, in constant memory."""
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed wants readinto(); every binary stream has it
