"""Are near-duplicates what they are said to be? Groups, choices and weights recounted, some pairs measured again from their features.

Nothing of the code that found them is asked. That no pair was overlooked is not covered: it would take the whole search.
"""

from typing import Any

import numpy as np

from winnow.digests import digest
from winnow.duplicates import (
    DUPLICATE,
    contamination_file,
    duplicates_file,
    reference_file,
)
from winnow.findings import Ledger
from winnow.forgotten import forgotten_uids
from winnow.machines import feature_rows
from winnow.progress import Progress
from winnow.receipts import list_done, read_receipts
from winnow.reported import read_reported
from winnow.run_files import rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, embeddings

CHECK = "duplicates"
PAIRS_AGAIN = 200
"""Members whose cosine to their centre is computed again: those with the smallest uids, a random draw as uids are hashes."""
MATCHES_AGAIN = 20
"""Matches of each partition with evaluation sets, likewise."""
TOLERANCE = 1e-12
MEMBER = np.dtype(
    [
        ("uid", "U32"), ("group", "U32"), ("group_size", "i8"), ("num_passing", "i8"), ("best", "U32"), ("pixels", "i8"),
        ("passes", "?"), ("is_best", "?"), ("is_dropped", "?"), ("weight", "f8"), ("centre", "U32"), ("partition", "i4"),
        ("cosine", "f8"), ("hamming", "i8"), ("mirrored", "?"),
    ]
)  # fmt: skip


def check_duplicates(storage: Storage, partitions: list[str], ledger: Ledger, progress: Progress) -> None:
    """Everything about near-duplicates and evaluation sets; nothing if neither was looked for."""
    parts = []
    for number, partition in enumerate(partitions):
        path = duplicates_file(partition)
        if storage.exists(path):
            with ledger.reading(CHECK, path):
                parts.append(_members(storage, path, number))
                _check_verdicts(storage, partition, parts[-1], ledger)
        if storage.exists(contamination_file(partition)):
            with ledger.reading(CHECK, contamination_file(partition)):
                _check_matches(storage, partition, ledger)
        progress.advance()
    if parts:
        _check_lineage(storage, ledger)
        members = np.concatenate(parts)
        ledger.count(CHECK, len(members))
        gone = {uid for own in forgotten_uids(storage).values() for uid in own}
        _check_groups(storage, members, partitions, gone, ledger)
        with ledger.reading(CHECK, "receipts/duplicates-pairs"):  # which name the limits
            _check_centres(storage, members, partitions, ledger)


def _check_lineage(storage: Storage, ledger: Ledger) -> None:
    """Groups were made from the embeddings, and choices from the groups, that are there."""
    made = (("duplicates-groups", "embeddings", "embed"), ("duplicates-groups", "pairs", "duplicates-pairs"))
    for stage, key, before in (*made, ("duplicates-choose", "judged", "duplicates-judge")):
        there = digest({done.partition: done.output for done in list_done(storage, before)})
        for receipt in read_receipts(storage, stage):
            ledger.count(CHECK)
            if receipt.inputs[key] != there:
                command = "score" if stage == "duplicates-choose" else "duplicates"
                ledger.add(CHECK, f"receipts/{stage}", f"was made from other outputs of {before} than are there: run {command} again")


def _members(storage: Storage, path: str, number: int) -> np.ndarray:
    table = read_table(storage, path)
    members = np.zeros(table.num_rows, MEMBER)
    for name in MEMBER.names or ():
        if name != "partition":
            nothing: Any = "" if MEMBER[name].kind == "U" else 0
            members[name] = [nothing if value is None else value for value in table[name].to_pylist()]
    members["partition"] = number
    return members


