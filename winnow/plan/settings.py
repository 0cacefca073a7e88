"""What a plan is made from: the size of the job, the cluster, unit rates, trainings. Read from YAML; every default says its source."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from winnow.configs import STRICT
from winnow.errors import ConfigError

STAGES = ("download", "embed", "duplicates", "score", "shard", "train")
ASSUMED_MFU = 0.4
HERE = "docs/benchmarks.md (unit rates), one thread of an Intel Xeon with AVX-512"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeKind:
    """Machines of one kind."""

    __pydantic_config__: ClassVar = STRICT

    count: int
    cpus: int
    """CPUs of one machine that work on partitions."""
    gpus: int = 0
    gbit_per_second: float
    """To and from the workspace and the web, of one machine."""
    disk_tb: float = 0.0
    """Of one machine, in 10^12 bytes; 0: the workspace lies elsewhere."""
    price_per_hour: float
    """Of one machine, in the plan's currency."""
    peak_tflops: float = 0.0
    """Of one GPU in the precision of training, dense, as its data sheet has it."""

    def __post_init__(self) -> None:
        for name in ("count", "cpus", "gbit_per_second"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"nodes: {name} must be above 0, got {getattr(self, name)}")
        for name in ("gpus", "disk_tb", "price_per_hour", "peak_tflops"):
            if getattr(self, name) < 0:
                raise ConfigError(f"nodes: {name} must be 0 or more, got {getattr(self, name)}")


