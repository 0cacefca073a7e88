"""The decision log: one partition of features -> a verdict, with scores and reasons, for every listed sample."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from filters.decision_values import Scorer
from filters.learning import FilterRun
from filters.ruling import limits_of, ruled
from filters.search import read_features
from filters.svm import svm_from_bytes
from winnow.decisions import schema, score_column, value_column
from winnow.digests import digest
from winnow.duplicates import copy_reasons
from winnow.errors import ConfigError, ConservationError
from winnow.forgotten import SLUGS
from winnow.partitions import Outcome
from winnow.receipts import Work
from winnow.reported import REASON, read_reported
from winnow.rules import RuleUsed
from winnow.run_files import withdrawn_uids
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import decisions, embeddings, filter_folder, manifest_part, raw_table

VERSION = 2
FILTERS_USED = "decisions/filters.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """The verdicts on a partition."""

    uids: list[str]
    """Sorted: the listed ones."""
    verdicts: list[str]
    counts: dict[str, int]
    table: pa.Table
    """The decision log's rows."""


def score_works(
    storage: Storage,
    runs: Sequence[FilterRun],
    *,
    raw: Mapping[str, str],
    embedded: Mapping[str, str],
    copies: Mapping[str, str] | None = None,
    rules: Sequence[RuleUsed] = (),
    similarity: Mapping[str, str] | None = None,
) -> Iterator[Work]:
    """What each partition's decisions depend on.

    Args:
        raw: partition -> output digest of its download.
        embedded: partition -> output digest of its embedding.
        copies: partition -> digest of what is known of its near-duplicates, where they were looked for.
        rules: with their limits.
        similarity: partition -> output digest of how well captions fit, where a rule needs it.
    """
    withdrawn, reported = withdrawn_uids(storage), read_reported(storage)
    filters = filters_used(storage, runs)
    for partition in sorted(embedded):
        inputs = {
            "raw": raw[partition],
            "embeddings": embedded[partition],
            "withdrawn": digest(sorted(withdrawn.get(partition, ()))),
            "reported": digest(sorted(reported.get(partition, ()))),
        }
        if copies is not None:
            inputs["copies"] = copies[partition]
        if similarity:
            inputs["similarity"] = similarity[partition]
        yield Work(name=partition, inputs=inputs, arguments={"filters": filters, **({"rules": limits_of(rules)} if rules else {})})


def check_features(storage: Storage, runs: Sequence[FilterRun], feature_digest: str) -> None:
    """Refuses filters that were fitted on features of another model than those at hand: their scores would mean nothing.

    Args:
        feature_digest: of model, weights and precision that make the embeddings now.

    Raises:
        ConfigError: names the first such filter.
    """
    for run in runs:
        fitted_on = json.loads(storage.read_bytes(f"{run.folder}/certificate.json")).get("feature_digest")
        if fitted_on != feature_digest:
            raise ConfigError(
                f"{run.name} {run.version} was fitted on features of another model (digest {fitted_on}, "
                f"those at hand have {feature_digest}). Run `winnow embed CONFIG` and `winnow fit CONFIG`: the labels are kept."
            )


def filters_used(storage: Storage, runs: Sequence[FilterRun]) -> list[dict[str, Any]]:
    """Name, version, threshold and certificate of each filter, as in decisions/filters.json."""
    return [
        {
            "name": run.name,
            "version": run.version,
            "threshold": run.threshold,
            "certificate_sha256": storage.sha256(f"{run.folder}/certificate.json"),
        }
        for run in runs
    ]


def write_filters_json(storage: Storage, runs: Sequence[FilterRun]) -> None:
    """Records which filters the decision log is made with; an equal file is left alone."""
    content = json.dumps(filters_used(storage, runs), sort_keys=True, indent=1) + "\n"
    if not storage.exists(FILTERS_USED) or storage.read_text(FILTERS_USED) != content:
        storage.write_text(FILTERS_USED, content)


def score_partition(
    storage: Storage, name: str, *, filters: Sequence[Mapping[str, Any]], rules: Sequence[Mapping[str, Any]] = (), device: str = "cpu"
) -> Outcome:
    """Writes decisions/<name>.parquet: a row for every listed uid. Withdrawn ones are left out, reported ones are dropped.

    Raises:
        ConservationError: manifest, download and embedding do not speak of the same samples.
    """
    decided = decide(storage, name, filters, copy_reasons(storage, name), rules, device)
    return Outcome.of(write_table(storage, decisions(name), decided.table), counts=decided.counts)


