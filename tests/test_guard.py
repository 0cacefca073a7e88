"""The guarding opener: where it may go, how long it waits, how much it takes, and what it calls each failure."""

import contextlib
import email.utils
import ipaddress
import itertools
import socket
import socketserver
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from winnow import addresses, connections, guard
from winnow.addresses import is_public, parse_endpoint
from winnow.errors import ConfigError
from winnow.guard import FetchError, GuardConfig, GuardedOpener, Room, check_url, guarded, is_passing

Reply = Callable[[socket.socket, bytes], None]
OK = b"HTTP/1.0 200 OK\r\n\r\nhello"


@contextlib.contextmanager
def serving(reply: Reply | bytes, *, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that answers every connection like this; its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client may hang up whenever it has had enough
                connection = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                with connection:
                    request = connection.recv(65536)
                    if isinstance(reply, bytes):
                        connection.sendall(reply)
                    else:
                        reply(connection, request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def silent(connection: socket.socket, request: bytes) -> None:
    connection.settimeout(20)
    connection.recv(1)  # until the client hangs up


def forever(piece: bytes, pause: float = 0.0) -> Reply:
    def reply(connection: socket.socket, request: bytes) -> None:
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return reply


def fetch(port: int, path: str = "/", *, scheme: str = "http", host: str = "127.0.0.1", **changes: Any) -> bytes:
    settings: dict[str, Any] = {"allow": (f"127.0.0.1:{port}",), "timeout_seconds": 2.0} | changes
    with guarded(GuardConfig(**settings)), urllib.request.urlopen(f"{scheme}://{host}:{port}{path}", timeout=99) as response:
        body: bytes = response.read()
        return body


def refusal(port: int, path: str = "/", **changes: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(port, path, **changes)
    return caught.value


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


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/", "http://169.254.169.254/latest/meta-data", "//10.0.0.1/", "https://[::1]/"])
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
    ],
)
def test_what_is_no_url_is_called_broken(url: str) -> None:
    with pytest.raises(FetchError, match="broken_url"):
        check_url(url)


def test_a_proxy_in_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with serving(OK) as port:
        assert fetch(port) == b"hello"


def test_the_opener_that_was_there_before_comes_back() -> None:
    with guarded(GuardConfig()) as opener:
        assert urllib.request._opener is opener  # type: ignore[attr-defined]
    assert not isinstance(urllib.request._opener, GuardedOpener)  # type: ignore[attr-defined]


# How long, how much


@pytest.mark.parametrize(
    "reply",
    [
        silent,
        forever(b"HTTP/1.0 200 OK\r\nX: ", 0.05),
        forever(b"HTTP/1.1 100 Continue\r\n\r\n"),
        forever(b"HTTP/1.0 200 OK\r\n\r\n", 0.05),
    ],
    ids=["silent", "trickling head", "continue for ever", "trickling body"],
)
def test_a_response_has_one_time_limit_in_all(reply: Reply) -> None:
    began = time.monotonic()
    with serving(reply) as port:
        assert refusal(port, timeout_seconds=0.4).slug in ("timeout", "bad_response")
        assert time.monotonic() - began < 10


def test_redirects_share_the_time_limit() -> None:
    def reply(connection: socket.socket, request: bytes) -> None:
        time.sleep(0.3)
        connection.sendall(b"HTTP/1.0 302 Found\r\nLocation: /again\r\n\r\n")

    began = time.monotonic()
    with serving(reply) as port:
        assert refusal(port, timeout_seconds=0.5, max_redirects=100).slug == "timeout"
    assert time.monotonic() - began < 10


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


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.0 200 OK\r\nContent-Length: 101\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n" + bytes(101), forever(b"HTTP/1.0 200 OK\r\n\r\n")],
    ids=["announced", "sent", "endless"],
)
def test_too_large_a_body_is_refused(reply: Reply | bytes) -> None:
    with serving(reply) as port:
        assert refusal(port, max_bytes=100).slug == "too_large"


def test_a_body_of_just_the_limit_is_taken() -> None:
    with serving(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(100)) as port:
        assert len(fetch(port, max_bytes=100)) == 100


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


# What it calls each failure

