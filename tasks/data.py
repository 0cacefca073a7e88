"""From a manifest to features: manifest, download, embed. What they do is in winnow/ and models/."""

import time

from models import embedding
from models.clip_embedder import resolve_weights
from models.embedding import embed_folder, embed_partition, folder_images
from tasks import upstream
from tasks.config import RunConfig
from tasks.policy import stage_task
from winnow import download as downloading
from winnow.digests import digest
from winnow.download import download_partition, plan_downloads
from winnow.manifest import build_manifest, load_manifest
from winnow.partitions import StageRun, run_step
from winnow.receipts import Work
from winnow.workspace import open_workspace


def manifest_stage(config: RunConfig) -> StageRun:
    """Brings the partitions of listed urls up to date with the manifest's sources."""
    began = time.monotonic()
    storage = open_workspace(config.workspace)
    summary = build_manifest(storage, load_manifest(config.manifest), partition_rows=config.partition_rows)
    counts = {"listed": summary.listed, "new": summary.new, "duplicates": summary.duplicates, "withdrawn": summary.withdrawn}
    return StageRun(stage="manifest", partitions=(), ran=summary.new_partitions, skipped=summary.partitions - summary.new_partitions,
                    counts=counts, seconds=time.monotonic() - began)  # fmt: skip


def download_stage(config: RunConfig) -> StageRun:
    """Fetches every listed url into raw shards, or records why it failed."""
    storage = open_workspace(config.workspace)
    works = plan_downloads(upstream.partitions(storage), config.download)
    return run_step(download_partition, works, storage, stage="download", version=downloading.VERSION, workers=config.num_workers)


def embed_stage(config: RunConfig) -> StageRun:
    """Computes CLIP features of every downloaded image, and of the curated imports."""
    storage = open_workspace(config.workspace)
    weights = resolve_weights(config.embed)
    hashed = {"config": config.embed, "weights_sha256": weights.sha256}
    place = {"weights_path": weights.path}
    imports = []
    for name, folder in config.imports.items():
        content = digest(list(folder_images(folder)))
        imports.append(Work(name=name, inputs={"folder": content}, arguments=hashed, unhashed={**place, "folder": folder}))
    run_step(embed_folder, imports, storage, stage="import", version=embedding.VERSION, workers=config.num_workers)
    raw = upstream.outputs(storage, "download", upstream.partitions(storage))
    works = [Work(name=name, inputs={"raw": output}, arguments=hashed, unhashed=place) for name, output in raw.items()]
    return run_step(embed_partition, works, storage, stage="embed", version=embedding.VERSION, workers=config.num_workers)


manifest = stage_task(manifest_stage, name="manifest", timeout_hours=6)
download = stage_task(download_stage, name="download", timeout_hours=7 * 24)
embed = stage_task(embed_stage, name="embed")
