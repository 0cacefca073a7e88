"""Rules of caption and image as they stand in a workspace: which ones the decision log was made with, and what they need.

decisions/rules.json                each rule with its limits, settled; a limit that was asked for as a share with how it was found
caption_similarity/<p>.parquet      uid, similarity: cosine of an image's and its caption's CLIP features, sorted by uid

A rule's values stand in the decision log, `value_<rule>`, null for failed samples. A rule drops a sample whose value is below `min`,
above `max`, or not `any_of`.
"""

from dataclasses import dataclass
from typing import Any

from winnow.run_files import read_json_if_any
from winnow.storage import Storage

RULES_USED = "decisions/rules.json"
SIMILARITY_STEP = 2.0**-14
"""Similarities are multiples of it, so that counting them finds a share's limit exactly, in little memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleUsed:
    """A rule as the decisions were made with it."""

    name: str
    min: float | None = None
    max: float | None = None
    any_of: tuple[str, ...] = ()
    top_share: float | None = None
    """What was asked for, where `min` was found from it."""
    measured_on: dict[str, Any] | None = None
    """Where `min` was found: how many partitions and images, the name of the last partition, and a digest of their similarities."""

    def drops(self, value: float | str) -> bool:
        if isinstance(value, str):
            return value not in self.any_of
        return (self.min is not None and value < self.min) or (self.max is not None and value > self.max)

    def settled(self) -> dict[str, Any]:
        """What decides verdicts: without how a limit was found. JSON-able; what was not asked for is left out."""
        said = {"name": self.name, "min": self.min, "max": self.max, "any_of": list(self.any_of)}
        return {key: value for key, value in said.items() if value not in (None, [])}

    @property
    def limits(self) -> str:
        """In words."""
        if self.any_of:
            return f"one of {', '.join(self.any_of)}"
        share = f" (the top {self.top_share:.0%})" if self.top_share is not None else ""
        low = None if self.min is None else f"at least {self.min:.6g}{share}"
        high = None if self.max is None else f"at most {self.max:.6g}"
        return " and ".join(limit for limit in (low, high) if limit)


def similarity_file(partition: str) -> str:
    return f"caption_similarity/{partition}.parquet"


def rules_used(storage: Storage) -> list[RuleUsed]:
    """The rules behind the decision log, in its order; none if there are none, or nothing was scored yet."""
    entries = read_json_if_any(storage, RULES_USED) or []
    return [RuleUsed(**{**entry, "any_of": tuple(entry.get("any_of", ()))}) for entry in entries]
