"""The columns by which images are sliced, and the counts of each slice, in one pass over a workspace.

Brightness, aspect ratio and size come from the embedding table, source and caption from the manifest, anything else from a table
with a column `uid`. A caption is sliced by its script (Latin, Cyrillic, Han, ...), read from the names of its letters in Unicode:
not by its language, which a short caption often does not tell.
"""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from filters.slices import MAX_VALUES, OTHERS, UNKNOWN, Slice, SliceCounts, in_ranges, slice_rates
from winnow.decisions import score_column
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, embeddings, manifest_part

if TYPE_CHECKING:
    import pyarrow as pa

BRIGHTNESS = ((0.25, 0.5, 0.75), ("dark", "rather dark", "rather bright", "bright"))
"""Mean luminance, 0 to 1."""
ASPECT = ((0.67, 0.9, 1.1, 1.5), ("very tall", "tall", "square", "wide", "very wide"))
"""Width by height."""
SIZE_PX = ((128.0, 256.0, 512.0), ("below 128 px", "128 to 255 px", "256 to 511 px", "512 px and more"))
"""Smaller side."""
COLUMNS = ("brightness", "aspect ratio", "size", "source", "caption script")


def caption_script(caption: str | None) -> str:
    """The script most of a caption's letters belong to, as Unicode names it ("LATIN", "CJK", ...); "none" without letters."""
    scripts = Counter(unicodedata.name(letter, "UNKNOWN").split(" ")[0] for letter in caption or "" if letter.isalpha())
    return scripts.most_common(1)[0][0] if scripts else "none"


def slice_filter(
    storage: Storage, name: str, folder: str, threshold: float, partitions: Sequence[str], *, extra: "pa.Table | None" = None
) -> list[Slice]:
    """Rates of every slice of a filter's version.

    Args:
        folder: of the version; its labels.parquet tells which labels it was not fitted on.
        partitions: with a decision log.
        extra: further columns by `uid`, each of words or of few different numbers.

    Raises:
        ConfigError: `extra` has no column uid, or a uid twice.
    """
    labels = read_table(storage, f"{folder}/labels.parquet", ["uid", "value", "split", "score"]).to_pylist()
    apart = {row["uid"]: row for row in labels if row["split"] in ("calibrate", "test") and row["score"] is not None}
    further = _further(extra)
    counted: dict[str, dict[str, SliceCounts]] = {}
    met: set[str] = set()
    for partition in partitions:
        columns, uids = _columns(storage, partition, further)
        table = read_table(storage, decisions(partition), ["uid", score_column(name)])
        scores = dict(zip(table["uid"].to_pylist(), table[score_column(name)].to_pylist(), strict=True))
        _count(counted, columns, uids, scores, apart, threshold)
        met |= apart.keys() & set(uids)
    collected = f"imports/{name}.parquet"
    if storage.exists(collected) and apart.keys() - met:
        _count_collected(storage, collected, counted, {uid: apart[uid] for uid in apart.keys() - met}, further, threshold)
    return slice_rates({column: _fewer(values) for column, values in counted.items()})


