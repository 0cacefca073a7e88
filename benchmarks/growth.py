"""How cost grows with the number of partitions, what orchestration adds, and what a nightly run costs when 1 % is new.

    .venv/bin/python -m benchmarks.growth --folder /tmp/growth

Three tables. `growth`: the same stages over 1, 10 and 100 partitions of the demo's world. `orchestration`: steps that do nothing,
on a local Ray. `nightly`: all that `winnow curate` does, over 100 partitions, with nothing new, and with one partition more. Costs
are CPU seconds of this process with steps run in it, without the start of Prefect and Ray, so that other programs matter
little; pictures are drawn by another process. Orchestration is wall time, as partitions wait for each other there.
"""

import argparse
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from filters.learning import LabelPlan, LearnConfig
from flows import demo
from tasks.config import RunConfig
from tasks.stages import STAGES
from winnow.demo.server import DemoServer
from winnow.demo.world import Scene, WorldConfig, make_world, write_url_list
from winnow.partitions import Outcome, StageRun, run_step, start_ray, stop_ray
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.workspace import open_workspace

SIZES = (1, 10, 100)
GROWING = ("manifest", "download", "embed", "duplicates", "similarity", "score", "shard")
CURATE = ("manifest", "download", "embed", "duplicates", "similarity", "fit", "score", "shard", "weigh", "drift")
"""What flows/curate.py runs, in its order."""
PROMISES = {"people": 0.1, "violence": 0.1, "hate_symbol": 0.1}


class World:
    """A served world, and workspaces that list its first pictures."""

    def __init__(self, folder: Path, rows: int, port: int) -> None:
        self.folder, self.rows, self.port = folder, rows, port
        self.config = WorldConfig(num_scenes=(max(SIZES) + 1) * rows, fault_share=0.0, hostile_share=0.0, hate_symbol_share=0.05)
        self.scenes: list[Scene] = make_world(self.config)

    def workspace(self, name: str, partitions: int) -> RunConfig:
        """A new workspace of so many partitions, nothing done."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        demo.prepare_world(open_workspace(str(path)), self.config, self.scenes, self.port)
        config = demo.demo_config(str(path), port=self.port)
        self.list_urls(config, partitions)
        plan = LabelPlan(random_labels=600, text_search_labels=30, boundary_labels=20)
        shard = dataclasses.replace(config.shard, shard_samples=self.rows, shuffle_rows=self.rows)
        return dataclasses.replace(config, partition_rows=self.rows, learn=LearnConfig(plan=plan, promises=PROMISES), shard=shard)

    def list_urls(self, config: RunConfig, partitions: int) -> None:
        listed = self.scenes[: partitions * self.rows]
        write_url_list(listed, f"http://127.0.0.1:{self.port}", f"{config.workspace}/world/urls.parquet")


def costs(config: RunConfig, stages: tuple[str, ...]) -> dict[str, tuple[float, StageRun]]:
    """Stage -> CPU seconds of this process, threads included, and what it did."""
    found = {}
    for stage in stages:
        before = time.process_time()
        result = STAGES[stage](config)
        found[stage] = (time.process_time() - before, result)
    return found


def seconds(found: dict[str, tuple[float, StageRun]]) -> float:
    return sum(cpu for cpu, _ in found.values())


def growth(world: World) -> dict[str, Any]:
    """CPU seconds by number of partitions. Without filters: what people label does not grow with partitions."""
    costs(unfiltered(world, "warm", 1), GROWING)  # imports and loads everything once
    rows: dict[int, dict[str, float]] = {}
    for size in SIZES:
        tries = [costs(unfiltered(world, f"growth-{size}-{turn}", size), GROWING) for turn in range({1: 5, 10: 3}.get(size, 1))]
        rows[size] = {stage: median(one[stage][0] for one in tries) for stage in GROWING}
    return {"cpu_seconds": rows, "most_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def unfiltered(world: World, name: str, partitions: int) -> RunConfig:
    return dataclasses.replace(world.workspace(name, partitions), filters=(), imports={}, labels=None)


def nightly(world: World) -> dict[str, Any]:
    """CPU seconds of everything that the nightly flow does: from nothing, again, and with 1 % more rows."""
    size = max(SIZES)
    config = world.workspace("nightly", size)
    full = costs(config, CURATE)
    again = costs(config, CURATE)
    world.list_urls(config, size + 1)
    more = costs(config, CURATE)
    return {
        "stages": {
            stage: {"full": full[stage][0], "again": again[stage][0], "more": more[stage][0], "ran": more[stage][1].ran} for stage in CURATE
        },
        "full": seconds(full),
        "again": seconds(again),
        "more": seconds(more),
        "share": seconds(more) / seconds(full),
    }


def nothing(storage: Storage, name: str, **unused: Any) -> Outcome:
    return Outcome(outputs=(), counts={"rows": 1})


def orchestration(folder: Path, sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """Milliseconds that a partition costs when its step does nothing, and this process's memory afterwards."""
    start_ray(2)
    rows = []
    try:
        run_step(nothing, [Work(name="warm", inputs={})], Storage(str(folder / "warm")), stage="nothing", version=1, workers=2)
        for size in sizes:
            storage = Storage(str(folder / f"nothing-{size}"))
            works = [Work(name=f"{number:06d}", inputs={"in": "1"}) for number in range(size)]
            began, cpu = time.monotonic(), time.process_time()
            run_step(nothing, works, storage, stage="nothing", version=1, workers=2)
            wall, cpu = time.monotonic() - began, time.process_time() - cpu
            began = time.monotonic()
            run_step(nothing, works, storage, stage="nothing", version=1, workers=2)
            rows.append({"partitions": size, "ms": 1000 * wall / size, "driver_cpu_ms": 1000 * cpu / size,
                         "up_to_date_ms": 1000 * (time.monotonic() - began) / size, "memory_mib": resident_mib()})  # fmt: skip
    finally:
        stop_ray()
    return rows


