"""Changes outputs of a stage that is done, with its receipt: the stage need not run again for a sample that was taken out.

An amended receipt says what it would say if the stage had run without the sample: new digests of inputs and outputs, new counts, the
fingerprint that follows. So nothing downstream of it is stale, and nothing is recomputed.

A kill must not cost a receipt, or the next run would fetch a partition again: before a receipt is removed, it is put aside in
`forgotten/amending/`, and whoever goes on takes it from there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from winnow.digests import digest
from winnow.errors import VerifyError
from winnow.forgotten import FOLDER
from winnow.receipts import Done, Receipt, Work, entry_of, forget, list_done, read_receipt, write_receipt
from winnow.storage import Storage

ASIDE = f"{FOLDER}/amending"
ALL = "*"
"""In place of a partition: the digest over all outputs of a stage."""
KEEPS_FINGERPRINT = ("manifest",)
"""Stages whose fingerprint does not follow from their receipt's inputs and arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edits:
    """How the files of one partition of a stage are to be, and what its receipt says of that."""

    files: Mapping[str, bytes | Path | None] = field(default_factory=dict)
    """Path -> new content, or a finished local file of it, or None: to be removed. Only what differs from what is there."""
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Amender:
    """Amends receipts of a workspace, one after the other, inputs before what was made from them."""

    def __init__(self, storage: Storage, stages: list[str], before: Mapping[str, Mapping[str, str]]) -> None:
        """
        Args:
            stages: that have receipts.
            before: stage -> partition, or ALL -> output digest when the forgetting began.
        """
        self.storage = storage
        self.done: dict[str, dict[str, Done]] = {stage: {done.partition: done for done in list_done(storage, stage)} for stage in stages}
        self._was = {mark: (stage, partition) for stage, marks in before.items() for partition, mark in marks.items()}
        self._aside = {name for name in storage.names(ASIDE) if name.endswith(".json")}

    def now(self, mark: str) -> str:
        """What an output digest of when the forgetting began is by now; other values as they are."""
        stage, partition = self._was.get(mark, ("", ""))
        done = self.done.get(stage, {})
        if partition == ALL:
            return self.total(stage)
        return done[partition].output if partition in done else mark

    def total(self, stage: str) -> str:
        """One digest over a stage's outputs, as stages that read all of them have it among their inputs."""
        return digest({partition: done.output for partition, done in sorted(self.done.get(stage, {}).items())})

    def partitions(self, stage: str) -> set[str]:
        """Those that the stage has done, or had done before a call was killed."""
        return {*self.done.get(stage, {}), *(name.split(".")[1] for name in self._aside if name.split(".")[0] == stage)}

    def receipt(self, stage: str, partition: str) -> Receipt | None:
        """The receipt as it stood, from where it was put aside if a call was killed."""
        name = _aside_name(stage, partition)
        if name in self._aside:
            try:
                return Receipt(**json.loads(self.storage.read_bytes(f"{ASIDE}/{name}")))
            except (ValueError, TypeError) as problem:
                raise VerifyError(f"{self.storage.url}/{ASIDE}/{name} is not a receipt: {problem}") from problem
        done = self.done.get(stage, {}).get(partition)
        return None if done is None else read_receipt(self.storage, stage, done)

    def amend(self, stage: str, partition: str, edits: Edits) -> None:
        """Writes the edited files, and the receipt that follows. Files of a stage that is not done are edited all the same."""
        receipt = self.receipt(stage, partition)
        if receipt is None:
            self._write(edits)
            return
        inputs = {key: self.now(mark) for key, mark in receipt.inputs.items()}
        arguments = {**receipt.arguments, **edits.arguments}
        settled = _aside_name(stage, partition) not in self._aside
        if settled and not edits.files and inputs == receipt.inputs and digest(arguments) == digest(receipt.arguments):
            return
        with self.replacing(stage, partition, receipt):
            self._write(edits)
            outputs = {}
            for path, entry in receipt.outputs.items():
                if edits.files.get(path, b"") is not None and self.storage.exists(path):
                    outputs[path] = entry if settled and path not in edits.files else {**entry, **entry_of(self.storage, path)}
            work = Work(name=partition, inputs=inputs, arguments=arguments)
            new = replace(
                receipt,
                inputs=inputs,
                arguments=arguments,
                fingerprint=receipt.fingerprint if stage in KEEPS_FINGERPRINT else work.fingerprint(stage, receipt.version),
                outputs=outputs,
                counts={**receipt.counts, **edits.counts},
                facts={**receipt.facts, **edits.facts},
            )
            self._note(stage, write_receipt(self.storage, new))

    def redo(self, stage: str, partition: str, receipt: Receipt, do: Callable[[Done | None], Receipt]) -> None:
        """Runs a step again, as `perform` does; its old receipt is safe meanwhile.

        Args:
            do: gets the receipt that stands, removes it, works, and writes the new one.
        """
        with self.replacing(stage, partition, receipt, remove=False):
            self._note(stage, do(self.done.get(stage, {}).get(partition)).done)

    def drop(self, stage: str, partition: str, edits: Edits) -> None:
        """Removes files and the receipt for good: nothing is left that it could speak of."""
        receipt = self.receipt(stage, partition)
        if receipt is None:
            self._write(edits)
            return
        with self.replacing(stage, partition, receipt):
            self._write(edits)
        self.done[stage].pop(partition, None)

    def replacing(self, stage: str, partition: str, receipt: Receipt, *, remove: bool = True) -> "_Replacing":
        return _Replacing(self, stage, partition, receipt, remove)

    def _note(self, stage: str, done: Done) -> None:
        self.done.setdefault(stage, {})[done.partition] = done

    def _write(self, edits: Edits) -> None:
        for path, content in edits.files.items():
            if content is None:
                self.storage.remove(path)
            elif isinstance(content, bytes):
                self.storage.write_bytes(path, content)
            else:
                self.storage.put(content, path)


class _Replacing:
    """While it is open, a receipt is aside; it is let go of when the new one stands."""

    def __init__(self, amender: Amender, stage: str, partition: str, receipt: Receipt, remove: bool) -> None:
        self._amender, self._stage, self._partition, self._receipt, self._remove = amender, stage, partition, receipt, remove
        self._path = f"{ASIDE}/{_aside_name(stage, partition)}"

    def __enter__(self) -> None:
        storage = self._amender.storage
        if not storage.exists(self._path):
            text = {name: getattr(self._receipt, name) for name in Receipt.__dataclass_fields__}
            storage.write_text(self._path, json.dumps(text, sort_keys=True))
        done = self._amender.done.get(self._stage, {}).get(self._partition)
        if self._remove and done is not None:
            forget(storage, self._stage, [done])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._amender.storage.remove(self._path)
            self._amender._aside.discard(_aside_name(self._stage, self._partition))


def _aside_name(stage: str, partition: str) -> str:
    return f"{stage}.{partition}.json"
