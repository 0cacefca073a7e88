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


def measured(url: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.up_to_date", "--check", url, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def told(run: dict[str, float] | None) -> str:
    return "-" if run is None else f"{run['seconds']:.2f} s ({run['cpu']:.2f} CPU), +{run['grown_mb']:.0f} MB"


@contextmanager
def store(where: str) -> Iterator[str]:
    if where == "disk":
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    with serving_s3() as server:
        os.environ.update(KEYS | {"AWS_ENDPOINT_URL": server.endpoint})
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


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
    print(f"{'where':<6} {'partitions':>10}  {'counts made again':>32}  {'up to date':>32}")
    for where in arguments.where:
        with store(where) as root:
            for count in arguments.partitions:
                url = f"{root}/{count}"
                plant(Storage(url), count, counts=arguments.counts)
                first, then = None if arguments.counts else measured(url, count), measured(url, count)
                print(f"{where:<6} {count:>10,}  {told(first):>32}  {told(then):>32}", flush=True)
                if then["seconds"] > LIMIT_SECONDS:
                    raise SystemExit(f"the check took {then['seconds']:.1f} s, more than {LIMIT_SECONDS:.0f} s")


if __name__ == "__main__":
    main()
