"""The whole pipeline on a small made-up web: the real thing, only data, weights and sizes differ."""

import json
import os
from pathlib import Path

import click
import yaml

from filters.learning import LabelPlan, LearnConfig
from filters.splits import SplitConfig
from flows.environment import by_hand
from flows.pipeline import pipeline
from flows.summary import print_summary
from models.clip_embedder import DEMO, ClipConfig
from models.sampled import SampleConfig
from tasks.config import RunConfig, plain
from winnow.demo.server import DemoServer
from winnow.demo.world import Scene, WorldConfig, emblem_images, make_world, write_truth, write_url_list
from winnow.digests import digest
from winnow.download_config import DownloadConfig
from winnow.errors import ConfigError
from winnow.shards import ShardConfig
from winnow.storage import Storage
from winnow.workspace import open_workspace

NUM_SCENES = 8_000
MANIFEST = Path(__file__).resolve().parent.parent / "data_manifests" / "demo.yaml"
CONFIG = "world/run.yaml"
NUM_IMPORTS = 1_000
"""Curated pictures of the emblem: at least 299 of them must be left for calibration."""


def run_demo(workspace: str, *, scenes: int | None = None, port: int = 8731, workers: int = 0) -> None:
    """Makes the world, serves it, runs the pipeline on it and prints what came of it."""
    world = WorldConfig(num_scenes=scenes or NUM_SCENES)
    config = demo_config(workspace, port=port, workers=workers)
    pictures = make_world(world)
    storage = open_workspace(workspace)
    if not storage.is_local:
        raise ConfigError(f"the demo trains, and serves its web from its workspace: it needs a local folder, not {workspace}")
    with DemoServer(world, port), by_hand():
        prepare_world(storage, world, pictures, port)
        # For whoever wants to label, audit or sample in it: every other command takes a config.
        storage.write_text(CONFIG, yaml.safe_dump(plain(config), sort_keys=False))
        pipeline(config)
    print_summary(workspace)
    click.echo(f"Config: {storage.full(CONFIG)}, for further commands, such as `winnow filter card CONFIG people`")


def demo_config(workspace: str, *, port: int, workers: int = 0) -> RunConfig:
    """The demo's settings."""
    folder = os.path.join(os.path.abspath(workspace), "world")
    return RunConfig(
        workspace=os.path.abspath(workspace),
        manifest=os.path.join(folder, "manifest.yaml"),
        workers=workers,
        partition_rows=1_000,
        download=DownloadConfig(allow=(f"127.0.0.1:{port}",), timeout_seconds=5, retry_pause_seconds=0.5),
        embed=ClipConfig(model=DEMO),
        labels=os.path.join(folder, "truth.parquet"),
        imports={"hate_symbol": os.path.join(folder, "hate_symbol")},
        learn=LearnConfig(
            plan=LabelPlan(random_labels=6_000, text_search_labels=300, boundary_labels=200),
            # With some 420 positives the least of them alone would be the threshold of a miss rate of 1 %, and one odd picture
            # would cost half of the clean ones; with more than 628 it is the third.
            split=SplitConfig(calibrate_share=0.65, test_share=0.15),
        ),
        shard=ShardConfig(shard_samples=1_000),
        train=("demo-base", "demo-noised-clip"),
        sample=SampleConfig(recipe="demo-base", num_prompts=64, steps="ddim20"),
    )


def prepare_world(storage: Storage, world: WorldConfig, pictures: list[Scene], port: int) -> None:
    """Writes `world/`: the list of urls and its manifest, the truth that answers for a labeller, the curated emblems."""
    wanted = digest({"world": world, "port": port, "imports": NUM_IMPORTS})
    marker = "world/world.json"
    if storage.exists(marker) and json.loads(storage.read_bytes(marker)) == {"digest": wanted}:
        return
    base_url = f"http://127.0.0.1:{port}"
    with storage.scratch() as scratch:
        write_url_list(pictures, base_url, scratch / "urls.parquet")
        write_truth(pictures, base_url, scratch / "truth.parquet")
        storage.put(scratch / "urls.parquet", "world/urls.parquet")
        storage.put(scratch / "truth.parquet", "world/truth.parquet")
    storage.write_bytes("world/manifest.yaml", MANIFEST.read_bytes())
    storage.remove_folder("world/hate_symbol")
    for picture in emblem_images(world, NUM_IMPORTS, seed=1):
        storage.write_bytes(f"world/hate_symbol/{Path(picture.name).name}", picture.data)
    storage.write_text(marker, json.dumps({"digest": wanted}) + "\n")
