"""The step that fits one filter from labels and features that lie ready, and certifies it.

`filters/<name>/<version>/`:
    labelled.parquet    what it is fitted from: uid, value, origin, batch, split, group, feature (null: image no longer there)
    svm.safetensors     the machine (filters/svm.py)
    learning.json       label counts, everything cross-validation tried, results on the test split; of a final version its learning
                        curve (filters/learning_curve.py), of another the positives it has not understood
    labels.parquet      uid, value, origin, batch, split, group, score; of a k-fold certificate held_out_score, too
    certificate.json    of a final version only (filters/certificate.py)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from filters.bounds import positives_needed
from filters.catalog import FilterSpec
from filters.certificate import Labelled, certify, count_labels, percent, test_results
from filters.cross_fitting import CrossFit, cross_fit, hard_positives
from filters.decision_values import Scorer, Svm
from filters.labels import Label
from filters.learning_curve import learning_curve
from filters.search import Features, feature_rows
from filters.splits import CertificateKind, SplitConfig, assign_splits, is_eligible, near_duplicate_groups
from filters.svm import TAIL, Fit, SvmConfig, fit_svm, svm_to_bytes, thin
from winnow.configs import STRICT
from winnow.errors import ConfigError, NotEnoughLabels
from winnow.partitions import Outcome
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import filter_folder

VERSION = 2
HARD_POSITIVES = 50
"""Positives whose neighbours are searched, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """What decides, with the labels, which machine comes out."""

    __pydantic_config__: ClassVar = STRICT

    split: SplitConfig = field(default_factory=SplitConfig)
    svm: SvmConfig = field(default_factory=SvmConfig)
    certificate: CertificateKind = "held_out"

    @property
    def shares(self) -> SplitConfig:
        """Shares of the splits, as the kind of certificate has them."""
        return self.split.for_kind(self.certificate)

    @property
    def fits_on(self) -> frozenset[str]:
        """Splits that are fitted on."""
        return frozenset({"fit"} if self.certificate == "held_out" else {"fit", "calibrate"})


def labelled_table(
    spec: FilterSpec, config: FitConfig, labels: list[Label], found: Features, bound: Mapping[str, str] | None = None
) -> pa.Table:
    """Labels with features, groups and splits: the content of labelled.parquet. Labels without features are in split "missing".

    Args:
        bound: uid -> group, of images that the search for near-duplicates found to be of one group.
    """
    row_of = {uid: row for row, uid in enumerate(found.uids)}
    present = [label for label in labels if label.uid in row_of]
    rows = [row_of[label.uid] for label in present]
    given = [(bound or {}).get(label.uid) for label in present]
    groups = near_duplicate_groups([label.uid for label in present], found.features[rows], found.dhashes[rows], given)
    splits = assign_splits(
        [label.uid for label in present],
        [label.value for label in present],
        [label.origin for label in present],
        groups,
        scope=spec.scope,
        config=config.shares,
    )
    placed = {label.uid: (str(split), group) for label, split, group in zip(present, splits, groups, strict=True)}
    dim = found.features.shape[1]
    features = [found.features[row_of[label.uid]].astype(np.float16) if label.uid in row_of else None for label in labels]
    return pa.table(
        {
            "uid": pa.array([label.uid for label in labels], pa.string()),
            "value": pa.array([label.value for label in labels], pa.int8()),
            "origin": pa.array([label.origin for label in labels], pa.string()),
            "batch": pa.array([label.batch for label in labels], pa.string()),
            "split": pa.array([placed.get(label.uid, ("missing", ""))[0] for label in labels], pa.string()),
            "group": pa.array([placed.get(label.uid, ("", label.uid))[1] for label in labels], pa.string()),
            "feature": pa.array(features, pa.list_(pa.float16(), dim)),
        }
    )


def what_is_missing(spec: FilterSpec, config: FitConfig, labelled: pa.Table, *, final: bool) -> str | None:
    """Which labels a filter lacks, how many and of which kind; None if there are enough to try."""
    value, origin, split = (labelled.column(name).to_pylist() for name in ("value", "origin", "split"))
    rows = list(zip(value, origin, split, strict=True))
    lacking = []
    for wanted, word in ((1, "positives"), (0, "negatives")):
        found = sum(v == wanted and s in config.fits_on for v, _, s in rows)
        if found < config.svm.min_fit_labels:
            lacking.append(f"{found} {word} to fit on, at least {config.svm.min_fit_labels} are needed")
    needed = positives_needed(spec.max_miss_rate, spec.confidence)
    held = sum(v == 1 and s == "calibrate" for v, _, s in rows)
    if final and held < needed:
        lacking.append(
            f"{held} calibration positives, and a miss rate of {percent(spec.max_miss_rate)} at {percent(spec.confidence)} "
            f"confidence takes {needed}: " + _how_many_more(spec, config, rows, needed - held)
        )
    return f"{spec.name}: {'; '.join(lacking)}" if lacking else None


def _how_many_more(spec: FilterSpec, config: FitConfig, rows: list[tuple[int, str, str]], lacking: int) -> str:
    share = config.shares.calibrate_share
    if spec.scope == "curated":
        return f"collect about {lacking / share:,.0f} more examples (origin import; {percent(share)} of them calibrate)"
    random = [value for value, origin, _ in rows if origin == "random"]
    positives = sum(is_eligible(spec.scope, value, "random") for value in random if value == 1)
    if not positives:
        return f"label more images drawn at random (origin random); of {len(random):,} so far none was positive, so how many cannot be told"
    rate = positives / len(random)
    return (
        f"label about {lacking / share / rate:,.0f} more images drawn at random (origin random; {percent(rate)} are positive, "
        f"{percent(share)} of them calibrate)"
    )


