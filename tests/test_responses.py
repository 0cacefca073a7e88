"""Answers: how long, how much, what each failure is called, and what is refused because it could be read in two ways."""

import email.utils
import socket
import threading
import time

import pytest

from tests.raw_server import OK, Reply, fetch, forever, refusal, serving, silent
from winnow import bodies, guard
from winnow.bodies import Room
from winnow.fetch_failures import FetchError
from winnow.guard import GuardConfig, GuardedOpener

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


# What could be read in two ways, or without end

TWICE: dict[str, tuple[bytes, str]] = {
    "two lengths": (b"Content-Length: 5\r\nContent-Length: 9\r\n\r\nhello", "its length is 5 and 9"),
    "a negative length": (b"Content-Length: -5\r\n\r\nhello", "its length is -5"),
    "a length in another spelling": (b"Content-Length: 1_0\r\n\r\nhellohello", "its length is 1_0"),
    "a length of 5,000 digits": (b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\nhello", "its length is 999"),
    "a coding that nobody asked for": (b"Transfer-Encoding: gzip\r\n\r\nhello", "it is sent as gzip, which nobody asked for"),
    "chunks, packed before": (b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "it is sent as gzip, chunked"),
    "a line that is no header": (b"garbage\r\nX-Robots-Tag: noai\r\n\r\nhello", "a line of its head is no header"),
    "a name with a NUL": (b"X\0: y\r\nX-Robots-Tag: noai\r\n\r\nhello", "a line of its head is no header"),
    "a chunk of -1": (b"Transfer-Encoding: chunked\r\n\r\n-1\r\nhello", "a chunk of less than no bytes"),
    "a chunk of -5": (b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello", "a chunk of less than no bytes"),
}


@pytest.mark.parametrize(("head", "why"), TWICE.values(), ids=TWICE)
def test_an_answer_that_two_readers_could_read_differently_is_refused(head: bytes, why: str) -> None:
    with serving(b"HTTP/1.1 200 OK\r\n" + head) as port:
        assert str(refusal(port)).startswith(f"bad_response: {why}")


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\nhello",
        b"Content-Length: 5\r\nX: a\r\n folded\r\n\r\nhello",
    ],
)
def test_an_odd_answer_that_can_be_read_in_one_way_is_read(head: bytes) -> None:
    with serving(b"HTTP/1.1 200 OK\r\n" + head) as port:
        assert fetch(port) == b"hello"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000),
    "interim answers of another kind": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1_000),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n" * 1_000),
    "chunk extensions": (CHUNKED, b"1;" + b"x" * 60_000 + b"\r\na\r\n"),
    "chunks of a byte": (CHUNKED, b"1\r\na\r\n" * 1_000),
    "full lines": (b"HTTP/1.1 200 OK\r\n", b"X: " + b"a" * 60_000 + b"\r\n"),
}


@pytest.mark.parametrize(("begin", "piece"), ENDLESS.values(), ids=ENDLESS)
def test_what_stands_around_a_body_has_an_end(begin: bytes, piece: bytes) -> None:
    def reply(connection: socket.socket, request: bytes) -> None:
        connection.sendall(begin)
        while True:
            connection.sendall(piece)

    with serving(reply) as port:
        assert "bytes around a body of" in str(refusal(port, timeout_seconds=20))


def test_small_chunks_are_taken_however_many() -> None:
    body = b"".join(b"32\r\n" + bytes(50) + b"\r\n" for _ in range(40_000))
    with serving(CHUNKED + body + b"0\r\n\r\n") as port:
        assert fetch(port) == bytes(2_000_000)


def test_an_answer_that_changes_the_protocol_is_none() -> None:
    with serving(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n") as port:
        assert str(refusal(port)) == "bad_response: it switched to another protocol unasked"


# Memory for bodies


def ask(port: int, room: Room, seconds: float = 5.0) -> int:
    """The size of the body there."""
    opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), max_bytes=2 * bodies.LARGE_BYTES))
    answer = opener.ask(f"http://127.0.0.1:{port}/", time.monotonic() + seconds, room=room)
    assert isinstance(answer, guard.Answer)
    return len(answer.body)


