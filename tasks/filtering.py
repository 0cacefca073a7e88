"""From features to filtered shards: fit, score, shard. What they do is in filters/ and winnow/shards.py."""

import functools
import time
from collections.abc import Iterator, Mapping

import numpy as np

from filters import scoring
from filters.catalog import FILTERS
from filters.labellers import Labeller, TableLabeller
from filters.labels import LabelStore
from filters.learning import FilterRun, current_runs, learn_filters
from models.clip_embedder import ClipConfig, Weights, loaded_clip, resolve_weights
from models.embedding import feature_digest
from tasks import upstream
from tasks.config import RunConfig, label_store_path
from tasks.duplicates import settle_duplicates
from tasks.policy import stage_task
from tasks.selection import settled_rules
from winnow import forgotten, resharding, shards
from winnow.errors import ConfigError
from winnow.manifest import manifest_rows
from winnow.partitions import StageRun, run_step
from winnow.reported import write_reported
from winnow.storage import Storage
from winnow.workspace import open_workspace


def fit_stage(config: RunConfig) -> StageRun:
    """Labels, fits and certifies every filter; a filter whose labels did not change stands."""
    began = time.monotonic()
    storage = open_workspace(config.workspace)
    partitions = upstream.partitions(storage)
    upstream.outputs(storage, "embed", partitions)
    weights = resolve_weights(config.embed)
    # Gated: a filter with a version in force gets its next one from a round of relabelling (filters/relabel.py).
    standing = current_runs(storage, config.filters) if config.relabel.gated else []
    wanted = tuple(name for name in config.filters if name not in {run.name for run in standing})
    with LabelStore.open(label_store_path(storage, config)) as store:
        runs = standing + learn_filters(
            storage,
            config.learn,
            filters=wanted,
            partitions=partitions,
            labeller=_labeller(storage, config, partitions),
            store=store,
            text_vectors=SeedVectors(config.embed, weights, config.filters),
            feature_digest=feature_digest(config.embed, weights.sha256),
            workers=config.num_workers,
        )
    return StageRun(stage="fit", partitions=(), ran=sum(run.fitted for run in runs), skipped=sum(not run.fitted for run in runs),
                    counts={f"{run.name}_labels": run.num_labels for run in runs}, seconds=time.monotonic() - began)  # fmt: skip


class SeedVectors(Mapping[str, np.ndarray]):
    """Filter -> unit vectors of its seed prompts. CLIP is loaded when the first is asked for: most runs ask for none."""

    def __init__(self, config: ClipConfig, weights: Weights, filters: tuple[str, ...]) -> None:
        self._config, self._weights, self._filters = config, weights, filters

    def __getitem__(self, name: str) -> np.ndarray:
        return loaded_clip(self._config, self._weights).encode_texts(FILTERS[name].seed_prompts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._filters)

    def __len__(self) -> int:
        return len(self._filters)


def score_stage(config: RunConfig) -> StageRun:
    """Writes the decision log: every listed uid, its scores, its verdict and the reasons."""
    storage = open_workspace(config.workspace)
    partitions = upstream.partitions(storage)
    runs = filter_runs(storage, config)
    scoring.check_features(storage, runs, feature_digest(config.embed, resolve_weights(config.embed).sha256))
    with LabelStore.open(label_store_path(storage, config)) as store:
        write_reported(storage, store.blocked(), partitions)
    raw, embedded = upstream.outputs(storage, "download", partitions), upstream.outputs(storage, "embed", partitions)
    rules, similarity = settled_rules(storage, config, partitions)
    works_of = functools.partial(scoring.score_works, storage, runs, raw=raw, embedded=embedded, rules=rules, similarity=similarity)
    works = works_of(copies=settle_duplicates(storage, config, list(works_of()), partitions))
    scoring.write_filters_json(storage, runs)
    return run_step(scoring.score_partition, works, storage, stage="score", version=scoring.VERSION, workers=config.num_workers)


def shard_stage(config: RunConfig) -> StageRun:
    """Writes the kept samples as webdataset shards, with their index."""
    storage = open_workspace(config.workspace)
    partitions = upstream.partitions(storage)
    works = resharding.plan_shards(
        config.shard,
        rows=manifest_rows(storage),
        holes=forgotten.holes(storage),
        raw=upstream.outputs(storage, "download", partitions),
        decided=upstream.outputs(storage, "score", partitions),
    )
    result = run_step(resharding.write_group, works, storage, stage=shards.STAGE, version=resharding.VERSION, workers=config.num_workers)
    shards.write_index(storage, config.shard.dataset)
    return result


def filter_runs(storage: Storage, config: RunConfig) -> list[FilterRun]:
    """The version in force of each of the run's filters."""
    runs = current_runs(storage, config.filters)
    missing = [name for name in config.filters if name not in {run.name for run in runs}]
    if missing:
        raise ConfigError(f"the filter {missing[0]} has no version yet: run `winnow fit CONFIG` first")
    return runs


def _labeller(storage: Storage, config: RunConfig, partitions: list[str]) -> Labeller | None:
    return None if config.labels is None else TableLabeller.from_table(storage, config.labels, partitions)


fit = stage_task(fit_stage, name="fit")
score = stage_task(score_stage, name="score")
shard = stage_task(shard_stage, name="shard")
