"""Which images to ask about, and the batches of answers that come of it. A batch is drawn once and goes into the store whole."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from filters.active_learning import POOL, RoundParts, parts_of_round, spread_out
from filters.catalog import FilterSpec
from filters.decision_values import Scorer
from filters.labellers import Labeller
from filters.labels import LabelStore, Origin
from filters.plan import LearnConfig
from filters.search import draw_at_random, feature_rows, nearest_by, search_by_text
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
    batches = store.batches(filter_name).items()
    # The controls of a round are drawn at random too, but the plan counts them with their round.
    earlier = [wanted for name, (drawn, wanted) in batches if drawn == origin and not name.startswith("control-")]
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


def batches_of_round(config: LearnConfig, name: str, number: int) -> frozenset[str]:
    """The batches that a filter's round consists of: boundary-1, neighbour-1, control-1, those of a share of 0 left out."""
    parts = dataclasses.asdict(_parts(config, name))
    return frozenset(f"{part}-{number}" for part, count in parts.items() if count)


def _parts(config: LearnConfig, name: str) -> RoundParts:
    plan = config.plan_of(name)
    return parts_of_round(plan.boundary_labels, neighbour_share=plan.neighbour_share, control_share=plan.control_share)


def ask_round(
    storage: Storage,
    config: LearnConfig,
    specs: Sequence[FilterSpec],
    partitions: Sequence[str],
    labeller: Labeller,
    store: LabelStore,
    folders: Mapping[str, str],
    number: int,
) -> None:
    """A round of active learning: its parts one after another, so that none asks again what another has asked.

    A part that is in the store already is left alone; a killed run goes on with the next.

    Args:
        folders: filter -> folder of the version that asks.
        number: of the round, from 1.
    """

    def behind(part: str) -> dict[str, int]:
        counts = {spec.name: getattr(_parts(config, spec.name), part) for spec in specs}
        return {name: count for name, count in counts.items() if count and not store.has_batch(name, f"{part}-{number}")}

    def add(part: str, origin: Origin, counts: Mapping[str, int], found: Mapping[str, Sequence[str]]) -> None:
        for spec in specs:
            if spec.name in counts:
                _add(store, spec, f"{part}-{number}", origin, found[spec.name], labeller, counts[spec.name])

    if counts := behind("boundary"):
        add("boundary", "boundary", counts, _nearest_to_boundary(storage, partitions, folders, counts, store))
    if counts := behind("neighbour"):
        add("neighbour", "neighbour", counts, _nearest_to_hard_positives(storage, partitions, folders, counts, store))
    if counts := behind("control"):
        draws = {
            name: draw_at_random(storage, partitions, count, seed=config.seed, leave_out=_drawn_at_random(store, name))
            for name, count in counts.items()
        }
        add("control", "random", counts, draws)


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
        origin: "random", "text_search", "boundary", or "neighbour" of positives that the filter has not understood.
        folder: of the filter's version in force, for its boundary.

    Raises:
        ConfigError: an origin that nothing can be drawn by, or what it takes is not there.
    """
    if origin == "random":
        return draw_at_random(storage, partitions, count, seed=seed, leave_out=_drawn_at_random(store, name))
    if origin == "text_search":
        return _nearest_to_text(storage, partitions, text_vectors, {name: count}, store)[name]
    if origin not in ("boundary", "neighbour"):
        raise ConfigError(f"images to label can be drawn by random, text_search, boundary or neighbour, not by {origin!r}")
    if folder is None:
        raise ConfigError(f"{name} has no version yet whose boundary could be asked about: label by random and text_search first")
    if origin == "neighbour":
        return _nearest_to_hard_positives(storage, partitions, {name: folder}, {name: count}, store)[name]
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


def _nearest_to_hard_positives(
    storage: Storage, partitions: Sequence[str], folders: Mapping[str, str], counts: Mapping[str, int], store: LabelStore
) -> dict[str, list[str]]:
    """The nearest neighbours of each hard positive in turn; none for a filter that has understood all of its positives."""
    vectors = {}
    for name in counts:
        table = read_table(storage, f"{folders[name]}/labelled.parquet", ["uid", "feature"])
        row_of = {uid: row for row, uid in enumerate(table.column("uid").to_pylist())}
        hard = json.loads(storage.read_bytes(f"{folders[name]}/learning.json")).get("hard_positives", [])
        if hard:
            vectors[name] = _unit(feature_rows(table.take([row_of[uid] for uid in hard]).column("feature")))
    wanted = {name: counts[name] for name in vectors}
    found = (
        search_by_text(storage, partitions, vectors, wanted, leave_out={name: store.asked(name).keys() for name in wanted})
        if wanted
        else {}
    )
    return {name: found.get(name, []) for name in counts}


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
