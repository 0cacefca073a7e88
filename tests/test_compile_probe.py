"""A compiler is believed only if one micro-batch comes out the same; what is wrong is named."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import training
from models.batch_loss import batch_loss
from models.catalog import MODELS
from models.compile_probe import compiled_if_right, difference
from models.recipes import TrainConfig
from models.training import train

sys.path.insert(0, str(Path(__file__).parent))
from toy_shards import make_shards

SPEC = MODELS["tiny-base"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = SPEC.build()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return model


def loss(forward: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    captions = SPEC.tokenizer(["a red barn", "a dog"], SPEC.context_length)
    return batch_loss(forward, SPEC, SPEC.schedule(), images, captions, generator=generator)["loss"]


class Scale(torch.autograd.Function):
    """The identity, with a gradient that is not."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Compiled(nn.Module):
    """What a compiler makes: the same model, with a gradient of its middle or its loss multiplied by something."""

    def __init__(self, model: nn.Module, *, gradient: float = 1.0, output: float = 1.0, fails: bool = False) -> None:
        super().__init__()
        self.model, self.gradient, self.output, self.fails = model, gradient, output, fails

    def forward(self, *given, **beside):
        if self.fails:
            raise RuntimeError("no C++ compiler\nmore of this")
        middle = self.model.middle_block
        hook = middle.register_forward_hook(lambda *call: Scale.apply(call[2], self.gradient))
        try:
            return self.output * self.model(*given, **beside)
        finally:
            hook.remove()


def test_a_right_compiler_is_used_and_leaves_the_model_as_it_was(model, caplog):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rates = [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]
    compiled = compiled_if_right(model, loss, tolerance=1e-3, compiler=Compiled)
    assert isinstance(compiled, Compiled)
    assert not caplog.records
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert rates == [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] and max(rates) > 0


def test_a_wrong_gradient_is_told_by_its_first_parameter_and_the_model_trained_without(model, caplog):
    with caplog.at_level(logging.WARNING):
        kept = compiled_if_right(model, loss, tolerance=1e-3, compiler=lambda one: Compiled(one, gradient=1.5))
    assert kept is model
    (record,) = caplog.records
    assert "torch.compile gives another gradient of " in record.getMessage()
    assert "trained without it" in record.getMessage()
    found = difference(model, Compiled(model, gradient=1.5), loss, tolerance=1e-3)
    # The first parameter of all feeds the middle, but not the middle alone, so its gradient is wrong by less than half.
    assert found is not None and found.what == next(iter(dict(model.named_parameters()))) and 1e-3 < found.relative_error < 0.51
    assert f"gradient of {found.what} on this model" in record.getMessage()
    assert f"relative error {found.relative_error:.2g}" in record.getMessage()


def test_a_wrong_loss_and_a_gradient_that_is_no_number_are_differences(model):
    assert difference(model, Compiled(model, output=1.1), loss, tolerance=1e-3).what == "loss"
    assert difference(model, Compiled(model, gradient=float("nan")), loss, tolerance=1e-3) is not None
    assert difference(model, Compiled(model, gradient=1.01), loss, tolerance=0.5) is None


def test_in_bfloat16_a_compiler_may_round_as_eager_does_and_not_err_beyond(model):
    def rounded(forward: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(forward)

    class RoundsOtherwise(Compiled):
        """The model computed in float32: as far from the eager one as bfloat16 is, and nearer to the truth."""

        def forward(self, *given, **beside):
            with torch.autocast("cpu", enabled=False):
                return super().forward(*given, **beside)

    other = RoundsOtherwise(model)
    assert difference(model, other, rounded, tolerance=5e-2) is not None
    assert difference(model, other, rounded, tolerance=5e-2, exact=loss) is None
    assert difference(model, RoundsOtherwise(model, gradient=1.5), rounded, tolerance=5e-2, exact=loss) is not None


def test_a_compiler_that_fails_is_told_and_not_needed(model, caplog):
    with caplog.at_level(logging.WARNING):
        assert compiled_if_right(model, loss, tolerance=1e-3, compiler=lambda one: Compiled(one, fails=True)) is model
    assert "torch.compile failed on this model and machine, which is trained without it: no C++ compiler" in caplog.text
    assert "more of this" not in caplog.text


def test_training_asks_the_probe_and_goes_on_without_a_wrong_compiler(tmp_path, monkeypatch, caplog):
    shards = make_shards(tmp_path / "shards")
    settings = {"model": "tiny-base", "num_steps": 1, "batch_size": 4, "lr": 1e-3, "log_every": 1, "checkpoint_every": 1}
    used: list[nn.Module] = []

    def probed(model, loss, *, tolerance, exact):
        assert exact is None  # in float32 the eager gradients are the exact ones
        forward = compiled_if_right(model, loss, tolerance=tolerance, compiler=lambda one: Compiled(one, gradient=factor))
        used.append(forward)
        return forward

    monkeypatch.setattr(training, "compiled_if_right", probed)
    losses = []
    for factor, compiles in ((1.0, False), (1.0, True), (2.0, True)):
        summary = train(TrainConfig(**settings, compile=compiles), shards, tmp_path / f"{factor}-{compiles}")
        losses.append(summary.final_loss)
    assert [type(forward).__name__ for forward in used] == ["Compiled", "UNet"]
    assert losses[0] == losses[1] == losses[2]  # the probe leaves weights and random numbers alone
    assert "gives another gradient" in caplog.text
