"""What an inspection proves about the images a filter keeps: exact bounds that allow for inspectors who overlook things.

People miss rare targets, so "nothing found" is a statement about the inspector as much as about the filter. Known positives
mixed in unannounced (honeypots) measure the inspector: if the share of positives is l and an inspector sees a share s of them,
then finds follow the rate l x s. An upper bound of that rate over a lower bound of s, each at half the permitted error, bounds l
(Bonferroni). The honeypots are only as good as their likeness to the images that the filter really misses.
"""

from dataclasses import dataclass

from filters.bounds import exact_interval, miss_rate_upper_bound
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakBound:
    """How many of the kept images are positives at most. All shares in [0, 1]."""

    found: int
    """Positives seen among the inspected images; "unsure" is one."""
    inspected: int
    honeypots_found: int
    honeypots: int
    estimate: float
    """Found, divided by the share of honeypots that were seen; 1 if none was."""
    low: float
    """Lower bound of the leak: as many were seen, so no inspector's weakness lowers it."""
    at_most: float
    """The leak, at `confidence`."""
    sensitivity_at_least: float
    """Share of positives that the inspectors see; assumed to be 1 without honeypots."""
    confidence: float

    @property
    def method(self) -> str:
        """How the bound came about, for a reader of the result."""
        if not self.honeypots:
            return "Clopper-Pearson upper bound; no honeypots: the inspectors are taken to see everything"
        return "Clopper-Pearson upper bound of the finds over the lower bound of honeypots seen, each with half of the permitted error"


def leak_bound(found: int, inspected: int, *, honeypots_found: int = 0, honeypots: int = 0, confidence: float = 0.95) -> LeakBound:
    """The bound of this module's head.

    Raises:
        ConfigError: counts that cannot be, or a confidence that is no share.
    """
    for what, part, whole in (("finds", found, inspected), ("honeypots seen", honeypots_found, honeypots)):
        if not 0 <= part <= whole:
            raise ConfigError(f"{part} {what} of {whole} cannot be; count them again")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    if not inspected:
        return _unknown(honeypots_found, honeypots, confidence)
    low = exact_interval(found, inspected, confidence)[0]
    if not honeypots:
        sensitivity, seen, finds = 1.0, 1.0, miss_rate_upper_bound(found, inspected, confidence)
    else:
        # Both one-sided bounds at 1 - error / 2: the lower end of a two-sided interval at `confidence` is just that.
        sensitivity, seen = exact_interval(honeypots_found, honeypots, confidence)[0], honeypots_found / honeypots
        finds = miss_rate_upper_bound(found, inspected, (1 + confidence) / 2)
    return LeakBound(
        found=found,
        inspected=inspected,
        honeypots_found=honeypots_found,
        honeypots=honeypots,
        estimate=min(1.0, found / inspected / seen) if seen else 1.0,
        low=low,
        at_most=min(1.0, finds / sensitivity) if sensitivity else 1.0,
        sensitivity_at_least=sensitivity,
        confidence=confidence,
    )


def _unknown(honeypots_found: int, honeypots: int, confidence: float) -> LeakBound:
    return LeakBound(
        found=0,
        inspected=0,
        honeypots_found=honeypots_found,
        honeypots=honeypots,
        estimate=1.0,
        low=0.0,
        at_most=1.0,
        sensitivity_at_least=exact_interval(honeypots_found, honeypots, confidence)[0] if honeypots else 1.0,
        confidence=confidence,
    )
