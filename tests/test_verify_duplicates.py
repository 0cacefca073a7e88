import numpy as np
import pyarrow as pa
import pytest

from filters.duplicate_stage import find_contamination, find_duplicates, settle_duplicates
from filters.duplicates import DuplicateConfig
from filters.scoring import VERSION, score_partition, score_works
from tests.duplicate_world import copy_of, planted_world, write_rows
from winnow.duplicates import contamination_file, duplicates_file, reference_file
from winnow.findings import Ledger
from winnow.partitions import run_step
from winnow.progress import Progress
from winnow.receipts import Work
from winnow.reported import write_reported
from winnow.tables import read_table, write_table
from winnow.verify_duplicates import check_duplicates
from winnow.workspace import decisions, embeddings


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    world = planted_world(tmp_path_factory.mktemp("world"))
    return settle(world, DuplicateConfig(references={"val": "unread"}))


def settle(world, config):
    works = [Work(name=name, inputs={"raw": ""}) for name in world.partitions]
    embedded = run_step(_embedded, works, world.storage, stage="embed", version=1).outputs
    rng = np.random.default_rng(1)
    write_rows(world.storage, "scratch", [(f"{number:032x}", *copy_of(number, rng), 64) for number in range(0, 120, 8)])
    table = read_table(world.storage, embeddings("scratch"))
    world.storage.remove(embeddings("scratch"))
    write_table(world.storage, reference_file("val"), table.append_column("item", table["uid"]))
    contaminated = find_contamination(world.storage, config, embedded, {"val": "1"} if config.references else {}).outputs
    find_duplicates(world.storage, config, embedded, "features")
    plain = list(score_works(world.storage, [], raw=embedded, embedded=embedded))
    copies = settle_duplicates(world.storage, config, plain, contaminated=contaminated)
    works = score_works(world.storage, [], raw=embedded, embedded=embedded, copies=copies)
    run_step(score_partition, works, world.storage, stage="score", version=VERSION)
    return world


def _embedded(storage, name):
    from winnow.partitions import Outcome

    return Outcome(outputs=(embeddings(name),))


def findings(world):
    ledger = Ledger()
    with Progress("verify", total=len(world.partitions)) as progress:
        check_duplicates(world.storage, world.partitions, ledger, progress)
    return [str(found) for found in ledger.settled()], ledger.checked["duplicates"]


def test_what_the_stage_wrote_verifies(finished):
    found, looked = findings(finished)
    assert found == [] and looked > 150


@pytest.mark.parametrize("mode", ["down_weight", "mark"])
def test_other_modes_verify_too(tmp_path, mode):
    assert findings(settle(planted_world(tmp_path), DuplicateConfig(mode=mode)))[0] == []


def test_a_group_with_a_reported_image_verifies(tmp_path):
    world = planted_world(tmp_path)
    write_reported(world.storage, {min(max(world.groups(), key=len))}, world.partitions)
    assert findings(settle(world, DuplicateConfig()))[0] == []


def at(column, value):
    def change(rows):
        row = next(row for row in rows if row[column] is not None and row[column] != value and row["cosine"] is not None)
        row[column] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (at("cosine", 0.99), r"have cosine 0\.\d+ and \d differing bits"),
        (at("hamming", 9), r"differing bits"),
        (at("group_size", 7), "members, its rows say"),
        (at("weight", 0.25), r"0\.25"),
        (at("num_passing", 9), "members that filters keep"),
        (at("is_dropped", False), "give"),
        (at("passes", False), "the log differs"),
        (at("best", "f" * 32), "which is not in it"),
        (at("group", "0" * 32), "members|not in it|smallest"),
        (at("pixels", 10**9), "give"),
    ],
    ids=["cosine", "hamming", "size", "weight", "passing", "dropped", "passes", "best", "group", "pixels"],
)
def test_a_changed_row_is_found(finished, change, named):
    import re

    path = duplicates_file(finished.partitions[1])
    before = finished.storage.read_bytes(path)
    table = read_table(finished.storage, path)
    rows = table.to_pylist()
    change(rows)
    write_table(finished.storage, path, pa.Table.from_pylist(rows, table.schema))
    try:
        found, _ = findings(finished)
    finally:
        finished.storage.write_bytes(path, before)
    assert any(re.search(named, line) for line in found), found
    assert findings(finished)[0] == []


def test_a_match_that_its_features_do_not_bear_is_found(finished):
    path = contamination_file(finished.partitions[0])
    before = finished.storage.read_bytes(path)
    table = read_table(finished.storage, path)
    rows = table.to_pylist()
    first = min(rows, key=lambda row: row["uid"])
    first["item"] = next(row["item"] for row in rows if row["item"] != first["item"])
    write_table(finished.storage, path, pa.Table.from_pylist(rows, table.schema))
    try:
        assert any("of val have cosine" in line for line in findings(finished)[0])
    finally:
        finished.storage.write_bytes(path, before)


def test_a_duplicate_without_a_group_is_found(finished):
    path = decisions(finished.partitions[0])
    before = finished.storage.read_bytes(path)
    table = read_table(finished.storage, path)
    rows = table.to_pylist()
    members = read_table(finished.storage, duplicates_file(finished.partitions[0]))["uid"].to_pylist()
    row = next(row for row in rows if row["verdict"] == "kept" and row["uid"] not in members)
    row |= {"verdict": "dropped", "reasons": ["duplicate"]}
    write_table(finished.storage, path, pa.Table.from_pylist(rows, table.schema))
    try:
        assert any(f"{row['uid']} is dropped as a duplicate, but is in no group" in line for line in findings(finished)[0])
    finally:
        finished.storage.write_bytes(path, before)


def test_a_search_over_other_embeddings_is_found(finished):
    from winnow.receipts import forget, list_done

    held = {path: finished.storage.read_bytes(path) for path in finished.storage.walk("receipts/embed")}
    forget(finished.storage, "embed", list_done(finished.storage, "embed")[:1])
    try:
        assert any("run duplicates again" in line for line in findings(finished)[0])
    finally:
        for path, data in held.items():
            finished.storage.write_bytes(path, data)