def _rate(default: float, unit: str, source: str) -> Any:
    return field(default=default, metadata={"unit": unit, "source": source})


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """How much there is, and what a sample is like."""

    __pydantic_config__: ClassVar = STRICT

    listed: float = _rate(250e6, "urls", "GLIDE's 250 M pairs (arXiv:2112.10741, section 4)")
    downloaded_share: float = _rate(0.85, "of listed urls", "assumed; lists age")
    kept_share: float = _rate(0.3, "of downloaded images", "assumed; GLIDE kept 67 M of 250 M")
    image_bytes: float = _rate(120e3, "bytes an image as it is stored", "assumed; photos of 500 to 640 px have 135 kB")
    sample_overhead_bytes: float = _rate(3500, "bytes a sample: tar headers, padding, caption, json", "winnow/tars.py")
    crops_per_image: float = _rate(2.8, "crops", "assumed; three, one for a square image")
    feature_dim: float = _rate(512, "numbers of 2 bytes", "ViT-B/16")
    filters: float = _rate(3, "filters", "people, violence, hate_symbol")
    support_vectors: float = _rate(4000, "a filter", "assumed; docs/benchmarks.md measures 1,000 and 4,000")
    exact_rows: float = _rate(2e6, "images up to which every pair is compared", "DuplicateConfig.exact_rows")
    cell_rows: float = _rate(4096, "images a cell at least", "DuplicateConfig.cell_rows")
    nprobe: float = _rate(4, "cells searched an image", "DuplicateConfig.nprobe")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What one unit of work takes: on the spot by `--measure`, of a finished run by `--from`, or given."""

    __pydantic_config__: ClassVar = STRICT

    download_cpu_seconds: float = _rate(0.002, "CPU seconds a url", HERE)
    url_seconds: float = _rate(1.5, "seconds from the first to the last byte of a url", "assumed")
    url_threads: float = _rate(32, "urls at a time, each worker", "DownloadConfig.threads")
    decode_cpu_seconds: float = _rate(0.0018, "CPU seconds an image, decoded and cropped", HERE)
    crops_per_cpu_second: float = _rate(2.8, "crops, one thread", f"{HERE}, ViT-B/16 in fp32")
    crops_per_gpu_second: float = _rate(1100, "crops, one GPU", "published for ViT-B/16 on an A100 (clip-retrieval)")
    gemm_flops_per_cpu_second: float = _rate(8e10, "FLOP, matrix products with looking through them", HERE)
    hash_pairs_per_cpu_second: float = _rate(4e8, "pairs of images whose difference hashes are compared", HERE)
    score_cpu_seconds: float = _rate(1.2e-8, "CPU seconds a row and support vector", HERE)
    shard_cpu_seconds: float = _rate(0.0001, "CPU seconds a kept sample, read, hashed and written", HERE)
    overhead: float = _rate(1.05, "times the work itself: starting, receipts, stragglers", "assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A model's training."""

    __pydantic_config__: ClassVar = STRICT

    name: str
    iterations: float
    batch_size: float
    """Images of an iteration, on all GPUs together."""
    gflops_per_image: float
    """Forward and backward, 2 for a multiplication with its addition."""
    mfu: float | None = None
    """Share of the GPUs' peak that the training reaches; None assumes ASSUMED_MFU."""
    samples: float | None = None
    """What it trains on; None: the kept samples."""
    source: str = "given"

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "gflops_per_image"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train {self.name}: {name} must be above 0, got {getattr(self, name)}")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ConfigError(f"train {self.name}: mfu must be above 0 and at most 1, got {self.mfu}")
        if not self.name.replace("_", "").isalnum():
            raise ConfigError(f"train: a name is letters, digits and _, got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """A plan's file."""

    __pydantic_config__: ClassVar = STRICT

    nodes: dict[str, NodeKind]
    """Kinds of machines by name."""
    stages: dict[str, str] = field(default_factory=dict)
    """Stage -> kind of nodes it runs on; embed and train default to the first kind with GPUs, others to the first without."""
    workload: Workload = field(default_factory=Workload)
    rates: Rates = field(default_factory=Rates)
    train: tuple[Training, ...] = ()
    currency: str = "USD"
    storage_price_per_tb_month: float = 0.0
    """Of the workspace, for 10^12 bytes a month."""
    origins: dict[str, str] = field(default_factory=dict)
    """Name of a number -> where it is from, for those that are no defaults. Filled in when they are read or measured."""

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ConfigError("nodes: a plan needs at least one kind of machines")
        for name in self.nodes:
            if not name.isidentifier():
                raise ConfigError(f"nodes: a kind's name is letters, digits and _, for it stands in formulas; got {name!r}")
        for stage, kind in self.stages.items():
            if stage not in STAGES:
                raise ConfigError(f"stages: there is no stage {stage!r}. Choose from: {', '.join(STAGES)}")
            if kind not in self.nodes:
                raise ConfigError(f"stages: {stage} is to run on {kind!r}, which is none of the nodes ({', '.join(self.nodes)})")
        names = [training.name for training in self.train]
        if len(set(names)) < len(names):
            raise ConfigError("train: two trainings have one name")
        for group in (self.workload, self.rates):
            for entry in dataclasses.fields(group):
                if getattr(group, entry.name) < 0:
                    raise ConfigError(f"{entry.name} must be 0 or more, got {getattr(group, entry.name)}")
        for share in ("downloaded_share", "kept_share"):
            if getattr(self.workload, share) > 1:
                raise ConfigError(f"workload: {share} is a share, at most 1, got {getattr(self.workload, share)}")
        if self.train and self.nodes[self.kind_of("train")].gpus * self.nodes[self.kind_of("train")].peak_tflops == 0:
            raise ConfigError(f"train: nodes of the kind {self.kind_of('train')!r} need gpus and peak_tflops")

    def kind_of(self, stage: str) -> str:
        """The kind of nodes that a stage runs on."""
        if stage in self.stages:
            return self.stages[stage]
        wants_gpus = stage in ("embed", "train")
        return next((name for name, kind in self.nodes.items() if (kind.gpus > 0) == wants_gpus), next(iter(self.nodes)))


def read_settings(path: str) -> PlanSettings:
    """Reads a plan's YAML.

    Raises:
        ConfigError: no such file, no YAML, or a setting that is unknown or wrong.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from winnow.yaml_text import read_yaml

    try:
        values = read_yaml(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no plan {path}; docs/plan.md has one to start from") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} is not YAML: {problem}") from problem
    if not isinstance(values, dict) or "origins" in values:
        raise ConfigError(f"{path} must hold nodes, workload, rates, stages and train, see docs/plan.md")
    given = {name for group in ("workload", "rates") if isinstance(values.get(group), dict) for name in values[group]}
    try:
        return TypeAdapter(PlanSettings).validate_python({**values, "origins": dict.fromkeys(sorted(given), path)})
    except ValidationError as problem:
        lines = [f"{'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}" for error in problem.errors()]
        raise ConfigError(f"{path}: " + "\n".join(lines)) from problem


def with_numbers(settings: PlanSettings, numbers: dict[str, float], origin: str) -> PlanSettings:
    """The settings with rates and properties of the workload that were measured, unless the file gives them itself."""
    new = {name: value for name, value in numbers.items() if name not in settings.origins}
    workload = dataclasses.replace(settings.workload, **_those_of(Workload, new))
    rates = dataclasses.replace(settings.rates, **_those_of(Rates, new))
    return dataclasses.replace(settings, workload=workload, rates=rates, origins={**settings.origins, **dict.fromkeys(new, origin)})


def _those_of(kind: type[Workload] | type[Rates], numbers: dict[str, float]) -> dict[str, float]:
    return {entry.name: numbers[entry.name] for entry in dataclasses.fields(kind) if entry.name in numbers}
