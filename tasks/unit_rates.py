"""Unit rates of this machine, measured on the spot for `winnow plan --measure`: some seconds each, one CPU thread, or one GPU.

What is measured are the functions that the stages run, on drawn pictures or on photos from a folder. CPU seconds, so that what
else runs on the machine counts little; a GPU's rate is by the clock. Networks have random weights: their speed is the same.
"""

import contextlib
import functools
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from filters.decision_values import Scorer, Svm
from filters.duplicates import BASE_BLOCK, QUERY_BLOCK, alike
from models.clip_embedder import Clip, ClipConfig, untrained_clip
from models.crop_stream import embed_crops
from models.crops import cut, decode, resized
from winnow.download import VERSION as DOWNLOAD_VERSION
from winnow.download import download_partition, plan_downloads
from winnow.download_config import DownloadConfig
from winnow.errors import ConfigError
from winnow.partitions import run_step
from winnow.storage import Storage
from winnow.tars import HashingSink, TarWriter

IMAGES = 64
DIM = 512
"""Of features in scoring."""
SUPPORT_VECTORS, ROWS = 1000, 4096
REPEATS = 3


def measured_numbers(config: ClipConfig, images: list[bytes]) -> dict[str, float]:
    """Names of rates and of the workload's properties in winnow/plan/settings.py -> what was measured here.

    Args:
        config: which CLIP, at which precision.
        images: encoded; what they are like decides the costs of decoding and of everything by the byte.
    """
    torch.set_num_threads(1)
    clip = untrained_clip(config)
    prepare = functools.partial(_prepared, clip.image_size_px)
    crops = [prepare(data) for data in images]
    return {
        "image_bytes": sum(map(len, images)) / len(images),
        "crops_per_image": sum(map(len, crops)) / len(crops),
        "decode_cpu_seconds": _cpu_seconds(lambda: [prepare(data) for data in images]) / len(images),
        **_embedding(clip, crops),
        "score_cpu_seconds": _scoring(),
        "gemm_flops_per_cpu_second": _products(),
        "hash_pairs_per_cpu_second": _hashes(),
        "shard_cpu_seconds": _sharding(images),
        "download_cpu_seconds": _downloading(images),
    }


def drawn_images(count: int = IMAGES) -> list[bytes]:
    """Pictures of the demo's world, blown up to a photo's 500 pixels."""
    from PIL import Image

    from winnow.demo.world import WorldConfig, make_world, render

    found = []
    for scene in make_world(WorldConfig(num_scenes=count, seed=11)):
        with Image.open(io.BytesIO(render(scene))) as image:
            scale = 500 / max(image.size)
            buffer = io.BytesIO()
            size = (max(32, round(image.width * scale)), max(32, round(image.height * scale)))
            image.convert("RGB").resize(size).save(buffer, "JPEG", quality=92)
            found.append(buffer.getvalue())
    return found[:count]


def images_of(folder: str, count: int = IMAGES) -> list[bytes]:
    """Files of a folder and those below it, evenly spread, that can be decoded.

    Raises:
        ConfigError: there is none.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    chosen = [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]
    found = [data for data in chosen if decode(data) is not None]
    if not found:
        raise ConfigError(f"{folder} holds no image (.jpg, .png, .webp) to measure with")
    return found


def _cpu_seconds(call: Callable[[], object]) -> float:
    """The median of a few turns."""
    spent = []
    for _ in range(REPEATS):
        begin = time.process_time()
        call()
        spent.append(time.process_time() - begin)
    return float(np.median(spent))


def _prepared(size_px: int, data: bytes) -> np.ndarray:
    decoded = decode(data)
    assert decoded is not None
    return cut(resized(decoded.pixels, size_px), size_px)


def _embedding(clip: Clip, crops: list[np.ndarray]) -> dict[str, float]:
    """Crops a second of the network alone."""
    if clip.device.type == "cpu":
        few = crops[:3]
        return {"crops_per_cpu_second": sum(map(len, few)) / _cpu_seconds(lambda: list(embed_crops(clip, iter(few))))}
    many = crops * (4 * clip.batch_crops // len(crops) + 1)
    return {"crops_per_gpu_second": sum(map(len, many)) / _gpu_seconds(clip, many)}


def _gpu_seconds(clip: Clip, crops: list[np.ndarray]) -> float:
    spent = []
    for _ in range(REPEATS + 1):  # the first warms up
        torch.cuda.synchronize()
        begin = time.perf_counter()
        list(embed_crops(clip, iter(crops)))
        spent.append(time.perf_counter() - begin)
    return float(np.median(spent[1:]))


def _scoring() -> float:
    """CPU seconds a row and support vector, as the decision log's scores are computed."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((SUPPORT_VECTORS + ROWS, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    dual = rng.normal(size=SUPPORT_VECTORS)
    svm = Svm(support_vectors=vectors[:SUPPORT_VECTORS], dual=dual - dual.mean(), intercept=0.1, gamma=1.0)
    scorer = Scorer([svm])
    scorer.coarse_scores(vectors[SUPPORT_VECTORS:][:512], [0.5])  # what it lays ready once
    return _cpu_seconds(lambda: scorer.coarse_scores(vectors[SUPPORT_VECTORS:], [0.5])) / (ROWS * SUPPORT_VECTORS)


