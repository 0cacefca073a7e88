"""Is a compiled model the same function? Asked once, before a training trusts it.

torch.compile has given silently wrong gradients on UNets like these. The probe computes one micro-batch both ways, and the eager
model is kept, with a warning, if loss or gradients differ.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Compiler = Callable[[nn.Module], nn.Module]
Loss = Callable[[nn.Module], Tensor]
"""The loss of one micro-batch under a model: a scalar, the same for each call with the same function."""


USUAL_SHARE = 1e-2
"""A gradient counts as at least this share of a usual one of its size: an error of 1e-5 of that is not seen. In float32 eager and
compiled gradients that should be zero lie 5e-6 of it apart."""
ROUNDING_RATIO = 2.0


class Difference(NamedTuple):
    """What a compiled model gets wrong."""

    what: str
    """"loss", or the first parameter, in the model's order, whose gradient differs."""
    relative_error: float


def torch_compiler(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model))


def compiled_if_right(
    model: nn.Module, loss: Loss, *, tolerance: float, exact: Loss | None = None, compiler: Compiler = torch_compiler
) -> nn.Module:
    """The compiled model if it is the same function on this micro-batch, otherwise the model itself, and a warning.

    The weights are left as they were, gradients cleared.

    Args:
        tolerance: relative error of the loss and of each parameter's gradient (L2) that is put down to rounding.
        exact: the same loss in float32, where `loss` is computed in less: see `difference`.
    """
    try:
        compiled = compiler(model)
        found = difference(model, compiled, loss, tolerance=tolerance, exact=exact)
    except RuntimeError as problem:  # of which the compiler's own errors are kinds
        logger.warning("torch.compile failed on this model and machine, which is trained without it: %s", str(problem).split("\n")[0])
        return model
    if found is not None:
        logger.warning(
            "torch.compile gives another %s on this model and machine (relative error %.2g, more than %.2g), which is trained without it",
            found.what if found.what == "loss" else f"gradient of {found.what}",
            found.relative_error,
            tolerance,
        )
        return model
    return compiled


def difference(model: nn.Module, compiled: nn.Module, loss: Loss, *, tolerance: float, exact: Loss | None = None) -> Difference | None:
    """The first thing in which one micro-batch differs between a model and its compiled form, which share their parameters.

    Dropout is off meanwhile, for compilers draw other numbers, and tensors of zeros are filled: in a fresh model they keep every
    gradient before them at zero, right or wrong.

    Args:
        exact: the same loss in float32, where `loss` is computed in bfloat16. Both forms are then compared with it, and a compiled
            gradient may be off by ROUNDING_RATIO of what the eager one is off by: in bfloat16 that is a few percent by itself, and all
            of a gradient that is zero but for rounding.
    """
    parameters = dict(model.named_parameters())
    with no_dropout(model), no_zeros(list(parameters.values())):
        eager_loss, eager = _loss_and_gradients(parameters, lambda: loss(model))
        other_loss, other = _loss_and_gradients(parameters, lambda: loss(compiled))
        right_loss, right = (eager_loss, eager) if exact is None else _loss_and_gradients(parameters, lambda: exact(model))
    error = _relative(other_loss, right_loss, right_loss.norm())
    if not error <= tolerance:
        return Difference("loss", error)
    # Some gradients are zero but for rounding (a bias before a softmax or a norm), so errors count against what is usual, too.
    count = sum(gradient.numel() for gradient in right.values())
    usual = (torch.stack([gradient.norm() for gradient in right.values()]).square().sum() / max(count, 1)).sqrt()
    for name, gradient in right.items():
        scale = torch.maximum(gradient.norm(), USUAL_SHARE * usual * gradient.numel() ** 0.5)
        error = _relative(other[name], gradient, scale)
        if not error <= tolerance + ROUNDING_RATIO * _relative(eager[name], gradient, scale):  # so that a NaN is a difference
            return Difference(name, error)
    return None


def _relative(found: Tensor, expected: Tensor, scale: Tensor) -> float:
    return float((found - expected).norm() / scale) if scale > 0 else float((found - expected).norm())


def _loss_and_gradients(parameters: dict[str, nn.Parameter], loss: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    for parameter in parameters.values():
        parameter.grad = None
    value = loss()
    value.backward()
    gradients = {}
    for name, parameter in parameters.items():
        gradients[name] = (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).float()
        parameter.grad = None
    return value.detach().float(), gradients


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Every dropout of a model at a rate of 0."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    rates = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate


@contextmanager
def no_zeros(parameters: list[Any]) -> Iterator[None]:
    """Every tensor of zeros filled with small numbers, and put back."""
    empty = [parameter for parameter in parameters if not parameter.any()]
    with torch.no_grad():
        for parameter in empty:
            scattered = torch.sin(torch.arange(parameter.numel(), device=parameter.device) * 12.9898)
            parameter.copy_(0.02 * scattered.view(parameter.shape))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in empty:
                parameter.zero_()
