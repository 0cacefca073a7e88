"""What report, verify and explain say of near-duplicates, on a whole workspace."""

import json
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

from filters.duplicate_stage import find_contamination, find_duplicates, settle_duplicates
from filters.duplicates import DuplicateConfig
from filters.scoring import VERSION, score_partition, score_works
from tests.duplicate_world import Planted, copy_of, planted_world, write_rows
from tests.fake_workspace import make_workspace
from winnow.audit import render_table, write_report
from winnow.duplicates import duplicates_file, reference_file
from winnow.explain import explain, render
from winnow.partitions import Outcome, run_step
from winnow.receipts import Work, list_done
from winnow.report.duplicates import gather_contamination, gather_duplicates, pick_groups
from winnow.reported import write_reported
from winnow.run_files import partitions, read_json
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.verify import render as render_findings
from winnow.verify import verify
from winnow.workspace import decisions, embeddings


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A finished run whose near-duplicates share weights: nothing more is dropped, so its shards stand."""
    storage = make_workspace(tmp_path_factory.mktemp("whole"), rows=40, trained=False)
    config = DuplicateConfig(mode="down_weight", limits=((0.6, 30),))
    embedded = {done.partition: done.output for done in list_done(storage, "embed")}
    find_duplicates(storage, config, embedded, "features")
    used = read_json(storage, "decisions/filters.json")
    works = [Work(name=name, inputs={"embeddings": output}, arguments={"filters": used}) for name, output in embedded.items()]
    settle_duplicates(storage, config, works, contaminated={})
    write_report(storage, "report")
    return storage


def test_the_report_tells_how_many_there_are_and_pictures_some(whole: Storage) -> None:
    page = BeautifulSoup(whole.read_text("report/index.html"), "html.parser")
    section = page.find(id="duplicates")
    summary = json.loads(whole.read_bytes("report/summary.json"))["duplicates"]
    rows = [row for name in partitions(whole) for row in read_table(whole, duplicates_file(name)).to_pylist()]
    assert summary["images"] == len(rows) > 10
    assert summary["groups"] == len({row["group"] for row in rows})
    assert sum(entry["groups"] for entry in summary["sizes"]) == summary["groups"]
    assert summary["largest"] == max(row["group_size"] for row in rows)
    assert section is not None and "share one weight" in section.text
    assert "(cosine at least 0.6 and at most 30 of 64 bits of a hash differ)" in section.text
    assert len(section.find_all("figure")) > 3
    assert page.find("a", href="#duplicates") is not None
    table = render_table(json.loads(whole.read_bytes("report/summary.json")))
    assert f"in {summary['groups']} groups, the largest of {summary['largest']}" in table


def test_a_run_with_near_duplicates_verifies(whole: Storage) -> None:
    from tests.fake_workspace import give_receipt

    give_receipt(whole, "report", "report", ["report/index.html", "report/summary.json"])
    found = verify(whole)
    assert found.ok, render_findings(found)
    assert found.checked["duplicates"] > 10


def test_the_story_of_a_sample_names_the_best_of_its_group(whole: Storage) -> None:
    row = next(
        row
        for name in partitions(whole)
        for row in read_table(whole, duplicates_file(name)).to_pylist()
        if row["passes"] and not row["is_best"]
    )
    text = render(explain(whole, row["uid"]))
    assert f"one of {row['group_size']} images of group {row['group']}" in text
    assert f"the best of those that everything else keeps is {row['best']}" in text
    assert "KEPT" in text and "weight" in text


def settled(folder: Path) -> tuple[Planted, str]:
    """A planted world with decisions, and an image that is dropped as a duplicate."""
    world = planted_world(folder)
    config = DuplicateConfig(references={"val": "unread"})
    works = [Work(name=name, inputs={"raw": ""}) for name in world.partitions]

    def embed(storage: Storage, name: str) -> Outcome:
        return Outcome(outputs=(embeddings(name),))

    embedded = run_step(embed, works, world.storage, stage="embed", version=1).outputs
    rng = np.random.default_rng(1)
    write_rows(world.storage, "scratch", [(f"{number:032x}", *copy_of(number, rng), 64) for number in (3, 5, 8, 13, 9001, 9002)])
    table = read_table(world.storage, embeddings("scratch"))
    world.storage.remove(embeddings("scratch"))

    def reference(storage: Storage, name: str) -> Outcome:
        write_table(storage, reference_file(name), table.append_column("item", table["uid"]))
        return Outcome(outputs=(reference_file(name),))

    sets = run_step(reference, [Work(name="val", inputs={})], world.storage, stage="references", version=1).outputs
    contaminated = find_contamination(world.storage, config, embedded, sets).outputs
    find_duplicates(world.storage, config, embedded, "features")
    plain = list(score_works(world.storage, [], raw=embedded, embedded=embedded))
    copies = settle_duplicates(world.storage, config, plain, contaminated=contaminated)
    run_step(
        score_partition,
        score_works(world.storage, [], raw=embedded, embedded=embedded, copies=copies),
        world.storage,
        stage="score",
        version=VERSION,
    )
    index = {"listed": 180, "partitions": [{"name": name, "listed": 60} for name in world.partitions]}
    world.storage.write_text("manifest/index.json", json.dumps(index))
    rows = [row for name in world.partitions for row in read_table(world.storage, decisions(name)).to_pylist()]
    return world, next(row["uid"] for row in rows if row["reasons"] == ["duplicate"])


def test_the_share_of_an_evaluation_set_with_a_copy_is_told_both_ways(tmp_path: Path) -> None:
    world, _ = settled(tmp_path)
    (entry,) = gather_contamination(world.storage, world.partitions)
    numbers = list(world.truth.values())
    matched = {number for number in (3, 5, 8, 13) if number in numbers}
    assert (entry["items"], entry["matched"]) == (6, len(matched))
    assert entry["share"] == pytest.approx(len(matched) / 6)
    assert entry["images"] == sum(number in matched for number in numbers)


def test_the_story_of_a_dropped_copy_says_of_which_and_of_a_contaminated_image_of_which_set(tmp_path: Path) -> None:
    world, uid = settled(tmp_path)
    story = explain(world.storage, uid)
    assert story.group is not None
    assert f"DROPPED as a near-duplicate of {story.group['best']}" in render(story)
    other = next(uid for uid, number in world.truth.items() if number in (3, 5, 8, 13))
    text = render(explain(world.storage, other))
    assert "DROPPED as an image of the evaluation set val" in text and "of the evaluation set val: cosine" in text


def test_a_group_with_a_reported_image_is_not_pictured(tmp_path: Path) -> None:
    world, _ = settled(tmp_path)
    before = pick_groups(world.storage, world.partitions)
    write_reported(world.storage, {before[0].members[0].uid}, world.partitions)
    after = pick_groups(world.storage, world.partitions)
    shown = {shown.uid for group in after for shown in group.members}
    assert len(after) < len(before) and not shown & {shown.uid for shown in before[0].members}


def test_without_the_search_nothing_is_said(tmp_path: Path) -> None:
    world = planted_world(tmp_path)
    assert gather_duplicates(world.storage, world.partitions) is None
    assert gather_contamination(world.storage, world.partitions) == []
