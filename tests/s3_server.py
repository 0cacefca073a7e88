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
from dataclasses import dataclass, field
from typing import Any

import pytest

BUCKET = "winnow"
KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret-never-to-be-seen", "AWS_DEFAULT_REGION": "us-east-1"}
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>please</Message></Error>"

Plan = Callable[[str], "str | float | None"]
"""Request line -> what happens: None passes, "503", "reset", "cut" (half the answer), "lost" (done, but its answer is lost),
"ignorant" (conditions are overlooked), or seconds of delay."""


@dataclass
class S3Server:
    """Where the server is."""

    endpoint: str

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )


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
        server = S3Server(endpoint=f"http://127.0.0.1:{port}")
        with contextlib.closing(server.client()) as client:
            client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with the surroundings that lead to it."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": s3_server.endpoint}).items():
        monkeypatch.setenv(name, value)
    yield s3_server


def fresh_url() -> str:
    """A folder of the bucket that no other test uses."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}/run"


def forget_filesystems() -> None:
    """fsspec keeps filesystems by their arguments, and those of the store behind the proxy have the same."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


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
        if action == "503":
            return _busy(client, b"" if line.startswith("HEAD") else SLOW_DOWN)
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


def _busy(client: socket.socket, body: bytes) -> None:
    client.settimeout(0.2)
    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
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
class Faults:
    """Turns a proxy's faults on and off, and counts them."""

    plan: Plan = field(default=lambda line: None)

    def __call__(self, line: str) -> "str | float | None":
        return self.plan(line)


@dataclass
class FaultyStore:
    """The server behind a proxy."""

    proxy: FaultProxy
    faults: Faults

    @contextlib.contextmanager
    def doing(self, plan: Plan) -> Iterator[None]:
        """This becomes of every request for a while."""
        self.faults.plan = plan
        try:
            yield
        finally:
            self.faults.plan = lambda line: None


@pytest.fixture
def faulty(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The server behind a proxy whose faults a test turns on. Operations have 3 s, so that silence is soon told."""
    faults = Faults()
    proxy = FaultProxy(s3_server.port, faults)
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": proxy.endpoint, "WINNOW_STORAGE_SECONDS": "3"}).items():
        monkeypatch.setenv(name, value)
    forget_filesystems()
    yield FaultyStore(proxy=proxy, faults=faults)
    forget_filesystems()
    proxy.close()


def surroundings(endpoint: str) -> dict[str, str]:
    """Environment of a process that is to find the store."""
    return {**os.environ, **KEYS, "AWS_ENDPOINT_URL": endpoint}
