"""CLIP features of images and texts: open_clip networks, three crops an image (GLIDE, arXiv:2112.10741, appendix F.1).

The smaller side of an image is resized to the network's size (bicubic, antialiased), crops are taken at both ends and in
the middle of the longer side (models/crops.py), each goes through CLIP's image tower, is L2-normalised, and the mean is taken
(models/crop_stream.py). The mean is normalised once more, so that a dot product of two features is their cosine.

Weights are never random (but for measurements): they come from a file the config names, the shipped demo model, a cache or the
network, and otherwise `MissingWeights` says what to fetch and where to put it.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from models.weight_files import read_tensors
from winnow.configs import STRICT
from winnow.digests import sha256_of
from winnow.errors import CheckpointError, ConfigError, MissingWeights

DEMO = "demo"
"""Name of the small model shipped with Winnow: trained on the demo's world, good for nothing else."""
SHIPPED = Path(__file__).parent / "weights"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
GELU_ROWS = 32
"""Of 3,072 numbers in float32: 384 kB, which stay in a core's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Which CLIP computes the features."""

    __pydantic_config__: ClassVar = STRICT

    model: str = "ViT-B-16"
    """A model name of open_clip, or "demo" for the small shipped one."""
    pretrained: str = "openai"
    """open_clip's tag of the weights; decides the activation, too. Not used by "demo"."""
    weights: str | None = None
    """A local .safetensors file, or a .pt state dict, with the weights of that tag. None: cache, then network."""
    precision: str = "fp32"
    """"fp32" or "bf16". Features of different precision never mix: it is part of the digest. bf16 is faster on GPUs and on
    some CPUs (`models/precision.py`); it is never chosen by itself, for the next run may be on another machine."""
    batch_crops: int = 0
    """Crops through the network at a time; 0 takes 8 on a CPU, which larger ones leave their caches for, and 256 on a GPU."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"ClipConfig: precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.batch_crops < 0:
            raise ConfigError(f"ClipConfig: batch_crops must be 0 or more, got {self.batch_crops}")
        if self.model != DEMO:
            _check_tag(self.model, self.pretrained)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A file with weights, and what is in it."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A loaded CLIP, in evaluation mode."""

    network: torch.nn.Module
    tokenize: Callable[[list[str]], Tensor]
    image_size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int
    device: torch.device
    precision: str

    @property
    def batch_crops(self) -> int:
        """Crops through the network at a time where nobody says otherwise."""
        return 8 if self.device.type == "cpu" else 256

    def encode_crops(self, crops: Tensor) -> Tensor:
        """uint8 (n, size, size, 3) RGB -> float32 (n, dim) on the network's device, L2-normalised."""
        with torch.inference_mode():
            features = self.network.encode_image(self.normalised(crops))  # type: ignore[operator]  # open_clip's CLIP has it
            return torch.nn.functional.normalize(features.float(), dim=-1)

    def normalised(self, crops: Tensor) -> Tensor:
        """uint8 (n, size, size, 3) RGB -> (n, 3, size, size) as the network takes it: (x / 255 - mean) / std of each channel."""
        scale, shift = self._row_scale_and_shift
        pixels = crops.to(self.device, non_blocking=True).view(-1, len(scale)).float().mul_(scale).sub_(shift)
        return pixels.view(crops.shape).permute(0, 3, 1, 2).to(PRECISIONS[self.precision])

    @functools.cached_property
    def _row_scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """For whole rows of pixels: three channels alone are too few for a CPU's vector units."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (1 / (255 * std)).repeat(self.image_size_px).to(self.device), (mean / std).repeat(self.image_size_px).to(self.device)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 (n, dim), L2-normalised."""
        with torch.inference_mode():
            features = self.network.encode_text(self.tokenize(list(texts)).to(self.device))  # type: ignore[operator]
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def resolve_weights(config: ClipConfig) -> Weights:
    """Finds the weights a config asks for, fetching them if need be.

    Raises:
        MissingWeights: they are not here and cannot be fetched; says what to fetch and where to put it.
    """
    if config.model == DEMO:
        path = config.weights or str(SHIPPED / "demo_clip.safetensors")
    elif config.weights is not None:
        path = config.weights
    else:
        path = _fetch(config)
    if not os.path.isfile(path):
        raise MissingWeights(f"CLIP weights {path} do not exist. {_how_to_get(config)}")
    with open(path, "rb") as stream:
        return Weights(path=path, sha256=sha256_of(stream))


def load_clip(config: ClipConfig, weights: Weights, device: str | None = None) -> Clip:
    """Builds the network and loads its weights. On cuda when there is one, unless a device is named.

    Raises:
        CheckpointError: the file holds something else than this model's weights.
    """
    clip = _built(config)
    _load(clip.network, weights.path)
    return _on_device(clip, config, device)


