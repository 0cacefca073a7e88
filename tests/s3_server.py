"""An S3 server for the tests, in a process of its own, and a proxy before it that does what networks and busy servers do."""

import contextlib
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

BUCKET = "winnow"
KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret-never-to-be-seen", "AWS_DEFAULT_REGION": "us-east-1"}
ANSWERS = {
    "503": (b"503 Slow Down", b"<Error><Code>SlowDown</Code><Message>please</Message></Error>"),
    "403": (b"403 Forbidden", b"<Error><Code>InvalidAccessKeyId</Code><Message>who are you</Message></Error>"),
}

Plan = Callable[[str], "str | float | None"]
"""Request line -> what happens: None passes, "503" or "403", "reset", "cut" (half the answer), "lost" (done, but its answer is lost),
"ignorant" (conditions are overlooked), or seconds of delay."""


@dataclass
class S3Server:
    """Where the server is."""

    endpoint: str
    pid: int

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Another way to the server than the one that is tested."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        with contextlib.closing(client):
            yield client


@contextlib.contextmanager
def serving_s3() -> Iterator[S3Server]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            assert process.poll() is None, "moto did not start"
            time.sleep(0.05)
        server = S3Server(endpoint=f"http://127.0.0.1:{port}", pid=process.pid)
        with server.client() as client:
            client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.kill()  # it keeps nothing
        process.wait()


def fresh_url() -> str:
    """A folder of the bucket that no other test uses."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}/run"


class FaultProxy(socketserver.ThreadingTCPServer):
    """Stands before the server; `plan` says what becomes of each request. moto closes a connection after each answer."""

    daemon_threads = allow_reuse_address = True
    block_on_close = False

    def __init__(self, target: int, plan: Plan) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.plan = target, plan
        self.seen: list[str] = []
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(socketserver.BaseRequestHandler):
    server: FaultProxy

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client gave up: that is what many of these tests are about
            self._handle()

    def _handle(self) -> None:
        client, head = self.request, b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(65536)):
                return
            head += data
        line = head.split(b"\r\n")[0].decode()
        action = self.server.plan(line)
        self.server.seen.append(line)
        if action == "reset":
            return _reset(client)
        if action in ANSWERS:
            return _answer(client, ANSWERS[str(action)], with_body=not line.startswith("HEAD"))
        if isinstance(action, int | float) and self.server.stopped.wait(action):
            return None
        if action == "ignorant":
            head = head.replace(b"If-None-Match:", b"X-None-Match:").replace(b"If-Match:", b"X-Match:")
        with socket.create_connection(("127.0.0.1", self.server.target)) as server:
            server.sendall(head)
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            if action == "lost":
                while data := server.recv(65536):
                    if data.startswith(b"HTTP/1.1 100"):  # asks for the body; the answer is what comes after it
                        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                return client.shutdown(socket.SHUT_RDWR)  # the other thread still reads: closing alone would not be seen
            return _pump(server, client, half=action == "cut")


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _answer(client: socket.socket, answer: tuple[bytes, bytes], *, with_body: bool) -> None:
    status, body = answer[0], answer[1] if with_body else b""
    client.settimeout(0.2)
    client.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))
    client.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        while client.recv(65536):  # or the client would see a reset
            pass


def _pump(source: socket.socket, sink: socket.socket, half: bool = False) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if half:
                sink.sendall(data[: len(data) // 2])
                return
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@dataclass
class FaultyStore:
    """The server behind a proxy whose faults a test turns on."""

    server: S3Server
    proxy: FaultProxy

    @contextlib.contextmanager
    def doing(self, plan: Plan) -> Iterator[None]:
        """This becomes of every request for a while."""
        self.proxy.plan = plan
        try:
            yield
        finally:
            self.proxy.plan = _pass


def _pass(line: str) -> None:
    return None


@pytest.fixture(scope="session")
def s3_behind_proxy() -> Iterator[FaultyStore]:
    # One address for all tests: fsspec keeps filesystems by their arguments, and to make one costs half a second.
    with serving_s3() as server:
        proxy = FaultProxy(server.port, _pass)
        yield FaultyStore(server=server, proxy=proxy)
        proxy.close()


@pytest.fixture
def s3(s3_behind_proxy: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with the surroundings that lead to it."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": s3_behind_proxy.proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    return s3_behind_proxy.server


@pytest.fixture
def faulty(s3: S3Server, s3_behind_proxy: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The server behind a proxy whose faults a test turns on. A request is answered within 5 s, or counts as lost."""
    monkeypatch.setenv("WINNOW_STORAGE_SECONDS", "20")
    s3_behind_proxy.proxy.seen.clear()
    yield s3_behind_proxy
    s3_behind_proxy.proxy.plan = _pass


def surroundings(endpoint: str) -> dict[str, str]:
    """Environment of a process that is to find the store."""
    return {**os.environ, **KEYS, "AWS_ENDPOINT_URL": endpoint}