def _check_verdicts(storage: Storage, partition: str, members: np.ndarray, ledger: Ledger) -> None:
    """Whether a member passes follows from what else the decision log says of it."""
    path = duplicates_file(partition)
    said = {str(member["uid"]): member for member in members}
    for row in rows(read_table(storage, decisions(partition), ["uid", "verdict", "reasons"])):
        member, reasons = said.get(row["uid"]), row["reasons"] or []
        if member is None:
            if DUPLICATE in reasons:
                ledger.add(CHECK, decisions(partition), f"{row['uid']} is dropped as a duplicate, but is in no group")
            continue
        passes = row["verdict"] == "kept" or reasons == [DUPLICATE]
        if passes != bool(member["passes"]):
            ledger.add(CHECK, path, f"{row['uid']} is said to {'pass' if member['passes'] else 'be dropped by a filter'}; the log differs")


def _check_groups(storage: Storage, members: np.ndarray, partitions: list[str], gone: set[str], ledger: Ledger) -> None:
    """Counts, names, the best and the weights of every group."""
    receipts = read_receipts(storage, "duplicates-choose")
    mode = str(receipts[0].arguments["mode"]) if receipts else "keep_best"
    reported = {uid for own in read_reported(storage).values() for uid in own}
    order = np.lexsort((members["uid"], members["group"]))
    changes = np.flatnonzero(members["group"][order][1:] != members["group"][order][:-1]) + 1
    for own in np.split(order, changes) if len(order) else []:
        group = members[own]
        wrong = _wrong_group(group, mode, reported, gone)
        if wrong:
            ledger.add(CHECK, duplicates_file(partitions[group[0]["partition"]]), f"group {group[0]['group']} {wrong}")


def _wrong_group(group: np.ndarray, mode: str, reported: set[str], gone: set[str]) -> str | None:
    """What is wrong with the members of one group; None if all follows. What was forgotten since is allowed for until the next run."""
    uids, passes = [str(uid) for uid in group["uid"]], group["passes"]
    missing = {str(uid) for name in ("group", "best", "centre") for uid in group[name]} - {"", *uids}
    if missing - gone:
        return f"speaks of {min(missing - gone)}, which is not in it"
    forgotten = int(group["group_size"][0]) - len(group)
    if len(set(group["group_size"])) > 1 or forgotten < 0 or (forgotten and not gone):
        return f"has {len(group)} members, its rows say {sorted(set(group['group_size'].tolist()))}"
    if forgotten:
        return None
    if str(group["group"][0]) != min(uids):
        return f"is not named by its smallest uid, {min(uids)}"
    if (group["num_passing"] != passes.sum()).any():
        return f"has {passes.sum()} members that filters keep, its rows say {group['num_passing'].tolist()}"
    illegal = not reported.isdisjoint(uids)
    ranked = sorted((-int(member["pixels"]), str(member["uid"])) for member in group[passes])
    best = ranked[0][1] if ranked and not illegal else ""
    for member in group:
        uid = str(member["uid"])
        dropped = bool(member["passes"]) and (illegal or (mode == "keep_best" and uid != best))
        kept = bool(member["passes"]) and not dropped
        weight = (1 / len(ranked) if mode == "down_weight" else 1.0) if kept else 0.0
        due = (best, uid == best, dropped, weight)
        said = (str(member["best"]), bool(member["is_best"]), bool(member["is_dropped"]), float(member["weight"]))
        if said != due:
            return f"says of {uid} (best, is it, dropped, weight) {said}, its members and mode {mode} give {due}"
    return None


