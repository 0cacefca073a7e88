"""Checkpoints: folders `step-NNNNNN` that are whole or absent, and reading weights of ours or of the released files.

A checkpoint holds `model`, `ema` and `optimizer` as safetensors, and `state.json`. It is written under a temporary name and
renamed: a folder that has its final name is complete. Files of tensors are read by models/weight_files.py: no pickle is loaded.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.catalog import ModelSpec
from models.weight_files import flush, read_tensors
from winnow.digests import sha256_of
from winnow.errors import CheckpointError
from winnow.storage import Storage

STATE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")


class Checkpoint(NamedTuple):
    """A checkpoint as it is kept in memory. Tensors by name."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """JSON-able: step, config, data and what else must be known to go on."""


def checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """Steps of the checkpoint with this name; None if it is no checkpoint's."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def list_checkpoints(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Complete checkpoints of a training, (step, folder), oldest first."""
    found = [(step, entry) for entry in Path(folder).glob("step-*") if (step := step_of(entry.name)) is not None]
    return sorted(found)


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint of most steps; None if there is none."""
    found = list_checkpoints(folder)
    return found[-1][1] if found else None


def save_checkpoint(folder: str | os.PathLike[str], step: int, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint into a training's folder, whole or not at all. Same content, same bytes."""
    from safetensors.torch import save_file

    parent = Path(folder)
    final, temporary = parent / checkpoint_name(step), parent / f".writing-{checkpoint_name(step)}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for part in ("model", "ema", "optimizer"):
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in getattr(checkpoint, part).items()},
            temporary / f"{part}.safetensors",
        )
    (temporary / STATE).write_text(json.dumps(checkpoint.state, sort_keys=True, indent=1) + "\n")
    for file in (*temporary.iterdir(), temporary):
        flush(file)
    if final.exists():
        remove_checkpoint(final)
    os.replace(temporary, final)
    flush(parent)
    return final


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint. Its final name goes first, so that a kill in between leaves no half checkpoint."""
    going = path.parent / f".removing-{path.name}"
    shutil.rmtree(going, ignore_errors=True)
    os.replace(path, going)
    shutil.rmtree(going)


def clear_unfinished(folder: str | os.PathLike[str]) -> None:
    """Removes what killed trainings left half written or half removed. Only for the one that writes there."""
    for pattern in (".writing-*", ".removing-*"):
        for left in Path(folder).glob(pattern):
            shutil.rmtree(left)


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as problem:
        raise CheckpointError(
            f"{path}/{STATE} cannot be read ({problem}); remove {path} to go on from the checkpoint before it"
        ) from problem
    return state


def load_checkpoint(path: Path) -> Checkpoint:
    """A whole checkpoint, to go on training from."""
    model, ema, optimizer = (read_tensors(path / f"{part}.safetensors") for part in ("model", "ema", "optimizer"))
    return Checkpoint(model, ema, optimizer, read_state(path))


def load_weights(path: "WeightsPath", spec: ModelSpec) -> nn.Module:
    """A model with its weights, on the CPU and ready to sample from.

    Args:
        path: a checkpoint folder (its `ema` is taken), a .safetensors or .pt file; or the two files of a released noised CLIP.

    Raises:
        CheckpointError: names the first parameter, in alphabetical order, that is missing, left over or of another shape.
    """
    model = spec.build()
    put_weights(model, read_weights(path), f"{told(path)} is not a {spec.name}")
    return model.eval()


WeightsPath = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A checkpoint folder, a file, or the two files of a released noised CLIP."""


def read_weights(path: WeightsPath) -> dict[str, Tensor]:
    """Named tensors of a checkpoint folder (its `ema`) or a file; the two files of a released noised CLIP are put together."""
    weights: dict[str, Tensor] = {}
    for one in _each(path):
        weights.update(_under_towers(read_tensors(_weights_file(one))))
    return weights


def told(path: WeightsPath) -> str:
    """For messages."""
    return ", ".join(map(str, _each(path)))


def _each(path: WeightsPath) -> list[str | os.PathLike[str]]:
    return [path] if isinstance(path, (str, os.PathLike)) else list(path)


def weights_digest(path: str | os.PathLike[str] | None) -> str:
    """sha256 of the file that `load_weights` would read, also of one at a url; empty for None."""
    if path is None:
        return ""
    if is_url(path):
        store, name = remote_weights(str(path))
        try:
            return store.sha256(name)
        except FileNotFoundError:
            raise no_weights(path) from None
    file = _weights_file(path)
    if not file.is_file():
        raise no_weights(file)
    with open(file, "rb") as stream:
        return sha256_of(stream)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is on an object store, rather than a path."""
    return "://" in str(path)


def no_weights(path: str | os.PathLike[str]) -> CheckpointError:
    return CheckpointError(f"{path} is not there; give a checkpoint folder (step-NNNNNN), a .safetensors file or a .pt file")


def remote_weights(url: str) -> tuple[Storage, str]:
    """The folder and the name of the file of weights at the url of a checkpoint or of the file itself."""
    parent, _, name = url.rstrip("/").rpartition("/")
    return (Storage(parent), name) if name.endswith((".safetensors", ".pt")) else (Storage(url), "ema.safetensors")


def _weights_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / "ema.safetensors" if path.is_dir() else path


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], complaint: str) -> None:
    """Copies weights into a model, after checking names and shapes. Weights of any precision become those of the model."""
    if what := first_difference(model, weights):
        raise CheckpointError(f"{complaint}: {what}. Name the model that the weights were made for (models/catalog.py)")
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()})


def first_difference(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """In words, the first parameter, in alphabetical order, that is missing, left over or of another shape; empty if all are right."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if expected[name] != found[name]:
            return f"{name} is {list(found[name])} where {list(expected[name])} is expected"
    return ""


def _under_towers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The two released files of noised CLIP share their names; here they stand under `image.` and `text.`."""
    for tower, sign in (("image", "blocks.input.w_t"), ("text", "blocks.input.w_voc")):
        if sign in weights:
            return {f"{tower}.{name}": tensor for name, tensor in weights.items()}
    return weights
