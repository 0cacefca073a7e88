"""What the trained models do: sample, regurgitation; and the report of everything. The work is in models/ and winnow/audit.py."""

import dataclasses

from models import regurgitation, sampled, training
from models.clip_embedder import resolve_weights
from models.sampled import Prompt, draw_prompts, sample_chunk, write_sample_index
from tasks import upstream
from tasks.config import RunConfig
from tasks.policy import stage_task
from winnow import audit
from winnow.errors import ConfigError
from winnow.partitions import StageRun, run_step
from winnow.receipts import Work, forget, list_done, read_receipts
from winnow.run_files import SUMMARY
from winnow.storage import Storage
from winnow.workspace import REPORT, open_workspace, shard_folder


def sample_stage(config: RunConfig) -> StageRun:
    """Draws samples for captions of kept images."""
    storage = open_workspace(config.workspace)
    prompts = _prompts(storage, config)
    trained = upstream.outputs(storage, "train", [config.sample.recipe])[config.sample.recipe]
    receipt = read_receipts(storage, "train", [config.sample.recipe])[0]
    works = []
    for start in range(0, len(prompts), config.sample.chunk):
        arguments = {
            "model": training.RECIPES[config.sample.recipe].model,
            "prompts": tuple(dataclasses.asdict(prompt) for prompt in prompts[start : start + config.sample.chunk]),
            "steps": config.sample.steps,
            "guidance_scale": config.sample.guidance_scale,
        }
        name = f"{config.sample.recipe}-{start // config.sample.chunk:05d}"
        works.append(
            Work(name=name, inputs={"checkpoint": trained}, arguments=arguments, unhashed={"checkpoint": receipt.facts["checkpoint"]})
        )
    result = run_step(sample_chunk, works, storage, stage="sample", version=sampled.VERSION, workers=config.num_workers)
    write_sample_index(storage, _folder(config), prompts, config.sample)
    return result


def regurgitation_stage(config: RunConfig) -> StageRun:
    """Compares each sample with its own training image and with its nearest kept image."""
    storage = open_workspace(config.workspace)
    partitions = upstream.partitions(storage)
    weights = resolve_weights(config.embed)
    work = Work(
        name=config.sample.recipe,
        inputs={
            "samples": upstream.outputs_digest(storage, "sample"),
            "features": upstream.outputs_digest(storage, "embed", partitions),
            "decisions": upstream.outputs_digest(storage, "score", partitions),
        },
        arguments={"config": config.embed, "weights_sha256": weights.sha256, "folder": _folder(config), "partitions": tuple(partitions)},
        unhashed={"weights_path": weights.path},
    )
    return run_step(
        regurgitation.check_regurgitation, [work], storage, stage="regurgitation", version=regurgitation.VERSION, workers=config.num_workers
    )


REPORTED = (
    "download",
    "import",
    "embed",
    "references",
    "contamination",
    "duplicates-pairs",
    "duplicates-choose",
    "score",
    "shard",
    "importance",
    "weigh",
    "words",
    "train",
    "sample",
    "regurgitation",
)


def report_stage(config: RunConfig) -> StageRun:
    """Writes the audit report from what is on storage: what has not run is shown as not measured."""
    storage = open_workspace(config.workspace)
    inputs = {f"{stage}/{done.partition}": done.output for stage in REPORTED for done in list_done(storage, stage)}
    if not inputs:
        raise ConfigError(f"{storage.url} holds nothing to report on: run `winnow run CONFIG` first")
    for path in ("manifest/index.json", "decisions/filters.json", "decisions/rules.json"):
        if storage.exists(path):
            inputs[path] = storage.sha256(path)
    inputs |= {path: storage.sha256(path) for path in storage.walk("audits")}
    if not all(storage.exists(path) for path in (REPORT, SUMMARY)):  # two files that people move and remove: worth a look
        forget(storage, "report", list_done(storage, "report"))
    work = Work(name="report", inputs=inputs)
    return run_step(audit.write_report, [work], storage, stage="report", version=audit.VERSION)


def _folder(config: RunConfig) -> str:
    return f"samples/{config.sample.recipe}"


def _prompts(storage: Storage, config: RunConfig) -> list[Prompt]:
    folder = shard_folder(config.shard.dataset)
    upstream.outputs(storage, "shard")
    sidecars = [f"{folder}/{name}" for name in storage.names(folder) if name.endswith(".parquet")]
    return draw_prompts(storage, sidecars, config.sample, _folder(config))


sample = stage_task(sample_stage, name="sample")
check_regurgitation = stage_task(regurgitation_stage, name="regurgitation")
report = stage_task(report_stage, name="report", timeout_hours=6)
