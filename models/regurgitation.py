"""Does the model repeat its training images? Distances in CLIP space (GLIDE, arXiv:2112.10741, section 6).

For each training prompt a sample is drawn and compared with *its* training image and with its nearest neighbour among all
kept images. A small distance asks for a person's eyes; it is not a verdict: the caption alone makes a pair similar.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.clip_embedder import ClipConfig, Weights, loaded_clip
from models.crop_stream import embed_images
from models.crops import decode
from models.sampled import read_sample_index
from winnow.errors import ConfigError, ShardError
from winnow.partitions import Outcome
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import decisions, embeddings

VERSION = 2
CHUNK_ROWS = 65_536
PAIRS = "regurgitation/pairs.parquet"
SUMMARY = "regurgitation/summary.json"


@dataclass(frozen=True)
class Neighbours:
    """The nearest kept image of each sample, and the features of the samples' own training images."""

    distance: np.ndarray
    """float32 (n,): cosine distance, 1 - cos, in [0, 2]."""
    uid: list[str]
    own: np.ndarray
    """float32 (n, dim); rows of NaN where the training image is not among the features."""


def check_regurgitation(
    storage: Storage, name: str, *, config: ClipConfig, weights_sha256: str, weights_path: str, folder: str, partitions: tuple[str, ...]
) -> Outcome:
    """Writes `regurgitation/pairs.parquet`, closest pairs first, and `regurgitation/summary.json`.

    Args:
        folder: of the samples and their index.json, relative to the workspace.
        partitions: whose kept images are searched, one in memory at a time.
    """
    import torch

    torch.set_num_threads(1)  # the order of sums, hence the last bits, depends on it
    prompts = read_sample_index(storage, folder)
    clip = loaded_clip(config, Weights(path=weights_path, sha256=weights_sha256))
    images = []
    for prompt in prompts:
        image = decode(storage.read_bytes(prompt.file))
        if image is None:
            raise ShardError(f"{storage.url}/{prompt.file} is no image. Remove it and its receipt, and run again.")
        images.append(image.pixels)
    samples = np.stack(list(embed_images(clip, images, batch_crops=config.batch_crops)))
    found = nearest_kept(samples, [prompt.uid for prompt in prompts], kept_features(storage, partitions))
    missing = [prompt.uid for prompt, own in zip(prompts, found.own, strict=True) if np.isnan(own[0])]
    if missing:
        raise ConfigError(f"{len(missing)} sampled prompts, {missing[0]} first, are not among the kept images: run `sample` again")
    own = 1 - np.einsum("nd,nd->n", samples, found.own)
    order = sorted(range(len(prompts)), key=lambda row: (float(own[row]), prompts[row].uid))
    table = pa.table(
        {
            "uid": pa.array([prompts[row].uid for row in order], pa.string()),
            "prompt": pa.array([prompts[row].text for row in order], pa.string()),
            "sample": pa.array([prompts[row].file for row in order], pa.string()),
            "distance_own": pa.array(own[order], pa.float32()),
            "nearest_uid": pa.array([found.uid[row] for row in order], pa.string()),
            "distance_nearest": pa.array(found.distance[order], pa.float32()),
        }
    )
    write_table(storage, PAIRS, table)
    summary = {
        "num_prompts": len(prompts),
        "closest_own": round(float(own.min()), 6),
        "median_own": round(float(np.median(own)), 6),
        "closest_nearest": round(float(found.distance.min()), 6),
        "median_nearest": round(float(np.median(found.distance)), 6),
        "own_is_nearest": sum(prompt.uid == uid for prompt, uid in zip(prompts, found.uid, strict=True)),
        "distance": "CLIP cosine distance, 1 - cos",
    }
    storage.write_text(SUMMARY, json.dumps(summary, sort_keys=True, indent=1) + "\n")
    return Outcome(outputs=(PAIRS, SUMMARY), counts={"pairs": len(prompts)})


def nearest_kept(samples: np.ndarray, own_uids: list[str], kept: Iterable[tuple[list[str], np.ndarray]]) -> Neighbours:
    """Exact nearest neighbours by cosine, over chunks of unit vectors.

    Args:
        samples: float32 (n, dim), unit length.
        own_uids: the training image of each sample.
        kept: (uids, float32 (m, dim)) chunks.
    """
    best = np.full(len(samples), -np.inf, np.float32)
    names = [""] * len(samples)
    own = np.full(samples.shape, np.nan, np.float32)
    wanted: dict[str, list[int]] = {}
    for row, uid in enumerate(own_uids):
        wanted.setdefault(uid, []).append(row)
    for uids, features in kept:
        cosine = samples @ features.T
        column = cosine.argmax(axis=1)
        value = cosine[np.arange(len(samples)), column]
        for closer in np.flatnonzero(value > best):
            best[closer], names[closer] = value[closer], uids[column[closer]]
        for position, uid in enumerate(uids):
            if uid in wanted:
                own[wanted[uid]] = features[position]
    return Neighbours(distance=1 - best, uid=names, own=own)


def kept_features(storage: Storage, partitions: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """(uids, unit features) of the kept images, in chunks of at most CHUNK_ROWS rows."""
    for partition in partitions:
        verdicts = read_table(storage, decisions(partition), ["uid", "verdict"])
        kept = {uid for uid, verdict in zip(verdicts["uid"].to_pylist(), verdicts["verdict"].to_pylist(), strict=True) if verdict == "kept"}
        table = read_table(storage, embeddings(partition), ["uid", "feature"])
        table = table.filter(pa.array([uid in kept for uid in table["uid"].to_pylist()], pa.bool_()))
        for start in range(0, table.num_rows, CHUNK_ROWS):
            part = table.slice(start, CHUNK_ROWS).combine_chunks()
            features = part["feature"].combine_chunks()
            matrix = features.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(part.num_rows, -1)
            yield part["uid"].to_pylist(), matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
