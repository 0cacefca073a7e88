"""Do verdicts follow from scores, scores from features, and thresholds from labels? All of it computed a second time."""

import math
from typing import Any

import numpy as np

from winnow.certificates import HELD_OUT_SCORE, read_certificate, recompute
from winnow.decisions import coarsened, score_column, value_column
from winnow.duplicates import copy_reasons
from winnow.findings import Ledger
from winnow.forgotten import SLUGS
from winnow.machines import TOLERANCE, Machine, feature_rows, read_machine
from winnow.progress import Progress
from winnow.reported import REASON, read_reported
from winnow.rules import RULES_USED, RuleUsed, rules_used
from winnow.run_files import FILTERS_USED, FilterUsed, filters_used, rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.verify_rules import broken_rules, check_limits, check_values
from winnow.workspace import decisions, embeddings, raw_table

SCORED_AGAIN = 256
"""Rows of each partition whose scores are computed again: those with the smallest uids, which are a random draw as uids are hashes."""


def check_certificates(storage: Storage, ledger: Ledger) -> None:
    for used in filters_used(storage):
        with ledger.reading("certificates", used.certificate_path):
            _check_certificate(storage, used, ledger)
        with ledger.reading("certificates", used.labels_path):
            _check_label_scores(storage, used, ledger)


def _check_certificate(storage: Storage, used: FilterUsed, ledger: Ledger) -> None:
    def differs(what: str, file: str = used.certificate_path) -> None:
        ledger.add("certificates", file, f"filter {used.name}: {what}")

    ledger.count("certificates")
    if storage.sha256(used.certificate_path) != used.certificate_sha256:
        differs(f"the certificate has another sha256 than {FILTERS_USED} names")
    certificate = read_certificate(storage, used)
    if (certificate.filter, certificate.version) != (used.name, used.version):
        differs(f"the certificate is that of {certificate.filter} {certificate.version}")
    if certificate.threshold != used.threshold:
        differs(f"the threshold {used.threshold!r} is not the certificate's, {certificate.threshold!r}", FILTERS_USED)
    found = recompute(certificate, read_table(storage, used.labels_path))
    if found.num_positives != certificate.num_positives:
        differs(f"the certificate counts {certificate.num_positives:,} calibration positives, the labels have {found.num_positives:,}")
    if found.threshold is None:
        differs(f"{found.num_positives:,} calibration positives cannot prove a miss rate of {certificate.max_miss_rate:.2%}")
    elif (found.rank, found.threshold) != (certificate.rank, certificate.threshold):
        differs(
            f"the labels give rank {found.rank} and threshold {found.threshold!r}, "
            f"the certificate says {certificate.rank} and {certificate.threshold!r}"
        )


def _check_label_scores(storage: Storage, used: FilterUsed, ledger: Ledger) -> None:
    """labels.parquet against labelled.parquet, which has the features, and the machine."""
    path = f"{used.folder}/labelled.parquet"
    if not storage.exists(path):
        return
    labels, labelled = read_table(storage, used.labels_path), read_table(storage, path)
    shared = [name for name in labels.column_names if name not in ("score", HELD_OUT_SCORE)]
    for name in shared:
        if labels[name].to_pylist() != labelled[name].to_pylist():
            ledger.add("certificates", used.labels_path, f"filter {used.name}: column {name} differs from {path}")
            return
    present = [row for row, value in enumerate(labelled["feature"].is_valid().to_pylist()) if value]
    features = feature_rows(labelled.take(present)["feature"])
    machine = read_machine(storage, f"{used.folder}/svm.safetensors")
    written = labels["score"].take(present).to_pylist()
    for row, again, score in zip(present, machine.scores(features), written, strict=True):
        ledger.count("certificates")
        if score is None or not abs(again - score) <= TOLERANCE:
            uid = labels["uid"][row].as_py()
            ledger.add("certificates", used.labels_path, f"filter {used.name}: {uid} has score {score}, its features give {again:.6f}")


def check_verdicts(storage: Storage, partitions: list[str], ledger: Ledger, progress: Progress) -> None:
    """Every row of the decision log, and the scores of some."""
    filters = filters_used(storage)
    machines: dict[str, Machine] = {}
    for used in filters:
        path = f"{used.folder}/svm.safetensors"
        with ledger.reading("verdicts", path):
            machines[used.name] = read_machine(storage, path)
    rules = rules_used(storage)
    with ledger.reading("verdicts", RULES_USED):
        check_limits(storage, ledger)
    for partition in partitions:
        with ledger.reading("verdicts", decisions(partition)):
            _check_partition(storage, partition, filters, rules, machines, ledger)
        progress.advance()


