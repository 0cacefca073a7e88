"""Near-duplicates and evaluation sets: how many, how large the groups are, what became of them, and some groups to look at."""

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from winnow.duplicates import CONTAMINATED, contamination_file, duplicates_file, reference_file
from winnow.receipts import read_receipts
from winnow.report.gallery import Shown
from winnow.reported import read_reported
from winnow.run_files import rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions

SIZES = ((2, 2), (3, 3), (4, 5), (6, 9), (10, 99), (100, None))
"""Rows of the table of group sizes: from, to."""
DRAWN, LARGEST, FARTHEST = 6, 2, 4
"""Groups pictured: drawn at random, the largest, and those with the lowest cosine, where mistakes would be."""
MEMBERS_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A group of near-duplicates, the best first."""

    why: str
    """Why it is pictured."""
    size: int
    members: tuple[Shown, ...]
    notes: tuple[str, ...]
    """What is said below each member."""


def gather_duplicates(storage: Storage, partitions: list[str]) -> dict[str, Any] | None:
    """Sums over all partitions, one in memory at a time; None if near-duplicates were not looked for."""
    there = [name for name in partitions if storage.exists(duplicates_file(name))]
    if not there:
        return None
    sizes = np.zeros(len(SIZES), np.int64)
    counts = dict.fromkeys(("images", "groups", "passing", "dropped", "mirrored"), 0)
    largest = 0
    for partition in there:
        table = read_table(storage, duplicates_file(partition), ["uid", "group", "group_size", "passes", "is_dropped", "mirrored"])
        named = table.filter(pc.equal(table["uid"], table["group"]))["group_size"].to_numpy()
        sizes += np.bincount(np.searchsorted([low for low, _ in SIZES], named, side="right") - 1, minlength=len(SIZES))
        largest = max(largest, int(named.max(initial=0)))
        counts["images"] += table.num_rows
        counts["groups"] += len(named)
        for key, column in (("passing", "passes"), ("dropped", "is_dropped"), ("mirrored", "mirrored")):
            counts[key] += pc.sum(table[column]).as_py() or 0
    return {
        **counts,
        "largest": largest,
        "sizes": [{"from": low, "to": high, "groups": int(count)} for (low, high), count in zip(SIZES, sizes, strict=True)],
        "mode": next((receipt.arguments["mode"] for receipt in read_receipts(storage, "duplicates-choose")), None),
        "limits": next((list(receipt.arguments["limits"]) for receipt in read_receipts(storage, "duplicates-pairs")), None),
    }


def gather_contamination(storage: Storage, partitions: list[str]) -> list[dict[str, Any]]:
    """For each evaluation set how much of it had a near-duplicate here, and how many images were dropped for it."""
    found: dict[str, dict[str, Any]] = {}
    items: dict[str, set[str]] = {}
    for receipt in read_receipts(storage, "references"):
        total = read_table(storage, reference_file(receipt.partition), ["uid"]).num_rows
        found[receipt.partition] = {
            "name": receipt.partition,
            "items": total,
            "undecodable": receipt.counts.get("undecodable", 0),
            "images": 0,
        }
        items[receipt.partition] = set()
    for partition in partitions:
        if storage.exists(contamination_file(partition)):
            for row in rows(read_table(storage, contamination_file(partition), ["reference", "item"])):
                if row["reference"] in items:
                    items[row["reference"]].add(row["item"])
            for row in rows(read_table(storage, decisions(partition), ["reasons"])):
                for reason in row["reasons"] or ():
                    kind, _, name = reason.partition(":")
                    if kind == CONTAMINATED and name in found:
                        found[name]["images"] += 1
    for name, entry in found.items():
        entry["matched"] = len(items[name])
        entry["share"] = entry["matched"] / entry["items"] if entry["items"] else None
    return [found[name] for name in sorted(found)]


def pick_groups(storage: Storage, partitions: list[str]) -> list[Group]:
    """Some groups to picture; none with an image that a person reported."""
    there = [name for name in partitions if storage.exists(duplicates_file(name))]
    reported = {uid for own in read_reported(storage).values() for uid in own}
    # A group's name is the smallest of some hashes, hence itself no fair draw; the hash of its last digits is.
    drawn: list[tuple[str, str]] = []
    large: list[tuple[int, str]] = []
    far: list[tuple[float, str]] = []
    for partition in there:
        table = list(rows(read_table(storage, duplicates_file(partition), ["uid", "group", "group_size", "cosine"])))
        own = [row for row in table if row["uid"] == row["group"]]
        drawn = heapq.nsmallest(DRAWN, [*drawn, *((row["group"][::-1], row["group"]) for row in own)])
        large = heapq.nsmallest(LARGEST, [*large, *((-row["group_size"], row["group"]) for row in own)])
        lowest: dict[str, float] = {}
        for value, group in [*far, *((row["cosine"], row["group"]) for row in table if row["cosine"] is not None)]:
            lowest[group] = min(value, lowest.get(group, 2.0))
        far = heapq.nsmallest(FARTHEST, [(value, group) for group, value in lowest.items()])
    why = {group: "one of the largest" for _, group in large}
    why |= {group: "least alike: mistakes would be here" for _, group in far if group not in why}
    why |= {group: "drawn at random" for _, group in drawn if group not in why}
    members: dict[str, list[dict[str, Any]]] = {group: [] for group in why}
    for partition in there:
        for row in rows(read_table(storage, duplicates_file(partition))):
            if row["group"] in members:
                members[row["group"]].append({**row, "partition": partition})
    return [_group(storage, why[group], found) for group, found in members.items() if reported.isdisjoint(row["uid"] for row in found)]


def _group(storage: Storage, why: str, members: list[dict[str, Any]]) -> Group:
    """The best first, then the centre, then as they lie from it."""
    members.sort(key=lambda row: (not row["is_best"], row["uid"] != row["centre"], -(row["cosine"] or 1.0), row["uid"]))
    shown, notes = [], []
    for row in members[:MEMBERS_SHOWN]:
        table = read_table(storage, decisions(row["partition"]), ["uid", "reasons"])
        reasons = table.filter(pc.equal(table["uid"], row["uid"]))["reasons"].to_pylist()
        shown.append(Shown(uid=row["uid"], partition=row["partition"], reasons=tuple(reasons[0] or ()) if reasons else ()))
        others = "kept" if row["passes"] else "dropped for other reasons"
        state = "best" if row["is_best"] else "dropped as a copy" if row["is_dropped"] else others
        measured = "" if row["cosine"] is None else f", cosine {row['cosine']:.3f}, {row['hamming']} bits{' mirrored' * row['mirrored']}"
        notes.append(state + measured)
    return Group(why=why, size=members[0]["group_size"], members=tuple(shown), notes=tuple(notes))
