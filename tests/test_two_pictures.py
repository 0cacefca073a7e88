"""What is judged side by side: which pairs come first, which captions two models share, and that nothing is asked twice."""

import json

import pyarrow as pa
import pytest

from filters.label_batches import batch_items
from filters.label_queue import decide
from filters.label_records import Decision
from filters.labels import LabelStore
from tasks.two_pictures import closest_pairs, comparisons, new_batch
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.tables import write_table


@pytest.fixture
def storage(tmp_path):
    storage = Storage(str(tmp_path / "run"))
    rows = [("u1", "s/1.png", 0.30, "u2", 0.10), ("u2", "s/2.png", 0.20, "u2", 0.20), ("u3", "s/3.png", 0.05, "u1", 0.40)]
    columns = ("uid", "sample", "distance_own", "nearest_uid", "distance_nearest")
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)} | {"prompt": ["one", "two", "three"]})
    write_table(storage, "regurgitation/pairs.parquet", table)
    for name, captions in (("old", {"u1": "one", "u2": "two", "u3": "three"}), ("new", {"u1": "one", "u2": "changed", "u3": "three"})):
        samples = [{"file": f"samples/{name}/{uid}.png", "uid": uid, "prompt": text, "seed": 1} for uid, text in captions.items()]
        storage.write_text(f"samples/{name}/index.json", json.dumps({"settings": {}, "samples": samples}))
    return storage


def test_pairs_come_closest_first_and_a_sample_whose_own_image_is_nearest_comes_once(storage):
    pairs = [(item.pictures["left"], item.pictures["right"], item.reason) for item in closest_pairs(storage)]
    assert pairs == [
        ("file:s/3.png", "uid:u3", "three"),
        ("file:s/1.png", "uid:u2", "one"),
        ("file:s/2.png", "uid:u2", "two"),
        ("file:s/1.png", "uid:u1", "one"),
        ("file:s/3.png", "uid:u1", "three"),
    ]


def test_models_are_compared_on_the_captions_they_share(storage):
    items = comparisons(storage, "old:new", seed=0)
    assert sorted((item.uid, item.reason) for item in items) == [("u1", "one"), ("u3", "three")]
    assert items[0].pictures == {"left": f"file:samples/old/{items[0].uid}.png", "right": f"file:samples/new/{items[0].uid}.png"}
    orders = {tuple(item.uid for item in comparisons(storage, "old:new", seed=seed)) for seed in range(8)}
    assert len(orders) == 2 and tuple(item.uid for item in items) in orders


def test_what_was_judged_is_not_asked_again(storage, tmp_path):
    with LabelStore.open(str(tmp_path / "labels.sqlite")) as store:
        first = new_batch(storage, store, "regurgitation", mode="pairs", count=2, overlap=None, seed=0)
        assert (first.name, first.overlap, first.details["of"]) == ("pairs-0", 1, 5)
        items = batch_items(store, first)
        answers = [Decision(key=f"k{i}", item=item.item, answer="no") for i, item in enumerate(items)]
        decide(store, first, answers, "ada", version="v", image_digest=lambda _: None)
        second = new_batch(storage, store, "regurgitation", mode="pairs", count=9, overlap=1, seed=0)
        assert len(batch_items(store, second)) == 3 and not {i.uid for i in batch_items(store, second)} & {i.uid for i in items}
        answers = [Decision(key=f"j{i}", item=item.item, answer="yes") for i, item in enumerate(batch_items(store, second))]
        decide(store, second, answers, "ada", version="v", image_digest=lambda _: None)
        with pytest.raises(ConfigError, match="all 5 pairs of regurgitation have been judged"):
            new_batch(storage, store, "regurgitation", mode="pairs", count=1, overlap=None, seed=0)


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("old", 'takes two folders of samples/ in place of a filter, such as "base:base-cfg"'),
        ("old:old", "takes two folders"),
        ("old:gone", "there is no samples/gone/index.json"),
        ("old:other", "share no caption"),
    ],
)
def test_a_comparison_that_cannot_be_says_why(storage, subject, message):
    storage.write_text("samples/other/index.json", json.dumps({"settings": {}, "samples": []}))
    with pytest.raises(ConfigError, match=message):
        comparisons(storage, subject, seed=0)


def test_pairs_need_the_regurgitation_stage(tmp_path):
    with pytest.raises(ConfigError, match="run `winnow regurgitation CONFIG` first"):
        closest_pairs(Storage(str(tmp_path)))
