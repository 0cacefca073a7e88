"""`winnow forget` as a command, and the opt-out list in a run's config."""

import json
import shutil
from pathlib import Path

import pytest

from tasks.forgetting import settings_of
from tests.forget_world import LABELS, make_world, samples, well_known
from tests.test_cli import winnow
from winnow.errors import ConfigError
from winnow.forgotten import open_events, read_events
from winnow.storage import Storage
from winnow.verify import verify


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = make_world(tmp_path_factory.mktemp("world") / "run")
    storage.write_text("run.json", json.dumps({"workspace": "moved since", "manifest": "photos.yaml", "workers": 1}))
    return storage


@pytest.fixture
def run(world: Storage, tmp_path: Path) -> Storage:
    shutil.copytree(world.url, tmp_path / "run")
    return Storage(str(tmp_path / "run"))


def test_a_dry_run_tells_and_changes_nothing(run: Storage) -> None:
    sample = well_known(run)
    before = {path: run.sha256(path) for path in run.walk()}
    done = winnow("forget", run.url, "--uid", sample["uid"], "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 samples would be forgotten: 1 kept" in done.stdout and f"{sample['uid']}  kept" in done.stdout
    assert "learned from it: checkpoints/base: was trained" in done.stdout
    assert {path: run.sha256(path) for path in run.walk()} == before


def test_samples_are_forgotten_by_url_and_list(run: Storage, tmp_path: Path) -> None:
    first, second = samples(run)[3], samples(run)[70]
    (tmp_path / "list.txt").write_text(f"{second['uid']}\n")
    done = winnow("forget", run.url, "--url", first["url"], "--list", str(tmp_path / "list.txt"), "--reason", "request 7")
    assert done.returncode == 0, done.stderr
    assert f"done: {read_events(run)[0].stem}.json" in done.stdout
    assert {row["url"] for row in samples(run) if row["uid"] in (first["uid"], second["uid"])} == {"urn:winnow:forgotten"}
    assert read_events(run)[0].reason == "request 7"
    found = verify(run)
    assert found.ok, found.findings
    assert not Path(run.full(LABELS)).exists(), "a store that is not there must not be made"


def test_nothing_that_is_listed_is_an_error_and_says_so(run: Storage) -> None:
    done = winnow("forget", run.url, "--uid", "0" * 32)
    assert done.returncode == 2 and "none of the 1 uids, urls, domains and digests given names a sample" in done.stderr
    done = winnow("forget", run.url, "--uid", "abc")
    assert done.returncode == 2 and "'abc' is no uid: it must be 32 hex digits" in done.stderr
    assert winnow("forget", str(run.url) + "/nowhere", "--uid", "0" * 32).returncode == 2


def test_settings_of_another_version_are_named_with_their_file_and_a_config_may_be_given_instead(run: Storage) -> None:
    run.write_text("run.json", json.dumps({"workspace": "w", "manifest": "photos.yaml", "of_old": 1}))
    with pytest.raises(ConfigError, match=r"run/run\.json is of another version: of_old: unknown setting.*\n.*Give a config"):
        settings_of(run.url)


def test_without_samples_it_completes_what_was_cut_short(run: Storage) -> None:
    from winnow import forget
    from winnow.forget_match import Match

    sample = well_known(run)
    forget.start(run, forget.plan(run, [Match(sample["uid"], sample["partition"], "kept")]), slug="forgotten", reason="")
    assert len(open_events(run)) == 1
    done = winnow("forget", run.url)
    assert done.returncode == 0, done.stderr
    assert open_events(run) == [] and verify(run).ok


def test_an_opt_out_list_that_cannot_be_read_stops_a_run_before_it_begins(tmp_path: Path) -> None:
    from tasks.config import read_config
    from tasks.session import preflight
    from winnow.errors import ConfigError

    (tmp_path / "urls.csv").write_text("url,caption\nhttp://example.org/a.jpg,a\n")
    (tmp_path / "photos.yaml").write_text(
        "name: photos\nsources:\n  - {name: one, path: urls.csv, licence: none, columns: {url: url, caption: caption}}\n"
    )
    (tmp_path / "list.txt").write_text("this is not meant for machines\n")
    (tmp_path / "run.yaml").write_text("workspace: run\nmanifest: photos.yaml\nopt_out: list.txt\nembed: {model: demo}\n")
    config = read_config(str(tmp_path / "run.yaml"))
    assert config.opt_out == str(tmp_path / "list.txt")
    with pytest.raises(ConfigError, match=r"list.txt, line 1: 'this is not meant for machines' is no url"):
        preflight(config)
