"""Kills a download with SIGKILL at random moments, again and again, and compares what it ends with to an undisturbed one.

    .venv/bin/python -m benchmarks.download_kills --photos PHOTOS --folder /tmp/kills

A server in a process of its own counts what it is asked for. The same partitions are downloaded undisturbed, and by a process that is
killed `--kills` times and started again each time. Counted: files that differ, tars that are cut, files that were seen under a final
name but not whole after any of the kills, and requests beyond one for each url, beside what was under way when the process died.
"""

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.download import Child

PARTITIONS = 4


def listed(storage_url: str, base: str, count: int) -> list[str]:
    """Writes manifest parts; their names."""
    import pyarrow as pa

    from winnow.storage import Storage
    from winnow.tables import write_table

    names = [f"p-{number}" for number in range(PARTITIONS)]
    columns = ("uid", "url", "caption", "source", "licence", "sha256")
    schema = pa.schema([(column, pa.string()) for column in columns])
    for number, name in enumerate(names):
        urls = [f"{base}/{position}/x.jpg" for position in range(number, count, PARTITIONS)]
        rows = sorted((hashlib.sha256(url.encode()).hexdigest()[:32], url, "a caption", "web", "none", None) for url in urls)
        table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)
        write_table(Storage(storage_url), f"manifest/{name}.parquet", table)
    return names


def download(workspace: str, address: str, threads: int) -> None:
    from winnow.download import VERSION, download_partition, plan_downloads
    from winnow.download_config import DownloadConfig
    from winnow.fetching import downloader_class
    from winnow.partitions import run_step
    from winnow.storage import Storage

    downloader_class()
    print("ready", flush=True)
    works = plan_downloads([f"p-{number}" for number in range(PARTITIONS)], DownloadConfig(allow=(address,), threads=threads))
    run_step(download_partition, works, Storage(workspace), stage="download", version=VERSION)


def start(workspace: Path, base: str, threads: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.download_kills", "--worker", base.split("/")[2], "--folder", str(workspace)]
    process = subprocess.Popen([*command, "--threads", str(threads)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def cut_files(workspace: Path) -> list[str]:
    """Files under a final name that are not whole."""
    import pyarrow.parquet as pq

    from winnow.errors import ShardError
    from winnow.tars import read_members

    found = []
    for path in sorted((workspace / "raw").glob("*")):
        try:
            if path.suffix == ".tar":
                sum(1 for _ in read_members(path))
            else:
                pq.read_table(path)
        except (ShardError, OSError, ValueError) as problem:
            found.append(f"{path.name}: {problem}")
    return found


def digests(workspace: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((workspace / "raw").glob("*"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=Path, help="a folder with JPEGs")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2_000, help="urls")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds before each answer of the server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        download(str(arguments.folder), arguments.worker, arguments.threads)
        return
    rng = random.Random(arguments.seed)
    server = Child("benchmarks.photo_server", "--photos", str(arguments.photos), "--count", "1000", "--delay", str(arguments.delay))
    base = f"http://127.0.0.1:{server.read()[0]}"
    workspaces = {name: arguments.folder / name for name in ("undisturbed", "killed")}
    for path in workspaces.values():
        shutil.rmtree(path, ignore_errors=True)
        listed(str(path), base, arguments.count)

    began = time.monotonic()
    if start(workspaces["undisturbed"], base, arguments.threads).wait() != 0:
        raise SystemExit("the undisturbed download failed")
    seconds = time.monotonic() - began
    before = int(server.ask("")[0])
    assert before == arguments.count, (before, arguments.count)

    # Kills spread over the whole download, however fast this machine is: at random numbers of requests.
    moments = sorted(rng.randrange(1, arguments.count) for _ in range(arguments.kills))
    cut, late = [], 0
    for moment in moments:
        process = start(workspaces["killed"], base, arguments.threads)
        while int(server.ask("")[0]) - before < moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        late += process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        cut += cut_files(workspaces["killed"])
    if start(workspaces["killed"], base, arguments.threads).wait() != 0:
        raise SystemExit("the download after the kills failed")
    time.sleep(1.0)
    asked = int(server.ask("")[0]) - before
    server.close()

    one, other = digests(workspaces["undisturbed"]), digests(workspaces["killed"])
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    again = asked - arguments.count
    print(f"urls: {arguments.count}, in {PARTITIONS} partitions; undisturbed {seconds:.1f} s")
    print(f"killed {arguments.kills - late} times, at requests {moments}")
    print(f"files under a final name that were not whole, after any of the kills: {cut or 'none'}")
    print(f"files that differ, of {len(one)}: {different or 'none'}")
    print(
        f"asked for a second time: {again} in all, {again / (arguments.kills - late):.1f} a kill; under way at a time: {arguments.threads}"
    )
    if different or cut or again > 2 * arguments.threads * (arguments.kills - late):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
