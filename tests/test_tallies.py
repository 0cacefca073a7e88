"""Sums of a stage's counts from one file: never the authority, made again whenever it is missing, damaged or behind."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from winnow import receipts
from winnow.errors import VerifyError
from winnow.findings import Ledger
from winnow.partitions import Outcome, StageRun, run_step
from winnow.receipts import Work, list_done
from winnow.storage import Storage
from winnow.tallies import path_of, read_tally
from winnow.verify_receipts import check_receipts


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def step(storage: Storage, name: str, *, size: int = 1) -> Outcome:
    return Outcome.of(storage.write_text(f"out/{name}", "x" * size), counts={"rows": int(name) * size, name: 1})


def run(storage: Storage, *names: str, **arguments: Any) -> StageRun:
    return run_step(step, [Work(name=name, inputs={}, arguments=arguments) for name in names], storage, stage="s", version=1)


def read_of(storage: Storage, monkeypatch: pytest.MonkeyPatch, *names: str, **arguments: Any) -> tuple[StageRun, list[str]]:
    """What a run gives, and the receipts it had to read for it."""
    found: list[str] = []
    before = receipts.Storage.read_many

    def noting(self: Storage, paths: list[str]) -> list[bytes]:
        found.extend(paths)
        return before(self, paths)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read_many", noting)
        return run(storage, *names, **arguments), found


def test_no_receipt_is_read_when_all_is_up_to_date(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read = read_of(storage, monkeypatch, "1", "2", "3")
    assert (first.counts, read) == ({"rows": 6, "1": 1, "2": 1, "3": 1}, [])
    again, read = read_of(storage, monkeypatch, "1", "2", "3")
    assert (again.counts, again.ran, read) == (first.counts, 0, [])


def test_only_receipts_that_the_file_lacks_are_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    run(storage, "1", "2")
    content = read_tally(storage, "s")
    lacking = next(name for name in content if name.startswith("2."))
    del content[lacking]
    storage.write_bytes(path_of("s"), gzip.compress(json.dumps(content).encode()))
    again, read = read_of(storage, monkeypatch, "1", "2")
    assert (again.counts["rows"], read) == (3, [f"receipts/s/{lacking}"])
    assert set(read_tally(storage, "s")) == {done.file_name for done in list_done(storage, "s")}


@pytest.mark.parametrize(
    "content",
    [None, b"", b"damaged", gzip.compress(b"{"), gzip.compress(b"[]"), gzip.compress(b"{}")[:-3]],
    ids=["none", "empty", "no gzip", "no JSON", "no object", "cut"],
)
def test_a_missing_or_damaged_file_is_made_again(storage: Storage, content: bytes | None) -> None:
    first = run(storage, "1", "2")
    whole = storage.read_bytes(path_of("s"))
    storage.remove(path_of("s"))
    if content is not None:
        storage.write_bytes(path_of("s"), content)
    assert run(storage, "1", "2").counts == first.counts
    assert storage.read_bytes(path_of("s")) == whole


def test_counts_of_what_was_done_again_or_taken_away_are_not_kept(storage: Storage) -> None:
    run(storage, "1", "2")
    assert run(storage, "1", "2", size=3).counts["rows"] == 9
    assert run(storage, "2", size=3).counts == {"rows": 6, "2": 1}
    assert len(read_tally(storage, "s")) == 1


def test_a_damaged_receipt_that_has_to_be_read_is_named(storage: Storage) -> None:
    run(storage, "1")
    storage.remove(path_of("s"))
    (done,) = list_done(storage, "s")
    storage.write_text(f"receipts/s/{done.file_name}", "{")
    with pytest.raises(VerifyError, match=rf"receipts/s/{done.file_name} is not a receipt"):
        run(storage, "1")


def test_verify_names_a_file_that_says_other_than_the_receipts(storage: Storage) -> None:
    run(storage, "1", "2")
    unchanged = Ledger()
    check_receipts(storage, unchanged)
    content = read_tally(storage, "s")
    content[next(name for name in content if name.startswith("2."))]["rows"] = 9
    storage.write_bytes(path_of("s"), gzip.compress(json.dumps(content).encode()))
    changed = Ledger()
    check_receipts(storage, changed)
    assert unchanged.settled() == []
    assert [(found.file, found.what[:24]) for found in changed.settled()] == [("tallies/s.json.gz", "has other counts for 2 t")]
