"""Everything a run can be told: the flows' one parameter, and what `winnow run CONFIG` reads.

A flow uses the parts it needs. The numbers are those of the paper or of a large cluster unless the line says otherwise;
`winnow config CONFIG` prints them settled.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from filters.catalog import FILTERS
from filters.drift import DriftConfig
from filters.duplicates import DuplicateConfig
from filters.importance import ImportanceConfig
from filters.label_page.settings import PageConfig
from filters.learning import LearnConfig
from filters.relabel import RelabelConfig
from filters.rules import Rule, check_rules
from filters.words import WordsConfig
from models.clip_embedder import ClipConfig
from models.recipes import RECIPES, STARTS_FROM
from models.sampled import SampleConfig
from models.training_data import DataShare
from winnow.configs import STRICT
from winnow.download_config import DownloadConfig
from winnow.errors import ConfigError
from winnow.partitions import EVERY_CPU
from winnow.shards import ShardConfig
from winnow.storage import Storage
from winnow.yaml_text import read_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One workspace: where the data comes from, what is kept of it, what is trained on it."""

    __pydantic_config__: ClassVar = STRICT

    workspace: str
    """Folder or fsspec url of everything a run writes."""
    manifest: str
    """YAML in the form of data_manifests/README.md: which lists of urls."""
    workers: int = 0
    """Partitions at a time; 0 takes every CPU of this machine, or of the Ray cluster that RAY_ADDRESS names."""
    partition_rows: int = 10_000
    """Rows of a partition, the unit of work."""
    opt_out: str | None = None
    """A list of urls, domains, uids and digests of images (text or parquet, docs/forget.md): never fetched, and forgotten if present."""
    download: DownloadConfig = field(default_factory=DownloadConfig)
    embed: ClipConfig = field(default_factory=ClipConfig)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    embed_gpus: float | None = None
    """GPUs of each embedding worker; 0.5 lets two share one, 0 embeds on CPUs. None takes one if this machine has any."""
    embed_threads: int = 0
    """Threads that decode beside each embedding worker's network, on CPUs that `workers` does not count; 0: 8 with a GPU, else 1."""
    filters: tuple[str, ...] = tuple(FILTERS)
    """Names in filters/catalog.py."""
    rules: tuple[Rule, ...] = ()
    """What captions and images must be like besides (docs/selection.md); every one that a pair breaks is a reason to drop it."""
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    words: WordsConfig = field(default_factory=WordsConfig)
    labels: str | None = None
    """A table (parquet or CSV) that answers instead of people: uid or url, and a column of 0 / 1 / empty for each filter."""
    label_store: str | None = None
    """SQLite file of the labels, or a postgresql:// url; None: labels/labels.sqlite in the workspace."""
    label_page: PageConfig = field(default_factory=PageConfig)
    imports: dict[str, str] = field(default_factory=dict)
    """Filter -> folder of curated images that it must drop."""
    learn: LearnConfig = field(default_factory=LearnConfig)
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    train: tuple[str, ...] = ("base", "noised-clip")
    """Recipes in models/training.py, trained one after the other."""
    train_data: dict[str, tuple[DataShare, ...]] = field(default_factory=dict)
    """Recipe -> the datasets it mixes, with shares that add up to 1 (docs/selection.md); others train on `shard.dataset` alone."""
    sample_weights: tuple[str, ...] = ()
    """Recipes whose loss weighs each sample by what `importance` and down-weighted duplicates say."""
    train_workers: int = 2
    """Ray Train workers: one a GPU, or CPU processes where there is none."""
    train_gpu: bool | None = None
    """Whether training takes GPUs; on a cluster, true waits until they join. None takes them if there are any when training begins."""
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        for name in self.filters:
            if name not in FILTERS:
                raise ConfigError(f"filters: there is no filter {name!r}. Choose from: {', '.join(FILTERS)}")
        check_rules(self.rules)
        for name in self.imports:
            if name not in self.filters:
                raise ConfigError(f"imports: {name!r} is not one of this run's filters ({', '.join(self.filters)})")
        for name in (*self.train, self.sample.recipe):
            if name not in RECIPES:
                raise ConfigError(f"train: there is no recipe {name!r}. Choose from: {', '.join(RECIPES)}")
        for name in self.train:
            start = STARTS_FROM.get(name)
            if start is not None and start not in self.train:
                raise ConfigError(f"train: {name} goes on from {start}: add {start} to the list")
        for name in (*self.train_data, *self.sample_weights):
            if name not in self.train:
                raise ConfigError(f"train_data, sample_weights: {name!r} is not one of the recipes in train ({', '.join(self.train)})")
        for setting in ("workers", "embed_threads", "train_workers"):
            if getattr(self, setting) < 0:
                raise ConfigError(f"{setting} must be 0 or more, got {getattr(self, setting)}")
        if self.embed_gpus is not None and self.embed_gpus < 0:
            raise ConfigError(f"embed_gpus must be 0 or more, got {self.embed_gpus}")
        if self.partition_rows < 1:
            raise ConfigError(f"partition_rows must be at least 1, got {self.partition_rows}")

    @property
    def num_workers(self) -> int:
        return self.workers or EVERY_CPU


