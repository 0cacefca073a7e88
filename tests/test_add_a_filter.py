"""A new filter is one entry in the catalogue and labels; everything else picks it up."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from filters import catalog, scoring
from filters.catalog import FilterSpec
from filters.label_files import import_labels
from filters.labellers import TableLabeller
from filters.labels import LabelStore
from filters.learning import LabelPlan, LearnConfig, learn_filters, stopping_advice
from filters.svm import SvmConfig
from tasks.config import RunConfig
from tests.filter_world import make_world
from winnow.decisions import schema
from winnow.errors import ConfigError
from winnow.report.filters import gather_filter
from winnow.run_files import FilterUsed
from winnow.tables import read_table
from winnow.workspace import decisions

ENTRY = re.search(r"```python\n(.*?)```", (Path(__file__).parent.parent / "docs/add-a-filter.md").read_text(), re.DOTALL).group(1)
PLAN = LabelPlan(random_labels=600, text_search_labels=40, boundary_labels=30)


def test_without_its_entry_a_filter_is_unknown_everywhere():
    for make in (
        lambda: RunConfig(workspace="w", manifest="m", filters=("nudity",)),
        lambda: LearnConfig(promises={"nudity": 0.05}),
        lambda: catalog.filter_specs(("nudity",)),
    ):
        with pytest.raises(ConfigError, match="no filter"):
            make()


def test_one_entry_and_labels_make_a_filter(tmp_path, monkeypatch):
    world = make_world(tmp_path)
    table = pq.read_table(world.truth_file)
    pq.write_table(table.append_column("nudity", table.column("violence")), world.truth_file)
    spec = eval(ENTRY.replace("0.01", "0.1"), {"FilterSpec": FilterSpec})
    monkeypatch.setitem(catalog.FILTERS, spec.name, spec)

    assert RunConfig(workspace="w", manifest="m", filters=("people", "nudity"), imports={"nudity": "folder"}).filters[-1] == "nudity"
    config = LearnConfig(plan=PLAN, svm=SvmConfig(costs=(1.0,), gamma_scales=(1.0,)), overrides={"nudity": PLAN})
    vectors = world.text_vectors | {"nudity": world.text_vectors["violence"]}
    with LabelStore.open(world.storage.full("labels/labels.sqlite")) as store:
        by_hand = tmp_path / "nudity.csv"
        some = sorted(world.truth)[:5]
        by_hand.write_text("uid,value\n" + "".join(f"{uid},{world.truth[uid][1]}\n" for uid in some))
        assert import_labels(store, world.storage, "nudity", str(by_hand), origin="import", person="ada", partitions=world.partitions) == 5
        runs = learn_filters(
            world.storage,
            config,
            filters=("nudity",),
            partitions=world.partitions,
            labeller=TableLabeller.from_table(world.storage, world.truth_file, world.partitions),
            store=store,
            text_vectors=vectors,
            feature_digest="features-1",
        )
    assert [run.name for run in runs] == ["nudity"]
    assert "With" in stopping_advice(world.storage, runs[0])["advice"]
    scoring.check_features(world.storage, runs, "features-1")
    scoring.write_filters_json(world.storage, runs)
    counts = {"embedded": 0, "kept": 0, "dropped_by_filter": {}, "dropped_by_reasons": {}}
    for partition in world.partitions:
        found = scoring.score_partition(world.storage, partition, filters=scoring.filters_used(world.storage, runs)).counts
        counts["embedded"] += found["kept"] + found["dropped"]
        counts["kept"] += found["kept"]
        counts["dropped_by_filter"]["nudity"] = counts["dropped_by_filter"].get("nudity", 0) + found["dropped_by_nudity"]
    log = read_table(world.storage, decisions(world.partitions[0]))
    assert log.schema.equals(schema(("nudity",)))
    dropped = [row for row in log.to_pylist() if row["verdict"] == "dropped"]
    assert dropped and all(row["reasons"] == ["nudity"] for row in dropped)
    used = FilterUsed(**scoring.filters_used(world.storage, runs)[0])
    entry = gather_filter(world.storage, used, world.partitions, counts)
    assert (entry["title"], entry["proven"], entry["blurred"]) == ("Nudity", True, True)
    assert sum(entry["histogram"]) == counts["embedded"]
