"""Embedding on one CPU thread: preparing images beside torchvision's Pillow path, file to file beside the bare network, bf16 beside fp32.

    .venv/bin/python -m benchmarks.embedding --data PHOTOS [--clip-retrieval FOLDER]      # one CPU thread
    python -m benchmarks.embedding --gpu [--data PHOTOS]              # a GPU machine; needs torch, numpy, Pillow and open_clip alone

`--data` is a folder of JPEGs. The network is ViT-B/16 with random weights: speed and rounding do not depend on what it knows.
CPU seconds, everything by turns; ratios are medians over turns. `--clip-retrieval` is a folder with clip-retrieval and those of its
requirements that this environment lacks (`pip install --no-deps --target FOLDER ...`): its `inference` then runs on the same shard.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.clip_embedder import Clip, ClipConfig, untrained_clip
from models.crop_stream import embed_crops
from models.crops import cut, decode, resized

MODEL = "ViT-B-16"
FORWARD_FLOPS = 35.1e9
"""Of a crop, two for a multiplication with its addition, attention included."""
WANTED = {"preprocessing": 2.2, "end to end": 0.95, "bf16": 3.3}


def random_clip(precision: str = "fp32", device: str = "cpu") -> Clip:
    torch.manual_seed(0)
    return untrained_clip(ClipConfig(model=MODEL, precision=precision), device)


def by_turns(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """CPU seconds of each call, of all threads of this process, in each turn."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            spent[name].append(time.process_time() - begin)
    return spent


def ratio(spent: dict[str, list[float]], slow: str, fast: str) -> float:
    return round(statistics.median(one / other for one, other in zip(spent[slow], spent[fast], strict=True)), 3)


# Preparing images ------------------------------------------------------------------------------------------------------


