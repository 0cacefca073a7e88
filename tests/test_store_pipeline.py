"""The pipeline's data on an object store: the same bytes as on a disk, and what a lost network or a stranger's write does to it."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.decision_values import Svm
from filters.svm import svm_to_bytes
from models.clip_embedder import DEMO, ClipConfig, resolve_weights
from models.embedding import feature_digest
from models.recipes import RECIPES
from tasks import training
from tasks.config import RunConfig, run_config
from tasks.session import preflight, session
from tasks.stages import STAGES
from tests.file_server import FileServer, serving
from tests.s3_server import KEYS, FaultyStore, S3Server, fresh_url
from winnow import partitions
from winnow.conservation import check_conservation
from winnow.demo.world import WorldConfig, make_world, render, write_url_list
from winnow.errors import ConfigError, ManifestError, StepFailed
from winnow.explain import explain
from winnow.explain import render as render_explanation
from winnow.manifest import build_manifest, load_manifest
from winnow.partitions import StageRun
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.verify import verify
from winnow.workspace import existing_workspace, filter_folder

LISTED = 24
DATA = tuple(name for name in list(STAGES)[: list(STAGES).index("train")] if name not in ("fit", "drift"))
"""The stages that make data, without those that need more labels than there are pictures here."""
FEATURES = 128


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """A web of a few pictures; two are listed and missing."""
    folder = tmp_path_factory.mktemp("web")
    scenes = make_world(WorldConfig(num_scenes=LISTED, fault_share=0))
    with serving(folder / "files") as server:
        for number, scene in enumerate(scenes):
            if number not in (3, 20):
                path = server.folder / scene.path.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(render(scene))
        write_url_list(scenes, server.url, folder / "urls.parquet")
        (folder / "manifest.yaml").write_text(
            "name: small\nsources:\n- {name: web, path: urls.parquet, licence: CC0-1.0, columns: {url: url, caption: caption}}\n"
        )
        yield server


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions one after the other in this process: what Ray adds is not the question."""
    monkeypatch.setattr(partitions, "_on_ray", lambda calls, *_: partitions._here(calls))


def config_of(workspace: str, web: FileServer, tmp_path: Path) -> RunConfig:
    address = web.url.removeprefix("http://")
    return run_config(
        {
            "workspace": workspace,
            "manifest": str(web.folder.parent / "manifest.yaml"),
            "partition_rows": 12,
            "download": {"allow": [address], "retries": 0, "threads": 4, "robots": False, "tdm": False},
            "embed": {"model": DEMO},
            "filters": ["people"],
            "label_store": str(tmp_path / "labels.sqlite"),
            "shard": {"shard_samples": 10},
        }
    )


def put_a_filter_in_force(storage: Storage) -> None:
    """A machine that drops about half of what there is, with what scoring needs to know of it."""
    weights = resolve_weights(ClipConfig(model=DEMO))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(8, FEATURES)).astype(np.float32)
    svm = Svm(support_vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dual=rng.normal(size=8), intercept=0.0, gamma=1.0)
    folder = filter_folder("people", "v1")
    storage.write_bytes(f"{folder}/svm.safetensors", svm_to_bytes(svm))
    digest = feature_digest(ClipConfig(model=DEMO), weights.sha256)
    storage.write_text(f"{folder}/certificate.json", json.dumps({"threshold": 0.25, "feature_digest": digest, "labels": {}}))
    storage.write_text("filters/people/current.json", json.dumps({"version": "v1"}))


def run(config: RunConfig, stages: tuple[str, ...] = DATA) -> dict[str, StageRun]:
    put_a_filter_in_force(Storage(config.workspace))
    return {name: STAGES[name](config) for name in stages}


def contents(storage: Storage) -> dict[str, bytes]:
    """All files, receipts without their seconds; those made on another storage must be equal."""
    found = {path: storage.read_bytes(path) for path in storage.walk() if not path.startswith(".tmp/")}
    for path, content in found.items():
        if path.startswith("receipts/"):
            found[path] = json.dumps(json.loads(content) | {"seconds": 0}).encode()
    return found


@pytest.fixture(scope="module")
def on_disk(web: FileServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "_on_ray", lambda calls, *_: partitions._here(calls))
        run(config_of(str(folder / "run"), web, folder))
    return contents(Storage(str(folder / "run")))


def test_the_data_of_a_run_are_the_same_bytes_on_an_object_store(
    web: FileServer, on_disk: dict[str, bytes], s3: S3Server, tmp_path: Path
) -> None:
    config = config_of(fresh_url(), web, tmp_path)
    first = run(config)
    storage = existing_workspace(config.workspace)
    assert contents(storage) == on_disk
    assert all(first[name].ran for name in ("manifest", "download", "embed", "score", "shard"))
    assert {name: result.ran for name, result in run(config).items() if result.ran} == {}
    assert contents(storage) == on_disk

    found = check_conservation(storage)
    assert (found.listed, found.failed) == (LISTED, 2) and found.dropped > 0 and found.kept > 0
    assert {finding.file.partition("/")[0] for finding in verify(storage).findings} <= {"filters"}  # of the made-up filter
    (uid, *_) = read_table(storage, next(path for path in on_disk if path.startswith("decisions/0")), ["uid"])["uid"].to_pylist()
    assert uid in render_explanation(explain(storage, uid))


