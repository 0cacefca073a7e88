"""The report as one HTML file: no script, no outside file, every caption escaped."""

from fractions import Fraction
from typing import Any

import jinja2
from markupsafe import Markup

from winnow.decisions import score_text
from winnow.report import charts
from winnow.report.claims import interval_text, percent
from winnow.report.counts import explain_cause
from winnow.report.duplicates import pick_groups
from winnow.report.gallery import Shown, captions, closest_pairs, partitions_of_kept, pick, sample_grid, thumbnail, thumbnails
from winnow.run_files import decided_partitions, filters_used
from winnow.storage import Storage

CONTENT_SECURITY_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Whatever a caption might smuggle in: nothing is run and nothing is fetched."""


def render_page(storage: Storage, summary: dict[str, Any]) -> str:
    """HTML of the report.

    Args:
        summary: of winnow.audit.summarise.
    """
    filters = filters_used(storage)
    thresholds = {used.name: used.threshold for used in filters}
    blurred = {entry["name"] for entry in summary["filters"] if entry["blurred"]}
    picked = pick(storage, filters, decided_partitions(storage)) if filters else None
    pairs = closest_pairs(storage)
    wanted = {shown.uid: shown.partition for shown in picked.all()} if picked else {}
    groups = pick_groups(storage, decided_partitions(storage))
    wanted |= {shown.uid: shown.partition for group in groups for shown in group.members}
    wanted |= partitions_of_kept(storage, {row[key] for row in pairs for key in ("uid", "nearest_uid")})
    images = thumbnails(storage, wanted)
    texts = captions(storage, wanted)
    grid = sample_grid(storage)
    drawn = {entry["file"]: entry["image"] for entry in grid}
    for row in pairs:
        if row["sample"] not in drawn:
            drawn[row["sample"]] = thumbnail(storage.read_bytes(row["sample"]))

    def figure(shown: Shown, focus: str | None = None) -> dict[str, Any]:
        hidden = focus in blurred or any(reason in blurred for reason in shown.reasons)
        return {
            "uid": shown.uid,
            "image": images.get(shown.uid),
            "caption": texts.get(shown.uid, ""),
            "hidden": hidden,
            "score": score_text(shown.scores[focus], thresholds[focus]) if focus in shown.scores else None,
        }

    galleries = {}
    if picked:
        for used in filters:
            galleries[used.name] = [
                {"title": title, "figures": [figure(shown, used.name) for shown in group]}
                for title, group in (
                    ("Dropped, a random draw", picked.dropped[used.name]),
                    ("Just dropped: closest above the threshold", picked.just_dropped[used.name]),
                    ("Just kept: closest below the threshold", picked.just_kept[used.name]),
                )
            ]
    counts, near = summary["counts"], summary["regurgitation"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("winnow.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval_text,
        "bytes": bytes_text,
        "seconds": seconds_text,
        "share": share_text,
        "change": change_text,
    }
    template = environment.get_template("report.html.j2")
    return template.render(
        summary=summary,
        counts=counts,
        policy=CONTENT_SECURITY_POLICY,
        style=Markup(environment.get_template("style.css").render()),  # our own file, no part of it from outside
        funnel=charts.funnel(_funnel_rows(counts), counts["listed"]),
        score_charts={entry["name"]: charts.scores(entry) for entry in summary["filters"]},
        curves={
            model: charts.curve(points, f"Training loss of {model}")
            for model, points in ((entry["model"], entry["curve"]) for entry in summary["training"])
            if points
        },
        distance_chart=charts.distances(near) if near and near["pairs"] else None,
        explain_cause=explain_cause,
        shift_charts=lambda word, way: charts.shift(word["change"], word["low"], word["high"], way),
        galleries=galleries,
        groups=[
            {"why": group.why, "size": group.size, "members": list(zip(map(figure, group.members), group.notes, strict=True))}
            for group in groups
        ],
        kept=[figure(shown) for shown in picked.kept] if picked else [],
        grid=grid,
        pairs=[
            {
                **row,
                "sample_image": drawn[row["sample"]],
                "own_image": images.get(row["uid"]),
                "nearest_image": images.get(row["nearest_uid"]),
                "caption": texts.get(row["uid"], ""),
            }
            for row in pairs
        ],
        statuses={
            status: sum(claim["status"] == status for claim in summary["claims"]) for status in ("pass", "fail", "stale", "not measured")
        },
    )


def _funnel_rows(counts: dict[str, Any]) -> list[tuple[str, int, str]]:
    unread = counts["downloaded"] - counts["embedded"]
    failed = counts["listed"] - counts["undecided"] - counts["forgotten"] - counts["downloaded"]
    lost = f"− {failed:,} could not be downloaded" + (f", {counts['forgotten']:,} are forgotten" if counts["forgotten"] else "")
    return [
        ("Listed", counts["listed"], ""),
        ("Downloaded", counts["downloaded"], lost + (f", {counts['undecided']:,} are not decided yet" if counts["undecided"] else "")),
        ("Read by CLIP", counts["embedded"], f"− {unread:,} could not be decoded"),
        ("Kept", counts["kept"], f"− {counts['dropped'] - counts['forgotten']:,} dropped"),
    ]


def bytes_text(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def change_text(change: float) -> str:
    """-0.5 -> −50 %; what is more than doubled is told as a factor."""
    if change > 1:
        return f"x {change + 1:.3g}"
    digits = 1 if -1 < change < -0.99 else 0  # what is not gone altogether does not read as −100 %
    return f"{max(100 * change, -99.9) if digits else 100 * change:+.{digits}f} %".replace("-", "−")


def share_text(fraction: str) -> str:
    """67/137 -> 48.91 %."""
    return f"{100 * float(Fraction(fraction)):.4g} %"


def seconds_text(seconds: float) -> str:
    """12.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
