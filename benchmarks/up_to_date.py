"""How long a stage takes to see that all its partitions are up to date, on a disk and on an object store, and in how much memory.

    .venv/bin/python -m benchmarks.up_to_date --partitions 250 2500 25000

Plants a receipt for each partition, as a finished stage leaves them, and runs the stage: nothing is to be done. Twice: without the
file of counts (winnow/tallies.py), which is then made again from all receipts, and with it, as every later run finds it. Each
run is a process of its own. The object store is the tests' S3 server on this machine: it shows the number of requests, not a network.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.s3_server import BUCKET, KEYS, serving_s3
from winnow.partitions import Outcome, run_step
from winnow.receipts import Receipt, Work, write_receipt
from winnow.storage import Storage
from winnow.tallies import Tally

STAGE = "bench"
VERSION = 1
LIMIT_SECONDS = 30.0
"""What an up-to-date check over 25,000 partitions may take."""


def never(storage: Storage, name: str, **arguments: object) -> Outcome:
    raise AssertionError(f"{name} is up to date and was done again")


def work_of(number: int) -> Work:
    name = f"{number:05d}-{number:08x}"
    return Work(name=name, inputs={"raw": f"{number:016x}"}, arguments={"config": {"model": "ViT-B-16", "crops": 3}})


def plant(storage: Storage, count: int, *, counts: bool) -> None:
    """Receipts of a finished stage, of the size that real ones have (about 700 bytes); with the file of their counts, if asked for."""

    def one(number: int) -> Receipt:
        work = work_of(number)
        path = f"embeddings/{work.name}.parquet"
        receipt = Receipt(
            stage=STAGE, partition=work.name, fingerprint=work.fingerprint(STAGE, VERSION), version=VERSION, inputs=dict(work.inputs),
            arguments=dict(work.arguments), outputs={path: {"sha256": f"{number:064x}", "bytes": 10_000_000 + number}},
            counts={"embedded": 9_800, "undecodable": 3}, facts={"device": "cpu", "precision": "float32", "torch": "2"}, seconds=1.5,
        )  # fmt: skip
        write_receipt(storage, receipt)
        return receipt

    tally, finished = Tally(storage, STAGE), []
    with ThreadPoolExecutor(16) as pool:
        for receipt in pool.map(one, range(count)):
            tally.add(receipt)
            finished.append(receipt.done)
    if counts:
        tally.settle(finished)


def check(url: str, count: int) -> dict[str, float]:
    """In a process of its own: the stage over partitions that are all up to date."""
    storage = Storage(url)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.monotonic(), time.process_time()
    result = run_step(never, (work_of(number) for number in range(count)), storage, stage=STAGE, version=VERSION)
    assert (result.ran, result.skipped, result.counts["embedded"]) == (0, count, 9_800 * count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu, "grown_mb": (peak - before) / 1024}


def measured(url: str, count: int, server: int | None) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.up_to_date", "--check", url, str(count)]
    before = cpu_of(server)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout), "server": cpu_of(server) - before}


def cpu_of(pid: int | None) -> float:
    """CPU seconds of a process so far."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(run: dict[str, float] | None) -> str:
    if run is None:
        return "-"
    server = f" + {run['server']:.1f} of the server" if run["server"] else ""
    return f"{run['seconds']:.2f} s ({run['cpu']:.2f} CPU{server}), +{run['grown_mb']:.0f} MB"


@contextmanager
def store(where: str) -> Iterator[tuple[str, int | None]]:
    """Where to write, and the process of the server behind it."""
    if where == "disk":
        with tempfile.TemporaryDirectory() as folder:
            yield folder, None
        return
    with serving_s3() as server:
        os.environ.update(KEYS | {"AWS_ENDPOINT_URL": server.endpoint})
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}", server.pid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, nargs="+", default=[250, 2_500, 25_000])
    parser.add_argument("--where", nargs="+", choices=("disk", "s3"), default=["disk", "s3"])
    parser.add_argument("--counts", action="store_true", help="plant the file of counts, too: only the second column is measured")
    parser.add_argument("--check", nargs=2, metavar=("URL", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        print(json.dumps(check(arguments.check[0], int(arguments.check[1]))))
        return
    print(f"{'where':<6} {'partitions':>10}  {'counts made again':>48}  {'up to date':>48}")
    for where in arguments.where:
        with store(where) as (root, server):
            for count in arguments.partitions:
                url = f"{root}/{count}"
                plant(Storage(url), count, counts=arguments.counts)
                first, then = None if arguments.counts else measured(url, count, server), measured(url, count, server)
                print(f"{where:<6} {count:>10,}  {told(first):>48}  {told(then):>48}", flush=True)
                if then["cpu"] + then["server"] > LIMIT_SECONDS:  # of both, one after the other: does not depend on other work
                    raise SystemExit(f"{count:,} partitions took {then['cpu'] + then['server']:.1f} s, more than {LIMIT_SECONDS:.0f} s")


if __name__ == "__main__":
    main()
