"""Serves the demo's world on 127.0.0.1, with the faults of the real web.

It runs as a process of its own, ends with the process that started it (however that ends: it watches its standard input),
and counts requests: `/stats` answers {path: requests}.
"""

import argparse
import functools
import http.client
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from winnow.demo.world import Scene, WorldConfig, make_world, render
from winnow.errors import ConfigError

HOST = "127.0.0.1"
SECONDS_TO_START = 60
TRICKLE_SECONDS = 600
TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


class DemoServer:
    """`with DemoServer(WorldConfig(), 8731): ...`: the world answers at http://127.0.0.1:8731 meanwhile.

    Raises:
        ConfigError: the port is in use.
    """

    def __init__(self, world: WorldConfig, port: int) -> None:
        self.world, self.port = world, port
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DemoServer":
        with socket.socket() as probe:
            # As the server will bind: connections of an earlier run that linger do not count as in use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as problem:
                raise ConfigError(
                    f"port {self.port} of {HOST} is in use ({problem.strerror}). Stop what listens there, or choose another (--port)."
                ) from problem
        command = [sys.executable, "-m", "winnow.demo.server", "--port", str(self.port), "--world", json.dumps(asdict(self.world))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ConfigError(f"the demo's web server ended at once (exit code {self.process.returncode}); its message is above")
            try:
                self.stats()
                return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise ConfigError(f"the demo's web server did not answer on port {self.port} within {SECONDS_TO_START} s")

    def __exit__(self, *exception: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def stats(self) -> dict[str, int]:
        """Requests so far, by path."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", "/stats")
            counts: dict[str, int] = json.loads(connection.getresponse().read())
            return counts
        finally:
            connection.close()


class Server(ThreadingHTTPServer):
    """Knows the scenes by path, and how often each was asked for."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, scenes: Sequence[Scene]) -> None:
        self.scenes = {scene.path: scene for scene in scenes}
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()
        super().__init__((HOST, port), Handler)

    def count(self, path: str) -> int:
        with self.lock:
            self.seen[path] += 1
            return self.seen[path]


class Handler(BaseHTTPRequestHandler):
    """One request: the picture, or what its scene's fault makes of it."""

    server: Server
    server_version, sys_version = "demo", ""

    def do_GET(self) -> None:
        if self.path == "/stats":
            with self.server.lock:
                counts = json.dumps(self.server.seen)
            self._answer(200, counts.encode(), "application/json")
            return
        scene = self.server.scenes.get(self.path)
        if scene is None:
            self._answer(404, b"not here", "text/plain")
            return
        asked = self.server.count(self.path)
        try:
            self._serve(scene, asked)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client had enough: what several faults are for

    def _serve(self, scene: Scene, asked: int) -> None:
        fault = scene.fault
        if fault in ("404", "410", "500") or (fault == "500_once" and asked == 1):
            self._answer(int(fault[:3]), b"sorry", "text/plain")
        elif fault == "429_once" and asked == 1:
            self._answer(429, b"slowly, please", "text/plain", {"Retry-After": "1"})
        elif fault in REDIRECTS:
            target = REDIRECTS[fault].format(port=self.server.server_address[1], other=self.server.server_address[1] + 1, path=self.path)
            self._answer(302, b"", "text/plain", {"Location": target})
        elif fault == "html":
            self._answer(200, b"<!doctype html><title>Gone</title><p>This picture has moved.", "image/jpeg")
        elif fault == "empty":
            self._answer(200, b"", "image/jpeg")
        elif fault == "bomb":
            self._answer(200, bomb(), "image/png")
        else:
            data = render(scene)
            if fault == "truncated":
                self._headers(200, len(data), "image/jpeg")
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif fault == "trickle":
                self._trickle(data)
            else:
                if fault == "slow":
                    time.sleep(1.5)
                self._answer(200, data, TYPES[scene.path.rsplit(".", 1)[1]])

    def _trickle(self, data: bytes) -> None:
        self._headers(200, len(data), "image/jpeg")
        for position in range(min(len(data), TRICKLE_SECONDS)):
            self.wfile.write(data[position : position + 1])
            self.wfile.flush()
            time.sleep(1)

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self._headers(status, len(body), kind, headers)
        self.wfile.write(body)

    def _headers(self, status: int, length: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The run tells what happened; a line a request would only hide it."""


REDIRECTS = {
    "redirect_private": "http://169.254.169.254/latest/meta-data/",
    "redirect_port": "http://127.0.0.1:{other}/secret.jpg",
    "redirect_loop": "http://127.0.0.1:{port}{path}",
    "redirect_file": "file:///etc/passwd",
}


@functools.cache
def bomb(side_px: int = 30_000) -> bytes:
    """A valid one-bit PNG of about 110 kB whose pixels, decoded, take 900 MB."""
    packer = zlib.compressobj(9)
    body = io.BytesIO()
    row = bytes(1 + side_px // 8)
    for _ in range(side_px):
        body.write(packer.compress(row))
    body.write(packer.flush())

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body.getvalue()) + chunk(b"IEND", b"")


def serve(port: int, world: WorldConfig) -> None:
    """Serves until standard input ends."""
    server = Server(port, make_world(world))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.read(sys.stdin.fileno(), 1):
        pass
    server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves the demo's world until standard input ends.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--world", default="{}", help="settings of WorldConfig, as JSON")
    arguments = parser.parse_args()
    serve(arguments.port, WorldConfig(**json.loads(arguments.world)))


if __name__ == "__main__":
    main()
