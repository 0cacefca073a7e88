"""A whole run verifies; whatever is tampered with is named: file, row, filter."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from filters import scoring
from filters.catalog import FILTERS
from filters.labellers import TableLabeller
from filters.labels import LabelStore
from filters.learning import LabelPlan, LearnConfig, learn_filters
from filters.svm import SvmConfig
from winnow.audit import VERSION, write_report
from winnow.errors import WinnowError
from winnow.findings import Ledger
from winnow.partitions import run_step
from winnow.progress import Progress
from winnow.receipts import Work
from winnow.run_files import FILTERS_USED, partitions, read_json
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.verify import Verification, render, verify
from winnow.verify_verdicts import check_certificates, check_verdicts
from winnow.workspace import decisions

sys.path.insert(0, str(Path(__file__).parent))
from fake_workspace import make_workspace
from filter_world import make_world


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, made once."""
    root = tmp_path_factory.mktemp("whole")
    storage = make_workspace(root, rows=40)
    run_step(write_report, [Work(name="report", inputs={})], storage, stage="report", version=VERSION)
    return root


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Storage:
    shutil.copytree(whole, tmp_path / "run")
    return Storage(str(tmp_path / "run"))


def texts(result: Verification, check: str) -> list[str]:
    return [str(found) for found in result.findings if found.check == check]


def flip_byte(storage: Storage, path: str, position: int) -> None:
    data = bytearray(storage.read_bytes(path))
    data[position] ^= 1
    storage.write_bytes(path, bytes(data))


def test_a_whole_run_verifies_and_every_check_looked_at_something(run: Storage) -> None:
    result = verify(run)
    assert result.ok, render(result)
    # This run looked for no near-duplicates; tests/test_duplicate_report.py has one that did.
    assert all(count for check, count in result.checked.items() if check != "duplicates"), result.checked
    assert "Nothing differs" in render(result)


def test_a_run_without_training_verifies(tmp_path: Path) -> None:
    result = verify(make_workspace(tmp_path, rows=30, trained=False))
    assert result.ok, render(result)
    assert result.checked["regurgitation"] == 0


def test_one_flipped_byte_in_a_shard_names_that_shard_and_no_other(run: Storage) -> None:
    flip_byte(run, "shards/kept/00000-000.tar", 700)
    result = verify(run)
    assert not result.ok
    assert any("shards/kept/00000-000.tar: was changed after shard wrote it" in text for text in texts(result, "receipts"))
    assert not any("00001-000.tar" in str(found) for found in result.findings)


