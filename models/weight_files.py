"""Files of named tensors: safetensors, and PyTorch's `.pt` without the code that a pickle may carry. Whole or absent."""

import contextlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from winnow.errors import CheckpointError

ABOUT = "winnow"
"""Entry of a safetensors file's metadata."""
# What torch.load raises on files that are cut, altered or no checkpoint at all, weights_only or not.
_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError),
    *(OverflowError, MemoryError, struct.error, zipfile.BadZipFile),
)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pt file that holds tensors and nothing else. No code in a file is ever run.

    Raises:
        CheckpointError: there is no such file, or it is damaged, or holds something else than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not there; give a checkpoint folder (step-NNNNNN), a .safetensors file or a .pt file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as problem:
            cure = "fetch it again, or remove a checkpoint's folder to go on from the one before"
            raise CheckpointError(f"{path} is damaged ({problem}); {cure}") from problem
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as problem:
        raise CheckpointError(f"{path} is not a file of tensors alone, or is damaged ({_why(problem)})") from problem
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds something else than named tensors: a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} holds something else than named tensors: {name!r} is a {type(value).__name__}")
    return content


def _why(problem: BaseException) -> str:
    """What torch.load says, but for its advice to run the code in a file after all."""
    lines = [line for line in str(problem).splitlines() if line and "weights_only" not in line]
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """A .safetensors file that appears whole or not at all. Same content, same bytes.

    Args:
        about: JSON-able; what `read_about` gives back.
    """
    from safetensors.torch import save_file

    # One entry: safetensors writes several in any order.
    metadata = {ABOUT: json.dumps(about, sort_keys=True)} if about is not None else None
    with _appearing(Path(path)) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_about(path: Path) -> dict[str, Any] | None:
    """What `write_tensors` was told of a file; None if there is no such file, or it was told nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get(ABOUT)
    except (FileNotFoundError, SafetensorError):
        return None
    return None if about is None else dict(json.loads(about))


def write_state_dict(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """A .pt file of named tensors, in this order, as torch.load reads it anywhere; it appears whole or not at all."""
    with _appearing(Path(path)) as temporary:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A path to write to; what was written there appears at `path` when all went well, and is gone when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors lets nobody but the owner read what it writes; a team shares its checkpoints
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or the list of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
