"""What dropping images did to the words of captions, counted: a filter that drops swords also drops knights.

`words/<partition>.parquet`, one row a word and one a group of words, sorted: kind ("word", "group", "all"), word, and in how many captions

    judged      of all images that were judged
    unfiltered  of those that filters alone decide on: what rules, copies or people's wishes drop is meant to be gone
    kept        of the kept ones
    weighted    of the kept ones, each counted by its weight (float64); as `kept` where samples have no weights

The row of kind "all" counts captions. Of large runs a uniform sample is read: uids are hashes, so those below a mark are one.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from winnow.configs import STRICT
from winnow.errors import ConfigError
from winnow.forgotten import SLUGS
from winnow.partitions import Outcome
from winnow.run_files import filters_used
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.weights import weights_file
from winnow.words import WORD_COUNTS, below_mark, words_file, words_of
from winnow.workspace import decisions, manifest_part

VERSION = 1
STAGE = "words"


_GROUPS = {
    "women": "woman women lady ladies girl girls mother mom wife daughter sister grandmother queen bride female she her",
    "men": "man men gentleman guy boy boys father dad husband son brother grandfather king groom male he his him",
    "children": "child children kid kids baby babies toddler infant girl girls boy boys",
    "old people": "elderly senior seniors grandmother grandfather grandma grandpa",
}
"""Words for people, as they stand in English captions."""


def _groups() -> dict[str, tuple[str, ...]]:
    return {name: tuple(words.split()) for name, words in _GROUPS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class WordsConfig:
    """Whose words are counted."""

    __pydantic_config__: ClassVar = STRICT

    groups: dict[str, tuple[str, ...]] = field(default_factory=_groups)
    """Name -> words; the report always shows what became of captions with any of them, however rare they are."""
    max_captions: int = 1_000_000
    """Of more listed pairs a uniform sample of a half, a quarter, ... is read, so that no more than this remain."""

    def __post_init__(self) -> None:
        if self.max_captions < 1:
            raise ConfigError(f"words.max_captions must be at least 1, got {self.max_captions}")
        for name, words in self.groups.items():
            wrong = [word for word in words if words_of(word) != {word}]
            if wrong or not words:
                raise ConfigError(f"words.groups: {name!r} needs single words in small letters, got {wrong[0] if wrong else 'none'!r}")

    def halvings(self, listed: int) -> int:
        """How often the sample is halved for so many listed pairs: it changes rarely, so that counts stay up to date."""
        return max(0, math.ceil(math.log2(listed / self.max_captions))) if listed else 0


def count_words(storage: Storage, name: str, *, groups: Mapping[str, Iterable[str]], halvings: int, weighted: bool) -> Outcome:
    """Writes words/<name>.parquet.

    Args:
        groups: name -> words.
        halvings: of the sample.
        weighted: by weights/<name>.parquet.
    """
    filters = {used.name for used in filters_used(storage)}
    captions = read_table(storage, manifest_part(name), ["uid", "caption"])
    caption_of = dict(zip(captions["uid"].to_pylist(), captions["caption"].to_pylist(), strict=True))
    weight_of: dict[str, float] = {}
    if weighted:
        weights = read_table(storage, weights_file(name), ["uid", "weight"])
        weight_of = dict(zip(weights["uid"].to_pylist(), weights["weight"].to_pylist(), strict=True))
    wanted = {group: frozenset(words) for group, words in groups.items()}
    counts: dict[str, Counter[tuple[str, str]]] = {column: Counter() for column in ("judged", "unfiltered", "kept")}
    sums: dict[tuple[str, str], float] = {}
    for row in read_table(storage, decisions(name), ["uid", "verdict", "reasons"]).to_pylist():
        uid, reasons = row["uid"], row["reasons"] or []
        if row["verdict"] == "failed" or set(SLUGS) & set(reasons) or not below_mark(uid, halvings):
            continue
        found = words_of(caption_of[uid])
        keys = [("all", ""), *(("word", word) for word in found), *(("group", group) for group, words in wanted.items() if words & found)]
        counts["judged"].update(keys)
        if filters.issuperset(reasons):
            counts["unfiltered"].update(keys)
        if row["verdict"] == "kept":
            counts["kept"].update(keys)
            for key in keys:
                sums[key] = sums.get(key, 0.0) + (weight_of[uid] if weighted else 1.0)
    rows = sorted(counts["judged"])
    columns = {
        "kind": [kind for kind, _ in rows],
        "word": [word for _, word in rows],
        **{column: [counted[key] for key in rows] for column, counted in counts.items()},
        "weighted": [sums.get(key, 0.0) for key in rows],
    }
    written = write_table(storage, words_file(name), pa.table(columns, schema=WORD_COUNTS))
    return Outcome.of(written, counts={"captions": counts["judged"]["all", ""], "words": len(rows)})
