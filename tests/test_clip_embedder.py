import copy
import dataclasses
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models.clip_embedder import Clip, ClipConfig, QuickGelu, Weights, load_clip, resolve_weights
from models.crop_stream import embed_images
from models.crops import crops_of
from winnow.errors import CheckpointError, ConfigError, MissingWeights


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    network = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
        text_cfg={"context_length": 8, "vocab_size": 300, "width": 32, "heads": 2, "layers": 1},
    )
    return Clip(
        network=network.eval(),
        tokenize=lambda texts: torch.ones(len(texts), 8, dtype=torch.long),
        image_size_px=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        dim=16,
        device=torch.device("cpu"),
        precision="fp32",
    )


@pytest.fixture(scope="module")
def vit(clip: Clip) -> Clip:
    """One layer of a ViT-B/16: small matrices have too few kernels to show what the size of a batch does to sums."""
    torch.manual_seed(0)
    network = open_clip.model.CLIP(
        embed_dim=512,
        vision_cfg={"layers": 1, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224},
        text_cfg={"context_length": 8, "vocab_size": 300, "width": 32, "heads": 2, "layers": 1},
    )
    return dataclasses.replace(clip, network=network.eval(), image_size_px=224, dim=512)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_a_feature_is_the_normalised_mean_of_the_normalised_crops(clip: Clip) -> None:
    image = picture(70, 32)
    crops = torch.nn.functional.normalize(clip.network.encode_image(_pixels(clip, crops_of(image, 32))), dim=-1)
    expected = torch.nn.functional.normalize(crops.mean(dim=0), dim=0).detach().numpy()
    (feature,) = embed_images(clip, [image])
    np.testing.assert_allclose(feature, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 4, 7, 100])
def test_features_come_in_order_and_do_not_depend_on_where_batches_are_cut(clip: Clip, batch: int) -> None:
    images = [picture(32 + 20 * (number % 3), 32, seed=number) for number in range(9)]
    alone = np.stack([next(embed_images(clip, [image])) for image in images])
    together = np.stack(list(embed_images(clip, images, batch_crops=batch)))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_bytes_are_normalised_as_clip_normalises_them(clip: Clip) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    torch.testing.assert_close(clip.normalised(torch.from_numpy(crops)), _pixels(clip, crops), atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 32])
def test_features_are_the_same_to_the_last_bit_whatever_the_batch(vit: Clip, batch: int) -> None:
    images = [picture(224 + 90 * (number % 2), 224, seed=number) for number in range(4)]
    together = np.stack(list(embed_images(vit, images, batch_crops=8)))
    assert np.array_equal(np.stack(list(embed_images(vit, images, batch_crops=batch))), together)


def test_features_in_bfloat16_point_where_those_in_float32_do(vit: Clip) -> None:
    half = dataclasses.replace(vit, network=copy.deepcopy(vit.network).to(torch.bfloat16), precision="bf16")
    images = [picture(224 + 90 * (number % 2), 224, seed=number) for number in range(3)]
    cosines = [float(one @ other) for one, other in zip(embed_images(vit, images), embed_images(half, images), strict=True)]
    assert min(cosines) >= 0.9999 and not all(cosine == 1 for cosine in cosines)


@pytest.mark.gpu
def test_a_gpu_gives_the_features_of_a_cpu(clip: Clip) -> None:
    on_gpu = dataclasses.replace(clip, network=copy.deepcopy(clip.network).cuda(), device=torch.device("cuda"))
    images = [picture(32 + 20 * (number % 3), 32, seed=number) for number in range(30)]
    fast = np.stack(list(embed_images(on_gpu, images, batch_crops=8)))
    np.testing.assert_allclose(fast, np.stack(list(embed_images(clip, images))), atol=1e-4)


def test_an_unknown_model_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"no model 'ViT-Q'.*ViT-B-16"):
        ClipConfig(model="ViT-Q")


def test_unknown_weights_are_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"no weights 'openal'.*openai"):
        ClipConfig(pretrained="openal")