_READER: TypeAdapter[RunConfig] | None = None


def run_config(values: dict[str, Any]) -> RunConfig:
    """A RunConfig from plain values, for example of a YAML file.

    Raises:
        ConfigError: naming every setting that is unknown or wrong.
    """
    try:
        return _reader().validate_python(values)
    except ValidationError as problem:
        raise ConfigError("\n".join(_line(dict(error)) for error in problem.errors())) from problem


def read_config(path: str) -> RunConfig:
    """Reads a run's YAML. Paths in it are taken relative to its own folder.

    Raises:
        ConfigError: no such file, no YAML, or a setting that is unknown or wrong.
    """
    try:
        values = read_yaml(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no config {path}") from None
    except OSError as problem:
        raise ConfigError(f"config {path} cannot be read: {problem.strerror}") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} is not YAML: {problem}") from problem
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings (name: value), see docs/run-on-your-data.md")
    try:
        return run_config(_rooted(values, Path(path).resolve().parent))
    except ConfigError as problem:
        raise ConfigError(f"{path}: {problem}") from problem


def label_store_path(storage: Storage, config: RunConfig) -> str:
    """Where the labels are: SQLite needs a local disk."""
    if config.label_store is not None:
        return config.label_store
    if not storage.is_local:
        raise ConfigError(f"labels of {storage.url} need a file on a local disk: give its path (label_store: in the config)")
    return storage.full("labels/labels.sqlite")


def plain(config: RunConfig) -> dict[str, Any]:
    """The settled config as plain values, every default spelled out."""
    return _reader().dump_python(config, mode="json")


def _reader() -> TypeAdapter[RunConfig]:
    global _READER
    if _READER is None:
        _READER = TypeAdapter(RunConfig)
    return _READER


def _line(error: dict[str, Any]) -> str:
    """One of pydantic's errors as a sentence; an unknown setting gets the list of the known ones."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "unexpected_keyword_argument":
        return f"{where or 'config'}: {error['msg'].removeprefix('Value error, ').replace('a valid tuple', 'a list')}"
    kind: Any = RunConfig
    for part in error["loc"][:-1]:
        # A number or a key steps into a list or dict of one kind of settings: the kind stays.
        kind = next((_settings_in(entry.type) for entry in dataclasses.fields(kind) if entry.name == part), kind)
    return f"{where}: unknown setting. Known: {', '.join(entry.name for entry in dataclasses.fields(kind))}"


def _settings_in(kind: Any) -> Any:
    """The dataclass of a setting's type, for example of dict[str, tuple[DataShare, ...]]."""
    inner = (_settings_in(one) for one in get_args(kind) if one is not Ellipsis)
    return kind if dataclasses.is_dataclass(kind) else next((one for one in inner if dataclasses.is_dataclass(one)), kind)


PATHS = ("workspace", "manifest", "labels", "label_store", "opt_out")


def _rooted(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    def rooted(path: Any) -> Any:
        return str(folder / path) if isinstance(path, str) and "://" not in path else path

    result = {key: rooted(value) if key in PATHS else value for key, value in values.items()}
    if isinstance(result.get("imports"), dict):
        result["imports"] = {name: rooted(path) for name, path in result["imports"].items()}
    if isinstance(result.get("train_data"), dict):  # a name without a folder is a dataset of this workspace
        result["train_data"] = {
            recipe: [
                {**one, "shards": rooted(one["shards"])} if isinstance(one, dict) and "/" in str(one.get("shards")) else one for one in data
            ]
            if isinstance(data, list)
            else data
            for recipe, data in result["train_data"].items()
        }
    found = result.get("duplicates")
    if isinstance(found, dict) and isinstance(found.get("references"), dict):
        result["duplicates"] = {**found, "references": {name: rooted(path) for name, path in found["references"].items()}}
    embed = result.get("embed")
    if isinstance(embed, dict) and "weights" in embed:
        result["embed"] = {**embed, "weights": rooted(embed["weights"])}
    return result
