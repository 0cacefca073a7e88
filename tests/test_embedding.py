import io
import tarfile

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from models import embedding
from models.clip_embedder import Clip, ClipConfig
from models.embedding import embed_folder, embed_partition, embed_table, feature_digest, folder_images
from winnow.errors import ConfigError
from winnow.partitions import run_step
from winnow.receipts import Work, read_receipts
from winnow.storage import Storage
from winnow.tables import read_table


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> Clip:
    torch.manual_seed(0)
    network = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
        text_cfg={"context_length": 8, "vocab_size": 300, "width": 32, "heads": 2, "layers": 1},
    )
    small = Clip(
        network=network.eval(),
        tokenize=lambda texts: torch.ones(len(texts), 8, dtype=torch.long),
        image_size_px=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        dim=16,
        device=torch.device("cpu"),
        precision="fp32",
    )
    monkeypatch.setattr(embedding, "clip_here", lambda *_: small)
    return small


def jpeg(width: int, height: int, seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def raw_shard(storage: Storage, name: str, images: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for uid, data in sorted(images.items()):
            for suffix, content in (("jpg", data), ("json", b"{}"), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{uid}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    storage.write_bytes(f"raw/{name}.tar", buffer.getvalue())


def test_every_decodable_image_has_a_row_and_the_others_are_counted(clip: Clip, tmp_path: object) -> None:
    storage = Storage(str(tmp_path))
    raw_shard(storage, "00000-aa", {"b": jpeg(60, 40, 1), "a": jpeg(40, 40, 2), "c": b"no image", "d": jpeg(90, 40, 3)[:200]})
    outcome = embed_partition(storage, "00000-aa", config=ClipConfig(model="demo"), weights_sha256="", weights_path="")
    table = read_table(storage, "embeddings/00000-aa.parquet")
    assert table["uid"].to_pylist() == ["a", "b"]
    assert dict(outcome.counts) == {"embedded": 2, "undecodable": 2, "decoded_by_pillow": 0}
    assert table["width"].to_pylist() == [40, 60] and table["height"].to_pylist() == [40, 40]
    features = np.stack([np.array(row, np.float32) for row in table["feature"].to_pylist()])
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3)


def test_the_same_shard_gives_the_same_bytes(clip: Clip, tmp_path: object) -> None:
    storage = Storage(str(tmp_path))
    raw_shard(storage, "00000-aa", {str(number): jpeg(40 + 10 * number, 40, number) for number in range(5)})
    digests = set()
    for _ in range(2):
        embed_partition(storage, "00000-aa", config=ClipConfig(model="demo"), weights_sha256="", weights_path="")
        digests.add(storage.sha256("embeddings/00000-aa.parquet"))
    assert len(digests) == 1


def test_a_partition_in_which_everything_failed_still_has_its_file(clip: Clip) -> None:
    table, counts = embed_table(clip, [])
    assert (table.num_rows, set(counts.values())) == (0, {0})
    assert table.schema.field("feature").type.list_size == 16


def test_imported_images_are_named_by_their_bytes_and_counted_once(clip: Clip, tmp_path: object) -> None:
    storage = Storage(f"{tmp_path}/workspace")
    folder = Storage(f"{tmp_path}/curated")
    for name, data in {"x.jpg": jpeg(40, 40, 1), "again.jpg": jpeg(40, 40, 1), "y.jpg": jpeg(40, 60, 2), "notes.txt": b"hello"}.items():
        folder.write_bytes(name, data)
    embed_folder(storage, "hate_symbol", folder=folder.url, config=ClipConfig(model="demo"), weights_sha256="", weights_path="")
    table = read_table(storage, "imports/hate_symbol.parquet")
    assert sorted(table["name"].to_pylist()) == ["x.jpg", "y.jpg"]
    assert set(table["uid"].to_pylist()) <= set(folder_images(folder.url))


def test_a_folder_without_images_is_refused(clip: Clip, tmp_path: object) -> None:
    Storage(f"{tmp_path}/curated").write_bytes("notes.txt", b"hello")
    with pytest.raises(ConfigError, match="holds no image that can be decoded; hate_symbol needs"):
        embed_folder(Storage(str(tmp_path)), "hate_symbol", folder=f"{tmp_path}/curated", config=ClipConfig(model="demo"),
                     weights_sha256="", weights_path="")  # fmt: skip


def test_features_of_another_precision_or_weights_are_another_space() -> None:
    config = ClipConfig(model="demo")
    assert feature_digest(config, "a") != feature_digest(config, "b")
    assert feature_digest(config, "a") != feature_digest(ClipConfig(model="demo", precision="bf16"), "a")
    assert feature_digest(config, "a") == feature_digest(ClipConfig(model="demo", batch_crops=7), "a")
    # Its weights may be the same file, but the tag decides whether they run with QuickGELU.
    assert feature_digest(ClipConfig(pretrained="openai"), "a") != feature_digest(ClipConfig(pretrained="laion2b_s34b_b88k"), "a")


def png(width: int, height: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(width, height, seed))).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_no_plain_jpeg_is_decoded_by_pillow_and_counted(clip: Clip) -> None:
    table, counts = embed_table(clip, [("a", jpeg(60, 40, 1)), ("b", png(60, 40, 1)), ("c", b"no image")])
    assert counts == {"embedded": 2, "undecodable": 1, "decoded_by_pillow": 1}
    one, same = (np.array(row, np.float32) for row in table["feature"].to_pylist())
    np.testing.assert_allclose(one, same, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_that_decode_change_no_byte(clip: Clip, threads: int) -> None:
    samples = [(f"{number:02d}", jpeg(40 + 7 * (number % 5), 40, number)) for number in range(23)] + [("99", b"no image")]
    alone = embed_table(clip, samples, 8)
    together = embed_table(clip, iter(samples), 8, threads=threads)
    assert together[0].equals(alone[0]) and together[1] == alone[1]


@pytest.mark.parametrize("batch_crops", [1, 2, 3, 8, 100])
def test_the_size_of_batches_changes_no_byte_on_a_cpu(clip: Clip, batch_crops: int) -> None:
    samples = [(f"{number:02d}", jpeg(40 + 7 * (number % 5), 40, number)) for number in range(11)]
    assert embed_table(clip, samples, batch_crops)[0].equals(embed_table(clip, samples, 32)[0])


def test_what_stands_before_or_after_an_image_does_not_change_its_feature(clip: Clip) -> None:
    samples = [(f"{number:02d}", jpeg(40 + 7 * (number % 5), 40, number)) for number in range(11)]
    features = embed_table(clip, samples, 8)[0]["feature"].to_pylist()
    assert embed_table(clip, samples[4:7], 8)[0]["feature"].to_pylist() == features[4:7]


def test_a_receipt_tells_device_precision_weights_and_versions(clip: Clip, tmp_path: object) -> None:
    storage = Storage(str(tmp_path))
    raw_shard(storage, "00000-aa", {"a": jpeg(40, 40, 2)})
    hashed = {"config": ClipConfig(model="demo"), "weights_sha256": "abc"}
    work = Work(name="00000-aa", inputs={"raw": "r"}, arguments=hashed, unhashed={"weights_path": "", "threads": 2})
    run_step(embed_partition, [work], storage, stage="embed", version=embedding.VERSION)
    (receipt,) = read_receipts(storage, "embed")
    assert receipt.arguments["weights_sha256"] == "abc" and receipt.arguments["config"]["precision"] == "fp32"
    assert {"device", "device_kind", "precision", "dim", "torch", "opencv", "open_clip_torch", "pillow", "numpy"} == set(receipt.facts)
    assert receipt.facts["torch"] == torch.__version__.partition("+")[0] and receipt.facts["device"] == "cpu"
    assert receipt.counts["embedded"] == 1
