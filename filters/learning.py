"""Learns filters: draws images to label, fits, asks near the boundary, fits again and certifies.

Each batch of labels is drawn once and goes into the store whole; each fit is a step with a receipt, its version a digest of
all that decides it. So a killed run goes on where it stopped, and with unchanged labels everything stands.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from filters.asking import ask_at_random, ask_by_text, ask_round, batches_of_round, imported, label_imports
from filters.catalog import FilterSpec, filter_specs
from filters.fitting import VERSION, FitConfig, fit_filter, labelled_table, what_is_missing
from filters.label_records import Label
from filters.labellers import Labeller
from filters.labels import LabelStore
from filters.plan import LabelPlan, LearnConfig
from filters.search import Features, find_features, join_features, read_features
from winnow.digests import SHORT, digest
from winnow.duplicates import bound_together
from winnow.errors import ConfigError, NotEnoughLabels
from winnow.partitions import run_step
from winnow.receipts import Work, list_done
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.workspace import filter_folder

__all__ = ["FilterRun", "LabelPlan", "LearnConfig", "current_runs", "learn_filters", "put_in_force", "stopping_advice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterRun:
    """A filter as it stands: what scoring needs to know."""

    name: str
    version: str
    threshold: float
    """Scores at or above it are dropped."""
    folder: str
    num_labels: int
    """Labels it was fitted, calibrated and tested with."""
    fitted: bool = False
    """It was fitted just now."""


def learn_filters(
    storage: Storage,
    config: LearnConfig,
    *,
    filters: tuple[str, ...],
    partitions: Sequence[str],
    labeller: Labeller | None,
    store: LabelStore,
    text_vectors: Mapping[str, np.ndarray],
    feature_digest: str,
    workers: int = 0,
    in_force: bool = True,
) -> list[FilterRun]:
    """Brings every filter up to date with its labels.

    Args:
        labeller: is asked for whatever batch is not in the store yet. None: people label elsewhere, and what is in the store is used.
        text_vectors: filter -> (prompts, dim) unit vectors of its seed prompts.
        feature_digest: of model and weights that made the embeddings: other features, other filters.
        in_force: the new versions are what scoring uses from now on; False leaves that to `put_in_force`.

    Raises:
        NotEnoughLabels: names every filter that lacks labels, how many, and of which origin.
    """
    specs = [config.spec_of(spec.name) for spec in filter_specs(filters)]
    for spec in specs:
        label_imports(storage, spec, store)
    if labeller is not None:
        ask_at_random(storage, config, specs, partitions, labeller, store)
        ask_by_text(storage, config, specs, partitions, labeller, store, text_vectors)
        for number in range(config.rounds):
            behind = [spec for spec in specs if not batches_of_round(config, spec.name, number + 1) <= store.batches(spec.name).keys()]
            if behind:
                fitted = _fit(storage, config, behind, partitions, store, feature_digest, workers, number=number, final=False)
                folders = {name: filter_folder(name, version) for name, (version, _) in fitted.items()}
                ask_round(storage, config, behind, partitions, labeller, store, folders, number + 1)
    fitted = _fit(storage, config, specs, partitions, store, feature_digest, workers, number=config.rounds, final=True)
    for spec in specs:
        if in_force:
            put_in_force(storage, spec.name, fitted[spec.name][0])
    return [_run(storage, name, version, fitted=is_new) for name, (version, is_new) in fitted.items()]


def put_in_force(storage: Storage, name: str, version: str) -> None:
    """From now on the filter is scored with this version; a file that says so already is left alone."""
    path, content = _current_path(name), json.dumps({"version": version}) + "\n"
    if not storage.exists(path) or storage.read_text(path) != content:
        storage.write_text(path, content)


def current_runs(storage: Storage, filters: Sequence[str]) -> list[FilterRun]:
    """The certified version in force of each of these filters that has one, without learning anything."""
    found = []
    for name in filters:
        if storage.exists(_current_path(name)):
            found.append(_run(storage, name, json.loads(storage.read_bytes(_current_path(name)))["version"], fitted=False))
    return found


def _current_path(name: str) -> str:
    return f"filters/{name}/current.json"


def _run(storage: Storage, name: str, version: str, *, fitted: bool) -> FilterRun:
    folder = filter_folder(name, version)
    certificate = json.loads(storage.read_bytes(f"{folder}/certificate.json"))
    num_labels = sum(sum(counts.values()) for by_split in certificate["labels"].values() for counts in by_split.values())
    return FilterRun(name=name, version=version, threshold=certificate["threshold"], folder=folder, num_labels=num_labels, fitted=fitted)


def _fit(
    storage: Storage,
    config: LearnConfig,
    specs: Sequence[FilterSpec],
    partitions: Sequence[str],
    store: LabelStore,
    feature_digest: str,
    workers: int,
    *,
    number: int,
    final: bool,
) -> dict[str, tuple[str, bool]]:
    """Filter -> its version, and whether it was fitted now."""
    stage, settings = f"fit-{number}", FitConfig(split=config.split, svm=config.svm, certificate=config.certificate)
    # A round that was cut short is asked for by the version that began it, which had not seen the round's own labels.
    later = {spec.name: frozenset() if final else batches_of_round(config, spec.name, number + 1) for spec in specs}
    labels = {name: [label for label in store.labels(name) if label.batch not in later[name]] for name in later}
    bound = bound_together(storage, {label.uid for of_one in labels.values() for label in of_one})
    works = {spec.name: _work(storage, spec, settings, store, labels[spec.name], feature_digest, bound, final=final) for spec in specs}
    standing = {(done.partition, done.fingerprint) for done in list_done(storage, stage)}
    stale = [spec for spec in specs if (spec.name, works[spec.name].fingerprint(stage, VERSION)) not in standing]
    if stale:
        _prepare(storage, settings, stale, works, partitions, labels, bound, final=final)
    run_step(fit_filter, works.values(), storage, stage=stage, version=VERSION, workers=workers, prune=False)
    new = {spec.name for spec in stale}
    return {name: (work.unhashed["version"], name in new) for name, work in works.items()}


def _work(
    storage: Storage,
    spec: FilterSpec,
    settings: FitConfig,
    store: LabelStore,
    labels: list[Label],
    feature_digest: str,
    bound: Mapping[str, str],
    *,
    final: bool,
) -> Work:
    unanswered: dict[str, int] = {}
    answered = {label.uid for label in labels}
    for uid, origins in store.asked(spec.name).items():
        if uid not in answered:
            for origin in origins:
                unanswered[origin] = unanswered.get(origin, 0) + 1
    inputs = {
        "labels": digest([[label.uid, label.value, label.origin, label.batch] for label in labels]),
        "features": feature_digest,
        "imports": storage.sha256(imported(spec.name)) if storage.exists(imported(spec.name)) else "",
    }
    if shared := _shared_groups(answered, bound):
        inputs["groups"] = digest(shared)
    arguments = {
        "spec": spec,
        "config": settings,
        "digests": {"labels_digest": inputs["labels"], "feature_digest": feature_digest},
        "asked": {"unanswered": dict(sorted(unanswered.items())), "policy_versions": store.policy_versions(spec.name)} if final else {},
        "final": final,
    }
    version = digest({"inputs": inputs, "arguments": arguments, "step": VERSION})[:SHORT]
    return Work(name=spec.name, inputs=inputs, arguments=arguments, unhashed={"version": version})


def _shared_groups(uids: Collection[str], bound: Mapping[str, str]) -> list[list[str]]:
    """Those of these images that are of one group. Copies of other images change no split, and so no filter."""
    by_group: dict[str, list[str]] = {}
    for uid in sorted(uids):
        if uid in bound:
            by_group.setdefault(bound[uid], []).append(uid)
    return sorted(found for found in by_group.values() if len(found) > 1)


def stopping_advice(storage: Storage, run: FilterRun) -> dict[str, Any]:
    """What more labels would buy a certified filter: points, twice, advice (filters/learning_curve.py).

    Raises:
        ConfigError: the version was fitted before learning curves were measured.
    """
    path = f"{run.folder}/learning.json"
    content: dict[str, Any] = json.loads(storage.read_bytes(path))
    if "curve" not in content:
        raise ConfigError(f"{path} has no learning curve; fit {run.name} anew")
    curve: dict[str, Any] = content["curve"]
    return curve


def _prepare(
    storage: Storage,
    settings: FitConfig,
    specs: Sequence[FilterSpec],
    works: Mapping[str, Work],
    partitions: Sequence[str],
    labels: Mapping[str, list[Label]],
    bound: Mapping[str, str],
    *,
    final: bool,
) -> None:
    """Lays labels and features ready for the fits, in one pass over the embeddings. Raises NotEnoughLabels for all filters at once."""
    wanted = {label.uid for spec in specs for label in labels[spec.name]}
    found = find_features(storage, partitions, wanted) if wanted else join_features([])
    tables = {}
    for spec in specs:
        collected = read_features(storage, imported(spec.name)) if storage.exists(imported(spec.name)) else _NONE
        tables[spec.name] = labelled_table(spec, settings, labels[spec.name], join_features([found, collected]), bound)
    lacking = [text for spec in specs if (text := what_is_missing(spec, settings, tables[spec.name], final=final))]
    if lacking:
        raise NotEnoughLabels(
            "\n".join(lacking) + "\nLabel them, raise the numbers in learn.plan, or promise less (learn.promises), docs/certificates.md."
        )
    for spec in specs:
        folder = filter_folder(spec.name, works[spec.name].unhashed["version"])
        write_table(storage, f"{folder}/labelled.parquet", tables[spec.name])


_NONE = Features(uids=[], features=np.zeros((0, 0), dtype=np.float32), dhashes=np.zeros(0, dtype=np.int64))
