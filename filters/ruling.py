"""Rules over a partition: the values of its pairs, and the limits that were asked for as a share of all images."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from filters.rules import RULES, Pair, Rule, measured
from winnow.digests import digest
from winnow.errors import ConservationError
from winnow.rules import RULES_USED, SIMILARITY_STEP, RuleUsed, rules_used, similarity_file
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import manifest_part, raw_table

BINS = round(2 / SIMILARITY_STEP) + 1
"""Similarities there can be, from -1 to 1."""


def settle_rules(storage: Storage, rules: Sequence[Rule], *, similarity: Mapping[str, str], space: str) -> list[RuleUsed]:
    """Every rule with its limits as numbers. A share's limit that stands in decisions/rules.json stands, whatever images came since.

    Otherwise a nightly run would move the limit a little and decide everything anew. It is found again when the share or the
    features' model changes, or when the file is removed.

    Args:
        similarity: partition -> output digest of its similarities; empty if no rule needs them.
        space: digest of the features' model.
    """
    known = {rule.name: rule for rule in rules_used(storage)}
    settled = []
    for rule in rules:
        lowest, measured_on = rule.min, None
        if rule.top_share is not None:
            before = known.get(rule.rule)
            stands = before is not None and before.top_share == rule.top_share and (before.measured_on or {}).get("space") == space
            if before is not None and stands:
                lowest, measured_on = before.min, before.measured_on
            else:
                lowest, images = share_limit(storage, sorted(similarity), rule.top_share)
                through = max(similarity, default="")
                measured_on = {"partitions": len(similarity), "through": through, "images": images, "space": space}
                measured_on["digest"] = digest(dict(similarity))
        settled.append(
            RuleUsed(name=rule.rule, min=lowest, max=rule.max, any_of=rule.any_of, top_share=rule.top_share, measured_on=measured_on)
        )
    return settled


def share_limit(storage: Storage, partitions: Sequence[str], share: float) -> tuple[float, int]:
    """The highest similarity at or above which at least this share of all images lies, and how many images there are.

    Exact: similarities are multiples of SIMILARITY_STEP, so counting them loses nothing and needs 256 kB for any number of images.
    """
    counts = np.zeros(BINS, np.int64)
    for partition in partitions:
        values = read_table(storage, similarity_file(partition), ["similarity"])["similarity"].to_numpy()
        counts += np.bincount(np.round((values.astype(np.float64) + 1) / SIMILARITY_STEP).astype(np.int64), minlength=BINS)
    images = int(counts.sum())
    if not images:
        return -1.0, 0
    at_or_above = np.cumsum(counts[::-1])[::-1]
    # The share of no image at all is asked for never: at_or_above[0] is all of them.
    highest = int(np.flatnonzero(at_or_above >= share * images)[-1])
    return highest * SIMILARITY_STEP - 1, images


def limits_of(rules: Sequence[RuleUsed]) -> list[dict[str, Any]]:
    """What decides verdicts, for the receipts."""
    return [rule.settled() for rule in rules]


def write_rules_json(storage: Storage, rules: Sequence[RuleUsed]) -> None:
    """Records which rules the decision log is made with; an equal file is left alone, and one that is not needed goes."""
    if not rules:
        if storage.exists(RULES_USED):
            storage.remove(RULES_USED)
        return
    entries = [
        rule.settled() | {"top_share": rule.top_share, "measured_on": rule.measured_on} if rule.top_share is not None else rule.settled()
        for rule in rules
    ]
    content = json.dumps(entries, sort_keys=True, indent=1) + "\n"
    if not storage.exists(RULES_USED) or storage.read_text(RULES_USED) != content:
        storage.write_text(RULES_USED, content)


def ruled(storage: Storage, name: str, rules: Sequence[RuleUsed], uids: Sequence[str]) -> dict[str, tuple[list[float | str], list[str]]]:
    """uid -> its value by each rule, and the names of the rules that drop it.

    Args:
        uids: embedded samples of the partition.

    Raises:
        ConservationError: similarities are missing for some of them.
    """
    wanted = set(uids)
    needs = {RULES[rule.name].needs for rule in rules}

    def column(path: str, *names: str) -> dict[str, tuple[Any, ...]]:
        table = read_table(storage, path, ["uid", *names])
        rows = zip(*(table[key].to_pylist() for key in ("uid", *names)), strict=True)
        return {row[0]: row[1:] for row in rows if row[0] in wanted}

    captions = column(manifest_part(name), "caption") if "caption" in needs else {}
    sizes = column(raw_table(name), "width", "height") if "size" in needs else {}
    similarities = column(similarity_file(name), "similarity") if "similarity" in needs else {}
    if "similarity" in needs and wanted - similarities.keys():
        lost = wanted - similarities.keys()
        raise ConservationError(f"{similarity_file(name)} lacks {len(lost)} embedded samples, {min(lost)} for one. "
                                "Remove it and its receipt, and run again.")  # fmt: skip
    found = {}
    for uid in uids:
        width, height = sizes.get(uid, (1, 1))
        (caption,), (similarity,) = captions.get(uid, (None,)), similarities.get(uid, (None,))
        found[uid] = measured(rules, Pair(caption=caption or "", width=width, height=height, similarity=similarity))
    return found
