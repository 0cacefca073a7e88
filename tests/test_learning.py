import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from filters import asking, catalog, learning
from filters.asking import images_to_label
from filters.catalog import FILTERS
from filters.decision_values import Scorer
from filters.label_files import import_labels
from filters.label_records import ORIGINS
from filters.labellers import TableLabeller
from filters.labels import LabelStore
from filters.learning import LabelPlan, LearnConfig, current_runs, learn_filters, stopping_advice
from filters.scoring import filters_used, score_partition
from filters.search import find_features, read_features
from filters.splits import SplitConfig
from filters.svm import SvmConfig, svm_from_bytes
from tests.filter_world import add_partition, make_world, write_embeddings
from winnow.certificates import read_certificate, read_labels, recompute
from winnow.decisions import coarsened
from winnow.errors import ConfigError, NotEnoughLabels, StepFailed
from winnow.report.filters import gather_filter
from winnow.run_files import FilterUsed
from winnow.storage import Storage
from winnow.workspace import embeddings

PLAN = LabelPlan(random_labels=600, text_search_labels=40, boundary_labels=30)
CONFIG = LearnConfig(plan=PLAN, svm=SvmConfig(costs=(1.0, 10.0), gamma_scales=(1.0,)))
NAMES = tuple(FILTERS)


@pytest.fixture(autouse=True)
def modest_promises(monkeypatch):
    """A miss rate of 10 % takes 29 positives instead of 299."""
    for name, spec in FILTERS.items():
        monkeypatch.setitem(catalog.FILTERS, name, dataclasses.replace(spec, max_miss_rate=0.1))


def learn(world, config=CONFIG, *, filters=NAMES, labeller="table", **changes):
    settings = {"partitions": world.partitions, "text_vectors": world.text_vectors, "feature_digest": "features-1"} | changes
    if labeller == "table":
        labeller = TableLabeller.from_table(world.storage, world.truth_file, world.partitions)
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        return learn_filters(world.storage, config, filters=filters, labeller=labeller, store=store, **settings)


def files(world):
    return {path: world.storage.sha256(path) for path in world.storage.walk("filters")}


def read(world, run, name):
    return json.loads(world.storage.read_bytes(f"{run.folder}/{name}"))


def asked_in(world, name):
    """Origin -> images it was asked about by."""
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        found = store.asked(name)
    return {origin: {uid for uid, origins in found.items() if origin in origins} for origin in ORIGINS if origin != "audit"}


@pytest.fixture(scope="module")
def learned_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in FILTERS.items():
            patch.setitem(catalog.FILTERS, name, dataclasses.replace(spec, max_miss_rate=0.1))
        world = make_world(tmp_path_factory.mktemp("learned"))
        return world, learn(world)


@pytest.fixture
def learned(learned_once, tmp_path):
    """A world with its filters learned, to do with as one likes."""
    world, runs = learned_once
    root = tmp_path / "world"
    shutil.copytree(world.storage.full(""), root)
    return dataclasses.replace(world, storage=type(world.storage)(str(root)), truth_file=str(root / "truth.parquet")), runs


def test_each_filter_is_labelled_fitted_and_certified(learned):
    world, runs = learned
    assert [run.name for run in runs] == list(NAMES)
    for run in runs:
        assert run.fitted
        certificate = read(world, run, "certificate.json")
        assert certificate["threshold"] == run.threshold
        assert certificate["version"] == run.version
        asked = asked_in(world, run.name)
        assert {origin: len(asked[origin]) for origin in ("text_search", "boundary")} == {"text_search": 40, "boundary": 21}
        assert len(asked["random"]) == 600 + 3
        assert len(asked["neighbour"]) == 6
        assert run.num_labels == len(set().union(*asked.values()))
        assert set(certificate["labels"]) == {origin for origin, uids in asked.items() if uids}
        for origin in ("text_search", "boundary", "neighbour"):
            assert set(certificate["labels"][origin]) <= {"fit", "unused"}
    assert current_runs(world.storage, NAMES) == [dataclasses.replace(run, fitted=False) for run in runs]


