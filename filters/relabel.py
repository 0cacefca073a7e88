"""Rounds of relabelling: ask, wait for people, fit, compare, promote or not. Every call goes on from what is there.

A round is two batches for the label page: images near the boundary, which teach (mode `query`), and images drawn at random, which
prove (mode `calibrate`, blind). It ends with a row in `promotions.jsonl` (filters/promotion.py); the next call begins the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from filters.label_batches import batch_items, create_batch
from filters.label_opinions import answer_of, standing
from filters.label_records import Batch, Item, Mode, Origin
from filters.labellers import Labeller
from filters.labels import LabelStore
from filters.learning import FilterRun, put_in_force
from filters.promotion import compare_versions, note, paused_by, plain, read_promotions
from winnow.configs import STRICT
from winnow.errors import ConfigError, NotEnoughLabels
from winnow.storage import Storage

STATES = ("waiting", "promoted", "kept", "paused")


@dataclass(frozen=True, kw_only=True, slots=True)
class RelabelConfig:
    """A round of relabelling."""

    __pydantic_config__: ClassVar = STRICT

    boundary_labels: int = 200
    """Images nearest the boundary of the version in force."""
    random_labels: int = 200
    """Images drawn at random: without them no round is measured without bias."""
    overlap: int = 2
    """People who answer each random image."""
    gated: bool = False
    """A new version comes in force through a round alone: `winnow fit` leaves filters that have a version as they are."""

    def __post_init__(self) -> None:
        if self.boundary_labels < 0 or self.random_labels < 0 or self.boundary_labels + self.random_labels < 1:
            raise ConfigError(f"relabel: boundary_labels and random_labels must be 0 or more, and not both 0, got {self}")
        if self.overlap < 1:
            raise ConfigError(f"relabel.overlap must be at least 1, got {self.overlap}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """How far a round is."""

    number: int
    state: str
    """One of STATES."""
    message: str
    """For the person who waits: what happened and why, or what to do."""
    lacking: int = 0
    """Images that still want answers."""


def relabel_round(
    storage: Storage,
    store: LabelStore,
    config: RelabelConfig,
    run: FilterRun,
    *,
    draw: Callable[[Origin, int], list[str]],
    fit: Callable[[], FilterRun],
    policy: str,
    seed: int,
    labeller: Labeller | None = None,
) -> Round:
    """Goes on with the round of a filter as far as it can without people.

    Args:
        run: the version in force.
        draw: the next images to ask about, by origin.
        fit: fits and certifies a version from all labels there are, and leaves the one in force alone.
        labeller: answers at once, for demos and tests.
    """
    number, batches = _open_round(storage, store, run.name)
    batches = _ask(store, config, run.name, number, batches, draw, seed, overlap=1 if labeller else config.overlap)
    if labeller is not None:
        _answer(store, batches, labeller, policy)
    lacking = {batch.name: count for batch in batches if (count := _lacking(store, batch))}
    if lacking:
        commands = "; ".join(
            f"{lacking[batch.name]:,} images wait in {batch.name}: winnow label CONFIG {run.name} --mode {batch.mode} --batch {batch.name}"
            for batch in batches
            if batch.name in lacking
        )
        return Round(number=number, state="waiting", message=commands, lacking=sum(lacking.values()))
    return _conclude(storage, run, number, fit)


def _open_round(storage: Storage, store: LabelStore, name: str) -> tuple[int, list[Batch]]:
    """Number and batches of the round that has not ended; without batches if it is to be drawn now."""
    ended = {int(row["round"]) for row in read_promotions(storage, name) if "round" in row}
    rounds: dict[int, list[Batch]] = {}
    for batch in store.all_batches(name):
        if "relabel" in batch.details:
            rounds.setdefault(int(batch.details["relabel"]), []).append(batch)
    last = max([0, *rounds])
    if last and last not in ended:
        return last, sorted(rounds[last], key=lambda batch: batch.name)
    return last + 1, []


def _ask(
    store: LabelStore,
    config: RelabelConfig,
    name: str,
    number: int,
    batches: list[Batch],
    draw: Callable[[Origin, int], list[str]],
    seed: int,
    *,
    overlap: int,
) -> list[Batch]:
    """The round's batches; those that are not there yet, because it begins or was killed while it began, are drawn."""
    if len(batches) == 2:
        return batches
    there = {batch.name: batch for batch in batches}
    # Random images first: a random draw must not leave out what was met otherwise in this round.
    plans: tuple[tuple[Origin, Mode, int], ...] = (
        ("random", "calibrate", config.random_labels),
        ("boundary", "query", config.boundary_labels),
    )
    for origin, mode, count in plans:
        label = f"relabel-{number}-{origin}"
        uids = draw(origin, count) if count and label not in there else []
        if uids:
            reason = "near the classifier's boundary" if origin == "boundary" else "drawn at random"
            items = [Item(uid=uid, origin=origin, reason=reason) for uid in uids]
            there[label] = create_batch(
                store,
                name,
                label,
                items,
                mode=mode,
                origin=origin,
                overlap=overlap if mode == "calibrate" else 1,
                seed=seed,
                wanted=count,
                details={"relabel": number, "how": reason, "seed": seed},
            )
    batches = sorted(there.values(), key=lambda batch: batch.name)
    if not batches:
        raise ConfigError(f"{name}: every image has been asked about; there is nothing to relabel until new ones are embedded")
    return batches


