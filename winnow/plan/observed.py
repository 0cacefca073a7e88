"""Unit rates of a finished run, from its receipts: seconds of a worker, which has one CPU or one GPU, waiting included."""

from collections.abc import Sequence

from winnow.errors import ConfigError
from winnow.machines import read_machine
from winnow.plan.settings import PlanSettings
from winnow.receipts import Receipt, list_done, read_receipt
from winnow.run_files import filters_used
from winnow.storage import Storage

AT_MOST = 200
"""Receipts of a stage that are read, evenly spread: a run of 25,000 partitions needs no more to tell its rates."""


def observed_numbers(storage: Storage, settings: PlanSettings) -> dict[str, float]:
    """Names of rates and of the workload's properties -> what the run's receipts say. Stages that have not run say nothing.

    Raises:
        ConfigError: the workspace has no finished partition of any stage.
    """
    download, embed, score, shard = (_receipts(storage, stage) for stage in ("download", "embed", "score", "shard"))
    numbers = {**_download(download, settings), **_embed(embed, settings), **_score(storage, score), **_shard(shard)}
    if not numbers:
        raise ConfigError(f"{storage.url} has no finished partition to take rates from: give them in the plan, or use --measure")
    return numbers


def _receipts(storage: Storage, stage: str) -> list[Receipt]:
    done = list_done(storage, stage)
    step = max(1, -(-len(done) // AT_MOST))
    return [read_receipt(storage, stage, entry) for entry in done[::step]]


def _sum(receipts: Sequence[Receipt], key: str) -> int:
    return sum(receipt.counts.get(key, 0) for receipt in receipts)


def _seconds(receipts: Sequence[Receipt]) -> float:
    return sum(receipt.seconds for receipt in receipts)


def _bytes(receipts: Sequence[Receipt], suffix: str) -> int:
    return sum(entry["bytes"] for receipt in receipts for path, entry in receipt.outputs.items() if path.endswith(suffix))


def _download(receipts: list[Receipt], settings: PlanSettings) -> dict[str, float]:
    downloaded = _sum(receipts, "downloaded")
    listed = downloaded + _sum(receipts, "failed")
    if not downloaded:
        return {}
    return {
        "downloaded_share": downloaded / listed,
        "image_bytes": max(0.0, _bytes(receipts, ".tar") / downloaded - settings.workload.sample_overhead_bytes),
        # A worker has `url_threads` urls on their way at a time: this gives back the worker's own seconds a url.
        "url_seconds": _seconds(receipts) * settings.rates.url_threads / listed,
    }


def _embed(receipts: list[Receipt], settings: PlanSettings) -> dict[str, float]:
    embedded, seconds = _sum(receipts, "embedded"), _seconds(receipts)
    devices = {str(receipt.facts.get("device")) for receipt in receipts}
    if not embedded or not seconds or len(devices) != 1:
        return {}
    kind = "gpu" if devices == {"cuda"} else "cpu"
    return {f"crops_per_{kind}_second": embedded * settings.workload.crops_per_image / seconds}


def _score(storage: Storage, receipts: list[Receipt]) -> dict[str, float]:
    kept, dropped = _sum(receipts, "kept"), _sum(receipts, "dropped")
    if not kept + dropped:
        return {}
    machines = [read_machine(storage, f"{used.folder}/svm.safetensors") for used in filters_used(storage)]
    num_vectors = sum(len(machine.dual) for machine in machines)
    if not num_vectors:
        return {"kept_share": kept / (kept + dropped)}
    return {
        "kept_share": kept / (kept + dropped),
        "filters": len(machines),
        "support_vectors": num_vectors / len(machines),
        "score_cpu_seconds": _seconds(receipts) / ((kept + dropped) * num_vectors),
    }


def _shard(receipts: list[Receipt]) -> dict[str, float]:
    samples = _sum(receipts, "samples")
    return {"shard_cpu_seconds": _seconds(receipts) / samples} if samples else {}
