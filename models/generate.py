"""The Python API of sampling: load models once, then turn prompts and seeds, or a picture to edit, into images.

    models = load_models("base", "base.safetensors", upsampler="upsampler", upsampler_weights="upsampler.safetensors")
    images = generate(models, ["a red barn", "two boats"], seeds=[0, 1])

Weights are never random: without a file there is an error that says how to get one.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from models.cascade import check_upsampler, enlarge, enlarged_mask
from models.catalog import MODELS, ModelSpec, find_model
from models.checkpoints import load_weights, newest_checkpoint, weights_digest
from models.clip_guidance import PublicClipGuide
from models.editing import Edit
from models.guidance import ClipGuide, Guide
from models.image_files import WHITE, mask_to_known, picture_to_tensor
from models.noised_clip import NoisedClip
from models.precision import Precision, computing
from models.released import RELEASED
from models.sampling import SampleSettings, device_for, draw_samples, to_pixels
from models.unet import UNetConfig
from winnow.errors import ConfigError, MissingWeights

if TYPE_CHECKING:
    from PIL import Image

    from models.clip_embedder import Clip, ClipConfig

FillIn = Literal["model", "replacement"]
PUBLIC = "public"
"""What a guide is called that is a public CLIP instead of a noised one of models/catalog.py."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its weights."""

    spec: ModelSpec
    network: nn.Module
    sha256: str
    """Of the weights' file."""

    @property
    def fills_in(self) -> bool:
        """Was trained to fill in what a mask leaves open."""
        return isinstance(self.spec.config, UNetConfig) and self.spec.config.inpaint


@dataclass(frozen=True, kw_only=True)
class Models:
    """What makes images: a base model, and an upsampler if they are to be large."""

    base: Loaded
    upsampler: Loaded | None = None

    @property
    def image_size_px(self) -> int:
        return (self.upsampler or self.base).spec.image_size_px


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """How a call works through its images; does not change them beyond rounding."""

    batch_size: int | None = None
    """Images at a time; None is 1 on a CPU and 16 on a GPU."""
    device: torch.device | str | None = None
    """None takes a GPU if there is one."""
    precision: Precision = "float32"
    """ "bfloat16" allows for it where it is faster (models/precision.py); images then differ slightly."""
    done: Callable[[int], None] | None = None
    """Told the number of finished images after each batch: first of small ones, then, with an upsampler, of large ones."""


def load_models(
    model: str,
    weights: str | os.PathLike[str] | None,
    *,
    upsampler: str | None = None,
    upsampler_weights: str | os.PathLike[str] | None = None,
) -> Models:
    """Models by their names in models/catalog.py, with weights from files or checkpoint folders.

    Raises:
        ConfigError: an unknown model (the choices are listed), or one that does not do what it is to do.
        MissingWeights: no weights were given; says how to get them.
        CheckpointError: they are another model's; names the first parameter that differs.
    """
    spec = find_model(model)
    if spec.kind != "diffusion" or (isinstance(spec.config, UNetConfig) and spec.config.upsample):
        raise ConfigError(f"{model} does not make images of captions alone; models/catalog.py has {', '.join(_base_models())}")
    if upsampler is None and upsampler_weights is not None:
        raise ConfigError("weights of an upsampler were given, but not which upsampler they are of")
    if upsampler is not None:
        check_upsampler(find_model(upsampler))
    return Models(
        base=load_model(model, weights),
        upsampler=None if upsampler is None else load_model(upsampler, upsampler_weights),
    )


def load_model(name: str, weights: str | os.PathLike[str] | None) -> Loaded:
    """One model; its weights are a file, a checkpoint (`step-NNNNNN`), or a training's folder, of which the newest checkpoint is taken."""
    spec = find_model(name)
    if weights is None:
        fetch = f"Fetch them with `winnow weights fetch {name} --out {name}.safetensors`, or train" if name in RELEASED else "Train"
        raise MissingWeights(
            f"no weights of {name} were given, and none are made up. {fetch} the model with `winnow train models`; "
            "then give the path of the file or checkpoint (docs/sampling.md)"
        )
    path = Path(weights)
    if path.is_dir() and not (path / "ema.safetensors").exists():
        path = newest_checkpoint(path) or path
    return Loaded(spec=spec, sha256=weights_digest(path), network=load_weights(path, spec))


class PublicClip(NamedTuple):
    """A public CLIP with its weights."""

    clip: "Clip"
    sha256: str
    """Of the weights' file."""


@lru_cache(maxsize=1)
def load_public_clip(name: str = "ViT-B-16/openai", weights: str | None = None, device: str | None = None) -> PublicClip:
    """A public CLIP, for guidance and for choosing among samples. The last one is kept, so that both can share it.

    Args:
        name: open_clip's model and tag of weights, or "demo" for the small one that ships with Winnow.
        weights: a file; None takes a cache, then the network. Raises MissingWeights, which says what to fetch, if neither has it.
    """
    from models.clip_embedder import load_clip, resolve_weights

    config = public_clip_config(name, weights)
    found = resolve_weights(config)
    return PublicClip(load_clip(config, found, device), found.sha256)


def public_clip_config(name: str, weights: str | None = None) -> "ClipConfig":
    """Which public CLIP a name means. Raises ConfigError if open_clip has none of that name."""
    from models.clip_embedder import DEMO, ClipConfig

    model, _, pretrained = name.partition("/")
    if model != DEMO and not pretrained:
        raise ConfigError(f"the public CLIP {name!r} must be named with its weights, as in ViT-B-16/openai, or be {DEMO!r}")
    return ClipConfig(model=model, pretrained=pretrained or "openai", weights=weights)


