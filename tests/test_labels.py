import os
import sqlite3
import subprocess
import sys

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from filters.label_files import import_labels
from filters.labellers import TableLabeller
from filters.labels import MIGRATIONS, Label, LabelStore
from tests.filter_world import make_world, url_of
from winnow.errors import ConfigError


@pytest.fixture
def store(tmp_path):
    with LabelStore.open(tmp_path / "labels" / "labels.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("labels"), partitions=2, rows=30)


def add(store, batch, origin, answers, name="people"):
    store.add_batch(name, batch, origin, answers, person="ada", policy="drop cats")


def test_the_latest_answer_counts_and_the_first_draw(store):
    add(store, "text_search-0", "text_search", {"a": 1, "b": 0})
    store.add_label("people", "a", 0, "boundary", batch="page", person="bob", policy="drop cats")
    assert store.labels("people") == [
        Label(uid="a", value=0, origin="text_search", batch="text_search-0"),
        Label(uid="b", value=0, origin="text_search", batch="text_search-0"),
    ]


def test_a_random_draw_stays_one_whatever_else_met_the_image(store):
    add(store, "text_search-0", "text_search", {"a": 1})
    add(store, "random-0", "random", {"a": 1, "b": 1})
    store.add_label("people", "b", 0, "audit", batch="page", person="bob", policy="drop cats")
    assert [(label.uid, label.value, label.origin, label.batch) for label in store.labels("people")] == [
        ("a", 1, "random", "random-0"),
        ("b", 0, "random", "random-0"),
    ]


def test_no_answer_is_remembered_but_is_no_label(store):
    add(store, "random-0", "random", {"a": None, "b": 1})
    store.add_label("people", "b", None, "random", batch="page", person="ada", policy="drop cats")
    assert store.labels("people") == []
    assert store.asked("people") == {"a": {"random"}, "b": {"random"}}


def test_filters_do_not_see_each_others_labels(store):
    add(store, "random-0", "random", {"a": 1})
    assert store.labels("violence") == []
    assert not store.has_batch("violence", "random-0")
    assert store.batches("people") == {"random-0": ("random", 1)}


def test_labels_are_never_changed_nor_removed(store):
    add(store, "random-0", "random", {"a": 1})
    with sqlite3.connect(store.path) as connection:
        for statement in ("UPDATE labels SET value = 0", "DELETE FROM labels"):
            with pytest.raises(sqlite3.IntegrityError, match="add a row"):
                connection.execute(statement)
    connection.close()
    assert store.labels("people")[0].value == 1


def test_a_batch_goes_in_once(store):
    add(store, "random-0", "random", {"a": 1})
    with pytest.raises(ConfigError, match=r"batch random-0 of people is in .* already"):
        add(store, "random-0", "random", {"b": 1})
    assert [label.uid for label in store.labels("people")] == ["a"]


@pytest.mark.parametrize(
    ("origin", "value", "message"), [("guess", 1, "unknown origin 'guess'"), ("random", 2, "must be 1 .drop., 0 .keep.")]
)
def test_wrong_answers_leave_nothing_behind(store, origin, value, message):
    with pytest.raises(ConfigError, match=message):
        add(store, "random-0", origin, {"a": 1, "b": value})
    assert store.batches("people") == {}
    assert store.labels("people") == []


def test_a_process_killed_within_a_batch_leaves_nothing_of_it(store):
    code = """
import os, sys
from filters.labels import LabelStore
with LabelStore.open(sys.argv[1]) as store:
    insert = store._insert
    def slow(connection, *rest):
        insert(connection, *rest)
        os._exit(9)
    store._insert = slow
    store.add_batch("people", "random-0", "random", {"a": 1, "b": 0}, person="ada", policy="p")
"""
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], env=os.environ, check=False)
    assert done.returncode == 9
    assert store.batches("people") == {}
    assert store.labels("people") == []
    add(store, "random-0", "random", {"a": 1, "b": 0})
    assert len(store.labels("people")) == 2


def test_opening_again_applies_no_migration_twice(store):
    add(store, "random-0", "random", {"a": 1})
    with LabelStore.open(store.path) as again:
        assert len(again.labels("people")) == 1
    with sqlite3.connect(store.path) as connection:
        assert [name for (name,) in connection.execute("SELECT name FROM migrations")] == list(MIGRATIONS)
    connection.close()


