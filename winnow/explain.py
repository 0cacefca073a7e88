"""The story of one sample: where it was listed, what became of it, and why. Read from the files of a run alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.decisions import logged_range, score_column, score_text, value_column
from winnow.duplicates import DUPLICATE, is_copy_reason, matches, member
from winnow.errors import WinnowError
from winnow.forgotten import read_events, read_rows
from winnow.machines import feature_rows
from winnow.receipts import list_done
from winnow.report.counts import explain_cause
from winnow.reported import REASON
from winnow.rules import rules_used
from winnow.run_files import FilterUsed, datasets, filters_used, partitions, rows, sidecar, withdrawn_uids
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, embeddings, manifest_part, raw_table

UID_LENGTH = 32
CLOSEST = 3
"""Labelled examples shown on each side, for each filter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A labelled image near the sample."""

    uid: str
    positive: bool
    origin: str
    split: str
    cosine: float
    """Of the features: 1 is the same to CLIP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What one filter said."""

    filter: str
    version: str
    score: float
    """As it is logged: in full near the threshold, far from it the lower end of a range (winnow/decisions.py)."""
    threshold: float
    closest: tuple[Example, ...]
    """The nearest labelled examples, positives and clean ones, nearest first."""

    @property
    def drops(self) -> bool:
        return self.score >= self.threshold

    @property
    def margin(self) -> float:
        """How far from the threshold it is at least: dropped with that much to spare, or kept with that much."""
        low, high = logged_range(self.score, self.threshold)
        return low - self.threshold if self.drops else self.threshold - high


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruled:
    """What one rule measured."""

    rule: str
    value: float | str
    limits: str
    """What it asks for, in words."""
    drops: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """All that a run knows about one pair."""

    uid: str
    partition: str
    url: str
    caption: str
    source: str
    licence: str | None
    withdrawn: bool
    """No source lists it any more."""
    forgotten: str | None
    """When and why it was forgotten; None: it was not."""
    status: str | None
    """Of the download: downloaded, failed; None: not tried yet."""
    cause: str | None
    detail: str | None
    sha256: str | None
    width: int | None
    height: int | None
    verdict: str | None
    """failed, dropped, kept; None: not decided yet."""
    reasons: tuple[str, ...]
    judged: tuple[Judged, ...]
    ruled: tuple[Ruled, ...]
    group: dict[str, Any] | None
    """Its row of duplicates/: group, group_size, best, centre, cosine, hamming, mirrored, weight; None: no near-duplicate was found."""
    matches: tuple[tuple[str, str, float], ...]
    """Evaluation sets that it copies an item of: set, item, cosine."""
    places: tuple[tuple[str, str, int], ...]
    """Where it went: dataset, tar, index in the tar."""
    receipts: tuple[tuple[str, str, str], ...]
    """Stages that touched it: stage, fingerprint of what went in, digest of what came out."""


def explain(storage: Storage, uid: str) -> Explanation:
    """Tells what happened to a sample.

    Args:
        uid: a uid, its first digits if no other begins like that, or a url.

    Raises:
        WinnowError: no sample, or several, fit.
    """
    partition, row = _find(storage, uid)
    name = row["uid"]
    raw = _row(storage, raw_table(partition), name)
    decided = _row(storage, decisions(partition), name)
    places = tuple(_places(storage, name)) if decided and decided["verdict"] == "kept" else ()
    return Explanation(
        uid=name,
        partition=partition,
        url=row["url"],
        caption=row["caption"] or "",
        source=row["source"],
        licence=row["licence"],
        forgotten=_forgotten(storage, partition, name),
        withdrawn=name in withdrawn_uids(storage).get(partition, set()),
        status=raw["status"] if raw else None,
        cause=raw["cause"] if raw else None,
        detail=raw["detail"] if raw else None,
        sha256=raw["sha256"] if raw else None,
        width=raw["width"] if raw else None,
        height=raw["height"] if raw else None,
        verdict=decided["verdict"] if decided else None,
        reasons=tuple(decided["reasons"] or ()) if decided else (),
        judged=tuple(_judge(storage, partition, name, decided)) if decided else (),
        ruled=tuple(_rule(storage, decided)) if decided else (),
        group=member(storage, partition, name),
        matches=tuple(matches(storage, partition, name)),
        places=places,
        receipts=tuple(_receipts(storage, partition, places)),
    )


def _find(storage: Storage, wanted: str) -> tuple[str, dict[str, Any]]:
    """The partition and manifest row of a uid, prefix or url; one partition in memory at a time."""
    wanted = wanted.strip()
    if not wanted:
        raise WinnowError("give a uid, its first digits, or a url")
    found: list[tuple[str, dict[str, Any]]] = []
    names = partitions(storage)
    for name in names:
        path = manifest_part(name)
        if not storage.exists(path):
            continue
        table = read_table(storage, path, ["uid", "url", "caption", "source", "licence"])
        fits = pc.or_(pc.starts_with(table["uid"], wanted.lower()), pc.equal(table["url"], wanted))
        found += [(name, row) for row in rows(table.filter(fits))]
        if len(found) > 1 or (found and len(wanted) == UID_LENGTH):
            break
    if not found:
        raise WinnowError(
            f"no pair of this run has a uid that begins with, or a url that is, {wanted!r} ({len(names):,} partitions searched). "
            "uids are 32 hex digits and stand in manifest/, decisions/ and the shards."
        )
    if len(found) > 1:
        raise WinnowError(f"{wanted!r} fits several pairs, {found[0][1]['uid']} and {found[1][1]['uid']} for two. Give more digits.")
    return found[0]


def _row(storage: Storage, path: str, uid: str | None) -> dict[str, Any] | None:
    if not storage.exists(path):
        return None
    table = read_table(storage, path)
    return next(rows(table.filter(pc.equal(table["uid"], uid))), None)


def _judge(storage: Storage, partition: str, uid: str, decided: dict[str, Any]) -> Iterator[Judged]:
    feature = _feature(storage, embeddings(partition), uid)
    for used in filters_used(storage):
        score = decided.get(score_column(used.name))
        if isinstance(score, float) and feature is not None:
            closest = _closest(storage, used, uid, feature)
            yield Judged(filter=used.name, version=used.version, score=score, threshold=used.threshold, closest=tuple(closest))


def _rule(storage: Storage, decided: dict[str, Any]) -> Iterator[Ruled]:
    for rule in rules_used(storage):
        value = decided.get(value_column(rule.name))
        if value is not None:
            yield Ruled(rule=rule.name, value=value, limits=rule.limits, drops=rule.drops(value))


def _feature(storage: Storage, path: str, uid: str) -> np.ndarray | None:
    if not storage.exists(path):
        return None
    table = read_table(storage, path, ["uid", "feature"])
    table = table.filter(pc.equal(table["uid"], uid))
    return feature_rows(table["feature"])[0] if table.num_rows else None


def _closest(storage: Storage, used: FilterUsed, uid: str, feature: np.ndarray) -> list[Example]:
    """Nearest labelled examples of a filter, CLOSEST of either kind."""
    path = f"{used.folder}/labelled.parquet"
    if not storage.exists(path):
        return []
    table = read_table(storage, path, ["uid", "value", "origin", "split", "feature"])
    table = table.filter(pc.and_(pc.is_valid(table["feature"]), pc.not_equal(table["uid"], uid)))
    if not table.num_rows:
        return []
    vectors = feature_rows(table["feature"])
    cosine = vectors @ feature / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(feature), 1e-12)
    values = table["value"].to_numpy()
    order = np.argsort(-cosine, kind="stable")
    nearest = [row for value in (1, 0) for row in order[values[order] == value][:CLOSEST]]
    examples = [
        Example(
            uid=table["uid"][int(row)].as_py(),
            positive=values[row] == 1,
            origin=table["origin"][int(row)].as_py(),
            split=table["split"][int(row)].as_py(),
            cosine=float(cosine[row]),
        )
        for row in nearest
    ]
    return sorted(examples, key=lambda example: (-example.cosine, example.uid))


def _places(storage: Storage, uid: str) -> Iterator[tuple[str, str, int]]:
    for dataset, index in datasets(storage).items():
        for shard in index["shards"]:
            table: pa.Table = read_table(storage, sidecar(dataset, shard["name"]), ["uid", "index"])
            for row in rows(table.filter(pc.equal(table["uid"], uid))):
                yield dataset, shard["name"], row["index"]


def _forgotten(storage: Storage, partition: str, uid: str) -> str | None:
    for event in read_events(storage):
        if any((row["uid"], row["partition"]) == (uid, partition) for row in read_rows(storage, event)):
            return f"on {event.at[:10]}: {event.reason or 'no reason was given'}"
    return None


def _receipts(storage: Storage, partition: str, places: tuple[tuple[str, str, int], ...]) -> Iterator[tuple[str, str, str]]:
    groups = [tar.rpartition("-")[0] for _, tar, _ in places]
    wanted = {"manifest": ["manifest"], "download": [partition], "embed": [partition], "score": [partition], "shard": groups}
    for stage, names in wanted.items():
        for done in list_done(storage, stage):
            if done.partition in names:
                yield stage, done.fingerprint, done.output


def render(story: Explanation) -> str:
    """The story as text for a terminal. Captions and urls are quoted as JSON: strangers' control characters do no harm there."""
    lines = [f"{story.uid}   {_headline(story)}", ""]
    lines += [f"listed      by source {_quoted(story.source)}, licence {_quoted(story.licence)}, in partition {story.partition}"]
    lines += [f"url         {_quoted(story.url)}", f"caption     {_quoted(story.caption)}"]
    if story.withdrawn:
        lines.append("withdrawn   no source lists it any more: it has no decision and is in no shard")
    lines.append(f"download    {_download(story)}")
    for judged in story.judged:
        lines.append("")
        score = score_text(judged.score, judged.threshold, 4)
        far = f"{'at least ' if ' to ' in score else ''}{judged.margin:.4f}"
        way = f"drops it, {far} above" if judged.drops else f"lets it pass, {far} below"
        lines.append(f"{judged.filter} {way} the threshold: score {score}, threshold {judged.threshold:.4f} (version {judged.version})")
        if judged.closest:
            lines.append("  closest labelled examples (cosine, label, how drawn, used to):")
        for example in judged.closest:
            label = "drop " if example.positive else "clean"
            lines.append(f"    {example.cosine:.4f}  {label}  {example.origin:<12} {example.split:<10} {example.uid}")
    lines += [""] if story.ruled else []
    for ruled in story.ruled:
        value = ruled.value if isinstance(ruled.value, str) else f"{ruled.value:.6g}"
        lines.append(f"{ruled.rule} {'drops it' if ruled.drops else 'lets it pass'}: {value}, kept is {ruled.limits}")
    lines += _copies(story)
    if story.places:
        lines.append("")
        lines += [f"shard       {dataset}/{tar}, sample {index}" for dataset, tar, index in story.places]
    lines += ["", "receipts (what went in, what came out):"]
    lines += [f"  {stage:<14} {fingerprint}  {output}" for stage, fingerprint, output in story.receipts]
    return "\n".join(lines)