@pytest.mark.parametrize("path", ["raw", "embeddings", "manifest", "checkpoints/base/step-000600", "samples/base", "imports"])
def test_one_flipped_byte_in_any_output_names_the_file(run: Storage, path: str) -> None:
    victim = next(file for file in run.walk(path) if not file.endswith("index.json"))
    flip_byte(run, victim, run.size(victim) // 2)
    assert any(text.startswith(f"{victim}: was changed") for text in texts(verify(run), "receipts"))


def test_a_deleted_decision_row_names_partition_and_uid(run: Storage) -> None:
    path = decisions(partitions(run)[1])
    table = read_table(run, path)
    uid = table["uid"][5].as_py()
    write_table(run, path, pa.concat_tables([table.slice(0, 5), table.slice(6)]))
    result = verify(run)
    assert f"{path}: 1 listed uids have no decision ({uid})" in texts(result, "conservation")


def test_a_verdict_that_does_not_follow_from_its_scores_is_named(run: Storage) -> None:
    path = decisions(partitions(run)[0])
    table = read_table(run, path)
    rows = table.to_pylist()
    row = next(row for row in rows if row["verdict"] == "dropped")
    row["verdict"], row["reasons"] = "kept", []
    write_table(run, path, pa.Table.from_pylist(rows, table.schema))
    found = texts(verify(run), "verdicts")
    assert any(text.startswith(f"{path}: {row['uid']} is kept, but its scores say dropped by") for text in found)


def test_a_score_that_its_features_do_not_give_is_named_though_the_verdict_follows(run: Storage) -> None:
    path = decisions(partitions(run)[0])
    table = read_table(run, path)
    rows = table.to_pylist()
    row = next(row for row in rows if row["verdict"] == "dropped")
    name = row["reasons"][0]
    row[f"score_{name}"], row["verdict"], row["reasons"] = -1.5, "kept", []
    write_table(run, path, pa.Table.from_pylist(rows, table.schema))
    assert any(f"{row['uid']} has score -1.5 by {name}, its features give" in text for text in texts(verify(run), "verdicts"))


def test_a_changed_threshold_names_the_filter(run: Storage) -> None:
    used = read_json(run, FILTERS_USED)
    used[1]["threshold"] += 0.25
    run.write_text(FILTERS_USED, json.dumps(used))
    assert any(f"filter {used[1]['name']}: the threshold" in text for text in texts(verify(run), "certificates"))


def test_a_certificate_rewritten_with_a_higher_threshold_is_found_by_its_labels(run: Storage) -> None:
    used = read_json(run, FILTERS_USED)
    path = f"filters/{used[0]['name']}/{used[0]['version']}/certificate.json"
    certificate = read_json(run, path)
    certificate["threshold"] = used[0]["threshold"] = certificate["threshold"] + 0.5
    run.write_text(path, json.dumps(certificate))
    used[0]["certificate_sha256"] = run.sha256(path)
    run.write_text(FILTERS_USED, json.dumps(used))
    found = texts(verify(run), "certificates")
    assert any(f"{path}: filter people: the labels give rank 1 and threshold" in text for text in found)


def test_label_scores_that_the_machine_does_not_give_are_found(run: Storage) -> None:
    used = read_json(run, FILTERS_USED)[0]
    path = f"filters/{used['name']}/{used['version']}/labels.parquet"
    table = read_table(run, path)
    rows = table.to_pylist()
    rows[0]["score"] += 0.01
    write_table(run, path, pa.Table.from_pylist(rows, table.schema))
    assert any(f"filter people: {rows[0]['uid']} has score" in text for text in texts(verify(run), "certificates"))


def test_a_removed_receipt_is_missed(run: Storage) -> None:
    name = partitions(run)[0]
    run.remove("receipts/embed/" + next(file for file in run.names("receipts/embed") if file.startswith(name)))
    found = texts(verify(run), "strays")
    assert f"embeddings/{name}.parquet: has no receipt: left over from a killed run, or put there by hand. Remove it" in found
    assert any(text.startswith(f"receipts/embed: has no receipt for {name}") for text in found)


def test_a_receipt_rewritten_to_fit_a_changed_file_is_found_by_its_name(run: Storage) -> None:
    flip_byte(run, "shards/kept/00000-000.tar", 700)
    path = "receipts/shard/" + run.names("receipts/shard")[0]
    receipt = read_json(run, path)
    receipt["outputs"]["shards/kept/00000-000.tar"]["sha256"] = run.sha256("shards/kept/00000-000.tar")
    run.write_text(path, json.dumps(receipt))
    result = verify(run)
    assert any(text.startswith(f"{path}: the digests in it give") for text in texts(result, "receipts"))
    assert any("shards/kept/index.json: says that shards/kept/00000-000.tar has sha256" in text for text in texts(result, "indexes"))


def test_a_sample_index_that_names_another_caption_than_was_asked_for_is_found(run: Storage) -> None:
    index = read_json(run, "samples/base/index.json")
    index["samples"][3]["prompt"] = "something else"
    run.write_text("samples/base/index.json", json.dumps(index))
    assert any("samples/base/index.json: says" in text and "something else" in text for text in texts(verify(run), "indexes"))


def test_a_filter_that_was_fitted_again_without_scoring_is_found(run: Storage) -> None:
    run.write_text("filters/people/current.json", json.dumps({"version": "v2"}))
    assert any(text.startswith("filters/people/current.json: names version v2") for text in texts(verify(run), "lineage"))


def test_changed_settings_in_a_receipt_are_found(run: Storage) -> None:
    path = "receipts/train/" + run.names("receipts/train")[0]
    receipt = read_json(run, path)
    receipt["arguments"]["steps"] = 7
    run.write_text(path, json.dumps(receipt))
    assert any(text.startswith(f"{path}: its inputs, settings and version") for text in texts(verify(run), "receipts"))


def test_a_number_changed_in_the_summary_names_the_number(run: Storage) -> None:
    summary = read_json(run, "report/summary.json")
    summary["counts"]["kept"] += 1
    run.write_text("report/summary.json", json.dumps(summary))
    said, due = summary["counts"]["kept"], summary["counts"]["kept"] - 1
    assert f"report/summary.json: counts.kept is {said}, the files say {due}" in texts(verify(run), "report")


def test_a_missing_file_is_named_and_the_rest_is_still_checked(run: Storage) -> None:
    name = partitions(run)[0]
    run.remove(f"embeddings/{name}.parquet")
    result = verify(run)
    assert f"embeddings/{name}.parquet: is missing; embed wrote it" in texts(result, "receipts")
    assert result.checked["conservation"] == 80


def test_a_damaged_index_is_a_difference_and_no_crash(run: Storage) -> None:
    run.write_text("shards/kept/index.json", "{")
    assert any("shards/kept/index.json is not valid JSON" in text for text in texts(verify(run), "indexes"))


def test_many_wrong_rows_of_one_file_are_counted_not_listed(run: Storage) -> None:
    path = decisions(partitions(run)[0])
    table = read_table(run, path)
    rows = [{**row, "verdict": "kept", "reasons": []} for row in table.to_pylist()]
    write_table(run, path, pa.Table.from_pylist(rows, table.schema))
    found = [text for text in texts(verify(run), "verdicts") if text.startswith(path)]
    assert len(found) == 6
    assert "more like this" in found[-1]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="is not the workspace of a run"):
        verify(Storage(str(tmp_path)))


def test_what_the_filters_themselves_write_passes_the_second_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted, certified and scored by filters/; thresholds, label scores and verdicts recomputed without it."""
    world = make_world(tmp_path, partitions=2, rows=250)
    for name, spec in FILTERS.items():
        monkeypatch.setitem(FILTERS, name, dataclasses.replace(spec, max_miss_rate=0.1))  # 29 positives instead of 299
    plan = LabelPlan(random_labels=480, text_search_labels=20, boundary_labels=20)
    config = LearnConfig(plan=plan, svm=SvmConfig(costs=(1.0,), gamma_scales=(1.0,)))
    labeller = TableLabeller.from_table(world.storage, world.truth_file, world.partitions)
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        settings = {"partitions": world.partitions, "text_vectors": world.text_vectors, "feature_digest": "features-1"}
        runs = learn_filters(world.storage, config, filters=tuple(FILTERS), labeller=labeller, store=store, **settings)
    scoring.write_filters_json(world.storage, runs)
    for name in world.partitions:
        scoring.score_partition(world.storage, name, filters=scoring.filters_used(world.storage, runs))
    ledger = Ledger()
    check_certificates(world.storage, ledger)
    check_verdicts(world.storage, world.partitions, ledger, Progress("verdicts", total=2))
    assert [str(found) for found in ledger.settled()] == []
    assert ledger.checked["certificates"] > 1000 and ledger.checked["verdicts"] == 500
