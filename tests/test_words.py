"""Words are counted before and after dropping, as they stand in captions; changes that may be chance are not told."""

import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.words import WordsConfig, count_words
from winnow.errors import ConfigError
from winnow.report import words as report
from winnow.report.words import change, gather_words, merged, ratio_interval
from winnow.run_files import FILTERS_USED
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.weights import CLASSIFIER, weights_file
from winnow.words import WORD_COUNTS, below_mark, words_file, words_of
from winnow.workspace import decisions, manifest_part

sys.path.insert(0, str(Path(__file__).parent))
from fake_workspace import make_workspace

NAME = "00000-a"
ROWS = (
    ("A woman holds a sword, a SWORD", "dropped", ["people"], 0.0),
    ("the barn and the sword", "kept", [], 2.0),
    ("the barn", "kept", [], 0.5),
    ("barn", "dropped", ["caption_words"], 0.0),
    ("barn again", "dropped", ["people", "duplicate"], 0.0),
    ("a barn that failed", "failed", ["download:dns"], 0.0),
    ("", "dropped", ["forgotten"], 0.0),
    (None, "kept", [], 1.0),
)


@pytest.fixture
def storage(tmp_path) -> Storage:
    storage = Storage(str(tmp_path))
    uids = [f"{number:032x}" for number in range(len(ROWS))]
    write_table(storage, manifest_part(NAME), pa.table({"uid": uids, "caption": [row[0] for row in ROWS]}))
    decided = {"uid": uids, "verdict": [row[1] for row in ROWS], "reasons": [row[2] for row in ROWS]}
    write_table(storage, decisions(NAME), pa.table(decided))
    kept = [number for number, row in enumerate(ROWS) if row[1] == "kept"]
    weights = pa.array([ROWS[number][3] for number in kept], pa.float32())
    write_table(storage, weights_file(NAME), pa.table({"uid": [uids[number] for number in kept], "weight": weights}))
    filters = '[{"name": "people", "version": "v1", "threshold": 0.5, "certificate_sha256": ""}]'
    storage.write_text(FILTERS_USED, filters)
    return storage


def counted(storage: Storage, **changes) -> dict[tuple[str, str], list[float]]:
    arguments = {"groups": {"women": ("woman", "girl")}, "halvings": 0, "weighted": True} | changes
    count_words(storage, NAME, **arguments)
    return {(row["kind"], row["word"]): [row[key] for key in report.COLUMNS] for row in read_table(storage, words_file(NAME)).to_pylist()}


def test_words_are_counted_once_a_caption_and_by_what_became_of_it(storage):
    found = counted(storage)
    # judged, unfiltered (what a rule or a copy dropped is not missed), kept, weighted
    assert found["all", ""] == [6, 4, 3, 3.5]
    assert found["word", "barn"] == [4, 2, 2, 2.5]
    assert found["word", "sword"] == [2, 2, 1, 2.0]
    assert found["group", "women"] == [1, 1, 0, 0.0]
    assert ("word", "failed") not in found and ("word", "a") not in found
    assert counted(storage, weighted=False)["word", "sword"] == [2, 2, 1, 1.0]
    assert list(found) == sorted(found)


def test_a_sample_is_read_of_large_runs_and_changes_seldom(storage):
    config = WordsConfig(max_captions=1000)
    assert [config.halvings(listed) for listed in (0, 1, 1000, 1001, 2000, 2001, 1_000_000)] == [0, 0, 0, 1, 1, 2, 10]
    rng = np.random.default_rng(0)
    uids = [f"{int(value):08x}" for value in rng.integers(0, 2**32, 40_000)]
    for halvings in (1, 3, 5):
        drawn = [uid for uid in uids if below_mark(uid, halvings)]
        assert len(drawn) / len(uids) == pytest.approx(2.0**-halvings, rel=0.1)
        assert all(below_mark(uid, halvings - 1) for uid in drawn)


