"""FILTERS: every filter there is, one entry each. Adding one is adding an entry here, and labels (docs/add-a-filter.md)."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from winnow.errors import ConfigError

Scope = Literal["population", "curated"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterSpec:
    """What a filter is for and what it promises."""

    name: str
    """Slug: becomes a folder, a column and a reason in the decision log."""
    title: str
    """What a reader of the report sees."""
    policy: str
    """One sentence a labeller reads: what must be dropped, and what must not."""
    seed_prompts: tuple[str, ...]
    """Texts whose nearest images start the first labelling round."""
    max_miss_rate: float = 0.01
    """Share of policy-breaking images that may slip through, in (0, 1)."""
    confidence: float = 0.95
    """Chance that `max_miss_rate` holds, in (0, 1)."""
    scope: Scope = "population"
    """Of which images the promise speaks: "population": those in the data, known by a random sample; "curated": those like a
    collection of examples, for things too rare to be met in a random sample."""
    blurred: bool = False
    """The report shows its images only after a click, and the label page only while the mouse is over them."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", self.name):
            raise ConfigError(f"FilterSpec {self.name!r}: name must be lower-case letters, digits and _, starting with a letter")
        for field in ("max_miss_rate", "confidence"):
            value = getattr(self, field)
            if not 0 < value < 1:
                raise ConfigError(f"FilterSpec {self.name!r}: {field} must be between 0 and 1, got {value}")
        if self.scope not in get_args(Scope):
            raise ConfigError(f"FilterSpec {self.name!r}: scope must be one of {', '.join(get_args(Scope))}, got {self.scope!r}")
        if not self.policy.strip() or not self.seed_prompts:
            raise ConfigError(f"FilterSpec {self.name!r}: it needs a policy and at least one seed prompt")


FILTERS: dict[str, FilterSpec] = {
    spec.name: spec
    for spec in (
        FilterSpec(
            name="people",
            title="People",
            policy=(
                "Drop an image that shows a person or part of one, however small, drawn or photographed, seen from any side; "
                "keep animals, empty clothes and traces of people."
            ),
            seed_prompts=("a person", "a photo of a man", "a woman", "a child", "a crowd of people"),
        ),
        FilterSpec(
            name="violence",
            title="Violence",
            policy=(
                "Drop an image that shows a weapon made to hurt people, or people being hurt; "
                "keep tools and kitchen knives that nobody is threatened with."
            ),
            seed_prompts=("a sword", "a gun", "a person holding a weapon", "a rifle"),
            blurred=True,
        ),
        FilterSpec(
            name="hate_symbol",
            title="Hate symbols",
            policy=(
                "Drop an image that shows a symbol of hatred against a group of people, on whatever carries it; "
                "keep flags, badges and patterns that merely resemble one."
            ),
            seed_prompts=("a hate symbol", "a flag with a hate symbol"),
            scope="curated",
            blurred=True,
        ),
    )
}


def filter_specs(names: tuple[str, ...]) -> list[FilterSpec]:
    """The catalogue's entries of these names. Raises ConfigError for a name that has none, or that stands twice."""
    unknown = [name for name in names if name not in FILTERS]
    if unknown:
        raise ConfigError(f"no filter is named {', '.join(map(repr, unknown))}; there are {', '.join(FILTERS)} (filters/catalog.py)")
    if len(set(names)) != len(names):
        raise ConfigError(f"a filter is named twice in {', '.join(names)}")
    return [FILTERS[name] for name in names]
