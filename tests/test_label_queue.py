import os
import sqlite3
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DatabaseError

from filters.label_batches import batch_items, create_batch, events, find_batch, record_event
from filters.label_opinions import answer_of, settle, standing
from filters.label_progress import decision_times, progress, recent
from filters.label_queue import LEASE_SECONDS, _insert_once, claim, decide, release
from filters.label_records import Decision, Item, Row
from filters.label_schema import GROWING, MIGRATIONS, tables
from filters.labels import LabelStore
from winnow.errors import ConfigError


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        target = tmp_path / "labels.sqlite"
    else:
        target = os.environ.get("WINNOW_TEST_POSTGRES")
        if not target:
            pytest.skip("WINNOW_TEST_POSTGRES does not name a database that may be emptied")
        _empty(target)
    with LabelStore.open(target) as opened:
        yield opened


def _empty(url):
    import sqlalchemy as sa

    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()


def batch(store, count=10, *, name="one", mode="query", overlap=1, **settings):
    items = [Item(uid=f"u{i:03}", origin="boundary") for i in range(count)]
    seed = 3 if mode in ("audit", "calibrate", "test") else None
    return create_batch(store, "people", name, items, mode=mode, origin="boundary", overlap=overlap, seed=seed, **settings)


def say(store, own, person, item, answer, key, **more):
    decision = Decision(key=key, item=item.item, answer=answer, **more)
    return decide(store, own, [decision], person, version="v", image_digest=lambda _: "d" * 64)


def uids(items):
    return [item.uid for item in items]


def test_two_people_never_hold_the_same_item_unless_asked_to(store):
    own = batch(store)
    ada, bob = claim(store, own, "ada", "t1", want=4), claim(store, own, "bob", "t2", want=4)
    assert uids(ada) == ["u000", "u001", "u002", "u003"] and uids(bob) == ["u004", "u005", "u006", "u007"]
    both = batch(store, name="two", overlap=2)
    assert uids(claim(store, both, "ada", "t1", want=4)) == uids(claim(store, both, "bob", "t2", want=4))
    assert uids(claim(store, both, "eve", "t3", want=2)) == ["u004", "u005"]


def test_two_tabs_of_one_person_hold_different_items_and_a_tab_finds_its_own_again(store):
    own = batch(store)
    first = claim(store, own, "ada", "t1", want=3)
    assert uids(claim(store, own, "ada", "t2", want=3)) == ["u003", "u004", "u005"]
    assert claim(store, own, "ada", "t1", want=3) == first


def test_a_lease_ends_by_time_by_decision_and_by_release(store):
    own = batch(store, 3)
    held = claim(store, own, "ada", "t1", want=2, at=1000.0)
    assert uids(claim(store, own, "bob", "t2", want=3, at=1001.0)) == ["u002"]
    assert uids(claim(store, own, "bob", "t2", want=3, at=1000.0 + LEASE_SECONDS)) == ["u000", "u001", "u002"]
    release(store, own, "bob", tab="t2")
    assert progress(store, own, "eve", at=1001.0 + LEASE_SECONDS).held == 0
    claim(store, own, "ada", "t1", want=2, at=5000.0)
    say(store, own, "ada", held[0], "yes", "k-1")
    seen = progress(store, own, "bob", at=5001.0)
    assert (seen.held, seen.held_until, seen.complete, seen.total) == (1, 5000.0 + LEASE_SECONDS, 1, 3)


def test_a_decision_sent_many_times_is_there_once_and_says_so_each_time(store):
    own = batch(store)
    item = claim(store, own, "ada", "t", want=1)[0]
    for _ in range(3):
        done = say(store, own, "ada", item, "yes", "key-1")
        assert done.saved == ("key-1",) and done.refused == {}
    assert len(store.rows("people")) == 1


def test_what_is_taken_back_is_asked_again_and_both_rows_stay(store):
    own = batch(store, 2)
    item = claim(store, own, "ada", "t", want=1)[0]
    say(store, own, "ada", item, "yes", "key-1")
    assert uids(claim(store, own, "ada", "t", want=5)) == ["u001"]
    say(store, own, "ada", item, "undo", "key-2", undoes="key-1")
    assert store.labels("people") == [] and recent(store, own, "ada") == []
    assert uids(claim(store, own, "ada", "t", want=5)) == ["u000", "u001"]
    assert [row.answer for row in store.rows("people")] == ["yes", "undo"]


def test_nobody_takes_back_what_another_person_said(store):
    own = batch(store, 2)
    item = claim(store, own, "ada", "t", want=1)[0]
    say(store, own, "ada", item, "yes", "key-1")
    say(store, own, "bob", item, "undo", "key-2", undoes="key-1")
    assert [label.value for label in store.labels("people")] == [1]


