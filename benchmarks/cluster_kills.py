"""Runs the pipeline on a Ray cluster of several nodes, kills a whole node with SIGKILL in each stage, and compares every byte.

    .venv/bin/python -m benchmarks.cluster_kills --folder /tmp/cluster-kills

A head without CPUs and two worker nodes (benchmarks/local_cluster.py), joined by RAY_ADDRESS and a token, as on a real cluster. The
same stages run twice on the demo's world, cut into many small partitions: undisturbed, and with a node killed in the middle of
each, and replaced by a new one. Then everything must be up to date, and `winnow verify` must have nothing
to say.
"""

import argparse
import dataclasses
import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.local_cluster import LocalCluster
from filters.learning import LabelPlan, LearnConfig
from flows import demo
from models.recipes import RECIPES, TrainConfig
from tasks.config import RunConfig
from tasks.stages import STAGES
from winnow.demo.server import DemoServer
from winnow.demo.world import WorldConfig, make_world
from winnow.partitions import stop_ray
from winnow.storage import Storage
from winnow.verify import render, verify
from winnow.workspace import open_workspace

RECIPE = "demo-noised-clip"
TRAINING = TrainConfig(model="tiny-noised-clip", num_steps=24, batch_size=8, lr=1e-3, ema_rate=0.9, log_every=1, checkpoint_every=3)
MIDDLE = {"download": 16, "embed": 16, "duplicates": 1, "fit": 0, "score": 16, "shard": 1, "train": 0}
"""Stage -> so many receipts after it began, a node is killed; 0: fitting and training are few, long pieces, and time or steps tell."""
RUN = ("manifest", "download", "embed", "duplicates", "similarity", "fit", "score", "shard", "weigh", "train")
COMPARED = ("manifest", "raw", "embeddings", "imports", "filters", "decisions", "shards", "checkpoints")
PROMISES = {"people": 0.1, "violence": 0.1, "hate_symbol": 0.1}


def small(workspace: Path, port: int) -> RunConfig:
    config = demo.demo_config(str(workspace), port=port)
    plan = LabelPlan(random_labels=600, text_search_labels=30, boundary_labels=20)
    return dataclasses.replace(
        config,
        partition_rows=10,
        learn=LearnConfig(plan=plan, promises=PROMISES),
        shard=dataclasses.replace(config.shard, shard_samples=2, shuffle_rows=10),
        train=(RECIPE,),
        sample=dataclasses.replace(config.sample, recipe=RECIPE),
    )


def middle_of(stage: str, storage: Storage) -> Callable[[], int | None]:
    """Receipts since the stage began, once it is in its middle; None before."""
    began, before = time.monotonic(), len(storage.walk("receipts"))

    def look() -> int | None:
        new = len(storage.walk("receipts")) - before
        if stage == "fit":
            middle = time.monotonic() - began > 2.0
        elif stage == "train":
            middle = len(list(Path(storage.full("checkpoints")).glob("*/step-*"))) >= 2
        else:
            middle = new >= MIDDLE[stage]
        return new if middle else None

    return look


def run(workspace: Path, world: WorldConfig, port: int, *, kill: bool) -> None:
    """All stages, on a cluster of its own."""
    storage = open_workspace(str(workspace))
    config = small(workspace, port)
    with DemoServer(world, port):
        demo.prepare_world(storage, world, make_world(world), port)
        with LocalCluster(nodes=2, cpus=1) as cluster:
            try:
                for stage in RUN:
                    began = time.monotonic()
                    if kill and stage in MIDDLE:
                        told = _killed_in(stage, config, storage, cluster)
                    else:
                        STAGES[stage](config)
                        told = ""
                    print(f"  {stage}: {time.monotonic() - began:.0f} s{told}", flush=True)
                again = {stage: STAGES[stage](config).ran for stage in RUN}
            finally:
                stop_ray()
    assert not any(again.values()), f"not up to date in the run after: {again}"


def _killed_in(stage: str, config: RunConfig, storage: Storage, cluster: LocalCluster) -> str:
    """Runs a stage, and kills one of the two nodes in the middle of it."""
    look = middle_of(stage, storage)
    told: list[str] = []
    finished = threading.Event()

    def killer() -> None:
        while (new := look()) is None:
            if finished.wait(0.002):
                return
        count = cluster.kill_node(cluster.workers[0])
        if not finished.is_set():
            told.append(f", a node of {count} processes killed after {new} receipts")
        cluster.add_node()  # as a cluster's operator does; training needs both

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        result = STAGES[stage](config)
    finally:
        finished.set()
        thread.join()
    if not told:
        raise SystemExit(f"{stage} ended before a node was killed in it")
    return f"{told[0]}, {result.ran} done in the end"


def digests(workspace: Path) -> dict[str, str]:
    """Of every file but logs of speed."""
    files = [path for folder in COMPARED for path in sorted((workspace / folder).rglob("*")) if path.is_file()]
    named = {str(path.relative_to(workspace)): path for path in files if path.name != "metrics.jsonl"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in named.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the workspaces go; an undisturbed run that is there is used again"
    )
    parser.add_argument("--scenes", type=int, default=640, help="pictures in the world, 10 a partition")
    parser.add_argument("--port", type=int, default=8742)
    arguments = parser.parse_args()
    RECIPES[RECIPE] = TRAINING
    demo.NUM_IMPORTS = 200
    world = WorldConfig(num_scenes=arguments.scenes, fault_share=0.02, hate_symbol_share=0.05)
    # Both have the same path while they run, so that nothing can differ for its name.
    place, reference = arguments.folder / "run", arguments.folder / "undisturbed"
    shutil.rmtree(place, ignore_errors=True)
    if not reference.exists():
        print("undisturbed", flush=True)
        run(place, world, arguments.port, kill=False)
        place.rename(reference)
    print("a node killed in each stage", flush=True)
    run(place, world, arguments.port, kill=True)

    left, right = digests(reference), digests(place)
    different = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    found = verify(open_workspace(str(place)))
    print(f"files compared: {len(left)}; differ: {different or 'none'}")
    print(f"verified: {'nothing to say' if found.ok else render(found)}")
    if different or not found.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
