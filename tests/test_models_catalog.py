"""Every model of the catalogue has the parameters that were published for it: by name and shape, or, where only numbers were, by count."""

import gzip
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.catalog import MODELS, TINY_BASE
from models.noised_clip import NoisedClip
from models.text import empty_captions
from models.unet import UNet, num_parameters
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import SELECTION

ROOT = Path(__file__).resolve().parent.parent
RELEASED = {
    "base": {"base": ""},
    "base-inpaint": {"base-inpaint": ""},
    "upsampler": {"upsample": ""},
    "upsampler-inpaint": {"upsample-inpaint": ""},
    "noised-clip": {"clip/image-enc": "image.", "clip/text-enc": "text."},
}
COUNTS = {
    "base": 385_030_726,
    "base-inpaint": 385_037_638,
    "upsampler": 398_361_286,
    "upsampler-inpaint": 398_368_198,
    "noised-clip": 86_443_776 + 71_679_488,
}


@pytest.fixture(scope="module")
def built() -> dict[str, torch.nn.Module]:
    """All of them, without their weights."""
    with torch.device("meta"):
        return {name: spec.build() for name, spec in MODELS.items()}


def test_released_models_have_every_name_shape_and_count_of_the_released_files(built):
    released = json.loads(gzip.decompress((SELECTION / "checkpoint_shapes.json.gz").read_bytes()))
    for name, files in RELEASED.items():
        theirs = {prefix + parameter: shape for file, prefix in files.items() for parameter, shape in released[file].items()}
        assert {parameter: list(tensor.shape) for parameter, tensor in built[name].state_dict().items()} == theirs, name
        assert num_parameters(built[name]) == COUNTS[name]


def test_models_known_by_numbers_alone_come_near_the_papers(built):
    base = built["base-3.5b"]
    text = num_parameters(base.transformer)
    # GLIDE, section 4.1: "roughly 1.2 billion" text, "roughly 2.3 billion" visual, "3.5 billion"; "1.5 billion" upsampler.
    assert text == pytest.approx(1.2e9, rel=0.01)
    assert num_parameters(base) - text == pytest.approx(2.3e9, rel=0.025)
    assert num_parameters(base) == pytest.approx(3.5e9, rel=0.02)
    assert num_parameters(built["upsampler-1.5b"]) == pytest.approx(1.5e9, rel=0.03)
    # CLIP's ViT-L/14 has 304 M in its image tower, and 85.7 M in its text tower apart from the embedding table.
    clip = built["noised-clip-vit-l"]
    assert num_parameters(clip.image) == pytest.approx(304e6, rel=0.01)
    assert num_parameters(clip.text) - 65536 * 768 == pytest.approx(85.7e6, rel=0.01)


def test_what_the_paper_states_of_the_large_models_is_what_they_have():
    base, upsampler = MODELS["base-3.5b"].config, MODELS["upsampler-1.5b"].config
    assert (base.model_channels, base.text.num_layers, base.text.width) == (512, 24, 2048)
    assert (upsampler.model_channels, upsampler.text.width, upsampler.enlarge) == (384, 1024, "bicubic")
    assert MODELS["upsampler"].config.enlarge == "bilinear"
    assert all(config.text.width // config.text.num_heads == 64 for config in (base, upsampler))


def test_an_upsampler_enlarges_as_its_config_says():
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for mode in ("bilinear", "bicubic"):
        config = replace(TINY_BASE, upsample=True, enlarge=mode)
        seen = []
        model = UNet(config)
        model.input_blocks[0].register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        model(torch.zeros(1, 3, 32, 32), torch.tensor([1]), *empty_captions(1, 24), low_res=small)
        torch.testing.assert_close(seen[0][:, 3:], F.interpolate(small, size=(32, 32), mode=mode, align_corners=False))
    with pytest.raises(ConfigError, match="enlarge must be bilinear or bicubic, got 'nearest'"):
        replace(TINY_BASE, enlarge="nearest")


def test_an_inpainting_model_has_four_input_channels_more_and_nothing_else(built):
    pairs = [(name, name.replace("-clip-bpe", "") + "-inpaint") for name in MODELS if f"{name}-inpaint" in MODELS]
    assert len(pairs) == 4
    for plain, inpaint in pairs:
        one, other = (built[name].state_dict() for name in (plain, inpaint))
        differing = {name for name in one.keys() | other.keys() if name not in one or one[name].shape != other[name].shape}
        assert differing == {"input_blocks.0.0.weight"}
        assert other["input_blocks.0.0.weight"].shape[1] == one["input_blocks.0.0.weight"].shape[1] + 4


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("-clip-bpe")])
def test_models_on_clips_vocabulary_differ_in_nothing_but_the_tokens(name):
    ours, glides = MODELS[name], MODELS[name.removesuffix("-clip-bpe")]
    assert (ours.config, ours.schedule_name, ours.initial_noise_scale) == (glides.config, glides.schedule_name, glides.initial_noise_scale)
    captions = ours.tokenizer(["a red barn", ""], ours.context_length)
    assert captions.lengths.tolist() == [5, 0]
    assert captions.tokens.max() < ours.config.text.vocab_size


def test_every_model_is_of_the_kind_it_says(built):
    for name, spec in MODELS.items():
        assert isinstance(built[name], UNet if spec.kind == "diffusion" else NoisedClip)


def test_the_docs_list_every_model_with_its_number_of_parameters(built):
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| ([\d,]+) \|", (ROOT / "docs" / "models.md").read_text(), re.MULTILINE))
    assert {name: f"{num_parameters(model):,}" for name, model in built.items()} == rows
