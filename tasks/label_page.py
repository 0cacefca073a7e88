"""The label page over a run's workspace: which batch is worked on, drawn now if there is none open, and what is shown beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filters.agreement import Agreement, PersonReport, overall, pairs_of_people, people
from filters.asking import images_to_label
from filters.catalog import FILTERS
from filters.label_batches import batch_items, create_batch, find_batch
from filters.label_files import export_labels
from filters.label_page.desk import Desk, Work
from filters.label_page.pictures import Pictures
from filters.label_page.serve import serve
from filters.label_progress import progress
from filters.label_records import BLIND, TWO_PICTURES, Batch, Item, Mode, Origin
from filters.labels import LabelStore
from filters.learning import current_runs
from models.clip_embedder import resolve_weights
from models.embedding import folder_images
from tasks import upstream
from tasks.config import RunConfig
from tasks.filtering import SeedVectors, label_store_path
from tasks.two_pictures import new_batch as new_pairs
from winnow.digests import digest
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.workspace import existing_workspace

NUM_EXAMPLES = 6
"""Of each kind, beside the policy."""
REASONS: Mapping[str, str] = {
    "random": "drawn at random",
    "text_search": "near the words of the filter's prompts",
    "boundary": "near the classifier's boundary",
}
MADE_ELSEWHERE: tuple[Mode, ...] = ("audit",)
"""Modes whose batches are made by what they check."""


def label(
    config: RunConfig,
    filter_name: str,
    *,
    mode: Mode,
    batch: str | None,
    origin: Origin | None,
    count: int,
    overlap: int | None,
    people: Sequence[str],
    port: int,
    announce: Callable[[str], None],
) -> None:
    """Serves the page until it is stopped. The workspace is not locked: a run may go on meanwhile, and other people may label.

    Args:
        batch: to work on; None: the open one of this mode, or one that is drawn now.
        origin, count, overlap: of a batch that is drawn now.
        people: names of those who label; a link for each.
        announce: called with lines for the terminal.

    Raises:
        ConfigError: an unknown filter or batch, nothing to be drawn, a port that is taken.
    """
    storage = existing_workspace(config.workspace)
    if filter_name not in FILTERS and mode not in TWO_PICTURES:
        raise ConfigError(f"there is no filter {filter_name!r}. Choose from: {', '.join(FILTERS)}")
    with LabelStore.open(label_store_path(storage, config)) as store:
        found = find_batch(store, filter_name, batch) if batch else _open_batch(store, filter_name, mode)
        if found is None:
            found = _new_batch(storage, config, store, filter_name, mode, origin, count, overlap)
        elif batch and found.mode != mode and mode != "query":
            raise ConfigError(f"batch {batch} of {filter_name} is of mode {found.mode}, not {mode}")
        desk = Desk(store, *_work(storage, config, store, found), config.label_page)
        done = progress(store, found, people[0] if people else "")
        announce(f"batch {found.name} of {filter_name}, mode {found.mode}: {done.complete:,} of {done.total:,} answered. Stop with Ctrl-C.")
        tokens = Path(storage.full("labels/page-tokens.json")) if storage.is_local else None
        serve(desk, people, port=port, tokens=tokens, announce=announce)


def _open_batch(store: LabelStore, filter_name: str, mode: Mode) -> Batch | None:
    """The oldest batch of a mode that is not complete."""
    for batch in sorted(store.all_batches(filter_name), key=lambda batch: batch.created_at):
        if batch.mode == mode:
            done = progress(store, batch, "")
            if done.complete < done.total:
                return batch
    return None


def _new_batch(
    storage: Storage,
    config: RunConfig,
    store: LabelStore,
    filter_name: str,
    mode: Mode,
    origin: Origin | None,
    count: int,
    overlap: int | None,
) -> Batch:
    if mode in MADE_ELSEWHERE:
        raise ConfigError(f"{filter_name} has no open batch of mode {mode}, and none can be drawn here: what it checks makes it")
    seed = config.learn.seed
    if mode in TWO_PICTURES:
        return new_pairs(storage, store, filter_name, mode=mode, count=count, overlap=overlap, seed=seed)
    name = f"{mode}-{sum(batch.mode == mode for batch in store.all_batches(filter_name))}"
    if mode == "adjudicate":
        uids, drawn = [conflict.uid for conflict in store.conflicts(filter_name)], "random"
        if not uids:
            raise ConfigError(f"people agree on every image of {filter_name}: there is nothing to adjudicate")
        first = {label.uid: label.origin for label in store.labels(filter_name)}
        items = [Item(uid=uid, origin=first.get(uid, "random")) for uid in uids]
    else:
        drawn = origin or ("text_search" if mode == "triage" else "random")
        uids = _draw(storage, config, store, filter_name, drawn, count)
        if not uids:
            raise ConfigError(f"every image of {filter_name} that {drawn} finds has been asked about already")
        items = [Item(uid=uid, origin=drawn, reason=REASONS[drawn]) for uid in uids]
    return create_batch(
        store,
        filter_name,
        name,
        items,
        mode=mode,
        origin=drawn,  # type: ignore[arg-type]  # one of the literals above
        overlap=overlap,
        seed=seed,
        wanted=count if mode != "adjudicate" else None,
        details={"how": REASONS[drawn] if mode != "adjudicate" else "conflicts", "seed": seed},
    )


def _draw(storage: Storage, config: RunConfig, store: LabelStore, filter_name: str, origin: str, count: int) -> list[str]:
    partitions = upstream.partitions(storage)
    upstream.outputs(storage, "embed", partitions)
    runs = current_runs(storage, [filter_name]) if origin == "boundary" else []
    return images_to_label(
        storage,
        filter_name,
        origin,
        count,
        partitions=partitions,
        store=store,
        seed=config.learn.seed,
        text_vectors=SeedVectors(config.embed, resolve_weights(config.embed), (filter_name,)) if origin == "text_search" else {},
        folder=runs[0].folder if runs else None,
    )


def _work(storage: Storage, config: RunConfig, store: LabelStore, batch: Batch) -> tuple[Work, Pictures]:
    spec = FILTERS.get(batch.filter_name)
    items = batch_items(store, batch)
    files = folder_images(config.imports[batch.filter_name]) if batch.filter_name in config.imports else {}
    asked = {item.uid for item in items}
    asked |= {reference.removeprefix("uid:") for item in items for reference in item.pictures.values()}
    examples = _examples(store, batch.filter_name, asked, list(files)) if spec and batch.mode not in TWO_PICTURES else ()
    wanted = asked | {reference.removeprefix("uid:") for reference, _ in examples}
    work = Work(
        batch=batch,
        title=spec.title if spec else batch.filter_name.replace("_", " ").capitalize(),
        policy=spec.policy if spec else batch.question,
        blurred=spec.blurred if spec else bool(batch.details.get("blurred", False)),
        examples=examples,
        versions=_versions(storage, batch.filter_name) if batch.mode not in BLIND else (),
    )
    return work, Pictures(storage, upstream.partitions(storage), wanted, files=files)


def _examples(store: LabelStore, filter_name: str, asked: set[str], curated: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Images that people agree on, none of them in the batch, in an order that says nothing; curated ones first."""
    sure = [label for label in store.labels(filter_name) if not (label.conflict or label.unsure or label.uid in asked)]
    sure.sort(key=lambda label: digest(label.uid))
    positives = [uid for uid in curated if uid not in asked] or [
        label.uid for label in sure if label.value == 1 and label.origin != "import"
    ]
    negatives = [label.uid for label in sure if label.value == 0]
    return tuple((f"uid:{uid}", value) for own, value in ((positives, 1), (negatives, 0)) for uid in own[:NUM_EXAMPLES])


