"""The stages together, on a small part of the demo's world: real server, real downloads, the shipped CLIP, Ray."""

import dataclasses
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from filters.learning import LabelPlan, LearnConfig
from flows import demo
from tasks.config import RunConfig
from tasks.forgetting import forget_samples
from tasks.stages import STAGES
from winnow.conservation import check_conservation
from winnow.demo.server import DemoServer
from winnow.demo.world import WorldConfig, make_world, write_url_list
from winnow.errors import ConfigError
from winnow.forget_match import Wanted
from winnow.partitions import StageRun
from winnow.storage import Storage
from winnow.verify import render, verify
from winnow.workspace import open_workspace

pytestmark = pytest.mark.slow
with socket.create_server(("127.0.0.1", 0)) as _free:
    PORT: int = _free.getsockname()[1]
WORLD = WorldConfig(num_scenes=640, fault_share=0.06, hate_symbol_share=0.05)
LISTED = 600
"""The first of them are listed at first; the server serves all."""
CURATE = ("manifest", "download", "embed", "duplicates", "similarity", "fit", "score", "shard", "weigh", "words", "drift")


def small(workspace: Path) -> RunConfig:
    """The demo's config, with promises that few labels can bear."""
    plan = LabelPlan(random_labels=600, text_search_labels=30, boundary_labels=20)
    promises = {"people": 0.1, "violence": 0.1, "hate_symbol": 0.1}
    config = demo.demo_config(str(workspace), port=PORT, workers=2)
    return dataclasses.replace(config, partition_rows=150, learn=LearnConfig(plan=plan, promises=promises))


def run(config: RunConfig, stages: tuple[str, ...]) -> dict[str, StageRun]:
    return {name: STAGES[name](config) for name in stages}


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with DemoServer(WORLD, PORT) as server:
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: DemoServer, ray_cluster: int) -> RunConfig:
    """A workspace in which everything up to the shards, and the report, is done."""
    workspace = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NUM_IMPORTS", 200)
        demo.prepare_world(open_workspace(str(workspace)), WORLD, make_world(WORLD)[:LISTED], PORT)
    config = small(workspace)
    run(config, (*CURATE, "report"))
    return config


@pytest.fixture
def copy(finished: RunConfig, tmp_path: Path) -> Storage:
    """A copy of the finished workspace to tamper with."""
    shutil.copytree(finished.workspace, tmp_path / "copy")
    return open_workspace(str(tmp_path / "copy"))


def test_every_listed_url_ends_in_exactly_one_place(finished: RunConfig) -> None:
    found = check_conservation(open_workspace(finished.workspace))
    assert found.listed == LISTED
    assert found.failed > 0 and found.dropped > 0 and found.kept > 0
    assert found.failed + found.dropped + found.kept == found.listed


def test_faults_that_pass_are_overcome_and_others_have_their_cause(finished: RunConfig) -> None:
    storage = open_workspace(finished.workspace)
    urls = {f"http://127.0.0.1:{PORT}{scene.path}": scene.fault for scene in make_world(WORLD)}
    causes: dict[str, set[str | None]] = {}
    for name in storage.names("manifest"):
        if name.endswith(".parquet") and name != "withdrawn.parquet":
            listed = {row["uid"]: row["url"] for row in pq.read_table(storage.full(f"manifest/{name}")).to_pylist()}
            for row in pq.read_table(storage.full(f"raw/{name}")).to_pylist():
                causes.setdefault(urls[listed[row["uid"]]] or "none", set()).add(row["cause"])
    expected: dict[str, str | None] = {
        "none": None, "slow": None, "500_once": None, "429_once": None, "404": "http_404", "410": "http_410", "500": "http_500",
        "truncated": "incomplete", "html": "not_an_image", "empty": "empty", "bomb": "too_many_pixels", "trickle": "timeout",
        "redirect_private": "private_address", "redirect_port": "private_address", "redirect_loop": "redirect_loop",
        "redirect_file": "scheme_refused",
    }  # fmt: skip
    assert causes == {fault: {expected[fault]} for fault in causes}
    assert len(causes) > 8


def test_running_again_does_nothing(finished: RunConfig, server: DemoServer) -> None:
    before = server.stats()
    again = run(finished, (*CURATE, "report"))
    assert {name: result.ran for name, result in again.items()} == dict.fromkeys(again, 0)
    assert server.stats() == before


def test_an_untouched_run_verifies(finished: RunConfig) -> None:
    found = verify(open_workspace(finished.workspace))
    assert found.ok, render(found)


def test_one_worker_and_two_write_the_same_bytes(finished: RunConfig, server: DemoServer, tmp_path: Path) -> None:
    shutil.copytree(f"{finished.workspace}/world", tmp_path / "alone" / "world")
    run(dataclasses.replace(small(tmp_path / "alone"), workers=1), CURATE)
    for folder in ("manifest", "raw", "embeddings", "imports", "filters", "decisions", "shards"):
        together, alone = Storage(f"{finished.workspace}/{folder}"), Storage(str(tmp_path / "alone" / folder))
        assert {path: alone.sha256(path) for path in alone.walk()} == {path: together.sha256(path) for path in together.walk()}


