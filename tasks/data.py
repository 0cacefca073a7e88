"""From a manifest to features: manifest, download, embed. What they do is in winnow/ and models/."""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from models import embedding
from models.clip_embedder import resolve_weights
from models.embedding import embed_folder, embed_partition, folder_images
from models.precision import bfloat16_advice
from tasks import upstream
from tasks.config import RunConfig
from tasks.opting_out import heed_opt_outs
from tasks.policy import stage_task
from winnow import download as downloading
from winnow.digests import digest
from winnow.download import PASSING, download_partition, is_meant, plan_downloads
from winnow.errors import ConfigError
from winnow.journal import remove_journals
from winnow.later import Later, forget_later, list_later
from winnow.manifest import build_manifest, load_manifest
from winnow.partitions import StageRun, run_step
from winnow.receipts import Work, list_done, read_receipts
from winnow.report.counts import CAUSES, explain_cause
from winnow.storage import Storage
from winnow.workspace import open_workspace

logger = logging.getLogger(__name__)


def manifest_stage(config: RunConfig) -> StageRun:
    """Brings the partitions of listed urls up to date with the manifest's sources."""
    began = time.monotonic()
    storage = open_workspace(config.workspace)
    summary = build_manifest(storage, load_manifest(config.manifest), partition_rows=config.partition_rows)
    heed_opt_outs(storage, config)
    counts = {"listed": summary.listed, "new": summary.new, "duplicates": summary.duplicates, "withdrawn": summary.withdrawn}
    return StageRun(stage="manifest", partitions=(), ran=summary.new_partitions, skipped=summary.partitions - summary.new_partitions,
                    counts=counts, seconds=time.monotonic() - began)  # fmt: skip


def download_stage(config: RunConfig) -> StageRun:
    """Fetches every listed url into raw shards, or records why it failed."""
    storage = open_workspace(config.workspace)
    config.download.check_contact()
    partitions = upstream.partitions(storage)
    earlier = list_later(storage)
    forget_later(storage, earlier, partitions)
    now = time.time()
    due = [name for name, entry in earlier.items() if entry.is_due(config.download.later, now)]
    result = _download(storage, config, partitions, earlier, {name: {"again": (PASSING,)} for name in due})
    _tell_if_nothing_came(storage, result)
    remove_journals(storage)
    heed_opt_outs(storage, config)  # only now are the images' digests known
    return result


def retry_stage(config: RunConfig, causes: tuple[str, ...]) -> StageRun:
    """Fetches failures by these causes again, in partitions that are finished.

    Raises:
        ConfigError: there is no such cause.
    """
    for cause in causes:
        if cause != PASSING and cause not in CAUSES and not re.fullmatch(r"http_\d{3}", cause):
            raise ConfigError(f"there is no cause {cause!r}. Choose from: {PASSING}, http_<status>, {', '.join(sorted(CAUSES))}")
    storage = open_workspace(config.workspace)
    config.download.check_contact()
    works = plan_downloads(upstream.partitions(storage), config.download)
    finished = {(work.name, work.fingerprint(downloading.STAGE, downloading.VERSION)) for work in works}
    receipts = [receipt for receipt in read_receipts(storage, downloading.STAGE) if (receipt.partition, receipt.fingerprint) in finished]
    meant = [receipt.partition for receipt in receipts if any(is_meant(cause, causes) for cause in receipt.facts["causes"])]
    if not meant:
        return StageRun(stage="retry", partitions=(), ran=0, skipped=len(receipts), counts={}, seconds=0.0)
    before = sum(receipt.counts["downloaded"] for receipt in receipts if receipt.partition in meant)
    result = _download(storage, config, meant, list_later(storage), {name: {"again": causes} for name in meant}, prune=False)
    heed_opt_outs(storage, config)
    mended = result.counts["downloaded"] - before
    return replace(result, stage="retry", counts={"mended": mended, "failed_still": result.counts["failed"]})


def _tell_if_nothing_came(storage: Storage, result: StageRun) -> None:
    """Where not one url gave an image the cause is one for all, and changing a config does not ask again by itself."""
    if result.counts.get("downloaded") or not result.counts.get("failed"):
        return
    receipt = read_receipts(storage, downloading.STAGE, [result.partitions[0].partition])[0]
    causes = sorted(receipt.facts["causes"], key=lambda cause: -receipt.facts["causes"][cause])
    logger.warning(
        "download: no url gave an image. In %s: %s. Once that is mended, `winnow retry CONFIG --cause %s` asks again (docs/download.md)",
        receipt.partition,
        "; ".join(f"{receipt.facts['causes'][cause]:,} {cause}: {explain_cause(f'download:{cause}')}" for cause in causes[:3]),
        causes[0],
    )


def _download(
    storage: Storage,
    config: RunConfig,
    partitions: list[str],
    earlier: Mapping[str, Later],
    redo: Mapping[str, Mapping[str, Any]],
    *,
    prune: bool = True,
) -> StageRun:
    works = plan_downloads(partitions, config.download, workers=config.num_workers, earlier=earlier)
    return run_step(
        download_partition,
        works,
        storage,
        stage=downloading.STAGE,
        version=downloading.VERSION,
        workers=config.num_workers,
        prune=prune,
        redo=redo,
    )


def embed_stage(config: RunConfig) -> StageRun:
    """Computes CLIP features of every downloaded image, and of the curated imports."""
    storage = open_workspace(config.workspace)
    weights = resolve_weights(config.embed)
    num_gpus = num_embed_gpus(config)
    place = {"weights_path": weights.path, "threads": config.embed_threads or (8 if num_gpus else 1)}
    advice = bfloat16_advice(torch.device("cuda" if num_gpus else "cpu"), config.embed.precision == "bf16")
    if advice and not list_done(storage, "embed"):
        logger.warning("embed: %s", advice)
    hashed = {"config": config.embed, "weights_sha256": weights.sha256}
    imports = []
    for name, folder in config.imports.items():
        content = digest(list(folder_images(folder)))
        imports.append(Work(name=name, inputs={"folder": content}, arguments=hashed, unhashed={**place, "folder": folder}))
    run_step(embed_folder, imports, storage, stage="import", version=embedding.VERSION, workers=config.num_workers, num_gpus=num_gpus)
    raw = upstream.outputs(storage, "download", upstream.partitions(storage))
    works = [Work(name=name, inputs={"raw": output}, arguments=hashed, unhashed=place) for name, output in raw.items()]
    return run_step(
        embed_partition, works, storage, stage="embed", version=embedding.VERSION, workers=config.num_workers, num_gpus=num_gpus
    )


def num_embed_gpus(config: RunConfig) -> float:
    """GPUs of each embedding worker. Ray hides them from a worker that did not ask for any."""
    if config.embed_gpus is not None:
        return config.embed_gpus
    return 1.0 if torch.cuda.is_available() else 0.0


manifest = stage_task(manifest_stage, name="manifest", timeout_hours=6)
download = stage_task(download_stage, name="download", timeout_hours=7 * 24)
embed = stage_task(embed_stage, name="embed")
