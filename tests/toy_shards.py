"""Shards of small pictures of one coloured shape each, for tests of loading and training."""

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}


def make_shards(folder: Path, *, counts: tuple[int, ...] = (20, 12), size_px: int = 40, seed: int = 0) -> str:
    """Writes `counts` samples a shard in the format that models/shard_loader.py reads; the folder as a string."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    entries = []
    for number, count in enumerate(counts):
        name = f"{number:05d}.tar"
        members = [member for sample in range(count) for member in _sample(f"{number:04d}{sample:04d}", size_px, rng)]
        write_tar(folder / name, members)
        data = (folder / name).read_bytes()
        entries.append({"name": name, "num_samples": count, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    (folder / "index.json").write_text(json.dumps({"dataset": "toy", "shards": entries}))
    return str(folder)


def give_weights(folder: str, weigh: Callable[[int], float]) -> None:
    """Weights beside shards, in the form of models/training_data.py; `weigh` is told the number of a sample in the dataset."""
    entries, first = [], 0
    for shard in json.loads((Path(folder) / "index.json").read_text())["shards"]:
        weights = np.array([weigh(first + number) for number in range(shard["num_samples"])], np.float32)
        path = Path(folder) / "weights" / f"{shard['name'].removesuffix('.tar')}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, weights)
        first += len(weights)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"shard": shard["name"], "shard_sha256": shard["sha256"], "sha256": sha256})
    (Path(folder) / "weights" / "index.json").write_text(json.dumps({"shards": entries}))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def _sample(uid: str, size_px: int, rng: random.Random) -> list[tuple[str, bytes]]:
    colour, shape = rng.choice(sorted(COLOURS)), rng.choice(["circle", "square"])
    picture = Image.new("RGB", (size_px + rng.randrange(12), size_px), rng.choice([(250, 250, 250), (20, 20, 20)]))
    left, top, side = rng.randrange(4, 12), rng.randrange(4, 12), rng.randrange(16, 24)
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if shape == "circle" else draw.rectangle)([left, top, left + side, top + side], fill=COLOURS[colour])
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=95)
    return [(f"{uid}.jpg", encoded.getvalue()), (f"{uid}.json", b"{}"), (f"{uid}.txt", f"a {colour} {shape}".encode())]
