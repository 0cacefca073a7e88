"""Kills the demo with SIGKILL in one stage after the other, runs it again, and compares every byte with an undisturbed run.

    .venv/bin/python -m benchmarks.kill_and_resume --folder /tmp/kills

Runs the same demo twice: undisturbed, and killed five times (in download, embed, shard, train and report, at a random moment
of each). Decision log, shards and filters must be the same in both, a final run on the killed workspace must find everything
up to date, and `winnow verify` must have nothing to say. (One worker against two: tests/test_pipeline.py.)
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("download", "embed", "shard", "train", "report")
COMPARED = ("manifest", "raw", "embeddings", "imports", "filters", "decisions", "shards")


def demo(workspace: Path, arguments: argparse.Namespace) -> list[str]:
    scenes = ["--scenes", str(arguments.scenes)] if arguments.scenes else []
    return [
        sys.executable, "-m", "flows.cli", "demo", "--workspace", str(workspace), "--port", str(arguments.port),
        *scenes,
    ]  # fmt: skip


def undisturbed(workspace: Path, arguments: argparse.Namespace) -> float:
    began = time.monotonic()
    with open(f"{workspace}.log", "a") as log:
        subprocess.run(demo(workspace, arguments), stderr=log, stdout=log, check=True)
    return time.monotonic() - began


def killed(workspace: Path, arguments: argparse.Namespace, stage: str, rng: random.Random) -> str:
    """Starts the demo, waits until a stage is at work, kills its whole process at once; says when."""
    with open(f"{workspace}.log", "a") as log:
        process = subprocess.Popen(demo(workspace, arguments), stderr=log, stdout=log)
        while not at_work(workspace, stage):
            if process.poll() is not None:
                raise SystemExit(f"the run ended (exit code {process.returncode}) before {stage} was at work: see {workspace}.log")
            time.sleep(0.02)
        wait = rng.uniform(0, {"download": 8, "embed": 5, "shard": 0.3, "train": 30, "report": 0.3}[stage])
        time.sleep(wait)
        if process.poll() is not None:
            raise SystemExit(f"the run ended within {wait:.2f} s of {stage} being at work; nothing was killed")
        process.send_signal(signal.SIGKILL)
        process.wait()
    return f"{stage}: killed {wait:.2f} s after it began"


BEFORE = {
    "download": "manifest/index.json",
    "embed": "receipts/download",
    "shard": "decisions/filters.json",
    "train": "shards/curated/index.json",
    "report": "regurgitation/summary.json",
}


def at_work(workspace: Path, stage: str) -> bool:
    """The stage before has left its last file, and this one is not done."""
    sign = workspace / BEFORE[stage]
    if not sign.exists():
        return False
    if stage == "embed":
        return len(list(sign.iterdir())) == len(list((workspace / "manifest").glob("0*.parquet")))
    if stage == "shard":
        return len(list((workspace / "receipts" / "score").glob("*"))) == len(list((workspace / "manifest").glob("0*.parquet")))
    return True


def digests(workspace: Path) -> dict[str, str]:
    files = [path for folder in COMPARED for path in sorted((workspace / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differences(one: Path, other: Path) -> list[str]:
    left, right = digests(one), digests(other)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the workspaces go; an undisturbed run that is there already is used again"
    )
    parser.add_argument("--scenes", type=int, default=0, help="pictures in the world; 0: the demo's own number")
    parser.add_argument("--port", type=int, default=8741)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    # Both workspaces have the same path while they run, so that nothing can differ for its name.
    place, reference = arguments.folder / "run", arguments.folder / "undisturbed"
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(arguments.folder, exist_ok=True)
    if not reference.exists():
        print(f"undisturbed: {undisturbed(place, arguments):.0f} s", flush=True)
        place.rename(reference)
    for stage in STAGES:
        print(killed(place, arguments, stage, rng), flush=True)
    print(f"finished after five kills: {undisturbed(place, arguments):.0f} s", flush=True)
    print(f"once more: {undisturbed(place, arguments):.0f} s", flush=True)
    last = Path(f"{place}.log").read_text().split("manifest ")[-1]
    not_up_to_date = [line for line in last.splitlines() if re.match(r"\w+ +\d+ done in", line)]
    verified = subprocess.run([sys.executable, "-m", "flows.cli", "verify", str(place)], capture_output=True, text=True)

    different = differences(reference, place)
    print(f"files compared: {len(digests(place))}")
    print(f"differ after five kills: {different or 'none'}")
    print(f"not up to date in the run after: {not_up_to_date or 'none'}")
    print(f"winnow verify: exit code {verified.returncode}")
    if different or not_up_to_date or verified.returncode:
        print(verified.stdout[-2000:])
        raise SystemExit(1)


if __name__ == "__main__":
    main()
