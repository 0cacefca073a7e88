"""The downloader against a server with the faults of the real web."""

import dataclasses
import hashlib
import importlib.metadata
import subprocess
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_web import BODIES, PART, Web, at, config, fetched, finished, listed, picture
from winnow import fetching, journal
from winnow.download import download_partition, plan_downloads
from winnow.download_config import DownloadConfig
from winnow.errors import ConfigError
from winnow.images import check_image
from winnow.partitions import at_work, run_step
from winnow.shards import read_samples
from winnow.storage import Storage
from winnow.tars import TarWriter


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


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
    "zipped": "not_an_image",
    "short": "truncated",
    **{f"bytes/{kind}": "truncated" if kind == "half-a-header" else "not_an_image" for kind in BODIES},
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


def test_sites_that_refuse_are_heard(web: ThreadingHTTPServer, storage: Storage) -> None:
    Web.pages["/robots.txt"] = "User-agent: *\nDisallow: /private/\n\nUser-agent: other\nDisallow: /"
    Web.pages["/.well-known/tdmrep.json"] = '[{"location": "/ok/navy", "tdm-reservation": 1}]'
    expected = {
        "private/a": ("robots", "robots.txt disallows it"),
        "to//private/b": ("robots", "robots.txt disallows it"),
        "header/X-Robots-Tag=noindex,_NoML": ("opt_out", "X-Robots-Tag: noml"),
        "header/X-Robots-Tag=winnow:_noai": ("opt_out", "X-Robots-Tag: noai"),
        "header/tdm-reservation=1": ("opt_out", "tdm-reservation: 1"),
        "ok/navy": ("opt_out", "tdm-reservation: 1 in /.well-known/tdmrep.json"),
        "header/X-Robots-Tag=other:_noai": (None, None),
        "header/tdm-reservation=0": (None, None),
        "ok/red": (None, None),
    }
    only = config(web, opt_out=("noml", "noai"))
    rows = fetched(storage, [at(web, path) for path in expected if path != "ok/navy"] + [at(web, "ok/navy")], only)
    assert {path: (rows[at(web, path)]["cause"], rows[at(web, path)]["detail"]) for path in expected} == expected
    assert [Web.hits.get(path, 0) for path in ("/private/a", "/private/b", "/robots.txt", "/.well-known/tdmrep.json")] == [0, 0, 1, 1]


def test_each_refusal_can_be_switched_off(web: ThreadingHTTPServer, storage: Storage) -> None:
    Web.pages["/robots.txt"] = "User-agent: *\nDisallow: /"
    urls = [at(web, path) for path in ("ok/red", "header/X-Robots-Tag=noai", "header/tdm-reservation=1")]
    rows = fetched(storage, urls, config(web, robots=False, tdm=False, opt_out=()))
    assert [row["cause"] for row in rows.values()] == [None] * 3
    assert "/robots.txt" not in Web.hits


def test_a_site_whose_robots_txt_fails_is_tried_again_and_then_refused_for_now(web: ThreadingHTTPServer, storage: Storage) -> None:
    Web.pages["/robots.txt"] = 500
    rows = fetched(storage, [at(web, "ok/red"), at(web, "ok/blue")], config(web, retries=1))
    assert {row["cause"] for row in rows.values()} == {"robots_unreachable"}
    assert Web.hits == {"/robots.txt": 2}  # once in each pass, for both


def test_a_robots_txt_that_waits_for_ever_costs_one_time_limit_and_not_one_a_url(web: ThreadingHTTPServer, storage: Storage) -> None:
    Web.pages["/robots.txt"] = "User-agent: *\nDisallow: /"
    rows = fetched(storage, [at(web, f"ok/{number}") for number in range(40)], config(web))
    assert ({row["cause"] for row in rows.values()}, Web.hits["/robots.txt"]) == ({"robots"}, 1)


def test_a_server_that_asks_for_rest_gets_it_and_one_that_asks_for_too_much_is_left(web: ThreadingHTTPServer, storage: Storage) -> None:
    urls = [at(web, path) for path in ("first-fails/503", "ok/red", "ok/blue")]
    assert [row["cause"] for row in fetched(storage, urls, config(web, retries=2)).values()] == [None] * 3
    Web.retry_after = "7200"
    other = [at(web, f"sick/429/{number}") for number in range(5)]
    rows = fetched(storage, other, config(web, threads=1))
    assert sorted(row["cause"] for row in rows.values()) == ["http_429"] + ["postponed"] * 4
    assert sum(count for path, count in Web.hits.items() if path.startswith("/sick")) == 1


