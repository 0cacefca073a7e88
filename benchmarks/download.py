"""CPU seconds an image of the download, beside plain img2dataset: the same photos, the same server, turn by turn.

    .venv/bin/python -m benchmarks.download --photos PHOTOS --folder /tmp/download

Each contestant is a process that fetches the same list into a fresh folder whenever it is told to, and says how much CPU it took,
reading the list and writing tar and table included, imports not. The server is a process of its own. Contestants:

    ours         as the product downloads: guard, robots.txt, every JPEG followed to its end, sha256, journal, tar, table, receipt
    decoding     the same with decode_all
    same         img2dataset with resize_mode "no" and skip_reencode: the same output, JPEGs as they came, each of them decoded once
    blind        img2dataset with disable_all_reencoding: the same bytes, looked at by nobody
    default      img2dataset as it comes: resized to 256 px with a border, encoded anew

img2dataset is called without its spawning of processes (its Downloader, resizer and writer for webdataset, 32 threads each).
"""

import argparse
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

CONTESTANTS = ("ours", "decoding", "same", "blind", "default")
SERVERS = {"http": (), "http, closing": ("--closing",), "https": ("--tls",), "https, closing": ("--tls", "--closing")}
THREADS = 32


def ours(urls: list[str], folder: Path, **settings: bool) -> int:
    import hashlib

    import pyarrow as pa

    from winnow.download import VERSION, download_partition, plan_downloads
    from winnow.download_config import DownloadConfig
    from winnow.partitions import run_step
    from winnow.storage import Storage
    from winnow.tables import write_table

    storage = Storage(str(folder))
    rows = sorted((hashlib.sha256(url.encode()).hexdigest()[:32], url, "a caption", "web", "none", None) for url in urls)
    names = ("uid", "url", "caption", "source", "licence", "sha256")
    schema = pa.schema([(name, pa.string()) for name in names])
    write_table(storage, "manifest/p-0.parquet", pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema))
    address = urls[0].split("/")[2]
    works = plan_downloads(["p-0"], DownloadConfig(allow=(address,), threads=THREADS, timeout_seconds=60, **settings))
    return run_step(download_partition, works, storage, stage="download", version=VERSION).counts["downloaded"]


def theirs(urls: list[str], folder: Path, **resizing: object) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    feed = str(folder / "shard.feather")
    with pa.OSFile(feed, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table([urls, ["a caption"] * len(urls)], schema=schema))
    Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(**{"image_size": 256, "resize_mode": "border", "resize_only_if_bigger": False, **resizing}),  # type: ignore[arg-type]
        thread_count=THREADS,
        save_caption=True,
        extract_exif="disable_all_reencoding" not in resizing and "skip_reencode" not in resizing,
        output_folder=str(folder),
        column_list=["url", "caption"],
        timeout=60,
        number_sample_per_shard=len(urls),
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    ).download_shard((0, feed))
    table = pq.read_table(str(folder / "00000.parquet"))
    return sum(status == "success" for status in table["status"].to_pylist())


WORK: dict[str, Callable[[list[str], Path], int]] = {
    "ours": ours,
    "decoding": lambda urls, folder: ours(urls, folder, decode_all=True),
    "same": lambda urls, folder: theirs(urls, folder, resize_mode="no", skip_reencode=True),
    "blind": lambda urls, folder: theirs(urls, folder, disable_all_reencoding=True),
    "default": theirs,
}


def contestant(name: str, folder: Path) -> None:
    """Fetches whenever a line tells how many from where; answers with CPU seconds, wall seconds, images and MB of memory."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what img2dataset prints is no answer
    for line in sys.stdin:
        base, first, count = line.split()
        urls = [f"{base}/{number}/{name}.jpg" for number in range(int(first), int(first) + int(count))]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began, wall = time.process_time(), time.monotonic()
        done = WORK[name](urls, folder)
        spent = time.process_time() - began
        print(spent, time.monotonic() - wall, done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=out, flush=True)


class Child:
    """A process that answers a line for a line."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1", **(environment or {})},
        )

    def ask(self, line: str) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> list[str]:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().split()
        if not answer:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended early")  # type: ignore[arg-type]
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        self.process.terminate()
        self.process.wait(30)


def authorities(folder: Path) -> dict[str, str]:
    """Environment in which TLS trusts the usual authorities and the server's certificate."""
    import certifi

    bundle = folder / "authorities.pem"
    bundle.write_text(Path(certifi.where()).read_text() + (folder / "cert.pem").read_text().partition("-----BEGIN PRIVATE")[0])
    return {"SSL_CERT_FILE": str(bundle)}


def compare(kind: str, arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
    options = [str(option) if option != "--tls" else f"--tls={folder}" for option in SERVERS[kind]]
    server = Child("benchmarks.photo_server", "--photos", str(arguments.photos), *options)
    base = f"{'https' if '--tls' in SERVERS[kind] else 'http'}://127.0.0.1:{server.read()[0]}"
    environment = authorities(folder) if "--tls" in SERVERS[kind] else {}
    names = [name for name in CONTESTANTS if name in arguments.contestants]
    children = {
        name: Child("benchmarks.download", "--contestant", name, "--folder", str(folder / name), environment=environment) for name in names
    }
    spent: dict[str, list[float]] = {name: [] for name in names}
    walls: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    try:
        for turn in range(arguments.turns + 1):
            for name in names:
                seconds, wall, done, most = children[name].ask(f"{base} {turn * arguments.count} {arguments.count}")
                if int(done) != arguments.count:
                    raise SystemExit(f"{name} got {done} of {arguments.count} photos")
                memory[name] = float(most)
                if turn:  # the first one is for imports and caches
                    spent[name].append(float(seconds) / arguments.count)
                    walls[name].append(float(wall) / arguments.count)
    finally:
        for child in (*children.values(), server):
            child.close()
    for name in names:
        ratio = median(theirs / mine for theirs, mine in zip(spent[name], spent["ours"], strict=True))
        print(
            f"{kind:<15} {name:<8} {1e3 * median(spent[name]):7.2f} ms of CPU an image, {1e3 * median(walls[name]):6.2f} ms of wall,"
            f" {ratio:6.2f} times ours, {memory[name]:5.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=Path, help="a folder with JPEGs")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000, help="images a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--servers", nargs="*", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--contestants", nargs="*", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        contestant(arguments.contestant, arguments.folder)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for kind in arguments.servers:
        compare(kind, arguments)


if __name__ == "__main__":
    main()