def test_a_store_of_a_newer_version_is_refused(store):
    with sqlite3.connect(store.path) as connection:
        connection.execute("INSERT INTO migrations VALUES ('9999-later', '')")
    connection.close()
    with pytest.raises(ConfigError, match=r"newer version of Winnow \(migration 9999-later\)"), LabelStore.open(store.path):
        pass


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "labels.sqlite").write_text("not a database, by any means: " * 40)
    with pytest.raises(ConfigError, match=r"labels.sqlite cannot be used"), LabelStore.open(tmp_path / "labels.sqlite"):
        pass
    with pytest.raises(ConfigError, match="cannot be opened"), LabelStore.open(tmp_path):
        pass


def test_labels_under_other_words_of_the_policy_are_told_apart(store):
    add(store, "random-0", "random", {"a": 1, "b": 0})
    store.add_label("people", "a", 1, "random", batch="page", person="ada", policy="drop cats and dogs")
    assert sorted(store.policy_versions("people").values()) == [1, 1]


def write(path, columns):
    (pc.write_csv if path.suffix == ".csv" else pq.write_table)(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("key", ["uid", "url"])
def test_labels_made_elsewhere_come_in_once(store, world, tmp_path, suffix, key):
    uids = list(world.truth)[:4]
    path = write(tmp_path / f"labels{suffix}", {key: uids if key == "uid" else [url_of(uid) for uid in uids], "value": [1, 0, None, 1]})
    settings = {"origin": "random", "person": "ada", "partitions": world.partitions}
    assert import_labels(store, world.storage, "people", path, **settings) == 4
    assert import_labels(store, world.storage, "people", path, **settings) == 0
    assert {label.uid: label.value for label in store.labels("people")} == {uids[0]: 1, uids[1]: 0, uids[3]: 1}
    assert {label.origin for label in store.labels("people")} == {"random"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uid": ["nobody"], "value": [1]}, r"1 of 1 images are not in the manifest, the first is uid nobody"),
        ({"name": ["a"], "value": [1]}, "neither a column 'uid' nor 'url'; it has name, value"),
        ({"uid": ["a"]}, "no column 'value'"),
        ({"uid": ["a"], "value": [7]}, r"the label of a must be 1 \(drop\), 0 \(keep\) or empty \(no answer\), got 7"),
        ({"uid": ["a"], "value": ["yes"]}, "got 'yes'"),
    ],
)
def test_label_files_that_cannot_be_used_are_refused_whole(store, world, tmp_path, columns, message):
    path = write(tmp_path / "labels.parquet", columns)
    with pytest.raises(ConfigError, match=message):
        import_labels(store, world.storage, "people", path, origin="random", person="ada", partitions=world.partitions)
    assert store.batches("people") == {}


def test_unknown_filters_origins_and_files_are_refused(store, world, tmp_path):
    settings = {"person": "ada", "partitions": world.partitions}
    with pytest.raises(ConfigError, match="no filter is named 'cats'; there are people, violence, hate_symbol"):
        import_labels(store, world.storage, "cats", "x.csv", origin="random", **settings)
    with pytest.raises(ConfigError, match="unknown origin 'guess'"):
        import_labels(store, world.storage, "people", "x.csv", origin="guess", **settings)
    with pytest.raises(ConfigError, match=r"x.csv cannot be read as CSV"):
        import_labels(store, world.storage, "people", str(tmp_path / "x.csv"), origin="random", **settings)


def test_a_table_answers_by_url_and_is_silent_where_it_is_empty(world, tmp_path):
    uids = list(world.truth)[:3]
    path = write(tmp_path / "truth.parquet", {"url": [url_of(uid) for uid in uids], "people": [1, None, 0]})
    labeller = TableLabeller.from_table(world.storage, path, world.partitions)
    assert labeller.answer("people", [uids[2], uids[1], uids[0], "unknown"]) == [0, None, 1, None]
    with pytest.raises(ConfigError, match=r"truth.parquet has no column 'violence' to label by; it has people"):
        labeller.answer("violence", uids)


def test_a_table_of_other_data_is_refused(world, tmp_path):
    path = write(tmp_path / "truth.parquet", {"url": ["http://elsewhere"], "people": [1]})
    with pytest.raises(ConfigError, match="none of its 1 rows names a url that the manifest lists"):
        TableLabeller.from_table(world.storage, path, world.partitions)
