import json

import pytest

from filters.label_batches import batch_items, create_batch
from filters.label_files import COLUMNS, export_labels, import_labels, read_label_file
from filters.label_opinions import answer_of, standing
from filters.label_queue import decide
from filters.label_records import Decision, Item
from filters.labels import LabelStore
from tests.filter_world import make_world, url_of
from winnow.errors import ConfigError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("files"), partitions=2, rows=30)


@pytest.fixture
def filled(world, tmp_path):
    """A store with answers of two people on the page, one taken back, one honeypot, one report, and a table's labels."""
    uids = list(world.truth)
    with LabelStore.open(tmp_path / "filled.sqlite") as store:
        store.add_batch("people", "random-0", "random", {uids[8]: 1, uids[9]: None}, person="truth.csv", policy="p")
        items = [Item(uid=uid) for uid in uids[:5]] + [Item(uid=uids[5], kind="honeypot", expected=1)]
        own = create_batch(store, "people", "test", items, mode="test", origin="random", seed=0)
        for person, said in (("ada", "yes no unsure skip no no"), ("bob, junior", "yes yes no no report no")):
            names = {item.uid: item.item for item in batch_items(store, own)}
            decisions = [
                Decision(
                    key=f"{person}-{uid}",
                    item=names[uid],
                    answer=answer,
                    seconds=1.25,
                    blur="revealed",
                    zoomed=True,
                    flagged=answer == "no",
                )
                for uid, answer in zip(uids[:6], said.split(), strict=True)
            ]
            decide(store, own, decisions, person, version="v1", image_digest=lambda item: f"digest of {item.uid}")
        back = Decision(key="back", item=names[uids[3]], answer="undo", undoes=f"bob, junior-{uids[3]}")
        decide(store, own, [back], "bob, junior", version="v1", image_digest=lambda _: None)
        yield store


def told(store):
    """Everything about the standing answers that a file has to carry."""
    rows = [row for row in standing(store.rows("people")) if row.kind == "item" and row.uid not in store.blocked()]
    kept = (
        "uid",
        "value",
        "person",
        "origin",
        "mode",
        "policy_version",
        "seconds",
        "blur",
        "zoomed",
        "flagged",
        "item_digest",
        "created_at",
    )
    return sorted((answer_of(row), *(str(getattr(row, name)) for name in kept)) for row in rows)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_what_is_written_can_be_read_again_with_nothing_lost(filled, world, tmp_path, suffix):
    path = str(tmp_path / f"labels{suffix}")
    count = export_labels(filled, "people", path, storage=world.storage, partitions=world.partitions)
    with LabelStore.open(tmp_path / "other.sqlite") as other:
        settings = {"origin": "boundary", "person": "nobody", "partitions": world.partitions}
        assert import_labels(other, world.storage, "people", path, **settings) == count == len(told(filled))
        assert told(other) == told(filled)
        assert {label.uid: (label.value, label.unsure, label.conflict) for label in other.labels("people")} == {
            label.uid: (label.value, label.unsure, label.conflict) for label in filled.labels("people")
        }
        assert import_labels(other, world.storage, "people", path, **settings) == 0
    assert import_labels(filled, world.storage, "people", path, **settings) == 0


def test_reported_images_and_honeypots_are_never_written(filled, world, tmp_path):
    path = str(tmp_path / "labels.csv")
    export_labels(filled, "people", path)
    table = read_label_file(path)
    assert table.column_names == list(COLUMNS)
    uids = list(world.truth)
    assert not {uids[4], uids[5]} & set(table.column("uid").to_pylist())


def test_an_export_of_label_studio_is_understood(world, tmp_path):
    uids = list(world.truth)[:4]
    choice = {"type": "choices", "value": {"choices": ["drop"]}}
    tasks = [
        {"data": {"image": url_of(uids[0])}, "annotations": [{"completed_by": 7, "result": [choice], "lead_time": 2.5}]},
        {
            "data": {"image": url_of(uids[1])},
            "annotations": [{"completed_by": {"email": "bob@example.org"}, "result": [], "was_cancelled": True}],
        },
        {"data": {"image": url_of(uids[2])}, "annotations": []},
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        assert import_labels(store, world.storage, "people", str(path), origin="random", person="eve", partitions=world.partitions) == 2
        rows = {row.uid: row for row in store.rows("people")}
    assert (rows[uids[0]].value, rows[uids[0]].person, rows[uids[0]].seconds) == (1, "7", 2.5)
    assert (rows[uids[1]].value, rows[uids[1]].person) == (None, "bob@example.org")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read as JSON"),
        ('{"data": {}}', "is not what Label Studio exports"),
        ('[{"data": {"text": "x"}}]', "not every task's data has a 'uid', a 'url' or an 'image'"),
        (
            '[{"data": {"uid": "x"}, "annotations": [{"result": [{"type": "choices", "value": {"choices": ["cat"]}}]}]}]',
            "x has the choice cat",
        ),
    ],
)
def test_other_json_is_refused_with_the_reason(world, tmp_path, content, message):
    path = tmp_path / "export.json"
    path.write_text(content)
    with LabelStore.open(tmp_path / "labels.sqlite") as store, pytest.raises(ConfigError, match=message):
        import_labels(store, world.storage, "people", str(path), origin="random", person="eve", partitions=world.partitions)


def test_a_file_that_contradicts_itself_or_the_store_is_refused_whole(world, tmp_path):
    uids = list(world.truth)[:3]
    path = tmp_path / "labels.csv"
    settings = {"origin": "random", "person": "ada", "partitions": world.partitions}
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        path.write_text(f"uid,value\n{uids[0]},1\n{uids[0]},0\n{uids[1]},1\n")
        with pytest.raises(ConfigError, match=f"ada says both 'yes' and 'no' of {uids[0]}"):
            import_labels(store, world.storage, "people", str(path), **settings)
        assert store.rows("people") == []
        path.write_text(f"uid,value\n{uids[0]},1\n{uids[1]},1\n")
        assert import_labels(store, world.storage, "people", str(path), **settings) == 2
        path.write_text(f"uid,value\n{uids[0]},0\n{uids[1]},1\n{uids[2]},0\n")
        with pytest.raises(
            ConfigError, match=r"1 of 2 labels contradict the store, .*: the file says keep, the store drop. Nothing was imported"
        ):
            import_labels(store, world.storage, "people", str(path), **settings)
        assert len(store.rows("people")) == 2
        assert import_labels(store, world.storage, "people", str(path), replace=True, **settings) == 2
        assert {label.uid: label.value for label in store.labels("people")} == {uids[0]: 0, uids[1]: 1, uids[2]: 0}
        assert [row.value for row in store.rows("people") if row.uid == uids[0]] == [1, 0]


def test_labels_are_written_in_the_forms_there_are(filled, tmp_path):
    with pytest.raises(ConfigError, match=r"labels are written as .csv, .parquet or .json"):
        export_labels(filled, "people", str(tmp_path / "labels.txt"))
    with pytest.raises(ConfigError, match=r"nowhere/labels.csv cannot be written"):
        export_labels(filled, "people", str(tmp_path / "nowhere" / "labels.csv"))
