"""Every cause that the download can name is explained to people, and docs/download.md says of each whether it is tried again."""

import json
import re
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.config import RunConfig
from tasks.data import download_stage, retry_stage
from tests.faulty_web import PART, Web, at, config, listed
from winnow.download import PASSING
from winnow.download_config import DownloadConfig
from winnow.errors import ConfigError
from winnow.fetch_failures import is_passing
from winnow.journal import journal_of
from winnow.later import list_later
from winnow.report.counts import CAUSES
from winnow.storage import Storage

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("guard", "urls", "responses", "bodies", "fetch_failures", "refusals", "turns", "images", "fetching", "download")
RAISED = re.compile(r'(?:FetchError|ImageRefused)\(\s*"([a-z_]+)"|Fetched\(cause="([a-z_]+)"|[A-Za-z]\)?, "([a-z_]+)"\),')


def test_every_cause_in_the_code_is_explained() -> None:
    text = "".join((ROOT / f"winnow/{name}.py").read_text() for name in MODULES)
    raised = {slug for found in RAISED.findall(text) for slug in found if slug}
    assert {"tls", "robots", "opt_out", "postponed", "hash_mismatch", "too_many_pixels", "unexpected", "incomplete"} <= raised
    assert raised - CAUSES.keys() == set()


def test_the_docs_say_of_every_cause_what_the_code_says() -> None:
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| (.+) \| (yes|no) \|$", (ROOT / "docs/download.md").read_text(), re.MULTILINE)
    assert {slug: (text, again) for slug, text, again in rows} == {
        slug: (text, "yes" if is_passing(slug) else "no") for slug, text in CAUSES.items() if slug != "undecodable"
    }


@pytest.fixture
def run_config(web: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A workspace whose one partition lists a url that is there, one that is sick and one that is gone."""
    monkeypatch.setattr(RunConfig, "num_workers", 0)  # in this process
    storage = Storage(str(tmp_path / "run"))
    listed(storage, [at(web, path) for path in ("ok/red", "sick/503", "status/404")])
    storage.write_text("manifest/index.json", json.dumps({"partitions": [{"name": PART}]}))
    settings = config(web, later_pause_hours=0, later_min_share=0)
    return RunConfig(workspace=storage.url, manifest="none", download=settings)


def test_the_next_run_tries_what_may_have_passed_and_the_one_after_that_has_nothing_to_do(run_config: RunConfig) -> None:
    assert download_stage(run_config).counts == {"downloaded": 1, "failed": 2}
    assert download_stage(run_config).ran == 1  # still sick
    Web.healed, Web.hits = True, {}
    assert download_stage(run_config).counts == {"downloaded": 2, "failed": 1}
    assert set(Web.hits) - {"/robots.txt", "/.well-known/tdmrep.json"} == {"/sick/503"}
    last = download_stage(run_config)
    assert (last.ran, last.skipped, list_later(Storage(run_config.workspace))) == (0, 1, {})


def test_a_url_is_tried_in_so_many_runs_and_no_more(run_config: RunConfig) -> None:
    assert [download_stage(run_config).ran for _ in range(5)] == [1, 1, 1, 0, 0]
    assert Web.hits["/sick/503"] == 3


def test_a_retry_by_command_fetches_the_chosen_causes(run_config: RunConfig) -> None:
    assert retry_stage(run_config, (PASSING,)).ran == 0  # nothing is finished yet
    download_stage(run_config)
    assert retry_stage(run_config, ("timeout",)).ran == 0
    Web.healed = True
    result = retry_stage(run_config, ("http_503",))
    assert (result.stage, result.counts) == ("retry", {"mended": 1, "failed_still": 1})
    assert retry_stage(run_config, (PASSING,)).ran == 0


def test_a_retry_leaves_alone_what_was_downloaded_by_other_settings(run_config: RunConfig) -> None:
    download_stage(run_config)
    other = replace(run_config, download=replace(run_config.download, max_pixels=1_000_000))
    Web.hits = {}
    assert (retry_stage(other, ("http_503",)).ran, Web.hits) == (0, {})


def test_a_retry_keeps_what_a_killed_download_has_fetched_so_far(run_config: RunConfig) -> None:
    download_stage(run_config)
    storage = Storage(run_config.workspace)
    with journal_of(storage, "00001-unfinished", {}) as journal:
        journal.note(base="x")
    retry_stage(run_config, ("http_503",))
    assert journal.folder.exists()
    download_stage(run_config)
    assert not journal.folder.exists()


def test_a_download_that_brought_nothing_says_why_and_how_to_ask_again(run_config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    download_stage(run_config)
    assert not caplog.records  # one image came
    settings = replace(run_config.download, allow=(), contact="you@example.org")
    nobody = replace(run_config, workspace=f"{run_config.workspace}-2", download=settings)
    storage = Storage(nobody.workspace)
    listed(storage, ["http://127.0.0.1:9/a", "http://127.0.0.1:9/b"])
    storage.write_text("manifest/index.json", json.dumps({"partitions": [{"name": PART}]}))
    download_stage(nobody)
    assert "no url gave an image" in caplog.text and "2 private_address: The address leads into" in caplog.text
    assert "winnow retry CONFIG --cause private_address" in caplog.text


def test_an_unknown_cause_is_refused_by_name(run_config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"there is no cause 'timeouts'\. Choose from: passing, http_<status>, .*timeout"):
        retry_stage(run_config, ("timeouts",))


def test_a_download_that_would_not_say_who_asks_does_not_begin(run_config: RunConfig) -> None:
    anonymous = RunConfig(workspace=run_config.workspace, manifest="none", download=DownloadConfig())
    for stage in (download_stage, lambda config: retry_stage(config, ("timeout",))):
        with pytest.raises(ConfigError, match="contact"):
            stage(anonymous)
    assert Web.hits == {}
