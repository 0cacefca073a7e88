"""Noised CLIP gives the released code's numbers, and at full size has the released checkpoints' parameters."""

import gzip
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from models.catalog import MODELS, TINY_MERGES
from models.guidance import clip_guidance
from models.noised_clip import NoisedClip, NoisedClipConfig
from models.objectives import contrastive_loss
from models.text import Captions, clip_captions
from models.unet import num_parameters
from winnow.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from parity import SELECTION, load_vectors, weights

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SIZES = {
    "image_size_px": 32,
    "patch_size_px": 4,
    "image_width": 32,
    "image_layers": 2,
    "image_heads": 2,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "context_length": 13,
    "vocab_size": 301,
    "embedding_width": 24,
}


@pytest.fixture
def clip() -> NoisedClip:
    """Both towers with the weights of the vectors."""
    model = NoisedClip(NoisedClipConfig(**SIZES)).eval()
    for tower in ("image", "text"):
        getattr(model, tower).load_state_dict(weights(load_vectors(f"clip_{tower}")))
    return model


def test_image_tower_equals_the_released_codes(clip):
    vectors = load_vectors("clip_image")
    x = vectors["in/image_0_255"] / 127.5 - 1
    torch.testing.assert_close(clip.image(x, vectors["in/t"]), vectors["out/embed"], **CLOSE)


def test_text_tower_equals_the_released_codes(clip):
    vectors = load_vectors("clip_text")
    torch.testing.assert_close(clip.text(vectors["in/tokens"], vectors["in/len"]), vectors["out/embed"], **CLOSE)


def test_guidance_and_loss_equal_the_released_codes(clip):
    vectors = load_vectors("clip_guidance")
    lengths = vectors["in/len"]
    captions = Captions(vectors["in/tokens"], torch.arange(13)[None] < lengths[:, None])
    gradient = clip_guidance(clip, captions, scale=2.0)(vectors["in/x"], vectors["in/t"])
    torch.testing.assert_close(gradient, vectors["out/grad_scale2"], rtol=1e-3, atol=1e-4)
    z_image, z_text = clip(vectors["in/x"], vectors["in/t"], captions.tokens, lengths)
    torch.testing.assert_close(z_image, vectors["out/z_image"], **CLOSE)
    torch.testing.assert_close(z_text, vectors["out/z_text"], **CLOSE)
    torch.testing.assert_close(contrastive_loss(z_image, z_text)[None], vectors["out/clip_loss"], **CLOSE)


def test_full_size_has_every_name_and_shape_of_the_released_checkpoints():
    released = json.loads(gzip.decompress((SELECTION / "checkpoint_shapes.json.gz").read_bytes()))
    with torch.device("meta"):
        model = MODELS["noised-clip"].build()
    for tower, file, count in ((model.image, "clip/image-enc", 86_443_776), (model.text, "clip/text-enc", 71_679_488)):
        assert {name: list(tensor.shape) for name, tensor in tower.state_dict().items()} == released[file]
        assert num_parameters(tower) == count


def test_the_loss_is_that_of_guessing_when_all_embeddings_are_equal():
    z = torch.zeros(8, 4)
    z[:, 0] = 1
    assert contrastive_loss(z, z).item() == pytest.approx(math.log(8))


def test_what_stands_after_the_end_of_a_caption_does_not_matter():
    model = MODELS["tiny-noised-clip"].build().eval()
    tokens = torch.randint(1, 4000, (2, 24), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 10:] = 7
    lengths = torch.tensor([10, 10])
    torch.testing.assert_close(model.embed_texts(tokens, lengths), model.embed_texts(other, lengths))


def test_the_timestep_changes_what_the_image_tower_sees():
    model = MODELS["tiny-noised-clip"].build().eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(model.embed_images(x, torch.tensor([0])), model.embed_images(x, torch.tensor([999])))


def test_captions_are_told_from_padding_and_an_empty_one_is_padding_for_glide_only():
    glide = clip_captions(["a red barn", "", "  "], 24, num_merges=TINY_MERGES, empty_is_padding=True)
    assert glide.lengths.tolist() == [6, 0, 0]
    assert glide.tokens[0, :1].item() == 512 + TINY_MERGES
    assert glide.tokens[1].abs().sum() == 0
    assert clip_captions(["a red barn", ""], 24, num_merges=TINY_MERGES).lengths.tolist() == [6, 2]


def test_a_caption_that_is_too_long_keeps_its_end():
    captions = clip_captions(["word " * 100], 24, num_merges=TINY_MERGES)
    assert captions.lengths.tolist() == [24]
    assert captions.tokens[0, -1].item() == 512 + TINY_MERGES + 1


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="image_size_px 30 is not a multiple of patch_size_px 4"):
        NoisedClipConfig(**{**SIZES, "image_size_px": 30})
    with pytest.raises(ConfigError, match="text_width 32 is not a multiple of text_heads 3"):
        NoisedClipConfig(**{**SIZES, "text_heads": 3})
