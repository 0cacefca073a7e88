"""How models are trained: the settings, and the named recipes with what came of them."""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.catalog import find_model
from models.timestep_sampling import SAMPLERS
from winnow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training. Checks itself; raises ConfigError."""

    model: str
    """Name in models/catalog.py."""
    num_steps: int
    batch_size: int
    """Images a step, over all workers."""
    lr: float
    """AdamW's learning rate, after warming up; constant from there."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    ema_rate: float = 0.9999
    """Share of the old average that each step keeps, in [0, 1)."""
    caption_dropout: float = 0.0
    """Share of captions that become empty, in [0, 1): what classifier-free guidance rests on. Diffusion models only."""
    timestep_sampling: Literal["uniform", "loss-second-moment"] = "uniform"
    """How timesteps are drawn (models/timestep_sampling.py). With the second, loss is weighted, and mse and vb are means over what
    was drawn. Noised CLIP: uniform only."""
    min_snr_gamma: float | None = None
    """Weighs the squared error by min(SNR, gamma) / SNR (arXiv:2303.09556; 5 there). None: not. Diffusion models only."""
    sample_weights: bool = False
    """Multiplies each sample's loss by its weight (docs/selection.md), which the shards must have beside them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products and convolutions; weights, norms and losses are float32. A CPU that is faster in float32 computes in
    it either way (models/precision.py)."""
    gradient_checkpointing: bool = False
    """Computes a UNet's stages again on the way back instead of keeping what happened in them: less memory, a third more work."""
    compile: bool = False
    """Uses torch.compile if a probe at the start finds that it gives the same loss and gradients (models/compile_probe.py)."""
    log_every: int = 10
    """Steps a line in metrics.jsonl, each a mean over its steps."""
    checkpoint_every: int = 1000
    """Steps; a multiple of log_every. The last step always makes a checkpoint."""
    keep_checkpoints: int = 2
    """Newest ones kept."""
    loader_processes: int = 0
    """That decode images ahead, a worker; 0 decodes in the worker itself."""
    seed: int = 0

    def __post_init__(self) -> None:
        spec = find_model(self.model)
        checks = (
            ("num_steps", self.num_steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("lr", self.lr > 0, "more than 0"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("ema_rate", 0 <= self.ema_rate < 1, "in [0, 1)"),
            ("caption_dropout", 0 <= self.caption_dropout < 1, "in [0, 1)"),
            ("caption_dropout", spec.kind == "diffusion" or not self.caption_dropout, "0 for a noised CLIP"),
            ("timestep_sampling", self.timestep_sampling in SAMPLERS, " or ".join(SAMPLERS)),
            ("timestep_sampling", spec.kind == "diffusion" or self.timestep_sampling == "uniform", "uniform for a noised CLIP"),
            ("min_snr_gamma", self.min_snr_gamma is None or self.min_snr_gamma > 0, "more than 0, or None"),
            ("min_snr_gamma", spec.kind == "diffusion" or self.min_snr_gamma is None, "None for a noised CLIP"),
            ("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
            ("gradient_checkpointing", spec.kind == "diffusion" or not self.gradient_checkpointing, "off for a noised CLIP"),
            ("log_every", self.log_every >= 1, "at least 1"),
            ("checkpoint_every", self.checkpoint_every >= 1 and self.checkpoint_every % self.log_every == 0, "a multiple of log_every"),
            ("keep_checkpoints", self.keep_checkpoints >= 1, "at least 1"),
            ("loader_processes", self.loader_processes >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
        )
        for field, holds, wanted in checks:
            if not holds:
                raise ConfigError(f"TrainConfig for {self.model!r}: {field} must be {wanted}, got {getattr(self, field)!r}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1, 2, ..."""
        return self.lr * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.lr

    @staticmethod
    def defaults() -> dict[str, Any]:
        """Of the settings that have one."""
        fields = dataclasses.fields(TrainConfig)
        return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}

    def what_was_chosen(self) -> dict[str, Any]:
        """Those of `what_decides_the_weights` that are not defaults: the same before and after a setting is added to this class."""
        defaults = self.defaults()
        return {name: value for name, value in self.what_decides_the_weights().items() if name not in defaults or value != defaults[name]}

    def what_decides_the_weights(self) -> dict[str, Any]:
        """The settings that a checkpoint must have been made with to be gone on from. How long and how closely watched may change."""
        free = {"num_steps", "log_every", "checkpoint_every", "keep_checkpoints", "loader_processes", "gradient_checkpointing"}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in free}


# What the large trainings share. Learning rate: ADM's scripts' (arXiv:2105.05233), which GLIDE does not restate.
_LARGE: dict[str, Any] = {"precision": "bfloat16", "log_every": 100, "checkpoint_every": 5000, "loader_processes": 8}
_BASE = TrainConfig(model="base", num_steps=1_100_000, batch_size=2048, lr=1e-4, **_LARGE)
_UPSAMPLER = TrainConfig(model="upsampler", num_steps=400_000, batch_size=512, lr=1e-4, **_LARGE)
_NOISED_CLIP = TrainConfig(
    model="noised-clip", num_steps=390_000, batch_size=32_768, lr=5e-4, warmup_steps=2000, weight_decay=0.0125, **_LARGE
)

RECIPES: dict[str, TrainConfig] = {
    # GLIDE (filtered), in the stages of B.1. Stated: 1.1 M steps, then 500 K of fine-tuning for classifier-free guidance and inpainting;
    # 20 % empty captions (section 4.2). Ours: the batch size is the large model's (section 4.1), that of the filtered one is not
    # stated; nor is whether both kinds of fine-tuning had 500 K: here each has, from the same pre-trained model.
    "base-pretrain": _BASE,
    "base-finetune": replace(_BASE, num_steps=500_000, caption_dropout=0.2),
    "base-inpaint": replace(_BASE, model="base-inpaint", num_steps=500_000, caption_dropout=0.2),
    # Departs from GLIDE: one stage for all, captions dropped from the start.
    "base": replace(_BASE, caption_dropout=0.2),
    # B.1, 400 K steps; batch size of section 4.1. Fine-tuning it for inpainting: as many steps again, ours.
    "upsampler": _UPSAMPLER,
    "upsampler-inpaint": replace(_UPSAMPLER, model="upsampler-inpaint"),
    # Section 4.4: 390 K steps of 32 K images, for a ViT-L, then 30 K on other data. The released ViT-B's are not stated. The learning
    # rate is not, either: this is CLIP's for a ViT-B, and below for a ViT-L (arXiv:2103.00020, table 20).
    "noised-clip": _NOISED_CLIP,
    "noised-clip-vit-l": replace(_NOISED_CLIP, model="noised-clip-vit-l", lr=4e-4),
    "noised-clip-vit-l-finetune": replace(_NOISED_CLIP, model="noised-clip-vit-l", lr=4e-4, num_steps=30_000),
    # Section 4.1: 2.5 M steps of 2048 and 1.6 M of 512. How long the large models were fine-tuned is not stated: as the small one, ours.
    "base-3.5b": replace(_BASE, model="base-3.5b", num_steps=2_500_000),
    "base-3.5b-finetune": replace(_BASE, model="base-3.5b", num_steps=500_000, caption_dropout=0.2),
    "base-3.5b-inpaint": replace(_BASE, model="base-3.5b-inpaint", num_steps=500_000, caption_dropout=0.2),
    "upsampler-1.5b": replace(_UPSAMPLER, model="upsampler-1.5b", num_steps=1_600_000),
    "upsampler-1.5b-inpaint": replace(_UPSAMPLER, model="upsampler-1.5b-inpaint"),
    # From scratch, on the vocabulary that open_clip ships instead of GLIDE's.
    "base-clip-bpe": replace(_BASE, model="base-clip-bpe", caption_dropout=0.2),
    "upsampler-clip-bpe": replace(_UPSAMPLER, model="upsampler-clip-bpe"),
    # 2 CPU workers: 40 s and 30 s of start; mse 0.6 -> 0.04 on coloured shapes.
    "demo-base": TrainConfig(
        model="tiny-base",
        num_steps=160,
        batch_size=32,
        lr=2e-3,
        warmup_steps=10,
        ema_rate=0.95,
        caption_dropout=0.2,
        checkpoint_every=40,
    ),
    # 2 CPU workers: 60 s and 30 s of start; loss 13 -> 3.0 on the demo's world, where guessing gives ln 64 = 4.16. With
    # 1e-3 or 3e-3 it never leaves 4.16.
    "demo-noised-clip": TrainConfig(
        model="tiny-noised-clip",
        num_steps=360,
        batch_size=64,
        lr=4e-4,
        warmup_steps=20,
        weight_decay=0.0125,
        ema_rate=0.95,
        checkpoint_every=40,
    ),
}

STARTS_FROM: dict[str, str] = {
    "base-finetune": "base-pretrain",
    "base-inpaint": "base-pretrain",
    "upsampler-inpaint": "upsampler",
    "noised-clip-vit-l-finetune": "noised-clip-vit-l",
    "base-3.5b-finetune": "base-3.5b",
    "base-3.5b-inpaint": "base-3.5b",
    "upsampler-1.5b-inpaint": "upsampler-1.5b",
}
"""Recipes that go on from the last checkpoint (its EMA) of another; all others start afresh."""


def stages_of(recipe: str) -> tuple[str, ...]:
    """The recipe, and before it those that it starts from, the first one first."""
    return (*stages_of(STARTS_FROM[recipe]), recipe) if recipe in STARTS_FROM else (recipe,)