def flip_a_byte(storage: Storage) -> str:
    path = "shards/curated/00000-000.tar"
    data = bytearray(storage.read_bytes(path))
    data[len(data) // 2] ^= 1
    storage.write_bytes(path, bytes(data))
    return path


def delete_a_decision(storage: Storage) -> str:
    path = next(path for path in storage.walk("decisions") if path.endswith(".parquet"))
    pq.write_table(pq.read_table(storage.full(path)).slice(1), storage.full(path))
    return path


def lower_a_threshold(storage: Storage) -> str:
    filters = json.loads(storage.read_bytes("decisions/filters.json"))
    filters[0]["threshold"] += 1e-3
    storage.write_text("decisions/filters.json", json.dumps(filters))
    return str(filters[0]["name"])


@pytest.mark.parametrize("tamper", [flip_a_byte, delete_a_decision, lower_a_threshold])
def test_tampering_is_found_and_named(copy: Storage, tamper: Callable[[Storage], str]) -> None:
    named = tamper(copy)
    found = verify(copy)
    assert not found.ok
    assert named in render(found)


def test_rows_inserted_removed_and_reordered_fetch_and_embed_exactly_the_new_ones(
    finished: RunConfig, copy: Storage, server: DemoServer
) -> None:
    scenes = make_world(WORLD)
    fresh = scenes[LISTED:]
    # The new ones on top, the first 10 gone, the rest the other way round.
    write_url_list([*fresh, *reversed(scenes[10:LISTED])], f"http://127.0.0.1:{PORT}", copy.full("world/urls.parquet"))
    before = server.stats()
    after = run(small(Path(copy.url)), ("manifest", "download", "embed"))
    asked = {path for path, count in server.stats().items() if count != before.get(path, 0)}
    assert asked == {scene.path for scene in fresh}
    assert after["manifest"].counts["new"] == 40 and after["manifest"].counts["withdrawn"] == 10
    assert (after["download"].ran, after["embed"].ran) == (1, 1)
    assert after["download"].skipped == len(after["embed"].partitions) - 1


def test_another_promise_scores_anew_without_embedding(copy: Storage, server: DemoServer) -> None:
    config = small(Path(copy.url))
    looser = dataclasses.replace(config, learn=dataclasses.replace(config.learn, promises={**config.learn.promises, "people": 0.2}))
    after = run(looser, CURATE)
    assert (after["download"].ran, after["embed"].ran) == (0, 0)
    assert after["fit"].ran == 1 and after["score"].ran == len(after["score"].partitions)


def test_the_demo_needs_a_local_folder() -> None:
    with pytest.raises(ConfigError, match="it needs a local folder, not memory://demo"):
        demo.run_demo("memory://demo", port=PORT)


def test_forgetting_a_sample_makes_no_stage_run_again(copy: Storage, server: DemoServer) -> None:
    config = small(Path(copy.url))
    grouped = {
        uid for name in copy.names("duplicates/groups") for uid in pq.read_table(copy.full(f"duplicates/groups/{name}"))["uid"].to_pylist()
    }
    kept = next(
        row["uid"]
        for name in copy.names("decisions")
        if name.endswith(".parquet")
        for row in pq.read_table(copy.full(f"decisions/{name}")).to_pylist()
        if row["verdict"] == "kept" and row["uid"] not in grouped
    )
    before = server.stats()
    forget_samples(config, Wanted(uids=frozenset([kept])), reason="request 7")
    again = run(config, CURATE)
    # Near-duplicates are looked for again in its partition alone: features that a search has seen are part of what it is.
    assert {name: result.ran for name, result in again.items() if name != "duplicates"} == dict.fromkeys(set(CURATE) - {"duplicates"}, 0)
    assert again["duplicates"].ran == 2 and again["score"].counts["forgotten"] == 1
    assert server.stats() == before
    run(config, ("report",))
    found = verify(copy)
    assert found.ok, render(found)


def test_whoever_is_on_the_opt_out_list_is_never_asked_for_and_forgotten_if_here(copy: Storage, server: DemoServer, tmp_path: Path) -> None:
    scenes = make_world(WORLD)
    fresh = [scene for scene in scenes[LISTED:] if scene.fault is None][:4]
    write_url_list([*scenes[:LISTED], *fresh], f"http://127.0.0.1:{PORT}", copy.full("world/urls.parquet"))
    here = [row for name in copy.names("raw") if name.endswith(".parquet") for row in pq.read_table(copy.full(f"raw/{name}")).to_pylist()]
    downloaded = [row for row in here if row["status"] == "downloaded"]
    images = {row["uid"] for row in downloaded if row["sha256"] == downloaded[7]["sha256"]}
    urls = [f"http://127.0.0.1:{PORT}{scene.path}" for scene in fresh[:2]]
    (tmp_path / "list.txt").write_text("\n".join([*urls, downloaded[7]["sha256"], downloaded[30]["uid"]]) + "\n")
    before = server.stats()
    after = run(dataclasses.replace(small(Path(copy.url)), opt_out=str(tmp_path / "list.txt")), ("manifest", "download"))
    asked = {path for path, count in server.stats().items() if count != before.get(path, 0)} - {"/robots.txt"}
    assert asked == {scene.path for scene in fresh[2:]} and after["download"].ran == 1
    causes = {
        row["uid"]: row["cause"]
        for name in copy.names("raw")
        if name.endswith(".parquet")
        for row in pq.read_table(copy.full(f"raw/{name}")).to_pylist()
    }
    opted_out = {uid for uid, cause in causes.items() if cause == "opted_out"}
    assert {*images, downloaded[30]["uid"]} <= opted_out and len(opted_out) == len(images) + 1 + 2
    listed = [
        row["url"] for name in copy.names("manifest") if name[0] == "0" for row in pq.read_table(copy.full(f"manifest/{name}")).to_pylist()
    ]
    assert listed.count("urn:winnow:opted_out") == len(opted_out) and not set(urls) & set(listed)
    # The list has not changed: nobody is looked for again, nobody forgotten twice.
    events = copy.names("forgotten")
    run(dataclasses.replace(small(Path(copy.url)), opt_out=str(tmp_path / "list.txt")), ("manifest", "download"))
    assert copy.names("forgotten") == events
