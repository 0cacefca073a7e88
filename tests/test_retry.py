"""What failed is fetched again, now, on the next run or by command; what is there stays byte for byte; kills cost next to nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import winnow.download
from tests.faulty_web import PART, Web, at, config, listed
from winnow.download import PASSING, VERSION, download_partition, plan_downloads
from winnow.download_config import DownloadConfig
from winnow.later import Later, LaterConfig, list_later, write_later
from winnow.partitions import StageRun, run_step
from winnow.receipts import list_done, read_receipts
from winnow.shards import read_samples
from winnow.storage import Storage
from winnow.tables import read_table

TAR, TABLE = f"raw/{PART}.tar", f"raw/{PART}.parquet"
PATHS = ("ok/red", "ok/blue", "sick/503", "sick/500/a", "sick/404", "html", "as-png")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def run(storage: Storage, settings: DownloadConfig, redo: Mapping[str, Mapping[str, Any]] | None = None) -> StageRun:
    works = plan_downloads([PART], settings, earlier=list_later(storage))
    return run_step(download_partition, works, storage, stage="download", version=VERSION, redo=redo)


def causes(storage: Storage) -> dict[str, str | None]:
    return {row["uid"]: row["cause"] for row in read_table(storage, TABLE).to_pylist()}


def samples(storage: Storage) -> dict[str, tuple[bytes, dict[str, Any]]]:
    return {sample.uid: (sample.image, sample.meta) for sample in read_samples(storage.full(TAR))}


@pytest.fixture
def uids(web: ThreadingHTTPServer, storage: Storage) -> dict[str, str]:
    """A finished partition: path -> uid."""
    found = listed(storage, [at(web, path) for path in PATHS])
    run(storage, config(web))
    return {path: found[at(web, path)] for path in PATHS}


def test_a_retry_fetches_the_chosen_failures_and_keeps_the_rest(web: ThreadingHTTPServer, storage: Storage, uids: dict[str, str]) -> None:
    before, digest = samples(storage), list_done(storage, "download")[0].output
    Web.hits, Web.healed = {}, True
    result = run(storage, config(web), {PART: {"again": ("http_503",)}})
    assert set(Web.hits) - {"/robots.txt", "/.well-known/tdmrep.json"} == {"/sick/503"}
    after = samples(storage)
    assert {uid: after[uid] for uid in before} == before
    assert set(after) - set(before) == {uids["sick/503"]}
    assert {path: causes(storage)[uid] for path, uid in uids.items()} == {
        **dict.fromkeys(("ok/red", "ok/blue", "sick/503", "as-png")),
        "sick/500/a": "http_500",
        "sick/404": "http_404",
        "html": "not_an_image",
    }
    (done,) = list_done(storage, "download")
    assert done.output != digest, "what follows is done again"
    assert result.counts == {"downloaded": 4, "failed": 3}
    assert read_receipts(storage, "download")[0].outputs[TAR]["sha256"] == storage.sha256(TAR)


def test_a_partition_that_was_mended_is_the_one_that_a_first_run_would_have_made(
    web: ThreadingHTTPServer, storage: Storage, uids: dict[str, str], tmp_path: Path
) -> None:
    Web.healed = True
    run(storage, config(web), {PART: {"again": (PASSING, "http_404")}})
    other = Storage(str(tmp_path / "other"))
    listed(other, [at(web, path) for path in PATHS])
    run(other, config(web))
    assert [storage.read_bytes(path) for path in (TAR, TABLE)] == [other.read_bytes(path) for path in (TAR, TABLE)]


def test_a_retry_that_mends_nothing_changes_nothing(web: ThreadingHTTPServer, storage: Storage, uids: dict[str, str]) -> None:
    before = {path: storage.read_bytes(path) for path in (TAR, TABLE)}
    done = list_done(storage, "download")
    Web.pages["/sick/503"] = 500  # another failure than before
    assert run(storage, config(web), {PART: {"again": (PASSING,)}}).ran == 1
    assert {path: storage.read_bytes(path) for path in before} == before
    assert list_done(storage, "download") == done


def test_a_partition_that_is_not_finished_is_not_retried_but_done(web: ThreadingHTTPServer, storage: Storage) -> None:
    listed(storage, [at(web, "ok/red")])
    assert run(storage, config(web), {PART: {"again": (PASSING,)}}).counts == {"downloaded": 1, "failed": 0}


@pytest.mark.parametrize("moment", ["while it fetches", "before it overwrites", "between tar and table", "before the receipt"])
def test_a_retry_that_is_killed_loses_nothing(
    moment: str, web: ThreadingHTTPServer, storage: Storage, uids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = samples(storage)
    Web.healed = True

    def killed(*arguments: Any, **further: Any) -> Any:
        raise KeyboardInterrupt

    target = {
        "while it fetches": "winnow.download._rows",
        "before it overwrites": "winnow.download._write_tar",
        "between tar and table": "winnow.download.write_table",
        "before the receipt": "winnow.download.write_later",
    }[moment]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, killed)
        run(storage, config(web), {PART: {"again": (PASSING,)}})
    stands = bool(list_done(storage, "download"))
    assert stands == (moment in ("while it fetches", "before it overwrites"))
    Web.hits = {}
    # The next run: by itself if the receipt is gone, else when it is asked to again.
    run(storage, config(web), {PART: {"again": (PASSING,)}} if stands else None)
    assert Web.hits == {}, "nothing is fetched a second time"
    after = samples(storage)
    assert {uid: after[uid] for uid in before} == before
    assert {uids["sick/503"], uids["sick/500/a"]} <= set(after)


KILLED = textwrap.dedent("""
    import sys
    from winnow.download import VERSION, download_partition, plan_downloads
    from winnow.download_config import DownloadConfig
    from winnow.partitions import run_step
    from winnow.storage import Storage
    settings = DownloadConfig(allow=(sys.argv[2],), threads=4, retries=0)
    run_step(download_partition, plan_downloads([sys.argv[3]], settings), Storage(sys.argv[1]), stage="download", version=VERSION)
