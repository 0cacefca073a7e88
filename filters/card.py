"""The card of a filter: one page about one version, for whoever has to decide whether to rely on it. What it says; filters/card_page.py
makes it look well.

Numbers come from the workspace alone, as the report's do; people's answers from the label store, if it is there.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from filters.agreement import Agreement, overall, pairs_of_people, people
from filters.certificate import percent
from filters.drift_watch import latest_drift
from filters.label_batches import batch_items
from filters.label_opinions import counted_value, standing
from filters.labels import LabelStore
from filters.promotion import paused_by, read_promotions
from filters.slice_columns import slice_filter
from filters.slices import Slice
from winnow.errors import ConfigError
from winnow.report.audits import gather_audits
from winnow.report.filters import gather_filter
from winnow.run_files import FilterUsed, decided_partitions, filters_used, read_json_if_any, rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, filter_folder

if TYPE_CHECKING:
    import pyarrow as pa

CLOSEST = 12
GLIDE_CAVEAT = (
    "GLIDE's own filter is a warning: for hate symbols it was aimed at two, both known from the West, and its authors say that the model "
    "may draw others more readily, and that its data lean towards Western concepts (model card of GLIDE (filtered), arXiv:2112.10741). "
    "A collection holds what its collectors know."
)


def gather_card(
    storage: Storage, name: str, *, version: str | None = None, store: LabelStore | None = None, extra: "pa.Table | None" = None
) -> dict[str, Any]:
    """Everything the card says.

    Args:
        version: None: the one the decisions were made with, or else the one in force.
        store: None: nothing is said of people.
        extra: further columns to slice by (filters/slice_columns.py).

    Raises:
        ConfigError: the filter has no such certified version.
    """
    used = version_used(storage, name, version)
    scored = any(one.version == used.version for one in filters_used(storage) if one.name == name)
    partitions = decided_partitions(storage) if scored else []
    entry = gather_filter(storage, used, partitions, _counts(storage, partitions))
    certificate = json.loads(storage.read_bytes(used.certificate_path))
    learning = read_json_if_any(storage, f"{used.folder}/learning.json") or {}
    audits = [found for found in gather_audits(storage, filters_used(storage)) if found["filter"] == name]
    slices = slice_filter(storage, name, used.folder, used.threshold, partitions, extra=extra) if scored else []
    return {
        "name": name,
        "version": used.version,
        "scored": scored,
        "entry": entry,
        "certificate": certificate,
        "curve": learning.get("curve"),
        "versions": version_curve(storage, name),
        "people": _people(store, name) if store is not None else None,
        "audits": audits,
        "slices": slices,
        "drift": latest_drift(storage, name, used.version),
        "paused": paused_by(storage, name),
        "promotions": read_promotions(storage, name),
        "misses": _misses(storage, used),
        "not_covered": not_covered(
            certificate, entry, slices, audited=any(found["status"] in ("pass", "fail") for found in audits), scored=scored
        ),
    }


def version_used(storage: Storage, name: str, version: str | None) -> FilterUsed:
    """The version that is meant, with its digest. Raises ConfigError if there is none."""
    used = {one.name: one for one in filters_used(storage)}.get(name)
    if used is not None and version in (None, used.version):
        return used
    if version is None:
        current = read_json_if_any(storage, f"filters/{name}/current.json")
        version = current["version"] if current else None
    path = f"{filter_folder(name, version)}/certificate.json" if version else ""
    if version is None or not storage.exists(path):
        known = sorted({path.split("/")[2] for path in storage.walk(f"filters/{name}") if path.endswith("/certificate.json")})
        there = ", ".join(known) or "none: run `winnow fit CONFIG`"
        raise ConfigError(f"{name} has no certified version {version or 'yet'} in {storage.url}; there are: {there}")
    threshold = json.loads(storage.read_bytes(path))["threshold"]
    return FilterUsed(name=name, version=version, threshold=threshold, certificate_sha256=storage.sha256(path))


def version_curve(storage: Storage, name: str) -> list[dict[str, Any]]:
    """Every certified version by its number of labels: clean images dropped, with interval."""
    found = []
    for path in storage.walk(f"filters/{name}"):
        if path.endswith("/certificate.json"):
            certificate = json.loads(storage.read_bytes(path))
            dropped = (certificate.get("test") or {}).get("clean_dropped") or {}
            if dropped.get("share") is not None:
                labels = sum(sum(counts.values()) for by_split in certificate["labels"].values() for counts in by_split.values())
                found.append({"version": path.split("/")[2], "labels": labels, **{key: dropped[key] for key in ("share", "low", "high")}})
    return sorted(found, key=lambda version: (version["labels"], version["version"]))


def not_covered(certificate: dict[str, Any], entry: dict[str, Any], slices: Sequence[Slice], *, audited: bool, scored: bool) -> list[str]:
    """What a reader must not take the card to say: the certificate's own list, and what follows from how the labels were drawn."""
    lines = list(certificate.get("does_not_cover", []))
    positives = Counter({row["origin"]: 0 for row in entry["labels"]})
    for row in entry["labels"]:
        positives[row["origin"]] += row["count"] if row["value"] == 1 else 0
    total = positives.total()
    collected = positives["import"]
    if total and collected * 2 >= total:
        lines.append(
            f"Kinds that the collection lacks: {collected:,} of the {total:,} labelled positives were collected and not met in the data."
        )
        lines.append(GLIDE_CAVEAT)
    if total and not positives["random"]:
        lines.append("How common what it looks for is in the data: no positive was met at random.")
    if not audited:
        lines.append("What people see in the images that it keeps: no audit of this version has ended.")
    thin = [f"{one.column}: {one.value}" for one in slices if one.dropped.n and not one.missed.n]
    if thin:
        shown = "; ".join(thin[:8]) + (f"; and {len(thin) - 8} more" if len(thin) > 8 else "")
        lines.append(f"Slices without a single labelled positive that was kept apart: {shown}.")
    if not scored:
        lines.append("The data as it is: no decisions were made with this version.")
    return lines


