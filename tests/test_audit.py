"""The report: self-contained, harmless whatever captions say, readable without a mouse or colours, and right in its numbers."""

import base64
import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from winnow.audit import render_table, summarise, write_report
from winnow.conservation import check_conservation
from winnow.receipts import read_receipts
from winnow.report.charts import ticks
from winnow.report.counts import CAUSES, explain_cause
from winnow.report.gallery import harmless, thumbnail, thumbnails
from winnow.report.lineage import gather_lineage
from winnow.report.page import bytes_text, change_text, seconds_text
from winnow.report.words import gather_words
from winnow.reported import write_reported
from winnow.run_files import FILTERS_USED, partitions, read_json, rows
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import decisions, manifest_part, raw_table, raw_tar

sys.path.insert(0, str(Path(__file__).parent))
from fake_workspace import HOSTILE, make_workspace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = make_workspace(tmp_path_factory.mktemp("run"), rows=60)
    write_report(storage, "report")
    return storage


@pytest.fixture(scope="module")
def html(run: Storage) -> str:
    return run.read_text("report/index.html")


@pytest.fixture(scope="module")
def page(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> BeautifulSoup:
    """The page of a run that was not trained on yet."""
    storage = make_workspace(tmp_path_factory.mktemp("bare"), rows=30, trained=False)
    write_report(storage, "report")
    return BeautifulSoup(storage.read_text("report/index.html"), "html.parser")


def claims(summary: dict, word: str) -> dict:
    return next(claim for claim in summary["claims"] if word in claim["claim"])


def test_the_page_runs_nothing_and_fetches_nothing(page: BeautifulSoup, html: str) -> None:
    assert not page.find_all(["script", "link", "iframe", "object", "embed", "form"])
    policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.find_all("img"))
    assert all(link["href"].startswith("#") for link in page.find_all("a"))
    assert "url(" not in html and "@import" not in html
    assert not [name for element in page.find_all(True) for name in element.attrs if name.startswith("on")]


def test_links_of_the_page_lead_somewhere(page: BeautifulSoup) -> None:
    assert all(page.find(id=link["href"][1:]) is not None for link in page.find_all("a"))


def test_hostile_captions_stay_text(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, parts=1, rows=40, trained=False)
    name = partitions(storage)[0]
    table = read_table(storage, manifest_part(name))
    captions = [HOSTILE[row % len(HOSTILE)] for row in range(table.num_rows)]  # every image shown has one
    position = table.schema.get_field_index("caption")
    write_table(storage, manifest_part(name), table.set_column(position, "caption", pa.array(captions, pa.string())))
    write_report(storage, "report")
    text = storage.read_text("report/index.html")
    page = BeautifulSoup(text, "html.parser")
    assert not page.find_all("script")
    assert {element.name for element in page.find_all("figcaption")} == {"figcaption"}
    assert not [element for element in page.find_all(True) if "onerror" in element.attrs]
    shown = [caption.find("bdi").get_text() for caption in page.find_all("figcaption")]
    assert "<script>alert('caption')</script>" in shown
    assert '" onerror="alert(1)" x="' in shown
    assert "{{ 7 * 7 }} {% raw %}" in shown
    assert "(no caption)" in shown
    assert "\x00" not in text and "\x07" not in text
    assert max(map(len, shown)) <= 140


def test_every_caption_is_isolated_so_that_direction_marks_end_with_it(page: BeautifulSoup) -> None:
    for caption in page.select(".shots figcaption"):
        assert caption.find("bdi") is not None


def test_the_page_says_what_the_summary_says(run: Storage, page: BeautifulSoup) -> None:
    summary = read_json(run, "report/summary.json")
    found = check_conservation(run)
    assert summary["counts"]["kept"] == found.kept
    assert [tile.get_text() for tile in page.select(".tile b")] == [
        str(number) for number in (found.listed, found.failed, found.dropped, found.kept)
    ]
    text = page.get_text()
    for cause, count in found.failed_by_cause.items():
        row = page.find("code", string=cause).find_parent("tr")
        assert row.find_all("td")[-1].get_text() == str(count)
    for entry in summary["filters"]:
        assert entry["sentence"] in text
        assert entry["policy"] in text