def torchvision_path() -> Callable[[bytes], torch.Tensor]:
    """Three normalised crops by Pillow and torchvision's transforms, as CLIP's own code prepares one."""
    import open_clip
    from PIL import Image
    from torchvision import transforms

    resize = transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC)
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)])

    def prepare(data: bytes) -> torch.Tensor:
        image = resize(Image.open(io.BytesIO(data)).convert("RGB"))
        width, height = image.size
        spare = max(width, height) - 224
        boxes = [(start, 0, start + 224, 224) if width > height else (0, start, 224, start + 224) for start in (0, spare // 2, spare)]
        return torch.stack([finish(image.crop(box)) for box in (boxes if spare else boxes[:1])])

    return prepare


def our_path(data: bytes) -> np.ndarray:
    decoded = decode(data)
    assert decoded is not None
    return cut(resized(decoded.pixels, 224), 224)


def measure_preprocessing(files: list[bytes], clip: Clip, turns: int) -> dict[str, Any]:
    """Images per CPU second, beside torchvision's path; and how far the pixels are from Pillow's."""
    from PIL import Image

    theirs = torchvision_path()
    spent = by_turns(
        {
            "torchvision": lambda: [theirs(data) for data in files],
            "ours, bytes": lambda: [our_path(data) for data in files],
            "ours, normalised": lambda: [clip.normalised(torch.from_numpy(our_path(data))) for data in files],
            "decoding alone": lambda: [decode(data) for data in files],
        },
        turns,
    )
    total, count, largest = 0, 0, 0
    for data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        decoded = decode(data)
        assert decoded is not None
        small = resized(decoded.pixels, 224)
        difference = np.abs(small.astype(int) - np.asarray(image.resize(small.shape[1::-1], Image.Resampling.BICUBIC)))
        total, count, largest = total + int(difference.sum()), count + difference.size, max(largest, int(difference.max()))
    return {
        "images per CPU second": {name: round(len(files) / statistics.median(times)) for name, times in spent.items()},
        "times torchvision, bytes (the network's device normalises)": ratio(spent, "torchvision", "ours, bytes"),
        "times torchvision, normalised on the CPU": ratio(spent, "torchvision", "ours, normalised"),
        "wanted": WANTED["preprocessing"],
        "pixels from Pillow's, in 255ths": {"max": largest, "mean": round(total / count, 5)},
    }


# File to file ----------------------------------------------------------------------------------------------------------


def write_raw(path: Path, files: list[bytes]) -> None:
    """A raw shard as the download stage leaves it."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, data in enumerate(files):
            for suffix, content in (("jpg", data), ("json", b"{}"), ("txt", b"a photo")):
                member = tarfile.TarInfo(f"{number:032x}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def measure_file_to_file(files: list[bytes], clip: Clip, turns: int, clip_retrieval: Path | None) -> dict[str, Any]:
    """The stage's step (tar in, parquet out) beside the network alone on the same crops in the same batches, and clip-retrieval."""
    from models import embedding
    from winnow.storage import Storage

    crops = np.concatenate([our_path(data) for data in files])
    batches = [
        clip.normalised(torch.from_numpy(crops[start : start + clip.batch_crops])).clone()
        for start in range(0, len(crops), clip.batch_crops)
    ]
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        Path(folder, "raw").mkdir()
        write_raw(Path(folder, "raw", "00000.tar"), files)
        embedding.clip_here = lambda *_: clip  # type: ignore[assignment]  # random weights have no file

        def step() -> None:
            config = ClipConfig(model="demo")
            embedding.embed_partition(storage, "00000", config=config, weights_sha256="", weights_path="", threads=1)

        @torch.inference_mode()
        def network() -> None:
            for batch in batches:
                clip.network.encode_image(batch)  # type: ignore[operator]

        calls: dict[str, Callable[[], object]] = {"step": step, "network": network}
        if clip_retrieval is not None:
            calls["clip-retrieval"] = clip_retrieval_inference(clip_retrieval, Path(folder), clip)
        by_turns(calls, 1)  # warms up, and lets clip-retrieval load its network
        spent = by_turns(calls, turns)
    per_crop = {name: statistics.median(times) / (len(files) if name == "clip-retrieval" else len(crops)) for name, times in spent.items()}
    table = {
        "images, crops": [len(files), len(crops)],
        "crops per CPU second": {name: round(1 / seconds, 3) for name, seconds in per_crop.items()},
        "of the network alone": ratio(spent, "network", "step"),
        "wanted": WANTED["end to end"],
    }
    if clip_retrieval is not None:
        table["times clip-retrieval, per crop"] = round(per_crop["clip-retrieval"] / per_crop["step"], 3)
    return table


def clip_retrieval_inference(installed: Path, folder: Path, clip: Clip) -> Callable[[], object]:
    """A call of `clip-retrieval inference` on the shard in `folder`, in this process, with this network's weights, one crop an image."""
    from safetensors.torch import save_file

    sys.path.append(str(installed))
    from clip_retrieval.clip_inference.worker import worker  # type: ignore[import-not-found]

    save_file({name: tensor.contiguous() for name, tensor in clip.network.state_dict().items()}, folder / "clip.safetensors")

    def inference() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            worker(
                [0], str(folder / "raw" / "00000.tar"), str(folder / "features"), 1,
                input_format="webdataset", batch_size=clip.batch_crops, num_prepro_workers=0, enable_text=False,
                clip_model=f"open_clip:{MODEL}-quickgelu/{folder / 'clip.safetensors'}", use_jit=False,
            )  # fmt: skip

    return inference


# The network -----------------------------------------------------------------------------------------------------------


def measure_precision(files: list[bytes], clip: Clip, turns: int) -> dict[str, Any]:
    """bf16 beside fp32: speed, and how far features turn."""
    from models.precision import bfloat16_advice, device_kind

    half = random_clip("bf16")
    crops = torch.from_numpy(np.concatenate([our_path(data) for data in files])[:32])
    spent = by_turns({"fp32": lambda: clip.encode_crops(crops), "bf16": lambda: half.encode_crops(crops)}, turns)
    cosine = (clip.encode_crops(crops) * half.encode_crops(crops)).sum(dim=1)
    return {
        "cpu": device_kind(torch.device("cpu")),
        "crops per CPU second": {name: round(len(crops) / statistics.median(times), 2) for name, times in spent.items()},
        "bf16 times fp32": ratio(spent, "fp32", "bf16"),
        "wanted": WANTED["bf16"],
        "smallest cosine": round(float(cosine.min()), 6),
        "advice": [bfloat16_advice(torch.device("cpu"), uses) for uses in (False, True)],
    }


def measure_batches(files: list[bytes], clip: Clip, sizes: Sequence[int] = (1, 8, 32)) -> dict[str, Any]:
    """Features of the same images in batches of different sizes: which float16 entries differ, and by how much."""
    crops = [our_path(data) for data in files]

    def features(batch_crops: int) -> np.ndarray:
        return np.stack(list(embed_crops(clip, iter(crops), batch_crops=batch_crops)))

    first = features(sizes[-1])
    table: dict[str, Any] = {"entries": first.size}
    for size in sizes[:-1]:
        other = features(size)
        differ = int((other.astype(np.float16) != first.astype(np.float16)).sum())
        table[f"{size} and {sizes[-1]}"] = {
            "float32 differs by at most": float(np.abs(other - first).max()),
            "float16 entries that differ": differ,
        }
    one = torch.from_numpy(crops[0][:1])
    bare = (clip.encode_crops(one) - clip.encode_crops(torch.cat([one, one]))[:1]).abs().max()
    table["a bare batch of one crop differs by at most"] = float(bare)
    return table


def photos(folder: Path, count: int) -> list[bytes]:
    """Every so many-th JPEG below a folder, small ones left out."""
    paths = sorted(path for path in folder.rglob("*.jpg") if path.stat().st_size > 8_000)
    return [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]


def measure_cpu(data: Path, turns: int, only: str | None, clip_retrieval: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    torch.set_num_threads(1)
    clip = random_clip()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "preprocessing": lambda: measure_preprocessing(photos(data, 150), clip, 2 * turns + 1),
        "file to file": lambda: measure_file_to_file(photos(data, 8), clip, turns, clip_retrieval),
        "precision": lambda: measure_precision(photos(data, 6), clip, turns),
        "batches": lambda: measure_batches(photos(data, 12), clip),
    }
    for name, measure in parts.items():
        if only in (None, name):
            yield name, measure()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="folder of JPEGs")
    parser.add_argument("--gpu", action="store_true", help="measure a GPU instead of a CPU thread")
    parser.add_argument("--clip-retrieval", type=Path, metavar="FOLDER", help="where clip-retrieval is installed, to run beside ours")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", help="preprocessing, file to file, precision or batches")
    arguments = parser.parse_args()
    if arguments.gpu:
        from benchmarks.embedding_gpu import measure_gpu

        print(json.dumps(measure_gpu(photos(arguments.data, 2000) if arguments.data else None), indent=1))
        return
    if arguments.data is None:
        parser.error("--data: a folder of JPEGs is needed")
    for name, table in measure_cpu(arguments.data, arguments.turns, arguments.only, arguments.clip_retrieval):
        print(json.dumps({name: table}, indent=1), flush=True)


if __name__ == "__main__":
    main()
