"""One partition of images -> one file of features: `raw/<p>.tar` -> `embeddings/<p>.parquet`.

Rows are sorted by uid; an image that cannot be decoded has no row and is counted. Batches are cut from the partition's own
order, on one CPU thread or one GPU: the float16 bytes do not depend on how many partitions or decoding
threads run at a time (docs/embedding.md tells what they do depend on).
"""

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.ahead import in_order
from models.clip_embedder import DEMO, Clip, ClipConfig, Weights, loaded_clip
from models.crop_stream import embed_crops
from models.crops import cut, decode, difference_hash, luminance, opencv_version, resized
from models.precision import device_kind
from winnow.digests import digest
from winnow.errors import CheckpointError, ConfigError
from winnow.forgotten import forgotten_uids
from winnow.partitions import Outcome
from winnow.storage import Storage
from winnow.tables import write_table
from winnow.workspace import embeddings, raw_tar

VERSION = 2
"""2: OpenCV's decoder and torch's resizing, within 2/255 of the pixels of version 1; hash and brightness of the scaled picture."""


def feature_digest(config: ClipConfig, weights_sha256: str) -> str:
    """Names the feature space: features of different digests never mix."""
    parts = {"weights": weights_sha256, "model": config.model, "precision": config.precision, "version": VERSION}
    if config.model != DEMO:
        parts["pretrained"] = config.pretrained  # the tag decides the activation, whatever file the weights came from
    return digest(parts)


def embed_partition(
    storage: Storage, name: str, *, config: ClipConfig, weights_sha256: str, weights_path: str, threads: int = 0
) -> Outcome:
    """Writes the features of a partition's images.

    Args:
        threads: that decode beside the network; they change no byte.

    Raises:
        CheckpointError: this machine's weights are not the ones the run was planned with.
    """
    from winnow.shards import read_samples

    clip = clip_here(config, weights_sha256, weights_path)
    with storage.local_file(raw_tar(name)) as tar:
        samples = ((sample.uid, sample.image) for sample in read_samples(tar))
        table, counts = embed_table(clip, samples, config.batch_crops, threads=threads)
    return Outcome.of(write_table(storage, embeddings(name), table), counts=counts, facts=_facts(clip))


def embed_folder(
    storage: Storage, name: str, *, folder: str, config: ClipConfig, weights_sha256: str, weights_path: str, threads: int = 0
) -> Outcome:
    """Features of a folder of images, for a filter whose positives are curated: `imports/<filter>.parquet`. A uid is the hash of the bytes.

    Raises:
        ConfigError: the folder holds no image that can be decoded.
    """
    clip = clip_here(config, weights_sha256, weights_path)
    gone = forgotten_uids(storage).get(f"imports/{name}", {})
    files = {uid: file for uid, file in folder_images(folder).items() if uid not in gone}
    names = {uid: file.name for uid, file in files.items()}
    samples = ((uid, file.read_bytes()) for uid, file in files.items())
    table, counts = embed_table(clip, samples, config.batch_crops, threads=threads)
    if table.num_rows == 0:
        raise ConfigError(f"{folder} holds no image that can be decoded; {name} needs its curated positives there (imports: in the config)")
    table = table.append_column("name", pa.array([names[uid] for uid in table["uid"].to_pylist()], pa.string()))
    written = write_table(storage, f"imports/{name}.parquet", table)
    counts["imported"] = counts.pop("embedded")
    return Outcome.of(written, counts=counts, facts=_facts(clip))


def folder_images(folder: str) -> dict[str, Path]:
    """uid -> file of every file in a folder, sorted by uid; the same bytes under two names count once."""
    import hashlib

    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"there is no folder {folder} (imports: in the config)")
    files = {hashlib.sha256(file.read_bytes()).hexdigest()[:32]: file for file in sorted(root.iterdir()) if file.is_file()}
    return dict(sorted(files.items()))


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """All of an image's row but its feature, and the crops that this is computed from."""

    row: dict[str, Any]
    crops: np.ndarray
    by: str
    """Who decoded it."""


def embed_table(
    clip: Clip, samples: Iterable[tuple[str, bytes]], batch_crops: int = 0, *, threads: int = 0
) -> tuple[pa.Table, dict[str, int]]:
    """(uid, encoded image) pairs -> table of uid, feature, dhash, width, height, luminance; and counts for the receipt.

    Args:
        threads: that decode beside the network; the table is the same whatever their number.

    Returns:
        counts: `embedded`, `undecodable`, and `decoded_by_pillow`, those of the first that were not plain JPEGs.
    """
    batch_crops = batch_crops or clip.batch_crops
    rows: list[dict[str, Any]] = []
    counts = {"embedded": 0, "undecodable": 0, "decoded_by_pillow": 0}

    def prepared_crops() -> Iterator[np.ndarray]:
        prepare = functools.partial(_prepared, clip.image_size_px)
        for image in in_order(prepare, samples, threads=threads, ahead=batch_crops + threads):
            if image is None:
                counts["undecodable"] += 1
                continue
            counts["decoded_by_pillow"] += image.by == "pillow"
            rows.append(image.row)
            yield image.crops

    # A CPU's sums are the same for batches of all sizes that occur; a GPU's are not.
    found = embed_crops(clip, prepared_crops(), batch_crops=batch_crops, same_shape=clip.device.type != "cpu")
    # Rounded one by one: float32 features of a partition would be the largest thing in memory.
    features = [feature.astype(np.float16) for feature in found]
    counts["embedded"] = len(features)
    matrix = np.stack(features) if features else np.empty((0, clip.dim), np.float16)
    columns = {
        "uid": pa.array([row["uid"] for row in rows], pa.string()),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), clip.dim),
        "dhash": pa.array([row["dhash"] for row in rows], pa.int64()),
        "width": pa.array([row["width"] for row in rows], pa.int32()),
        "height": pa.array([row["height"] for row in rows], pa.int32()),
        "luminance": pa.array([row["luminance"] for row in rows], pa.float32()),
    }
    return pa.table(columns), counts


def _prepared(size_px: int, sample: tuple[str, bytes]) -> _Prepared | None:
    """None if the image cannot be decoded. Hash and brightness are those of the picture as it was scaled for CLIP."""
    from PIL import Image

    uid, data = sample
    decoded = decode(data)
    if decoded is None:
        return None
    small = resized(decoded.pixels, size_px)
    grey = Image.fromarray(small).convert("L")
    height, width = decoded.pixels.shape[:2]
    row = {"uid": uid, "dhash": difference_hash(grey), "width": width, "height": height, "luminance": luminance(grey)}
    return _Prepared(row, cut(small, size_px), decoded.by)


def clip_here(config: ClipConfig, weights_sha256: str, weights_path: str) -> Clip:
    """The run's CLIP in this process, on one thread, loaded once.

    Raises:
        CheckpointError: this machine's weights are not the ones the run was planned with.
    """
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
    """What a feature's last bits depend on besides the weights (whose digest is among the receipt's arguments)."""
    versions = {package: metadata.version(package) for package in ("torch", "open_clip_torch", "pillow", "numpy")} | {
        "opencv": opencv_version()
    }
    return {
        "device": clip.device.type,
        "device_kind": device_kind(clip.device),
        "precision": clip.precision,
        "dim": clip.dim,
        **versions,
    }