LARGE = bytes(bodies.LARGE_BYTES + 1)


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE)])
def test_large_bodies_wait_for_room_and_small_ones_do_not(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LARGE_BODIES_BYTES", 2 * bodies.LARGE_BYTES)  # for one of them
    room = Room()
    with serving(head + LARGE) as port, serving(OK) as other:
        size = ask(port, room)
        with pytest.raises(FetchError, match="timeout"):
            ask(port, room, 0.3)
        assert ask(other, room) == 5
        room.give_back(5)
        room.give_back(size)
        assert ask(port, room) == size


def test_a_large_body_that_fails_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LARGE_BODIES_BYTES", 2 * bodies.LARGE_BYTES)
    room = Room()
    cut = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(LARGE) + 1) + LARGE
    with serving(cut) as port, serving(b"HTTP/1.0 200 OK\r\n\r\n" + LARGE * 2) as endless:
        for slug in ("incomplete", "incomplete"):
            with pytest.raises(FetchError, match=slug):
                ask(port, room)
        for _ in range(2):
            with pytest.raises(FetchError, match="too_large"):
                ask(endless, room)
    room.take(2 * bodies.LARGE_BYTES, time.monotonic() + 1)


def test_as_many_bodies_as_there_is_room_for_are_in_memory_by_their_own_size() -> None:
    room = Room()
    for _ in range(100):
        room.take(bodies.LARGE_BODIES_BYTES // 100, time.monotonic() + 1)
    with pytest.raises(TimeoutError):
        room.take(1, time.monotonic() + 0.05)
    room.give_back(bodies.LARGE_BODIES_BYTES // 100)
    room.take(1, time.monotonic() + 1)
    everything = Room()
    everything.take(10 * bodies.LARGE_BODIES_BYTES, time.monotonic() + 1)  # one alone may be larger than all the room
    everything.give_back(10 * bodies.LARGE_BODIES_BYTES)
    everything.take(bodies.LARGE_BODIES_BYTES, time.monotonic() + 1)


def test_a_body_of_untold_length_takes_room_in_steps() -> None:
    asked: list[tuple[int, int]] = []

    class Told(Room):
        def take(self, size: int, deadline: float, *, held: int = 0) -> None:
            asked.append((held, size))
            super().take(size, deadline, held=held)

    room, body = Told(), LARGE * 6
    with serving(b"HTTP/1.0 200 OK\r\n\r\n" + body) as port:
        opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",)))
        opener.ask(f"http://127.0.0.1:{port}/", time.monotonic() + 5, room=room)
    (nothing, first), (held, second) = asked
    assert (nothing, held) == (0, first) and bodies.LARGE_BYTES < first < len(body) < second < GuardConfig().max_bytes
    room.give_back(len(body))
    room.take(bodies.LARGE_BODIES_BYTES, time.monotonic() + 1)


def test_a_body_that_grows_does_not_wait_behind_one_that_has_not_begun() -> None:
    room, half = Room(), bodies.LARGE_BODIES_BYTES // 2
    room.take(half, time.monotonic() + 1)
    waiting = threading.Thread(target=room.take, args=(2 * half, time.monotonic() + 10))
    waiting.start()
    room.take(2 * half, time.monotonic() + 5, held=half)
    room.give_back(2 * half)
    waiting.join()
    with pytest.raises(TimeoutError):
        room.take(1, time.monotonic() + 0.05)


def test_a_body_can_be_cut_instead_of_refused() -> None:
    for head in (b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n"):
        with serving(head + b"0123456789") as port:
            opener = GuardedOpener(GuardConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=5))
            assert opener.follow(f"http://127.0.0.1:{port}/", time.monotonic() + 5, max_bytes=4).body == b"0123"
