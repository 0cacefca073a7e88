"""The downloader against a server with the faults of the real web."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from winnow import fetching, journal, turns
from winnow.download import download_partition, known_sites, plan_downloads
from winnow.download_config import DownloadConfig
from winnow.errors import ConfigError
from winnow.images import check_image
from winnow.partitions import run_step
from winnow.shards import read_samples
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.tars import TarWriter

PART = "00000-0123abcd"
FIELDS = ("uid", "url", "caption", "source", "licence", "sha256")


def picture(color: str = "red", size: tuple[int, int] = (64, 48), form: str = "JPEG", mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size, color).save(sink, form)
    return sink.getvalue()


BOMB = picture("black", (5_000, 4_000), "PNG")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class Web(BaseHTTPRequestHandler):
    """Each path is one fault."""

    hits: dict[str, int]
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.hits[self.path] = self.hits.get(self.path, 0) + 1
        # A client that has had enough hangs up in the middle: that is what several of these are about.
        with contextlib.suppress(ConnectionError):
            self._answer(self.path.lstrip("/").partition("?")[0])

    def _answer(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        good = picture()
        if kind == "status":
            self.send_error(int(rest))
        elif kind == "first-fails":
            self._body(good) if self.hits[self.path] > 1 else self.send_error(int(rest))
        elif kind == "slow":
            time.sleep(float(rest))
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
            self._head(len(good), robots="noai")
            self.wfile.write(good)
        elif kind in ("robots.txt", ".well-known"):
            self.send_error(404)
        else:
            self._body({"empty": b"", "tiny": picture(size=(5, 5)), "long": picture(size=(2000, 40))}.get(kind, picture(rest or "red")))

    def _head(self, length: int | None, robots: str | None = None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if robots is not None:
            self.send_header("X-Robots-Tag", robots)
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
    Web.hits = {}
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


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def finished(storage: Storage) -> list[str]:
    return [path for path in storage.walk() if not path.startswith(".journal/")]


FAULTS = {
    "status/404": "http_404",
    "status/403": "http_403",
    "status/500": "http_500",
    "slow/9": "timeout",
    "trickle": "timeout",
    "cut": "incomplete",
    "half": "truncated",
    "endless": "too_large",
    "announced": "too_large",
    "html": "not_an_image",
    "empty": "empty",
    "bomb": "too_many_pixels",
    "tiny": "too_small",
    "long": "too_elongated",
    "loop": "redirect_loop",
    "to/file:///etc/passwd": "scheme_refused",
    "to/ftp://127.0.0.1/x": "scheme_refused",
    "to/http://127.0.0.1:1/x": "private_address",
    "to/http://169.254.169.254/latest/meta-data": "private_address",
    "to/http://[::1]:9/x": "private_address",
    "optout": "opt_out",
}


def test_every_fault_of_a_server_ends_as_a_row_with_its_cause(web: ThreadingHTTPServer, storage: Storage) -> None:
    urls = [at(web, path) for path in FAULTS]
    rows = fetched(storage, urls, config(web, timeout_seconds=1.5, max_bytes=1_000_000, max_pixels=10_000_000, threads=32))
    assert {path: rows[at(web, path)]["cause"] for path in FAULTS} == FAULTS
    assert all(row["status"] == "failed" and row["detail"] for row in rows.values())
    assert rows[at(web, "status/404")]["http_status"] == 404


BAD_URLS = {
    "file:///etc/passwd": "scheme_refused",
    "ftp://example.com/a.jpg": "scheme_refused",
    "data:image/png;base64,AAAA": "scheme_refused",
    "javascript:alert(1)": "scheme_refused",
    "just words": "broken_url",
    "http://": "broken_url",
    "http://[::1/a.jpg": "broken_url",
    "http://example.com:99999/a.jpg": "broken_url",
    "http://127.0.0.1/a\nb": "broken_url",
    "http://2130706433/a.jpg": "private_address",
    "http://0x7f.1/a.jpg": "private_address",
    "http://0/a.jpg": "private_address",
    "http://[::ffff:127.0.0.1]/a.jpg": "private_address",
    "http://10.1.2.3/a.jpg": "private_address",
    "http://localhost/a.jpg": "private_address",
}


def test_every_bad_url_ends_as_a_row_with_its_cause(web: ThreadingHTTPServer, storage: Storage) -> None:
    rows = fetched(storage, list(BAD_URLS), config(web))
    assert {url: rows[url]["cause"] for url in BAD_URLS} == BAD_URLS


def test_a_good_image_is_kept_byte_for_byte_with_its_caption_and_origin(web: ThreadingHTTPServer, storage: Storage) -> None:
    url = at(web, "ok")
    row = fetched(storage, [url], config(web))[url]
    assert (row["status"], row["cause"], row["width"], row["height"]) == ("downloaded", None, 64, 48)
    (sample,) = read_samples(storage.full(f"raw/{PART}.tar"))
    assert sample.image == picture()
    assert sample.caption == f"caption of\n{url} é"
    assert sample.meta == {
        "uid": sample.uid,
        "url": url,
        "caption": sample.caption,
        "source": "web",
        "licence": "none",
        "width": 64,
        "height": 48,
        "sha256": hashlib.sha256(picture()).hexdigest(),
    }


def test_the_bytes_do_not_depend_on_threads_or_on_who_answers_first(web: ThreadingHTTPServer, tmp_path: Path) -> None:
    urls = [at(web, f"ok/{color}") for color in ("red", "green", "blue", "black", "white")] + [at(web, "slow/0.3"), at(web, "html")]
    contents = []
    for number, threads in enumerate((1, 7)):
        storage = Storage(str(tmp_path / str(number)))
        fetched(storage, urls, config(web, threads=threads))
        contents.append([storage.read_bytes(f"raw/{PART}.{kind}") for kind in ("tar", "parquet")])
    assert contents[0] == contents[1]


def test_passing_faults_are_tried_again_and_lasting_ones_are_not(web: ThreadingHTTPServer, storage: Storage) -> None:
    paths = ["first-fails/500", "first-fails/429", "first-fails/404", "status/503", "status/410", "html", "half"]
    rows = fetched(storage, [at(web, path) for path in paths], config(web, retries=2))
    assert {path: rows[at(web, path)]["cause"] for path in paths} == {
        "first-fails/500": None,
        "first-fails/429": None,
        "first-fails/404": "http_404",
        "status/503": "http_503",
        "status/410": "http_410",
        "html": "not_an_image",
        "half": "truncated",
    }
    assert {path: Web.hits[f"/{path}"] for path in paths} == {
        "first-fails/500": 2,
        "first-fails/429": 2,
        "first-fails/404": 1,
        "status/503": 3,
        "status/410": 1,
        "html": 1,
        "half": 1,
    }


def test_bytes_other_than_the_manifest_expects_are_refused(web: ThreadingHTTPServer, storage: Storage) -> None:
    right, wrong = at(web, "ok/red"), at(web, "ok/blue")
    expected = hashlib.sha256(picture("red")).hexdigest()
    rows = fetched(storage, [right, wrong], config(web), {right: expected, wrong: expected})
    assert rows[right]["cause"] is None
    assert rows[wrong]["cause"] == "hash_mismatch"
    assert rows[wrong]["sha256"] == hashlib.sha256(picture("blue")).hexdigest()


def test_two_sources_may_answer_with_the_same_image(web: ThreadingHTTPServer, storage: Storage) -> None:
    rows = fetched(storage, [at(web, "ok/red?1"), at(web, "ok/red?2")], config(web))
    assert len({row["sha256"] for row in rows.values()}) == 1
    assert len(list(read_samples(storage.full(f"raw/{PART}.tar")))) == 2


def test_nothing_downloaded_is_an_empty_tar_and_a_full_table(web: ThreadingHTTPServer, storage: Storage) -> None:
    rows = fetched(storage, [at(web, "status/404")], config(web))
    assert [row["status"] for row in rows.values()] == ["failed"]
    assert list(read_samples(storage.full(f"raw/{PART}.tar"))) == []


def test_counts_and_causes_are_told(web: ThreadingHTTPServer, storage: Storage) -> None:
    listed(storage, [at(web, path) for path in ("ok", "html", "status/404", "status/404?2", "first-fails/500")])
    outcome = download_partition(storage, PART, config=config(web, retries=1))
    assert outcome.counts == {"downloaded": 2, "failed": 3}
    assert outcome.facts["causes"] == {"http_404": 2, "not_an_image": 1}
    assert outcome.facts["tried_again"] == 1
    assert outcome.outputs == (f"raw/{PART}.tar", f"raw/{PART}.parquet")


# Kills, full disks, and what nobody thought of


def test_a_stop_ends_the_fetching_at_once_and_leaves_nothing(
    web: ThreadingHTTPServer, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(storage, [at(web, f"slow/0.2?{number}") for number in range(200)])
    join = threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        # What Ctrl-C does to the main thread while it waits for the one that fetches.
        if self.name == "winnow-fetch" and not stopped:
            time.sleep(0.3)
            stopped.append(True)
            raise KeyboardInterrupt
        join(self, timeout)

    stopped: list[bool] = []
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        download_partition(storage, PART, config=config(web))
    assert time.monotonic() - began < 5  # of 10 s that all would take
    assert sum(Web.hits.values()) < 100
    assert finished(storage) == [f"manifest/{PART}.parquet"]


def test_a_full_disk_fails_the_partition_and_not_the_sample(
    web: ThreadingHTTPServer, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(storage, [at(web, f"ok/red?{number}") for number in range(20)])

    def full(descriptor: int, data: bytes, offset: int) -> None:
        if data.startswith(b"\xff\xd8"):
            raise OSError(28, "No space left on device")
        write(descriptor, data, offset)

    write = journal._write
    monkeypatch.setattr(journal, "_write", full)
    with pytest.raises(OSError, match="No space left on device"):
        download_partition(storage, PART, config=config(web))
    assert storage.names("raw") == []


def test_an_error_that_nobody_thought_of_is_a_row_too(
    web: ThreadingHTTPServer, storage: Storage, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def exhausted(data: bytes, limits: Any) -> Any:
        if data == picture("blue"):
            raise MemoryError
        return check_image(data, limits)

    monkeypatch.setattr(fetching, "check_image", exhausted)
    red, blue = at(web, "ok/red"), at(web, "ok/blue")
    rows = fetched(storage, [red, blue], config(web))
    assert (rows[red]["cause"], rows[blue]["cause"]) == (None, "unexpected")
    assert rows[blue]["detail"] == "the worker's log has the traceback"
    assert "MemoryError" in capfd.readouterr().err


def test_a_kill_while_the_tar_is_written_leaves_nothing_visible(
    web: ThreadingHTTPServer, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(storage, [at(web, "ok/red"), at(web, "ok/blue")])

    def killed(self: TarWriter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TarWriter, "close", killed)
        download_partition(storage, PART, config=config(web))
    assert finished(storage) == [f"manifest/{PART}.parquet"]
    download_partition(storage, PART, config=config(web))
    assert len(list(read_samples(storage.full(f"raw/{PART}.tar")))) == 2


@pytest.mark.slow
def test_workers_on_ray_write_the_same_bytes(web: ThreadingHTTPServer, tmp_path: Path, ray_cluster: int) -> None:
    urls = [at(web, path) for path in ("ok/red", "ok/blue", "html", "status/404", "to/file:///etc/passwd")]
    contents = []
    for workers in (0, ray_cluster):
        storage = Storage(str(tmp_path / str(workers)))
        listed(storage, urls)
        result = run_step(download_partition, plan_downloads([PART], config(web)), storage, stage="download", version=1, workers=workers)
        assert result.counts == {"downloaded": 2, "failed": 3}
        contents.append([storage.read_bytes(f"raw/{PART}.{kind}") for kind in ("tar", "parquet")])
    assert contents[0] == contents[1]


# Settings, and the package inside


def test_patience_and_threads_do_not_make_it_fetch_again(web: ThreadingHTTPServer) -> None:
    def fingerprint(**changes: Any) -> str:
        return plan_downloads([PART], config(web, **changes))[0].fingerprint("download", 1)

    same = {"threads": 9, "timeout_seconds": 1, "retries": 7, "retry_pause_seconds": 3, "allow": (), "user_agent": "x", "max_redirects": 1}
    same |= {"contact": "a@example.org", "host_connections": 1, "host_requests_per_second": 1, "max_pause_seconds": 1, "patience_seconds": 1}
    same |= {"later_runs": 1, "later_pause_hours": 1, "later_min_share": 1}
    assert {name for name, value in same.items() if fingerprint(**{name: value}) != fingerprint()} == set()
    other = {"max_pixels": 9, "max_bytes": 9, "min_side_px": 9, "max_aspect_ratio": 9, "jpeg_quality": 9, "opt_out": ()}
    other |= {"robots": False, "tdm": False, "keep_metadata": True}
    assert {name for name, value in other.items() if fingerprint(**{name: value}) == fingerprint()} == set()
    assert set(same) | set(other) == {field.name for field in dataclasses.fields(DownloadConfig)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"retry_pause_seconds": -1}, "retry_pause_seconds must be at least 0, got -1"),
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"allow": ("localhost:80",)}, "allow: 'localhost:80' is not an address with a port"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DownloadConfig(**change)


def test_another_img2dataset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "img2dataset.downloader", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.48.0")
    with pytest.raises(ConfigError, match=r"img2dataset 1\.48\.0 is installed; the guard rests on how 1\.47\.0 fetches"):
        fetching.downloader_class()


def test_a_worker_does_not_import_what_it_does_not_need() -> None:
    code = "import sys; from winnow.fetching import downloader_class; downloader_class(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "ray", "pandas", "cv2", "img2dataset", "prefect"} & set(done.stdout.split()) == set()