def _versions(storage: Storage, filter_name: str) -> tuple[dict[str, Any], ...]:
    """Labels and clean images dropped of every certified version, by number of labels."""
    found = []
    for path in storage.walk(f"filters/{filter_name}"):
        if path.endswith("/certificate.json"):
            certificate = json.loads(storage.read_bytes(path))
            dropped = certificate.get("test", {}).get("clean_dropped") or {}
            if dropped.get("share") is not None:
                labels = sum(sum(counts.values()) for by_split in certificate.get("labels", {}).values() for counts in by_split.values())
                found.append({"labels": labels, "clean_dropped": {name: dropped[name] for name in ("share", "low", "high")}})
    return tuple(sorted(found, key=lambda version: version["labels"]))


def export(config: RunConfig, filter_name: str, path: str) -> int:
    """Writes a filter's labels to a file; returns how many rows.

    Raises:
        ConfigError: an unknown filter, or a file that cannot be written.
    """
    storage = existing_workspace(config.workspace)
    with LabelStore.open(label_store_path(storage, config)) as store:
        if filter_name not in FILTERS and not store.all_batches(filter_name):
            raise ConfigError(f"there is no filter {filter_name!r}. Choose from: {', '.join(FILTERS)}")
        return export_labels(store, filter_name, path, storage=storage, partitions=upstream.partitions(storage))


def agreement(
    config: RunConfig, filter_name: str
) -> tuple[Agreement, dict[tuple[str, str], tuple[int, int, int, int]], list[PersonReport], int]:
    """Of the people who labelled a filter on the page: all pairs together, each pair's cells, each person, and open conflicts."""
    storage = existing_workspace(config.workspace)
    with LabelStore.open(label_store_path(storage, config)) as store:
        rows = store.rows(filter_name)
        pairs = pairs_of_people(rows)
        planted = {
            (batch.name, item.uid): item.expected
            for batch in store.all_batches(filter_name)
            for item in batch_items(store, batch)
            if item.expected is not None
        }
        asked = [row for row in rows if row.mode != "table"]
        return overall(pairs.values()), pairs, people(asked, planted), len(store.conflicts(filter_name))
