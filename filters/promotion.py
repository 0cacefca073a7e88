"""Shall a new version of a filter take the place of the one in force? Compared on labels that neither was fitted on, with the reason.

Both versions score the same held-out images: their clean ones are compared in pairs (McNemar's exact test: of those that only one
version drops, is the share of the new one's more than half?), their positives likewise. Every decision is a row of
`filters/<name>/promotions.jsonl`, and so is every pause and its end. The same test labels serve round after round, so a filter
promoted many times has been chosen by them a little; the certificate's calibration labels take no part in the choice.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from filters.bounds import exact_interval
from filters.decision_values import Scorer
from filters.svm import svm_from_bytes
from winnow.errors import ConfigError
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import filter_folder

SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """What two versions drop of the same images."""

    n: int
    now: int
    """Dropped by the version in force."""
    new: int
    """Dropped by the new one."""
    only_now: int
    only_new: int
    p_more: float
    """Of so many more dropped by the new one alone by chance (one-sided)."""
    p_fewer: float

    @property
    def new_interval(self) -> tuple[float, float]:
        """Exact two-sided 95 % interval of the share that the new version drops."""
        return exact_interval(self.new, self.n)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A new version against the one in force, on labels that neither was fitted on."""

    clean: Paired
    positives: Paired
    promote: bool
    reason: str


def compare_versions(storage: Storage, name: str, now: str, new: str) -> Comparison:
    """Compares two certified versions of a filter.

    Raises:
        ConfigError: the versions share no held-out label.
    """
    features, values = _held_out(storage, name, now, new)
    dropped = [_drops(storage, name, version, features) for version in (now, new)]
    return judge(paired(*(row[values == 0] for row in dropped)), paired(*(row[values == 1] for row in dropped)))


def paired(now: np.ndarray, new: np.ndarray) -> Paired:
    """
    Args:
        now, new: (n,) bool, what each version drops of the same images.
    """
    only_now, only_new = int(np.sum(now & ~new)), int(np.sum(new & ~now))
    differing = only_now + only_new

    def p(alternative: str) -> float:
        return float(binomtest(only_new, differing, alternative=alternative).pvalue) if differing else 1.0

    counts = {"n": len(now), "now": int(now.sum()), "new": int(new.sum()), "only_now": only_now, "only_new": only_new}
    return Paired(**counts, p_more=p("greater"), p_fewer=p("less"))


def judge(clean: Paired, positives: Paired) -> Comparison:
    """The rule: a certified version is promoted unless it misses significantly more positives or drops significantly more clean images.

    It rests on more or newer labels than the one in force, so equal results speak for it.
    """
    low, high = clean.new_interval
    share = f"{clean.new:,} of {clean.n:,} clean test images dropped ({low:.1%} to {high:.1%}), {clean.now:,} by the version in force"
    if positives.p_fewer <= SIGNIFICANCE:
        reason = f"it misses {positives.only_now:,} test positives that the version in force drops, and drops {positives.only_new:,} others"
        return Comparison(clean=clean, positives=positives, promote=False, reason=f"{reason} (p = {positives.p_fewer:.2g})")
    if clean.p_more <= SIGNIFICANCE:
        reason = f"it drops more clean images: {share}, p = {clean.p_more:.2g}"
        return Comparison(clean=clean, positives=positives, promote=False, reason=reason)
    fewer = f"fewer clean images are lost (p = {clean.p_fewer:.2g})" if clean.p_fewer <= SIGNIFICANCE else "as good on the test labels"
    return Comparison(clean=clean, positives=positives, promote=True, reason=f"certified on more labels, and {fewer}: {share}")


def _held_out(storage: Storage, name: str, now: str, new: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of the new version's test split, without what the version in force was fitted or calibrated on."""
    used = read_table(storage, f"{filter_folder(name, now)}/labels.parquet", ["uid", "split", "group"]).to_pylist()
    spent = {row["uid"] for row in used if row["split"] != "test"} | {row["group"] for row in used if row["split"] != "test"}
    table = read_table(storage, f"{filter_folder(name, new)}/labelled.parquet", ["uid", "value", "split", "group", "feature"])
    rows = [
        row for row in table.to_pylist()
        if row["split"] == "test" and row["feature"] is not None and row["uid"] not in spent and row["group"] not in spent
    ]  # fmt: skip
    if not rows:
        raise ConfigError(f"{name}: the versions {now} and {new} have no test label in common; raise learn.plan.random_labels")
    return np.array([row["feature"] for row in rows], dtype=np.float32), np.array([row["value"] for row in rows])


def _drops(storage: Storage, name: str, version: str, features: np.ndarray) -> np.ndarray:
    folder = filter_folder(name, version)
    threshold = json.loads(storage.read_bytes(f"{folder}/certificate.json"))["threshold"]
    scores = Scorer([svm_from_bytes(storage.read_bytes(f"{folder}/svm.safetensors"))]).scores(features)[:, 0]
    found: np.ndarray = scores >= threshold
    return found


def promotions_path(name: str) -> str:
    return f"filters/{name}/promotions.jsonl"


def read_promotions(storage: Storage, name: str) -> list[dict[str, Any]]:
    """Every decision about a filter's versions, in order."""
    path = promotions_path(name)
    return [json.loads(line) for line in storage.read_text(path).splitlines() if line] if storage.exists(path) else []


def note(storage: Storage, name: str, event: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a row: what happened ("first", "promoted", "kept", "paused", "resumed"), to which version, why."""
    row = {"event": event, **details}
    rows = [*read_promotions(storage, name), row]
    storage.write_text(promotions_path(name), "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in rows))
    return row


def paused_by(storage: Storage, name: str) -> dict[str, Any] | None:
    """The row by which promotion of a filter is paused; None if it is not."""
    state = None
    for row in read_promotions(storage, name):
        if row["event"] in ("paused", "resumed"):
            state = row if row["event"] == "paused" else None
    return state


def plain(comparison: Comparison) -> dict[str, Any]:
    """As JSON."""
    return dataclasses.asdict(comparison)