def test_the_promise_holds_on_everything_there_is(learned):
    world, runs = learned
    found = find_features(world.storage, world.partitions, world.truth.keys())
    for column, run in enumerate(runs[:2]):
        scores = Scorer([svm_from_bytes(world.storage.read_bytes(f"{run.folder}/svm.safetensors"))]).scores(found.features)[:, 0]
        truth = np.array([world.truth[uid][column] for uid in found.uids])
        assert np.mean(scores[truth == 1] < run.threshold) <= 0.1
        assert np.mean(scores[truth == 0] >= run.threshold) < 0.3


def test_a_population_promise_rests_on_random_positives_and_a_curated_one_on_collected_ones(learned):
    world, (people, _, hate_symbol) = learned
    for run, origin in ((people, "random"), (hate_symbol, "import")):
        labels = pq.read_table(world.storage.full(f"{run.folder}/labels.parquet")).to_pylist()
        proving = [row for row in labels if row["value"] == 1 and row["split"] in ("calibrate", "test")]
        assert proving and {row["origin"] for row in proving} == {origin}
        certificate = read(world, run, "certificate.json")
        scores = sorted(row["score"] for row in proving if row["split"] == "calibrate")
        assert certificate["num_positives"] == len(scores)
        assert certificate["threshold"] == scores[certificate["rank"] - 1]
    assert "drawn from the data at random" in read(world, people, "certificate.json")["sentence"]
    assert "collected and not drawn from the data" in read(world, hate_symbol, "certificate.json")["sentence"]


def test_the_decision_log_scores_as_the_certificate_does(learned):
    # The threshold is one image's score, to the last bit: that image must be dropped, and exactly rank - 1 calibration positives kept.
    world, runs = learned
    log = {}
    for partition in world.partitions:
        score_partition(world.storage, partition, filters=filters_used(world.storage, runs))
        log |= {row["uid"]: row for row in pq.read_table(world.storage.full(f"decisions/{partition}.parquet")).to_pylist()}
    for run in runs:
        labels = pq.read_table(world.storage.full(f"{run.folder}/labels.parquet")).to_pylist()
        here = [row for row in labels if row["uid"] in log]
        assert len(here) >= 600
        logged = coarsened(np.array([row["score"] for row in here]), run.threshold)
        assert logged.tolist() == [log[row["uid"]][f"score_{run.name}"] for row in here]
        if run.name != "hate_symbol":
            proving = [log[row["uid"]] for row in here if row["split"] == "calibrate" and row["value"] == 1]
            assert sum(run.name not in row["reasons"] for row in proving) == read(world, run, "certificate.json")["rank"] - 1


def test_near_duplicates_are_counted(learned):
    world, runs = learned
    n = runs[0].num_labels
    assert read(world, runs[0], "certificate.json")["near_duplicates"] == {"images": n, "groups": n, "largest_group": 1}


def test_prevalence_is_that_of_the_random_labels_alone(learned):
    world, runs = learned
    labels = pq.read_table(world.storage.full(f"{runs[0].folder}/labels.parquet")).to_pylist()
    random = [row["value"] for row in labels if row["origin"] == "random"]
    prevalence = read(world, runs[0], "certificate.json")["prevalence"]
    assert (prevalence["count"], prevalence["n"]) == (sum(random), 603)
    assert prevalence["low"] < 0.3 < prevalence["high"]


def test_a_second_run_looks_at_nothing_and_changes_nothing(learned, monkeypatch):
    world, runs = learned
    before = files(world)

    def never(*args, **kwargs):
        raise AssertionError("nothing was to be done")

    for module, name in ((asking, "draw_at_random"), (asking, "search_by_text"), (asking, "nearest_by"), (learning, "find_features")):
        monkeypatch.setattr(module, name, never)
    again = learn(world)
    assert [(run.name, run.version, run.threshold, run.fitted) for run in again] == [(r.name, r.version, r.threshold, False) for r in runs]
    assert files(world) == before


def test_new_partitions_alone_refit_nothing(learned):
    world, runs = learned
    add_partition(world.storage, "00009-99999999", rows=50, failed=0.0, seed=99)
    grown = dataclasses.replace(world, partitions=[*world.partitions, "00009-99999999"])
    assert [run.version for run in learn(grown)] == [run.version for run in runs]


class Interrupted(Exception):
    pass