def check_guide(name: str) -> None:
    """Raises ConfigError, listing the names there are, if no guide is called that."""
    choices = [PUBLIC, *(spec.name for spec in MODELS.values() if spec.kind == "noised_clip")]
    if name not in choices:
        raise ConfigError(f"there is no guide {name!r}; choose from {', '.join(choices)}")


def load_guide(
    name: str, weights: str | os.PathLike[str] | None = None, *, scale: float, public_clip: Callable[[], PublicClip] = load_public_clip
) -> ClipGuide | PublicClipGuide:
    """A guide by name: a noised CLIP of models/catalog.py with its weights, or "public".

    Args:
        public_clip: loads the public one; called only for "public".
    """
    check_guide(name)
    if name == PUBLIC:
        clip, sha256 = public_clip()
        return PublicClipGuide(clip=clip, scale=scale, weights_sha256=sha256)
    loaded = load_model(name, weights)
    return ClipGuide(model=cast(NoisedClip, loaded.network), spec=loaded.spec, scale=scale, weights_sha256=loaded.sha256)


def generate(
    models: Models,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    settings: SampleSettings | None = None,
    guide: Guide | None = None,
    runs: Runs | None = None,
) -> Tensor:
    """An image for each prompt: (n, size, size, 3) uint8 RGB, on the CPU; 256 px with GLIDE's upsampler, else 64.

    An image follows from its prompt, its seed and the settings alone, whatever else is drawn with it.

    Args:
        prompts: "" is the empty caption: an image of nothing in particular.
        seeds: one an image.
        settings: of the base model; the upsampler has its own (models/cascade.py).
    """
    runs = runs or Runs()
    with computing(device_for(runs.device), runs.precision):
        small = draw_samples(
            models.base.network,
            models.base.spec,
            prompts,
            seeds=seeds,
            settings=settings,
            guide=guide,
            batch_size=runs.batch_size,
            device=runs.device,
            done=runs.done,
        )
        return to_pixels(_enlarged(models, small, prompts, seeds, None, runs))


def edit(
    models: Models,
    picture: "Image.Image",
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    mask: "Image.Image | None" = None,
    strength: float = 1.0,
    fill_in: FillIn | None = None,
    settings: SampleSettings | None = None,
    guide: Guide | None = None,
    runs: Runs | None = None,
) -> Tensor:
    """Edits of one square picture, one for each prompt, in the form of `generate`.

    Args:
        mask: of the picture's size: what is white is filled in, what is black stays, to the pixel.
        strength: how far the picture is noised before it is denoised towards the prompt, in (0, 1]; 1 keeps what the mask keeps alone.
        fill_in: by a base model trained for it, or by replacement, which any can; None: as the base model was trained. The upsampler
            fills in as it was trained, whatever the base model does.

    Raises:
        ConfigError: picture and mask are not squares of one size, or neither mask nor strength is given.
    """
    _check_square(picture, mask)
    runs = runs or Runs()
    base, upsampler = models.base, models.upsampler
    size = base.spec.image_size_px
    known = None if mask is None else mask_to_known(mask, size)
    asked = Edit(image=picture_to_tensor(picture, size), known=known, fill_in=fill_in or _way_of(base), strength=strength)
    large_edit = None
    if upsampler is not None and known is not None:
        large = upsampler.spec.image_size_px
        large_edit = Edit(image=picture_to_tensor(picture, large), known=enlarged_mask(known, large), fill_in=_way_of(upsampler))
    with computing(device_for(runs.device), runs.precision):
        small = draw_samples(
            base.network,
            base.spec,
            prompts,
            seeds=seeds,
            settings=settings,
            guide=guide,
            edit=asked,
            batch_size=runs.batch_size,
            device=runs.device,
            done=runs.done,
        )
        return to_pixels(_enlarged(models, small, prompts, seeds, large_edit, runs))


def _enlarged(models: Models, small: Tensor, prompts: Sequence[str], seeds: Sequence[int], edit: Edit | None, runs: Runs) -> Tensor:
    if models.upsampler is None:
        return small
    return enlarge(
        models.upsampler.network,
        models.upsampler.spec,
        small,
        prompts,
        seeds=seeds,
        edit=edit,
        batch_size=runs.batch_size,
        device=runs.device,
        done=runs.done,
    )


def _way_of(model: Loaded) -> FillIn:
    return "model" if model.fills_in else "replacement"


def _check_square(picture: "Image.Image", mask: "Image.Image | None") -> None:
    if picture.width != picture.height:
        raise ConfigError(
            f"the picture is {picture.width} x {picture.height} pixels; give a square one (models/image_files.py: middle_square)"
        )
    if mask is not None and mask.size != picture.size:
        (width, height), (mask_width, mask_height) = picture.size, mask.size
        raise ConfigError(f"the picture is {width} x {height} pixels and its mask {mask_width} x {mask_height}: they must be of one size")
    if mask is not None and max(mask.convert("L").tobytes()) < WHITE:
        raise ConfigError("the mask is black all over: there is nothing to fill in. What is white in it is filled in")


def _base_models() -> list[str]:
    return [spec.name for spec in MODELS.values() if isinstance(spec.config, UNetConfig) and not spec.config.upsample]