def _counts(storage: Storage, partitions: Sequence[str]) -> dict[str, Any]:
    """What the report counts over the whole decision log, as far as a filter's part of it needs."""
    by_filter: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for partition in partitions:
        for row in rows(read_table(storage, decisions(partition), ["verdict", "reasons"])):
            verdicts[row["verdict"]] += 1
            if row["verdict"] == "dropped":
                by_filter.update(row["reasons"])
                alone["+".join(row["reasons"])] += 1
    embedded = verdicts["kept"] + verdicts["dropped"]
    return {"dropped_by_filter": by_filter, "dropped_by_reasons": alone, "embedded": embedded, "kept": verdicts["kept"]}


def _people(store: LabelStore, name: str) -> dict[str, Any]:
    """Answers by person and mode, agreement, and open conflicts."""
    every = store.rows(name)
    page = [row for row in every if row.mode not in ("table", "triage")]
    planted = {
        (batch.name, item.uid): item.expected
        for batch in store.all_batches(name)
        for item in batch_items(store, batch)
        if item.expected is not None
    }
    told = Counter((row.person, row.mode, row.origin) for row in standing(every) if row.kind == "item" and counted_value(row) is not None)
    found: Agreement = overall(pairs_of_people(every).values())
    compared = found.both_yes + found.first_only + found.second_only + found.both_no
    return {
        "answers": [{"person": key[0], "mode": key[1], "origin": key[2], "count": count} for key, count in sorted(told.items())],
        "agreement": asdict(found) if compared else None,
        "compared": compared,
        "reports": [asdict(report) for report in people(page, planted)],
        "conflicts": len(store.conflicts(name)),
        "policy_versions": store.policy_versions(name),
    }


def _misses(storage: Storage, used: FilterUsed) -> list[dict[str, Any]]:
    """Labelled positives that the version keeps and was not fitted on, closest to the threshold first."""
    table = read_table(storage, used.labels_path, ["uid", "value", "split", "score", "origin"]).to_pylist()
    missed = [
        row for row in table if row["value"] == 1 and row["score"] is not None and row["score"] < used.threshold and row["split"] != "fit"
    ]
    return sorted(missed, key=lambda row: (-row["score"], row["uid"]))


def miss_line(misses: Sequence[dict[str, Any]], certificate: dict[str, Any]) -> str:
    """How many known misses there are, against how many the promise allows."""
    allowed = certificate["rank"] - 1
    calibrated = sum(row["split"] == "calibrate" for row in misses)
    return (
        f"{len(misses):,} labelled positives that the filter was not fitted on score below the threshold, {calibrated:,} of them among the "
        f"{certificate['num_positives']:,} that set it (its rule lets {allowed:,} of those pass, to promise at most "
        f"{percent(certificate['max_miss_rate'])})."
    )
