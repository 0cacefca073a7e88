"""Near-duplicates and contamination: what is done is in filters/duplicate_stage.py, features of evaluation sets in models/references.py."""

import time
from collections.abc import Sequence

from filters import duplicate_stage
from filters.duplicate_stage import CONTAMINATION, GROUPS, find_contamination, find_duplicates
from models import references
from models.clip_embedder import Weights, resolve_weights
from models.embedding import feature_digest
from models.references import embed_reference, reference_digest
from tasks import upstream
from tasks.config import RunConfig
from tasks.policy import stage_task
from winnow.partitions import StageRun, run_step
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.workspace import open_workspace

REFERENCES = "references"


def duplicates_stage(config: RunConfig) -> StageRun:
    """Finds near-duplicates among all embedded images, and images of evaluation sets; `score` decides about them."""
    began = time.monotonic()
    storage = open_workspace(config.workspace)
    embedded = upstream.outputs(storage, "embed", upstream.partitions(storage))
    weights = resolve_weights(config.embed)
    sets = _embed_references(storage, config, weights)
    matched = find_contamination(storage, config.duplicates, embedded, sets.outputs, workers=config.num_workers)
    space = feature_digest(config.embed, weights.sha256)
    runs = [sets, matched, *find_duplicates(storage, config.duplicates, embedded, space, workers=config.num_workers)]
    counts: dict[str, int] = {}
    for run in runs:
        if run.stage in (GROUPS, REFERENCES, CONTAMINATION):
            counts |= run.counts
    return StageRun(stage="duplicates", partitions=(), ran=sum(run.ran for run in runs), skipped=sum(run.skipped for run in runs),
                    counts=counts, seconds=time.monotonic() - began)  # fmt: skip


def settle_duplicates(storage: Storage, config: RunConfig, works: Sequence[Work], partitions: Sequence[str]) -> dict[str, str] | None:
    """Part of `score`: what the decision log must know of other images. See filters/duplicate_stage.py.

    Args:
        works: what scoring would do if no image had a copy.
    """
    contaminated = upstream.outputs(storage, CONTAMINATION, list(partitions)) if config.duplicates.references else {}
    if not contaminated:
        find_contamination(storage, config.duplicates, {}, {})
    return duplicate_stage.settle_duplicates(storage, config.duplicates, works, contaminated=contaminated, workers=config.num_workers)


def _embed_references(storage: Storage, config: RunConfig, weights: Weights) -> StageRun:
    hashed = {"config": config.embed, "weights_sha256": weights.sha256}
    works = []
    for name, source in sorted(config.duplicates.references.items()):
        place = {"source": source, "weights_path": weights.path}
        works.append(Work(name=name, inputs={"source": reference_digest(source)}, arguments=hashed, unhashed=place))
    return run_step(embed_reference, works, storage, stage=REFERENCES, version=references.VERSION, workers=config.num_workers)


duplicates = stage_task(duplicates_stage, name="duplicates")
