"""Numbers of the released GLIDE code: a selection in tests/vectors, all of them where WINNOW_TEST_VECTORS names a folder.

And models of those sizes for tests of what surrounds a network.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.catalog import ModelSpec, diffusion_model
from models.text import Captions, TextConfig, empty_captions
from models.unet import UNet, UNetConfig

SELECTION = Path(__file__).parent / "vectors"
TEXT = TextConfig(context_length=16, width=32, num_layers=2, num_heads=2, vocab_size=301)


def load_vectors(name: str) -> dict[str, Tensor]:
    """Tensors of a file; skips the test if it is not among the selection and the whole set is not here."""
    folder = Path(os.environ.get("WINNOW_TEST_VECTORS") or SELECTION)
    path = folder / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"WINNOW_TEST_VECTORS does not name a folder with {name}.safetensors")
    return load_file(path)


def weights(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("w/"): tensor for name, tensor in vectors.items() if name.startswith("w/")}


def inputs(vectors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Those of the named inputs that the file has."""
    return {name: vectors[f"in/{name}"] for name in names if f"in/{name}" in vectors}


def unet_config(kind: str) -> UNetConfig:
    """The reduced sizes that the vectors were made with."""
    upsample = kind.startswith("upsample")
    return UNetConfig(
        image_size_px=32,
        model_channels=32,
        channel_mult=(1, 2) if upsample else (1, 1, 2),
        num_res_blocks=1,
        attention_sizes_px=(16,) if upsample else (16, 8),
        head_channels=16,
        text=TEXT,
        inpaint="inpaint" in kind,
        upsample=upsample,
    )


UNET_KINDS = ("base", "inpaint", "upsample", "upsample_inpaint")


def letters(captions, context_length: int) -> Captions:
    """A tokenizer for tests: a token a letter."""
    tokens, mask = empty_captions(len(captions), context_length)
    for row, caption in enumerate(captions):
        codes = [1 + ord(letter) % 300 for letter in caption[:context_length]]
        tokens[row, : len(codes)] = torch.tensor(codes, dtype=torch.long)
        mask[row, : len(codes)] = True
    return Captions(tokens, mask)


def small_spec(kind: str = "base", image_size_px: int = 8) -> ModelSpec:
    """A diffusion model that reads letters and takes milliseconds; its kinds are those of the vectors."""
    config = UNetConfig(
        image_size_px=image_size_px,
        model_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_sizes_px=(image_size_px // 2,),
        head_channels=16,
        text=TEXT,
        inpaint="inpaint" in kind,
        upsample=kind.startswith("upsample"),
    )
    return diffusion_model(f"small-{kind}", config, letters)


def woken(model: nn.Module) -> nn.Module:
    """Not trained, but with weights in its zero-initialised layers, so that prompts and timesteps matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model.eval()


def small_model(spec: ModelSpec, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return woken(spec.build())
