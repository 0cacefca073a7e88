"""Resharding against a webdataset loop and a plain copy: CPU seconds for the same samples, interleaved, best of several.

    python benchmarks/reshard.py --photos FOLDER --samples 3000

Real photos (any folder of JPEGs; each is used again until there are enough samples) are laid into raw tars as the download leaves them.
Timed is what turns them into shards: the shard stage's step as it is (shuffled, hashed, with sidecars), the same when nothing has
changed, a webdataset read -> ShardWriter loop over the same tars in their order, and `cp` of the tars. Nothing is on a cold disk.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from winnow.decisions import schema
from winnow.manifest import sample_uid
from winnow.resharding import write_group
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.tars import TarWriter
from winnow.workspace import decisions, raw_tar

SHARD_SAMPLES = 1000


def make_raw(storage: Storage, photos: Path, samples: int, partitions: int) -> list[str]:
    """Raw tars and decision logs that keep every sample; names of the partitions."""
    files = [file.read_bytes() for file in sorted(photos.glob("**/*.jpg"))]
    assert files, f"{photos} holds no .jpg"
    names = []
    numbers = iter(range(samples))
    for number in range(partitions):
        name = f"{number:05d}-aaaaaaaa"
        rows = sorted((sample_uid(f"http://example.org/{i}", f"photo {i}"), i) for i in itertools.islice(numbers, samples // partitions))
        with storage.scratch() as scratch:
            with open(scratch / "t", "wb") as stream:
                tar = TarWriter(stream)
                for uid, i in rows:
                    tar.add(f"{uid}.jpg", files[i % len(files)])
                    tar.add(f"{uid}.txt", f"photo {i}".encode())
                    tar.add(f"{uid}.json", json.dumps({"uid": uid, "url": f"http://example.org/{i}"}).encode())
                tar.close()
            storage.put(scratch / "t", raw_tar(name))
        columns = [[uid for uid, _ in rows], ["kept"] * len(rows), [[] for _ in rows]]
        write_table(storage, decisions(name), pa.table(columns, schema=schema([])))
        names.append(name)
    return names


def ours(storage: Storage, names: list[str]) -> None:
    write_group(storage, "00000", dataset="ours", shard_samples=SHARD_SAMPLES, seed=0, partitions=names, holes=())


def webdataset_loop(storage: Storage, names: list[str]) -> None:
    import webdataset

    out = Path(storage.full("theirs"))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    paths = [storage.full(raw_tar(name)) for name in names]
    with warnings.catch_warnings(), webdataset.ShardWriter(f"{out}/%05d.tar", maxcount=SHARD_SAMPLES, verbose=0) as sink:
        warnings.simplefilter("ignore", ResourceWarning)
        for sample in webdataset.WebDataset(paths, shardshuffle=False):
            sink.write({key: value for key, value in sample.items() if not key.startswith("__") or key == "__key__"})


def plain_copy(storage: Storage, names: list[str]) -> None:
    for name in names:
        shutil.copyfile(storage.full(raw_tar(name)), storage.full("copy.tar"))


def seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=None, help="Where the tars go.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        storage = Storage(folder)
        names = make_raw(storage, options.photos, options.samples, 4)
        size = sum(storage.size(raw_tar(name)) for name in names)
        runs: dict[str, Callable[[], None]] = {
            "shard stage": lambda: (storage.remove_folder("shards"), ours(storage, names))[1],
            "shard stage, nothing changed": lambda: ours(storage, names),
            "webdataset loop": lambda: webdataset_loop(storage, names),
            "copy": lambda: plain_copy(storage, names),
        }
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(options.rounds):
            for name, run in runs.items():
                best[name] = min(best[name], seconds(run))
        _check_same(storage)
    print(f"{options.samples:,} samples, {size / 1e6:,.0f} MB, {SHARD_SAMPLES:,} a shard; CPU seconds, best of {options.rounds}")
    for name, took in best.items():
        print(f"{name:<30} {took:7.3f} s  {options.samples / took:9,.0f} samples/s  {best['webdataset loop'] / took:6.2f} x webdataset")


def _check_same(storage: Storage) -> None:
    """Both made shards of the same samples, ours in another order."""

    def found(folder: str) -> dict[str, bytes]:
        members = {}
        for path in storage.walk(folder):
            if path.endswith(".tar"):
                with tarfile.open(storage.full(path)) as tar:
                    members |= {member.name: hashlib.sha256(tar.extractfile(member).read()).digest() for member in tar}  # type: ignore[union-attr]
        return members

    assert found("shards/ours") == found("theirs"), "the shards hold other samples"


if __name__ == "__main__":
    main()