def _products() -> float:
    """FLOP a CPU second of products of features, each looked through for large ones: of images with centroids of cells."""
    one, other = torch.randn(512, DIM), torch.randn(8192, DIM)
    return 2 * DIM * 512 * 8192 / _cpu_seconds(lambda: (one @ other.T >= 100).any())


def _hashes() -> float:
    """Pairs of difference hashes a CPU second, as the search for near-duplicates compares them."""
    rng = np.random.default_rng(0)
    ours, theirs = (rng.integers(0, 2**64, size, dtype=np.uint64) for size in (QUERY_BLOCK, BASE_BLOCK))
    return len(ours) * len(theirs) / _cpu_seconds(lambda: alike(ours, theirs, 12))


def _sharding(images: list[bytes]) -> float:
    """CPU seconds a sample: read from a tar, hashed, written to a tar."""
    with tempfile.TemporaryDirectory() as folder:

        def write() -> None:
            with open(Path(folder, "shard.tar"), "wb") as stream:
                tar = TarWriter(HashingSink(stream))
                for number, data in enumerate(images):
                    for suffix, content in (("jpg", data), ("json", b"{}" * 150), ("txt", b"a caption of a picture")):
                        tar.add(f"{number:032x}.{suffix}", content)
                tar.close()

        return _cpu_seconds(write) / len(images)


def _downloading(images: list[bytes]) -> float:
    """CPU seconds a url of the download's own step, from a server on this machine that is another process."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(images):
            Path(folder, f"{number}.jpg").write_bytes(data)
        with _serving(folder) as port, tempfile.TemporaryDirectory() as workspace:
            storage = Storage(workspace)
            _list_urls(storage, [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(len(images))])
            works = plan_downloads(["measured"], DownloadConfig(allow=(f"127.0.0.1:{port}",)))
            begin = time.process_time()
            run = run_step(download_partition, works, storage, stage="download", version=DOWNLOAD_VERSION)
            spent = time.process_time() - begin
    if run.counts["downloaded"] < len(images):
        raise ConfigError(f"of {len(images)} images served on this machine {run.counts['downloaded']} were had: are all of them images?")
    return spent / len(images)


@contextlib.contextmanager
def _serving(folder: str) -> Iterator[int]:
    """A web server of another process, on a free port of 127.0.0.1, for as long as it is needed."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder, "--protocol", "HTTP/1.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()  # Serving HTTP on 127.0.0.1 port 40123 (...)
            yield int(line.partition(" port ")[2].split()[0])
        finally:
            server.kill()


def _list_urls(storage: Storage, urls: list[str]) -> None:
    """A partition of the manifest."""
    import pyarrow as pa

    from winnow.manifest import sample_uid
    from winnow.tables import write_table

    names = ("uid", "url", "caption", "source", "licence", "sha256")
    schema = pa.schema([(name, pa.string()) for name in names])
    rows = sorted((sample_uid(url, "a picture"), url, "a picture", "here", "none", None) for url in urls)
    write_table(storage, "manifest/measured.parquet", pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema))