def _answer(store: LabelStore, batches: list[Batch], labeller: Labeller, policy: str) -> None:
    for batch in batches:
        answered = {row.uid for row in store.rows(batch.filter_name, batch=batch.name)}
        items = [item for item in batch_items(store, batch) if item.uid not in answered]
        answers = labeller.answer(batch.filter_name, [item.uid for item in items])
        for item, value in zip(items, answers, strict=True):
            store.add_label(
                batch.filter_name, item.uid, value, item.origin, batch=batch.name, person=labeller.name, policy=policy, mode="table"
            )


def _lacking(store: LabelStore, batch: Batch) -> int:
    """Items that too few people have answered, and no table has spoken of; images reported as illegal want no answer."""
    people: dict[str, set[str]] = {}
    told = set(store.blocked())
    for row in standing(store.rows(batch.filter_name, batch=batch.name)):
        if row.mode == "table":
            told.add(row.uid)
        elif answer_of(row) != "skip":
            people.setdefault(row.uid, set()).add(row.person)
    return sum(item.uid not in told and len(people.get(item.uid, ())) < batch.overlap for item in batch_items(store, batch))


def _conclude(storage: Storage, run: FilterRun, number: int, fit: Callable[[], FilterRun]) -> Round:
    about: dict[str, Any] = {"round": number, "from": run.version}
    try:
        new = fit()
    except NotEnoughLabels as problem:
        reason = f"no version can be certified from the labels there are: {problem}"
        note(storage, run.name, "kept", about | {"reason": reason})
        return Round(number=number, state="kept", message=reason)
    about |= {"to": new.version, "labels": new.num_labels}
    if new.version == run.version:
        reason = "the labels gave the version that is in force already"
        note(storage, run.name, "kept", about | {"reason": reason})
        return Round(number=number, state="kept", message=reason)
    found = compare_versions(storage, run.name, run.version, new.version)
    pause = paused_by(storage, run.name)
    if pause is not None:
        message = f"version {new.version} is fitted; promotion is paused: {pause['reason']}. Go on with `winnow filter resume`."
        return Round(number=number, state="paused", message=message)
    event = "promoted" if found.promote else "kept"
    # A kill between the two leaves the round open: the next call fits the same version, finds it in force, and ends the round.
    if found.promote:
        put_in_force(storage, run.name, new.version)
    note(storage, run.name, event, about | {"reason": found.reason, "comparison": plain(found)})
    return Round(number=number, state=event, message=f"version {new.version}: {found.reason}")
