"""Samples for training prompts: which prompts, and one chunk of them -> PNG files.

A sample depends on its own prompt and seed alone (models/sampling.py), so chunks may be drawn anywhere and in any order.
"""

import hashlib
import heapq
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow.parquet as pq

from winnow.configs import STRICT
from winnow.errors import ConfigError
from winnow.partitions import Outcome
from winnow.storage import Storage

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """What is drawn from a trained base model."""

    __pydantic_config__: ClassVar = STRICT

    recipe: str = "base"
    """The training recipe whose newest checkpoint is sampled."""
    num_prompts: int = 30_000
    """Captions of kept images, drawn at random (GLIDE, section 6: 30,000)."""
    steps: str = "ddim50"
    """Timestep respacing: "100" for DDPM, "ddim50" for DDIM."""
    guidance_scale: float = 3.0
    """Classifier-free guidance; 1 is none."""
    seed: int = 0
    """Decides which prompts are drawn, and each sample's own seed."""
    chunk: int = 16
    """Samples in one call of the network."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.chunk < 1:
            raise ConfigError(f"SampleConfig: num_prompts and chunk must be at least 1, got {self.num_prompts} and {self.chunk}")
        if self.guidance_scale < 1:
            raise ConfigError(f"SampleConfig: guidance_scale must be at least 1, got {self.guidance_scale}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A caption to draw for, and the training image it belongs to."""

    uid: str
    text: str
    seed: int
    file: str
    """Where the sample goes, relative to the workspace."""


def draw_prompts(storage: Storage, sidecars: Iterable[str], config: SampleConfig, folder: str) -> list[Prompt]:
    """The `num_prompts` kept samples whose hash with the seed is smallest: a random draw that new data changes least.

    Args:
        sidecars: relative paths of the shards' tables (uid, caption); one is in memory at a time.
        folder: where the samples will go.
    """

    def rows() -> Iterator[tuple[str, str, str]]:
        for path in sidecars:
            with storage.open(path) as stream:
                table = pq.read_table(stream, columns=["uid", "caption"])
            for uid, caption in zip(table["uid"].to_pylist(), table["caption"].to_pylist(), strict=True):
                if caption.strip():
                    yield hashlib.sha256(f"{config.seed}/{uid}".encode()).hexdigest(), uid, caption

    drawn = heapq.nsmallest(config.num_prompts, rows())
    if not drawn:
        raise ConfigError("no kept sample has a caption to draw for: nothing was kept, or `shard` has not run")
    return [
        Prompt(uid=uid, text=caption, seed=int(mark[:8], 16), file=f"{folder}/{number:05d}.png")
        for number, (mark, uid, caption) in enumerate(drawn)
    ]


def sample_chunk(
    storage: Storage,
    name: str,
    *,
    model: str,
    checkpoint: str,
    prompts: tuple[dict[str, str | int], ...],
    steps: str,
    guidance_scale: float,
) -> Outcome:
    """Draws one image for each prompt with the EMA weights of a checkpoint, and writes it as a PNG.

    Args:
        model: its name in MODELS.
        checkpoint: its folder, relative to the workspace.
        prompts: fields of `Prompt`.
    """
    import torch
    from PIL import Image

    from models.catalog import MODELS
    from models.checkpoints import load_weights
    from models.sampling import sample_images

    torch.set_num_threads(1)  # chunks run side by side
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = MODELS[model]
    with storage.local_file(f"{checkpoint}/ema.safetensors") as path:
        network = load_weights(path, spec).to(device)
    pixels = sample_images(
        network,
        spec,
        [str(prompt["text"]) for prompt in prompts],
        seeds=[int(prompt["seed"]) for prompt in prompts],
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=len(prompts),
        device=device,
    )
    for prompt, image in zip(prompts, pixels.cpu().numpy(), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        storage.write_bytes(str(prompt["file"]), buffer.getvalue())
    return Outcome(outputs=tuple(str(prompt["file"]) for prompt in prompts), counts={"samples": len(prompts)})


def write_sample_index(storage: Storage, folder: str, prompts: list[Prompt], config: SampleConfig) -> None:
    """`<folder>/index.json`: which file was drawn for which training image, with which settings."""
    settings = {"recipe": config.recipe, "steps": config.steps, "guidance_scale": config.guidance_scale, "seed": config.seed}
    samples = [{"file": prompt.file, "uid": prompt.uid, "prompt": prompt.text, "seed": prompt.seed} for prompt in prompts]
    storage.write_text(f"{folder}/index.json", json.dumps({"settings": settings, "samples": samples}, sort_keys=True, indent=1) + "\n")


def read_sample_index(storage: Storage, folder: str) -> list[Prompt]:
    index = json.loads(storage.read_bytes(f"{folder}/index.json"))
    return [Prompt(uid=entry["uid"], text=entry["prompt"], seed=entry["seed"], file=entry["file"]) for entry in index["samples"]]
