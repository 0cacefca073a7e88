"""Beside the filters: how well captions fit, limits of rules, weights of kept samples, words before and after."""

import time

from filters import weighing, words
from filters.duplicate_stage import CHOOSE
from filters.rules import needs_similarity
from filters.ruling import settle_rules, write_rules_json
from filters.weighing import lay_weights, learn_importance, plan_shard_weights, weigh_partition, write_weights_index
from filters.words import count_words
from models import caption_similarity
from models.caption_similarity import compare_partition
from models.clip_embedder import resolve_weights
from models.embedding import feature_digest
from tasks import upstream
from tasks.config import RunConfig
from tasks.policy import stage_task
from winnow.digests import digest
from winnow.duplicates import duplicates_file
from winnow.partitions import StageRun, run_step
from winnow.receipts import Work, list_done, read_receipts
from winnow.rules import RuleUsed
from winnow.run_files import FILTERS_USED, manifest_index
from winnow.storage import Storage
from winnow.weights import shard_weights_index
from winnow.workspace import open_workspace


def similarity_stage(config: RunConfig) -> StageRun:
    """Compares captions with their images by CLIP, if a rule asks for that."""
    storage = open_workspace(config.workspace)
    works = []
    if needs_similarity(config.rules):
        partitions, weights = upstream.partitions(storage), resolve_weights(config.embed)
        hashed, place = {"config": config.embed, "weights_sha256": weights.sha256}, {"weights_path": weights.path}
        # A partition never changes, so its captions are known by its name.
        works = [
            Work(name=name, inputs={"embeddings": output}, arguments=hashed, unhashed=place)
            for name, output in upstream.outputs(storage, "embed", partitions).items()
        ]
    return run_step(
        compare_partition, works, storage, stage=caption_similarity.STAGE, version=caption_similarity.VERSION, workers=config.num_workers
    )


def settled_rules(storage: Storage, config: RunConfig, partitions: list[str]) -> tuple[list[RuleUsed], dict[str, str]]:
    """The run's rules with their limits, as recorded for all to see; and partition -> digest of the similarities they need.

    Raises:
        ConfigError: similarities are needed and not there.
    """
    similarity = upstream.outputs(storage, caption_similarity.STAGE, partitions) if needs_similarity(config.rules) else {}
    space = feature_digest(config.embed, resolve_weights(config.embed).sha256) if similarity else ""
    rules = settle_rules(storage, config.rules, similarity=similarity, space=space)
    write_rules_json(storage, rules)
    return rules, similarity


def weigh_stage(config: RunConfig) -> StageRun:
    """Gives every kept sample a weight, if importance or down-weighted duplicates ask for one, and lays weights beside the shards."""
    began = time.monotonic()
    storage = open_workspace(config.workspace)
    copies = config.duplicates.mode == "down_weight"
    wanted = config.importance.enabled or copies
    partitions = upstream.partitions(storage) if wanted else []
    decided = upstream.outputs(storage, "score", partitions) if wanted else {}
    learnt = run_step(learn_importance, _classifier(storage, config, partitions), storage, stage=weighing.LEARN, version=weighing.VERSION)
    chosen = (
        {path: entry["sha256"] for receipt in read_receipts(storage, CHOOSE) for path, entry in receipt.outputs.items()} if copies else {}
    )
    embedded = upstream.outputs(storage, "embed", partitions) if config.importance.enabled else {}
    works = [
        Work(
            name=name,
            inputs={
                "decisions": decided[name],
                **({"embeddings": embedded[name], "classifier": learnt.outputs["classifier"]} if config.importance.enabled else {}),
                **({"duplicates": chosen[duplicates_file(name)]} if copies else {}),
            },
            arguments={"importance": config.importance.enabled, "duplicates": copies},
        )
        for name in partitions
    ]
    weighed = run_step(weigh_partition, works, storage, stage=weighing.WEIGH, version=weighing.VERSION, workers=config.num_workers)
    dataset = config.shard.dataset
    beside = []
    if wanted:
        upstream.outputs(storage, "shard")
        beside = plan_shard_weights(storage, dataset, weighed.outputs)
    laid = run_step(lay_weights, beside, storage, stage=weighing.LAY, version=weighing.VERSION, workers=config.num_workers)
    if wanted:
        write_weights_index(storage, dataset)
    elif storage.exists(shard_weights_index(dataset)):
        storage.remove(shard_weights_index(dataset))
    runs = (learnt, weighed, laid)
    ran, skipped = sum(run.ran for run in runs), sum(run.skipped for run in runs)
    return StageRun(
        stage="weigh", partitions=weighed.partitions, ran=ran, skipped=skipped, counts=weighed.counts, seconds=time.monotonic() - began
    )


def words_stage(config: RunConfig) -> StageRun:
    """Counts the words of captions before and after dropping."""
    storage = open_workspace(config.workspace)
    partitions = upstream.partitions(storage)
    decided = upstream.outputs(storage, "score", partitions)
    weighed = {done.partition: done.output for done in list_done(storage, weighing.WEIGH)}
    halvings = config.words.halvings(manifest_index(storage)["listed"])
    works = [
        Work(
            name=name,
            inputs={"decisions": decided[name], **({"weights": weighed[name]} if name in weighed else {})},
            arguments={"groups": config.words.groups, "halvings": halvings, "weighted": name in weighed},
        )
        for name in partitions
    ]
    return run_step(count_words, works, storage, stage=words.STAGE, version=words.VERSION, workers=config.num_workers)


def _classifier(storage: Storage, config: RunConfig, partitions: list[str]) -> list[Work]:
    """Learnt anew with other filters, another CLIP or other settings; not when partitions come."""
    if not config.importance.enabled:
        return []
    inputs = {
        "filters": storage.sha256(FILTERS_USED),
        "features": feature_digest(config.embed, resolve_weights(config.embed).sha256),
        "rules": digest(config.rules),
    }
    return [Work(name="classifier", inputs=inputs, arguments={"config": config.importance}, unhashed={"partitions": tuple(partitions)})]


similarity = stage_task(similarity_stage, name="similarity")
weigh = stage_task(weigh_stage, name="weigh")
count = stage_task(words_stage, name="words")
