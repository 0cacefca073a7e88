"""Records of the label store: labels, decisions, batches and their items. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from winnow.digests import SHORT, digest

Origin = Literal["random", "text_search", "boundary", "neighbour", "import", "audit"]
"""How an image came to be asked about: drawn at random, by text, near the boundary, as a neighbour of a miss, from a
collection, or among what a filter keeps."""
ORIGINS: tuple[Origin, ...] = get_args(Origin)

Mode = Literal["query", "audit", "calibrate", "test", "triage", "pairs", "compare", "adjudicate", "table"]
"""How an answer was given. One image at a time: query (active learning), audit, calibrate, test (blind), adjudicate (of a conflict). A
grid: triage. Two images: pairs (is one a copy of the other?), compare (which is better?). "table": by a program or a file."""
MODES: tuple[Mode, ...] = get_args(Mode)
PAGE_MODES: tuple[Mode, ...] = tuple(mode for mode in MODES if mode != "table")
BLIND: frozenset[Mode] = frozenset({"audit", "calibrate", "test"})
"""The page tells no score, no origin and nobody's answer; "unsure" counts as a positive."""
TWO_PICTURES: frozenset[Mode] = frozenset({"pairs", "compare"})

Answer = Literal["yes", "no", "unsure", "skip", "report", "a", "b", "tie", "undo"]
"""yes: the policy wants it dropped (or: a copy). skip: asked and not answered. report: illegal material. a, b, tie: of a comparison.
undo: takes an earlier decision back."""
ANSWERS: tuple[Answer, ...] = get_args(Answer)
VALUES: Mapping[str, int] = {"yes": 1, "no": 0}

Blur = Literal["off", "blurred", "revealed"]
"""Whether the image was blurred when the answer was given."""
BLURS: tuple[Blur, ...] = get_args(Blur)

ItemKind = Literal["item", "honeypot", "training"]
"""honeypot, training: the answer is known and measures the labeller; it says nothing about the image and is no label."""
KINDS: tuple[ItemKind, ...] = get_args(ItemKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What is thought of an image now."""

    uid: str
    value: int
    """1: the filter should drop it."""
    origin: Origin
    """How it was drawn *first*, except that a random draw stays one whatever else the image was met by, and that a label known from a
    grid alone never counts as a random draw."""
    batch: str
    """The batch that drew it so."""
    unsure: bool = False
    """Nobody could tell: counted as a positive, because it was asked to prove something."""
    conflict: bool = False
    """People differ and nobody has settled it: counted as a positive until then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the store's `labels`, as it was written."""

    id: int
    uid: str
    value: int | None
    origin: Origin
    batch: str
    person: str
    policy_version: str
    created_at: str
    answer: Answer | None = None
    """None in rows older than the page: `value` says it."""
    mode: Mode = "table"
    kind: ItemKind = "item"
    seconds: float | None = None
    blur: Blur | None = None
    zoomed: bool | None = None
    flagged: bool | None = None
    early: int | None = None
    """Keys pressed before the minimum dwell, and not taken."""
    item_digest: str | None = None
    idempotency_key: str | None = None
    undoes: str | None = None
    decided_at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One key press of a labeller, as the page sends it."""

    key: str
    """Idempotency key, made by whoever decides: sent twice, it counts once."""
    item: str
    """The item's name in its batch."""
    answer: Answer
    seconds: float = 0.0
    """From the image's appearance to the key."""
    blur: Blur = "off"
    zoomed: bool = False
    flagged: bool = False
    early: int = 0
    undoes: str | None = None
    """Key of the decision that an undo takes back."""
    decided_at: str = ""
    """When, by the labeller's clock; it may have been offline since."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Something to be asked about, as a batch is made of."""

    uid: str
    """Of the image; of two pictures any name that is unique in the batch."""
    origin: Origin = "random"
    reason: str = ""
    """Why it is asked; shown in mode `query` alone. Of two pictures: the caption they were made for, shown with them."""
    kind: ItemKind = "item"
    expected: int | None = None
    """The known answer of a honeypot or training item."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """`left` and `right` (pairs: the sample and the training image; compare: A and B): "uid:<uid>" or "file:<path in the workspace>"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchItem:
    """An item as the store holds it."""

    item: str
    """Its name on the page: says nothing about the image."""
    position: int
    uid: str
    origin: Origin
    reason: str
    kind: ItemKind
    expected: int | None
    pictures: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A set of items to be labelled, in a mode."""

    filter_name: str
    name: str
    mode: Mode
    origin: Origin
    wanted: int
    created_at: str
    overlap: int = 1
    """Different people who are to answer each item."""
    seed: int | None = None
    question: str = ""
    """What labellers are asked; empty: the filter's policy."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """How the sample was drawn, in words and numbers."""


def policy_version(policy: str) -> str:
    """Digest of a policy's words: labels given under other words are told apart by it."""
    return digest(policy)[:SHORT]