def test_a_skip_is_no_answer_others_get_the_item_and_the_skipper_may_ask_for_it(store):
    own = batch(store, 2)
    item = claim(store, own, "ada", "t", want=1)[0]
    say(store, own, "ada", item, "skip", "key-1")
    assert uids(claim(store, own, "ada", "t", want=5)) == ["u001"]
    assert uids(claim(store, own, "ada", "t", want=5, again=True)) == ["u000"]
    release(store, own, "ada")
    assert uids(claim(store, own, "bob", "t2", want=1)) == ["u000"]


@pytest.mark.parametrize(
    ("decision", "why"),
    [
        (Decision(key="k", item="nothing", answer="yes"), "batch one has no item 'nothing'"),
        (Decision(key="k", item="", answer="tie"), "'tie' is no answer in mode query"),
        (Decision(key="k", item="", answer="undo"), "an undo names the decision"),
        (Decision(key="k", item="", answer="yes", undoes="x"), "an undo names the decision"),
        (Decision(key="", item="", answer="yes"), "cannot be"),
        (Decision(key="k", item="", answer="yes", seconds=float("nan")), "cannot be"),
    ],
)
def test_a_decision_that_cannot_be_is_refused_with_the_reason_and_the_others_are_saved(store, decision, why):
    own = batch(store)
    first, second = claim(store, own, "ada", "t", want=2)
    wrong = Decision(**{**{name: getattr(decision, name) for name in Decision.__slots__}, "item": decision.item or first.item})
    done = decide(store, own, [wrong, Decision(key="good", item=second.item, answer="no")], "ada", version="v", image_digest=lambda _: None)
    assert done.saved == ("good",) and why in done.refused[wrong.key]
    assert [row.uid for row in store.rows("people")] == [second.uid]


def test_reported_images_are_blocked_everywhere_and_are_no_labels(store):
    own = batch(store)
    item = claim(store, own, "ada", "t", want=1)[0]
    say(store, own, "bob", item, "yes", "key-0")
    say(store, own, "ada", item, "report", "key-1")
    assert store.blocked() == {"u000"} and store.labels("people") == []
    other = batch(store, name="two")
    assert "u000" not in uids(claim(store, other, "eve", "t", want=10))
    assert progress(store, other, "eve").total == 9


def test_a_blind_batch_is_shuffled_by_its_seed_and_asks_two_people(store):
    items = [Item(uid=f"u{i}") for i in range(30)]
    made = create_batch(store, "people", "blind", items, mode="test", origin="random", seed=1)
    order = uids(batch_items(store, made))
    assert made.overlap == 2 and order != [item.uid for item in items] and sorted(order) == sorted(item.uid for item in items)
    again = create_batch(store, "violence", "blind", items[::-1], mode="test", origin="random", seed=1)
    assert uids(batch_items(store, again)) == order
    assert find_batch(store, "people", "blind") == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "test"}, "mode test needs a seed"),
        ({"mode": "table"}, "nothing is labelled on the page in mode 'table'"),
        ({"origin": "guess"}, "unknown origin 'guess'"),
        ({"overlap": 0}, "overlap must be at least 1"),
        ({"items": []}, "at least one item"),
        ({"items": [Item(uid="a"), Item(uid="a")]}, "has a twice"),
        ({"items": [Item(uid="a", kind="honeypot")]}, "a is a honeypot; honeypots and training items have a known answer"),
        ({"items": [Item(uid="a", expected=1)]}, "a is a item; honeypots"),
        ({"mode": "triage"}, "answers from a grid prove nothing"),
        ({"mode": "pairs"}, "needs two pictures, left and right, got none"),
    ],
)
def test_batches_that_cannot_be_are_refused_whole(store, change, message):
    settled = {"items": [Item(uid="a")], "mode": "query", "origin": "random"} | change
    with pytest.raises(ConfigError, match=message):
        create_batch(store, "people", "one", settled.pop("items"), **settled)
    assert store.all_batches("people") == []


def test_a_batch_is_made_once_and_an_unknown_one_is_named_with_the_known(store):
    batch(store)
    with pytest.raises(ConfigError, match=r"batch one of people is in .* already"):
        batch(store)
    with pytest.raises(ConfigError, match="people has no batch 'two' to label; there are: one"):
        find_batch(store, "people", "two")


def test_waiting_items_need_not_be_drawn_again_but_have_not_been_asked(store):
    batch(store, 2)
    assert store.asked("people") == {}
    assert store.drawn("people") == {"u000": {"boundary"}, "u001": {"boundary"}}


def test_answers_to_honeypots_are_no_labels(store):
    items = [Item(uid="a"), Item(uid="b", kind="honeypot", expected=1)]
    own = create_batch(store, "people", "audit", items, mode="audit", origin="audit", seed=0, overlap=1)
    for number, item in enumerate(batch_items(store, own)):
        say(store, own, "ada", item, "no", f"key-{number}")
    assert uids(store.labels("people")) == ["a"]
    assert set(store.asked("people")) == set(store.drawn("people")) == {"a"}


