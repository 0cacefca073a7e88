"""The guarding opener: where it may go, what it asks, and what it may be told."""

import ipaddress
import itertools
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.raw_server import OK, fetch, refusal, serving
from winnow import addresses, connections
from winnow.addresses import is_public, parse_endpoint
from winnow.errors import ConfigError
from winnow.fetch_failures import FetchError, is_passing, translated
from winnow.guard import GuardConfig, GuardedOpener, guarded
from winnow.urls import MAX_URL_CHARACTERS, ascii_url, check_url

# Where it may go

PUBLIC = ["93.184.216.34", "1.1.1.1", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "64:ff9b:1::1", "100::1"),
    *("2002:7f00:1::", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
]
SPELLINGS = ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_private_addresses_are_not_however_they_are_wrapped(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


def answer(*hosts: str) -> Callable[..., list[Any]]:
    """A name server that says one address after the other, the last one for ever."""
    turns = itertools.chain(hosts, itertools.repeat(hosts[-1]))

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(turns), port))]

    return getaddrinfo


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where connections were tried to; none comes about."""
    tried: list[str] = []

    def connect(self: socket.socket, place: tuple[str, int]) -> None:
        tried.append(place[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(connections.Socket, "connect", connect)
    return tried


def test_the_address_that_was_checked_is_the_one_connected_to(connected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # DNS rebinding: harmless when asked first, private when asked again.
    monkeypatch.setattr(socket, "getaddrinfo", answer("93.184.216.34", "127.0.0.1"))
    assert refusal(80, host="rebind.example").slug == "refused"
    assert connected == ["93.184.216.34"]


def test_only_the_public_addresses_of_a_host_are_tried(connected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [*answer("10.0.0.1")("", 80), *answer("93.184.216.34")("", 80), *answer("127.0.0.1")("", 80), *answer("1.1.1.1")("", 80)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert refusal(80, host="both.example", allow=()).slug == "refused"
    assert connected == ["93.184.216.34", "1.1.1.1"]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_private_address_is_connected_to(host: str, connected: list[str]) -> None:
    assert refusal(8080, host=host, allow=()).slug == "private_address"
    assert connected == []


def test_an_allowed_address_is_allowed_on_its_port_only() -> None:
    with serving(OK) as port, serving(OK) as other:
        assert fetch(port) == b"hello"
        assert refusal(other, allow=(f"127.0.0.1:{port}",)).slug == "private_address"
        assert fetch(port, host="localhost") == b"hello"
        assert fetch(port, host="[::ffff:127.0.0.1]") == b"hello"


INSIDE = [
    *("http://127.0.0.1:1/", "http://169.254.169.254/latest/meta-data", "//10.0.0.1/", "https://[::1]/", "http://user:pw@127.0.0.1:1/"),
    *("http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://[2002:a00:1::]/", "http://[fe80::1%lo]/", "http://0.0.0.0/"),
    "http://127.0.0.1:1/\r\n folded",
]


@pytest.mark.parametrize("target", INSIDE)
def test_a_redirect_into_a_private_network_is_refused(target: str) -> None:
    with serving(f"HTTP/1.0 302 Found\r\nLocation: {target}\r\n\r\n".encode()) as port:
        assert refusal(port).slug == "private_address"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/x", "gopher://x/", "data:,x", "FILE:/etc/passwd"])
def test_a_redirect_out_of_http_is_refused(target: str) -> None:
    with serving(f"HTTP/1.0 302 Found\r\nLocation: {target}\r\n\r\n".encode()) as port:
        assert refusal(port).slug == "scheme_refused"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/x", "data:image/png;base64,AA", "unix:/run/x", "jar:http://a!/b"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(FetchError, match="scheme_refused"):
        check_url(url)
    with guarded(GuardConfig()), pytest.raises(FetchError, match="scheme_refused"):
        urllib.request.urlopen(urllib.request.Request(url))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.jpg",
        "//host/x",
        "http:///x",
        "http://[::1",
        "http://a:b/",
        "http://a:70000/",
        "http://a:0/",
        "http://a/x\n.jpg",
        "http://a/\x00",
        "http://a/" + "x" * MAX_URL_CHARACTERS,
        "http://a.example:-5/",
    ],
)
def test_what_is_no_url_is_called_broken(url: str) -> None:
    with pytest.raises(FetchError, match="broken_url"):
        check_url(url)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://bücher.example:8080/ü?ö", "http://xn--bcher-kva.example:8080/%C3%BC?%C3%B6"),
        ("http://näme:pässword@bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://näme@[::1]:9/", "http://[::1]:9/"),
        ("http://127。0。0。1/ü", "http://127.0.0.1/%C3%BC"),
    ],
)
def test_another_script_leads_to_the_host_it_names(url: str, asked: str) -> None:
    check_url(url)
    assert ascii_url(url) == asked


def test_an_address_that_does_not_answer_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [*answer("1.1.1.1")("", 80), *answer("93.184.216.34")("", 80), *answer("1.0.0.1")("", 80)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    given: list[float | None] = []

    def connect(self: socket.socket, place: tuple[str, int]) -> None:
        given.append(self.gettimeout())
        raise TimeoutError

    monkeypatch.setattr(connections.Socket, "connect", connect)
    assert refusal(80, host="slow.example", allow=(), timeout_seconds=6).slug == "timeout"
    assert given == [pytest.approx(2, abs=0.5), pytest.approx(3, abs=0.5), pytest.approx(6, abs=0.5)]


def test_a_proxy_in_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with serving(OK) as port:
        assert fetch(port) == b"hello"


def test_the_opener_that_was_there_before_comes_back() -> None:
    with guarded(GuardConfig()) as opener:
        assert urllib.request._opener is opener  # type: ignore[attr-defined]
    assert not isinstance(urllib.request._opener, GuardedOpener)  # type: ignore[attr-defined]


def test_a_name_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stuck.wait(20) and [])
    began = time.monotonic()
    assert str(refusal(80, host="slow.example", timeout_seconds=0.2)) == "timeout: the name server did not answer for slow.example"
    assert time.monotonic() - began < 10
    stuck.set()


@pytest.mark.parametrize(("code", "times"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_names_are_looked_up_once_unless_the_server_says_again(code: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        asked.append(host)
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses, "DNS_AGAIN_SECONDS", 0.0)
    resolver = addresses.Resolver()
    for _ in range(3):
        with pytest.raises(socket.gaierror):
            resolver("a.example", 80, time.monotonic() + 5)
    assert asked == ["a.example"] * times


def test_what_name_servers_say_is_remembered_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = answer("93.184.216.34")("", 80)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entry * 4_000)
    monkeypatch.setattr(addresses, "MAX_HOSTS", 3)
    resolver = addresses.Resolver()
    for number in range(10):
        assert resolver(f"h{number}.example", 80, time.monotonic() + 5) == entry * addresses.MAX_ADDRESSES
        assert len(resolver._known) <= 3


@pytest.mark.parametrize(("limit", "slug"), [(2, "redirect_loop"), (3, None)])
def test_so_many_redirects_are_followed(limit: int, slug: str | None) -> None:
    def reply(connection: socket.socket, request: bytes) -> None:
        hop = int(request.split()[1].strip(b"/") or b"0")
        connection.sendall(OK if hop == 3 else b"HTTP/1.0 302 Found\r\nLocation: /%d\r\n\r\n" % (hop + 1))

    with serving(reply) as port:
        if slug is None:
            assert fetch(port, max_redirects=limit) == b"hello"
        else:
            assert refusal(port, max_redirects=limit).slug == slug


@pytest.mark.parametrize(
    ("problem", "slug"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "dns"),
        (socket.gaierror(socket.EAI_AGAIN, "again"), "dns_temporary"),
        (UnicodeError("label too long"), "broken_url"),
    ],
)
def test_each_failure_of_a_name_server_has_a_name(problem: Exception, slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise problem

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert refusal(80, host="a.example").slug == slug


def test_a_closed_port_refuses() -> None:
    with serving(OK) as port:
        pass
    assert refusal(port).slug == "refused"


def test_a_stopped_opener_fetches_nothing_more() -> None:
    with serving(OK) as port, guarded(GuardConfig(allow=(f"127.0.0.1:{port}",))) as opener:
        opener.stopped.set()
        with pytest.raises(FetchError, match="stopped"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")


def test_passing_causes_are_those_that_a_moment_may_mend() -> None:
    passing = ("timeout", "reset", "incomplete", "postponed", "robots_unreachable", "http_429", "http_503", "dns_temporary")
    lasting = ("dns", "refused", "http_404", "http_410", "private_address", "too_large", "tls", "truncated", "robots", "opt_out")
    assert [slug for slug in passing if not is_passing(slug)] == []
    assert [slug for slug in lasting if is_passing(slug)] == []


def test_a_detail_is_one_short_printable_line() -> None:
    text = str(FetchError("http_404", "Not\r\n\x1b[31mFound" + "x" * 1000))
    assert text.startswith("http_404: Not???[31mFoundxxx")
    assert len(text) < 320


# Requests


def test_the_request_says_who_asks_and_spells_other_scripts_in_ascii() -> None:
    seen: list[bytes] = []

    def reply(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        connection.sendall(OK)

    with serving(reply) as port:
        fetch(port, "//größe und/x.jpg?q=é#part", user_agent="winnow test (mail@example.org)")
    lines = seen[0].decode("ascii").split("\r\n")
    assert lines[0] == "GET //gr%C3%B6%C3%9Fe%20und/x.jpg?q=%C3%A9 HTTP/1.1"
    assert "User-Agent: winnow test (mail@example.org)" in lines


def test_headers_are_looked_at_before_the_body_is_read() -> None:
    def look(headers: Any) -> None:
        raise FetchError("opt_out", headers["X-Robots-Tag"])

    with serving(b"HTTP/1.0 200 OK\r\nX-Robots-Tag: noai\r\nContent-Length: 100000\r\n\r\n") as port:
        opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=5))
        with pytest.raises(FetchError, match="opt_out: noai"):
            opener.ask(f"http://127.0.0.1:{port}/", time.monotonic() + 5, look=look)


# Settings


@pytest.mark.parametrize("entry", ["127.0.0.1", "localhost:80", "127.0.0.1:0", "127.0.0.1:99999", "10.0.0.0/8:80", "*:80", ""])
def test_only_an_address_with_a_port_can_be_allowed(entry: str) -> None:
    with pytest.raises(ConfigError, match="is not an address with a port"):
        GuardConfig(allow=(entry,))


def test_endpoints_are_read_in_both_families() -> None:
    assert parse_endpoint("127.0.0.1:80") == (ipaddress.ip_address("127.0.0.1"), 80)
    assert parse_endpoint("[::1]:80") == (ipaddress.ip_address("::1"), 80)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0, got 0"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds"),
        ({"max_bytes": 0}, "max_bytes must be at least 1, got 0"),
        ({"max_redirects": -1}, "max_redirects must be at least 0, got -1"),
        ({"user_agent": "a\r\nX: y"}, "user_agent must be a line of ASCII"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuardConfig(**change)


@pytest.mark.parametrize("problem", [TimeoutError("timed out"), TimeoutError("the time for one url is over"), TimeoutError()])
def test_every_timeout_reads_the_same_so_that_a_download_has_the_same_bytes(problem: TimeoutError) -> None:
    found = translated(problem)
    assert (found.slug, str(found)) == ("timeout", str(translated(TimeoutError("another"))))
