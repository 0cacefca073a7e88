"""What the answers to an audit batch prove: a JSON-able result that the report, the card and other programs read.

A batch proves something once. It is stale when the filter has changed since the draw, and used when its seed drew a batch before,
or when somebody answered again after its result had been taken.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from filters.agreement import people
from filters.audit_batch import AuditPlan, filter_used, inputs, judged
from filters.audit_bounds import leak_bound
from filters.label_batches import batch_items, events, record_event
from filters.label_opinions import answer_of, counted_value, standing
from filters.label_records import Batch, BatchItem, Row
from filters.labels import LabelStore
from filters.stratified_audit import Stratum, stratified_result
from winnow.errors import ConfigError
from winnow.run_files import FilterUsed
from winnow.storage import Storage

PASS, FAIL, NOT_MEASURED, STALE = "pass", "fail", "not measured", "stale"
REPORTED = "reported"
"""Event of a batch: its result was taken."""


def audit_result(storage: Storage, store: LabelStore, batch: Batch, *, person: str, command: str) -> dict[str, Any]:
    """What a batch proves, JSON-able; taking it is written down, so that later answers do not count unseen.

    Returns:
        claim, status ("pass", "fail", "not measured", "stale") with reasons, estimate, interval, n, method, command, inputs,
        and what is known of the inspectors.

    Raises:
        ConfigError: the batch is no audit batch drawn by `draw_audit`.
    """
    if batch.mode != "audit" or "audit" not in batch.details:
        raise ConfigError(f"batch {batch.name} of {batch.filter_name} is no audit: draw one with `winnow audit draw`")
    plan = AuditPlan(**{field.name: batch.details["audit"][field.name] for field in dataclasses.fields(AuditPlan)})
    used = filter_used(storage, batch.filter_name)
    rows, items = store.rows(batch.filter_name, batch=batch.name), batch_items(store, batch)
    verdicts, open_items = _verdicts(store, batch, rows, items)
    spoiled = _spoiled(store, batch, rows)
    stale = _changes(batch.details["inputs"], inputs(storage, used))
    found = _bound_by_score(storage, used, batch, plan, items, verdicts) if plan.stratified else _bound(plan, items, verdicts)
    at_most = found["interval"][1]
    if open_items:
        status, reasons = NOT_MEASURED, [f"{open_items:,} of {len(items):,} images lack the answers of {batch.overlap} people"]
    elif spoiled or stale:
        status, reasons = STALE, spoiled + stale
    else:
        status = PASS if at_most <= plan.max_leak else FAIL
        reasons = [f"the bound is {'at most' if status == PASS else 'above'} the limit of {plan.max_leak:.2%}, which was set at the draw"]
        record_event(store, batch, REPORTED, person, {"answers": len(rows), "status": status})
    return {
        "audit": batch.name,
        "filter": batch.filter_name,
        "version": batch.details["inputs"]["version"],
        "status": status,
        "reasons": reasons,
        **found,
        "confidence": plan.confidence,
        "max_leak": plan.max_leak,
        "seed": plan.seed,
        "drawn_at": batch.created_at,
        "inspectors": _inspectors(rows, items, batch),
        "command": command,
        "inputs": batch.details["inputs"],
    }


def _bound(plan: AuditPlan, items: Sequence[BatchItem], verdicts: Mapping[str, int]) -> dict[str, Any]:
    planted = [item.uid for item in items if item.kind == "honeypot"]
    looked = [item.uid for item in items if item.kind == "item"]
    bound = leak_bound(
        sum(verdicts.get(uid, 0) for uid in looked),
        sum(uid in verdicts for uid in looked),
        honeypots_found=sum(verdicts.get(uid, 0) for uid in planted),
        honeypots=sum(uid in verdicts for uid in planted),
        confidence=plan.confidence,
    )
    return {
        "claim": f"At most {bound.at_most:.3%} of the kept images should have been dropped.",
        "estimate": bound.estimate,
        "interval": [bound.low, bound.at_most],
        "n": bound.inspected,
        "found": bound.found,
        "honeypots": {
            "planted": bound.honeypots,
            "found": bound.honeypots_found,
            "sensitivity_at_least": bound.sensitivity_at_least,
        },
        "method": bound.method,
    }


def _bound_by_score(
    storage: Storage, used: FilterUsed, batch: Batch, plan: AuditPlan, items: Sequence[BatchItem], verdicts: Mapping[str, int]
) -> dict[str, Any]:
    planted = [verdicts[item.uid] for item in items if item.kind == "honeypot" and item.uid in verdicts]
    looked = {item.uid for item in items if item.kind == "item"}
    strata = [_stratum(entry) for entry in batch.details["strata"]]
    scores, rows_of = [], {}
    for row, (uid, score, _) in enumerate(judged(storage, used)):
        scores.append(score)
        if uid in looked and uid in verdicts:
            rows_of[uid] = row
    everything = np.array(scores)
    drawn: list[list[int]] = [[] for _ in strata]
    values: list[list[int]] = [[] for _ in strata]
    for uid, row in rows_of.items():
        place = next(i for i, stratum in enumerate(strata) if stratum.low <= everything[row] < stratum.high)
        drawn[place].append(row)
        values[place].append(verdicts[uid])
    rows, labels = [np.array(part, dtype=int) for part in drawn], [np.array(part, dtype=int) for part in values]
    result = stratified_result(
        everything, strata, rows, labels, confidence=plan.confidence, honeypots_found=sum(planted), honeypots=len(planted)
    )
    return {
        "claim": f"At most {result.leak_at_most:.3%} of the images that score below the threshold should have been dropped.",
        "estimate": result.leak,
        "interval": [0.0, result.leak_at_most],
        "n": sum(len(own) for own, stratum in zip(rows, strata, strict=True) if stratum.kept),
        "found": result.positives_kept,
        "stratified": dataclasses.asdict(result),
        "honeypots": {"planted": len(planted), "found": sum(planted), "sensitivity_at_least": result.sensitivity_at_least},
        "method": "images drawn by score, weighted back (Horvitz-Thompson), Clopper-Pearson bound of the kept stratum"
        + (" over the lower bound of honeypots seen" if planted else "; no honeypots: the inspectors are taken to see everything"),
    }


def _verdicts(store: LabelStore, batch: Batch, rows: Sequence[Row], items: Sequence[BatchItem]) -> tuple[dict[str, int], int]:
    """uid -> 1 if anybody saw a positive, was unsure or reported it, else 0, of complete items; and how many are not complete.

    An adjudication of an image overrules those who first looked; honeypots are judged by first looks alone.
    """
    settled = {row.uid: value for row in store.rows(batch.filter_name)
               if row.mode == "adjudicate" and row.kind == "item" and (value := counted_value(row)) is not None}  # fmt: skip
    latest: dict[str, dict[str, Row]] = {}
    for row in standing(rows):
        if answer_of(row) != "skip":
            latest.setdefault(row.uid, {})[row.person] = row
    verdicts = {}
    for item in items:
        given = list(latest.get(item.uid, {}).values())
        if any(answer_of(row) == "report" for row in given):
            verdicts[item.uid] = 1
        elif len(given) >= batch.overlap:
            first = int(any(answer_of(row) != "no" for row in given))
            verdicts[item.uid] = settled.get(item.uid, first) if item.kind == "item" else first
    return verdicts, len(items) - len(verdicts)


def _spoiled(store: LabelStore, batch: Batch, rows: Sequence[Row]) -> list[str]:
    """Why the batch no longer counts as looked at once: it was used before."""
    reasons = []
    for event, _, when, details in events(store, batch):
        if event == "drawn" and details.get("earlier"):
            reasons.append(f"used: seed {batch.seed} drew {details['earlier'][0]} before; draw by another seed")
        if event == REPORTED and len(rows) != details["answers"]:
            reasons.append(
                f"used: {len(rows) - details['answers']:,} answers came in after its result was taken ({when}); draw a fresh one"
            )
    return list(dict.fromkeys(reasons))


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What an audit spoke of and is no longer so."""
    if then["version"] != now["version"] or then["threshold"] != now["threshold"]:
        return [f"the filter changed since the draw: version {then['version']}, threshold {then['threshold']:.6g}, "
                f"now {now['version']}, {now['threshold']:.6g}"]  # fmt: skip
    if then["decisions"] != now["decisions"] or then["manifest"] != now["manifest"]:
        return ["images came or went since the draw: it speaks of those that were there"]
    return []


def _inspectors(rows: Sequence[Row], items: Sequence[BatchItem], batch: Batch) -> list[dict[str, Any]]:
    expected = {(batch.name, item.uid): item.expected for item in items if item.expected is not None}
    return [dataclasses.asdict(report) for report in people(rows, expected)]


def _stratum(entry: Mapping[str, Any]) -> Stratum:
    low = -np.inf if entry["low"] is None else entry["low"]
    return Stratum(**{**entry, "low": low, "high": np.inf if entry["high"] is None else entry["high"]})