def test_tables_that_grow_refuse_to_change_or_forget(store):
    from sqlalchemy import text

    own = batch(store)
    say(store, own, "ada", claim(store, own, "ada", "t", want=1)[0], "report", "key-1")
    record_event(store, own, "opened", "ada", {"why": "work"})
    assert [event[:2] + event[3:] for event in events(store, own)] == [("opened", "ada", {"why": "work"})]
    for table in GROWING:
        for statement in (f"UPDATE {table} SET filter = 'x'", f"DELETE FROM {table}"):
            with pytest.raises((ConfigError, DatabaseError), match="never"), store.database.writing() as connection:
                connection.execute(text(statement))


def test_many_at_once_get_every_item_once(store):
    own = batch(store, 60)
    got, problems = [], []

    def work(person):
        try:
            while found := claim(store, own, person, "tab", want=5):
                for item in found:
                    say(store, own, person, item, "no", f"{person}-{item.uid}")
                    got.append(item.uid)
        except Exception as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=(f"p{i}",)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == [] and sorted(got) == [f"u{i:03}" for i in range(60)]
    assert progress(store, own, "p0").complete == 60


def test_the_curve_counts_answers_and_positives_of_everybody(store):
    own = batch(store, 4)
    for number, (item, answer) in enumerate(zip(batch_items(store, own), ("yes", "no", "yes", "skip"), strict=True)):
        say(store, own, "ada", item, answer, f"key-{number}")
    seen = progress(store, own, "ada")
    assert (seen.curve, seen.mine, seen.skipped, seen.positives) == (((1, 1), (2, 1), (3, 2)), 3, 1, 2)
    assert len(decision_times(store, "ada", count=3)) == 3


FIRST_VERSION = """
CREATE TABLE migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL);
INSERT INTO migrations VALUES ('0001-labels-and-batches', '2026-01-01T00:00:00+00:00');
CREATE TABLE batches (
    filter TEXT NOT NULL, batch TEXT NOT NULL, origin TEXT NOT NULL, wanted INTEGER NOT NULL, created_at TEXT NOT NULL,
    PRIMARY KEY (filter, batch)
);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT, filter TEXT NOT NULL, uid TEXT NOT NULL, value INTEGER CHECK (value IN (0, 1)),
    origin TEXT NOT NULL CHECK (origin IN ('random', 'text_search', 'boundary', 'neighbour', 'import', 'audit')),
    batch TEXT NOT NULL, person TEXT NOT NULL, policy_version TEXT NOT NULL, created_at TEXT NOT NULL
);
CREATE INDEX labels_by_image ON labels (filter, uid, id);
CREATE TRIGGER labels_stay BEFORE UPDATE ON labels BEGIN SELECT RAISE(ABORT, 'labels are never changed: add a row'); END;
CREATE TRIGGER labels_are_kept BEFORE DELETE ON labels BEGIN SELECT RAISE(ABORT, 'labels are never removed: add a row'); END;
INSERT INTO batches VALUES ('people', 'random-0', 'random', 3, '2026-01-01T00:00:00+00:00');
INSERT INTO labels (filter, uid, value, origin, batch, person, policy_version, created_at) VALUES
    ('people', 'a', 1, 'random', 'random-0', 'truth.parquet', 'p', '2026-01-01T00:00:00+00:00'),
    ('people', 'b', 0, 'random', 'random-0', 'truth.parquet', 'p', '2026-01-01T00:00:00+00:00'),
    ('people', 'c', NULL, 'random', 'random-0', 'truth.parquet', 'p', '2026-01-01T00:00:00+00:00');
"""
"""What a store of the first version is, written down as that version made it."""


def test_a_store_of_the_first_version_is_brought_up_to_date_with_all_its_labels(tmp_path):
    path = tmp_path / "labels.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_VERSION)
    connection.close()
    with LabelStore.open(path) as store:
        assert [(label.uid, label.value, label.origin, label.batch) for label in store.labels("people")] == [
            ("a", 1, "random", "random-0"),
            ("b", 0, "random", "random-0"),
        ]
        assert store.asked("people")["c"] == {"random"}
        assert store.batches("people") == {"random-0": ("random", 3)}
        own = batch(store)
        say(store, own, "ada", claim(store, own, "ada", "t", want=1)[0], "yes", "key-1")
        assert len(store.labels("people")) == 3


def test_every_migration_has_statements_for_postgres_and_none_of_sqlites_words():
    for migration in MIGRATIONS.values():
        script = " ".join(migration.statements("postgresql"))
        assert "AUTOINCREMENT" not in script and "RAISE(ABORT" not in script
        assert script.count("CREATE TABLE") == 0 or script.count("CREATE TRIGGER") >= 1


