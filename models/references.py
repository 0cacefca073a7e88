"""Features of an evaluation set that must not be trained on: `references/<name>.parquet`, from images, a table, or another run.

uid, feature, dhash, width, height and `item`, what the set itself calls it: a file's name, a row's uid. Images go the way of a run's own:
upright JPEGs, the same CLIP. A table is taken as it is; that its features are of the same CLIP only its dimension can deny.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models import embedding
from models.clip_embedder import ClipConfig, Weights, loaded_clip
from models.embedding import embed_table, feature_digest
from winnow.digests import digest
from winnow.duplicates import reference_file
from winnow.errors import ConfigError
from winnow.images import ImageLimits, ImageRefused, check_image
from winnow.partitions import Outcome
from winnow.receipts import list_done, read_receipts
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import MANIFEST_INDEX, decisions, embeddings

VERSION = 1
MAX_ITEMS = 2_000_000
"""Each partition is compared with every item, and a set is one file."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
COLUMNS = ("uid", "feature", "dhash", "width", "height")
LIMITS = ImageLimits(min_side_px=1, max_aspect_ratio=1e6)


def reference_digest(source: str) -> str:
    """Digest of what a reference holds now.

    Raises:
        ConfigError: there is none of the three kinds at this path.
    """
    kind = _kind(source)
    if kind == "workspace":
        storage = Storage(source if "://" in source else os.path.abspath(source))
        marks = [[done.partition, done.output] for stage in ("embed", "score") for done in list_done(storage, stage)]
        if not marks:
            raise ConfigError(f"duplicates.references: {source} is a workspace, but nothing is embedded in it")
        return digest(marks)
    if kind == "table":
        with open(source, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    files = [file.relative_to(source).as_posix() + hashlib.sha256(file.read_bytes()).hexdigest() for file in _images(source)]
    if not files:
        raise ConfigError(f"duplicates.references: the folder {source} holds no image ({', '.join(ENDINGS)})")
    return digest(files)


def embed_reference(storage: Storage, name: str, *, source: str, config: ClipConfig, weights_sha256: str, weights_path: str) -> Outcome:
    """Writes the features of a reference.

    Raises:
        ConfigError: no image of a folder can be decoded, a table lacks a column, another run's features are of another CLIP,
            or there are more than MAX_ITEMS.
    """
    kind = _kind(source)
    counts: dict[str, int] = {}
    if kind == "workspace":
        table = _of_workspace(source, config, weights_sha256)
    elif kind == "table":
        table = _of_table(source)
    else:
        table, counts = _of_folder(source, config, Weights(path=weights_path, sha256=weights_sha256))
    if not 0 < table.num_rows <= MAX_ITEMS:
        raise ConfigError(f"duplicates.references: {source} gives {table.num_rows:,} items; there must be 1 to {MAX_ITEMS:,}")
    write_table(storage, reference_file(name), table)
    return Outcome(outputs=(reference_file(name),), counts={"items": table.num_rows, **counts}, facts={"kind": kind})


def _kind(source: str) -> str:
    if "://" in source or os.path.isdir(source):
        storage = Storage(source if "://" in source else os.path.abspath(source))
        if storage.exists(MANIFEST_INDEX):
            return "workspace"
    if os.path.isdir(source):
        return "folder"
    if os.path.isfile(source) and source.endswith(".parquet"):
        return "table"
    raise ConfigError(
        f"duplicates.references: {source} is no folder of images, no .parquet of features and no workspace of a run. Give one of these."
    )


def _images(folder: str) -> list[Path]:
    return sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())


def _of_folder(source: str, config: ClipConfig, weights: Weights) -> tuple[pa.Table, dict[str, int]]:
    names: dict[str, str] = {}
    refused = 0

    def samples() -> Iterator[tuple[str, bytes]]:
        nonlocal refused
        for file in _images(source):
            data = file.read_bytes()
            uid = hashlib.sha256(data).hexdigest()[:32]
            if uid in names:
                continue
            try:
                image = check_image(data, LIMITS)
            except ImageRefused:
                refused += 1
                continue
            names[uid] = file.relative_to(source).as_posix()
            yield uid, image.jpeg

    table, counts = embed_table(loaded_clip(config, weights), samples())
    named = pa.array([names[uid] for uid in table["uid"].to_pylist()], pa.string())
    return table.select(COLUMNS).append_column("item", named), {"undecodable": refused + counts["undecodable"]}


def _of_table(source: str) -> pa.Table:
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ConfigError(
            f"duplicates.references: {source} lacks {', '.join(missing)}. A features table has the columns of embeddings/*.parquet: "
            f"{', '.join(COLUMNS)}, and perhaps item, a name for each row."
        )
    item = table["item"] if "item" in table.column_names else table["uid"]
    return table.select(COLUMNS).append_column("item", pc.cast(item, pa.string())).combine_chunks()


def _of_workspace(source: str, config: ClipConfig, weights_sha256: str) -> pa.Table:
    storage = Storage(source if "://" in source else os.path.abspath(source))
    ours = feature_digest(config, weights_sha256)
    parts = []
    for receipt in read_receipts(storage, "embed"):
        if receipt.version != embedding.VERSION or _feature_digest_of(receipt.arguments) != ours:
            raise ConfigError(
                f"duplicates.references: the features of {receipt.partition} in {source} are of another CLIP, precision or version than "
                "this run's. Embed that run anew with the same settings, or give a folder of its images."
            )
        table = read_table(storage, embeddings(receipt.partition), list(COLUMNS))
        if storage.exists(decisions(receipt.partition)):
            verdicts = read_table(storage, decisions(receipt.partition), ["uid", "verdict"])
            kept = verdicts.filter(pc.equal(verdicts["verdict"], "kept"))["uid"]
            table = table.filter(pc.is_in(table["uid"], value_set=kept.combine_chunks()))
        parts.append(table)
    table = pa.concat_tables(parts).combine_chunks()
    return table.append_column("item", table["uid"])


def _feature_digest_of(arguments: dict[str, Any]) -> str:
    known = {field for field in ClipConfig.__dataclass_fields__}
    config = ClipConfig(**{name: value for name, value in arguments["config"].items() if name in known and name != "weights"})
    return feature_digest(config, arguments["weights_sha256"])
