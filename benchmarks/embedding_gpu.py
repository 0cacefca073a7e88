"""The GPU's side of benchmarks/embedding.py: crops and images a second, share of the GPU's arithmetic (MFU), and what limits.

Imports torch, numpy, Pillow, open_clip and models/ alone (OpenCV, if it is there, decodes). JPEGs are drawn if no photos are given.
"""

import io
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.embedding import FORWARD_FLOPS, MODEL, our_path, random_clip
from models.ahead import in_order
from models.clip_embedder import Clip
from models.crop_stream import embed_crops
from models.precision import device_kind
from winnow.errors import ConfigError

PEAK_FLOPS = 989e12
"""Of an H100 or H200 (SXM), dense bfloat16, as its data sheet has it."""
PUBLISHED = {"crops per second, ViT-B/16, one A100 (clip-retrieval)": 1100}
BATCHES = (64, 256, 1024)
THREADS = (1, 4, 8, 16)


def drawn_photos(count: int = 512) -> list[bytes]:
    """JPEGs of 640 x 480 pixels with as much detail as a photo: about 100 kB."""
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 8, (480, 640, 3)).astype(np.int16), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
        files.append(buffer.getvalue())
    return files


def seconds_of(call: Callable[[], object], repetitions: int = 5) -> float:
    """Median seconds by the clock, after one call to warm up."""
    taken = []
    for _ in range(repetitions + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def network_rates(precision: str) -> dict[str, Any]:
    """Crops a second of the network alone, bytes on the GPU already, and its MFU (of the bfloat16 peak)."""
    clip, table = random_clip(precision, "cuda"), {}
    for batch in BATCHES:
        crops = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8, device="cuda")
        rate = batch / seconds_of(lambda crops=crops: clip.encode_crops(crops))
        table[f"batch {batch}"] = {"crops per second": round(rate), "mfu": round(rate * FORWARD_FLOPS / PEAK_FLOPS, 3)}
    return table


def file_rates(files: list[bytes], clip: Clip) -> dict[str, Any]:
    """Images a second from encoded bytes to features, by decoding threads, beside decoding alone with as many."""
    table: dict[str, Any] = {}
    for threads in (number for number in THREADS if number <= (os.cpu_count() or 1)):

        def prepared(threads: int = threads) -> Any:
            return in_order(our_path, files, threads=threads, ahead=clip.batch_crops + threads)

        decoding = len(files) / seconds_of(lambda prepared=prepared: sum(1 for _ in prepared()), 1)
        whole = len(files) / seconds_of(lambda prepared=prepared: list(embed_crops(clip, prepared(), same_shape=True)), 1)
        table[f"{threads} threads"] = {"images per second": round(whole), "decoding alone": round(decoding)}
    return table


def measure_gpu(files: list[bytes] | None) -> dict[str, Any]:
    """The whole table. Raises ConfigError without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("--gpu: torch finds no GPU here; leave it out to measure a CPU thread")
    torch.set_num_threads(1)
    files = files or drawn_photos()
    rates = {precision: network_rates(precision) for precision in ("fp32", "bf16")}
    clip = random_clip("bf16", "cuda")
    ends = file_rates(files, clip)
    crops = [our_path(data) for data in files[:64]]
    best = max(entry["crops per second"] for entry in rates["bf16"].values()) / (sum(map(len, crops)) / len(crops))
    reached = max(entry["images per second"] for entry in ends.values())
    exact, half = (np.stack(list(embed_crops(one, iter(crops)))) for one in (random_clip("fp32", "cuda"), clip))
    again = np.stack(list(embed_crops(clip, iter(crops[:7]), same_shape=True)))
    return {
        "device": device_kind(torch.device("cuda")),
        "torch": torch.__version__,
        "model": MODEL,
        "network": rates,
        "bytes to features, bf16": ends,
        "share of the network alone": round(reached / best, 3),
        "limited by": "the network" if reached > 0.9 * best else "decoding and handing over",
        "smallest cosine of bf16 with fp32": round(float((exact * half).sum(axis=1).min()), 6),
        "features do not depend on what else is in the partition": bool(
            np.array_equal(again, np.stack(list(embed_crops(clip, iter(crops), same_shape=True)))[:7])
        ),
        "published": PUBLISHED,
    }
