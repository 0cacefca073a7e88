"""Fetching strangers' urls without being led astray: an opener for urllib, and thereby for img2dataset.

img2dataset fetches by `urllib.request.urlopen`, that is by whatever opener is installed in its process. Alone it reads
`file://` urls, follows redirects into private networks and waits for ever on a body that trickles. This opener

- speaks http and https only, after every redirect, too;
- connects to public addresses only, and to those the config names by address and port. It resolves the host itself and
  connects to the very address it checked, so that a name server that answers differently the second time gains nothing,
  and neither do other spellings of an address (decimal, hexadecimal, IPv4 inside IPv6);
- gives a response a time limit in all (redirects and a trickling body included), a limit of bytes, and one of redirects;
- ignores proxies from the environment: they would connect where we cannot check;
- makes one TLS context for the process (19 ms each otherwise).

Every failure is a FetchError with a slug. robots.txt is not asked.
"""

import contextlib
import functools
import http.client
import ipaddress
import math
import re
import socket
import ssl
import string
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit

from winnow.addresses import NameServerSilent, Resolver, is_public, parse_endpoint, time_left
from winnow.errors import ConfigError, WinnowError

SCHEMES = ("http", "https")
PASSING = frozenset({"timeout", "reset", "truncated", "dns_temporary", "unreachable", "http_408", "http_425", "http_429"})
"""Causes that may be gone a moment later; all of http_5xx besides."""


class FetchError(WinnowError):
    """A url could not be fetched, or was refused. As text: `slug: detail`."""

    def __init__(self, slug: str, detail: str) -> None:
        # Details quote strangers (urls, headers, reason phrases): one short printable line.
        super().__init__(f"{slug}: {''.join(c if c.isprintable() else '?' for c in detail)[:300]}")
        self.slug = slug


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
    user_agent: str = "winnow/0.1 (dataset curation; contact: the operator of this machine)"
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


class _Socket(socket.socket):
    """A socket with an end of patience: every read gets what is left of the whole time, not a time limit of its own."""

    deadline: float = math.inf

    def recv_into(self, *args: Any) -> int:
        self.settimeout(time_left(self.deadline))
        return super().recv_into(*args)


class _TlsSocket(ssl.SSLSocket):
    """The same for TLS."""

    deadline: float = math.inf

    def recv_into(self, *args: Any) -> int:
        if self.deadline < math.inf:
            self.settimeout(time_left(self.deadline))
        return super().recv_into(*args)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The one TLS context of this process: the system's authorities, host names checked."""
    context = ssl.create_default_context()
    context.sslsocket_class = _TlsSocket
    return context


class _Response(http.client.HTTPResponse):
    """A response whose body is read whole, up to a limit; a body that ends early is an error."""

    max_bytes: int = 0

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        declared = self.length  # None if the server does not say, or sends chunks
        if declared is not None and declared > self.max_bytes:
            self.close()
            raise FetchError("too_large", f"{declared:,} bytes announced, {self.max_bytes:,} allowed")
        try:
            pieces, size = [], 0
            while piece := super().read(64 * 1024):
                pieces.append(piece)
                size += len(piece)
                if size > self.max_bytes:
                    raise FetchError("too_large", f"more than {self.max_bytes:,} bytes")
            if declared is not None and size < declared:
                raise FetchError("truncated", f"{size:,} of {declared:,} bytes came")
            return b"".join(pieces)
        except (OSError, http.client.HTTPException) as problem:
            raise _translated(problem) from None
        finally:
            self.close()


