"""Receipts: what makes two pieces of work the same, and what a receipt's name tells."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from winnow.errors import VerifyError
from winnow.receipts import Done, Receipt, Work, forget, list_done, parse_name, read_receipt, read_receipts, write_receipt
from winnow.storage import Storage


@dataclass(frozen=True)
class Settings:
    size: int = 1
    names: tuple[str, ...] = ("a",)


WORK: dict[str, Any] = {"name": "00000-aa", "inputs": {"raw": "1"}, "arguments": {"config": Settings()}}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def receipt(partition: str = "00000-aa", fingerprint: str = "f" * 16, sha256: str = "0" * 64, **changes: Any) -> Receipt:
    settings: dict[str, Any] = {
        "stage": "embed",
        "partition": partition,
        "fingerprint": fingerprint,
        "version": 1,
        "inputs": {"raw": "1"},
        "arguments": {"config": Settings()},
        "outputs": {"embeddings/a.parquet": {"sha256": sha256, "bytes": 3}},
        "counts": {"embedded": 5},
        "facts": {"device": "cpu"},
        "seconds": 1.5,
    }
    return Receipt(**settings | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "00001-aa"},
        {"inputs": {"raw": "2"}},
        {"inputs": {"raw": "1", "more": "1"}},
        {"arguments": {"config": Settings(size=2)}},
        {"arguments": {"config": Settings(), "more": None}},
    ],
)
def test_whatever_goes_in_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert Work(**WORK | change).fingerprint("embed", 1) != Work(**WORK).fingerprint("embed", 1)


def test_stage_and_version_change_the_fingerprint() -> None:
    work = Work(**WORK)
    assert len({work.fingerprint(stage, version) for stage in ("embed", "score") for version in (1, 2)}) == 4


def test_what_cannot_change_the_result_is_left_out() -> None:
    plain = Work(**WORK)
    assert Work(**WORK, unhashed={"path": "/elsewhere"}).fingerprint("embed", 1) == plain.fingerprint("embed", 1)
    as_json = Work(**WORK | {"arguments": {"config": {"names": ["a"], "size": 1}}})
    assert as_json.fingerprint("embed", 1) == plain.fingerprint("embed", 1)


def test_a_fingerprint_is_the_same_in_every_release() -> None:
    # If this changes, every workspace there is will be done all over again.
    assert Work(**WORK).fingerprint("embed", 1) == "ace60ba8d600de98"


@pytest.mark.parametrize("name", ["", "a.b", "a/b"])
def test_a_name_that_cannot_stand_in_a_receipts_name_is_our_mistake(name: str) -> None:
    with pytest.raises(AssertionError, match="cannot be part of a receipt's name"):
        Work(name=name, inputs={})


def test_a_receipt_comes_back_and_its_name_tells_what_came_out(storage: Storage) -> None:
    done = write_receipt(storage, receipt())
    assert storage.names("receipts/embed") == [f"00000-aa.{'f' * 16}.{done.output}.json"]
    assert list_done(storage, "embed") == [done]
    found = read_receipt(storage, "embed", done)
    assert (found.counts, found.arguments, found.done) == ({"embedded": 5}, {"config": {"size": 1, "names": ["a"]}}, done)


def test_the_output_digest_is_that_of_the_files_and_nothing_else() -> None:
    one = receipt().done.output
    assert receipt(seconds=9.0, counts={}, facts={}, fingerprint="0" * 16).done.output == one
    assert receipt(sha256="1" * 64).done.output != one
    assert receipt(outputs={"b": {"sha256": "0" * 64, "bytes": 3}}).done.output != one


def test_other_files_in_the_folder_are_no_receipts(storage: Storage) -> None:
    for name in ("README.md", "a.b.json", "a.b.c.json.tmp", "x"):
        storage.write_text(f"receipts/embed/{name}", "")
        assert parse_name(name) is None
    assert list_done(storage, "embed") == []


def test_receipts_are_read_by_partition(storage: Storage) -> None:
    for partition in ("00001-b", "00000-a", "00002-c"):
        write_receipt(storage, receipt(partition))
    assert [found.partition for found in read_receipts(storage, "embed")] == ["00000-a", "00001-b", "00002-c"]
    assert [found.partition for found in read_receipts(storage, "embed", ["00002-c", "absent"])] == ["00002-c"]


def test_a_forgotten_receipt_is_gone_and_others_stay(storage: Storage) -> None:
    first, second = write_receipt(storage, receipt("a")), write_receipt(storage, receipt("b"))
    forget(storage, "embed", [first, Done(partition="x", fingerprint="y", output="z")])
    assert list_done(storage, "embed") == [second]


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"stage": "embed"})])
def test_a_damaged_receipt_is_named(storage: Storage, content: str) -> None:
    done = write_receipt(storage, receipt())
    storage.write_text(f"receipts/embed/{done.file_name}", content)
    with pytest.raises(VerifyError, match=r"receipts/embed/00000-aa\..*\.json is not a receipt: .* Remove it and run again"):
        read_receipts(storage, "embed")