""")


def test_a_killed_download_goes_on_where_it_was_and_ends_with_the_same_bytes(web: ThreadingHTTPServer, tmp_path: Path) -> None:
    urls = [at(web, f"slow/0.02?{number}") for number in range(60)] + [at(web, "status/404"), at(web, "html")]
    killed, undisturbed = Storage(str(tmp_path / "killed")), Storage(str(tmp_path / "undisturbed"))
    for storage in (killed, undisturbed):
        listed(storage, urls)
    address = at(web, "").split("/")[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, killed.url, address, PART], cwd=Path(winnow.download.__file__).parents[1])
    while sum(Web.hits.values()) < 25 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.1)  # what was under way reaches the server
    asked = sum(count for path, count in Web.hits.items() if path.startswith("/slow"))
    assert asked < 60
    assert killed.names("raw") == []
    run(killed, config(web))
    again = sum(count for path, count in Web.hits.items() if path.startswith("/slow")) - 60
    assert again <= 2 * 4
    run(undisturbed, config(web))
    assert [killed.read_bytes(path) for path in (TAR, TABLE)] == [undisturbed.read_bytes(path) for path in (TAR, TABLE)]
    assert not (tmp_path / "killed/.journal" / PART).exists()


# On the next run


def test_what_may_have_passed_is_written_down_with_how_often_it_was_tried(
    web: ThreadingHTTPServer, storage: Storage, uids: dict[str, str]
) -> None:
    entry = list_later(storage)[PART]
    assert (entry.runs, entry.num_rows, entry.of_rows) == (1, 2, 7)
    assert abs(entry.asked_at - time.time()) < 60
    run(storage, config(web), {PART: {"again": (PASSING,)}})
    assert [entry.runs for entry in list_later(storage).values()] == [2]
    assert len(storage.names("later")) == 1
    Web.healed = True
    run(storage, config(web), {PART: {"again": (PASSING,)}})
    assert storage.names("later") == []


@pytest.mark.parametrize(
    ("change", "due"),
    [
        ({}, True),
        ({"runs": 3}, False),
        ({"asked_at": 1_000_000 - 11 * 3600}, False),
        ({"num_rows": 99}, False),
        ({"num_rows": 100}, True),
    ],
)
def test_a_partition_is_due_after_a_pause_if_enough_failed_and_not_too_often(change: dict[str, int], due: bool) -> None:
    entry = Later(**{"partition": "p", "runs": 2, "asked_at": 1_000_000 - 13 * 3600, "num_rows": 500, "of_rows": 10_000, **change})
    assert entry.is_due(LaterConfig(), now=1_000_000.0) is due


def test_one_passing_failure_is_enough_if_any_share_is(storage: Storage) -> None:
    entry = Later(partition="p", runs=1, asked_at=0, num_rows=1, of_rows=10_000)
    assert entry.is_due(LaterConfig(min_share=0.0, pause_hours=0.0), now=1.0)
    assert not Later(partition="p", runs=1, asked_at=0, num_rows=0, of_rows=9).is_due(LaterConfig(min_share=0.0, pause_hours=0.0), now=1.0)


def test_of_two_notes_that_a_kill_left_the_later_one_counts(storage: Storage) -> None:
    for runs in (1, 2):
        write_later(storage, Later(partition="p", runs=runs, asked_at=runs, num_rows=1, of_rows=2), {"timeout": 1}, earlier=None)
    storage.write_text("later/README", "not one")
    assert [entry.runs for entry in list_later(storage).values()] == [2]
