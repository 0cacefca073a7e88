"""Labels that people give outside this program: which images to ask about, and the answers into a run's label store."""

import csv
from pathlib import Path

from filters.asking import images_to_label
from filters.catalog import FILTERS
from filters.label_files import import_labels
from filters.labels import LabelStore
from filters.learning import current_runs
from models.clip_embedder import resolve_weights
from tasks import upstream
from tasks.config import RunConfig
from tasks.filtering import SeedVectors, label_store_path
from tasks.session import session
from winnow.errors import ConfigError
from winnow.shards import read_samples
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import embeddings, raw_tar


def ask(config: RunConfig, filter_name: str, *, origin: str, count: int, out: str) -> tuple[int, str]:
    """Writes the images to be labelled and `labels.csv` (uid, value) into a folder.

    Returns:
        how many they are, and the filter's policy.

    Raises:
        ConfigError: an unknown filter or origin, or embeddings that are not there yet.
    """
    _check(filter_name)
    with session(config) as storage, LabelStore.open(label_store_path(storage, config)) as store:
        partitions = upstream.partitions(storage)
        upstream.outputs(storage, "embed", partitions)
        runs = current_runs(storage, [filter_name])
        uids = images_to_label(
            storage,
            filter_name,
            origin,
            count,
            partitions=partitions,
            store=store,
            seed=config.learn.seed,
            text_vectors=SeedVectors(config.embed, resolve_weights(config.embed), (filter_name,)),
            folder=runs[0].folder if runs else None,
        )
        _write_images(storage, partitions, set(uids), Path(out))
    with open(Path(out) / "labels.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["uid", "value"])
        table.writerows([uid, ""] for uid in uids)
    return len(uids), FILTERS[filter_name].policy


def import_table(config: RunConfig, filter_name: str, table: str, *, origin: str, person: str, replace: bool = False) -> int:
    """Adds a table's labels in one transaction; returns how many.

    Raises:
        ConfigError: an unknown filter or origin, a table that cannot be read, or uids that are not in the manifest.
    """
    _check(filter_name)
    with session(config) as storage, LabelStore.open(label_store_path(storage, config)) as store:
        partitions = upstream.partitions(storage)
        return import_labels(store, storage, filter_name, table, origin=origin, person=person, partitions=partitions, replace=replace)


def _check(filter_name: str) -> None:
    if filter_name not in FILTERS:
        raise ConfigError(f"there is no filter {filter_name!r}. Choose from: {', '.join(FILTERS)}")


def _write_images(storage: Storage, partitions: list[str], wanted: set[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for partition in partitions:
        if wanted.isdisjoint(read_table(storage, embeddings(partition), ["uid"])["uid"].to_pylist()):
            continue
        with storage.local_file(raw_tar(partition)) as tar:
            for sample in read_samples(tar):
                if sample.uid in wanted:
                    (folder / f"{sample.uid}.jpg").write_bytes(sample.image)