REPLIES: dict[str, tuple[bytes, str]] = {
    "closed at once": (b"", "reset"),
    "garbage": (b"\x00\x01\x02\r\n\r\n", "bad_response"),
    "endless line": (b"HTTP/1.0 200 OK\r\nX: " + b"a" * 100_000, "bad_response"),
    "too many headers": (b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "bad_response"),
    "cut": (b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nhello", "incomplete"),
    "cut in a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello", "incomplete"),
    "bad chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello", "incomplete"),
    "404": (b"HTTP/1.0 404 Not Found\r\n\r\n", "http_404"),
    "429": (b"HTTP/1.0 429 Slow Down\r\n\r\n", "http_429"),
    "500": (b"HTTP/1.0 500 Oh\r\n\r\n", "http_500"),
    "304": (b"HTTP/1.0 304 Not Modified\r\n\r\n", "http_304"),
    "redirect to nowhere": (b"HTTP/1.0 302 Found\r\n\r\n", "http_302"),
    "redirect to a broken url": (b"HTTP/1.0 302 Found\r\nLocation: http://[::1\r\n\r\n", "broken_url"),
}


@pytest.mark.parametrize(("reply", "slug"), REPLIES.values(), ids=REPLIES)
def test_each_failure_has_a_name(reply: bytes, slug: str) -> None:
    with serving(reply) as port:
        assert refusal(port).slug == slug


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
        fetch(port, "/größe und/x.jpg?q=é#part", user_agent="winnow test (mail@example.org)")
    lines = seen[0].decode("ascii").split("\r\n")
    assert lines[0] == "GET /gr%C3%B6%C3%9Fe%20und/x.jpg?q=%C3%A9 HTTP/1.1"
    assert "User-Agent: winnow test (mail@example.org)" in lines


# Connections that are used again

KEPT = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def keeping(answers: list[bytes], connections: list[int]) -> Reply:
    """Answers one request after the other on a connection, each with the next answer; an empty one hangs up."""
    turns = iter(answers)

    def reply(connection: socket.socket, request: bytes) -> None:
        connections.append(id(connection))
        while request:
            answer = next(turns)
            if not answer:
                return
            connection.sendall(answer)
            if answer.startswith(b"HTTP/1.0"):
                return
            request = connection.recv(65536)

    return reply


