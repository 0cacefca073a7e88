"""Samples as a folder of files: many prompts, several samples of each, the best of them kept; numbered PNGs and a grid."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.generate import Models
from models.image_files import save_grid, save_png
from models.reranking import best_first, clip_scores
from models.sampling import SampleSettings
from winnow.errors import ConfigError

if TYPE_CHECKING:
    from models.clip_embedder import Clip

Draw = Callable[[list[str], list[int]], Tensor]
"""Prompts and as many seeds, to pixels (n, size, size, 3) uint8."""
AT_ONCE = 64
"""Samples that are drawn before files are written."""
LARGEST_GRID = 100
"""Images in a grid, at most: the first ones."""


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a UTF-8 text file, one a line; an empty line is the empty prompt. Raises ConfigError."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path} is no UTF-8 text: {problem.reason} at byte {problem.start}") from problem
    if not text:
        raise ConfigError(f"{path} holds no prompt: write one a line")
    # Not splitlines: that would cut prompts at form feeds and other separators, too.
    return text.removesuffix("\n").split("\n")


def check_folder(out: str | Path) -> Path:
    """A folder that samples may be written to. Raises ConfigError if it holds images already, or cannot be made."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"{out} cannot be made a folder for samples: {problem.strerror}") from problem
    if next(folder.glob("*.png"), None) is not None:
        raise ConfigError(f"{out} holds images already; name another folder, or remove them")
    return folder


def write_samples(
    folder: Path,
    prompts: Sequence[str],
    draw: Draw,
    facts: Mapping[str, Any],
    *,
    seed: int = 0,
    num_samples: int = 1,
    keep: int | None = None,
    clip: "Clip | None" = None,
) -> int:
    """Draws `num_samples` of each prompt and writes those that are kept: 00000.png, 00001.png, ... by prompt, and grid.png.

    Args:
        facts: what all samples share; goes into each PNG beside its own prompt, seed and score.
        seed: of the first sample; each further one has the next.
        keep: the best of each prompt by `clip`, best first; None keeps all.

    Returns:
        The number of images written, without the grid.
    """
    assert (clip is None) == (keep is None), "samples are judged if some are to be kept only"
    prompts_at_once = max(1, AT_ONCE // num_samples)
    shown: list[Tensor] = []
    written = 0
    for begin in range(0, len(prompts), prompts_at_once):
        repeated = [prompt for prompt in prompts[begin : begin + prompts_at_once] for _ in range(num_samples)]
        seeds = [seed + begin * num_samples + number for number in range(len(repeated))]
        pixels = draw(repeated, seeds)
        scores = None if clip is None else clip_scores(clip, pixels, repeated)
        rows = np.arange(len(repeated)) if scores is None or keep is None else best_first(scores, num_samples, keep)
        for row in rows.tolist():
            score = {} if scores is None else {"clip_score": round(float(scores[row]), 5)}
            save_png(folder / f"{written:05d}.png", pixels[row], {**facts, "prompt": repeated[row], "seed": seeds[row], **score})
            written += 1
        shown += [pixels[row] for row in rows.tolist()][: LARGEST_GRID - len(shown)]
    a_prompt = keep or num_samples
    save_grid(torch.stack(shown), folder / "grid.png", columns=a_prompt if 1 < a_prompt <= 10 else None)
    return written


def facts_of(models: Models, settings: SampleSettings) -> dict[str, Any]:
    """What samples are made with, for their PNGs."""
    sampler, steps = settings.settled
    upsampler = models.upsampler
    return {
        "model": models.base.spec.name,
        "weights_sha256": models.base.sha256,
        "sampler": sampler.name,
        "steps": steps,
        "eta": settings.eta,
        "guidance_scale": settings.guidance_scale,
        "guidance_interval": settings.guidance_interval,
        "upsampler": None if upsampler is None else {"model": upsampler.spec.name, "weights_sha256": upsampler.sha256},
    }