# Batches: collected, 3 random, 3 by text, 3 at the boundary, 3 of neighbours, 3 controls. Writes: 3 inputs of fit-0, then 3 files and a
# receipt each; the same and a certificate each for fit-1; current.json thrice.
@pytest.mark.parametrize(
    ("owner", "method", "at"),
    [(LabelStore, "add_batch", at) for at in (0, 2, 5, 8, 11, 14)] + [(Storage, "write_bytes", at) for at in (1, 4, 6, 19, 25, 35)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_run_killed_anywhere_and_resumed_ends_in_the_same_bytes(learned_once, tmp_path, monkeypatch, owner, method, at):
    undisturbed, runs = learned_once
    world = make_world(tmp_path / "world")
    calls, original = itertools.count(), getattr(owner, method)

    def dies(*args, **kwargs):
        if next(calls) == at:
            raise Interrupted
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, dies)
        with pytest.raises(Interrupted):
            learn(world)
    assert [run.version for run in learn(world)] == [run.version for run in runs]
    assert files(world) == files(undisturbed)


def test_a_changed_label_makes_a_new_version_of_its_filter_alone(learned):
    world, runs = learned
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        label = next(label for label in store.labels("people") if label.origin == "random")
        store.add_label("people", label.uid, 1 - label.value, "random", batch="page", person="ada", policy="p")
    again = learn(world)
    assert [run.fitted for run in again] == [True, False, False]
    assert again[0].version != runs[0].version
    assert again[0].num_labels == runs[0].num_labels
    assert len(read(world, again[0], "certificate.json")["policy_versions"]) == 2
    assert current_runs(world.storage, ("people",))[0].version == again[0].version


def test_other_features_make_new_versions_from_the_same_labels(learned):
    world, runs = learned
    again = learn(world, feature_digest="features-2")
    assert not {run.version for run in again} & {run.version for run in runs}
    assert [run.num_labels for run in again] == [run.num_labels for run in runs]


def test_asking_for_more_random_labels_draws_those_that_are_lacking(learned):
    world, _ = learned
    more = dataclasses.replace(CONFIG, plan=dataclasses.replace(PLAN, random_labels=650))
    again = learn(world, more, filters=("people",))
    asked = asked_in(world, "people")
    assert len(asked["random"]) == 653
    assert again[0].num_labels == len(set().union(*asked.values()))
    assert learn(world, more, filters=("people",))[0].version == again[0].version


def test_another_round_asks_near_the_boundary_once_more(learned):
    world, _ = learned
    twice = dataclasses.replace(CONFIG, rounds=2)
    (again,) = learn(world, twice, filters=("people",))
    asked = asked_in(world, "people")
    assert {origin: len(asked[origin]) for origin in ("random", "boundary", "neighbour")} == {
        "random": 606,
        "boundary": 42,
        "neighbour": 12,
    }
    assert again.num_labels == len(set().union(*asked.values()))
    assert learn(world, twice, filters=("people",)) == [dataclasses.replace(again, fitted=False)]


def _met_before(world):
    """Images of the second random draw that had a label already, for another reason."""
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        return sum("random" in origins and len(origins) > 1 for origins in store.asked("people").values())


def test_a_filter_can_have_its_own_plan(tmp_path):
    world = make_world(tmp_path)
    config = dataclasses.replace(CONFIG, overrides={"violence": dataclasses.replace(PLAN, text_search_labels=0)})
    people, violence = learn(world, config, filters=("people", "violence"))
    assert "text_search" in read(world, people, "certificate.json")["labels"]
    assert "text_search" not in read(world, violence, "certificate.json")["labels"]


def test_labels_from_elsewhere_need_no_labeller(learned, tmp_path):
    world, _ = learned
    for folder in ("filters", "receipts"):
        world.storage.remove_folder(folder)
    assert all(run.fitted for run in learn(world, labeller=None))


def test_without_labels_it_says_which_how_many_and_of_which_origin(tmp_path):
    world = make_world(tmp_path)
    with pytest.raises(NotEnoughLabels) as told:
        learn(world, labeller=None)
    lines = str(told.value).splitlines()
    assert lines[0].startswith("people: 0 positives to fit on, at least 10 are needed; 0 negatives to fit on")
    assert "0 calibration positives, and a miss rate of 10 % at 95 % confidence takes 29: label more images drawn at random" in lines[0]
    assert lines[2].startswith("hate_symbol: 0 negatives to fit on")
    assert not world.storage.walk("filters")


def test_too_few_random_labels_are_told_how_many_more_it_takes(tmp_path):
    world = make_world(tmp_path)
    config = dataclasses.replace(CONFIG, plan=dataclasses.replace(PLAN, random_labels=100))
    with pytest.raises(NotEnoughLabels, match=r"people: \d+ calibration positives, .* takes 29: label about \d+ more images drawn"):
        learn(world, config, filters=("people",))


def test_too_few_collected_examples_are_told_how_many_more_it_takes(tmp_path):
    world = make_world(tmp_path, num_imports=40)
    with pytest.raises(NotEnoughLabels, match=r"hate_symbol: \d+ calibration positives, .* takes 29: collect about \d+ more examples"):
        learn(world, filters=("hate_symbol",))


def test_images_that_nobody_could_judge_are_counted(tmp_path):
    world = make_world(tmp_path)

    class Unsure:
        name = "unsure"
        sure = TableLabeller.from_table(world.storage, world.truth_file, world.partitions)

        def answer(self, filter_name, uids):
            answers = self.sure.answer(filter_name, uids)
            return [None if i % 10 == 0 else answer for i, answer in enumerate(answers)]

    (run,) = learn(world, filters=("people",), labeller=Unsure())
    assert read(world, run, "certificate.json")["unanswered"] == {
        "boundary": 3,
        "neighbour": 1,
        "random": 61,
        "text_search": 4,
    }


def test_images_that_went_away_are_counted_and_harm_nothing(learned):
    world, _ = learned
    fewer = dataclasses.replace(world, partitions=world.partitions[:3])
    (run,) = learn(fewer, filters=("people",), feature_digest="features-2")
    counts = read(world, run, "certificate.json")["labels"]
    assert sum(counts["random"]["missing"].values()) > 50
    labels = pq.read_table(world.storage.full(f"{run.folder}/labels.parquet"))
    assert labels.column("score").null_count == sum(sum(by_split.get("missing", {}).values()) for by_split in counts.values())


def test_more_collected_images_refit_their_filter_alone(learned):
    world, runs = learned
    other = make_world(Path(world.storage.full("other")), num_imports=95)
    shutil.copy(other.storage.full("imports/hate_symbol.parquet"), world.storage.full("imports/hate_symbol.parquet"))
    again = learn(world)
    assert [run.fitted for run in again] == [False, False, True]
    assert again[2].num_labels == runs[2].num_labels + 5


def test_the_same_on_ray(learned_once, tmp_path, ray_cluster):
    undisturbed, _ = learned_once
    world = make_world(tmp_path / "world")
    with pytest.MonkeyPatch.context():
        learn(world, workers=ray_cluster)
    assert files(world) == files(undisturbed)


def test_people_are_told_what_to_label_and_their_labels_count(tmp_path):
    world = make_world(tmp_path / "world")
    truth = TableLabeller.from_table(world.storage, world.truth_file, world.partitions)
    settings = {"partitions": world.partitions, "seed": 0, "text_vectors": world.text_vectors}
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        for origin, count in (("random", 400), ("text_search", 40), ("random", 200), ("boundary", 30)):
            runs = current_runs(world.storage, ("people",))
            folder = runs[0].folder if runs else None
            uids = images_to_label(world.storage, "people", origin, count, store=store, folder=folder, **settings)
            assert len(set(uids)) == count
            assert uids == images_to_label(world.storage, "people", origin, count, store=store, folder=folder, **settings)
            path = tmp_path / "labels.csv"
            path.write_text("uid,value\n" + "".join(f"{u},{v}\n" for u, v in zip(uids, truth.answer("people", uids), strict=True)))
            import_labels(store, world.storage, "people", str(path), origin=origin, person="ada", partitions=world.partitions)
            if origin != "random" or len(store.labels("people")) > 600:
                (run,) = learn(world, filters=("people",), labeller=None)
        with pytest.raises(ConfigError, match="violence has no version yet whose boundary"):
            images_to_label(world.storage, "violence", "boundary", 5, store=store, folder=None, **settings)
        with pytest.raises(ConfigError, match="not by 'audit'"):
            images_to_label(world.storage, "people", "audit", 5, store=store, folder=None, **settings)
    counts = read(world, run, "certificate.json")["labels"]
    assert {origin: sum(sum(c.values()) for c in by_split.values()) for origin, by_split in counts.items()} == {
        "random": 600,
        "text_search": 40 - _met_before(world),
        "boundary": 30,
    }


def test_neighbours_of_what_was_not_understood_are_asked_about(learned):
    world, _ = learned
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        batch = {row.uid for row in store.rows("violence", batch="neighbour-1")}
        versions = [path.split("/")[2] for path in world.storage.walk("filters/violence") if path.endswith("learning.json")]
        contents = {version: json.loads(world.storage.read_bytes(f"filters/violence/{version}/learning.json")) for version in versions}
        ((version, first),) = [(version, content) for version, content in contents.items() if not content["final"]]
        labels = {row["uid"]: row for row in pq.read_table(world.storage.full(f"filters/violence/{version}/labelled.parquet")).to_pylist()}
        assert first["hard_positives"] and all(
            labels[uid]["value"] == 1 and labels[uid]["split"] == "fit" for uid in first["hard_positives"]
        )
        hard = np.array([labels[uid]["feature"] for uid in first["hard_positives"]], dtype=np.float64)
        found = find_features(world.storage, world.partitions, world.truth.keys())
        free = [row for row, uid in enumerate(found.uids) if uid not in labels]
        cosines = found.features[free] @ (hard / np.linalg.norm(hard, axis=1, keepdims=True)).T
        # The nearest of those that nobody was asked about, but for those that the boundary part of the round took.
        boundary = {row.uid for row in store.rows("violence", batch="boundary-1")}
        nearest = [next(found.uids[free[i]] for i in np.argsort(-column) if found.uids[free[i]] not in boundary) for column in cosines.T]
        assert len(batch) == 6 and set(nearest[:6]) <= batch
        settings = {"partitions": world.partitions, "store": store, "seed": 0, "text_vectors": world.text_vectors}
        more = images_to_label(world.storage, "violence", "neighbour", 5, folder=f"filters/violence/{version}", **settings)
        assert len(set(more)) == 5 and not set(more) & store.asked("violence").keys()


def test_what_more_labels_would_buy_is_told(learned):
    world, runs = learned
    for run in runs:
        told = stopping_advice(world.storage, run)
        assert told == read(world, run, "learning.json")["curve"]
        assert told["points"][-1]["labels"] == sum(read(world, run, "learning.json")["fitted_on"].values())
        assert told["advice"].startswith(f"With {told['points'][-1]['labels']} labels to fit on")
    world.storage.write_text(f"{runs[0].folder}/learning.json", "{}")
    with pytest.raises(ConfigError, match="has no learning curve; fit people anew"):
        stopping_advice(world.storage, runs[0])


def test_a_k_fold_certificate_lets_every_label_fit_and_calibrate_and_says_what_it_is_worth(learned):
    world, runs = learned
    config = dataclasses.replace(CONFIG, certificate="k_fold")
    (people,) = learn(world, config, filters=("people",))
    assert people.version != runs[0].version
    certificate, held = read(world, people, "certificate.json"), read(world, runs[0], "certificate.json")
    assert (certificate["certificate"], held["certificate"]) == ("k_fold", "held_out")
    assert certificate["sentence"].startswith("Estimated by cross-validation, not proven: at most 10 %")
    assert certificate["guarantee"].startswith("An estimate, weaker than a held-out proof") and "10 machines" in certificate["guarantee"]
    assert held["guarantee"].startswith("Proven with the stated confidence")
    assert certificate["joint_confidence"].startswith("An estimate has no confidence")
    assert certificate["confidence_reached"] is None and held["confidence_reached"] >= 0.95
    labels = pq.read_table(world.storage.full(f"{people.folder}/labels.parquet")).to_pylist()
    eligible = [row for row in labels if row["origin"] == "random" and row["value"] == 1]
    calibrating = [row["held_out_score"] for row in eligible if row["split"] == "calibrate"]
    assert len(calibrating) + sum(row["split"] == "test" for row in eligible) == len(eligible)
    assert certificate["num_positives"] == len(calibrating) > 1.4 * held["num_positives"]
    assert certificate["threshold"] == people.threshold == sorted(calibrating)[certificate["rank"] - 1]
    assert all(row["held_out_score"] is None for row in labels if row["split"] == "test")
    # An auditor comes to the same threshold, and the machine in force gives the scores that stand beside it.
    used = FilterUsed(name="people", version=people.version, threshold=people.threshold, certificate_sha256="")
    again = recompute(read_certificate(world.storage, used), read_labels(world.storage, used))
    assert (again.num_positives, again.rank, again.threshold) == (len(calibrating), certificate["rank"], people.threshold)
    features = find_features(world.storage, world.partitions, [row["uid"] for row in labels])
    scores = Scorer([svm_from_bytes(world.storage.read_bytes(f"{people.folder}/svm.safetensors"))]).scores(features.features)[:, 0]
    assert scores.tolist() == [row["score"] for row in labels if row["uid"] in set(features.uids)]
    # What it estimates: it was 10 % of positives at most.
    truth = {uid: label[0] for uid, label in world.truth.items()}
    everything = find_features(world.storage, world.partitions, [uid for uid, value in truth.items() if value == 1])
    machine = Scorer([svm_from_bytes(world.storage.read_bytes(f"{people.folder}/svm.safetensors"))])
    assert np.mean(machine.scores(everything.features)[:, 0] < people.threshold) <= 0.1
    log = score_partition(world.storage, world.partitions[0], filters=filters_used(world.storage, [people]))
    assert log.counts["dropped_by_people"] > 0
    counts = {"embedded": 1, "kept": 1, "dropped_by_filter": {}, "dropped_by_reasons": {}}
    reported = {run.version: gather_filter(world.storage, used_as(world, run), world.partitions[:1], counts) for run in (people, runs[0])}
    assert (reported[people.version]["kind"], reported[people.version]["proven"]) == ("k_fold", False)
    assert (reported[runs[0].version]["kind"], reported[runs[0].version]["proven"]) == ("held_out", True)


def used_as(world, run):
    return FilterUsed(**filters_used(world.storage, [run])[0])


def test_a_k_fold_certificate_needs_the_positives_of_its_rule_too(tmp_path):
    world = make_world(tmp_path)
    plan = dataclasses.replace(PLAN, random_labels=60)
    config = dataclasses.replace(CONFIG, plan=plan, certificate="k_fold")
    with pytest.raises(NotEnoughLabels, match=r"people: \d+ calibration positives, .* takes 29: label about \d+ more"):
        learn(world, config, filters=("people",))


def test_labels_of_one_class_alone_are_refused(tmp_path):
    world = make_world(tmp_path)

    class Yes:
        name = "yes"

        def answer(self, filter_name, uids):
            return [1] * len(uids)

    with pytest.raises(NotEnoughLabels, match="people: 0 negatives to fit on, at least 10 are needed"):
        learn(world, filters=("people",), labeller=Yes())


def test_features_that_are_no_numbers_are_refused_before_anything_is_fitted(tmp_path):
    world = make_world(tmp_path)
    path = embeddings(world.partitions[0])
    found = read_features(world.storage, path)
    rows = found.features.copy()
    rows[:, 0] = np.nan
    write_embeddings(world.storage, path, found.uids, rows, np.random.default_rng(0))
    with pytest.raises((StepFailed, ConfigError), match="features must be finite numbers"):
        learn(world, filters=("people",))
    assert current_runs(world.storage, ("people",)) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelPlan(random_labels=-1), "random_labels must be 0 or more"),
        (lambda: LearnConfig(rounds=-1), "learn.rounds"),
        (lambda: LearnConfig(overrides={"cats": LabelPlan()}), "no filter 'cats'"),
        (lambda: LearnConfig(split=SplitConfig(calibrate_share=1.0)), "leave something for fitting"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_text_vectors_must_be_there_for_every_filter_that_searches(tmp_path):
    world = make_world(tmp_path)
    with pytest.raises(ConfigError, match="violence has no text vectors"):
        learn(world, filters=("violence",), text_vectors={})


def test_a_run_may_promise_less_than_the_catalogue_where_labels_are_few() -> None:
    config = LearnConfig(promises={"violence": 0.05})
    assert config.spec_of("violence").max_miss_rate == 0.05
    assert config.spec_of("people").max_miss_rate == FILTERS["people"].max_miss_rate


@pytest.mark.parametrize(("promises", "message"), [({"nudity": 0.1}, "no filter 'nudity'"), ({"people": 1.5}, "max_miss_rate must be")])
def test_a_promise_that_nobody_can_keep_is_refused(promises: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LearnConfig(promises=promises)
