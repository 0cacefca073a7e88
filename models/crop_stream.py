"""Crops of many images through CLIP in batches that run across images; features come out in the images' order.

Decoding can go on in other threads meanwhile (models/ahead.py). On a GPU one batch is always computed while the next one is
put together: crops go over as bytes from pinned memory, and nobody waits for a result before the next batch is on its way.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.crops import crops_of

if TYPE_CHECKING:
    from PIL import Image

    from models.clip_embedder import Clip

SMALLEST_BATCH = 2
"""A batch of one crop takes other matrix kernels than all larger ones, whose sums are the same to the last bit on a CPU."""


def embed_images(clip: "Clip", images: "Iterable[Image.Image | np.ndarray]", *, batch_crops: int = 0) -> Iterator[np.ndarray]:
    """Features of upright RGB images, in order: float32 (dim,) each. Holds about two batches of crops in memory."""
    return embed_crops(clip, (crops_of(image, clip.image_size_px) for image in images), batch_crops=batch_crops)


def embed_crops(clip: "Clip", crops: Iterable[np.ndarray], *, batch_crops: int = 0, same_shape: bool = False) -> Iterator[np.ndarray]:
    """Features of images given by their crops, in order: float32 (dim,) each.

    Args:
        crops: uint8 (1 or 3, size, size, 3) of each image, RGB.
        batch_crops: crops through the network at a time; 0 leaves it to the device.
        same_shape: fill up the last batch with black, so that one arithmetic serves all. Where kernels are chosen by the
            size of a batch, as on GPUs, an image's feature then does not depend on how many others there are.
    """
    counts: deque[int] = deque()  # crops of each image whose feature is still to come
    ready: list[Tensor] = []
    have = 0
    for encoded in _encoded(clip, _batches(clip, crops, counts, batch_crops or clip.batch_crops, same_shape)):
        ready.append(encoded)
        have += len(encoded)
        if not counts or have < counts[0]:
            continue
        rows = torch.cat(ready)
        while counts and len(rows) >= counts[0]:
            count = counts.popleft()
            yield torch.nn.functional.normalize(rows[:count].mean(dim=0), dim=0).numpy()
            rows = rows[count:]
        ready, have = [rows], len(rows)


def _batches(
    clip: "Clip", crops: Iterable[np.ndarray], counts: deque[int], batch_crops: int, same_shape: bool
) -> Iterator[tuple[Tensor, int]]:
    """(batch, how many of its crops are real): uint8 (n, size, size, 3), in one of two buffers by turns."""
    pinned = clip.device.type == "cuda"
    size = max(batch_crops, SMALLEST_BATCH), clip.image_size_px, clip.image_size_px, 3
    buffers = [torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2 if pinned else 1)]
    filled, turn = 0, 0
    for image in crops:
        counts.append(len(image))
        done = 0
        while done < len(image):
            took = min(batch_crops - filled, len(image) - done)
            buffers[turn][filled : filled + took] = torch.from_numpy(image[done : done + took])
            filled, done = filled + took, done + took
            if filled == batch_crops:
                yield buffers[turn][: max(batch_crops, SMALLEST_BATCH)], filled
                filled, turn = 0, (turn + 1) % len(buffers)
    if filled:
        buffers[turn][filled:] = 0
        yield (buffers[turn] if same_shape else buffers[turn][: max(filled, SMALLEST_BATCH)]), filled


def _encoded(clip: "Clip", batches: Iterator[tuple[Tensor, int]]) -> Iterator[Tensor]:
    """Embeddings of each batch's real crops, on the CPU: float32 (n, dim). On a GPU one batch behind what it computes."""
    if clip.device.type != "cuda":
        for batch, real in batches:
            yield clip.encode_crops(batch)[:real].cpu()
        return
    running: tuple[Tensor, torch.cuda.Event] | None = None
    for batch, real in batches:
        fetched = clip.encode_crops(batch)[:real].to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        if running is not None:
            running[1].synchronize()
            yield running[0]
        running = fetched, event
    if running is not None:
        running[1].synchronize()
        yield running[0]