def test_images_of_blurred_filters_are_veiled_and_others_are_not(run: Storage, page: BeautifulSoup) -> None:
    for name in ("violence", "hate_symbol"):
        card = page.find(id=f"filter-{name}")
        assert card.find_all("img")
        for image in card.find_all("img"):
            box = image.find_parent("label").find("input", type="checkbox")
            assert box is not None and not box.has_attr("checked") and "disturbing" in box["aria-label"]
    summary = read_json(run, "report/summary.json")
    assert [entry["blurred"] for entry in summary["filters"]] == [False, True, True]
    reasons = {row["uid"][:8]: row["reasons"] for name in partitions(run) for row in read_table(run, decisions(name)).to_pylist()}
    for image in page.find(id="filter-people").find_all("img"):
        uid = image["alt"].split()[1].rstrip(":")
        assert (image.find_parent("label") is not None) == bool({"violence", "hate_symbol"} & set(reasons[uid]))
    assert not page.find(id="kept").select("label.veil")


def test_what_did_not_run_is_said_to_be_not_measured(bare: BeautifulSoup) -> None:
    for section in ("training", "samples", "copies"):
        assert "Not measured" in bare.find(id=section).get_text()
    statuses = [badge.get_text() for badge in bare.select("#claims .badge")]
    assert statuses.count("not measured") >= 5


def test_every_claim_has_a_status_a_number_and_a_method(run: Storage) -> None:
    for claim in read_json(run, "report/summary.json")["claims"]:
        assert claim["status"] in ("pass", "fail", "not measured")
        assert claim["claim"] and claim["value"] and claim["method"]
        assert claim["status"] == "not measured" or claim["n"] > 0


def test_images_tables_and_charts_can_be_read_aloud(page: BeautifulSoup) -> None:
    assert page.html["lang"] == "en" and page.title.get_text().strip()
    assert all(image["alt"].strip() for image in page.find_all("img"))
    assert all(header.has_attr("scope") for header in page.find_all("th"))
    assert all(table.find("thead") is not None for table in page.find_all("table"))
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 20 for chart in page.find_all("svg"))
    assert [heading.name for heading in page.find_all("h1")] == ["h1"]


def test_the_same_run_gives_the_same_bytes(run: Storage, html: str) -> None:
    before = run.read_bytes("report/summary.json")
    outcome = write_report(run, "report")
    assert run.read_text("report/index.html") == html
    assert run.read_bytes("report/summary.json") == before
    assert outcome.counts["claims_failed"] == 0


def test_a_lost_decision_makes_the_first_claim_fail(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, rows=30, trained=False)
    path = decisions(partitions(storage)[0])
    table = read_table(storage, path)
    write_table(storage, path, table.slice(1))
    summary = summarise(storage)
    claim = claims(summary, "exactly one place")
    assert claim["status"] == "fail" and table["uid"][0].as_py() in claim["value"]
    assert summary["counts"]["undecided"] == 1


def test_a_threshold_that_its_labels_do_not_give_is_not_called_proven(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, rows=30, trained=False)
    used = read_json(storage, FILTERS_USED)
    used[0]["threshold"] += 0.1
    storage.write_text(FILTERS_USED, json.dumps(used))
    write_report(storage, "report")
    assert claims(read_json(storage, "report/summary.json"), "People: at most 1.00")["status"] == "fail"
    page = BeautifulSoup(storage.read_text("report/index.html"), "html.parser")
    assert "do not rely on it" in page.find(id="filter-people").get_text()
    assert "do not rely on it" not in page.find(id="filter-violence").get_text()


def test_an_image_that_cannot_be_decoded_is_shown_as_such(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, parts=1, rows=30, trained=False)
    name = partitions(storage)[0]
    data = storage.read_bytes(raw_tar(name))
    storage.write_bytes(raw_tar(name), data.replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    write_report(storage, "report")
    assert "cannot be shown" in storage.read_text("report/index.html")


def test_a_run_that_was_stopped_while_scoring_still_gets_a_report(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, rows=30, trained=False)
    storage.remove(decisions(partitions(storage)[0]))
    storage.remove(raw_tar(partitions(storage)[1]))
    write_report(storage, "report")
    page = BeautifulSoup(storage.read_text("report/index.html"), "html.parser")
    assert "30 have no decision yet" in page.find(class_="lead").get_text()
    assert "cannot be shown" in page.find(id="kept").get_text()


def test_what_is_left_is_bounded_only_where_labels_speak_of_the_data(run: Storage) -> None:
    people, _, hate = read_json(run, "report/summary.json")["filters"]
    counts = read_json(run, "report/summary.json")["counts"]
    assert hate["left"] is None
    assert people["left"]["at_most"] == pytest.approx(0.01 * people["prevalence"]["high"] * counts["embedded"] / counts["kept"])
    assert people["left"]["confidence"] == pytest.approx(0.925)


def test_sources_are_counted_by_verdict(run: Storage) -> None:
    summary = read_json(run, "report/summary.json")
    assert [source["name"] for source in summary["sources"]] == ["drawn", "second list"]
    for verdict in ("failed", "dropped", "kept"):
        assert sum(source[verdict] for source in summary["sources"]) == summary["counts"][verdict]


def test_thumbnails_are_small_and_made_anew(run: Storage) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (900, 300), (10, 200, 30)).save(buffer, "JPEG", comment=b"<script>")
    made = base64.b64decode(thumbnail(buffer.getvalue()).partition(",")[2])
    assert b"<script>" in buffer.getvalue() and b"<script>" not in made
    with Image.open(io.BytesIO(made)) as image:
        assert image.size == (160, 53)
    assert thumbnail(b"no image") is None


