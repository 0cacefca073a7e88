"""One partition of images -> one file of features: `raw/<p>.tar` -> `embeddings/<p>.parquet`.

Rows are sorted by uid; an image that cannot be decoded has no row and is counted. Batches are cut from the partition's
own order on one CPU thread (or one GPU), so the float16 bytes do not depend on how many partitions run at a time.
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError

from models.clip_embedder import Clip, ClipConfig, Weights, embed_images, loaded_clip
from winnow.digests import digest
from winnow.errors import CheckpointError, ConfigError
from winnow.partitions import Outcome
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.workspace import embeddings, raw_tar

VERSION = 1
MAX_PIXELS = 200_000_000
"""Raw shards hold checked images; this only keeps a damaged header from asking for all memory."""


def feature_digest(config: ClipConfig, weights_sha256: str) -> str:
    """Names the feature space: features of different digests never mix."""
    return digest({"weights": weights_sha256, "model": config.model, "precision": config.precision, "version": VERSION})


def embed_partition(storage: Storage, name: str, *, config: ClipConfig, weights_sha256: str, weights_path: str) -> Outcome:
    """Writes the features of a partition's images.

    Raises:
        CheckpointError: this machine's weights are not the ones the run was planned with.
    """
    from winnow.shards import read_samples

    clip = _clip(config, weights_sha256, weights_path)
    with storage.local_file(raw_tar(name)) as tar:
        table, undecodable = embed_table(clip, ((sample.uid, sample.image) for sample in read_samples(tar)), config.batch_crops)
    path = embeddings(name)
    write_table(storage, path, table)
    return Outcome(outputs=(path,), counts={"embedded": table.num_rows, "undecodable": undecodable}, facts=_facts(clip))


def embed_folder(storage: Storage, name: str, *, folder: str, config: ClipConfig, weights_sha256: str, weights_path: str) -> Outcome:
    """Features of a folder of images, for a filter whose positives are curated: `imports/<filter>.parquet`. A uid is the hash of the bytes.

    Raises:
        ConfigError: the folder holds no image that can be decoded.
    """
    clip = _clip(config, weights_sha256, weights_path)
    files = folder_images(folder)
    names = {uid: file.name for uid, file in files.items()}
    table, undecodable = embed_table(clip, ((uid, file.read_bytes()) for uid, file in files.items()), config.batch_crops)
    if table.num_rows == 0:
        raise ConfigError(f"{folder} holds no image that can be decoded; {name} needs its curated positives there (imports: in the config)")
    table = table.append_column("name", pa.array([names[uid] for uid in table["uid"].to_pylist()], pa.string()))
    path = f"imports/{name}.parquet"
    write_table(storage, path, table)
    return Outcome(outputs=(path,), counts={"imported": table.num_rows, "undecodable": undecodable}, facts=_facts(clip))


def folder_images(folder: str) -> dict[str, Path]:
    """uid -> file of every file in a folder, sorted by uid; the same bytes under two names count once."""
    import hashlib

    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"there is no folder {folder} (imports: in the config)")
    files = {hashlib.sha256(file.read_bytes()).hexdigest()[:32]: file for file in sorted(root.iterdir()) if file.is_file()}
    return dict(sorted(files.items()))


def embed_table(clip: Clip, samples: Iterable[tuple[str, bytes]], batch_crops: int = 32) -> tuple[pa.Table, int]:
    """(uid, encoded image) pairs -> table of uid, feature, dhash, width, height, luminance; and how many could not be decoded."""
    rows: list[dict[str, Any]] = []
    undecodable = 0

    def decoded() -> Iterator[Image.Image]:
        nonlocal undecodable
        for uid, data in samples:
            image = decode(data)
            if image is None:
                undecodable += 1
                continue
            grey = image.convert("L")
            rows.append(
                {
                    "uid": uid,
                    "dhash": difference_hash(grey),
                    "width": image.width,
                    "height": image.height,
                    "luminance": float(np.asarray(grey.resize((32, 32), Image.Resampling.BOX), dtype=np.float32).mean()) / 255,
                }
            )
            yield image

    features = list(embed_images(clip, decoded(), batch_crops=batch_crops))
    matrix = np.stack(features).astype(np.float16) if features else np.empty((0, clip.dim), np.float16)
    columns = {
        "uid": pa.array([row["uid"] for row in rows], pa.string()),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), clip.dim),
        "dhash": pa.array([row["dhash"] for row in rows], pa.int64()),
        "width": pa.array([row["width"] for row in rows], pa.int32()),
        "height": pa.array([row["height"] for row in rows], pa.int32()),
        "luminance": pa.array([row["luminance"] for row in rows], pa.float32()),
    }
    return pa.table(columns), undecodable


def decode(data: bytes) -> Image.Image | None:
    """An RGB image, or None if the bytes are no image that can be decoded within MAX_PIXELS."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # the closed list of what Pillow raises for damaged files


def difference_hash(grey: Image.Image) -> int:
    """64 bits: is each pixel of a 9 x 8 miniature brighter than its right neighbour? Near-duplicates differ in few bits. Signed."""
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, :-1] > small[:, 1:])
    return int.from_bytes(bits.tobytes(), "big", signed=True)


def _clip(config: ClipConfig, weights_sha256: str, weights_path: str) -> Clip:
    torch.set_num_threads(1)  # more partitions at a time pay, more threads do not; and sums then have one order
    path = weights_path if os.path.isfile(weights_path) else None
    if path is None:
        from models.clip_embedder import resolve_weights

        found = resolve_weights(config)  # another node of the cluster: its own cache or network
        if found.sha256 != weights_sha256:
            raise CheckpointError(f"{found.path} on this machine has sha256 {found.sha256}, the run was planned with {weights_sha256}")
        path = found.path
    return loaded_clip(config, Weights(path=path, sha256=weights_sha256))


def _facts(clip: Clip) -> dict[str, Any]:
    import open_clip

    return {
        "device": clip.device.type,
        "precision": clip.precision,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "dim": clip.dim,
    }
