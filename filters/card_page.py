"""The card of a filter as one HTML file, in the look of the audit report: no script, no outside file, every caption escaped."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from filters.card import CLOSEST, miss_line
from winnow.decisions import score_text
from winnow.report import charts
from winnow.report.claims import interval_text, percent
from winnow.report.gallery import Shown, captions, pick, thumbnails
from winnow.report.page import CONTENT_SECURITY_POLICY
from winnow.run_files import decided_partitions, filters_used
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import embeddings

NEVER_FITTED = ("calibrate", "test")
ORIGIN_WORDS = {
    "random": "drawn at random",
    "text_search": "found by text",
    "boundary": "near the boundary",
    "neighbour": "neighbours of misses",
    "import": "collected elsewhere",
    "audit": "seen in an audit",
}


def render_card(storage: Storage, card: dict[str, Any]) -> str:
    """HTML of a card.

    Args:
        card: of `gather_card`.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("filters"), jinja2.PackageLoader("winnow.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval_text}
    entry = card["entry"]
    return environment.get_template("card.html.j2").render(
        card=card,
        entry=entry,
        policy=CONTENT_SECURITY_POLICY,
        style=Markup(environment.get_template("style.css").render()),  # our own file, no part of it from outside
        score_chart=charts.scores(entry) if len(entry["edges"]) > 1 else None,
        curve_chart=_curve(card["curve"]),
        version_chart=_versions(card["versions"]),
        labels=_labels(entry["labels"]),
        slices=_slices(card["slices"]),
        galleries=_galleries(storage, card),
        miss_line=miss_line(card["misses"], card["certificate"]),
        test=card["certificate"].get("test") or {},
        flagged=[one for one in card["slices"] if one.flagged],
    )


def _curve(curve: dict[str, Any] | None) -> Any:
    if not curve or len(curve["points"]) < 2:
        return None
    points = [(point["labels"], point["clean_dropped"], point["low"], point["high"]) for point in curve["points"]]
    return charts.share_curve(points, "Clean images dropped, by number of labels", "labels it is fitted on")


def _versions(versions: Sequence[dict[str, Any]]) -> Any:
    """One point a number of labels: of versions with the same labels the last one."""
    by_labels = {version["labels"]: (version["labels"], version["share"], version["low"], version["high"]) for version in versions}
    if len(by_labels) < 2:
        return None
    return charts.share_curve(sorted(by_labels.values()), "Clean images dropped, by certified version", "labels in all")


def _labels(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each origin: what it is used for."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        counts[row["origin"], row["split"], row["value"]] += row["count"]
    found = []
    for origin in sorted({row["origin"] for row in rows}):
        cells = {split: (counts[origin, split, 1], counts[origin, split, 0]) for split in ("fit", "calibrate", "test")}
        others = sum(count for (own, split, _), count in counts.items() if own == origin and split not in cells)
        found.append({"origin": ORIGIN_WORDS.get(origin, origin), "cells": cells, "others": others})
    return found


def _slices(slices: Sequence[Any]) -> list[dict[str, Any]]:
    """Slices by column, with their intervals drawn to one scale."""
    top = max(
        [0.02, *(one.dropped.high for one in slices if one.dropped.n >= 30), *(one.missed.high for one in slices if one.missed.n >= 30)]
    )
    columns: dict[str, list[Any]] = {}
    for one in slices:
        columns.setdefault(one.column, []).append(one)
    found = []
    for column, own in columns.items():
        judged, dropped = sum(one.dropped.n for one in own), sum(one.dropped.count for one in own)
        positives, missed = sum(one.missed.n for one in own), sum(one.missed.count for one in own)
        lines = [
            {
                "slice": one,
                "missed": charts.whisker(one.missed.share, one.missed.low, one.missed.high, top, missed / positives if positives else None),
                "dropped": charts.whisker(one.dropped.share, one.dropped.low, one.dropped.high, top, dropped / judged if judged else None),
            }
            for one in own
        ]
        found.append({"column": column, "lines": lines})
    return found


def _galleries(storage: Storage, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Known misses, and images on both sides of the threshold; all of them behind a veil, for any may show what is filtered."""
    name = card["name"]
    misses = card["misses"][:CLOSEST]
    partitions = decided_partitions(storage) if card["scored"] else []
    picked = pick(storage, filters_used(storage), partitions) if card["scored"] else None
    wanted = _partitions_of(storage, {row["uid"] for row in misses}, partitions)
    near = (picked.just_kept[name], picked.just_dropped[name]) if picked else ([], [])
    wanted |= {shown.uid: shown.partition for group in near for shown in group}
    images, texts = thumbnails(storage, wanted), captions(storage, wanted)

    def figure(uid: str, score: str) -> dict[str, Any]:
        return {"uid": uid, "image": images.get(uid), "caption": texts.get(uid, ""), "score": score}

    def logged(shown: Shown) -> dict[str, Any]:
        return figure(shown.uid, score_text(shown.scores[name], card["entry"]["threshold"]))

    return [
        {"title": "Known misses, closest to the threshold first", "figures": [figure(row["uid"], f"{row['score']:.3f}") for row in misses],
         "none": "No labelled positive that it was not fitted on scores below the threshold."},
        {"title": "Just kept: closest below the threshold", "figures": [logged(shown) for shown in near[0]],
         "none": "Nothing was judged with this version."},
        {"title": "Just dropped: closest above it", "figures": [logged(shown) for shown in near[1]],
         "none": "Nothing was dropped by this version."},
    ]  # fmt: skip


def _partitions_of(storage: Storage, uids: set[str], partitions: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for partition in partitions:
        if len(found) == len(uids):
            break
        found |= {uid: partition for uid in uids.intersection(read_table(storage, embeddings(partition), ["uid"])["uid"].to_pylist())}
    return found