def test_a_reported_image_has_no_picture_wherever_it_is_asked_for(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, parts=1, rows=30, trained=False)
    partition = partitions(storage)[0]
    raw = rows(read_table(storage, raw_table(partition), ["uid", "status"]))
    wanted = {row["uid"]: partition for row in raw if row["status"] == "downloaded"}
    shown = thumbnails(storage, wanted)
    reported = min(shown)
    write_reported(storage, {reported}, [partition])
    assert thumbnails(storage, wanted).keys() == shown.keys() - {reported}


def test_images_with_too_many_pixels_are_not_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")  # 200 million pixels in 25 kB
    assert thumbnail(buffer.getvalue()) is None


def test_captions_are_cut_and_stripped_of_control_characters() -> None:
    assert harmless("a\x00b\n c\x9f") == "a b c"
    assert harmless("x" * 500).endswith("…") and len(harmless("x" * 500)) == 140


def test_word_shares_before_and_after(tmp_path: Path) -> None:
    storage = make_workspace(tmp_path, rows=100, trained=False)
    words = gather_words(storage, partitions(storage))
    kept = total = with_word = kept_with_word = 0
    word = words["fell"][0]
    for name in partitions(storage):
        caption = {row["uid"]: row["caption"] for row in read_table(storage, manifest_part(name)).to_pylist()}
        for row in read_table(storage, decisions(name)).to_pylist():
            if row["verdict"] != "failed":
                has = word["word"] in caption[row["uid"]].split()
                total, with_word = total + 1, with_word + has
                kept, kept_with_word = kept + (row["verdict"] == "kept"), kept_with_word + (has and row["verdict"] == "kept")
    assert words["captions"] == total and words["kept_captions"] == kept
    assert word["before"] == pytest.approx(with_word / total)
    assert word["after"] == pytest.approx(kept_with_word / kept)
    assert word["change"] < 0


def test_the_table_of_a_terminal_names_all_that_a_run_ends_with(run: Storage) -> None:
    text = render_table(read_json(run, "report/summary.json"))
    for word in ("listed", "failed", "dropped", "kept", "certificate people", "loss base", "closest sample", "seconds embed"):
        assert f"{word} " in text


def test_every_known_cause_is_explained_in_a_sentence() -> None:
    assert all(text.endswith(".") for text in CAUSES.values())
    assert explain_cause("download:http_418") == "The server answered with status 418 instead of an image."
    assert explain_cause("embed:odd_shape") == "Odd shape, at the embed stage."


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 600, [0, 200, 400, 600]), (-1.2, 1.3, [-1, -0.5, 0, 0.5, 1])]
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_report_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    from tasks.config import RunConfig
    from tasks.evaluation import report_stage

    storage = make_workspace(tmp_path, rows=20, trained=False)
    config = RunConfig(workspace=storage.url, manifest="none")
    report_stage(config)
    before = storage.read_bytes("report/index.html")
    storage.remove("report/index.html")
    assert report_stage(config).ran == 1 and storage.read_bytes("report/index.html") == before
    assert report_stage(config).ran == 0


def test_settings_that_differ_within_a_stage_are_told_of_each_partition(run: Storage) -> None:
    settings = gather_lineage(run)["settings"]
    assert set(settings["train"]) == {receipt.partition for receipt in read_receipts(run, "train")} and len(settings["train"]) > 1
    assert settings["score"] == {}  # the same for all partitions: told once


def test_a_change_that_is_not_all_does_not_read_as_all() -> None:
    changes = (-1.0, -0.9996, -0.996, -0.99, 0.25, 2.0)
    assert [change_text(change) for change in changes] == ["−100 %", "−99.9 %", "−99.6 %", "−99 %", "+25 %", "x 3"]


def test_sizes_and_times_are_spoken_plainly() -> None:
    assert bytes_text(812) == "812 bytes" and bytes_text(2_723_840) == "2.7 MB"
    assert seconds_text(12.34) == "12.3 s" and seconds_text(250) == "4 min 10 s" and seconds_text(7500) == "2 h 5 min"
