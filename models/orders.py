"""An order of samples or edits, from settings to a folder of images: what `winnow sample` and `winnow edit` do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from models.catalog import find_model
from models.generate import (
    PUBLIC,
    FillIn,
    Models,
    Runs,
    check_guide,
    edit,
    generate,
    load_guide,
    load_models,
    load_public_clip,
    public_clip_config,
)
from models.image_files import Edited, read_edited
from models.precision import Precision, settled_precision
from models.sample_files import check_folder, facts_of, write_samples
from models.samplers import settled_schedule
from models.sampling import SampleSettings, device_for
from winnow.errors import ConfigError

MOST_SEED = 2**63
Seen = Callable[[int, int], None]
"""Told how many images are finished, and of how many; with an upsampler each counts twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is to be drawn, by which models, and where to. Raises ConfigError."""

    prompts: tuple[str, ...]
    out: str
    """A folder without images."""
    model: str = "base"
    """A name of models/catalog.py; `weights` are a file, a checkpoint, or a training's folder, here and below."""
    weights: str | None = None
    upsampler: str | None = None
    upsampler_weights: str | None = None
    settings: SampleSettings = field(default_factory=SampleSettings)
    guide: str | None = None
    """A noised CLIP of models/catalog.py, or "public"."""
    guide_weights: str | None = None
    """Of a noised one."""
    guide_scale: float = 3.0
    num_samples: int = 1
    """Of each prompt."""
    keep: int | None = None
    """The best of them by the public CLIP, best first; None keeps all as they come."""
    clip: str = "ViT-B-16/openai"
    """The public CLIP, as models/generate.py names it."""
    clip_weights: str | None = None
    seed: int = 0
    """Of the first sample; each further one has the next."""
    batch_size: int | None = None
    device: str | None = None
    precision: Precision = "float32"
    """ "bfloat16" allows for it where it is faster."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError('there is no prompt to draw for; "" is the empty one, for an image of nothing in particular')
        if self.num_samples < 1:
            raise ConfigError(f"at least 1 sample of each prompt must be drawn, got {self.num_samples}")
        if self.keep is not None and not 1 <= self.keep <= self.num_samples:
            raise ConfigError(f"of {self.num_samples} samples a prompt between 1 and {self.num_samples} can be kept, not {self.keep}")
        if not 0 <= self.seed <= MOST_SEED - len(self.prompts) * self.num_samples:
            raise ConfigError(f"seed must be 0 or more, and all samples' seeds less than 2^63, got {self.seed}")
        for prompt in self.prompts:
            if not prompt.isascii() and not _is_text(prompt):
                raise ConfigError(f"the prompt {prompt[:40]!r} is no text: it holds bytes that are not UTF-8")
        # All that is wrong is said before weights are read, which takes a while.
        settled_schedule(*self.settings.settled, find_model(self.model).schedule())
        device_for(self.device)
        if self.guide is not None:
            check_guide(self.guide)
        if self.guide == PUBLIC or self.keep is not None:
            public_clip_config(self.clip, self.clip_weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class EditOrder:
    """The picture that an order edits instead of beginning with noise alone; see `edit` in models/generate.py."""

    image: str
    mask: str | None = None
    strength: float = 1.0
    fill_in: FillIn | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ConfigError(f"strength must be more than 0 and at most 1, got {self.strength}")
        if self.mask is None and self.strength == 1:
            raise ConfigError("nothing of the picture would be left: give a mask (--mask) or a strength below 1 (--strength)")


def _is_text(prompt: str) -> bool:
    """Not so for what a shell passed on that is in another encoding than UTF-8."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True


def fill(order: Order, edited: EditOrder | None = None, *, seen: Seen | None = None) -> int:
    """Draws what was ordered into its folder: numbered PNGs with their settings, and grid.png. Returns the number of PNGs.

    Raises:
        ConfigError: before anything is drawn.
    """
    folder = check_folder(order.out)
    given = None if edited is None else read_edited(edited.image, edited.mask)
    models = load_models(order.model, order.weights, upsampler=order.upsampler, upsampler_weights=order.upsampler_weights)
    public_clip = partial(load_public_clip, order.clip, order.clip_weights, order.device)
    guide = None
    if order.guide is not None:
        guide = load_guide(order.guide, order.guide_weights, scale=order.guide_scale, public_clip=public_clip)
    judge = None if order.keep is None else public_clip()
    runs = Runs(batch_size=order.batch_size, device=order.device, precision=order.precision, done=_counting(order, models, seen))

    def draw(prompts: list[str], seeds: list[int]) -> Tensor:
        if edited is None or given is None:
            return generate(models, prompts, seeds=seeds, settings=order.settings, guide=guide, runs=runs)
        return edit(
            models,
            given.picture,
            prompts,
            seeds=seeds,
            mask=given.mask,
            strength=edited.strength,
            fill_in=edited.fill_in,
            settings=order.settings,
            guide=guide,
            runs=runs,
        )

    facts = {
        **facts_of(models, order.settings),
        "precision": settled_precision(device_for(order.device), order.precision),
        "guide": None if guide is None else _clip_facts(order, order.guide, guide.weights_sha256) | {"scale": order.guide_scale},
        "rerank": None if judge is None else _clip_facts(order, PUBLIC, judge.sha256) | {"of": order.num_samples},
        "edit": None if edited is None or given is None else _edit_facts(edited, given, models),
    }
    return write_samples(
        folder,
        order.prompts,
        draw,
        facts,
        seed=order.seed,
        num_samples=order.num_samples,
        keep=order.keep,
        clip=None if judge is None else judge.clip,
    )


def _counting(order: Order, models: Models, seen: Seen | None) -> Callable[[int], None] | None:
    """Turns the counts of single calls, which begin anew with each, into one that grows."""
    if seen is None:
        return None
    total = len(order.prompts) * order.num_samples * (2 if models.upsampler else 1)
    finished = last = 0

    def done(count: int) -> None:
        nonlocal finished, last
        finished += count - last if count > last else count
        last = count
        seen(finished, total)

    return done


def _clip_facts(order: Order, name: str | None, sha256: str) -> dict[str, Any]:
    return {"model": order.clip if name == PUBLIC else name, "weights_sha256": sha256}


def _edit_facts(edited: EditOrder, given: Edited, models: Models) -> dict[str, Any]:
    return {
        "image_sha256": given.picture_sha256,
        "mask_sha256": given.mask_sha256,
        "strength": edited.strength,
        "fill_in": None if edited.mask is None else edited.fill_in or ("model" if models.base.fills_in else "replacement"),
    }
