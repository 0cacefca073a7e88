"""Rounds of relabelling and the watch for drift, on a run's workspace. What they do is in filters/."""

import time
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from filters.asking import images_to_label
from filters.catalog import FILTERS
from filters.drift_watch import watch_drift
from filters.label_records import Origin
from filters.labellers import Labeller, TableLabeller
from filters.labels import LabelStore
from filters.learning import FilterRun, learn_filters
from filters.promotion import note, paused_by
from filters.relabel import Round, relabel_round
from models.clip_embedder import resolve_weights
from models.embedding import feature_digest
from tasks import upstream
from tasks.config import RunConfig
from tasks.filtering import SeedVectors, filter_runs, label_store_path
from tasks.policy import stage_task
from tasks.session import session
from winnow.errors import ConfigError
from winnow.partitions import StageRun
from winnow.run_files import decided_partitions, filters_used
from winnow.storage import Storage
from winnow.workspace import open_workspace

DRIFT_EVENT = "winnow.filter.drift"
"""Emitted once for each batch that drifted; flows/automations.py acts on it."""


def relabel_filter(config: RunConfig, filter_name: str) -> Round:
    """Goes on with a filter's round as far as it can: asks, or fits, compares and promotes.

    Raises:
        ConfigError: an unknown filter, or one that has no version in force yet.
    """
    if filter_name not in config.filters:
        raise ConfigError(f"{filter_name!r} is not one of this run's filters ({', '.join(config.filters)})")
    with session(config) as storage, LabelStore.open(label_store_path(storage, config)) as store:
        (run,) = [run for run in filter_runs(storage, config) if run.name == filter_name]
        partitions = upstream.partitions(storage)
        upstream.outputs(storage, "embed", partitions)
        labeller: Labeller | None = None if config.labels is None else TableLabeller.from_table(storage, config.labels, partitions)

        def draw(origin: Origin, count: int) -> list[str]:
            return images_to_label(
                storage,
                filter_name,
                origin,
                count,
                partitions=partitions,
                store=store,
                seed=config.learn.seed,
                text_vectors={},
                folder=run.folder,
            )

        return relabel_round(
            storage,
            store,
            config.relabel,
            run,
            draw=draw,
            fit=lambda: _fitted(storage, config, filter_name, store, partitions),
            policy=FILTERS[filter_name].policy,
            seed=config.learn.seed,
            labeller=labeller,
        )


def _fitted(storage: Storage, config: RunConfig, filter_name: str, store: LabelStore, partitions: list[str]) -> FilterRun:
    """A certified version from all labels there are; the one in force stays so."""
    weights = resolve_weights(config.embed)
    (run,) = learn_filters(
        storage,
        config.learn,
        filters=(filter_name,),
        partitions=partitions,
        labeller=None,
        store=store,
        text_vectors=SeedVectors(config.embed, weights, (filter_name,)),
        feature_digest=feature_digest(config.embed, weights.sha256),
        workers=config.num_workers,
        in_force=False,
    )
    return run


def resume_promotion(config: RunConfig, filter_name: str, *, person: str, reason: str) -> dict[str, Any]:
    """Ends a pause of promotion, with who did it and why.

    Raises:
        ConfigError: promotion of the filter is not paused.
    """
    with session(config) as storage:
        pause = paused_by(storage, filter_name)
        if pause is None:
            raise ConfigError(f"promotion of {filter_name} is not paused, so there is nothing to resume")
        return note(storage, filter_name, "resumed", {"person": person, "reason": reason, "pause": pause["reason"]})


def drift_stage(config: RunConfig) -> StageRun:
    """Compares partitions that came since a filter's version was in force with those it was certified on."""
    began = time.monotonic()
    storage = open_workspace(config.workspace)
    found = measured_drift(storage, config)
    counts = {f"{entry['filter']}_{entry['status'].replace(' ', '_')}": entry["new_images"] for entry in found}
    ran = sum(entry["now"] for entry in found)
    return StageRun(stage="drift", partitions=(), ran=ran, skipped=len(found) - ran, counts=counts, seconds=time.monotonic() - began)


def measured_drift(storage: Storage, config: RunConfig) -> list[dict[str, Any]]:
    """What is known of each scored filter's drift; what was not measured yet is measured now."""
    partitions = decided_partitions(storage)
    return [watch_drift(storage, used, partitions, config.drift) for used in filters_used(storage) if used.name in config.filters]


def emit_drift(config: RunConfig) -> int:
    """Tells Prefect of every drift that pauses promotion now: an event a filter, with the numbers. Returns how many.

    It is told at every run until a person resumes: an event lost with a server that was down comes again with the next run.
    """
    storage = open_workspace(config.workspace)
    told = 0
    for entry in measured_drift(storage, config):
        if entry["status"] == "drifted" and paused_by(storage, entry["filter"]) is not None:
            payload = {key: entry[key] for key in ("version", "psi", "mmd", "p_value", "reference_images", "new_images", "reasons")}
            resource = {
                "prefect.resource.id": f"winnow.filter.{entry['filter']}",
                "prefect.resource.name": entry["filter"],
                "winnow.version": entry["version"],
                "winnow.workspace": storage.url,
            }
            emit_event(event=DRIFT_EVENT, resource=resource, payload=payload)
            told += 1
    return told


drift = stage_task(drift_stage, name="drift")
tell_drift = task(name="tell of drift", cache_policy=NO_CACHE, persist_result=False)(emit_drift)
relabel_one = task(name="relabel", cache_policy=NO_CACHE, persist_result=False)(relabel_filter)
