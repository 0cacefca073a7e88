"""Evaluation sets: their features from a folder, a table or another run."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from filters.duplicate_search import read_images
from filters.duplicates import DuplicateConfig, near_pairs
from models import embedding, references
from models.clip_embedder import ClipConfig, resolve_weights
from models.embedding import embed_folder
from models.references import embed_reference, reference_digest
from tests.fake_workspace import draw, make_workspace
from winnow.duplicates import reference_file
from winnow.errors import ConfigError
from winnow.partitions import run_step
from winnow.receipts import Work
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import embeddings

CONFIG = ClipConfig(model="demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several kinds of files, one of them turned by its EXIF tag, one damaged, one no image, one twice."""
    root, rng = tmp_path_factory.mktemp("val"), np.random.default_rng(0)
    (root / "deeper").mkdir()
    pictures = [draw(kind, rng, (180, 120)) for kind in ("plain", "people", "violence", "plain")]
    pictures[0].save(root / "a.jpg", quality=92)
    pictures[0].save(root / "again.jpg", quality=92)
    pictures[1].save(root / "deeper" / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures[2].transpose(Image.Transpose.ROTATE_90).save(root / "turned.jpg", quality=92, exif=exif)
    (root / "damaged.jpg").write_bytes(b"\xff\xd8\xff not much of a picture")
    (root / "readme.txt").write_text("not an image")
    upright = root.parent / "upright"
    upright.mkdir()
    pictures[2].save(upright / "upright.jpg", quality=92)
    return root


def embed(storage: Storage, source: Path | str, config: ClipConfig = CONFIG) -> list[dict]:
    weights = resolve_weights(config)
    found = embed_reference(storage, "val", source=str(source), config=config, weights_sha256=weights.sha256, weights_path=weights.path)
    rows: list[dict] = read_table(storage, reference_file("val")).to_pylist()
    assert found.counts["items"] == len(rows)
    return rows


def test_a_folder_gives_its_images_each_once_by_name_and_counts_what_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    storage, weights = Storage(str(tmp_path)), resolve_weights(CONFIG)
    found = embed_reference(storage, "val", source=str(folder), config=CONFIG, weights_sha256=weights.sha256, weights_path=weights.path)
    rows = read_table(storage, reference_file("val")).to_pylist()
    assert {row["item"] for row in rows} == {"a.jpg", "deeper/b.png", "turned.jpg"}
    assert found.counts == {"items": 3, "undecodable": 1}


def test_a_photo_that_lies_on_its_side_is_compared_upright(folder: Path, tmp_path: Path) -> None:
    storage, weights = Storage(str(tmp_path)), resolve_weights(CONFIG)
    turned = next(row for row in embed(storage, folder) if row["item"] == "turned.jpg")
    place = {"config": CONFIG, "weights_sha256": weights.sha256, "weights_path": weights.path}
    embed_folder(storage, "upright", folder=str(folder.parent / "upright"), **place)
    table = read_table(storage, "imports/upright.parquet")
    write_table(storage, embeddings("x"), read_table(storage, reference_file("val")).select(table.column_names[:5]))
    write_table(storage, embeddings("y"), table)
    pairs = near_pairs(read_images(storage, "y", 0), iter([read_images(storage, "x", 1)]), DuplicateConfig().limits, within=False)
    assert {turned["uid"]} == {uid.decode() for pair in pairs for uid in (pair["worse"], pair["better"])} - set(table["uid"].to_pylist())
    assert (turned["width"], turned["height"]) == (180, 120)


def test_a_table_of_features_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "one"))
    rows = embed(storage, folder)
    path = tmp_path / "table.parquet"
    pq.write_table(pq.read_table(storage.full(reference_file("val"))).drop_columns(["item"]), path)
    again = embed(Storage(str(tmp_path / "two")), path)
    assert [row | {"item": None} for row in again] == [row | {"item": None} for row in rows]
    assert [row["item"] for row in again] == [row["uid"] for row in rows]


def test_a_table_without_hashes_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    embed(storage, folder)
    path = tmp_path / "table.parquet"
    pq.write_table(pq.read_table(storage.full(reference_file("val"))).drop_columns(["dhash", "width"]), path)
    with pytest.raises(ConfigError, match=r"table.parquet lacks dhash, width. A features table has the columns"):
        embed(storage, path)


def test_another_run_gives_what_it_kept_if_its_clip_is_ours(tmp_path: Path) -> None:
    other = make_workspace(tmp_path / "other", rows=30, trained=False)
    weights = resolve_weights(CONFIG)
    embedded_with(other, CONFIG, weights.sha256)
    kept = {
        row["uid"]
        for path in other.walk("decisions")
        if path.endswith(".parquet")
        for row in read_table(other, path).to_pylist()
        if row["verdict"] == "kept"
    }
    assert {row["item"] for row in embed(Storage(str(tmp_path / "mine")), other.url)} == kept
    embedded_with(other, dataclasses.replace(CONFIG, precision="bf16"), weights.sha256)
    with pytest.raises(ConfigError, match="are of another CLIP, precision or version"):
        embed(Storage(str(tmp_path / "mine")), other.url)


def embedded_with(storage: Storage, config: ClipConfig, sha256: str) -> None:
    """Receipts as if the run's features were of this CLIP."""
    from winnow.partitions import Outcome
    from winnow.run_files import partitions

    def step(storage: Storage, name: str, **_: object) -> Outcome:
        return Outcome(outputs=(embeddings(name),))

    works = [Work(name=name, inputs={}, arguments={"config": config, "weights_sha256": sha256}) for name in partitions(storage)]
    run_step(step, works, storage, stage="embed", version=embedding.VERSION)


def test_the_digest_of_a_reference_changes_with_its_content_and_not_with_time(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert reference_digest(str(copy)) == reference_digest(str(folder))
    (copy / "a.jpg").write_bytes((copy / "deeper" / "b.png").read_bytes())
    assert reference_digest(str(copy)) != reference_digest(str(folder))


def test_what_is_no_reference_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no folder of images, no \.parquet of features and no workspace"):
        reference_digest(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no image"):
        reference_digest(str(tmp_path / "empty"))


def test_too_large_a_reference_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAX_ITEMS", 2)
    with pytest.raises(ConfigError, match="gives 3 items; there must be 1 to 2"):
        embed(Storage(str(tmp_path)), folder)
