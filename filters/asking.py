"""Which images to ask about, and the batches of answers that come of it. A batch is drawn once and goes into the store whole."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from filters.active_learning import POOL, spread_out
from filters.catalog import FilterSpec
from filters.decision_values import Scorer
from filters.labellers import Labeller
from filters.labels import LabelStore, Origin
from filters.plan import LearnConfig
from filters.search import draw_at_random, nearest_by, search_by_text
from filters.svm import svm_from_bytes
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.tables import read_table


def imported(name: str) -> str:
    """Features of the images collected for a filter."""
    return f"imports/{name}.parquet"


def _next_batch(store: LabelStore, filter_name: str, origin: Origin) -> tuple[str, int]:
    """Name of an origin's next batch, and how many images earlier ones wanted (not how many they found: a small data set is
    not searched again and again)."""
    earlier = [wanted for drawn, wanted in store.batches(filter_name).values() if drawn == origin]
    return f"{origin}-{len(earlier)}", sum(earlier)


def _add(store: LabelStore, spec: FilterSpec, batch: str, origin: Origin, uids: Sequence[str], labeller: Labeller, wanted: int) -> None:
    answers = dict(zip(uids, labeller.answer(spec.name, uids), strict=True))
    store.add_batch(spec.name, batch, origin, answers, person=labeller.name, policy=spec.policy, wanted=wanted)


def label_imports(storage: Storage, spec: FilterSpec, store: LabelStore) -> None:
    """Every collected image is a positive: that is what it was collected for."""
    if not storage.exists(imported(spec.name)):
        return
    asked = store.asked(spec.name)
    uids = read_table(storage, imported(spec.name), ["uid"]).column("uid").to_pylist()
    new = [uid for uid in uids if "import" not in asked.get(uid, ())]
    if new:
        batch = _next_batch(store, spec.name, "import")[0]
        store.add_batch(spec.name, batch, "import", dict.fromkeys(new, 1), person="import", policy=spec.policy)


def ask_at_random(
    storage: Storage, config: LearnConfig, specs: Sequence[FilterSpec], partitions: Sequence[str], labeller: Labeller, store: LabelStore
) -> None:
    draws: dict[tuple[int, frozenset[str]], list[str]] = {}  # filters that ask for the same images share a draw
    for spec in specs:
        batch, had = _next_batch(store, spec.name, "random")
        lacking = config.plan_of(spec.name).random_labels - had
        if lacking > 0:
            key = (lacking, _drawn_at_random(store, spec.name))
            if key not in draws:
                draws[key] = draw_at_random(storage, partitions, lacking, seed=config.seed, leave_out=key[1])
            _add(store, spec, batch, "random", draws[key], labeller, lacking)


def ask_by_text(
    storage: Storage,
    config: LearnConfig,
    specs: Sequence[FilterSpec],
    partitions: Sequence[str],
    labeller: Labeller,
    store: LabelStore,
    text_vectors: Mapping[str, np.ndarray],
) -> None:
    next_batch = {spec.name: _next_batch(store, spec.name, "text_search") for spec in specs}
    lacking = {name: config.plan_of(name).text_search_labels - had for name, (_, had) in next_batch.items()}
    counts = {name: count for name, count in lacking.items() if count > 0}
    if not counts:
        return
    found = _nearest_to_text(storage, partitions, text_vectors, counts, store)
    for spec in specs:
        if spec.name in counts:
            _add(store, spec, next_batch[spec.name][0], "text_search", found[spec.name], labeller, counts[spec.name])


def ask_near_boundary(
    storage: Storage,
    config: LearnConfig,
    specs: Sequence[FilterSpec],
    partitions: Sequence[str],
    labeller: Labeller,
    store: LabelStore,
    folders: Mapping[str, str],
    batch: str,
) -> None:
    """
    Args:
        folders: filter -> folder of the version whose boundary is meant.
    """
    counts = {spec.name: config.plan_of(spec.name).boundary_labels for spec in specs}
    found = _nearest_to_boundary(storage, partitions, folders, counts, store)
    for spec in specs:
        _add(store, spec, batch, "boundary", found[spec.name], labeller, counts[spec.name])


def images_to_label(
    storage: Storage,
    name: str,
    origin: str,
    count: int,
    *,
    partitions: Sequence[str],
    store: LabelStore,
    seed: int,
    text_vectors: Mapping[str, np.ndarray],
    folder: str | None,
) -> list[str]:
    """The next images that people should label for a filter, when no labeller answers by itself. Nothing is written down:
    the same images come again until their labels are in the store (`import_labels`, with the same origin).

    Args:
        origin: "random", "text_search" or "boundary".
        folder: of the filter's version in force, for its boundary.

    Raises:
        ConfigError: an origin that nothing can be drawn by, or what it takes is not there.
    """
    if origin == "random":
        return draw_at_random(storage, partitions, count, seed=seed, leave_out=_drawn_at_random(store, name))
    if origin == "text_search":
        return _nearest_to_text(storage, partitions, text_vectors, {name: count}, store)[name]
    if origin != "boundary":
        raise ConfigError(f"images to label can be drawn by random, text_search or boundary, not by {origin!r}")
    if folder is None:
        raise ConfigError(f"{name} has no version yet whose boundary could be asked about: label by random and text_search first")
    return _nearest_to_boundary(storage, partitions, {name: folder}, {name: count}, store)[name]


def _drawn_at_random(store: LabelStore, name: str) -> frozenset[str]:
    return frozenset(uid for uid, origins in store.drawn(name).items() if "random" in origins)


def _nearest_to_text(
    storage: Storage, partitions: Sequence[str], text_vectors: Mapping[str, np.ndarray], counts: Mapping[str, int], store: LabelStore
) -> dict[str, list[str]]:
    if missing := sorted(set(counts) - set(text_vectors)):
        raise ConfigError(f"{missing[0]} has no text vectors to search by; give them, or set text_search_labels to 0")
    return search_by_text(storage, partitions, text_vectors, counts, leave_out={name: store.drawn(name).keys() for name in counts})


def _nearest_to_boundary(
    storage: Storage, partitions: Sequence[str], folders: Mapping[str, str], counts: Mapping[str, int], store: LabelStore
) -> dict[str, list[str]]:
    names = list(counts)
    scorer = Scorer([svm_from_bytes(storage.read_bytes(f"{folders[name]}/svm.safetensors")) for name in names])
    levels = np.array([json.loads(storage.read_bytes(f"{folders[name]}/learning.json"))["query_threshold"] for name in names])
    pools = nearest_by(
        storage,
        partitions,
        lambda features: np.abs(scorer.scores(features) - levels),
        names,
        POOL * max(counts.values()),
        leave_out={name: store.drawn(name).keys() for name in names},
    )
    chosen = {}
    for name, (uids, distances, features) in pools.items():
        pool = POOL * counts[name]
        chosen[name] = [uids[row] for row in spread_out(distances[:pool], features[:pool], counts[name])]
    return chosen
