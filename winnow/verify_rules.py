"""Do the values of rules follow from captions and images, and a share's limit from the similarities? Computed a second time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from winnow.decisions import value_column
from winnow.digests import digest
from winnow.findings import Ledger
from winnow.receipts import list_done
from winnow.rule_values import value_again
from winnow.rules import RULES_USED, SIMILARITY_STEP, RuleUsed, rules_used, similarity_file
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, manifest_part, raw_table

CHECKED_AGAIN = 256
"""Rows of each partition whose values are computed again: those with the smallest uids, which are a random draw as uids are hashes."""


def broken_rules(row: dict[str, Any], rules: Sequence[RuleUsed]) -> list[str]:
    """Names of the rules that a row of the decision log breaks by its own values. Raises LookupError if it lacks one."""
    broken = []
    for rule in rules:
        value = row.get(value_column(rule.name))
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise LookupError(f"no value by {rule.name}")
        if isinstance(value, str) != bool(rule.any_of):
            raise LookupError(f"a value by {rule.name} that is no {'word' if rule.any_of else 'number'}")
        outside = value not in rule.any_of if rule.any_of else _outside(float(value), rule.min, rule.max)
        broken += [rule.name] if outside else []
    return broken


def _outside(value: float, low: float | None, high: float | None) -> bool:
    return (low is not None and low > value) or (high is not None and high < value)


def check_values(storage: Storage, partition: str, decided: dict[str, dict[str, Any]], rules: Sequence[RuleUsed], ledger: Ledger) -> None:
    """Values of some rows of the decision log, from manifest, download and similarities.

    Args:
        decided: uid -> row.
    """
    if not rules:
        return
    judged = sorted(uid for uid, row in decided.items() if any(row.get(value_column(rule.name)) is not None for rule in rules))
    known = {uid: dict[str, Any]() for uid in judged[:CHECKED_AGAIN]}
    for path, columns in (
        (manifest_part(partition), ["caption"]),
        (raw_table(partition), ["width", "height"]),
        (similarity_file(partition), ["similarity"]),
    ):
        if path == similarity_file(partition) and all(rule.name != "clip_similarity" for rule in rules):
            continue
        if path == raw_table(partition) and all(not rule.name.startswith("image_") for rule in rules):
            continue
        for row in read_table(storage, path, ["uid", *columns]).to_pylist():
            if row["uid"] in known:
                known[row["uid"]] |= row
    for uid, row in known.items():
        for rule in rules:
            ledger.count("verdicts")
            said, again = decided[uid].get(value_column(rule.name)), value_again(rule.name, row)
            if said != again:
                ledger.add("verdicts", decisions(partition), f"{uid} has {said!r} by the rule {rule.name}, it gives {again!r}")


def check_limits(storage: Storage, ledger: Ledger) -> None:
    """Limits that were found from a share, where the similarities they were found from are still the same."""
    outputs = {done.partition: done.output for done in list_done(storage, "similarity")}
    for rule in rules_used(storage):
        ledger.count("verdicts")
        on = rule.measured_on
        if rule.top_share is None or on is None:
            continue
        of_then = {name: output for name, output in outputs.items() if name <= on["through"]}
        if digest(of_then) != on["digest"]:
            continue  # images were withdrawn or fetched anew since: the limit stands, what it was found from does not
        values = np.concatenate([read_table(storage, similarity_file(name), ["similarity"])["similarity"].to_numpy() for name in of_then])
        if len(values) != on["images"]:
            ledger.add("verdicts", RULES_USED, f"{rule.name}: its limit was found from {on['images']:,} images, there are {len(values):,}")
            continue
        descending = np.sort(values.astype(np.float64))[::-1]
        due = float(descending[math.ceil(rule.top_share * len(values) - 1e-9) - 1])
        if rule.min is None or abs(rule.min - due) > SIMILARITY_STEP / 2:
            ledger.add("verdicts", RULES_USED, f"{rule.name}: the top {rule.top_share:.2%} begin at {due:.6f}, it says {rule.min}")