def _columns(storage: Storage, partition: str, further: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Column -> the slice of each embedded image, and their uids."""
    embedded = read_table(storage, embeddings(partition))
    uids = embedded["uid"].to_pylist()
    listed = read_table(storage, manifest_part(partition), ["uid", "source", "caption"]).to_pylist()
    known = {row["uid"]: row for row in listed}
    columns = _of_pictures(embedded)
    columns["source"] = [known[uid]["source"] or UNKNOWN for uid in uids]
    columns["caption script"] = [caption_script(known[uid]["caption"]) for uid in uids]
    return columns | _of_further(uids, further), uids


def _of_pictures(embedded: "pa.Table") -> dict[str, list[str]]:
    """Slices by what the embedding table says of a picture; columns that an older table lacks are left out."""
    there, columns = set(embedded.column_names), {}

    def numbers(column: str) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in embedded[column].to_pylist()], dtype=np.float64)

    if "luminance" in there:
        columns["brightness"] = in_ranges(numbers("luminance"), *BRIGHTNESS)
    if {"width", "height"} <= there:
        width, height = numbers("width"), numbers("height")
        columns["aspect ratio"] = in_ranges(width / np.where(height > 0, height, np.nan), *ASPECT)
        columns["size"] = in_ranges(np.minimum(width, height), *SIZE_PX)
    return columns


def _further(extra: "pa.Table | None") -> dict[str, dict[str, str]]:
    if extra is None:
        return {}
    if "uid" not in extra.column_names:
        raise ConfigError(f"a table of further columns needs a column uid; it has {', '.join(extra.column_names)}")
    uids = extra["uid"].to_pylist()
    if len(set(uids)) != len(uids):
        raise ConfigError(f"a table of further columns has {len(uids) - len(set(uids))} uids twice")
    return {
        column: {uid: UNKNOWN if value is None else str(value) for uid, value in zip(uids, extra[column].to_pylist(), strict=True)}
        for column in extra.column_names
        if column != "uid"
    }


def _of_further(uids: Sequence[str], further: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    return {column: [values.get(uid, UNKNOWN) for uid in uids] for column, values in further.items()}


def _count(
    counted: dict[str, dict[str, SliceCounts]],
    columns: Mapping[str, Sequence[str]],
    uids: Sequence[str],
    scores: Mapping[str, float | None],
    apart: Mapping[str, dict[str, float]],
    threshold: float,
) -> None:
    """Adds the images of a partition to the counts."""
    for column, values in columns.items():
        cells = counted.setdefault(column, {})
        tally: dict[str, Counter[str]] = {}
        for uid, value in zip(uids, values, strict=True):
            of_one = tally.setdefault(value, Counter())
            score = scores.get(uid)
            if score is not None:
                of_one.update(judged=1, dropped=int(score >= threshold))
            if uid in apart:
                _count_label(of_one, apart[uid], threshold)
        for value, of_one in tally.items():
            cells[value] = _added(cells.get(value, SliceCounts()), of_one)


def _count_collected(
    storage: Storage,
    path: str,
    counted: dict[str, dict[str, SliceCounts]],
    apart: Mapping[str, dict[str, float]],
    further: Mapping[str, Mapping[str, str]],
    threshold: float,
) -> None:
    """Adds the labels of collected images, which lie in no partition."""
    embedded = read_table(storage, path)
    uids = embedded["uid"].to_pylist()
    columns = _of_pictures(embedded) | {"source": ["collection"] * len(uids)} | _of_further(uids, further)
    _count(counted, columns, uids, {}, apart, threshold)


def _count_label(tally: Counter[str], label: Mapping[str, float], threshold: float) -> None:
    at_or_above = int(label["score"] >= threshold)
    if label["value"]:
        tally.update(positives=1, missed=1 - at_or_above)
    else:
        tally.update(clean=1, clean_dropped=at_or_above)


def _added(counts: SliceCounts, more: Mapping[str, int]) -> SliceCounts:
    own = {field.name: getattr(counts, field.name) + more.get(field.name, 0) for field in dataclasses.fields(SliceCounts)}
    return SliceCounts(**own)


def _fewer(values: Mapping[str, SliceCounts]) -> dict[str, SliceCounts]:
    """The most frequent values of a column, and "others"; names in order."""
    by_size = sorted(values, key=lambda value: (-values[value].judged, value))
    if len(by_size) <= MAX_VALUES:
        return {value: values[value] for value in _ordered(values)}
    shown, rest = by_size[: MAX_VALUES - 1], by_size[MAX_VALUES - 1 :]
    others = SliceCounts()
    for value in rest:
        others = _added(others, dataclasses.asdict(values[value]))
    return {value: values[value] for value in _ordered(shown)} | {OTHERS: others}


def _ordered(values: Iterable[str]) -> list[str]:
    """Ranges in their own order, all else by name."""
    known = [name for _, names in (BRIGHTNESS, ASPECT, SIZE_PX) for name in names]
    return sorted(values, key=lambda value: (known.index(value) if value in known else len(known), value))
