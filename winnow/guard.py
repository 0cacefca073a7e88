"""Fetching strangers' urls without being led astray: an opener for urllib, and thereby for img2dataset.

img2dataset fetches by `urllib.request.urlopen`, that is by whatever opener is installed in its process. Alone it reads
`file://` urls, follows redirects into private networks and waits for ever on a body that trickles. This opener

- speaks http and https only, after every redirect, too;
- connects to public addresses only, and to those the config names by address and port. It resolves the host itself and
  connects to the very address it checked, so that a name server that answers differently the second time gains nothing,
  and neither do other spellings of an address (decimal, hexadecimal, IPv4 inside IPv6);
- gives a response a time limit in all (redirects and a trickling body included), a limit of bytes, and one of redirects;
- bounds what a server may say around a body, and reads no answer that two readers could read differently (winnow/responses.py);
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
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from winnow.addresses import Resolver, is_public, parse_endpoint, time_left
from winnow.bodies import LARGE_BYTES, Room
from winnow.connections import Connection, Key, Pool, Socket, tls_context
from winnow.errors import ConfigError
from winnow.fetch_failures import FetchError, translated
from winnow.urls import ascii_url, check_url, redirect_target

REDIRECTS = (301, 302, 303, 307, 308)
DRAINED_BYTES = 16 * 1024
"""An error page up to this size is read to its end, so that the connection can be used again; from larger ones we hang up."""


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
            return self._ask(ascii_url(url), deadline, max_bytes, look, room)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise translated(problem) from None

    def close(self) -> None:
        """Hangs up wherever a connection waits for further use."""
        self._pool.close()

    def _ask(
        self, url: str, deadline: float, max_bytes: int | None, look: Callable[[http.client.HTTPMessage], None], room: Room | None
    ) -> Answer | Moved:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
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
        return Moved(url=redirect_target(url, location))

    def _body(self, response: http.client.HTTPResponse, max_bytes: int | None, deadline: float, room: Room | None) -> bytes:
        limit = self.config.max_bytes if max_bytes is None else max_bytes
        declared = response.length  # None if it comes in chunks, or until the server hangs up
        if max_bytes is None and declared is not None and declared > limit:
            raise FetchError("too_large", f"{declared:,} bytes announced, {limit:,} allowed")
        sink, size, taken = io.BytesIO(), 0, 0
        try:
            while size <= limit and (piece := response.read(64 * 1024)):
                sink.write(piece)
                size += len(piece)
                if room is not None and size > max(LARGE_BYTES, taken):
                    # Of a length that nobody told: in steps, or one of 300 kB would keep all others waiting.
                    needed = declared or min(limit + 1, 4 * size)
                    room.take(needed, deadline, held=taken)
                    taken = needed
            if size > limit and max_bytes is None:
                raise FetchError("too_large", f"more than {limit:,} bytes")
            if declared is not None and size < min(declared, limit + 1):
                raise FetchError("incomplete", f"{size:,} of {declared:,} bytes came")
        except BaseException:
            if room is not None:
                room.shrink(taken, 0)
            raise
        if room is not None and taken:
            room.shrink(taken, size)
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
        for number, (family, place) in enumerate(allowed):
            connection = Socket(family, socket.SOCK_STREAM)
            try:
                connection.deadline = deadline
                # One that does not answer (IPv6, where no way leads) leaves time for the next.
                connection.settimeout(time_left(deadline) / (len(allowed) - number))
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
