import json

import pytest
from bs4 import BeautifulSoup

from filters.audit_batch import AuditPlan, draw_audit
from filters.audit_result import audit_result
from filters.card import GLIDE_CAVEAT, gather_card, version_used
from filters.card_page import render_card
from filters.catalog import FILTERS
from filters.labels import LabelStore
from filters.promotion import note
from tests.fake_workspace import FILTERS as FAKED
from tests.fake_workspace import HOSTILE, make_workspace
from tests.test_audit_batch import all_right, answer_all
from winnow.errors import ConfigError
from winnow.report.audits import audit_path
from winnow.run_files import filters_used
from winnow.tables import read_table

HOSTILE_PERSON = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A run whose people filter was labelled by two, audited, and paused."""
    storage = make_workspace(tmp_path_factory.mktemp("carded"), trained=False)
    with LabelStore.open(tmp_path_factory.mktemp("labels") / "labels.sqlite") as store:
        used = filters_used(storage)[0]
        rows = read_table(storage, used.labels_path, ["uid", "value"]).to_pylist()
        answers = {row["uid"]: row["value"] for row in rows}
        store.add_batch("people", "first", "random", answers, person="ada", policy=FILTERS["people"].policy)
        batch = draw_audit(storage, store, "people", AuditPlan(seed=7, count=30, honeypots=8, overlap=2, max_leak=0.5), person="eve")
        answer_all(store, batch, all_right)
        answer_all(store, batch, all_right, person=HOSTILE_PERSON)
        found = audit_result(storage, store, batch, person="eve", command="winnow audit result")
        storage.write_text(audit_path("people", batch.name), json.dumps(found))
        note(storage, "people", "paused", {"reason": "drift: <b>scores</b>"})
        cards = {name: gather_card(storage, name, store=store) for name in FAKED}
        yield storage, cards, {name: render_card(storage, card) for name, card in cards.items()}


def text(page):
    return " ".join(BeautifulSoup(page, "html.parser").get_text(" ").split())


@pytest.mark.parametrize("name", FAKED)
def test_a_card_shows_policy_certificate_threshold_and_limits_of_every_filter(workspace, name):
    _, cards, pages = workspace
    said, entry = text(pages[name]), cards[name]["entry"]
    assert entry["policy"] in said and entry["sentence"] in said and cards[name]["version"] in said
    assert f"{entry['threshold']:.6g}" in said and f"{entry['num_positives']:,} positives" in said
    assert all(" ".join(line.split()) in said for line in cards[name]["not_covered"])
    assert "<svg" in pages[name]


def test_the_card_runs_nothing_fetches_nothing_and_escapes_what_strangers_wrote(workspace):
    _, _, pages = workspace
    for page in pages.values():
        soup = BeautifulSoup(page, "html.parser")
        assert not soup.find_all(["script", "iframe", "link", "object", "form"])
        assert all(image["src"].startswith("data:image/jpeg;base64,") for image in soup.find_all("img"))
        assert not any(name.startswith("on") for tag in soup.find_all(True) for name in tag.attrs)
        policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})
        assert "default-src 'none'" in policy["content"]
        assert not any(caption in page for caption in HOSTILE if "<" in caption)
    assert HOSTILE_PERSON in text(pages["people"]) and "drift: <b>scores</b>" in text(pages["people"])


def test_every_image_of_a_card_is_behind_a_veil(workspace):
    _, _, pages = workspace
    images = [image for page in pages.values() for image in BeautifulSoup(page, "html.parser").find_all("img")]
    assert images and all(image.find_parent("label", class_="veil") for image in images)


def test_agreement_audit_pause_and_slices_stand_on_the_card(workspace):
    _, cards, pages = workspace
    said = text(pages["people"])
    assert "Agreement on 30 images that two people judged" in said
    assert "audit-7" in said and "8 of 8" in said and "promotion paused" in said
    assert {one.column for one in cards["people"]["slices"]} >= {"brightness", "size", "source", "caption script"}
    assert "audit: not measured" in text(pages["violence"])


def test_what_a_collection_lacks_is_said_where_positives_were_collected_and_only_there(workspace):
    _, cards, _ = workspace
    assert GLIDE_CAVEAT in cards["hate_symbol"]["not_covered"] and GLIDE_CAVEAT not in cards["people"]["not_covered"]
    assert any(line.startswith("Kinds that the collection lacks") for line in cards["hate_symbol"]["not_covered"])
    assert any("no audit of this version" in line for line in cards["hate_symbol"]["not_covered"])
    assert not any("no audit of this version" in line for line in cards["people"]["not_covered"])


def test_known_misses_are_positives_below_the_threshold_that_it_was_not_fitted_on(workspace):
    storage, cards, _ = workspace
    for name, card in cards.items():
        rows = read_table(storage, version_used(storage, name, None).labels_path, ["uid", "value", "split", "score"]).to_pylist()
        due = {row["uid"] for row in rows if row["value"] and row["split"] != "fit" and row["score"] < card["entry"]["threshold"]}
        assert {row["uid"] for row in card["misses"]} == due
        scores = [row["score"] for row in card["misses"]]
        assert scores == sorted(scores, reverse=True)


def test_a_card_without_a_label_store_says_so_and_an_unknown_version_is_named(workspace):
    storage, _, _ = workspace
    assert "The label store was not at hand" in text(render_card(storage, gather_card(storage, "violence")))
    with pytest.raises(ConfigError, match="people has no certified version nope"):
        gather_card(storage, "people", version="nope")
