"""Numbers of the released GLIDE code: a selection in tests/vectors, all of them where WINNOW_TEST_VECTORS names a folder."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from models.text import TextConfig
from models.unet import UNetConfig

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
