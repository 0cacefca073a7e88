"""Every model there is. The command line, the flows and the tests loop over MODELS; adding a model is one more entry."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import nn

from models.diffusion import Schedule, ScheduleName, make_schedule
from models.noised_clip import NoisedClip, NoisedClipConfig
from models.text import TextConfig, Tokenizer, clip_captions, glide_captions
from models.tokenizers import vocab_size
from models.unet import UNet, UNetConfig
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What a model is, apart from its weights."""

    name: str
    kind: Literal["diffusion", "noised_clip"]
    config: UNetConfig | NoisedClipConfig
    build: Callable[[], nn.Module]
    """Makes the model with fresh weights, from torch's global generator."""
    tokenizer: Tokenizer
    """How captions become tokens."""
    schedule_name: ScheduleName = "squaredcos_cap_v2"
    num_timesteps: int = 1000
    initial_noise_scale: float = 1.0
    """What the noise that sampling starts from is multiplied by."""

    @property
    def image_size_px(self) -> int:
        return self.config.image_size_px

    @property
    def context_length(self) -> int:
        return self.config.text.context_length if isinstance(self.config, UNetConfig) else self.config.context_length

    def schedule(self) -> Schedule:
        return make_schedule(self.schedule_name, self.num_timesteps)


def diffusion_model(name: str, config: UNetConfig, tokenizer: Tokenizer) -> ModelSpec:
    """A base model, or, if its config says `upsample`, an upsampler: these have the linear schedule and start from slightly less noise."""
    return ModelSpec(
        name=name,
        kind="diffusion",
        config=config,
        build=partial(UNet, config),
        tokenizer=tokenizer,
        schedule_name="linear" if config.upsample else "squaredcos_cap_v2",
        initial_noise_scale=0.997 if config.upsample else 1.0,
    )


def noised_clip_model(name: str, config: NoisedClipConfig, tokenizer: Tokenizer) -> ModelSpec:
    """It sees what the base model makes on the way, so it has the base model's schedule."""
    return ModelSpec(name=name, kind="noised_clip", config=config, build=partial(NoisedClip, config), tokenizer=tokenizer)


GLIDE_TEXT = TextConfig(context_length=128, width=512, num_layers=16, num_heads=8, vocab_size=50257)

# By numbers alone, from GLIDE, section 4.1: the weights were never released.
# Stated: 24 blocks of width 2048. Inferred: heads of 64 channels, context and vocabulary, from the released models.
TEXT_3_5B = replace(GLIDE_TEXT, width=2048, num_layers=24, num_heads=32)
# Stated: width 1024. Inferred: 16 blocks as in the released models; they give the stated 1.5 billion (1.54), 24 would give 1.64.
TEXT_1_5B = replace(GLIDE_TEXT, width=1024, num_layers=16, num_heads=16)


def _base(*, inpaint: bool = False, model_channels: int = 192, text: TextConfig = GLIDE_TEXT) -> UNetConfig:
    """ADM's 64 px model (arXiv:2105.05233, appendix I). The one of 3.5 billion is stated to be wider (512), and nothing else."""
    return UNetConfig(
        image_size_px=64,
        model_channels=model_channels,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_sizes_px=(32, 16, 8),
        text=text,
        inpaint=inpaint,
    )


def _upsampler(*, inpaint: bool = False, model_channels: int = 192, text: TextConfig = GLIDE_TEXT) -> UNetConfig:
    """ADM's 64 -> 256 px upsampler, with the released heads of 64 channels. The one of 1.5 billion is stated to be wider (384)."""
    return UNetConfig(
        image_size_px=256,
        model_channels=model_channels,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attention_sizes_px=(32, 16, 8),
        text=text,
        inpaint=inpaint,
        upsample=True,
    )


def _upsampler_1_5b(*, inpaint: bool = False) -> UNetConfig:
    """What the paper says of it includes bicubic enlargement (section 2.1)."""
    return replace(_upsampler(inpaint=inpaint, model_channels=384, text=TEXT_1_5B), enlarge="bicubic")


