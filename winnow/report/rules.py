"""What each rule of caption and image asks for, and what it dropped."""

from collections import Counter
from typing import Any

from winnow.rules import rules_used
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions


def gather_rules(storage: Storage, partitions: list[str]) -> list[dict[str, Any]]:
    """An entry for each rule, in the order of the config; one partition in memory at a time."""
    rules = rules_used(storage)
    dropped: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for partition in partitions if rules else ():
        for reasons in read_table(storage, decisions(partition), ["reasons"])["reasons"].to_pylist():
            dropped.update(reasons or ())
            alone.update(reasons or () if len(reasons or ()) == 1 else ())
    return [
        {
            "name": rule.name,
            "limits": rule.limits,
            "measured_on": rule.measured_on,
            "dropped": dropped[rule.name],
            "dropped_alone": alone[rule.name],
        }
        for rule in rules
    ]
