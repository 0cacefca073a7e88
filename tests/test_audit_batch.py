import dataclasses
import json

import pytest

from filters.audit_batch import AuditPlan, draw_audit
from filters.audit_result import audit_result
from filters.catalog import FILTERS
from filters.label_batches import batch_items
from filters.label_queue import claim, decide
from filters.label_records import Decision
from filters.labels import LabelStore
from tests.fake_workspace import make_workspace
from winnow.audit import summarise
from winnow.errors import ConfigError, NotEnoughLabels, ShardError
from winnow.report.audits import audit_path, gather_audits
from winnow.run_files import decided_partitions, filters_used
from winnow.tables import read_table
from winnow.workspace import decisions

PLAN = AuditPlan(seed=7, count=30, honeypots=8, overlap=1, max_leak=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("audited")
    storage = make_workspace(root, trained=False)
    return storage


@pytest.fixture
def world(made, tmp_path):
    """A scored workspace, and a label store that knows its filter's labels."""
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        for used in filters_used(made)[:1]:
            labels = read_table(made, used.labels_path, ["uid", "value"]).to_pylist()
            answers = {row["uid"]: row["value"] for row in labels}
            store.add_batch(used.name, "first", "random", answers, person="ada", policy=FILTERS[used.name].policy)
        yield made, store


def answer_all(store, batch, say, *, person="ben"):
    """Works through a batch as the page does; `say` maps an item of the store to an answer."""
    items = {item.item: item for item in batch_items(store, batch)}
    while claimed := claim(store, batch, person, "tab-" + person, want=16):
        given = [Decision(key=f"{person}-{batch.name}-{one.item}", item=one.item, answer=say(items[one.item])) for one in claimed]
        decide(store, batch, given, person, version="v", image_digest=lambda item: None)


def kept_uids(storage):
    rows = [row for name in decided_partitions(storage) for row in read_table(storage, decisions(name), ["uid", "verdict"]).to_pylist()]
    return {row["uid"] for row in rows if row["verdict"] == "kept"}


def all_right(item):
    return "yes" if item.kind == "honeypot" else "no"


def result_of(world, batch):
    return audit_result(*world, batch, person="eve", command="winnow audit result")


def test_a_batch_holds_kept_images_and_the_lowest_confirmed_positives_mixed_by_seed(world):
    storage, store = world
    batch = draw_audit(storage, store, "people", PLAN, person="eve")
    items = batch_items(store, batch)
    looked, planted = [item for item in items if item.kind == "item"], [item for item in items if item.kind == "honeypot"]
    assert len(looked) == 30 and {item.uid for item in looked} <= kept_uids(storage)
    table = read_table(storage, filters_used(storage)[0].labels_path, ["uid", "value", "score"]).to_pylist()
    lowest = sorted((row["score"], row["uid"]) for row in table if row["value"] == 1)[:8]
    assert {item.uid for item in planted} == {uid for _, uid in lowest}
    assert {item.position for item in planted} != set(range(30, 38)) and {item.position for item in planted} != set(range(8))
    assert not any(item.uid in item.item or item.reason for item in items)


def test_the_same_seed_draws_the_same_images_and_another_seed_others(world, tmp_path):
    storage, store = world
    first = draw_audit(storage, store, "people", PLAN, person="eve")
    other = draw_audit(storage, store, "people", dataclasses.replace(PLAN, seed=8), person="eve")
    with LabelStore.open(tmp_path / "again.sqlite") as fresh:
        again = draw_audit(storage, fresh, "people", dataclasses.replace(PLAN, honeypots=0), person="eve")
        same = {item.uid for item in batch_items(fresh, again)}
    drawn = {item.uid for item in batch_items(store, first) if item.kind == "item"}
    assert drawn == same
    assert drawn != {item.uid for item in batch_items(store, other) if item.kind == "item"}


def test_a_finished_batch_passes_with_its_bound_and_an_unfinished_one_is_not_measured(world):
    storage, store = world
    batch = draw_audit(storage, store, "people", PLAN, person="eve")
    before = result_of(world, batch)
    assert before["status"] == "not measured" and "38 of 38 images lack" in before["reasons"][0]
    answer_all(store, batch, all_right)
    found = result_of(world, batch)
    assert found["status"] == "pass" and found["n"] == 30 and found["found"] == 0
    assert found["honeypots"] == {"planted": 8, "found": 8, "sensitivity_at_least": pytest.approx(0.025 ** (1 / 8))}
    assert found["interval"][1] == pytest.approx((1 - 0.025 ** (1 / 30)) / 0.025 ** (1 / 8))
    assert found["inspectors"][0]["person"] == "ben" and found["inputs"]["version"] == filters_used(storage)[0].version


def test_unsure_counts_as_a_find_and_a_missed_honeypot_as_missed(world):
    storage, store = world
    batch = draw_audit(storage, store, "people", PLAN, person="eve")
    unsure = next(item.uid for item in batch_items(store, batch) if item.kind == "item")
    missed = next(item.uid for item in batch_items(store, batch) if item.kind == "honeypot")
    answer_all(store, batch, lambda item: "unsure" if item.uid == unsure else "no" if item.uid == missed else all_right(item))
    found = result_of(world, batch)
    assert found["found"] == 1 and found["honeypots"]["found"] == 7


def test_one_of_two_inspectors_is_enough_for_a_find(world):
    storage, store = world
    batch = draw_audit(storage, store, "people", dataclasses.replace(PLAN, overlap=2), person="eve")
    answer_all(store, batch, all_right)
    assert result_of(world, batch)["status"] == "not measured"
    answer_all(store, batch, lambda item: "yes" if item.kind == "item" else "no", person="cyd")
    found = result_of(world, batch)
    assert found["found"] == 30 and found["honeypots"]["found"] == 8 and found["status"] == "fail"


def test_answers_after_the_result_was_taken_mark_the_batch_used(world):
    storage, store = world
    batch = draw_audit(storage, store, "people", PLAN, person="eve")
    answer_all(store, batch, all_right)
    assert result_of(world, batch)["status"] == "pass"
    assert result_of(world, batch)["status"] == "pass"  # to look again changes nothing
    item = batch_items(store, batch)[0]
    decide(store, batch, [Decision(key="later", item=item.item, answer="no")], "dan", version="v", image_digest=lambda item: None)
    found = result_of(world, batch)
    assert found["status"] == "stale" and "1 answers came in after its result was taken" in found["reasons"][0]


def test_a_seed_that_drew_before_is_used(world):
    storage, store = world
    answer_all(store, draw_audit(storage, store, "people", PLAN, person="eve"), all_right)
    again = draw_audit(storage, store, "people", PLAN, person="eve")
    answer_all(store, again, all_right)
    found = result_of(world, again)
    assert again.name == "audit-7-again-1" and found["status"] == "stale" and "seed 7 drew audit-7 before" in found["reasons"][0]


def test_a_draw_that_nobody_has_answered_is_the_same_batch_when_asked_for_again(world):
    storage, store = world
    first = draw_audit(storage, store, "people", PLAN, person="eve")
    assert draw_audit(storage, store, "people", PLAN, person="eve").name == first.name
    assert draw_audit(storage, store, "people", dataclasses.replace(PLAN, max_leak=0.4), person="eve").name != first.name
    answer_all(store, first, all_right)
    assert result_of(world, first)["status"] == "pass"


def test_an_audit_of_another_threshold_is_stale(world, tmp_path):
    storage, store = world
    batch = draw_audit(storage, store, "people", PLAN, person="eve")
    answer_all(store, batch, all_right)
    content = storage.read_text("decisions/filters.json")
    entries = json.loads(content)
    entries[0]["threshold"] -= 0.01
    try:
        storage.write_text("decisions/filters.json", json.dumps(entries))
        found = result_of(world, batch)
    finally:
        storage.write_text("decisions/filters.json", content)
    assert found["status"] == "stale" and "the filter changed since the draw" in found["reasons"][0]


def test_an_audit_by_score_bounds_the_leak_without_honeypots(world):
    storage, store = world
    plan = AuditPlan(seed=3, count=60, stratified=True, overlap=1, max_leak=0.5, honeypots=0)
    batch = draw_audit(storage, store, "people", plan, person="eve")
    assert len(batch_items(store, batch)) <= 60
    answer_all(store, batch, all_right)
    found = result_of(world, batch)
    assert found["status"] == "pass" and found["stratified"]["positives_found"] == 0
    assert found["interval"][1] == pytest.approx(1 - 0.05 ** (1 / batch.details["strata"][0]["wanted"]))


def test_honeypots_of_an_audit_by_score_are_none_of_its_draw_and_enter_its_bound(world):
    storage, store = world
    plan = AuditPlan(seed=4, count=60, stratified=True, overlap=1, max_leak=0.5, honeypots=5)
    batch = draw_audit(storage, store, "people", plan, person="eve")
    planted = {item.uid for item in batch_items(store, batch) if item.kind == "honeypot"}
    drawn = {item.uid for item in batch_items(store, batch) if item.kind == "item"}
    assert len(planted) == 5 and not planted & drawn
    answer_all(store, batch, all_right)
    found = result_of(world, batch)
    assert found["honeypots"] == {"planted": 5, "found": 5, "sensitivity_at_least": pytest.approx(0.025 ** (1 / 5))}
    finds = 1 - 0.025 ** (1 / batch.details["strata"][0]["wanted"])
    assert found["interval"][1] == pytest.approx(finds / 0.025 ** (1 / 5)) and found["stratified"]["num_labels"] == len(drawn) > found["n"]


def test_too_few_confirmed_positives_say_how_many_there_are(world):
    storage, store = world
    with pytest.raises(NotEnoughLabels, match="confirmed positives, 5000 are to be mixed in"):
        draw_audit(storage, store, "people", dataclasses.replace(PLAN, honeypots=5000), person="eve")
    with pytest.raises(ConfigError, match="nothing was scored with a filter 'nudity'"):
        draw_audit(storage, store, "nudity", PLAN, person="eve")


def test_the_report_claims_what_audits_found_and_a_forged_bound_is_refused(world, tmp_path_factory):
    _, store = world
    storage = make_workspace(tmp_path_factory.mktemp("reported"), trained=False)
    unmeasured = [claim for claim in summarise(storage)["claims"] if "inspected" in claim["claim"]]
    assert [claim["status"] for claim in unmeasured] == ["not measured"]
    batch = draw_audit(storage, store, "people", PLAN, person="eve")
    answer_all(store, batch, all_right)
    found = audit_result(storage, store, batch, person="eve", command="winnow audit result")
    storage.write_text(audit_path("people", batch.name), json.dumps(found))
    (said,) = [claim for claim in summarise(storage)["claims"] if "inspected" in claim["claim"]]
    assert said["status"] == "pass" and said["n"] == 30 and "audit-7" in said["method"]
    storage.write_text(audit_path("people", batch.name), json.dumps(found | {"version": "another"}))
    assert gather_audits(storage, filters_used(storage))[0]["status"] == "stale"
    storage.write_text(audit_path("people", batch.name), json.dumps(found | {"interval": [0.0, 0.001]}))
    with pytest.raises(ShardError, match="its counts bound the leak at"):
        gather_audits(storage, filters_used(storage))
