"""Audits, rounds of relabelling, drift and cards as the commands run them: on a run's workspace, by its config."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

from filters import catalog
from filters.audit_batch import AuditPlan
from filters.catalog import FILTERS
from filters.drift import DriftConfig
from filters.duplicates import DuplicateConfig
from filters.labels import LabelStore
from filters.learning import LabelPlan, LearnConfig
from filters.promotion import paused_by, read_promotions
from filters.relabel import RelabelConfig
from filters.search import read_features
from filters.svm import SvmConfig
from models.clip_embedder import ClipConfig
from tasks import auditing, cards, relabelling
from tasks.config import RunConfig
from tasks.filtering import filter_runs, fit_stage, label_store_path, score_stage
from tests.fake_workspace import give_receipt
from tests.filter_world import add_partition, make_world, write_embeddings
from tests.test_audit_batch import all_right, answer_all
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.workspace import embeddings, raw_table

NAME = "people"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workspace with a scored filter, as the stages leave it, and its config; labels come from a table."""
    root = tmp_path_factory.mktemp("run")
    (root / "urls.csv").write_text("url,caption\nhttp://example.org/a.jpg,a dog\n")
    (root / "manifest.yaml").write_text(
        "name: m\nsources:\n- {name: s, path: urls.csv, licence: CC0-1.0, columns: {url: url, caption: caption}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in FILTERS.items():
            patch.setitem(catalog.FILTERS, name, dataclasses.replace(spec, max_miss_rate=0.1))
        world = make_world(root / "workspace", partitions=3)
        listed(world.storage, world.partitions)
        config = RunConfig(
            workspace=str(root / "workspace"),
            manifest=str(root / "manifest.yaml"),
            workers=1,
            embed=ClipConfig(model="demo"),
            duplicates=DuplicateConfig(mode="off"),
            filters=(NAME,),
            labels=world.truth_file,
            learn=LearnConfig(
                plan=LabelPlan(random_labels=450, text_search_labels=0, boundary_labels=0),
                svm=SvmConfig(costs=(1.0,), gamma_scales=(1.0,)),
                rounds=0,
            ),
            relabel=RelabelConfig(boundary_labels=20, random_labels=30, gated=True),
            drift=DriftConfig(sample=80, permutations=199, min_p=0.01),
        )
        fit_stage(config)
        score_stage(config)
        yield config, world


def listed(storage: Storage, partitions: list[str]) -> None:
    index = {"partitions": [{"name": name, "rows": 250, "listed": 250} for name in partitions], "listed": 250 * len(partitions)}
    storage.write_text("manifest/index.json", json.dumps(index))
    for name in partitions:
        give_receipt(storage, "download", name, [raw_table(name)])
        give_receipt(storage, "embed", name, [embeddings(name)])


def test_a_round_runs_by_config_and_a_gated_fit_leaves_the_version_in_force_alone(run):
    config, world = run
    (before,) = filter_runs(world.storage, config)
    found = relabelling.relabel_filter(config, NAME)
    (after,) = filter_runs(world.storage, config)
    (row,) = read_promotions(world.storage, NAME)
    assert found.state == row["event"] and row["from"] == before.version
    assert after.version == (row["to"] if found.state == "promoted" else before.version)
    assert fit_stage(config).ran == 0
    assert filter_runs(world.storage, config)[0].version == after.version
    with pytest.raises(ConfigError, match="'violence' is not one of this run's filters"):
        relabelling.relabel_filter(config, "violence")


def test_an_audit_is_drawn_answered_and_put_on_the_card(run, tmp_path):
    config, world = run
    score_stage(config)
    batch = auditing.draw(config, NAME, AuditPlan(seed=5, count=40, honeypots=10, overlap=1, max_leak=0.5), person="eve")
    with LabelStore.open(label_store_path(world.storage, config)) as store:
        answer_all(store, batch, all_right)
    found, path = auditing.result(config, NAME, None, person="eve", command="winnow audit result run.yaml people")
    assert found["status"] == "pass" and json.loads(Path(path).read_text())["command"] == "winnow audit result run.yaml people"
    page = cards.write_card(config, NAME, out=str(tmp_path / "card.html"), version=None, table=None)
    said = BeautifulSoup(Path(page).read_text(), "html.parser").get_text(" ")
    assert "audit-5" in said and FILTERS[NAME].policy in said
    assert cards.write_card(config, NAME, out=None, version=None, table=None).endswith(f"/{NAME}/card-{found['version']}.html")
    with pytest.raises(ConfigError, match="no batch 'nope'"):
        auditing.result(config, NAME, "nope", person="eve", command="")


def test_drift_of_a_new_partition_pauses_promotion_until_a_person_resumes(run):
    config, world = run
    score_stage(config)
    assert relabelling.drift_stage(config).counts == {"people_not_measured": 0}
    moved = "00009-moved"
    add_partition(world.storage, moved, rows=400, failed=0.0, seed=99)
    shift_features(world.storage, moved)
    listed(world.storage, [*world.partitions, moved])
    score_stage(config)
    result = relabelling.drift_stage(config)
    assert result.counts == {"people_drifted": 400} and result.ran == 1
    assert relabelling.drift_stage(config).ran == 0
    assert "drift" in paused_by(world.storage, NAME)["reason"]
    row = relabelling.resume_promotion(config, NAME, person="eve", reason="labelled anew")
    assert row["pause"].startswith("drift") and paused_by(world.storage, NAME) is None
    with pytest.raises(ConfigError, match="is not paused"):
        relabelling.resume_promotion(config, NAME, person="eve", reason="again")


def shift_features(storage: Storage, name: str) -> None:
    """Moves every image of a partition the same way: another kind of source."""
    found = read_features(storage, embeddings(name))
    rows = found.features + 2 * np.eye(1, found.features.shape[1])
    write_embeddings(storage, embeddings(name), found.uids, rows / np.linalg.norm(rows, axis=1, keepdims=True), np.random.default_rng(0))
