"""Connections: used again only when that is safe, few and young when idle, one TLS context for all."""

import ssl
import time
from pathlib import Path

import pytest

from benchmarks import photo_server
from tests.raw_server import KEPT, OK, fetch, forever, keeping, refusal, serving, silent
from winnow import connections, guard
from winnow.fetch_failures import FetchError
from winnow.guard import GuardConfig, GuardedOpener

AND_MORE = KEPT + KEPT.replace(b"hello", b"other")
REUSED: dict[str, tuple[list[bytes], list[str], int]] = {
    "kept": ([KEPT] * 3, ["hello"] * 3, 1),
    "chunks": ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", KEPT], ["hello"] * 2, 1),
    "an error page": ([b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno", KEPT], ["http_404", "hello"], 1),
    "a long error page": ([b"HTTP/1.1 404 No\r\nContent-Length: 99999\r\n\r\nno", KEPT], ["http_404", "hello"], 2),
    "a redirect": ([b"HTTP/1.1 302 Go\r\nContent-Length: 0\r\nLocation: /there\r\n\r\n", KEPT, KEPT], ["hello"] * 2, 1),
    "closing": ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", KEPT], ["hello"] * 2, 2),
    "an old server": ([OK, KEPT], ["hello"] * 2, 2),
    "an interim answer": ([b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + KEPT, KEPT], ["hello"] * 2, 1),
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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, with its key."""
    return photo_server.certificate(tmp_path_factory.mktemp("tls"))


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