def _check_partition(
    storage: Storage, partition: str, filters: list[FilterUsed], rules: list[RuleUsed], machines: dict[str, Machine], ledger: Ledger
) -> None:
    path = decisions(partition)
    raw = {row["uid"]: row for row in rows(read_table(storage, raw_table(partition), ["uid", "status", "cause"]))}
    embedded = set(read_table(storage, embeddings(partition), ["uid"])["uid"].to_pylist())
    reported = read_reported(storage).get(partition, frozenset())
    copies = copy_reasons(storage, partition)
    decided: dict[str, dict[str, Any]] = {}
    last = ""
    for row in rows(read_table(storage, path)):
        ledger.count("verdicts")
        uid = row["uid"]
        decided[uid] = row
        if uid < last:
            ledger.add("verdicts", path, f"{uid} is out of order: rows must be sorted by uid")
        last = max(last, uid)
        wrong = _wrong(row, raw.get(uid), uid in embedded, filters, rules, [*copies.get(uid, ()), *[REASON] * (uid in reported)])
        if wrong:
            ledger.add("verdicts", path, f"{uid} {wrong}")
    _check_scores(storage, partition, decided, machines, {used.name: used.threshold for used in filters}, ledger)
    check_values(storage, partition, decided, rules, ledger)


def _wrong(
    row: dict[str, Any], raw: dict[str, Any] | None, embedded: bool, filters: list[FilterUsed], rules: list[RuleUsed], besides: list[str]
) -> str | None:
    """What is wrong with one decision; None if it follows from what is known about the sample.

    Args:
        besides: reasons that follow neither from scores nor from rules.
    """
    said = (row["verdict"], sorted(row["reasons"] or []))
    if raw is None:
        return "has a decision but no row in raw/"
    if raw["status"] != "downloaded" and raw["cause"] in SLUGS:
        due = ("dropped", [raw["cause"]])
        if any(value is not None for key, value in row.items() if key.startswith("score_")):
            return "was forgotten, but has scores"
    elif raw["status"] != "downloaded":
        due = ("failed", [f"download:{raw['cause'] or 'unknown'}"])
    elif not embedded:
        due = ("failed", ["embed:undecodable"])
    else:
        scores = {used.name: row.get(score_column(used.name)) for used in filters}
        missing = [name for name, score in scores.items() if score is None or not math.isfinite(score)]
        if missing:
            return f"has no score by {missing[0]}"
        try:
            broken = broken_rules(row, rules)
        except LookupError as problem:
            return f"has {problem.args[0]}"
        by_filters = [used.name for used in filters if row[score_column(used.name)] >= used.threshold]
        reasons = sorted([*by_filters, *broken, *besides])
        due = ("dropped" if reasons else "kept", reasons)
        if said != due:
            values = [f"{used.name} {scores[used.name]:.6g} against {used.threshold:.6g}" for used in filters]
            values += [f"{rule.name} {row[value_column(rule.name)]} against {rule.limits}" for rule in rules]
            return f"is {_spoken(said)}, but its scores say {_spoken(due)} ({', '.join(values)})"
    return None if said == due else f"is {_spoken(said)}, but raw/ and embeddings/ say {_spoken(due)}"


def _spoken(verdict: tuple[str, list[str]]) -> str:
    return verdict[0] + (f" by {', '.join(verdict[1])}" if verdict[1] else "")


def _check_scores(
    storage: Storage,
    partition: str,
    decided: dict[str, dict[str, Any]],
    machines: dict[str, Machine],
    thresholds: dict[str, float],
    ledger: Ledger,
) -> None:
    table = read_table(storage, embeddings(partition), ["uid", "feature"])
    order = np.argsort(np.array(table["uid"].to_pylist(), dtype=str), kind="stable")[:SCORED_AGAIN]
    chosen = table.take(order)
    features = feature_rows(chosen["feature"])
    for name, machine in machines.items():
        values = machine.scores(features)
        lowest, highest = (coarsened(values + sign * TOLERANCE, thresholds[name]) for sign in (-1, 1))
        for uid, again, low, high in zip(chosen["uid"].to_pylist(), values, lowest, highest, strict=True):
            row = decided.get(uid)
            if row is None:
                continue  # withdrawn, or a breach of conservation that is named there
            score = row.get(score_column(name))
            if score is None or not low <= score <= high:
                ledger.add("verdicts", decisions(partition), f"{uid} has score {score} by {name}, its features give {again:.6f}")