def fit_filter(
    storage: Storage,
    name: str,
    *,
    spec: FilterSpec,
    config: FitConfig,
    digests: dict[str, Any],
    asked: dict[str, Any],
    version: str,
    final: bool,
) -> Outcome:
    """Fits one filter from its labelled.parquet; a final version is certified.

    Args:
        digests: of labels and features, for the certificate.
        asked: what the label store knows beyond the labels (unanswered ones, policy versions), for the certificate.

    Raises:
        NotEnoughLabels: to fit, or to prove the promise.
    """
    folder = filter_folder(name, version)
    labelled = read_table(storage, f"{folder}/labelled.parquet")
    uids, origins, splits, groups = (labelled.column(column).to_pylist() for column in ("uid", "origin", "split", "group"))
    values = labelled.column("value").to_numpy().astype(np.int64)
    present = np.flatnonzero([split != "missing" for split in splits])
    features = feature_rows(labelled.column("feature").drop_null())

    place = np.flatnonzero([splits[row] in config.fits_on for row in present])  # among those present
    # Calibration positives are never thinned: fewer of them would prove less.
    easy = np.array([origins[present[i]] == "random" and splits[present[i]] == "fit" for i in place], dtype=bool)
    chosen = place[thin(values[present[place]], easy, [uids[present[i]] for i in place], config.svm)]
    rows, truth, names = features[chosen], values[present[chosen]], [groups[present[i]] for i in chosen]
    try:
        fit = fit_svm(rows, truth, names, config.svm)
    except NotEnoughLabels as problem:
        raise NotEnoughLabels(f"{name}: {problem}") from problem
    except ConfigError as problem:
        raise ConfigError(f"{name}: {problem}; embed it anew") from problem
    many = _cross_fitted(fit, rows, truth, names, config.svm) if config.certificate == "k_fold" or not final else None
    svm = fit.svm if many is None or config.certificate == "held_out" else many.mean
    scores, held_out = np.full(len(uids), np.nan), np.full(len(uids), np.nan)
    scores[present] = Scorer([svm]).scores(features)[:, 0]
    if many is not None:
        held_out[present[chosen]] = many.held_out
    result = Labelled(
        values=values, origins=origins, groups=groups, splits=splits, scores=scores,
        held_out=held_out if config.certificate == "k_fold" else None, folds=many.folds if many is not None else 0,
    )  # fmt: skip

    outputs = [f"{folder}/labelled.parquet", f"{folder}/svm.safetensors", f"{folder}/labels.parquet", f"{folder}/learning.json"]
    storage.write_bytes(outputs[1], svm_to_bytes(svm))
    scored = labelled.drop_columns(["feature"]).append_column("score", pa.array(scores, pa.float64(), from_pandas=True))
    if result.held_out is not None:
        scored = scored.append_column("held_out_score", pa.array(held_out, pa.float64(), from_pandas=True))
    write_table(storage, outputs[2], scored)
    learning = _learning(fit, svm, truth)
    threshold = learning["query_threshold"]
    if not final and many is not None:
        hard = hard_positives(many.held_out, truth, max(0.0, threshold), HARD_POSITIVES)
        learning["hard_positives"] = [uids[present[chosen[row]]] for row in hard]
    if final:
        learning["curve"] = learning_curve(
            rows, truth, names, cost=fit.cost, gamma=fit.gamma, folds=config.svm.folds, held_out=fit.held_out
        )
        found, certificate = certify(spec, result)
        threshold = found.value
        outputs.append(f"{folder}/certificate.json")
        statements = {"version": version, "cross_validation": learning["cross_validation"], "num_support_vectors": len(svm.dual)}
        _write_json(storage, outputs[-1], {**certificate, **digests, **asked, **statements})
    about = {"filter": name, "version": version, "final": final, "labels": count_labels(result), "test": test_results(result, threshold)}
    _write_json(storage, outputs[3], {**learning, **about})
    return Outcome(outputs=tuple(outputs), counts={"labels": len(uids), "support_vectors": len(svm.dual)})


def _cross_fitted(fit: Fit, rows: np.ndarray, truth: np.ndarray, names: list[str], config: SvmConfig) -> CrossFit:
    groups_of = (len({name for name, value in zip(names, truth.tolist(), strict=True) if value == wanted}) for wanted in (0, 1))
    folds = min(config.many_folds, *groups_of)
    return cross_fit(rows, truth, names, cost=fit.cost, gamma=fit.gamma, folds=folds)


def _learning(fit: Fit, svm: Svm, values: np.ndarray) -> dict[str, Any]:
    # Where to ask next. Calibration positives have no say in it, or they would shape the machine that they are to judge.
    query = float(np.quantile(fit.held_out[values == 1], TAIL))
    return {
        "cross_validation": {"chosen": {"cost": fit.cost, "gamma": fit.gamma}, "tried": list(fit.grid)},
        "fitted_on": {"positive": int((values == 1).sum()), "negative": int((values == 0).sum())},
        "num_support_vectors": len(svm.dual),
        "query_threshold": query,
    }


def _write_json(storage: Storage, path: str, content: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(content, sort_keys=True, indent=1) + "\n")
