"""How a site says that its images are not to be taken, and whether it did.

    robots.txt            (RFC 9309) before anything is asked of an origin; our token is `winnow`        cause `robots`
    /.well-known/tdmrep.json  (TDM Reservation Protocol) the same, for text and data mining             cause `opt_out`
    X-Robots-Tag: noai    in the answer, for all or for us: `noai`, `winnow: noai`                       cause `opt_out`
    tdm-reservation: 1    in the answer; 0 there overrules the file                                      cause `opt_out`

A robots.txt that is missing (4xx) allows everything. One that cannot be had (5xx, 429, silence) refuses for now:
`robots_unreachable`, tried again. If the host cannot be reached at all, that is the cause, as for an image.
Not looked at: what HTML pages around an image say, and metadata inside images.
"""

import functools
import json
import re
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import Any
from urllib.parse import urlsplit

from winnow.fetch_failures import FetchError
from winnow.guard import Answer, GuardedOpener

TOKEN = "winnow"
"""How robots.txt and X-Robots-Tag may call us."""
ROBOTS_BYTES = 500 * 1024
"""Of a robots.txt: what is longer is read up to here (RFC 9309, 2.5, asks for at least this much)."""
TDMREP_BYTES = 100 * 1024
REMEMBERED_SECONDS = 24 * 3600.0
"""RFC 9309, 2.4."""
REMEMBERED_BYTES = 40_000_000
"""Of memory, for all rules together: some four thousand sites. The origin that was not asked for longest is forgotten first."""
ORIGIN_BYTES, LINE_BYTES, WILDCARD_BYTES, RESERVATION_BYTES, CHARACTER_BYTES = 700, 250, 450, 1_300, 5
"""What Protego takes for a file: for each line, more for one with wildcards, for each entry of tdmrep.json, and for each character."""
NO_WAY_THERE = frozenset({"dns", "dns_temporary", "refused", "unreachable", "private_address", "tls", "scheme_refused", "stopped"})
"""Failures of asking for robots.txt that an image of the same origin would meet, too."""
AS_ITS_HEADER_SAYS = 32 + zlib.MAX_WBITS
ROBOT = re.compile(r"\*|[a-z0-9._-]+")
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives of an X-Robots-Tag with a colon of their own: what stands before it is not the name of a robot."""


def header_refusal(headers: HTTPMessage, directives: Sequence[str], *, tdm: bool) -> str | None:
    """The header by which an answer refuses, if it does."""
    wanted = {directive.strip().lower() for directive in directives}
    for line in headers.get_all("X-Robots-Tag", []):
        robot = None
        for part in str(line).lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and ROBOT.fullmatch(name.strip()) and name.strip() not in VALUED:
                robot, part = name.strip(), rest
            if robot in (None, "*", TOKEN) and part.strip() in wanted:
                return f"X-Robots-Tag: {part.strip()}"
    return "tdm-reservation: 1" if tdm and header_reservation(headers) else None


def header_reservation(headers: HTTPMessage) -> bool | None:
    """Whether an answer reserves text and data mining; None if it does not say."""
    value = str(headers.get("tdm-reservation", "")).strip()
    return {"1": True, "0": False}.get(value)


@dataclass(frozen=True, kw_only=True)
class RefusalPolicy:
    """Which of these are honoured."""

    robots: bool = True
    tdm: bool = True
    directives: tuple[str, ...] = ()
    """Of X-Robots-Tag."""


class Rules:
    """What an origin says for all its paths. `size` is about what it takes in memory, in bytes."""

    def __init__(self, robots: str, tdm: Sequence[tuple[str, bool]] = ()) -> None:
        lines = robots.splitlines()
        self.size = ORIGIN_BYTES + LINE_BYTES * len(lines) + WILDCARD_BYTES * sum("*" in line for line in lines)
        self.size += CHARACTER_BYTES * (len(robots) + sum(len(pattern) for pattern, _ in tdm)) + RESERVATION_BYTES * len(tdm)
        self.until = time.monotonic() + REMEMBERED_SECONDS
        self._robots = _parsed(robots) if robots else None
        self._tdm = [(_parsed(f"User-agent: {TOKEN}\nDisallow: {pattern}\n"), reserved) for pattern, reserved in tdm]

    @property
    def crawl_delay(self) -> float:
        """Seconds between two requests."""
        return float((self._robots and self._robots.crawl_delay(TOKEN)) or 0.0)

    def disallows(self, url: str) -> bool:
        return self._robots is not None and not self._robots.can_fetch(url, TOKEN)

    def reserves(self, url: str) -> bool:
        """By tdmrep.json; of its entries the first that matches counts."""
        return next((reserved for pattern, reserved in self._tdm if not pattern.can_fetch(url, TOKEN)), False)


class Origins:
    """Remembers what origins (scheme, host and port) said. For many threads at once; one for all partitions of a worker."""

    def __init__(self, policy: RefusalPolicy) -> None:
        self.policy = policy
        self._known: OrderedDict[str, Rules | FetchError] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def knows(self, url: str) -> bool:
        """Whether nothing need be asked before this url is."""
        if not (self.policy.robots or self.policy.tdm):
            return True
        with self._lock:
            found = self._known.get(origin_of(url))
        return isinstance(found, FetchError) or (found is not None and time.monotonic() < found.until)

    def rules(self, url: str, opener: GuardedOpener) -> Rules:
        """What the url's origin says; asks it if need be.

        Raises:
            FetchError: it cannot be asked.
        """
        if not (self.policy.robots or self.policy.tdm):
            return Rules("")
        origin = origin_of(url)
        with self._lock:
            found = self._known.get(origin)
            if found is not None:
                self._known.move_to_end(origin)
        if found is None or (isinstance(found, Rules) and time.monotonic() >= found.until):
            try:
                found = self._ask(origin, opener)
            except FetchError as problem:
                found = problem
            self._remember(origin, found)
        if isinstance(found, FetchError):
            raise FetchError(found.slug, str(found).partition(": ")[2], retry_after=found.retry_after)
        return found

    def check(self, url: str, rules: Rules) -> None:
        """Raises FetchError if the origin's rules refuse the url."""
        if self.policy.robots and rules.disallows(url):
            raise FetchError("robots", "robots.txt disallows it")

    def check_answer(self, url: str, headers: HTTPMessage, rules: Rules) -> None:
        """Raises FetchError if an answer is not to be taken."""
        refusal = header_refusal(headers, self.policy.directives, tdm=self.policy.tdm)
        if refusal is None and self.policy.tdm and header_reservation(headers) is None and rules.reserves(url):
            refusal = "tdm-reservation: 1 in /.well-known/tdmrep.json"
        if refusal is not None:
            raise FetchError("opt_out", refusal)

    def forget_failures(self) -> None:
        """Origins that could not be asked are asked again."""
        with self._lock:
            for origin in [origin for origin, found in self._known.items() if isinstance(found, FetchError)]:
                del self._known[origin]

    def _ask(self, origin: str, opener: GuardedOpener) -> Rules:
        robots = ""
        if self.policy.robots:
            try:
                robots = _text(opener, f"{origin}/robots.txt", ROBOTS_BYTES)
            except FetchError as problem:
                detail = f"asked for robots.txt: {problem}"
                if problem.slug in NO_WAY_THERE:
                    raise FetchError(problem.slug, detail) from None
                if not problem.slug.startswith("http_4") or problem.slug == "http_429":
                    raise FetchError("robots_unreachable", detail, retry_after=problem.retry_after) from None
        return Rules(_our_groups(robots), _tdm_entries(opener, origin) if self.policy.tdm else [])

    def _remember(self, origin: str, found: Rules | FetchError) -> None:
        with self._lock:
            self._drop(origin)
            self._known[origin] = found
            self._size += _size(found)
            while self._size > REMEMBERED_BYTES and len(self._known) > 1:
                self._drop(next(iter(self._known)))

    def _drop(self, origin: str) -> None:
        found = self._known.pop(origin, None)
        if found is not None:
            self._size -= _size(found)