def test_everyone_is_told_who_asks(web: ThreadingHTTPServer, storage: Storage) -> None:
    fetched(storage, [at(web, "ok/red")], config(web, contact="you@example.org"))
    assert (Web.agents, Web.hits["/robots.txt"]) == ({"winnow/0.1 (dataset curation; you@example.org)"}, 1)
    fetched(storage, [at(web, "ok/blue")], config(web, contact="you@example.org", user_agent="winnow for us"))
    assert "winnow for us" in Web.agents


def test_workers_share_what_a_host_is_asked() -> None:
    pace = DownloadConfig(host_requests_per_second=20, host_connections=9).pace(workers=4)
    assert (pace.seconds_between, pace.connections, pace.workers) == (0.2, 2, 4)
    assert [DownloadConfig(host_connections=3).pace(workers).connections for workers in (1, 2, 3, 8)] == [3, 1, 1, 1]
    assert DownloadConfig(host_requests_per_second=0).pace(workers=4).seconds_between == 0.0
    works = plan_downloads(["a", "b", "c"], DownloadConfig(), workers=8)
    assert {(work.unhashed["workers"], work.unhashed["num_works"]) for work in works} == {(8, 3)}
    assert [at_work(workers, 3) for workers in (0, 1, 2, 8)] == [1, 1, 2, 3]


def test_a_stranger_has_so_many_connections_at_a_time(web: ThreadingHTTPServer, storage: Storage) -> None:
    urls = [f"http://localhost:{web.server_port}/slow/0.02?{number}" for number in range(20)]
    fetched(storage, urls, config(web, host_requests_per_second=0, host_connections=3, threads=12))
    assert 1 <= Web.most_at_once <= 3


def test_a_stranger_must_be_told_who_asks(web: ThreadingHTTPServer) -> None:
    with pytest.raises(ConfigError, match=r"Say how their owners reach you.*contact: you@example\.org"):
        DownloadConfig().check_contact()
    for settings in ({"contact": "https://example.org/bot"}, {"user_agent": "winnow (you@example.org)"}, {"allow": ("127.0.0.1:1",)}):
        DownloadConfig(**settings).check_contact()


def test_the_digest_is_of_the_bytes_that_came_even_if_others_are_stored(web: ThreadingHTTPServer, storage: Storage) -> None:
    url = at(web, "as-png")
    row = fetched(storage, [url], config(web))[url]
    (sample,) = read_samples(storage.full(f"raw/{PART}.tar"))
    assert row["sha256"] == hashlib.sha256(picture("red", form="PNG")).hexdigest() == sample.meta["sha256"]
    assert (row["bytes"], sample.image[:3]) == (len(sample.image), b"\xff\xd8\xff")


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
    same |= {
        "contact": "a@example.org",
        "host_connections": 1,
        "host_requests_per_second": 1,
        "max_pause_seconds": 1,
        "patience_seconds": 1,
    }
    same |= {"later_runs": 1, "later_pause_hours": 1, "later_min_share": 1}
    assert {name for name, value in same.items() if fingerprint(**{name: value}) != fingerprint()} == set()
    other = {"max_pixels": 9, "max_bytes": 9, "min_side_px": 9, "max_aspect_ratio": 9, "jpeg_quality": 9, "opt_out": ()}
    other |= {"max_decoding_bytes": 9, "robots": False, "tdm": False, "keep_metadata": True, "decode_all": True}
    assert {name for name, value in other.items() if fingerprint(**{name: value}) == fingerprint()} == set()
    assert set(same) | set(other) == {field.name for field in dataclasses.fields(DownloadConfig)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"contact": "me"}, "contact must be an e-mail address or a url, got 'me'"),
        ({"host_connections": 0}, "host_connections must be at least 1"),
        ({"host_requests_per_second": -1}, "host_requests_per_second must be at least 0"),
        ({"max_pause_seconds": float("nan")}, "max_pause_seconds must be at least 0"),
        ({"later_runs": 0}, "later_runs must be at least 1"),
        ({"later_min_share": 2}, "later_min_share must be between 0 and 1"),
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