def untrained_clip(config: ClipConfig, device: str | None = None) -> Clip:
    """The same with random weights: as fast and as exact, for measurements. Its features mean nothing."""
    return _on_device(_built(config), config, device)


def _built(config: ClipConfig) -> Clip:
    """On the CPU, in float32, with whatever weights it is made with."""
    import open_clip

    if config.model == DEMO:
        from models.tokenizers import clip_tokenizer

        facts = json.loads((SHIPPED / "demo_clip.json").read_text())
        network = open_clip.model.CLIP(**facts["model"])
        mean, std, tokenize = (
            tuple(facts["mean"]),
            tuple(facts["std"]),
            clip_tokenizer(facts["num_merges"], facts["model"]["text_cfg"]["context_length"]),
        )
    else:
        tag = open_clip.get_pretrained_cfg(config.model, config.pretrained)
        network = open_clip.create_model(
            config.model, pretrained=None, load_weights=False, force_quick_gelu=bool(tag.get("quick_gelu", False)), device="cpu"
        )
        mean, std, tokenize = tuple(tag["mean"]), tuple(tag["std"]), open_clip.get_tokenizer(config.model)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, open_clip.transformer.QuickGELU):
                setattr(module, name, QuickGelu())
    size = network.visual.image_size
    return Clip(
        network=network,
        tokenize=tokenize,
        image_size_px=int(size[0] if isinstance(size, tuple | list) else size),
        mean=mean,
        std=std,
        dim=int(network.visual.output_dim),
        device=torch.device("cpu"),
        precision="fp32",
    )


class QuickGelu(torch.nn.Module):
    """x sigmoid(1.702 x), to the bit open_clip's QuickGELU; on a CPU some rows at a time, in a quarter of the time (6 % of ViT-B/16's)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return x * torch.sigmoid(1.702 * x)
        x = x.contiguous()
        y = torch.empty_like(x)
        for rows, out in zip(x.flatten(0, -2).split(GELU_ROWS), y.flatten(0, -2).split(GELU_ROWS), strict=True):
            torch.mul(rows, 1.702, out=out).sigmoid_().mul_(rows)
        return y


def _on_device(clip: Clip, config: ClipConfig, device: str | None) -> Clip:
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = clip.network.eval().requires_grad_(False).to(where)
    if config.precision == "bf16":
        network = network.to(torch.bfloat16)
    return dataclasses.replace(clip, network=network, device=where, precision=config.precision)


@functools.lru_cache(maxsize=1)
def loaded_clip(config: ClipConfig, weights: Weights) -> Clip:
    """`load_clip`, once a process: a worker that embeds many partitions loads the network for the first."""
    return load_clip(config, weights)


def _check_tag(model: str, pretrained: str) -> None:
    import open_clip

    if model not in open_clip.list_models():
        raise ConfigError(f'ClipConfig: open_clip has no model {model!r}. Choose "{DEMO}" or one of: {", ".join(open_clip.list_models())}')
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise ConfigError(f"ClipConfig: {model} has no weights {pretrained!r}. Choose one of: {', '.join(tags)}")


def _fetch(config: ClipConfig) -> str:
    import huggingface_hub
    import open_clip
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = str(open_clip.get_pretrained_cfg(config.model, config.pretrained).get("hf_hub", "")).rstrip("/")
    if not repository:
        raise MissingWeights(f"{config.model}/{config.pretrained} has no address to fetch it from. {_how_to_get(config)}")
    name = open_clip.constants.HF_SAFE_WEIGHTS_NAME
    with contextlib.suppress(LocalEntryNotFoundError):
        return huggingface_hub.hf_hub_download(repository, name, local_files_only=True)
    try:
        return huggingface_hub.hf_hub_download(repository, name)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise MissingWeights(
            f"CLIP weights {config.model}/{config.pretrained} are not in the cache and cannot be fetched ({reason}). {_how_to_get(config)}"
        ) from problem


def _how_to_get(config: ClipConfig) -> str:
    if config.model == DEMO:
        return (
            "The demo's weights ship with Winnow: restore models/weights/demo_clip.safetensors, "
            "or train them with `winnow train clip --recipe demo`."
        )
    import open_clip

    repository = str(open_clip.get_pretrained_cfg(config.model, config.pretrained).get("hf_hub", "")).rstrip("/")
    name = open_clip.constants.HF_SAFE_WEIGHTS_NAME
    return (
        f"On a machine with a network, fetch https://huggingface.co/{repository}/resolve/main/{name}, bring the file here, "
        f"and give its path in the config (embed: weights: /path/to/{name}). Nothing has run."
    )


def _load(network: torch.nn.Module, path: str) -> None:
    state = read_tensors(path)
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise CheckpointError(f"{path} does not fit the model: {name} should be {tuple(tensor.shape)}, the file has {found}")
    network.load_state_dict({name: state[name] for name in wanted})