def test_the_insert_that_happens_once_is_valid_for_postgres():
    class Postgres:
        class database:
            dialect = "postgresql"

    statement = _insert_once(Postgres, tables().labels, {"uid": "a", "idempotency_key": "k"}, "idempotency_key")
    text = str(statement.compile(dialect=postgresql.dialect()))
    assert text.endswith("ON CONFLICT (idempotency_key) DO NOTHING")


def test_without_sqlalchemy_the_modules_import_and_a_store_says_what_is_missing():
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"sqlalchemy", "fastapi", "uvicorn", "pyarrow", "pydantic", "PIL", "ray", "prefect", "fsspec"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import filters.agreement, filters.label_batches, filters.label_progress, filters.label_queue
import filters.label_page.settings, filters.label_page.breaks
from filters.labels import LabelStore
from winnow.errors import ConfigError
try:
    with LabelStore.open("/nowhere/labels.sqlite"):
        pass
except ConfigError as problem:
    print(problem)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("the label store needs SQLAlchemy"), done.stderr


def row(number, uid, answer, person, mode="query", **more):
    value = {"yes": 1, "no": 0}.get(answer)
    given = {"origin": "random", "batch": "b", "policy_version": "p", "created_at": "", "idempotency_key": f"k{number}"} | more
    return Row(id=number, uid=uid, value=value, answer=answer, person=person, mode=mode, **given)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([("yes", "ada", "query"), ("no", "bob", "query")], (1, False, True)),
        ([("yes", "ada", "query"), ("no", "ada", "query")], (0, False, False)),
        ([("yes", "ada", "query"), ("no", "bob", "query"), ("no", "eve", "adjudicate")], (0, False, False)),
        ([("no", "ada", "audit"), ("unsure", "bob", "audit")], (1, True, True)),
        ([("unsure", "ada", "test")], (1, True, False)),
        ([("unsure", "ada", "query")], None),
        ([("unsure", "ada", "query"), ("no", "bob", "query")], (0, False, False)),
        ([("yes", "table", "table"), ("no", "ada", "query")], (0, False, False)),
        ([("no", "ada", "query"), ("yes", "table", "table")], (0, False, False)),
        ([("no", "table", "table"), ("yes", "ada", "triage")], (0, False, False)),
        ([("skip", "ada", "query")], None),
    ],
)
def test_whose_word_counts(said, expected):
    rows = [row(number, "a", *entry) for number, entry in enumerate(said)]
    found = settle(rows)
    assert ([(label.value, label.unsure, label.conflict) for label in found] or [None]) == [expected]


def test_an_image_drawn_at_random_and_known_from_a_grid_alone_is_no_random_label():
    rows = [row(1, "a", "skip", "ada", origin="random"), row(2, "a", "yes", "ada", mode="triage", origin="text_search", batch="grid")]
    assert [(label.origin, label.batch) for label in settle(rows)] == [("text_search", "grid")]
    assert settle([*rows, row(3, "a", "no", "bob")])[0].origin == "random"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["yes", "no", "skip", "undo"]), st.sampled_from(["ada", "bob"])), max_size=14)
)
def test_taking_back_everything_leaves_nothing(entries):
    rows = []
    for number, (uid, answer, person) in enumerate(entries):
        last = [earlier for earlier in standing(rows) if earlier.person == person]
        if answer != "undo":
            rows.append(row(number, uid, answer, person))
        elif last:
            rows.append(row(number, last[-1].uid, "undo", person, undoes=last[-1].idempotency_key))
    left = standing(rows)
    assert len(left) == len(rows) - 2 * sum(answer_of(entry) == "undo" for entry in rows)
    undone = [row(100 + i, entry.uid, "undo", entry.person, undoes=entry.idempotency_key) for i, entry in enumerate(left)]
    assert settle([*rows, *undone]) == []


def test_the_next_items_are_found_without_reading_a_persons_rows_for_each(tmp_path):
    # SQLite counts the instructions of its virtual machine: with the wrong index their number grows with the square of the answers.
    with LabelStore.open(tmp_path / "labels.sqlite") as store:
        own = batch(store, 400, overlap=2)
        for person in ("ada", "bob"):
            decisions = [Decision(key=f"{person}{item.position}", item=item.item, answer="no") for item in batch_items(store, own)[:300]]
            decide(store, own, decisions, person, version="v", image_digest=lambda _: None)
        thousands = 0

        def count():
            nonlocal thousands
            thousands += 1

        with store.database.reading() as connection:
            raw = connection.connection.driver_connection
        raw.set_progress_handler(count, 1000)
        found = claim(store, own, "ada", "tab-12345678", want=5)
        assert uids(found) == [f"u{i}" for i in range(300, 305)]
        assert 0 < thousands < 100  # 557 with the index of a person's rows