def test_openai_weights_run_with_the_quick_gelu_they_were_trained_with(tmp_path: object) -> None:
    reference = open_clip.create_model("ViT-B-16", load_weights=False, force_quick_gelu=True)
    path = f"{tmp_path}/weights.safetensors"
    save_file(reference.state_dict(), path)
    loaded = load_clip(ClipConfig(weights=path), Weights(path=path, sha256=""), device="cpu")
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded.network.encode_image(pixels), reference.eval().encode_image(pixels))
    assert loaded.dim == 512 and loaded.image_size_px == 224


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_in_parts_is_open_clips_to_the_last_bit(dtype: torch.dtype) -> None:
    x = torch.randn(3, 41, 24, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)
    expected = open_clip.transformer.QuickGELU()(x)
    with torch.no_grad():
        assert torch.equal(QuickGelu()(x), expected)
        turned = x.transpose(0, 1)  # as networks lay sequences out
        assert torch.equal(QuickGelu()(turned), expected.transpose(0, 1))
    leaf = x.clone().requires_grad_()
    assert torch.equal(
        torch.autograd.grad(QuickGelu()(leaf).sum(), leaf)[0], torch.autograd.grad(open_clip.transformer.QuickGELU()(leaf).sum(), leaf)[0]
    )


def test_a_weights_file_that_does_not_exist_says_what_to_fetch() -> None:
    with pytest.raises(MissingWeights, match=r"nowhere\.safetensors do not exist\..*fetch https://huggingface\.co/timm/.*embed: weights:"):
        resolve_weights(ClipConfig(weights="nowhere.safetensors"))


def test_weights_of_another_model_name_the_first_parameter_that_differs(tmp_path: object) -> None:
    path = f"{tmp_path}/other.safetensors"
    save_file({"positional_embedding": torch.zeros(3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"positional_embedding should be \(77, 512\), the file has \(3, 3\)"):
        load_clip(ClipConfig(weights=path), Weights(path=path, sha256=""), device="cpu")


def test_a_pickle_that_runs_code_is_refused(tmp_path: object) -> None:
    import pickle

    class Bad:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    path = f"{tmp_path}/bad.pt"
    with open(path, "wb") as stream:
        pickle.dump(Bad(), stream, protocol=2)
    with pytest.raises(CheckpointError, match="not a file of tensors alone"):
        load_clip(ClipConfig(weights=path), Weights(path=path, sha256=""), device="cpu")
    assert not os.path.exists(f"{tmp_path}/ran")


CONTENT = b"weights" * 1000
FIND = """
import sys, time
from models.clip_embedder import ClipConfig, resolve_weights
if "impatient" in sys.argv:
    time.sleep = lambda seconds: None  # huggingface_hub tries again for half a minute
for _ in sys.argv[1:]:
    print(resolve_weights(ClipConfig()).sha256)
"""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """Address of a server like Hugging Face's, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.command)
            self.send_response(200 if self.path.endswith("open_clip_model.safetensors") else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def find_weights(home: object, endpoint: str, *how: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run([sys.executable, "-c", FIND, *how], env=environment, capture_output=True, text=True, timeout=120)


def test_weights_are_fetched_once_and_then_come_from_the_cache(hub: tuple[str, list[str]], tmp_path: object) -> None:
    endpoint, asked = hub
    found = find_weights(tmp_path, endpoint, "first", "second")
    assert found.stdout.split() == [hashlib.sha256(CONTENT).hexdigest()] * 2, found.stderr
    assert asked.count("GET") == 1 and asked.index("GET") == len(asked) - 1, "asked again for what is in the cache"


def test_without_network_or_cache_the_run_stops_and_says_what_to_fetch(tmp_path: object) -> None:
    failed = find_weights(tmp_path, "http://127.0.0.1:9", "impatient")
    assert failed.returncode != 0
    assert "MissingWeights: CLIP weights ViT-B-16/openai are not in the cache and cannot be fetched" in failed.stderr
    assert "open_clip_model.safetensors" in failed.stderr


def _pixels(clip: Clip, crops: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