def _copies(story: Explanation) -> Iterator[str]:
    """What is known of other images that show the same."""
    if story.group is not None:
        group = story.group
        what = f"one of {group['group_size']:,} images of group {group['group']}"
        if group["cosine"] is not None:
            mirrored = ", mirrored" if group["mirrored"] else ""
            what += f": cosine {group['cosine']:.4f} and {group['hamming']} of 64 bits from {group['centre']}{mirrored}"
        yield ""
        yield f"copies      {what}"
        if group["is_best"]:
            yield "            it is the best of those that everything else keeps"
        elif group["best"] is not None:
            yield f"            the best of those that everything else keeps is {group['best']}"
        elif group["is_dropped"]:
            yield "            a person reported one of them as illegal: all of them are dropped"
        if group["weight"] not in (0.0, 1.0):
            yield f"            weight {group['weight']:.4g}: it is shared among those that are kept"
    for name, item, cosine in story.matches:
        yield f"copies      {_quoted(item)} of the evaluation set {name}: cosine {cosine:.4f}"


def _headline(story: Explanation) -> str:
    if story.forgotten:
        return f"FORGOTTEN {story.forgotten}. This tombstone is all that is left of it"
    if story.withdrawn:
        return "WITHDRAWN"
    if story.verdict is None:
        return "NOT DECIDED YET: the run has not come to score it"
    if story.verdict == "failed":
        return f"FAILED ({', '.join(story.reasons)}): {explain_cause(story.reasons[0])}" if story.reasons else "FAILED"
    if story.verdict == "dropped":
        filters = [reason for reason in story.reasons if reason != REASON and not is_copy_reason(reason)]
        copies = [_copy_words(story, reason) for reason in story.reasons if is_copy_reason(reason)]
        if copies:
            return (
                f"DROPPED {', '.join(copies)}"
                + (f", and by {', '.join(filters)}" if filters else "")
                + (", and a person reported it as illegal" if REASON in story.reasons else "")
            )
        by_people = "DROPPED: a person reported it as illegal" + (", and dropped" if filters else "")
        return (by_people if REASON in story.reasons else "DROPPED") + (f" by {', '.join(filters)}" if filters else "")
    return "KEPT: no filter drops it"


def _copy_words(story: Explanation, reason: str) -> str:
    if reason != DUPLICATE:
        return f"as an image of the evaluation set {reason.partition(':')[2]}"
    best = story.group["best"] if story.group is not None else None
    return f"as a near-duplicate of {best}" if best else "as a near-duplicate of an image that was reported as illegal"


def _download(story: Explanation) -> str:
    if story.status is None:
        return "not tried yet"
    if story.status != "downloaded":
        return f"failed: {story.cause}" + (f", {_quoted(story.detail)}" if story.detail else "")
    return f"{story.width} x {story.height} pixels, sha256 of the original bytes {story.sha256}"


def _quoted(text: str | None) -> str:
    """JSON escapes control characters and, with ensure_ascii, direction marks too; other scripts stay readable where they are printable."""
    if text is None:
        return "not stated"
    return "".join(
        character if character.isprintable() else json.dumps(character)[1:-1] for character in json.dumps(text, ensure_ascii=False)
    )
