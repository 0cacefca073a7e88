import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binom

from filters import catalog
from filters.asking import images_to_label
from filters.catalog import FILTERS
from filters.label_batches import batch_items
from filters.label_queue import claim, decide
from filters.label_records import Decision
from filters.labellers import TableLabeller
from filters.labels import LabelStore
from filters.learning import LabelPlan, LearnConfig, current_runs, learn_filters
from filters.promotion import compare_versions, judge, note, paired, paused_by, read_promotions
from filters.relabel import RelabelConfig, relabel_round
from filters.svm import SvmConfig
from tests.filter_world import make_world
from winnow.errors import ConfigError, NotEnoughLabels

NAME = "people"
LEARN = LearnConfig(
    plan=LabelPlan(random_labels=500, text_search_labels=30, boundary_labels=0), svm=SvmConfig(costs=(1.0,), gamma_scales=(1.0,)), rounds=0
)
ROUND = RelabelConfig(boundary_labels=20, random_labels=30, overlap=1)


def drops(n, chosen):
    found = np.zeros(n, dtype=bool)
    found[list(chosen)] = True
    return found


def test_versions_that_drop_the_same_are_equal_and_the_new_one_is_promoted_for_its_labels():
    clean, positives = paired(drops(200, range(20)), drops(200, range(20))), paired(drops(50, range(50)), drops(50, range(50)))
    found = judge(clean, positives)
    assert found.promote and found.clean.p_more == 1.0 and "20 of 200 clean test images" in found.reason


def test_a_version_that_drops_more_clean_images_is_not_promoted():
    clean = paired(drops(200, range(20)), drops(200, range(10, 60)))
    assert clean.only_new == 40 and clean.only_now == 10
    # McNemar's exact test is a sign test on the images that differ.
    assert clean.p_more == pytest.approx(float(binom.sf(39, 50, 0.5)))
    found = judge(clean, paired(drops(50, range(50)), drops(50, range(50))))
    assert not found.promote and "drops more clean images" in found.reason


def test_a_version_that_misses_more_positives_is_not_promoted_whatever_it_saves():
    found = judge(paired(drops(200, range(100)), drops(200, ())), paired(drops(50, range(50)), drops(50, range(42))))
    assert not found.promote and "misses 8 test positives" in found.reason


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A world whose people filter has a version in force, fitted without asking near the boundary."""
    for name, spec in FILTERS.items():
        monkeypatch.setitem(catalog.FILTERS, name, dataclasses.replace(spec, max_miss_rate=0.1))
    made = make_world(tmp_path / "world", partitions=4)
    labeller = TableLabeller.from_table(made.storage, made.truth_file, made.partitions)
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        learn(made, store, labeller=labeller)
        yield made, store, labeller


def learn(made, store, *, labeller=None, in_force=True):
    (run,) = learn_filters(
        made.storage, LEARN, filters=(NAME,), partitions=made.partitions, labeller=labeller, store=store,
        text_vectors=made.text_vectors, feature_digest="features-1", in_force=in_force,
    )  # fmt: skip
    return run


def go_on(world, *, labeller=None, fit=None, config=ROUND):
    made, store, _ = world
    (run,) = current_runs(made.storage, [NAME])

    def draw(origin, count):
        return images_to_label(
            made.storage, NAME, origin, count,
            partitions=made.partitions, store=store, seed=0, text_vectors={}, folder=run.folder,
        )  # fmt: skip

    return relabel_round(
        made.storage, store, config, run,
        draw=draw, fit=fit or (lambda: learn(made, store, in_force=False)), policy="p", seed=0, labeller=labeller,
    )  # fmt: skip


def label_batch(world, name):
    made, store, _ = world
    batch = next(batch for batch in store.all_batches(NAME) if batch.name == name)
    of = {item.item: item.uid for item in batch_items(store, batch)}
    while found := claim(store, batch, "ben", "tab", want=16):
        said = [Decision(key=f"{name}-{one.item}", item=one.item, answer="yes" if made.truth[of[one.item]][0] else "no") for one in found]
        decide(store, batch, said, "ben", version="v", image_digest=lambda item: None)


def test_a_round_asks_waits_and_goes_on_when_people_have_labelled(world):
    made, store, _ = world
    before = current_runs(made.storage, [NAME])[0].version
    first = go_on(world)
    assert first.state == "waiting" and first.lacking == 50
    again = go_on(world)
    assert again == first and len([batch for batch in store.all_batches(NAME) if "relabel" in batch.details]) == 2
    modes = {batch.origin: batch.mode for batch in store.all_batches(NAME) if "relabel" in batch.details}
    assert modes == {"random": "calibrate", "boundary": "query"}
    label_batch(world, "relabel-1-random")
    assert go_on(world).lacking == 20
    label_batch(world, "relabel-1-boundary")
    done = go_on(world)
    (row,) = read_promotions(made.storage, NAME)
    assert done.state == row["event"] and row["round"] == 1 and row["from"] == before and row["reason"] in done.message
    assert current_runs(made.storage, [NAME])[0].version == (row["to"] if done.state == "promoted" else before)
    assert go_on(world).number == 2


def test_a_paused_round_promotes_nothing_until_somebody_resumes(world):
    made, _, labeller = world
    before = current_runs(made.storage, [NAME])[0].version
    note(made.storage, NAME, "paused", {"reason": "drift: scores"})
    assert paused_by(made.storage, NAME)["reason"] == "drift: scores"
    held = go_on(world, labeller=labeller)
    assert held.state == "paused" and "drift: scores" in held.message
    assert current_runs(made.storage, [NAME])[0].version == before
    note(made.storage, NAME, "resumed", {"person": "eve", "reason": "looked"})
    done = go_on(world, labeller=labeller)
    assert done.number == held.number and done.state in ("promoted", "kept")


def test_a_round_that_cannot_certify_says_why_and_ends(world):
    made, _, labeller = world

    def too_few():
        raise NotEnoughLabels("label 30 more at random")

    done = go_on(world, labeller=labeller, fit=too_few)
    assert done.state == "kept" and "label 30 more" in done.message
    assert [row["event"] for row in read_promotions(made.storage, NAME)] == ["kept"]


def test_labels_that_change_nothing_keep_the_version_in_force(world):
    made, _, labeller = world
    (run,) = current_runs(made.storage, [NAME])
    done = go_on(world, labeller=labeller, fit=lambda: run)
    assert done.state == "kept" and "in force already" in done.message


def test_held_out_labels_leave_out_what_the_version_in_force_was_fitted_on(world):
    made, store, labeller = world
    (before,) = current_runs(made.storage, [NAME])
    go_on(world, labeller=labeller, fit=lambda: (_ for _ in ()).throw(NotEnoughLabels("no")))
    after = learn(made, store, in_force=False)
    found = compare_versions(made.storage, NAME, before.version, after.version)
    tested = json.loads(made.storage.read_bytes(f"{after.folder}/certificate.json"))["test"]
    assert 0 < found.positives.n <= tested["miss_rate"]["n"] and 0 < found.clean.n <= tested["clean_dropped"]["n"]
    same = compare_versions(made.storage, NAME, before.version, before.version)
    assert same.clean.only_new == same.clean.only_now == 0


def test_a_round_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="not both 0"):
        RelabelConfig(boundary_labels=0, random_labels=0)