def resident_mib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def tell(parts: dict[str, Any], rows: int) -> None:
    if "growth" in parts:
        table = parts["growth"]["cpu_seconds"]
        print("\nCPU seconds        " + "".join(f"{size:>9}" for size in SIZES) + "   10 -> 100")
        for stage in (*GROWING, "all"):
            values = [sum(table[size].values()) if stage == "all" else table[size][stage] for size in SIZES]
            print(f"{stage:<19}" + "".join(f"{value:9.2f}" for value in values) + f"{values[2] / max(values[1], 1e-9):9.2f}")
    if "nightly" in parts:
        found = parts["nightly"]
        print(f"\nCPU seconds          full    again     +1 %   partitions done ({rows} rows a partition)")
        for stage, one in found["stages"].items():
            print(f"{stage:<16}{one['full']:9.2f}{one['again']:9.2f}{one['more']:9.2f}{one['ran']:8d}")
        print(f"{'all':<16}{found['full']:9.2f}{found['again']:9.2f}{found['more']:9.2f}   {found['share']:.2%} of the full run")
    if "orchestration" in parts:
        print("\nsteps that do nothing, on Ray: partitions, ms each, driver's CPU ms each, up to date ms each, driver's MiB")
        for row in parts["orchestration"]:
            print(f"{row['partitions']:8d}{row['ms']:8.2f}{row['driver_cpu_ms']:8.2f}{row['up_to_date_ms']:8.3f}{row['memory_mib']:6d}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, required=True, help="where the workspaces go; what is there is removed")
    parser.add_argument("--rows", type=int, default=30, help="of a partition")
    parser.add_argument("--port", type=int, default=8743)
    parser.add_argument("--only", choices=("growth", "nightly", "orchestration"), help="one of the tables")
    arguments = parser.parse_args()
    if arguments.only is None:
        shutil.rmtree(arguments.folder, ignore_errors=True)
        for part in ("growth", "nightly", "orchestration"):  # each with the memory of its own process
            subprocess.run([sys.executable, "-m", "benchmarks.growth", "--only", part, *sys.argv[1:]], check=True)
        return
    parts: dict[str, Any] = {}
    if arguments.only == "orchestration":
        parts["orchestration"] = orchestration(arguments.folder, (100, 1_000, 4_000))
    else:
        demo.NUM_IMPORTS = 200 if arguments.only == "nightly" else 1
        RunConfig.num_workers = property(lambda self: 0)  # type: ignore[assignment]  # steps run here, where their CPU time is counted
        world = World(arguments.folder, arguments.rows, arguments.port)
        with DemoServer(world.config, arguments.port):
            parts[arguments.only] = growth(world) if arguments.only == "growth" else nightly(world)
    tell(parts, arguments.rows)
    print(json.dumps(parts))


if __name__ == "__main__":
    main()
