"""From pairs to groups, and from groups to the best image of each that filters keep.

Two steps, because two things are known at two times. Groups follow from the images alone and bind splits of labels together. Which
image of a group stays can only be told once filters and rules have spoken: were it the largest image, come what may, a caption too
short or a score just above a threshold would take the whole group away. So the best is chosen among those that everything else keeps.

One exception: if a person reported an image of a group as illegal, all of the group is dropped. Its near-copies show the same.

Both steps run once, in one process, over compact columns of pairs and members (about 100 bytes each), never over features.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from filters import scoring
from filters.duplicate_waves import Waves, read_waves
from filters.duplicates import PAIR, Mode, best_neighbours, stars
from winnow.duplicates import (
    DUPLICATES,
    GROUPS,
    JUDGED,
    contamination_reasons,
    duplicates_file,
    groups_file,
    judged_file,
    pairs_file,
)
from winnow.partitions import Outcome
from winnow.reported import read_reported
from winnow.run_files import withdrawn_uids
from winnow.storage import Storage
from winnow.tables import read_table, write_table

VERSION = 1
MEMBER = np.dtype(
    [
        ("uid", "S32"), ("partition", "i4"), ("pixels", "i8"), ("group", "S32"), ("group_size", "i4"), ("centre", "S32"),
        ("cosine", "f8"), ("hamming", "u1"), ("mirrored", "?"),
    ]
)  # fmt: skip


def group_pairs(storage: Storage, name: str, *, works: Mapping[str, int], partitions: Sequence[str]) -> Outcome:
    """Writes `duplicates/groups/<partition>.parquet` of every partition. Images that no source lists any more are in no group.

    Args:
        works: file of pairs -> the wave it is of.
    """
    waves = read_waves(storage)
    assert waves is not None, "works are made from the record"
    names = sorted(partitions)
    pairs = best_neighbours(np.concatenate([np.empty(0, PAIR), *_valid_pairs(storage, waves, works, names)]))
    members = grouped(pairs)
    written = []
    for number, partition in enumerate(names):
        rows = members[slice(*np.searchsorted(members["partition"], [number, number + 1]))]
        written.append(write_table(storage, groups_file(partition), _group_table(rows)))
    _remove_others(storage, "duplicates/groups", names)
    counts = {"pairs": len(pairs), "in_groups": len(members), "groups": int((members["uid"] == members["centre"]).sum())}
    return Outcome.of(*written, counts=counts)


def grouped(pairs: np.ndarray) -> np.ndarray:
    """PAIR -> MEMBER rows of groups of two and more, sorted by partition and uid.

    Args:
        pairs: as of `best_neighbours`: each once.
    """
    sides = [(pairs[side], pairs[f"{side}_pixels"], pairs[f"{side}_partition"]) for side in ("worse", "better")]
    uids, first = np.unique(np.concatenate([uid for uid, _, _ in sides]), return_index=True)
    pixels, partition = (np.concatenate([side[column] for side in sides])[first] for column in (1, 2))
    order = np.lexsort((uids, -pixels))  # from the best on
    rank = np.empty(len(uids), np.int64)
    rank[order] = np.arange(len(uids))
    worse, better = (rank[np.searchsorted(uids, pairs[side])] for side in ("worse", "better"))
    centre = stars(worse, better, len(uids))
    members = np.zeros(len(uids), MEMBER)
    members["uid"], members["pixels"], members["partition"] = uids[order], pixels[order], partition[order]
    members["centre"] = members["uid"][centre]
    members["group_size"] = np.bincount(centre, minlength=len(uids))[centre]
    by_group = np.lexsort((members["uid"], centre))
    begins = np.flatnonzero(np.append(True, np.diff(centre[by_group]) != 0)) if len(uids) else np.empty(0, np.int64)
    members["group"][by_group] = np.repeat(members["uid"][by_group][begins], np.diff(np.append(begins, len(uids))))
    link = np.flatnonzero(centre[worse] == better)
    for field in ("cosine", "hamming", "mirrored"):
        members[field][worse[link]] = pairs[field][link]
    members = members[members["group_size"] > 1]
    return members[np.lexsort((members["uid"], members["partition"]))]


def judge_members(storage: Storage, name: str, **decided_by: Any) -> Outcome:
    """Writes `duplicates/judged/<name>.parquet`: which members of groups everything but their being duplicates keeps.

    Args:
        decided_by: what `scoring.decide` is told: filters, device.
    """
    members = set(read_table(storage, groups_file(name), ["uid"])["uid"].to_pylist())
    found: dict[str, bool] = {}
    if members:
        decided = scoring.decide(storage, name, copies=contamination_reasons(storage, name), **decided_by)
        found = {uid: verdict == "kept" for uid, verdict in zip(decided.uids, decided.verdicts, strict=True) if uid in members}
    table = pa.table([sorted(found), [found[uid] for uid in sorted(found)]], schema=JUDGED)
    return Outcome.of(write_table(storage, judged_file(name), table), counts={"members": len(found), "passing": sum(found.values())})


def choose_best(storage: Storage, name: str, *, mode: Mode, partitions: Sequence[str]) -> Outcome:
    """Writes `duplicates/<partition>.parquet` of every partition: the best of each group among those that pass, and the rest."""
    names = sorted(partitions)
    parts = [_judged_members(storage, partition, number) for number, partition in enumerate(names)]
    members, passes = (
        np.concatenate([part[side] for part in parts]) if parts else np.empty(0, kind) for side, kind in ((0, MEMBER), (1, bool))
    )
    chosen = choose(members, passes, _reported(storage), mode)
    written = []
    for number, partition in enumerate(names):
        rows = slice(*np.searchsorted(members["partition"], [number, number + 1]))
        own = _duplicates_table(members[rows], {key: values[rows] for key, values in chosen.items()})
        written.append(write_table(storage, duplicates_file(partition), own))
    _remove_others(storage, "duplicates", names)
    counts = {"passing": int(passes.sum()), "duplicates_dropped": int(chosen["is_dropped"].sum())}
    return Outcome.of(*written, counts=counts)


def choose(members: np.ndarray, passes: np.ndarray, reported: frozenset[bytes], mode: Mode) -> dict[str, np.ndarray]:
    """What becomes of each member.

    Args:
        members: (n,) MEMBER.
        passes: (n,) which of them everything else keeps.
        reported: uids that a person reported as illegal.

    Returns:
        passes, best (S32, empty if there is none), is_best, is_dropped, num_passing, weight (0 of what is not kept).
    """
    order = np.lexsort((members["uid"], -members["pixels"], ~passes, members["group"]))
    groups, begins, inverse = np.unique(members["group"][order], return_index=True, return_inverse=True)
    place = np.empty(len(members), np.int64)
    place[order] = inverse
    first = order[begins]
    illegal = np.zeros(len(groups), dtype=bool)
    illegal[place[np.isin(members["uid"], np.array(sorted(reported), dtype="S32"))]] = True
    num_passing = np.bincount(place[passes], minlength=len(groups))
    best = np.where((num_passing > 0) & ~illegal, members["uid"][first], b"").astype("S32")
    is_best = members["uid"] == best[place]
    is_dropped = passes & (illegal[place] | ((mode == "keep_best") & ~is_best))
    kept = passes & ~is_dropped
    weight = np.where(kept, 1.0 / np.maximum(num_passing[place], 1) if mode == "down_weight" else 1.0, 0.0)
    return {
        "passes": passes, "best": best[place], "is_best": is_best, "is_dropped": is_dropped, "num_passing": num_passing[place],
        "weight": weight,
    }  # fmt: skip


def _valid_pairs(storage: Storage, waves: Waves, works: Mapping[str, int], names: Sequence[str]) -> Iterator[np.ndarray]:
    """Pairs whose images are still there, with the features that they were found with; partitions as numbers of `names`."""
    withdrawn = {uid.encode() for uids in withdrawn_uids(storage).values() for uid in uids}
    number_of, wave_of = {name: number for number, name in enumerate(names)}, waves.wave_of
    for work, wave in sorted(works.items()):
        table = read_table(storage, pairs_file(work))
        pairs = np.empty(table.num_rows, PAIR)
        valid = np.ones(table.num_rows, dtype=bool)
        for side in ("worse", "better"):
            column = table[f"{side}_partition"].combine_chunks().dictionary_encode()
            there = column.dictionary.to_pylist()
            holds = np.array([name in number_of and wave_of[name] <= wave for name in there], dtype=bool)
            places = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            valid &= holds[places] if len(there) else True
            numbers = np.array([number_of.get(name, -1) for name in there], dtype=np.int32)
            pairs[f"{side}_partition"] = numbers[places] if len(there) else 0
            pairs[side] = np.array(table[side].to_pylist(), dtype="S32")
            pairs[f"{side}_pixels"] = table[f"{side}_pixels"].to_numpy()
        for field in ("cosine", "hamming", "mirrored"):
            pairs[field] = table[field].to_numpy(zero_copy_only=False)
        if withdrawn:
            gone = np.array(sorted(withdrawn), dtype="S32")
            valid &= ~np.isin(pairs["worse"], gone) & ~np.isin(pairs["better"], gone)
        yield pairs[valid]


def _remove_others(storage: Storage, folder: str, names: Sequence[str]) -> None:
    """Files of partitions that are no more."""
    known = {f"{name}.parquet" for name in names}
    for file in storage.names(folder):
        if file.endswith(".parquet") and file not in known:
            storage.remove(f"{folder}/{file}")


def _group_table(members: np.ndarray) -> pa.Table:
    return pa.table([_column(members, field) for field in GROUPS], schema=GROUPS)


def _duplicates_table(members: np.ndarray, chosen: Mapping[str, np.ndarray]) -> pa.Table:
    columns = []
    for field in DUPLICATES:
        if field.name == "best":
            columns.append(pa.array([uid.decode() or None for uid in chosen["best"]], pa.string()))
        elif field.name in chosen:
            columns.append(pa.array(chosen[field.name], field.type))
        else:
            columns.append(_column(members, field))
    return pa.table(columns, schema=DUPLICATES)


def _column(members: np.ndarray, field: pa.Field) -> pa.Array:
    """A field of MEMBER; what is said of the centre itself is null."""
    values = members[field.name]
    if field.type == pa.string():
        return pa.array(values.astype("U32"), pa.string())
    mask = members["uid"] == members["centre"] if field.name in ("cosine", "hamming", "mirrored") else None
    return pa.array(values, field.type, mask=mask)


def _judged_members(storage: Storage, partition: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    table = read_table(storage, groups_file(partition))
    members = np.zeros(table.num_rows, MEMBER)
    members["partition"] = number
    for name in ("uid", "group", "centre"):
        members[name] = np.array(table[name].to_pylist(), dtype="S32")
    for name in ("pixels", "group_size"):
        members[name] = table[name].to_numpy()
    for name, nothing in (("cosine", 0.0), ("hamming", 0), ("mirrored", False)):
        members[name] = table[name].fill_null(nothing).to_numpy()
    judged = read_table(storage, judged_file(partition))
    passing = set(judged.filter(judged["passes"])["uid"].to_pylist())
    return members, np.array([uid in passing for uid in table["uid"].to_pylist()], dtype=bool)


def _reported(storage: Storage) -> frozenset[bytes]:
    return frozenset(uid.encode() for uids in read_reported(storage).values() for uid in uids)
