"""How filters are learned: how many images to ask about, how to split the labels, what to fit."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from filters.catalog import FILTERS, FilterSpec
from filters.splits import CertificateKind, SplitConfig
from filters.svm import SvmConfig
from winnow.configs import STRICT
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPlan:
    """How many images of each kind to ask about, for one filter."""

    __pydantic_config__: ClassVar = STRICT

    random_labels: int = 4_000
    """Drawn at random: they prove what the filter does to the data, and find its threshold."""
    text_search_labels: int = 300
    """Nearest to the filter's seed prompts."""
    boundary_labels: int = 200
    """Each round: nearest to the classifier's boundary, but for the shares below."""
    neighbour_share: float = 0.2
    """Of a round: nearest neighbours of positives that machines which had not seen them would have kept."""
    control_share: float = 0.1
    """Of a round: drawn at random, so that progress is measured without bias. They may calibrate and test as all random labels may."""

    def __post_init__(self) -> None:
        for name in ("random_labels", "text_search_labels", "boundary_labels"):
            if getattr(self, name) < 0:
                raise ConfigError(f"learn.plan.{name} must be 0 or more, got {getattr(self, name)}")
        shares = self.neighbour_share, self.control_share
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"learn.plan.neighbour_share and control_share must be shares of a round, got {shares[0]} and {shares[1]}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnConfig:
    """How filters are learned."""

    __pydantic_config__: ClassVar = STRICT

    plan: LabelPlan = field(default_factory=LabelPlan)
    overrides: dict[str, LabelPlan] = field(default_factory=dict)
    """Filter -> its own plan."""
    promises: dict[str, float] = field(default_factory=dict)
    """Filter -> largest miss rate to prove, where it is not the catalogue's: what few labels can bear. The certificate states it."""
    rounds: int = 1
    """Times the boundary is asked about."""
    seed: int = 0
    """Of the random draw."""
    certificate: CertificateKind = "held_out"
    """What a promise rests on. "held_out": positives that took no part in fitting; a proof. "k_fold": every positive fits and
    calibrates, scored by a machine that did not see it; for few labels, an estimate with a weaker proof (docs/certificates.md)."""
    split: SplitConfig = field(default_factory=SplitConfig)
    svm: SvmConfig = field(default_factory=SvmConfig)

    def __post_init__(self) -> None:
        if self.certificate not in get_args(CertificateKind):
            raise ConfigError(f"learn.certificate must be one of {', '.join(get_args(CertificateKind))}, got {self.certificate!r}")
        if self.rounds < 0:
            raise ConfigError(f"learn.rounds must be 0 or more, got {self.rounds}")
        for setting in ("overrides", "promises"):
            if unknown := sorted(set(getattr(self, setting)) - set(FILTERS)):
                raise ConfigError(f"learn.{setting}: there is no filter {unknown[0]!r}. Choose from: {', '.join(FILTERS)}")
        for name in self.promises:
            self.spec_of(name)  # checks itself

    def plan_of(self, name: str) -> LabelPlan:
        return self.overrides.get(name, self.plan)

    def spec_of(self, name: str) -> FilterSpec:
        """The catalogue's entry, with this run's promise."""
        spec = FILTERS[name]
        return dataclasses.replace(spec, max_miss_rate=self.promises[name]) if name in self.promises else spec