AND_MORE = KEPT + KEPT.replace(b"hello", b"other")
REUSED: dict[str, tuple[list[bytes], list[str], int]] = {
    "kept": ([KEPT] * 3, ["hello"] * 3, 1),
    "chunks": ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", KEPT], ["hello"] * 2, 1),
    "an error page": ([b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno", KEPT], ["http_404", "hello"], 1),
    "a long error page": ([b"HTTP/1.1 404 No\r\nContent-Length: 99999\r\n\r\nno", KEPT], ["http_404", "hello"], 2),
    "a redirect": ([b"HTTP/1.1 302 Go\r\nContent-Length: 0\r\nLocation: /there\r\n\r\n", KEPT, KEPT], ["hello"] * 2, 1),
    "closing": ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", KEPT], ["hello"] * 2, 2),
    "an old server": ([OK, KEPT], ["hello"] * 2, 2),
    "closed without a word": ([KEPT, b"", KEPT], ["hello"] * 2, 2),
    "too large": ([b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", KEPT], ["too_large", "hello"], 2),
    "more than announced": ([AND_MORE, KEPT], ["hello"] * 2, 1),  # never "other": it is thrown away, or the connection is
}


@pytest.mark.parametrize(("answers", "found", "connections"), REUSED.values(), ids=REUSED)
def test_a_connection_is_used_again_if_all_was_read_that_it_said(answers: list[bytes], found: list[str], connections: int) -> None:
    opened: list[int] = []
    seen = []
    with serving(keeping(answers, opened)) as port:
        opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=2, max_bytes=1_000))
        for _ in found:
            try:
                seen.append(opener.open(f"http://127.0.0.1:{port}/").read().decode())
            except FetchError as problem:
                seen.append(problem.slug)
        opener.close()
    assert (seen, len(opened)) == (found, connections)


def test_a_new_connection_that_closes_without_a_word_is_a_failure() -> None:
    with serving(b"") as port:
        assert refusal(port).slug == "reset"


def test_idle_connections_are_few_and_young(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(connections.Connection):
        closed = False
        is_quiet = True  # type: ignore[assignment]

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(connections, "MAX_IDLE", 3)
    pool = connections.Pool()
    made = [Idle(("http", f"h{number}", 80), lambda *_: pytest.fail("connected"), None) for number in range(5)]
    for one in made:
        pool.put(one)
    assert [one.closed for one in made] == [True, True, False, False, False]
    assert pool.take(("http", "h0", 80)) is None
    assert pool.take(("http", "h4", 80)) is made[4]
    made[3].idle_since -= connections.IDLE_SECONDS + 1
    assert pool.take(("http", "h3", 80)) is None and made[3].closed
    pool.close()
    assert made[2].closed


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("1e9", None),
        (None, None),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(value: str | None, seconds: float | None) -> None:
    header = f"Retry-After: {value}\r\n" if value is not None else ""
    with serving(f"HTTP/1.0 503 Busy\r\n{header}\r\n".encode()) as port:
        assert refusal(port).retry_after == seconds


def test_a_date_in_the_future_is_so_many_seconds_away() -> None:
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    with serving(f"HTTP/1.0 429 Slow\r\nRetry-After: {later}\r\n\r\n".encode()) as port:
        assert refusal(port).retry_after == pytest.approx(3600, abs=60)


def test_headers_are_looked_at_before_the_body_is_read() -> None:
    def look(headers: Any) -> None:
        raise FetchError("opt_out", headers["X-Robots-Tag"])

    with serving(b"HTTP/1.0 200 OK\r\nX-Robots-Tag: noai\r\nContent-Length: 100000\r\n\r\n") as port:
        opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=5))
        with pytest.raises(FetchError, match="opt_out: noai"):
            opener.ask(f"http://127.0.0.1:{port}/", time.monotonic() + 5, look=look)


def test_large_bodies_wait_for_room_and_small_ones_do_not() -> None:
    room = Room(max_bytes=60_000_000)  # for one of them
    large = b"HTTP/1.0 200 OK\r\n\r\n" + bytes(guard.LARGE_BYTES + 1)

    def ask(port: int, seconds: float) -> int:
        opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=5))
        answer = opener.ask(f"http://127.0.0.1:{port}/", time.monotonic() + seconds, room=room)
        assert isinstance(answer, guard.Answer)
        return len(answer.body)

    with serving(large) as port, serving(OK) as other, serving(large + b"more") as cut:
        size = ask(port, 5)
        with pytest.raises(FetchError, match="timeout"):
            ask(port, 0.5)
        assert ask(other, 5) == 5
        room.give_back(5)
        room.give_back(size)
        opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{cut}",), max_bytes=guard.LARGE_BYTES + 2))
        with pytest.raises(FetchError, match="too_large"):  # and what it took is free again
            opener.ask(f"http://127.0.0.1:{cut}/", time.monotonic() + 5, room=room)
        assert ask(port, 5) == size


def test_a_body_can_be_cut_instead_of_refused() -> None:
    for head in (b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n"):
        with serving(head + b"0123456789") as port:
            opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=5))
            assert opener.follow(f"http://127.0.0.1:{port}/", time.monotonic() + 5, max_bytes=4).body == b"0123"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, with its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_tls_works_with_one_context_for_all(server_tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    context.sslsocket_class = connections.TlsSocket
    monkeypatch.setattr(guard, "tls_context", lambda: context)
    with serving(OK, tls=server_tls) as port:
        assert fetch(port, scheme="https") == b"hello"
        assert refusal(port, scheme="https", host="localhost").slug == "tls"  # the certificate is for another name
    with serving(forever(b"HTTP/1.0 200 OK\r\n\r\n", 0.05), tls=server_tls) as port:
        assert refusal(port, scheme="https", timeout_seconds=0.4).slug == "timeout"


def test_a_certificate_that_nobody_vouches_for_is_refused(server_tls: ssl.SSLContext) -> None:
    with serving(OK, tls=server_tls) as port:
        assert refusal(port, scheme="https").slug == "tls"
    assert connections.tls_context() is connections.tls_context()


def test_a_handshake_that_hangs_is_given_up() -> None:
    began = time.monotonic()
    with serving(silent) as port:
        assert refusal(port, scheme="https", timeout_seconds=0.3).slug == "timeout"
        assert time.monotonic() - began < 10


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
    translated = guard._translated(problem)
    assert (translated.slug, str(translated)) == ("timeout", str(guard._translated(TimeoutError("another"))))