def test_no_credential_is_in_any_file(web: FileServer, s3: S3Server, tmp_path: Path) -> None:
    config = config_of(fresh_url(), web, tmp_path)
    with session(config) as storage:
        STAGES["manifest"](config)
        assert {"run.json", ".lock"} <= set(storage.walk())
        for path, content in contents(storage).items():
            assert not any(secret.encode() in content for secret in list(KEYS.values())[:2]), path


def test_lists_of_urls_may_be_on_an_object_store(web: FileServer, s3: S3Server, tmp_path: Path) -> None:
    lists, here = Storage(fresh_url()), Storage(str(tmp_path / "run"))
    for name in ("a", "b"):
        table = pa.table({"url": [f"http://example.org/{name}/{number}.jpg" for number in range(5)], "caption": ["a"] * 5})
        with lists.scratch() as scratch:
            pq.write_table(table, scratch / "list.parquet")
            lists.put(scratch / "list.parquet", f"lists/{name}.parquet")
    source = "{name: web, path: PATH, licence: CC0-1.0, format: parquet, columns: {url: url, caption: caption}}"
    for path, listed in ((f"{lists.url}/lists/*.parquet", 10), (f"{lists.url}/lists/b.parquet", 5)):
        (tmp_path / "manifest.yaml").write_text(f"name: remote\nsources:\n- {source.replace('PATH', path)}\n")
        assert build_manifest(here, load_manifest(tmp_path / "manifest.yaml")).listed == listed
    (tmp_path / "manifest.yaml").write_text(f"name: remote\nsources:\n- {source.replace('PATH', lists.url + '/lists/c.parquet')}\n")
    with pytest.raises(ManifestError, match=r"there is no file s3://.*c\.parquet"):
        load_manifest(tmp_path / "manifest.yaml")


def test_what_needs_a_local_disk_is_refused_before_anything_runs(web: FileServer, s3: S3Server, tmp_path: Path) -> None:
    config = config_of(fresh_url(), web, tmp_path)
    with pytest.raises(ConfigError, match=r"labels of s3://.* need a file on a local disk: give its path \(label_store: in the config\)"):
        preflight(dataclasses.replace(config, label_store=None))
    assert Storage(config.workspace).walk() == []


def test_what_is_trained_and_sampled_is_the_same_on_an_object_store(
    web: FileServer, on_disk: dict[str, bytes], s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = dataclasses.replace(RECIPES["demo-base"], num_steps=2, batch_size=2, log_every=1, checkpoint_every=2)
    monkeypatch.setitem(RECIPES, "demo-base", tiny)
    monkeypatch.setattr(training, "start_ray", lambda workers: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = []
    for url in (str(tmp_path / "run"), fresh_url()):
        storage = Storage(url)
        for path, content in on_disk.items():
            storage.write_bytes(path, content)
        sample = {"recipe": "demo-base", "num_prompts": 2, "steps": "ddim2"}
        config = dataclasses.replace(
            config_of(url, web, tmp_path), train=("demo-base",), train_workers=0, sample=run_config({**MINIMAL, "sample": sample}).sample
        )
        assert {name: STAGES[name](config).ran for name in AFTER} == dict.fromkeys(AFTER, 1)
        assert {name: STAGES[name](config).ran for name in AFTER} == dict.fromkeys(AFTER, 0)
        found.append({path: storage.read_bytes(path) for path in made(storage)})
    assert found[0] == found[1]
    assert {"checkpoints/demo-base/step-000002/ema.safetensors", "samples/demo-base/00001.png", "regurgitation/pairs.parquet"} <= set(
        found[0]
    )


AFTER = ("train", "sample", "regurgitation")
MINIMAL = {"workspace": "w", "manifest": "m", "embed": {"model": DEMO}, "train": ["demo-base"]}


def made(storage: Storage) -> list[str]:
    """What these stages made, but for metrics.jsonl, which tells how fast that was."""
    found = [path for folder in ("checkpoints", "samples", "regurgitation") for path in storage.walk(folder)]
    return [path for path in found if not path.endswith("metrics.jsonl")]


def test_a_silent_network_in_the_middle_of_a_stage_ends_it_and_the_next_run_goes_on(
    web: FileServer, on_disk: dict[str, bytes], faulty: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(fresh_url(), web, tmp_path)
    run_stages(config, "manifest")
    monkeypatch.setenv("WINNOW_STORAGE_SECONDS", "4")
    with (
        faulty.doing(lambda line: 1000.0 if line.startswith("PUT") and "/raw/00001" in line else None),
        pytest.raises(StepFailed, match=r"(?s)download: 1 of 2 partitions failed, 1 are done\. .*no usable answer within 4 s"),
    ):
        run_stages(config, "download")
    monkeypatch.setenv("WINNOW_STORAGE_SECONDS", "20")
    assert run_stages(config, "download")["download"].ran == 1
    assert of_download(contents(Storage(config.workspace))) == of_download(on_disk)


def run_stages(config: RunConfig, *stages: str) -> dict[str, StageRun]:
    with session(config):
        return {name: STAGES[name](config) for name in stages}


def of_download(found: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in found.items() if path.startswith(("raw/", "receipts/download/"))}
