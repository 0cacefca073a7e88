"""What `winnow explain` tells of kept, dropped and failed samples."""

import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from winnow.decisions import logged_range
from winnow.errors import WinnowError
from winnow.explain import explain, render
from winnow.run_files import filters_used, partitions
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import decisions, manifest_part

sys.path.insert(0, str(Path(__file__).parent))
from fake_workspace import make_workspace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return make_workspace(tmp_path_factory.mktemp("run"), rows=40, trained=False)


def decided(run: Storage, verdict: str) -> dict:
    rows = read_table(run, decisions(partitions(run)[0])).to_pylist()
    return next(row for row in rows if row["verdict"] == verdict)


def test_a_kept_sample_is_told_with_its_place_in_the_shards(run: Storage) -> None:
    uid = decided(run, "kept")["uid"]
    story = explain(run, uid)
    dataset, tar, index = story.places[0]
    row = read_table(run, f"shards/{dataset}/{tar.replace('.tar', '.parquet')}").to_pylist()[index]
    assert row["uid"] == uid
    text = render(story)
    assert "KEPT" in text and f"shard       {dataset}/{tar}, sample {index}" in text
    assert [stage for stage, _, _ in story.receipts] == ["manifest", "download", "embed", "score", "shard"]


def test_a_dropped_sample_is_told_with_the_filter_that_drops_it_and_by_how_much(run: Storage) -> None:
    row = decided(run, "dropped")
    story = explain(run, row["uid"])
    judged = {entry.filter: entry for entry in story.judged}
    assert list(judged) == [used.name for used in filters_used(run)]
    for name, entry in judged.items():
        assert entry.drops == (name in row["reasons"])
        low, high = logged_range(row[f"score_{name}"], entry.threshold)
        assert entry.margin == pytest.approx(low - entry.threshold if entry.drops else entry.threshold - high)
        assert f"{name} {'drops it' if entry.drops else 'lets it pass'}, at least {entry.margin:.4f}" in render(story)
        assert f"score {low:.4f} to {high:.4f}, threshold" in render(story)  # the log holds a range: no more digits than are known
    assert f"DROPPED by {', '.join(row['reasons'])}" in render(story)
    assert "drops it, " in render(story)


def test_the_closest_labelled_examples_of_a_dropped_sample_are_positives(run: Storage) -> None:
    row = decided(run, "dropped")
    entry = next(entry for entry in explain(run, row["uid"]).judged if entry.filter == row["reasons"][0])
    assert entry.closest[0].positive
    assert [example.cosine for example in entry.closest] == sorted((example.cosine for example in entry.closest), reverse=True)
    assert {example.positive for example in entry.closest} == {True, False}
    assert row["uid"] not in {example.uid for example in entry.closest}


def test_a_failed_sample_is_told_with_its_cause_in_words(run: Storage) -> None:
    row = decided(run, "failed")
    text = render(explain(run, row["uid"]))
    assert f"FAILED ({row['reasons'][0]}): " in text
    assert "drops it" not in text


def test_a_prefix_or_a_url_is_enough(run: Storage) -> None:
    row = read_table(run, manifest_part(partitions(run)[0])).to_pylist()[0]
    assert explain(run, row["uid"][:12]).uid == row["uid"]
    assert explain(run, row["url"]).uid == row["uid"]


def test_a_prefix_of_several_uids_is_refused_with_two_of_them(run: Storage) -> None:
    with pytest.raises(WinnowError, match=r"'' fits|give a uid"):
        explain(run, " ")
    uids = sorted(uid for name in partitions(run) for uid in read_table(run, manifest_part(name))["uid"].to_pylist())
    first = next(a[0] for a, b in pairwise(uids) if a[0] == b[0])
    with pytest.raises(WinnowError, match=rf"'{first}' fits several pairs, {first}\w+ and {first}\w+ for two. Give more digits"):
        explain(run, first)


def test_an_unknown_uid_is_refused(run: Storage) -> None:
    with pytest.raises(WinnowError, match="no pair of this run has a uid that begins with"):
        explain(run, "zzzz")


def test_hostile_captions_reach_the_terminal_without_control_characters(run: Storage) -> None:
    for row in read_table(run, manifest_part(partitions(run)[0])).to_pylist():
        text = render(explain(run, row["uid"]))
        assert all(character.isprintable() or character == "\n" for character in text)


def test_a_withdrawn_pair_is_said_to_be_withdrawn(tmp_path: Path) -> None:
    run = make_workspace(tmp_path, parts=1, rows=20, trained=False)
    name = partitions(run)[0]
    uid = read_table(run, decisions(name))["uid"][0].as_py()
    write_table(run, "manifest/withdrawn.parquet", pa.table({"partition": [name], "uid": [uid]}))
    assert "WITHDRAWN" in render(explain(run, uid))


def test_a_sample_that_was_not_scored_yet_is_said_to_be_undecided(tmp_path: Path) -> None:
    run = make_workspace(tmp_path, parts=1, rows=20, trained=False)
    name = partitions(run)[0]
    uid = read_table(run, decisions(name))["uid"][0].as_py()
    run.remove(decisions(name))
    assert "NOT DECIDED YET" in render(explain(run, uid))
