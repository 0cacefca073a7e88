"""How kept samples are mixed and cut: partitions form groups, a group is shuffled by seed and cut into shards of equal size.

Groups make the shuffle bounded (memory holds the places of one group's samples) and keep what stands: a new partition, a
changed one or a forgotten sample touches the shards of its own group. A uid is a hash and partitions of one listing are ranges of
uids, so a group is itself a random share of what was listed together.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

MAX_PARTITIONS = 64
"""Of a group: their tars are open at the same time."""


def group_partitions(rows: Mapping[str, int], at_least: int) -> list[list[str]]:
    """Partitions in groups, in order: each ends as soon as it lists enough rows.

    What is left at the end joins the last group, so that no group is small; it leaves again when it is large enough itself. So
    new partitions change the last group alone.

    Args:
        rows: partition -> rows it lists, which never changes.
        at_least: rows of a group.
    """
    groups: list[list[str]] = []
    open_group: list[str] = []
    held = 0
    for partition in sorted(rows):
        open_group.append(partition)
        held += rows[partition]
        if held >= at_least or len(open_group) == MAX_PARTITIONS:
            groups.append(open_group)
            open_group, held = [], 0
    if open_group and groups:
        groups[-1] += open_group
    elif open_group:
        groups.append(open_group)
    return groups


def shuffled(uids: Iterable[str], seed: int) -> list[str]:
    """The order of a group's samples: that of a hash of seed and uid. Where one stands to another never depends on a third."""
    return sorted(uids, key=lambda uid: hashlib.sha256(f"{seed}:{uid}".encode()).digest())


def cut(order: Sequence[str], shard_samples: int) -> list[Sequence[str]]:
    """Runs of equal length, to within one; as many as come closest to `shard_samples` each."""
    if not order:
        return []
    count = max(1, (2 * len(order) + shard_samples) // (2 * shard_samples))
    return [order[number * len(order) // count : (number + 1) * len(order) // count] for number in range(count)]
