"""A server that answers as a test says, byte by byte, and what the guarding opener makes of it."""

import contextlib
import socket
import socketserver
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from winnow.fetch_failures import FetchError
from winnow.guard import GuardConfig, guarded

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