def _check_centres(storage: Storage, members: np.ndarray, partitions: list[str], ledger: Ledger) -> None:
    """Some members against their centres, from features and hashes; limits as the search's receipts name them."""
    others = members[members["uid"] != members["centre"]]
    chosen = others[np.argsort(others["uid"], kind="stable")[:PAIRS_AGAIN]]
    where = {str(member["uid"]): int(member["partition"]) for member in members[np.isin(members["uid"], chosen["centre"])]}
    where |= {str(member["uid"]): int(member["partition"]) for member in chosen}
    found: dict[str, tuple[np.ndarray, int]] = {}
    for number in sorted(set(where.values())):
        wanted = {uid for uid, partition in where.items() if partition == number}
        found |= _features(storage, embeddings(partitions[number]), wanted)
    limits = _limits(storage, "duplicates-pairs")
    for member in chosen:
        uid, centre = str(member["uid"]), str(member["centre"])
        if uid not in found or centre not in found:
            continue  # forgotten since; what should be there is named by other checks
        ledger.count(CHECK)
        said = (float(member["cosine"]), int(member["hamming"]), bool(member["mirrored"]))
        wrong = _wrong_pair(found[uid], found[centre], said, limits)
        if wrong:
            ledger.add(CHECK, duplicates_file(partitions[member["partition"]]), f"{uid} and its centre {centre} {wrong}")


def _check_matches(storage: Storage, partition: str, ledger: Ledger) -> None:
    path = contamination_file(partition)
    table = read_table(storage, path).sort_by("uid").slice(0, MATCHES_AGAIN)
    ours = _features(storage, embeddings(partition), set(table["uid"].to_pylist()))
    limits = _limits(storage, "contamination")
    for reference in sorted(set(table["reference"].to_pylist())):
        theirs = _features(storage, reference_file(reference), set(table["item"].to_pylist()), key="item")
        for row in table.to_pylist():
            if row["reference"] != reference or row["uid"] not in ours:
                continue
            ledger.count(CHECK)
            if row["item"] not in theirs:
                ledger.add(CHECK, path, f"{row['uid']} matches {row['item']}, which is not in {reference_file(reference)}")
                continue
            said = (row["cosine"], row["hamming"], row["mirrored"])
            wrong = _wrong_pair(ours[row["uid"]], theirs[row["item"]], said, limits)
            if wrong:
                ledger.add(CHECK, path, f"{row['uid']} and {row['item']} of {reference} {wrong}")


def _features(storage: Storage, path: str, wanted: set[str], key: str = "uid") -> dict[str, tuple[np.ndarray, int]]:
    table = read_table(storage, path, [key, "feature", "dhash"])
    names = table[key].to_pylist()
    rows_of = [row for row, name in enumerate(names) if name in wanted]
    chosen = table.take(rows_of)
    hashes = chosen["dhash"].to_pylist()
    return {names[row]: (vector, bits) for row, vector, bits in zip(rows_of, feature_rows(chosen["feature"]), hashes, strict=True)}


def _limits(storage: Storage, stage: str) -> list[tuple[float, int]]:
    limits = next((receipt.arguments["limits"] for receipt in read_receipts(storage, stage)), [(-1.0, 64)])
    return [(float(cosine), int(bits)) for cosine, bits in limits]


def _wrong_pair(
    one: tuple[np.ndarray, int], other: tuple[np.ndarray, int], said: tuple[float, int, bool], limits: list[tuple[float, int]]
) -> str | None:
    (x, first), (y, second) = one, other
    cosine = float(x @ y / np.sqrt((x @ x) * (y @ y)))
    straight, turned = _differing(first, second), _differing(_mirrored(first), second)
    bits = min(straight, turned)
    if abs(cosine - said[0]) > TOLERANCE or (bits, turned < straight) != said[1:]:
        return f"have cosine {cosine:.9f} and {bits} differing bits{' mirrored' * (turned < straight)}, the row says {said}"
    if not any(cosine >= least - TOLERANCE and bits <= most for least, most in limits):
        return f"have cosine {cosine:.6f} and {bits} differing bits: beyond the limits {limits}"
    return None


def _differing(one: int, other: int) -> int:
    return ((one ^ other) & (2**64 - 1)).bit_count()


def _mirrored(bits: int) -> int:
    """The hash of the mirrored image: of each 8 bits the order turned round, and all inverted."""
    text = f"{bits & (2**64 - 1):064b}"
    turned = "".join(text[start : start + 8][::-1] for start in range(0, 64, 8))
    return int(turned, 2) ^ (2**64 - 1)
