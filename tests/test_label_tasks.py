"""Which batch `winnow label` works on, and what it lays beside it."""

import pytest

from filters.label_batches import batch_items
from filters.label_queue import decide
from filters.label_records import Decision
from filters.labels import LabelStore
from tasks import label_page
from tasks.config import RunConfig
from tests.fake_workspace import make_workspace
from winnow.errors import ConfigError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("run"), rows=40, trained=False)


@pytest.fixture
def label(workspace, tmp_path, monkeypatch):
    """Does all that `winnow label` does but serving; returns the desk's batch, its items, and the desk."""
    config = RunConfig(workspace=workspace.url, manifest="unused.yaml", label_store=str(tmp_path / "labels.sqlite"))
    found = []

    def look(desk, people, **_):
        found.append((desk.work, desk.session(people[0]), desk.claim(people[0], "tab-12345678", want=1)))

    monkeypatch.setattr(label_page, "serve", look)

    def start(filter_name="people", *, mode="query", batch=None, origin=None, count=5, overlap=None):
        settings = {"mode": mode, "batch": batch, "origin": origin, "count": count, "overlap": overlap}
        label_page.label(config, filter_name, people=["ada"], port=0, announce=lambda _: None, **settings)
        return found[-1]

    start.config = config
    return start


def answer_all(config, batch, person, answers):
    with LabelStore.open(config.label_store) as store:
        items = batch_items(store, batch)
        decisions = [
            Decision(key=f"{batch.name}-{person}-{item.position}", item=item.item, answer=answers[item.position % len(answers)])
            for item in items
        ]
        assert not decide(store, batch, decisions, person, version="v", image_digest=lambda _: None).refused
        return [item.uid for item in items]


def test_an_open_batch_goes_on_and_a_finished_one_makes_room_for_other_images(label):
    work, session, claimed = label()
    assert (work.batch.name, work.batch.origin, work.batch.wanted, work.batch.overlap) == ("query-0", "random", 5, 1)
    assert claimed["items"][0]["reason"] == "drawn at random" and claimed["progress"]["total"] == 5
    assert session["policy"] == work.policy
    assert label()[0].batch == work.batch
    first = answer_all(label.config, work.batch, "ada", ["yes", "no"])
    other, session, _ = label()
    assert other.batch.name == "query-1"
    assert {example["value"] for example in session["examples"]} == {0, 1}
    assert not set(answer_all(label.config, other.batch, "ada", ["no"])) & set(first)
    assert label(batch="query-0")[0].batch.name == "query-0"


def test_what_people_differ_on_is_adjudicated_and_the_first_answers_stay(label):
    work, _, _ = label(mode="calibrate", count=4)
    assert (work.batch.overlap, work.batch.origin) == (2, "random")
    uids = answer_all(label.config, work.batch, "ada", ["no"])
    with pytest.raises(ConfigError, match="people agree on every image of people"):
        label(mode="adjudicate")
    answer_all(label.config, work.batch, "bob", ["yes", "no"])
    with LabelStore.open(label.config.label_store) as store:
        assert sum(found.value for found in store.labels("people")) == 2
    settling, session, claimed = label(mode="adjudicate")
    assert claimed["progress"]["total"] == 2 and "bob" not in str(session)
    answer_all(label.config, settling.batch, "eve", ["no"])
    with LabelStore.open(label.config.label_store) as store:
        assert [(found.uid, found.value, found.origin) for found in store.labels("people")] == [(uid, 0, "random") for uid in sorted(uids)]
        assert store.conflicts("people") == [] and len(store.rows("people")) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_name": "cats"}, "there is no filter 'cats'"),
        ({"mode": "audit"}, "no open batch of mode audit, and none can be drawn here"),
        ({"batch": "gone"}, "people has no batch 'gone' to label; there are: none yet"),
        ({"mode": "triage", "origin": "random"}, "answers from a grid prove nothing"),
    ],
)
def test_what_cannot_be_labelled_is_refused_with_the_reason(label, settings, message):
    with pytest.raises(ConfigError, match=message):
        label(**settings)


def test_agreement_and_export_need_no_running_page(label, tmp_path):
    work, _, _ = label(mode="test", count=4)
    for person, answers in (("ada", ["yes", "no"]), ("bob", ["yes", "no", "no", "no"])):
        answer_all(label.config, work.batch, person, answers)
    found, pairs, people, conflicts = label_page.agreement(label.config, "people")
    assert pairs == {("ada", "bob"): (1, 1, 0, 2)} and conflicts == 1 and found.raw.value == 0.75
    assert [(person.person, person.answers) for person in people] == [("ada", 4), ("bob", 4)]
    assert label_page.export(label.config, "people", str(tmp_path / "labels.json")) == 8
