"""RULES: what captions and images can be asked for besides what the filters judge. Off unless a run's config lists them.

A recipe such as DataComp's basic filtering (arXiv:2304.14108, section 5.1) is a list of them (docs/selection.md). Adding a rule is
adding an entry here, and its second computation for those who check (winnow/rule_values.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from filters.catalog import FILTERS
from filters.languages import caption_language
from winnow.configs import STRICT
from winnow.errors import ConfigError
from winnow.rules import SIMILARITY_STEP, RuleUsed
from winnow.stop_words import LANGUAGES

Need = Literal["caption", "size", "similarity"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """What rules look at."""

    caption: str
    """Empty where there is none."""
    width: int
    height: int
    """Pixels of the stored image, upright."""
    similarity: float | None = None
    """Cosine of image and caption; None where no rule needs it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleSpec:
    """What a rule measures."""

    name: str
    """Slug: a reason and a column in the decision log."""
    title: str
    """What a reader of the report sees."""
    policy: str
    """One sentence: what is measured, and how."""
    measure: Callable[[Pair], float | str]
    needs: Need
    choices: tuple[str, ...] = ()
    """Values there are, of a rule that asks for words; none: it asks for numbers."""
    step: float | None = None
    """Values are multiples of it, so that a limit may be asked for as a share of images."""

    def __post_init__(self) -> None:
        if self.name in FILTERS:
            raise ConfigError(f"RuleSpec {self.name!r}: a filter has that name, and a reason must tell which it was")
        if self.needs not in get_args(Need):
            raise ConfigError(f"RuleSpec {self.name!r}: needs must be one of {', '.join(get_args(Need))}, got {self.needs!r}")


RULES: dict[str, RuleSpec] = {
    spec.name: spec
    for spec in (
        RuleSpec(
            name="caption_characters",
            title="Length of the caption in characters",
            policy="Characters of the caption without white space at its ends.",
            measure=lambda pair: float(len(pair.caption.strip())),
            needs="caption",
        ),
        RuleSpec(
            name="caption_words",
            title="Length of the caption in words",
            policy="Parts of the caption between white space; Chinese, Japanese and Thai, which write no spaces, have few.",
            measure=lambda pair: float(len(pair.caption.split())),
            needs="caption",
        ),
        RuleSpec(
            name="caption_language",
            title="Language of the caption",
            policy="By script, stop words and letters; a short caption often tells none and is “und”, undetermined.",
            measure=lambda pair: caption_language(pair.caption),
            needs="caption",
            choices=LANGUAGES,
        ),
        RuleSpec(
            name="image_side_px",
            title="Smaller side of the image",
            policy="Pixels of the image's smaller side.",
            measure=lambda pair: float(min(pair.width, pair.height)),
            needs="size",
        ),
        RuleSpec(
            name="image_aspect",
            title="Aspect ratio of the image",
            policy="The image's longer side by its shorter one, 1 for a square.",
            measure=lambda pair: max(pair.width, pair.height) / min(pair.width, pair.height),
            needs="size",
        ),
        RuleSpec(
            name="clip_similarity",
            title="Similarity of image and caption",
            policy="Cosine of the CLIP features of image (three crops, mean) and caption.",
            measure=lambda pair: _known(pair.similarity),
            needs="similarity",
            step=SIMILARITY_STEP,
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule with its limits, as a run's config lists it."""

    __pydantic_config__: ClassVar = STRICT

    rule: str
    """Name in filters/rules.py."""
    min: float | None = None
    """Smallest value that is kept."""
    max: float | None = None
    """Largest value that is kept."""
    any_of: tuple[str, ...] = ()
    """Values that are kept, of a rule that tells words."""
    top_share: float | None = None
    """Keeps this share of the images, those with the highest values: `min` is found once, recorded, and stands from then on."""

    def __post_init__(self) -> None:
        spec = RULES.get(self.rule)
        if spec is None:
            raise ConfigError(f"rules: there is no rule {self.rule!r}. Choose from: {', '.join(RULES)}")
        if spec.choices:
            unknown = [value for value in self.any_of if value not in spec.choices]
            if unknown or not self.any_of or (self.min, self.max, self.top_share) != (None, None, None):
                wrong = f"{unknown[0]!r} is none" if unknown else "it takes nothing else"
                raise ConfigError(f"rules: {self.rule} needs any_of with values of {', '.join(spec.choices)}; {wrong}")
            return
        if self.any_of or (self.min, self.max, self.top_share) == (None, None, None):
            raise ConfigError(f"rules: {self.rule} needs {'min, max or top_share' if spec.step else 'min or max'}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"rules: {self.rule} keeps nothing: min {self.min:g} is above max {self.max:g}")
        if self.top_share is not None and (spec.step is None or self.min is not None or not 0 < self.top_share < 1):
            ranked = [name for name, one in RULES.items() if one.step is not None]
            raise ConfigError(f"rules: {self.rule}: top_share is for {', '.join(ranked)}, between 0 and 1 and instead of min")


def check_rules(rules: Sequence[Rule]) -> None:
    """Raises ConfigError if a rule is listed twice: its reason could not tell which one it was."""
    names = [rule.rule for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"rules: {twice[0]} is listed twice; give it min and max together")


def needs_similarity(rules: Sequence[Rule]) -> bool:
    return any(RULES[rule.rule].needs == "similarity" for rule in rules)


def measured(used: Sequence[RuleUsed], pair: Pair) -> tuple[list[float | str], list[str]]:
    """The value of each rule, and the names of those that drop the pair."""
    values = [RULES[rule.name].measure(pair) for rule in used]
    return values, [rule.name for rule, value in zip(used, values, strict=True) if rule.drops(value)]


def _known(similarity: float | None) -> float:
    assert similarity is not None, "the stage that scores asks for similarities first"
    return similarity
