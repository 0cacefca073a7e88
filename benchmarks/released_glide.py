"""The released GLIDE code, imported from a checkout, as the other side of benchmarks/glide_speed.py."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.diffusion import Schedule, q_sample
from models.objectives import hybrid_loss
from winnow.errors import ConfigError


def find_released(checkout: Path) -> None:
    """Makes `glide_text2im` importable. Raises ConfigError if it is not there, or if a package that it needs is missing."""
    if not (checkout / "glide_text2im").is_dir():
        raise ConfigError(f"{checkout} holds no glide_text2im: give a checkout of openai/glide-text2im, or leave out --released")
    sys.path.insert(0, str(checkout))
    try:
        import glide_text2im.clip.model_creation
        import glide_text2im.model_creation  # noqa: F401
    except ModuleNotFoundError as problem:
        raise ConfigError(f"the released code needs {problem.name}, which is not installed here") from problem


def released_base(weights: dict[str, Tensor], *, keeps_text: bool = False) -> nn.Module:
    """The 64 px model in float32.

    Args:
        keeps_text: its `cache_text_emb`, which is off by default and in its notebooks: the text is then encoded once, not at each step.
    """
    from glide_text2im.model_creation import create_model_and_diffusion, model_and_diffusion_defaults

    options = model_and_diffusion_defaults() | {"use_fp16": False, "cache_text_emb": keeps_text}
    model, _ = create_model_and_diffusion(**options)
    model.load_state_dict(weights)
    return model


def released_cfg_step(model: nn.Module, scale: float) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A step's network output as the notebook text2im.ipynb has it: text and empty caption as one batch, eps guided."""

    def step(x_t: Tensor, timesteps: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        output = model(torch.cat([x_t, x_t]), torch.cat([timesteps, timesteps]), tokens=tokens, mask=mask)
        eps, rest = output[:, :3], output[:, 3:]
        eps_text, eps_empty = eps.chunk(2)
        return torch.cat([eps_empty + scale * (eps_text - eps_empty), rest.chunk(2)[0]], dim=1)

    return step


class ReleasedTrainer:
    """A training step as guided-diffusion makes it, around the released model: AdamW's defaults, an average kept tensor by tensor."""

    def __init__(self, model: nn.Module, schedule: Schedule, *, lr: float, ema_rate: float) -> None:
        self.model, self.schedule, self.ema_rate = model.train(), schedule, ema_rate
        self.parameters = list(model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)

    def step(self, images: Tensor, t: Tensor, noise: Tensor, tokens: Tensor, mask: Tensor) -> float:
        self.optimizer.zero_grad()
        x_t = q_sample(self.schedule, images, t, noise)
        output = self.model(x_t, self.schedule.model_timesteps(t), tokens=tokens, mask=mask)
        loss = hybrid_loss(self.schedule, output, images, x_t, t, noise).loss.mean()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.mul_(self.ema_rate).add_(parameter, alpha=1 - self.ema_rate)
        return loss.item()


def released_clip(image: dict[str, Tensor], text: dict[str, Tensor]) -> Any:
    """The noised CLIP in float32, on the CPU. Its own tokenizer comes with it."""
    from glide_text2im.clip.model_creation import create_clip_model

    clip = create_clip_model(device=torch.device("cpu"))
    clip.image_encoder.load_state_dict(image)
    clip.text_encoder.load_state_dict(text)
    return clip


def released_guidance(clip: Any, prompts: Sequence[str], scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Its `cond_fn` for these prompts: x_t and timesteps to a gradient."""
    guidance: Callable[[Tensor, Tensor], Tensor] = clip.cond_fn(list(prompts), scale)
    return guidance
