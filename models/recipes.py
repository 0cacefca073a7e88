"""How models are trained: the settings, and the named recipes with what came of them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from models.catalog import find_model
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
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products and convolutions; weights, norms and losses are float32."""
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
            ("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
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

    def what_decides_the_weights(self) -> dict[str, Any]:
        """The settings that a checkpoint must have been made with to be gone on from. How long and how closely watched may change."""
        free = {"num_steps", "log_every", "checkpoint_every", "keep_checkpoints", "loader_processes"}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in free}


RECIPES: dict[str, TrainConfig] = {
    # GLIDE (filtered), B.1: 1.1 M steps. Its batch size is not stated; this is its large sibling's (section 4.1).
    # Departs from GLIDE: captions are dropped from the start, not in a second stage, so that what comes out can be guided.
    "base": TrainConfig(
        model="base",
        num_steps=1_100_000,
        batch_size=2048,
        lr=1e-4,
        caption_dropout=0.2,
        precision="bfloat16",
        log_every=100,
        checkpoint_every=5000,
        loader_processes=8,
    ),
    # B.1, 400 K steps; batch size of section 4.1.
    "upsampler": TrainConfig(
        model="upsampler",
        num_steps=400_000,
        batch_size=512,
        lr=1e-4,
        precision="bfloat16",
        log_every=100,
        checkpoint_every=5000,
        loader_processes=8,
    ),
    # Section 4.4: 390 K steps of 32 K images, for a ViT-L. The learning rate is not stated; this is CLIP's for a ViT-B
    # (arXiv:2103.00020, table 20).
    "noised-clip": TrainConfig(
        model="noised-clip",
        num_steps=390_000,
        batch_size=32_768,
        lr=5e-4,
        warmup_steps=2000,
        weight_decay=0.0125,
        precision="bfloat16",
        log_every=100,
        checkpoint_every=5000,
        loader_processes=8,
    ),
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
