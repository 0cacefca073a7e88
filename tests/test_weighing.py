"""Kept samples are weighed by a classifier that is learnt once, times their groups' weights; shards carry what a training reads."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from filters import weighing
from filters.importance import GRAIN, ImportanceConfig
from filters.weighing import (
    chosen_partitions,
    lay_weights,
    learn_importance,
    plan_shard_weights,
    read_sample,
    weigh_partition,
    write_weights_index,
)
from models.training_data import read_data, shard_weights
from winnow.duplicates import duplicates_file
from winnow.errors import ConfigError, ShardError
from winnow.partitions import run_step
from winnow.receipts import Work
from winnow.report.weights import gather_weights
from winnow.run_files import FILTERS_USED, sidecar
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.verify import verify
from winnow.weights import CLASSIFIER, WEIGHTS, read_classifier, shard_weights_file, shard_weights_index, weights_file
from winnow.workspace import decisions, embeddings

sys.path.insert(0, str(Path(__file__).parent))
from fake_workspace import make_workspace

CONFIG = ImportanceConfig(enabled=True, max_weight=4.0)
NAMES = ("00000-a", "00001-b", "00002-c")
DIM = 6


@pytest.fixture
def storage(tmp_path) -> Storage:
    """Decisions by a filter that drops what lies along the first axis, by chance; some rows are dropped for other reasons, too."""
    storage, rng = Storage(str(tmp_path)), np.random.default_rng(0)
    storage.write_text(FILTERS_USED, '[{"name": "people", "version": "v1", "threshold": 0.5, "certificate_sha256": ""}]')
    for number, name in enumerate(NAMES):
        uids = sorted(f"{value:032x}" for value in rng.integers(0, 2**62, 900))
        x = rng.normal(size=(900, DIM))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        dropped = rng.random(900) < 1 / (1 + np.exp(1 - 5 * x[:, 0]))
        reasons = [["people"] if one else [] for one in dropped]
        for row in range(0, 900, 30):
            reasons[row] = [*reasons[row], "caption_words"]
        verdicts = ["dropped" if own else "kept" for own in reasons]
        verdicts[number], reasons[number] = "failed", ["download:dns"]
        write_table(storage, decisions(name), pa.table({"uid": uids, "verdict": verdicts, "reasons": reasons}))
        there = [row for row in range(900) if row != number]
        feature = pa.FixedSizeListArray.from_arrays(pa.array(x[there].astype(np.float16).ravel(), pa.float16()), DIM)
        write_table(storage, embeddings(name), pa.table({"uid": [uids[row] for row in there], "feature": feature}))
    return storage


def learn(storage: Storage, config: ImportanceConfig = CONFIG) -> None:
    learn_importance(storage, "classifier", config=config, partitions=NAMES)


def test_the_sample_is_of_images_that_filters_alone_decide_on(storage):
    features, kept = read_sample(storage, NAMES, CONFIG)
    rows = [row for name in NAMES for row in read_table(storage, decisions(name)).to_pylist()]
    asked = [row for row in rows if row["verdict"] != "failed" and "caption_words" not in row["reasons"]]
    assert features.shape == (len(asked), DIM)
    assert kept.sum() == sum(row["verdict"] == "kept" for row in asked)
    small = dataclasses.replace(CONFIG, sample=200)
    some, _ = read_sample(storage, NAMES, small)
    again, _ = read_sample(storage, NAMES[::-1], small)
    assert len(some) == 200 and np.array_equal(some, again)
    assert not np.array_equal(some, read_sample(storage, NAMES, dataclasses.replace(small, seed=1))[0])


def test_of_many_partitions_a_few_are_read_whichever_come_first():
    names = [f"{number:05d}-x" for number in range(500)]
    few = chosen_partitions(names, dataclasses.replace(CONFIG, partitions=20))
    assert len(few) == 20 and few == sorted(few) == chosen_partitions(names[::-1], dataclasses.replace(CONFIG, partitions=20))
    assert 3 < sum(name < "00250" for name in few) < 17


def test_nothing_judged_is_said_before_anything_is_learnt(storage):
    for name in NAMES:
        table = read_table(storage, decisions(name))
        rows = [{**row, "verdict": "failed", "reasons": ["download:dns"]} for row in table.to_pylist()]
        write_table(storage, decisions(name), pa.Table.from_pylist(rows, table.schema))
    with pytest.raises(ConfigError, match="no image has been judged yet, so there is nothing to learn weights from"):
        learn(storage)


def test_weights_make_the_kept_like_those_before_filtering(storage):
    learn(storage)
    measured = read_classifier(storage)["measured"]
    assert measured["auc"] > 0.75 and measured["mean_weight"] == pytest.approx(1, abs=GRAIN)
    assert read_classifier(storage)["partitions"] == {"decided": 3, "read": 3}
    along, weights, everyone = [], [], []
    for name in NAMES:
        weigh_partition(storage, name, importance=True, duplicates=True)
        table = read_table(storage, weights_file(name))
        assert table.schema.equals(WEIGHTS)
        kept = sorted(row["uid"] for row in read_table(storage, decisions(name)).to_pylist() if row["verdict"] == "kept")
        assert table["uid"].to_pylist() == kept
        assert table["weight"] == table["importance"]
        embedded = read_table(storage, embeddings(name)).to_pylist()
        first = {row["uid"]: float(row["feature"][0]) for row in embedded}
        along += [first[uid] for uid in kept]
        everyone += list(first.values())
        weights += table["weight"].to_pylist()
    before, after, weighted = np.mean(everyone), np.mean(along), np.average(along, weights=weights)
    assert before - after > 0.08
    assert abs(weighted - before) < 0.3 * (before - after)
    told = gather_weights(storage, list(NAMES))
    assert told["samples"] == len(weights)
    assert told["mean"] == pytest.approx(np.mean(weights), rel=1e-6)
    assert told["effective_share"] == pytest.approx(np.sum(weights) ** 2 / np.sum(np.square(weights)) / len(weights), rel=1e-6)
    assert sum(entry["samples"] for entry in told["ranges"]) == len(weights)
    assert told["highest"] <= 4


def test_duplicates_share_their_groups_weight_on_top(storage):
    learn(storage)
    name = NAMES[0]
    weigh_partition(storage, name, importance=True, duplicates=True)
    alone = {row["uid"]: row["weight"] for row in read_table(storage, weights_file(name)).to_pylist()}
    some = sorted(alone)[:5]
    write_table(storage, duplicates_file(name), pa.table({"uid": some, "weight": [0.5, 0.25, 1.0, 0.5, 0.125]}))
    weigh_partition(storage, name, importance=True, duplicates=True)
    both = {row["uid"]: row["weight"] for row in read_table(storage, weights_file(name)).to_pylist()}
    assert [both[uid] / alone[uid] for uid in some] == [0.5, 0.25, 1.0, 0.5, 0.125]
    assert all(both[uid] == alone[uid] for uid in alone.keys() - set(some))
    weigh_partition(storage, name, importance=False, duplicates=True)
    assert [row["weight"] for row in read_table(storage, weights_file(name)).to_pylist()][:5] == [0.5, 0.25, 1.0, 0.5, 0.125]


def test_the_classifier_stands_when_partitions_come_and_falls_with_the_filters(storage):
    def go(filters: str, partitions: tuple[str, ...]) -> int:
        work = Work(name="classifier", inputs={"filters": filters}, arguments={"config": CONFIG}, unhashed={"partitions": partitions})
        return run_step(learn_importance, [work], storage, stage=weighing.LEARN, version=weighing.VERSION).ran

    assert (go("1", NAMES[:2]), go("1", NAMES), go("2", NAMES)) == (1, 0, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return Path(make_workspace(tmp_path_factory.mktemp("made"), rows=40, labels=300, trained=False).url)


@pytest.fixture
def whole(made, tmp_path) -> Storage:
    """A made-up run with weights beside its shards."""
    shutil.copytree(made, tmp_path / "run")
    return Storage(str(tmp_path / "run"))


def test_what_a_training_reads_are_the_weights_of_the_shards_samples_in_their_order(whole):
    data = read_data(whole.full("shards/kept"), weighted=True)
    (part,), (weights,) = data.parts, data.weights
    weight_of: dict[str, float] = {}
    for path in whole.walk("weights"):
        if path.endswith(".parquet"):
            weight_of |= {row["uid"]: row["weight"] for row in read_table(whole, path).to_pylist()}
    for shard in part.shards:
        uids = read_table(whole, sidecar("kept", shard.name))["uid"].to_pylist()
        assert shard_weights(part.url, shard, weights[shard.name]).tolist() == [weight_of[uid] for uid in uids]
    assert len(set(weight_of.values())) > 20


def test_a_shard_is_weighed_again_when_its_partitions_or_itself_change(whole):
    weighed = {name: "1" for name in ("a", "b", "c")}
    index = json.loads(whole.read_bytes("shards/kept/index.json"))
    for path in whole.walk("receipts/shard"):
        receipt = json.loads(whole.read_bytes(path)) | {"inputs": {"decisions/a": "", "raw/a": "", "decisions/b": ""}}
        whole.write_text(path, json.dumps(receipt))

    def marks(marks_of: dict[str, str]) -> list[str]:
        return [work.fingerprint("x", 1) for work in plan_shard_weights(whole, "kept", marks_of)]

    assert len(marks(weighed)) == len(index["shards"])
    assert marks(weighed) == marks(weighed | {"c": "2"})
    assert marks(weighed) != marks(weighed | {"b": "2"})
    before = marks(weighed)
    index["shards"][0]["sha256"] = "0" * 64
    whole.write_text("shards/kept/index.json", json.dumps(index))
    assert [one != other for one, other in zip(before, marks(weighed), strict=True)] == [True, *[False] * (len(before) - 1)]
    index["shards"].append({"name": "9.tar", "sha256": ""})
    whole.write_text("shards/kept/index.json", json.dumps(index))
    with pytest.raises(ShardError, match=r"shards/kept/9\.tar has no receipt; run `winnow shard CONFIG` again"):
        marks(weighed)


def test_a_sample_without_a_weight_is_named(whole):
    path = next(path for path in whole.walk("weights") if path.endswith(".parquet"))
    table = read_table(whole, path)
    write_table(whole, path, table.slice(1))
    stems = [shard["name"].removesuffix(".tar") for shard in json.loads(whole.read_bytes("shards/kept/index.json"))["shards"]]
    with pytest.raises(ShardError, match=rf"1 samples have no weight, {table['uid'][0]} for one. Run `winnow shard CONFIG`"):
        for stem in stems:
            lay_weights(whole, stem, dataset="kept")


def change_weight(storage: Storage) -> str:
    path = next(path for path in storage.walk("weights") if path.endswith(".parquet"))
    table = read_table(storage, path)
    rows = table.to_pylist()
    rows[0] |= {"importance": rows[0]["importance"] + 0.01, "weight": rows[0]["weight"] + 0.01}
    write_table(storage, path, pa.Table.from_pylist(rows, table.schema))
    return rf"{path}: {rows[0]['uid']} has importance .*, its features give"


def change_product(storage: Storage) -> str:
    path = next(path for path in storage.walk("weights") if path.endswith(".parquet"))
    table = read_table(storage, path)
    rows = table.to_pylist()
    rows[1]["weight"] *= 2
    write_table(storage, path, pa.Table.from_pylist(rows, table.schema))
    return rf"{path}: {rows[1]['uid']} has weight .*, its parts give"


def lose_a_sample(storage: Storage) -> str:
    path = next(path for path in storage.walk("weights") if path.endswith(".parquet"))
    write_table(storage, path, read_table(storage, path).slice(1))
    return rf"{path}: has \d+ samples, the decision log keeps"


def swap_beside_a_shard(storage: Storage) -> str:
    stem = json.loads(storage.read_bytes("shards/kept/index.json"))["shards"][0]["name"].removesuffix(".tar")
    path = shard_weights_file("kept", stem)
    with storage.open(path) as stream:
        weights = np.load(stream)
    weights[[0, 1]] = weights[[1, 0]]
    np.save(storage.full(path), weights)
    return rf"{path}: does not hold the weights of the shard's samples in their order"


def move_the_classifier(storage: Storage) -> str:
    content = read_classifier(storage)
    storage.write_text(CLASSIFIER, json.dumps(content | {"intercept": content["intercept"] + 0.1}))
    return r"weights/.*parquet: [0-9a-f]{32} has importance .*, its features give"


def lose_the_index(storage: Storage) -> str:
    storage.write_text(shard_weights_index("kept"), json.dumps({"dataset": "kept", "shards": []}))
    return r"shards/kept/weights/index.json: lists other shards than the dataset has: run weigh again"


@pytest.mark.parametrize("tamper", [change_weight, change_product, lose_a_sample, swap_beside_a_shard, move_the_classifier, lose_the_index])
def test_weights_that_were_tampered_with_are_named(whole, tamper):
    message = tamper(whole)
    found = [str(one) for one in verify(whole).findings if one.check == "weights"]
    assert any(re.search(message, line) for line in found), found


def test_the_index_of_weights_is_written_once_and_names_what_it_is_for(whole):
    content = write_weights_index(whole, "kept")
    index = json.loads(whole.read_bytes("shards/kept/index.json"))
    assert [(one["shard"], one["shard_sha256"]) for one in content["shards"]] == [(one["name"], one["sha256"]) for one in index["shards"]]
    before = Path(whole.full(shard_weights_index("kept"))).stat().st_mtime_ns
    write_weights_index(whole, "kept")
    assert Path(whole.full(shard_weights_index("kept"))).stat().st_mtime_ns == before
    shutil.rmtree(whole.full("shards/kept/weights"))
    with pytest.raises(ShardError, match="run `winnow weigh CONFIG`"):
        read_data(whole.full("shards/kept"), weighted=True)
