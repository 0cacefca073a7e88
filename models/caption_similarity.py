"""How well a caption fits its image: the cosine of their CLIP features, for every embedded image of a partition.

`caption_similarity/<p>.parquet`: uid, similarity; rows sorted by uid. Image features are those of `embeddings/<p>.parquet` (mean of three
crops). Departs from the CLIP score of DataComp (arXiv:2304.14108), which looks at the middle crop alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models import embedding
from models.clip_embedder import Clip, ClipConfig
from winnow.errors import ConfigError
from winnow.partitions import Outcome
from winnow.rules import SIMILARITY_STEP, similarity_file
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import embeddings, manifest_part

VERSION = 1
STAGE = "similarity"
TEXTS = 256
"""Captions through the network at a time."""


def compare_partition(storage: Storage, name: str, *, config: ClipConfig, weights_sha256: str, weights_path: str) -> Outcome:
    """Writes the similarities of a partition's images and captions. An image without a caption has that of the empty text.

    Raises:
        ConfigError: the embeddings are of another CLIP.
    """
    clip = embedding.clip_here(config, weights_sha256, weights_path)
    embedded = read_table(storage, embeddings(name), ["uid", "feature"])
    uids = embedded["uid"].to_pylist()
    listed = read_table(storage, manifest_part(name), ["uid", "caption"])
    captions = dict(zip(listed["uid"].to_pylist(), listed["caption"].to_pylist(), strict=True))
    flat = embedded["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    features = flat.reshape(len(uids), -1) if uids else np.zeros((0, clip.dim), np.float16)
    if features.shape[1] != clip.dim:
        raise ConfigError(
            f"{embeddings(name)} has features of {features.shape[1]} dimensions, {config.model} gives {clip.dim}: run `winnow embed CONFIG`"
        )
    similarity = similarities(clip, features, [captions[uid] or "" for uid in uids])
    table = pa.table({"uid": pa.array(uids, pa.string()), "similarity": pa.array(similarity, pa.float32())})
    written = write_table(storage, similarity_file(name), table)
    facts: dict[str, Any] = {"device": clip.device.type, "precision": clip.precision, "torch": torch.__version__}
    return Outcome.of(written, counts={"compared": len(uids)}, facts=facts)


def similarities(clip: Clip, features: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """(n, dim) image features and n captions -> (n,) float32 cosines, multiples of SIMILARITY_STEP."""
    found = np.zeros(len(captions), np.float32)
    for start in range(0, len(captions), TEXTS):
        rows = features[start : start + TEXTS].astype(np.float64)
        texts = clip.encode_texts(captions[start : start + TEXTS]).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(texts, axis=1)
        cosines = (rows * texts).sum(axis=1) / np.maximum(lengths, 1e-12)
        found[start : start + TEXTS] = np.round(cosines / SIMILARITY_STEP) * SIMILARITY_STEP
    return found
