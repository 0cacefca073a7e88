"""What was done to which partition, from what, with what result.

A receipt is one small JSON file, written last:

    receipts/<stage>/<partition>.<fingerprint>.<output digest>.json

The fingerprint says what went in (digests of inputs, config, version of the step), the output digest what came out. Both
stand in the *name*, so that one listing tells what is up to date and what the next stage's inputs are: 25,000 partitions
take 0.01 s on a disk and 3.6 s on S3, where reading them would take a minute. There is no ledger that could disagree.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from winnow.digests import SHORT, canonical_json, digest
from winnow.errors import VerifyError
from winnow.storage import Storage

FOLDER = "receipts"
READ_TOGETHER = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One partition of a stage, and all that decides whether its output is up to date."""

    name: str
    """The partition. No dots: they separate the parts of a receipt's name."""
    inputs: Mapping[str, str]
    """What is read: name -> digest."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the step: its config, and whatever else changes the result. JSON-able or a dataclass."""
    unhashed: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments that cannot change the result (a path that `inputs` has the digest of, a device)."""

    def __post_init__(self) -> None:
        assert self.name and not set("./") & set(self.name), f"{self.name!r} cannot be part of a receipt's name"

    def fingerprint(self, stage: str, version: int) -> str:
        parts = {"stage": stage, "version": version, "name": self.name, "inputs": dict(self.inputs), "arguments": dict(self.arguments)}
        return digest(parts)[:SHORT]


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a receipt's name tells."""

    partition: str
    fingerprint: str
    output: str
    """Digest over all outputs of the partition: an input of the next stage."""

    @property
    def file_name(self) -> str:
        return f"{self.partition}.{self.fingerprint}.{self.output}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """A receipt's content."""

    stage: str
    partition: str
    fingerprint: str
    version: int
    inputs: dict[str, str]
    arguments: dict[str, Any]
    outputs: dict[str, dict[str, Any]]
    """Relative path -> {"sha256": hex, "bytes": size}; of a tar of shards "samples", too."""
    counts: dict[str, int]
    facts: dict[str, Any]
    """What else the report wants to know: versions of libraries, device kind, precision. Never part of a digest."""
    seconds: float

    @property
    def done(self) -> Done:
        shas = {path: entry["sha256"] for path, entry in self.outputs.items()}
        return Done(partition=self.partition, fingerprint=self.fingerprint, output=digest(shas)[:SHORT])


def folder_of(stage: str) -> str:
    return f"{FOLDER}/{stage}"


def parse_name(file_name: str) -> Done | None:
    """What a file name in a receipts folder says; None if it is not a receipt's name."""
    parts = file_name.split(".")
    if len(parts) != 4 or parts[3] != "json":
        return None
    return Done(partition=parts[0], fingerprint=parts[1], output=parts[2])


def list_done(storage: Storage, stage: str) -> list[Done]:
    """Everything a stage has receipts for, sorted by partition. One listing; no receipt is read."""
    found = (parse_name(name) for name in storage.names(folder_of(stage)))
    return [done for done in found if done is not None]


def read_receipt(storage: Storage, stage: str, done: Done) -> Receipt:
    """Raises VerifyError if its content is not that of a receipt."""
    return next(read_named(storage, [f"{folder_of(stage)}/{done.file_name}"]))


def read_receipts(storage: Storage, stage: str, partitions: Iterable[str] | None = None) -> list[Receipt]:
    """All receipts of a stage (of these partitions only, if given), sorted by partition."""
    wanted = None if partitions is None else set(partitions)
    found = [done for done in list_done(storage, stage) if wanted is None or done.partition in wanted]
    return list(read_named(storage, [f"{folder_of(stage)}/{done.file_name}" for done in found]))


def read_named(storage: Storage, paths: Sequence[str]) -> Iterator[Receipt]:
    """Receipts at these paths, in their order, read some hundred at a time. Raises VerifyError if one is damaged."""
    for start in range(0, len(paths), READ_TOGETHER):
        batch = paths[start : start + READ_TOGETHER]
        for path, content in zip(batch, storage.read_many(batch), strict=True):
            try:
                receipt = Receipt(**json.loads(content))
            except (ValueError, TypeError) as problem:
                raise VerifyError(f"{storage.url}/{path} is not a receipt: {problem}. Remove it and run again.") from problem
            yield receipt


def write_receipt(storage: Storage, receipt: Receipt) -> Done:
    done = receipt.done
    text = json.dumps(json.loads(canonical_json(receipt)), sort_keys=True, indent=1)
    storage.write_text(f"{folder_of(receipt.stage)}/{done.file_name}", text + "\n")
    return done


def entry_of(storage: Storage, path: str) -> dict[str, Any]:
    """What a receipt says of an output, read from the file."""
    return {"sha256": storage.sha256(path), "bytes": storage.size(path)}


def forget(storage: Storage, stage: str, stale: Iterable[Done]) -> None:
    """Removes receipts. Done *before* their outputs are overwritten: a kill in between must not leave a receipt for other bytes."""
    for done in stale:
        storage.remove(f"{folder_of(stage)}/{done.file_name}")