def test_what_a_word_is():
    assert words_of("It's a RED-barn, ein Haus; Straße_2 x 12 naïve 雪の山") == {
        "it",
        "red",
        "barn",
        "ein",
        "haus",
        "strasse",
        "naïve",
        "雪の山",
    }
    assert words_of(None) == set()
    assert len(words_of(" ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)))) == 200


def test_groups_that_could_never_be_found_are_refused():
    for words in (("Woman",), ("old man",), ()):
        with pytest.raises(ConfigError, match=r"words\.groups: 'x' needs single words in small letters"):
            WordsConfig(groups={"x": words})
    assert all(words_of(word) == {word} for words in WordsConfig().groups.values() for word in words)


def test_the_ratios_interval_is_the_closed_form_where_a_share_is_zero():
    # p = 0: the upper end is u / sqrt(l2 (2 q - l2)), with Wilson's ends u = z^2 / (n + z^2) and l2.
    low, high = ratio_interval(0, 30, 50, 100, 1.96)
    wilson = (50 + 1.96**2 / 2 - 1.96 * math.sqrt(25 + 1.96**2 / 4)) / (100 + 1.96**2)
    assert low == 0
    assert high == pytest.approx(1.96**2 / (30 + 1.96**2) / math.sqrt(wilson * (1 - wilson)))
    assert ratio_interval(10, 20, 0, 30, 1.96)[1] == math.inf


@pytest.mark.parametrize(("p", "q"), [(0.05, 0.5), (0.5, 0.5), (0.9, 0.6), (0.02, 0.02)])
def test_the_ratios_interval_holds_as_often_as_it_says(p, q):
    rng = np.random.default_rng(0)
    hits, others = rng.binomial(80, p, 2000), rng.binomial(400, q, 2000)
    ends = [ratio_interval(a, 80, c, 400, 1.96) for a, c in zip(hits, others, strict=True)]
    assert np.mean([low <= p / q <= high for low, high in ends]) > 0.93


@settings(max_examples=100, deadline=None)
@given(b=st.integers(0, 400), share=st.floats(0, 1), rest=st.integers(0, 4000), kept_rest=st.floats(0, 1), z=st.floats(0.5, 5))
def test_a_change_lies_in_its_interval_and_its_interval_among_changes_that_can_be(b, share, rest, kept_rest, z):
    a, c = round(b * share), round(rest * kept_rest)
    middle, low, high = change(a, b, a + c, b + rest, z)
    assert -1 <= low <= middle + 1e-9 and middle <= high + 1e-9
    if b and rest and a + c:
        assert middle == pytest.approx((a / (a + c)) / (b / (b + rest)) - 1)
        assert high <= (b + rest) / b - 1 + 1e-6


def write_counts(storage: Storage, name: str, counts: dict[str, tuple[float, ...]]) -> None:
    rows = [
        {"kind": "all" if not word else "word", "word": word, **dict(zip(report.COLUMNS, row, strict=True))}
        for word, row in sorted(counts.items())
    ]
    write_table(storage, words_file(name), pa.Table.from_pylist(rows, WORD_COUNTS))


def test_only_words_that_surely_changed_are_told_and_the_surest_first(tmp_path):
    storage = Storage(str(tmp_path))
    # Of 10,000 captions half are kept: "knight" nearly never, "barn" a little more often, "noise" by chance.
    counts = {
        "": (10_000, 9000, 5000, 5000.0),
        "knight": (400, 400, 20, 90.0),
        "sword": (60, 60, 0, 0.0),
        "barn": (3000, 2600, 1700, 1500.0),
        "noise": (40, 40, 18, 18.0),
        "rare": (8, 8, 0, 0.0),
    }
    for number in range(2):
        write_counts(storage, f"p{number}", {word: tuple(value / 2 for value in row) for word, row in counts.items()})
    storage.write_text(CLASSIFIER, "{}")
    found = gather_words(storage, ["p0", "p1"])
    assert {entry["word"] for entry in found["fell"]} == {"knight", "sword"}
    assert [entry["word"] for entry in found["rose"]] == ["barn"]
    assert (found["captions"], found["kept_captions"], found["at_least"], found["tested"]) == (10_000, 5000, 10, 4)
    knight = next(entry for entry in found["fell"] if entry["word"] == "knight")
    assert (knight["before"], knight["after"]) == (0.04, 0.004)
    assert knight["change"] == pytest.approx(-0.9)
    # Words that filters alone decide on, and that are still there: each as often as it stood before, 3040 in all.
    told, before = found["weighted"], {"knight": 400, "barn": 2600, "noise": 40}
    for column, key in ((2, "distance_kept"), (3, "distance_weighted")):
        distance = sum(often * abs(math.log((counts[word][column] / 5000) / (often / 9000))) for word, often in before.items()) / 3040
        assert told[key] == pytest.approx(distance)
    assert told["distance_weighted"] < told["distance_kept"]
    assert [entry["word"] for entry in told["furthest"]] == ["knight", "noise", "barn"]
    assert (told["words"], told["gone"]) == (3, 1)
    assert gather_words(storage, ["p0", "p1", "p2"]) is None


def test_memory_is_bounded_and_frequent_words_are_never_lost(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    monkeypatch.setattr(report, "MOST_WORDS", 50)
    for number in range(6):
        hostile = {f"x{number}y{word:03}": (1, 1, 1, 1.0) for word in range(45)}
        write_counts(storage, f"p{number}", {"": (90, 90, 90, 90.0), "barn": (30, 30, 10, 10.0), **hostile})
    counts, forgotten = merged(storage, [f"p{number}" for number in range(6)])
    assert len(counts) <= 50 and forgotten == 3
    assert counts["word", "barn"].tolist() == [180, 180, 60, 60]
    assert counts["all", ""][0] == 540


def test_hostile_captions_stay_text_in_the_tables_of_words(tmp_path):
    from winnow.audit import summarise
    from winnow.report.page import render_page

    storage = make_workspace(tmp_path, rows=20, labels=300, trained=False)
    summary = summarise(storage)
    entry = {"word": "<img src=x onerror=alert(1)>", "before": 0.5, "after": 0.1, "change": -0.8, "low": -0.9, "high": -0.7, "count": 9}
    summary["words"] |= {"fell": [entry], "groups": [entry]}
    page = render_page(storage, summary)
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") == 2
    assert "changed by -80%, between -90% and -70%" in page
