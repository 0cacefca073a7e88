"""How urls are fetched: limits, manners, and what of it decides what is kept."""

from dataclasses import dataclass
from typing import Any, ClassVar

from winnow.configs import STRICT
from winnow.errors import ConfigError
from winnow.guard import GuardConfig
from winnow.images import ImageLimits
from winnow.later import LaterConfig
from winnow.refusals import TOKEN, RefusalPolicy
from winnow.turns import Pace


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """How urls are fetched and what their images must be like."""

    __pydantic_config__: ClassVar = STRICT

    contact: str | None = None
    """An e-mail address or a url, told to every server that is asked: how its owner reaches you."""
    user_agent: str | None = None
    """In full, instead of the one that is made of `contact`."""
    timeout_seconds: float = 20.0
    """For one url from name lookup to last byte, redirects included. Waiting for a host's turn does not count."""
    max_bytes: int = 20_000_000
    """Of a response."""
    max_redirects: int = 5
    threads: int = 32
    """Urls at a time, in each worker."""
    retries: int = 2
    """Further tries of urls that failed for a passing cause (timeout, reset, 429, 5xx)."""
    retry_pause_seconds: float = 5.0
    """Before the first further try; twice as long before each next one."""
    later_runs: int = 3
    """Runs in which a url that failed for a passing cause is tried at most; 1: in no later run."""
    later_pause_hours: float = 12.0
    """Between two such runs."""
    later_min_share: float = 0.01
    """Of a partition's urls that must have failed so: fewer are not worth doing again all that follows from it. 0: any number is."""
    host_connections: int = 6
    """To one host at a time, by all workers of the run together, though at least one by each: what a browser opens."""
    host_requests_per_second: float = 20.0
    """To one host, by all workers of the run together; 0: no limit. A visitor in a hurry asks for a page with twenty pictures a second."""
    max_pause_seconds: float = 60.0
    """A host that asks for a longer pause (Retry-After) or for more time between requests (Crawl-delay) is left for a later run."""
    patience_seconds: float = 600.0
    """How long a partition waits in all once nothing is left but hosts that asked for pauses."""
    allow: tuple[str, ...] = ()
    """Addresses that are not public but may be fetched from, each with its port: "127.0.0.1:8731". Your own: no limit of a host applies."""
    robots: bool = True
    """Ask each host for its robots.txt and keep to it; our name there is `winnow`."""
    tdm: bool = True
    """Take a reservation of text and data mining (tdm-reservation: 1, /.well-known/tdmrep.json) for a refusal."""
    opt_out: tuple[str, ...] = ("noai", "noimageai", "noml", "noindex", "noimageindex", "none")
    """Directives in an X-Robots-Tag header by which a site refuses: cause `opt_out`."""
    max_pixels: int = ImageLimits.max_pixels
    max_decoding_bytes: int = ImageLimits.max_decoding_bytes
    """Memory for one picture that has to be encoded anew, in each worker; larger ones are `too_many_pixels`. See docs/download.md."""
    min_side_px: int = ImageLimits.min_side_px
    max_aspect_ratio: float = ImageLimits.max_aspect_ratio
    jpeg_quality: int = ImageLimits.jpeg_quality
    """Of images that cannot be kept as they came: 1 to 95."""
    decode_all: bool = ImageLimits.decode_all
    """Whether images that are kept as they came are decoded, too, though embedding does so anyway: twice the cost."""
    keep_metadata: bool = ImageLimits.keep_metadata
    """Whether EXIF, XMP, IPTC and comments stay in images that are kept as they came: they name places and people."""

    def __post_init__(self) -> None:
        least = {"threads": 1, "retries": 0, "retry_pause_seconds": 0, "host_connections": 1, "host_requests_per_second": 0}
        for name, minimum in {**least, "max_pause_seconds": 0, "patience_seconds": 0}.items():
            if not getattr(self, name) >= minimum:
                raise ConfigError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if self.contact is not None and not _is_contact(self.contact):
            raise ConfigError(f"contact must be an e-mail address or a url, got {self.contact!r}")
        _ = self.guard, self.images, self.later  # they check themselves

    def check_contact(self) -> None:
        """Raises ConfigError if the run would ask strangers without saying who asks."""
        if self.contact is None and not _is_contact(self.user_agent or "") and not self.allow:
            raise ConfigError(
                "download: servers are told who asks. Say how their owners reach you, by an e-mail address or a url: "
                "download: {contact: you@example.org}"
            )

    @property
    def guard(self) -> GuardConfig:
        contact = f"; {self.contact}" if self.contact else ""
        return GuardConfig(
            timeout_seconds=self.timeout_seconds,
            max_bytes=self.max_bytes,
            max_redirects=self.max_redirects,
            allow=tuple(self.allow),
            user_agent=self.user_agent or f"{TOKEN}/0.1 (dataset curation{contact})",
        )

    @property
    def images(self) -> ImageLimits:
        return ImageLimits(
            max_pixels=self.max_pixels,
            max_decoding_bytes=self.max_decoding_bytes,
            min_side_px=self.min_side_px,
            max_aspect_ratio=self.max_aspect_ratio,
            jpeg_quality=self.jpeg_quality,
            keep_metadata=self.keep_metadata,
            decode_all=self.decode_all,
        )

    @property
    def refusals(self) -> RefusalPolicy:
        return RefusalPolicy(robots=self.robots, tdm=self.tdm, directives=tuple(self.opt_out))

    @property
    def later(self) -> LaterConfig:
        return LaterConfig(runs=self.later_runs, pause_hours=self.later_pause_hours, min_share=self.later_min_share)

    @property
    def limits(self) -> dict[str, Any]:
        """All that decides what may be kept: part of a partition's fingerprint."""
        return {"images": self.images, "max_bytes": self.max_bytes, "opt_out": tuple(self.opt_out), "robots": self.robots, "tdm": self.tdm}

    def pace(self, workers: int) -> Pace:
        """How fast one of so many workers may ask."""
        rate = self.host_requests_per_second
        return Pace(
            connections=max(1, self.host_connections // workers),
            seconds_between=workers / rate if rate else 0.0,
            workers=workers,
            max_pause_seconds=self.max_pause_seconds,
            patience_seconds=self.patience_seconds,
            own=tuple(self.allow),
        )


def _is_contact(text: str) -> bool:
    return "://" in text or "@" in text.strip("@")
