"""Fetching strangers' urls without being led astray: an opener for urllib, and thereby for img2dataset.

img2dataset fetches by `urllib.request.urlopen`, that is by whatever opener is installed in its process. Alone it reads
`file://` urls, follows redirects into private networks and waits for ever on a body that trickles. This opener

- speaks http and https only, after every redirect, too;
- connects to public addresses only, and to those the config names by address and port. It resolves the host itself and
  connects to the very address it checked, so that a name server that answers differently the second time gains nothing,
  and neither do other spellings of an address (decimal, hexadecimal, IPv4 inside IPv6);
- gives a response a time limit in all (redirects and a trickling body included), a limit of bytes, and one of redirects;
- never unpacks: it asks for bodies as they are, and one that comes compressed all the same is taken for what it is;
- ignores proxies from the environment: they would connect where we cannot check;
- uses connections again, and makes one TLS context for the process (winnow/connections.py).

Every failure is a FetchError with a slug. What a site asks for (robots.txt, headers, pauses) is not looked at here:
winnow/refusals.py and winnow/turns.py do that.
"""

import contextlib
import http.client
import io
import ipaddress
import math
import re
import socket
import ssl
import string
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, Self
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from winnow.addresses import NameServerSilent, Resolver, is_public, parse_endpoint, time_left
from winnow.connections import Connection, Key, Pool, Socket, tls_context
from winnow.errors import ConfigError, WinnowError

SCHEMES = ("http", "https")
REDIRECTS = (301, 302, 303, 307, 308)
PASSING = frozenset(
    {"timeout", "reset", "incomplete", "unreachable", "dns_temporary", "robots_unreachable", "postponed"}
    | {"http_408", "http_425", "http_429"}
)
"""Causes that may be gone a moment later; all of http_5xx besides."""
LARGE_BYTES = 1_000_000
LARGE_BODIES_BYTES = 100_000_000
"""Of all bodies above LARGE_BYTES that a worker holds at a time: with 32 threads and 20 MB each it would be over a gigabyte."""
DRAINED_BYTES = 16 * 1024
"""An error page up to this size is read to its end, so that the connection can be used again; from larger ones we hang up."""


class FetchError(WinnowError):
    """A url could not be fetched, or was refused. As text: `slug: detail`."""

    def __init__(self, slug: str, detail: str, *, retry_after: float | None = None) -> None:
        # Details quote strangers (urls, headers, reason phrases): one short printable line.
        super().__init__(f"{slug}: {''.join(c if c.isprintable() else '?' for c in detail)[:300]}")
        self.slug = slug
        self.retry_after = retry_after
        """Seconds the server asks us to stay away, if it said so."""


def is_passing(slug: str) -> bool:
    """Whether a cause may be gone a moment later, so that trying again makes sense."""
    return slug in PASSING or slug.startswith("http_5")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What a fetch may do, and for how long."""

    timeout_seconds: float = 20.0
    """For one url from name lookup to last byte, redirects included."""
    max_bytes: int = 20_000_000
    """Of a response's body."""
    max_redirects: int = 5
    allow: tuple[str, ...] = ()
    """Addresses that are not public but may be fetched from, each with its port: "127.0.0.1:8731", "[::1]:8731"."""
    user_agent: str = "winnow/0.1 (dataset curation)"
    """Says who is asking and how to reach them."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(f"timeout_seconds must be above 0, got {self.timeout_seconds}")
        for name, least in (("max_bytes", 1), ("max_redirects", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not re.fullmatch(r"[\x20-\x7e]+", self.user_agent):
            raise ConfigError(f"user_agent must be a line of ASCII that names a contact, got {self.user_agent!r}")
        for entry in self.allow:
            parse_endpoint(entry)


def check_url(url: str) -> None:
    """Raises FetchError for what is not an http or https url with a host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as problem:
        raise FetchError("broken_url", str(problem)) from None
    if not parts.scheme:
        raise FetchError("broken_url", "it has no scheme (http:// or https://)")
    if parts.scheme not in SCHEMES:
        raise FetchError("scheme_refused", f"{parts.scheme} is neither http nor https")
    if not host:
        raise FetchError("broken_url", "it names no host")
    if port == 0:
        raise FetchError("broken_url", "port 0")
    # urlsplit drops some of these silently: what is asked for would not be what is listed.
    if re.search(r"[\x00-\x1f\x7f]", url):
        raise FetchError("broken_url", "it holds a control character")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A response that came whole. Stands where urllib has its response."""

    url: str
    """Where it came from in the end."""
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def read(self) -> bytes:
        return self.body

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A redirect."""

    url: str
    """Where to; not yet checked."""


