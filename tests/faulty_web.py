"""A web server with the faults of the real web, and workspaces that list its urls: for the tests of the download."""

import contextlib
import gzip
import hashlib
import io
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from winnow import turns
from winnow.download import download_partition, known_sites
from winnow.download_config import DownloadConfig
from winnow.storage import Storage
from winnow.tables import read_table, write_table

PART = "00000-0123abcd"
FIELDS = ("uid", "url", "caption", "source", "licence", "sha256")


def picture(color: str = "red", size: tuple[int, int] = (64, 48), form: str = "JPEG", mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size, color).save(sink, form)
    return sink.getvalue()


BOMB = picture("black", (5_000, 4_000), "PNG")


BODIES = {
    "svg-script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "svg-entities": b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg><text>&a;</text></svg>",
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": pickle.dumps({"image": b"x"}),
    "garbage": bytes(range(1, 256)),
    "half-a-header": picture()[:9],
    "pixels": b"P6 100 100 255\n" + bytes(30_000),
}


LOCK = threading.Lock()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class Web(BaseHTTPRequestHandler):
    """Each path is one fault."""

    hits: dict[str, int]
    pages: dict[str, str | int]
    """What stands at other paths: a text, or a status."""
    retry_after: str | None
    agents: set[str]
    running: int
    most_at_once: int
    healed: bool
    """What was sick is well now."""
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        with LOCK:
            self.hits[self.path] = self.hits.get(self.path, 0) + 1
            self.agents.add(self.headers["User-Agent"])
        # A client that has had enough hangs up in the middle: that is what several of these are about.
        with contextlib.suppress(ConnectionError):
            self._answer(self.path.lstrip("/").partition("?")[0])

    def _answer(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        good = picture()
        page = self.pages.get(self.path, 404 if kind in ("robots.txt", ".well-known") else None)
        if page is not None:
            self.send_error(page) if isinstance(page, int) else self._body(page.encode())
            return
        if kind == "status":
            self.send_error(int(rest))
        elif kind == "first-fails":
            self._body(good) if self.hits[self.path] > 1 else self.send_error(int(rest))
        elif kind == "slow":
            # Counted while the client waits for the first byte: once it has the last one it may come again before this thread goes on.
            with LOCK:
                Web.running += 1
                Web.most_at_once = max(Web.most_at_once, Web.running)
            time.sleep(float(rest))
            with LOCK:
                Web.running -= 1
            self._body(good)
        elif kind == "trickle":
            self._head(len(good))
            for byte in good:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif kind == "cut":
            self._head(len(good))
            self.wfile.write(good[: len(good) // 2])
        elif kind == "half":
            noisy = io.BytesIO()
            Image.effect_noise((64, 64), 50).convert("RGB").save(noisy, "JPEG")
            self._body(noisy.getvalue()[: noisy.tell() // 2])
        elif kind == "endless":
            self._head(None)
            while True:
                self.wfile.write(bytes(65536))
        elif kind == "announced":
            self._head(10**12)
        elif kind == "html":
            self._body(b"<html>404 but 200</html>")
        elif kind == "bomb":
            self._body(BOMB)
        elif kind == "loop":
            self._redirect(self.path)
        elif kind == "to":
            self._redirect(rest)
        elif kind == "optout":
            self._head(len(good), {"X-Robots-Tag": "noai"})
            self.wfile.write(good)
        elif kind == "header":
            self._head(len(good), dict([tuple(rest.replace("_", " ").split("=", 1))]))
            self.wfile.write(good)
        elif kind == "zipped":
            packed = gzip.compress(bytes(10_000_000))
            self._head(len(packed), {"Content-Encoding": "gzip"})
            self.wfile.write(packed)
        elif kind == "short":
            self._head(len(good) // 2)
            self.wfile.write(good)
        elif kind == "sick" and not self.healed:
            self.send_response(int(rest.partition("/")[0]))
            if self.retry_after is not None:
                self.send_header("Retry-After", self.retry_after)
            self.end_headers()
        elif kind == "sick":
            self._body(picture(("red", "green", "blue")[len(rest) % 3]))
        elif kind == "as-png":
            self._body(picture("red", form="PNG"))
        elif kind == "bytes":
            self._body(BODIES[rest])
        else:
            self._body({"empty": b"", "tiny": picture(size=(5, 5)), "long": picture(size=(2000, 40))}.get(kind, picture(rest or "red")))

    def _head(self, length: int | None, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, data: bytes) -> None:
        self._head(len(data))
        self.wfile.write(data)

    def _redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    Web.hits, Web.pages, Web.healed, Web.retry_after = {}, {}, False, None
    Web.agents, Web.running, Web.most_at_once = set(), 0, 0
    known_sites.cache_clear()  # another test's server may have had the same port
    monkeypatch.setattr(turns, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(turns, "FIRST_GAP_SECONDS", 0.05)
    server = Server(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def at(server: ThreadingHTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{path}"


def config(server: ThreadingHTTPServer, **changes: Any) -> DownloadConfig:
    settings: dict[str, Any] = {
        "allow": (f"127.0.0.1:{server.server_port}",),
        "timeout_seconds": 5,
        "retries": 0,
        "retry_pause_seconds": 0,
        "threads": 4,
    }
    return DownloadConfig(**settings | changes)


def listed(storage: Storage, urls: list[str], shas: dict[str, str] | None = None) -> dict[str, str]:
    """Writes a manifest part with these urls; url -> uid."""
    uids = {url: hashlib.sha256(url.encode()).hexdigest()[:32] for url in urls}
    rows = [(uid, url, f"caption of\n{url} é", "web", "none", (shas or {}).get(url)) for url, uid in uids.items()]
    columns = [list(column) for column in zip(*sorted(rows), strict=True)]
    write_table(storage, f"manifest/{PART}.parquet", pa.table(columns, schema=pa.schema([(name, pa.string()) for name in FIELDS])))
    return uids


def fetched(storage: Storage, urls: list[str], settings: DownloadConfig, shas: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Downloads these urls; url -> row of the table."""
    uids = listed(storage, urls, shas)
    download_partition(storage, PART, config=settings)
    rows = {row["uid"]: row for row in read_table(storage, f"raw/{PART}.parquet").to_pylist()}
    assert sorted(rows) == sorted(uids.values())
    return {url: rows[uid] for url, uid in uids.items()}


def finished(storage: Storage) -> list[str]:
    return [path for path in storage.walk() if not path.startswith(".journal/")]
