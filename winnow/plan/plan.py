"""The plan itself: what each stage takes, formula by formula. Stages run one after the other, each on all nodes of its kind."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from winnow.plan.ledger import Ledger
from winnow.plan.settings import ASSUMED_MFU, PlanSettings, Training

HOUR = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One line of the summary. Names of the ledger's numbers, not the numbers: they are looked up there."""

    stage: str
    kind: str
    """Nodes it runs on."""
    hours: str
    cost: str
    cpu_hours: str | None = None
    gpu_hours: str | None = None
    written: str | None = None
    """Bytes that it leaves."""
    limit: str
    """What its hours are decided by."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rows for people, and the ledger behind them."""

    currency: str
    rows: tuple[StageRow, ...]
    ledger: Ledger
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, numbers unrounded."""
        return {
            "currency": self.currency,
            "stages": [
                {
                    "stage": row.stage,
                    "nodes": row.kind,
                    "limited_by": row.limit,
                    **{key: self.ledger[name] for key in VALUES if (name := getattr(row, key)) is not None},
                }
                for row in self.rows
            ],
            "totals": {name.removeprefix("total_"): self.ledger[name] for name in self.ledger.lines if name.startswith("total_")},
            "given": {name: dataclasses.asdict(entry) for name, entry in self.ledger.given.items()},
            "computed": {name: dataclasses.asdict(line) for name, line in self.ledger.lines.items()},
            "notes": list(self.notes),
        }


VALUES = ("hours", "cpu_hours", "gpu_hours", "cost", "written")


def make_plan(settings: PlanSettings) -> Plan:
    """Computes the plan.

    Raises:
        ConfigError: a rate is 0 where it is divided by.
    """
    ledger = Ledger()
    _give(ledger, settings)
    ledger.compute("downloaded", "images", "listed * downloaded_share")
    ledger.compute("kept", "images", "downloaded * kept_share")
    ledger.compute("sample_bytes", "bytes", "image_bytes + sample_overhead_bytes")
    rows = [_download(ledger, settings), _embed(ledger, settings), _duplicates(ledger, settings), _score(ledger, settings)]
    rows.append(_shard(ledger, settings))
    rows += [_train(ledger, settings, training) for training in settings.train]
    _totals(ledger, rows, settings.currency)
    return Plan(currency=settings.currency, rows=tuple(rows), ledger=ledger, notes=_notes(ledger, settings))


def _give(ledger: Ledger, settings: PlanSettings) -> None:
    for group in (settings.workload, settings.rates):
        for entry in dataclasses.fields(group):
            default = f"default: {entry.metadata['source']}"
            origin = settings.origins.get(entry.name, default)
            ledger.give(entry.name, getattr(group, entry.name), entry.metadata["unit"], origin)
    for name, kind in settings.nodes.items():
        origin = f"nodes {name}: {kind.count} of them"
        for what, value, unit in (
            ("cpus", kind.count * kind.cpus, "CPUs"),
            ("gpus", kind.count * kind.gpus, "GPUs"),
            ("bytes_per_second", kind.count * kind.gbit_per_second * 1e9 / 8, "bytes a second"),
            ("price_per_hour", kind.count * kind.price_per_hour, f"{settings.currency} an hour"),
        ):
            ledger.give(f"{name}_{what}", value, unit, origin)
        if kind.gpus:
            ledger.give(f"{name}_peak_flops", kind.peak_tflops * 1e12, "FLOP a second, one GPU", origin)
    ledger.give("storage_price_per_tb_month", settings.storage_price_per_tb_month, f"{settings.currency} for 10^12 bytes a month", "plan")


def _finish(
    ledger: Ledger, settings: PlanSettings, stage: str, terms: dict[str, str], *, kind: str, gpu: bool = False, written: str | None = None
) -> StageRow:
    """Hours are the longest of what goes on at the same time; all nodes of the kind are paid for as long."""
    ledger.compute(f"{stage}_hours", "hours", f"overhead * max({', '.join([*terms, '0'])})")
    ledger.compute(f"{stage}_cost", settings.currency, f"{stage}_hours * {kind}_price_per_hour")
    return StageRow(
        stage=stage,
        kind=kind,
        hours=f"{stage}_hours",
        cost=f"{stage}_cost",
        cpu_hours=f"{stage}_cpu_hours" if f"{stage}_cpu_hours" in ledger.lines else None,
        gpu_hours=f"{stage}_gpu_hours" if gpu else None,
        written=written,
        limit=terms.get(ledger.largest(f"{stage}_hours"), "nothing"),
    )


def _download(ledger: Ledger, settings: PlanSettings) -> StageRow:
    kind = settings.kind_of("download")
    ledger.compute("raw_bytes", "bytes", "downloaded * sample_bytes")
    ledger.compute("download_cpu_hours", "CPU hours", f"listed * download_cpu_seconds / {HOUR}")
    terms = {
        f"download_cpu_hours / {kind}_cpus": "CPUs",
        f"listed * url_seconds / (url_threads * {kind}_cpus) / {HOUR}": "waiting for servers",
        # In from the web, and out to the workspace.
        f"2 * raw_bytes / {kind}_bytes_per_second / {HOUR}": "network",
    }
    return _finish(ledger, settings, "download", terms, kind=kind, written="raw_bytes")


def _embed(ledger: Ledger, settings: PlanSettings) -> StageRow:
    kind = settings.kind_of("embed")
    ledger.compute("crops", "crops", "downloaded * crops_per_image")
    ledger.compute("embedding_bytes", "bytes", "downloaded * (2 * feature_dim + 60)")  # uid, hash, size, brightness: 60, compressed
    network = {f"raw_bytes / {kind}_bytes_per_second / {HOUR}": "network"}
    if not settings.nodes[kind].gpus:
        ledger.compute("embed_cpu_hours", "CPU hours", f"(crops / crops_per_cpu_second + downloaded * decode_cpu_seconds) / {HOUR}")
        terms = {f"embed_cpu_hours / {kind}_cpus": "CPUs", **network}
        return _finish(ledger, settings, "embed", terms, kind=kind, written="embedding_bytes")
    ledger.compute("embed_gpu_hours", "GPU hours", f"crops / crops_per_gpu_second / {HOUR}")
    ledger.compute("embed_cpu_hours", "CPU hours", f"downloaded * decode_cpu_seconds / {HOUR}")
    terms = {f"embed_gpu_hours / {kind}_gpus": "GPUs", f"embed_cpu_hours / {kind}_cpus": "CPUs that decode", **network}
    return _finish(ledger, settings, "embed", terms, kind=kind, gpu=True, written="embedding_bytes")


def _duplicates(ledger: Ledger, settings: PlanSettings) -> StageRow:
    kind = settings.kind_of("duplicates")
    # As filters/duplicate_search.py: of a few every pair is compared; of many, those laid down in the same cells.
    if ledger["downloaded"] <= ledger["exact_rows"]:
        ledger.compute("cell_bytes", "bytes", "0")
        ledger.compute("duplicates_flops", "FLOP", "0")
        ledger.compute("hash_pairs", "pairs", "downloaded ** 2 / 2")
    else:
        ledger.compute("cells", "cells", "4 ** floor(log(downloaded / cell_rows, 4))")
        ledger.compute("cell_bytes", "bytes", "downloaded * nprobe * (2 * feature_dim + 53)")
        ledger.compute("duplicates_flops", "FLOP", "2 * feature_dim * downloaded * cells")
        ledger.compute("hash_pairs", "pairs", "nprobe * downloaded ** 2 / cells")
    spent = "duplicates_flops / gemm_flops_per_cpu_second + hash_pairs / hash_pairs_per_cpu_second"
    ledger.compute("duplicates_cpu_hours", "CPU hours", f"({spent}) / {HOUR}")
    terms = {
        f"duplicates_cpu_hours / {kind}_cpus": "CPUs",
        f"(embedding_bytes + 2 * cell_bytes) / {kind}_bytes_per_second / {HOUR}": "network",
    }
    return _finish(ledger, settings, "duplicates", terms, kind=kind, written="cell_bytes")


def _score(ledger: Ledger, settings: PlanSettings) -> StageRow:
    kind = settings.kind_of("score")
    ledger.compute("score_cpu_hours", "CPU hours", f"downloaded * filters * support_vectors * score_cpu_seconds / {HOUR}")
    ledger.compute("decision_bytes", "bytes", "listed * 60")  # uid, verdict, reasons, scores: 60 a row, compressed
    terms = {f"score_cpu_hours / {kind}_cpus": "CPUs", f"embedding_bytes / {kind}_bytes_per_second / {HOUR}": "network"}
    return _finish(ledger, settings, "score", terms, kind=kind, written="decision_bytes")


def _shard(ledger: Ledger, settings: PlanSettings) -> StageRow:
    kind = settings.kind_of("shard")
    ledger.compute("shard_bytes", "bytes", "kept * sample_bytes")
    ledger.compute("shard_cpu_hours", "CPU hours", f"kept * shard_cpu_seconds / {HOUR}")
    terms = {
        f"shard_cpu_hours / {kind}_cpus": "CPUs",
        # A raw tar on an object store is read whole for what is kept of it.
        f"(raw_bytes + shard_bytes) / {kind}_bytes_per_second / {HOUR}": "network",
    }
    return _finish(ledger, settings, "shard", terms, kind=kind, written="shard_bytes")


def _train(ledger: Ledger, settings: PlanSettings, training: Training) -> StageRow:
    kind, name = settings.kind_of("train"), f"train_{training.name}"
    for what, value, unit in (
        ("iterations", training.iterations, "iterations"),
        ("batch_size", training.batch_size, "images"),
        ("flops_per_image", training.gflops_per_image * 1e9, "FLOP, forward and backward"),
    ):
        ledger.give(f"{name}_{what}", value, unit, f"train {training.name}: {training.source}")
    origin = "default: assumed" if training.mfu is None else f"train {training.name}"
    ledger.give(f"{name}_mfu", ASSUMED_MFU if training.mfu is None else training.mfu, "of the GPU's peak", origin)
    ledger.compute(f"{name}_images", "images seen", f"{name}_iterations * {name}_batch_size")
    if training.samples is None:
        ledger.compute(f"{name}_epochs", "epochs", f"{name}_images / kept")
    else:
        ledger.give(f"{name}_samples", training.samples, "samples", f"train {training.name}: {training.source}")
        ledger.compute(f"{name}_epochs", "epochs", f"{name}_images / {name}_samples")
    ledger.compute(f"{name}_gpu_hours", "GPU hours", f"{name}_images * {name}_flops_per_image / ({kind}_peak_flops * {name}_mfu) / {HOUR}")
    terms = {
        f"{name}_gpu_hours / {kind}_gpus": "GPUs",
        f"{name}_images * sample_bytes / {kind}_bytes_per_second / {HOUR}": "network",
    }
    return _finish(ledger, settings, name, terms, kind=kind, gpu=True)


def _totals(ledger: Ledger, rows: list[StageRow], currency: str) -> None:
    for total, unit, key in (
        ("hours", "hours", "hours"),
        ("cpu_hours", "CPU hours", "cpu_hours"),
        ("gpu_hours", "GPU hours", "gpu_hours"),
        ("cost", currency, "cost"),
        ("bytes", "bytes", "written"),
    ):
        names = [name for row in rows if (name := getattr(row, key)) is not None]
        ledger.compute(f"total_{total}", unit, " + ".join(names) or "0")
    ledger.compute("total_storage_cost_per_month", f"{currency} a month", "total_bytes / 10 ** 12 * storage_price_per_tb_month")


def _notes(ledger: Ledger, settings: PlanSettings) -> tuple[str, ...]:
    """What a reader should know before believing it."""
    notes = []
    disks = sum(kind.count * kind.disk_tb for kind in settings.nodes.values()) * 1e12
    if disks and disks < ledger["total_bytes"]:
        notes.append(f"the nodes' disks hold {disks / 1e12:.3g} TB, the plan writes {ledger['total_bytes'] / 1e12:.3g} TB")
    guessed = [name for name, entry in ledger.given.items() if entry.origin.startswith("default: assumed")]
    if guessed:
        notes.append(f"assumed, give or measure them: {', '.join(guessed)}")
    if settings.nodes[settings.kind_of("embed")].gpus and "crops_per_gpu_second" not in settings.origins:
        notes.append("crops_per_gpu_second is another GPU's: measure yours with --measure")
    return tuple(notes)
