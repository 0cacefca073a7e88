"""What people judge side by side: samples beside the training images they are closest to, and samples of two models."""

import json
import random
from typing import Any

from filters.label_batches import create_batch
from filters.label_records import Batch, Item
from filters.labels import LabelStore
from models.regurgitation import PAIRS
from models.sampled import read_sample_index
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.tables import read_table

COPY = (
    "Is the left picture a copy of the right one, whole or in a large part? A copy shows the same scene from the same side, "
    "with the same things in the same places; it may be blurred, cropped, mirrored or in other colours. "
    "Two pictures that are alike in subject alone are no copies."
)
BETTER = "Which of the two pictures fits the caption better? Where they do so alike: which looks more like a photo?"


def new_batch(storage: Storage, store: LabelStore, subject: str, *, mode: str, count: int, overlap: int | None, seed: int) -> Batch:
    """Draws a batch of pairs or comparisons.

    Args:
        subject: what is judged, the filter's place in the label store. For `compare` the names of two folders of samples/: "base:base-cfg".

    Raises:
        ConfigError: there are no pairs or samples yet, or all have been asked about.
    """
    if mode == "pairs":
        items, how = closest_pairs(storage), "the pairs of sample and training image that are closest in CLIP space, closest first"
    else:
        items, how = comparisons(storage, subject, seed=seed), "captions that both models drew, at random"
    batches = [batch for batch in store.all_batches(subject) if batch.mode == mode]
    asked = {label.uid for label in store.rows(subject)}
    fresh = [item for item in items if item.uid not in asked][:count]
    if not fresh:
        raise ConfigError(f"all {len(items):,} {mode} of {subject} have been judged")
    return create_batch(
        store,
        subject,
        f"{mode}-{len(batches)}",
        fresh,
        mode=mode,  # type: ignore[arg-type]  # one of the literals
        origin="boundary" if mode == "pairs" else "random",
        overlap=overlap,
        seed=seed,
        wanted=count,
        question=COPY if mode == "pairs" else BETTER,
        details={"how": how, "seed": seed, "of": len(items)},
    )


def closest_pairs(storage: Storage) -> list[Item]:
    """Each sample with its own training image and with the nearest kept one, closest first.

    Raises:
        ConfigError: the regurgitation stage has not run.
    """
    if not storage.exists(PAIRS):
        raise ConfigError(f"there is no {PAIRS} in {storage.url}: run `winnow regurgitation CONFIG` first")
    found: dict[str, tuple[float, Item]] = {}
    for row in read_table(storage, PAIRS).to_pylist():
        for uid, distance in ((row["uid"], row["distance_own"]), (row["nearest_uid"], row["distance_nearest"])):
            name = f"{row['sample']} {uid}"
            pictures = {"left": f"file:{row['sample']}", "right": f"uid:{uid}"}
            found[name] = (distance, Item(uid=name, origin="boundary", reason=row["prompt"], pictures=pictures))
    return [item for _, item in sorted(found.values(), key=lambda entry: (entry[0], entry[1].uid))]


def comparisons(storage: Storage, subject: str, *, seed: int) -> list[Item]:
    """The captions that two folders of samples share, in random order, with what each of them drew; A is the first folder.

    Raises:
        ConfigError: `subject` does not name two folders with samples, or they share no caption.
    """
    names = subject.split(":")
    if len(names) != 2 or names[0] == names[1]:
        raise ConfigError(f'--mode compare takes two folders of samples/ in place of a filter, such as "base:base-cfg"; got {subject!r}')
    drawn: list[dict[str, Any]] = []
    for name in names:
        try:
            drawn.append({prompt.uid: prompt for prompt in read_sample_index(storage, f"samples/{name}")})
        except FileNotFoundError:
            raise ConfigError(f"there is no samples/{name}/index.json in {storage.url}: sample with that model first") from None
        except (json.JSONDecodeError, KeyError) as problem:
            raise ConfigError(f"samples/{name}/index.json cannot be read ({problem!r}). Remove it and sample again.") from problem
    left, right = drawn
    shared = sorted(uid for uid in left if uid in right and left[uid].text == right[uid].text)
    if not shared:
        raise ConfigError(f"samples/{names[0]} and samples/{names[1]} share no caption: draw both for the same prompts")
    random.Random(seed).shuffle(shared)
    return [
        Item(uid=uid, reason=left[uid].text, pictures={"left": f"file:{left[uid].file}", "right": f"file:{right[uid].file}"})
        for uid in shared
    ]
