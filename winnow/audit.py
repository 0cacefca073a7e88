"""The audit report of a run: `report/index.html` for people, `report/summary.json` with the same numbers for programs.

Gathered from the files of the workspace alone; what has not run stands in it as "not measured".
"""

import json
from collections.abc import Collection
from typing import Any

from winnow.conservation import examine
from winnow.partitions import Outcome
from winnow.report.audits import gather_audits
from winnow.report.claims import gather_claims
from winnow.report.counts import gather_counts, gather_stages
from winnow.report.duplicates import gather_contamination, gather_duplicates
from winnow.report.filters import gather_filter
from winnow.report.lineage import gather_lineage
from winnow.report.models import gather_regurgitation, gather_samples, gather_training
from winnow.report.page import render_page
from winnow.report.rules import gather_rules
from winnow.report.sources import gather_sources
from winnow.report.weights import gather_weights
from winnow.report.words import gather_words
from winnow.run_files import SUMMARY, decided_partitions, filters_used
from winnow.storage import Storage
from winnow.workspace import REPORT

VERSION = 3


def write_report(storage: Storage, name: str) -> Outcome:
    """Writes the report. A step for `run_step`, stage "report"."""
    summary = summarise(storage)
    page = render_page(storage, summary)
    storage.write_text(SUMMARY, json.dumps(summary, sort_keys=True, indent=1) + "\n")
    storage.write_text(REPORT, page)
    failed = sum(claim["status"] == "fail" for claim in summary["claims"])
    return Outcome(outputs=(REPORT, SUMMARY), counts={"claims": len(summary["claims"]), "claims_failed": failed})


def summarise(storage: Storage, *, only_audits: Collection[str] | None = None) -> dict[str, Any]:
    """Every number of the report, recomputed from the files.

    Args:
        only_audits: names of the audits to speak of; None: all. A report that was frozen before further audits is checked without them.
    """
    found, breaches = examine(storage)
    counts = gather_counts(storage, found)
    names = decided_partitions(storage)
    scored = filters_used(storage)
    summary: dict[str, Any] = {
        "counts": counts,
        "filters": [gather_filter(storage, used, names, counts) for used in scored],
        "audits": [found for found in gather_audits(storage, scored) if only_audits is None or found["audit"] in only_audits],
        "duplicates": gather_duplicates(storage, names),
        "contamination": gather_contamination(storage, names),
        "sources": gather_sources(storage, names) if scored else [],
        "words": gather_words(storage, names),
        "rules": gather_rules(storage, names),
        "weights": gather_weights(storage, names),
        "training": gather_training(storage),
        "samples": gather_samples(storage),
        "regurgitation": gather_regurgitation(storage),
        "stages": gather_stages(storage),
        "lineage": gather_lineage(storage),
    }
    summary["claims"] = gather_claims(summary, breaches)
    return summary


def render_table(summary: dict[str, Any]) -> str:
    """The end of a run as a table for a terminal."""
    counts = summary["counts"]
    lines = [("listed", f"{counts['listed']:,}", f"{counts['duplicates']:,} duplicates left out"), ("failed", f"{counts['failed']:,}", "")]
    lines += [(f"  {cause}", f"{count:,}", "") for cause, count in counts["failed_by_cause"].items()]
    lines.append(("dropped", f"{counts['dropped']:,}", ""))
    lines += [(f"  by {name}", f"{count:,}", "") for name, count in counts["dropped_by_filter"].items()]
    lines.append(("kept", f"{counts['kept']:,}", ""))
    lines += [
        (f"  in {name}", f"{entry['samples']:,}", f"{entry['shards']:,} shards, {entry['bytes']:,} bytes")
        for name, entry in counts["datasets"].items()
    ]
    alike = summary["duplicates"]
    if alike is not None:
        lines.append(("near-duplicates", f"{alike['images']:,}", f"in {alike['groups']:,} groups, the largest of {alike['largest']:,}"))
    lines += [
        (
            f"in evaluation set {entry['name']}",
            f"{entry['images']:,}",
            f"{entry['matched']:,} of its {entry['items']:,} images have a copy here",
        )
        for entry in summary["contamination"]
    ]
    for entry in summary["filters"]:
        promise = f"misses <= {entry['max_miss_rate']:.2%}"
        lines.append(
            (f"certificate {entry['name']}", promise, f"{entry['confidence']:.0%}, {entry['scope']}, {entry['num_positives']:,} positives")
        )
    for entry in summary["training"]:
        if entry["final_loss"] is not None:
            lines.append(
                (f"loss {entry['model']}", f"{entry['final_loss']:.4f}", f"from {entry['first_loss']:.4f}, {entry['steps']:,} steps")
            )
    near = summary["regurgitation"]
    if near is not None:
        lines.append(("closest sample", f"{near['closest_own']:.4f}", f"CLIP distance to its own training image, of {near['pairs']:,}"))
    lines += [
        (f"seconds {entry['stage']}", f"{entry['seconds']:,.1f}", f"{entry['partitions']:,} partitions") for entry in summary["stages"]
    ]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return "\n".join(f"{first:<{widths[0]}}  {second:>{widths[1]}}  {third}".rstrip() for first, second, third in lines)