NOISED_CLIP_VIT_B = NoisedClipConfig(
    image_size_px=64,
    patch_size_px=4,
    image_width=768,
    image_layers=12,
    image_heads=12,
    text_width=512,
    text_layers=12,
    text_heads=8,
    context_length=77,
    vocab_size=65536,
    embedding_width=512,
)

# GLIDE, section 4.4, says ViT-L, 64 px and patches of 4 and no more. Widths, layers and heads are CLIP's ViT-L's (arXiv:2103.00020,
# table 20), the rows of the embedding table those of the released ViT-B.
NOISED_CLIP_VIT_L = NoisedClipConfig(
    image_size_px=64,
    patch_size_px=4,
    image_width=1024,
    image_layers=24,
    image_heads=16,
    text_width=768,
    text_layers=12,
    text_heads=12,
    context_length=77,
    vocab_size=65536,
    embedding_width=768,
)

TINY_MERGES = 4096
"""Merges of CLIP's BPE in the tiny models: a vocabulary of 4610 instead of 49408."""
TINY_VOCAB = vocab_size(TINY_MERGES)

TINY_BASE = UNetConfig(
    image_size_px=32,
    model_channels=32,
    channel_mult=(1, 1, 2, 4),
    num_res_blocks=1,
    attention_sizes_px=(8,),
    head_channels=32,
    dropout=0.0,
    text=TextConfig(context_length=24, width=96, num_layers=2, num_heads=3, vocab_size=TINY_VOCAB),
)

TINY_NOISED_CLIP = NoisedClipConfig(
    image_size_px=32,
    patch_size_px=4,
    image_width=96,
    image_layers=3,
    image_heads=3,
    text_width=96,
    text_layers=2,
    text_heads=3,
    context_length=24,
    vocab_size=TINY_VOCAB,
    embedding_width=96,
)

_tiny_glide_tokens = partial(clip_captions, num_merges=TINY_MERGES, empty_is_padding=True)
_tiny_clip_tokens = partial(clip_captions, num_merges=TINY_MERGES)

_RELEASED = (
    diffusion_model("base", _base(), glide_captions),
    diffusion_model("base-inpaint", _base(inpaint=True), glide_captions),
    diffusion_model("upsampler", _upsampler(), glide_captions),
    diffusion_model("upsampler-inpaint", _upsampler(inpaint=True), glide_captions),
)

# For training from scratch, where no released weights tie one to GLIDE's vocabulary: the same networks on CLIP's, which open_clip
# ships. Its 49,408 tokens fit the table of 50,257.
_WITH_CLIP_BPE = tuple(
    replace(spec, name=f"{spec.name}-clip-bpe", tokenizer=partial(clip_captions, empty_is_padding=True)) for spec in _RELEASED
)

_SPECS = (
    *_RELEASED,
    noised_clip_model("noised-clip", NOISED_CLIP_VIT_B, clip_captions),
    *_WITH_CLIP_BPE,
    diffusion_model("base-3.5b", _base(model_channels=512, text=TEXT_3_5B), glide_captions),
    diffusion_model("base-3.5b-inpaint", _base(inpaint=True, model_channels=512, text=TEXT_3_5B), glide_captions),
    diffusion_model("upsampler-1.5b", _upsampler_1_5b(), glide_captions),
    diffusion_model("upsampler-1.5b-inpaint", _upsampler_1_5b(inpaint=True), glide_captions),
    noised_clip_model("noised-clip-vit-l", NOISED_CLIP_VIT_L, clip_captions),
    diffusion_model("tiny-base", TINY_BASE, _tiny_glide_tokens),
    noised_clip_model("tiny-noised-clip", TINY_NOISED_CLIP, _tiny_clip_tokens),
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def find_model(name: str) -> ModelSpec:
    """The entry of that name. Raises ConfigError, listing the names there are."""
    if name not in MODELS:
        raise ConfigError(f"there is no model {name!r}; models/catalog.py has {', '.join(MODELS)}")
    return MODELS[name]