class Room:
    """Memory for large bodies: so many of them at a time, from when they turn out to be large until the caller gives them back."""

    def __init__(self, max_bytes: int) -> None:
        self._free = threading.BoundedSemaphore(max(1, LARGE_BODIES_BYTES // max_bytes))

    def take(self, deadline: float) -> None:
        """Raises TimeoutError if there is none until then."""
        if not self._free.acquire(timeout=time_left(deadline)):
            raise TimeoutError

    def give_back(self, size: int) -> None:
        """For every body that was handed out, whatever its size."""
        if size > LARGE_BYTES:
            self._free.release()


class Opener(Protocol):
    """What urllib needs of an opener."""

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Answer: ...


class GuardedOpener:
    """Opens http and https urls by the rules at the top of this file. For many threads at once."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.stopped = threading.Event()
        """When set, nothing more is fetched: what still waits fails at once."""
        self._allow = {parse_endpoint(entry) for entry in config.allow}
        self._resolve = Resolver()
        self._pool = Pool()

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Answer:
        """The answer at the end of all redirects. The timeout is the config's, whatever the caller asks for.

        Raises:
            FetchError: refused, failed, or a status that is not 2xx.
        """
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        return self.follow(url, time.monotonic() + self.config.timeout_seconds)

    def follow(self, url: str, deadline: float, *, max_bytes: int | None = None) -> Answer:
        """As `open`, done by the deadline. With `max_bytes`, a larger body is cut there instead of refused."""
        for hops in range(self.config.max_redirects + 1):
            found = self.ask(url, deadline, max_bytes=max_bytes)
            if isinstance(found, Answer):
                return found
            self.check_hops(hops, found)
            url = found.url
        raise AssertionError("check_hops lets none through")

    def check_hops(self, hops: int, moved: Moved) -> None:
        """Raises FetchError if so many redirects have been followed already."""
        if hops >= self.config.max_redirects:
            raise FetchError("redirect_loop", f"more than {self.config.max_redirects} redirects, the next to {moved.url}")

    def ask(
        self,
        url: str,
        deadline: float,
        *,
        max_bytes: int | None = None,
        look: Callable[[http.client.HTTPMessage], None] = lambda headers: None,
        room: Room | None = None,
    ) -> Answer | Moved:
        """One request, no redirect followed.

        Args:
            look: is shown the headers of a 2xx answer before its body is read, and may refuse it by a FetchError.
            room: what large bodies wait for; the caller gives every answer's body back to it.

        Raises:
            FetchError: refused, failed, or a status that is neither 2xx nor a redirect.
        """
        try:
            if self.stopped.is_set():
                raise FetchError("stopped", "the run was stopped")
            check_url(url)
            return self._ask(_ascii(url), deadline, max_bytes, look, room)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise _translated(problem) from None

    def close(self) -> None:
        """Hangs up wherever a connection waits for further use."""
        self._pool.close()

    def _ask(
        self, url: str, deadline: float, max_bytes: int | None, look: Callable[[http.client.HTTPMessage], None], room: Room | None
    ) -> Answer | Moved:
        parts = urlsplit(url)
        target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        assert parts.hostname is not None
        key = (parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        connection = self._pool.take(key) or self._connection(key)
        reusable = False
        try:
            response = self._send(connection, target, deadline)
            if response is None:  # the server had closed it meanwhile
                connection = self._connection(key)
                response = self._send(connection, target, deadline)
                assert response is not None
            try:
                if 200 <= response.status < 300:
                    look(response.headers)
                return self._read(url, response, max_bytes, deadline, room)
            finally:
                reusable = response.isclosed() and not response.will_close  # isclosed: read to its end
                response.close()
        finally:
            if reusable:
                self._pool.put(connection)
            else:
                connection.close()

    def _connection(self, key: Key) -> Connection:
        return Connection(key, self.connect, tls_context() if key[0] == "https" else None)

    def _send(self, connection: Connection, target: str, deadline: float) -> http.client.HTTPResponse | None:
        """The response's head; None if a connection that was used before turned out to be closed."""
        try:
            connection.be_done_by(deadline)
            connection.request("GET", target, headers={"User-Agent": self.config.user_agent})
            return connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine, ssl.SSLError):
            if not connection.used:
                raise
            connection.close()
            return None

    def _read(
        self, url: str, response: http.client.HTTPResponse, max_bytes: int | None, deadline: float, room: Room | None
    ) -> Answer | Moved:
        if 200 <= response.status < 300:
            return Answer(url=url, status=response.status, headers=response.headers, body=self._body(response, max_bytes, deadline, room))
        location = response.headers.get("location") or response.headers.get("uri")
        if response.length is not None and response.length <= DRAINED_BYTES:
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read()
        if response.status not in REDIRECTS or location is None:
            asked = _seconds_asked(response.headers.get("retry-after"))
            raise FetchError(f"http_{response.status}", response.reason, retry_after=asked)
        try:
            # Headers come decoded as Latin-1: quoting by it gives back the bytes that were sent.
            return Moved(url=_checked_scheme(urljoin(url, quote(location.strip(), safe=string.punctuation, encoding="iso-8859-1"))))
        except ValueError as problem:
            raise FetchError("broken_url", f"redirected to {location}: {problem}") from None

    def _body(self, response: http.client.HTTPResponse, max_bytes: int | None, deadline: float, room: Room | None) -> bytes:
        limit = self.config.max_bytes if max_bytes is None else max_bytes
        declared = response.length  # None if the server does not say, or sends chunks
        if max_bytes is None and declared is not None and declared > limit:
            raise FetchError("too_large", f"{declared:,} bytes announced, {limit:,} allowed")
        sink, size, holds = io.BytesIO(), 0, False
        try:
            while size <= limit and (piece := response.read(64 * 1024)):
                sink.write(piece)
                size += len(piece)
                if room is not None and size > LARGE_BYTES and not holds:
                    room.take(deadline)
                    holds = True
            if size > limit and max_bytes is None:
                raise FetchError("too_large", f"more than {limit:,} bytes")
            if declared is not None and size < min(declared, limit + 1):
                raise FetchError("incomplete", f"{size:,} of {declared:,} bytes came")
        except BaseException:
            if room is not None and holds:
                room.give_back(size)
            raise
        sink.truncate(limit)
        return sink.getvalue()

    def connect(self, host: str, port: int, deadline: float) -> Socket:
        """A connection to the first address of the host that may be connected to and answers.

        Raises:
            FetchError: private_address, if the host has no other.
        """
        found = [(family, place) for family, _, _, _, place in self._resolve(host, port, deadline)]
        allowed = [entry for entry in found if self._may_connect(entry[1])]
        if not allowed:
            raise FetchError("private_address", f"{host} is {found[0][1][0] if found else 'nowhere'}, port {port}")
        failure: OSError | None = None
        for family, place in allowed:
            connection = Socket(family, socket.SOCK_STREAM)
            try:
                connection.deadline = deadline
                connection.settimeout(time_left(deadline))
                connection.connect(place)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not self._may_connect(connection.getpeername()):
                    raise FetchError("private_address", f"{host} is {connection.getpeername()[0]}, port {port}")
                return connection
            except OSError as problem:
                connection.close()
                failure = problem
            except BaseException:
                connection.close()
                raise
        assert failure is not None
        raise failure

    def _may_connect(self, place: tuple[Any, ...]) -> bool:
        address = ipaddress.ip_address(place[0].partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address, place[1]) in self._allow or is_public(address)


def _seconds_asked(value: str | None) -> float | None:
    """What a Retry-After header asks for, in seconds or as a date; None if it is neither."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _checked_scheme(url: str) -> str:
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise FetchError("scheme_refused", f"redirected to {scheme}, which is neither http nor https")
    return url


def _ascii(url: str) -> str:
    """The url as it may stand in a request: other scripts and spaces as %-escapes, the host in punycode."""
    if url.isascii() and " " not in url:
        return url
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return urlunsplit((parts.scheme, host, *(quote(part, safe=string.punctuation) for part in parts[2:])))


def _translated(problem: object) -> FetchError:
    """The cause behind what socket, ssl and http.client raise."""
    text = str(problem) or type(problem).__name__
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (http.client.IncompleteRead, "incomplete"),
        (ssl.SSLError, "tls"),
        (ConnectionRefusedError, "refused"),
        (ConnectionError, "reset"),  # http.client.RemoteDisconnected is one
        (OSError, "unreachable"),
        ((http.client.InvalidURL, UnicodeError, ValueError), "broken_url"),
        (http.client.HTTPException, "bad_response"),
    )
    if isinstance(problem, FetchError):
        return problem
    if isinstance(problem, NameServerSilent):
        return FetchError("timeout", text)
    if isinstance(problem, TimeoutError):
        # One wording, whichever of connecting and reading noticed first: the detail goes into the table of the download.
        return FetchError("timeout", "no whole answer within the time for one url")
    if isinstance(problem, socket.gaierror):
        return FetchError("dns_temporary" if problem.errno == socket.EAI_AGAIN else "dns", problem.strerror or text)
    return FetchError(next((slug for kind, slug in kinds if isinstance(problem, kind)), "broken_url"), text)


@contextlib.contextmanager
def installed(opener: Opener) -> Iterator[None]:
    """Makes every `urllib.request.urlopen` of this process go through the opener, for a while."""
    before = getattr(urllib.request, "_opener", None)
    urllib.request.install_opener(opener)  # type: ignore[arg-type]  # urlopen calls its `open` and nothing else
    try:
        yield
    finally:
        urllib.request.install_opener(before)


@contextlib.contextmanager
def guarded(config: GuardConfig) -> Iterator[GuardedOpener]:
    """The guard, installed for a while."""
    opener = GuardedOpener(config)
    try:
        with installed(opener):
            yield opener
    finally:
        opener.close()
