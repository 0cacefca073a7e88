import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from filters.slice_columns import caption_script, slice_filter
from filters.slices import SliceCounts, holm, in_ranges, slice_rates
from tests.fake_workspace import make_workspace
from winnow.errors import ConfigError
from winnow.run_files import decided_partitions, filters_used
from winnow.tables import read_table
from winnow.workspace import embeddings


def test_a_slice_that_is_missed_far_more_often_is_flagged_and_the_others_are_not():
    counted = {"brightness": {"dark": SliceCounts(positives=60, missed=12), "bright": SliceCounts(positives=900, missed=9)}}
    dark, bright = slice_rates(counted)
    assert dark.flagged and not bright.flagged
    assert dark.missed.share == 0.2 and dark.missed.low < 0.2 < dark.missed.high


def test_the_same_gap_in_few_labels_is_not_flagged():
    counted = {"brightness": {"dark": SliceCounts(positives=5, missed=1), "bright": SliceCounts(positives=75, missed=1)}}
    assert not any(found.flagged for found in slice_rates(counted))


def test_looking_at_twenty_slices_flags_one_by_chance_in_at_most_one_case_of_twenty():
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(60):
        values = {str(number): SliceCounts(positives=100, missed=int(rng.binomial(100, 0.05))) for number in range(20)}
        flagged += any(found.flagged for found in slice_rates({"column": values}))
    assert flagged <= binom.ppf(0.999, 60, 0.05)


def test_holm_gives_the_textbook_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([1.0, 0.04]) == [1.0, 0.04]  # what could not find anything is not counted


def test_numbers_fall_into_the_range_they_reach():
    assert in_ranges(np.array([0.0, 0.5, 0.9, np.nan]), (0.5,), ("low", "high")) == ["low", "high", "high", "unknown"]
    with pytest.raises(ConfigError, match="2 rising limits make 3 slices"):
        in_ranges(np.zeros(1), (0.5, 0.7), ("low", "high"))


@pytest.mark.parametrize(
    ("caption", "script"),
    [
        ("a small boat", "LATIN"),
        ("лодка у моря", "CYRILLIC"),
        ("海边 boat", "LATIN"),
        ("海边的船", "CJK"),
        ("12 %", "none"),
        (None, "none"),
    ],
)
def test_a_caption_is_sliced_by_the_script_of_most_of_its_letters(caption, script):
    assert caption_script(caption) == script


def test_every_judged_image_and_every_label_is_in_one_slice_of_each_column(tmp_path):
    storage = make_workspace(tmp_path, trained=False)
    partitions = decided_partitions(storage)
    used = filters_used(storage)[0]
    uids = [uid for name in partitions for uid in read_table(storage, embeddings(name), ["uid"])["uid"].to_pylist()]
    extra = pa.table({"uid": uids, "season": ["summer" if number % 3 else None for number in range(len(uids))]})
    found = slice_filter(storage, used.name, used.folder, used.threshold, partitions, extra=extra)
    by_column = {column: [one for one in found if one.column == column] for column in {one.column for one in found}}
    assert set(by_column) == {"brightness", "aspect ratio", "size", "source", "caption script", "season"}
    for slices in by_column.values():
        assert sum(one.dropped.n for one in slices) == len(uids)
    assert {one.value for one in by_column["season"]} == {"summer", "unknown"}
    assert len({sum(one.dropped.count for one in slices) for slices in by_column.values()}) == 1


def test_a_table_without_uids_is_refused(tmp_path):
    storage = make_workspace(tmp_path, trained=False, rows=30, parts=1)
    used = filters_used(storage)[0]
    with pytest.raises(ConfigError, match="needs a column uid"):
        slice_filter(storage, used.name, used.folder, used.threshold, decided_partitions(storage), extra=pa.table({"url": ["a"]}))