class GuardedOpener(urllib.request.OpenerDirector):
    """Opens http and https urls by the rules at the top of this file. For many threads at once."""

    def __init__(self, config: GuardConfig) -> None:
        super().__init__()
        self.config = config
        self.stopped = threading.Event()
        """When set, nothing more is fetched: what still waits fails at once."""
        self._allow = {parse_endpoint(entry) for entry in config.allow}
        self._resolve = Resolver()
        self.add_handler(_Http(self))
        self.add_handler(_Redirects(config.max_redirects))
        self.add_handler(urllib.request.HTTPDefaultErrorHandler())
        self.add_handler(urllib.request.HTTPErrorProcessor())

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """Also called for each redirect. The timeout is the config's, whatever the caller asks for.

        Raises:
            FetchError: refused, failed, or a status that is not 2xx.
        """
        try:
            if self.stopped.is_set():
                raise FetchError("stopped", "the run was stopped")
            request: Any = urllib.request.Request(fullurl) if isinstance(fullurl, str) else fullurl
            check_url(request.full_url)
            request.full_url = _ascii(request.full_url)
            request.headers["User-agent"] = self.config.user_agent
            if not hasattr(request, "deadline"):
                request.deadline = time.monotonic() + self.config.timeout_seconds
            return super().open(request, timeout=time_left(request.deadline))
        except HTTPError as problem:
            problem.close()
            raise FetchError(f"http_{problem.code}", str(problem.reason)) from None
        except URLError as problem:
            raise _translated(problem.reason) from None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise _translated(problem) from None

    def connect(self, host: str, port: int, deadline: float) -> _Socket:
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
            connection = _Socket(family, socket.SOCK_STREAM)
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


class _Http(urllib.request.AbstractHTTPHandler):
    """Both schemes, each with a connection that asks the opener where it may go."""

    def __init__(self, opener: GuardedOpener) -> None:
        super().__init__()
        self._opener = opener

    def http_open(self, request: Any) -> Any:
        return self.do_open(functools.partial(_connection, self._opener, request.deadline, None), request)

    def https_open(self, request: Any) -> Any:
        return self.do_open(functools.partial(_connection, self._opener, request.deadline, tls_context()), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def _connection(opener: GuardedOpener, deadline: float, tls: ssl.SSLContext | None, host: str, **unused: Any) -> http.client.HTTPConnection:
    """What urllib calls to make a connection to `host` (with its port); its time limit is in the deadline already."""
    connection = _Connection(host) if tls is None else _TlsConnection(host)
    connection.opener, connection.deadline, connection.tls = opener, deadline, tls
    return connection


class _Connection(http.client.HTTPConnection):
    opener: GuardedOpener
    deadline: float
    tls: ssl.SSLContext | None

    def connect(self) -> None:
        plain = self.opener.connect(self.host, self.port, self.deadline)
        if self.tls is None:
            self.sock = plain
            return
        try:
            plain.settimeout(time_left(self.deadline))
            wrapped = self.tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
        assert isinstance(wrapped, _TlsSocket)
        wrapped.deadline = self.deadline
        self.sock = wrapped

    def response_class(self, sock: socket.socket, *args: Any, **arguments: Any) -> _Response:  # type: ignore[override]  # a class or what makes one
        response = _Response(sock, *args, **arguments)
        response.max_bytes = self.opener.config.max_bytes
        return response


class _TlsConnection(_Connection):
    default_port = http.client.HTTPS_PORT


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows so many redirects, within the time of the first request, and never out of http and https."""

    max_repeats = max_redirections = 1_000_000  # counted below instead, so that every loop has one cause

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        target = headers.get("location") or headers.get("uri")
        if target is not None:
            try:
                scheme = urlsplit(target).scheme
                if scheme and scheme not in SCHEMES:
                    raise FetchError("scheme_refused", f"redirected to {scheme}, which is neither http nor https")
                if getattr(req, "hops", 0) >= self._limit:
                    raise FetchError("redirect_loop", f"more than {self._limit} redirects, the next to {target}")
            except (ValueError, FetchError):
                fp.close()
                raise
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        following: Any = super().redirect_request(req, fp, code, msg, headers, newurl)
        following.deadline, following.hops = req.deadline, getattr(req, "hops", 0) + 1
        return following


def _ascii(url: str) -> str:
    """The url as it may stand in a request: other scripts and spaces as %-escapes, the host in punycode."""
    if url.isascii() and " " not in url:
        return url
    parts = urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    return urlunsplit((parts.scheme, host, *(quote(part, safe=string.punctuation) for part in parts[2:])))


def _translated(problem: object) -> FetchError:
    """The cause behind what socket, ssl, http.client and urllib raise."""
    text = str(problem) or type(problem).__name__
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (http.client.IncompleteRead, "truncated"),
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
def guarded(config: GuardConfig) -> Iterator[GuardedOpener]:
    """Makes every `urllib.request.urlopen` of this process go through the guard, for a while."""
    before = getattr(urllib.request, "_opener", None)
    opener = GuardedOpener(config)
    urllib.request.install_opener(opener)
    try:
        yield opener
    finally:
        urllib.request.install_opener(before)