@functools.lru_cache(maxsize=1024)  # it is asked several times for each url
def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"


def _size(found: Rules | FetchError) -> int:
    return found.size if isinstance(found, Rules) else ORIGIN_BYTES


def _text(opener: GuardedOpener, url: str, max_bytes: int) -> str:
    answer = opener.follow(url, time.monotonic() + opener.config.timeout_seconds, max_bytes=max_bytes)
    return _unpacked(answer, max_bytes).decode("utf-8", errors="replace").removeprefix("\ufeff")


def _unpacked(answer: Answer, max_bytes: int) -> bytes:
    """The first of its bytes. Nobody asked for packed ones, but what cannot be read would be taken for leave to take everything."""
    coding = answer.headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return answer.body
    try:
        if coding in ("gzip", "x-gzip", "deflate"):
            return zlib.decompressobj(wbits=AS_ITS_HEADER_SAYS).decompress(answer.body, max_bytes)
    except zlib.error as problem:
        raise FetchError("bad_response", f"it is sent as {coding}: {problem}") from None
    raise FetchError("bad_response", f"it is sent as {coding}, which nobody asked for")


def _parsed(robots: str) -> Any:
    from protego import Protego

    return Protego.parse(robots)


AGENT_LINE = re.compile(r"\s*user[- ]?agent\s*[:\s]\s*([^#]*)", re.IGNORECASE)
SITE_LINE = re.compile(r"\s*(site-?maps?|host)\b|\s*(#|$)", re.IGNORECASE)


def _our_groups(robots: str) -> str:
    """The groups of a robots.txt that are for us or for all.

    Parsed whole, a file of 500 kB that names 15,000 robots before 25,000 rules would become a rule for each pair of them.
    """
    kept: list[str] = []
    ours = in_agents = False
    for line in robots.splitlines():
        agent = AGENT_LINE.match(line)
        if agent is not None:
            name = agent[1].strip().partition("/")[0].strip().lower()
            ours = (ours and in_agents) or name in ("*", TOKEN)
            in_agents = True
            if name in ("*", TOKEN):
                kept.append(f"User-agent: {name}")
        elif SITE_LINE.match(line) is None:
            in_agents = False
            if ours:
                kept.append(line.strip())
    return "\n".join(kept)


def _tdm_entries(opener: GuardedOpener, origin: str) -> list[tuple[str, bool]]:
    """Patterns of tdmrep.json with what they say. A file that is missing, late or no such list reserves nothing."""
    try:
        listed = json.loads(_text(opener, f"{origin}/.well-known/tdmrep.json", TDMREP_BYTES))
    except (FetchError, ValueError, RecursionError):
        return []
    entries = []
    for entry in listed if isinstance(listed, list) else []:
        location = entry.get("location") if isinstance(entry, dict) else None
        if isinstance(location, str) and location.startswith(("/", "*")) and location.isprintable():
            entries.append((location, str(entry.get("tdm-reservation")) == "1"))
    return entries