def decide(
    storage: Storage,
    name: str,
    filters: Sequence[Mapping[str, Any]],
    copies: Mapping[str, Sequence[str]],
    rules: Sequence[Mapping[str, Any]] = (),
    device: str = "cpu",
) -> Decided:
    """The verdict on every listed sample of a partition, not written anywhere.

    Args:
        copies: uid -> further reasons to drop it, which have to do with other images.
        rules: of caption and image, as `limits_of` gives them.
    """
    withdrawn = withdrawn_uids(storage).get(name, frozenset())
    reported = read_reported(storage).get(name, frozenset())
    listed = read_table(storage, manifest_part(name), ["uid"]).column("uid").to_pylist()
    raw = read_table(storage, raw_table(name), ["uid", "status", "cause"])
    cause = dict(zip(raw.column("uid").to_pylist(), _failures(raw), strict=True))
    found = read_features(storage, embeddings(name))
    _check(name, listed, raw.column("uid").to_pylist(), cause, found.uids)

    scorer = _scorer(storage, tuple((entry["name"], entry["version"]) for entry in filters), device)
    thresholds = [float(entry["threshold"]) for entry in filters]
    try:
        scores = scorer.coarse_scores(found.features, thresholds) if filters else np.zeros((len(found.uids), 0))
    except ConfigError as problem:
        raise ConfigError(f"{embeddings(name)}: {problem}") from problem
    dropped = scores >= np.array(thresholds)
    names = [entry["name"] for entry in filters]
    used = [RuleUsed(**{**rule, "any_of": tuple(rule.get("any_of", ()))}) for rule in rules]
    by_rules = ruled(storage, name, used, found.uids) if used else {}
    row_of = {uid: row for row, uid in enumerate(found.uids)}
    verdicts, reasons, rows = [], [], []
    uids = sorted(uid for uid in listed if uid not in withdrawn)
    for uid in uids:
        row = row_of.get(uid)
        rows.append(row)
        if row is None:
            reason = cause[uid] or "embed:undecodable"
            slug = reason.removeprefix("download:")
            verdicts.append("dropped" if slug in SLUGS else "failed")
            reasons.append([slug if slug in SLUGS else reason])
        else:
            reasons.append([filter_name for filter_name, drops in zip(names, dropped[row], strict=True) if drops])
            reasons[-1] += by_rules[uid][1] if used else []
            if uid in reported:
                reasons[-1].append(REASON)
            reasons[-1] += copies.get(uid, ())
            verdicts.append("dropped" if reasons[-1] else "kept")
    columns = {"uid": uids, "verdict": verdicts, "reasons": reasons}
    for column, filter_name in enumerate(names):
        columns[score_column(filter_name)] = [None if row is None else float(scores[row, column]) for row in rows]
    for column, rule in enumerate(used):
        columns[value_column(rule.name)] = [by_rules[uid][0][column] if uid in by_rules else None for uid in uids]
    counts = {verdict: verdicts.count(verdict) for verdict in ("kept", "dropped", "failed")}
    counts |= {slug: number for slug in SLUGS if (number := sum(of_one == [slug] for of_one in reasons))}
    if reported:
        counts[REASON] = sum(REASON in of_one for of_one in reasons)
    for filter_name in [*names, *(rule.name for rule in used)]:
        counts[f"dropped_by_{filter_name}"] = sum(
            filter_name in of_one for of_one, v in zip(reasons, verdicts, strict=True) if v == "dropped"
        )
    for kind in sorted({reason.partition(":")[0] for of_one in copies.values() for reason in of_one}):
        counts[f"dropped_as_{kind}"] = sum(any(reason.partition(":")[0] == kind for reason in of_one) for of_one in reasons)
    return Decided(uids=uids, verdicts=verdicts, counts=counts, table=pa.table(columns, schema=schema(names, used)))


@lru_cache(maxsize=2)
def _scorer(storage: Storage, versions: tuple[tuple[str, str], ...], device: str) -> Scorer:
    """One a worker process: versions are digests of their content, so what is cached is never out of date."""
    return Scorer([svm_from_bytes(storage.read_bytes(f"{filter_folder(*version)}/svm.safetensors")) for version in versions], device=device)


def _failures(raw: pa.Table) -> list[str | None]:
    """The reason slug of each row, None for those downloaded."""
    status, causes = raw.column("status").to_pylist(), raw.column("cause").to_pylist()
    return [None if state == "downloaded" else f"download:{cause or 'unknown'}" for state, cause in zip(status, causes, strict=True)]


def _check(name: str, listed: list[str], raw: list[str], cause: Mapping[str, str | None], embedded: list[str]) -> None:
    """Every listed sample has exactly one row of its download, and only downloaded ones are embedded, once."""
    for what, uids in ((manifest_part(name), listed), (raw_table(name), raw), (embeddings(name), embedded)):
        if len(set(uids)) != len(uids):
            raise ConservationError(f"{what}: {len(uids) - len(set(uids))} samples stand twice. Remove it and its receipt, and run again.")
    for what, wrong in (
        (f"{raw_table(name)} lacks a row of {{}} listed samples", set(listed) - set(raw)),
        (f"{raw_table(name)} has {{}} samples that are not listed", set(raw) - set(listed)),
        (f"{embeddings(name)} has {{}} samples that were not downloaded", {uid for uid in embedded if uid not in cause or cause[uid]}),
    ):
        if wrong:
            raise ConservationError(
                f"{what.format(len(wrong))}, the first is {min(wrong)}. Remove the file and its receipt, and run again."
            )
