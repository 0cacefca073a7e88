"""The checkpoints that were released with GLIDE (arXiv:2112.10741): where they are, and between their form and ours.

Theirs is a pickled state dict, for noised CLIP one a tower; ours is one safetensors file with the same names, in float32. No
number changes on the way: what was imported and exported again is bit for bit what it was (float16 becomes float32, exactly).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models.catalog import MODELS, ModelSpec, find_model
from models.checkpoints import WeightsPath, first_difference, read_weights, told
from models.fetch import RemoteFile, Seen, cache_folder, fetched, file_digest
from models.weight_files import read_about, write_state_dict, write_tensors
from winnow.errors import CheckpointError, ConfigError

SOURCE = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021"
TOWERS = ("image", "text")
"""Of noised CLIP, in the order of its files."""

# Their digests were never published: that of the first download is recorded, and holds from then on.
RELEASED: dict[str, tuple[str, ...]] = {
    "base": ("base.pt",),
    "base-inpaint": ("base_inpaint.pt",),
    "upsampler": ("upsample.pt",),
    "upsampler-inpaint": ("upsample_inpaint.pt",),
    "noised-clip": ("clip_image_enc.pt", "clip_text_enc.pt"),
}
"""Files of each released model, below SOURCE."""


def import_weights(files: Sequence[str | os.PathLike[str]], model: str, out: str | os.PathLike[str]) -> int:
    """Writes a released checkpoint (one file; two for a noised CLIP, in any order) as safetensors. Returns the number of parameters.

    Raises:
        ConfigError: there is no such model, or `out` has another ending.
        CheckpointError: the files hold something else than named tensors, or another model: names the first parameter that differs.
    """
    spec = find_model(model)
    _check_endings([out], ".safetensors")
    weights = {name: tensor.to(torch.float32) for name, tensor in _weights_of(list(files), spec).items()}
    write_tensors(out, weights, {"model": model, "sources": [file_digest(Path(file)) for file in files]})
    return sum(tensor.numel() for tensor in weights.values())


def export_weights(weights: str | os.PathLike[str], model: str, outs: Sequence[str | os.PathLike[str]]) -> int:
    """Writes a checkpoint folder (its EMA) or a file in the released form. Returns the number of parameters.

    Args:
        outs: one .pt file; for a noised CLIP two, of the image tower and of the text tower.

    Raises: as `import_weights`.
    """
    spec = find_model(model)
    _check_endings(outs, ".pt")
    wanted = len(TOWERS) if spec.kind == "noised_clip" else 1
    if len(outs) != wanted:
        raise ConfigError(f"{model} is released as {wanted} file{'s' * (wanted > 1)}, and {len(outs)} were named to be written")
    found = _weights_of(weights, spec)
    ordered = {name: found[name] for name in _on_meta(spec).state_dict()}
    parts = [ordered] if wanted == 1 else [_below(ordered, f"{tower}.") for tower in TOWERS]
    for out, part in zip(outs, parts, strict=True):
        write_state_dict(out, part)
    return sum(tensor.numel() for tensor in ordered.values())


def fetch_weights(
    model: str,
    out: str | os.PathLike[str] | None = None,
    *,
    source: str = SOURCE,
    cache: Path | None = None,
    seen: Seen | None = None,
) -> Path:
    """A released model as safetensors, fetched and imported if that was not done before.

    Args:
        out: where the safetensors file goes. None: beside the downloads, `<model>.safetensors`.
        source: who serves the files.
        cache: where downloads are kept. None: the user's cache folder.

    Raises:
        ConfigError: the model was not released.
        MissingWeights: the files cannot be fetched; says what to bring where.
        CheckpointError: a file changed since it was first fetched, or is not that model.
    """
    if model not in RELEASED:
        raise ConfigError(f"no weights of {model!r} were released, only of {', '.join(RELEASED)}")
    folder = cache_folder("weights") if cache is None else cache
    target = Path(out) if out is not None else folder / f"{model}.safetensors"
    files = [fetched(RemoteFile(name=name, url=f"{source}/{name}"), folder, seen=seen) for name in RELEASED[model]]
    if (read_about(target) or {}) != {"model": model, "sources": [file_digest(file) for file in files]}:
        import_weights(files, model, target)
    return target


def _weights_of(path: WeightsPath, spec: ModelSpec) -> dict[str, Tensor]:
    """Named tensors, if they are those of the model."""
    weights = read_weights(path)
    if what := first_difference(_on_meta(spec), weights):
        fitting = [name for name, other in MODELS.items() if not first_difference(_on_meta(other), weights)]
        advice = f"These weights are of {' or '.join(fitting)}: name that" if fitting else "They are of no model in models/catalog.py"
        raise CheckpointError(f"{told(path)} is not a {spec.name}: {what}. {advice}")
    return weights


def _on_meta(spec: ModelSpec) -> nn.Module:
    with torch.device("meta"):
        return spec.build()


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _check_endings(paths: Sequence[str | os.PathLike[str]], ending: str) -> None:
    for path in paths:
        if Path(path).suffix != ending:
            raise ConfigError(f"what is written is a {ending} file; {path} has another ending")
