"""models/ runs with torch, numpy, scipy and scikit-learn alone: a training step and a sample on a bare machine."""

import subprocess
import sys
from pathlib import Path

PLUMBING = {"clip_embedder", "clip_pool", "clip_training", "embedding", "launch", "regurgitation", "sampled"}
"""Modules of models/ that read and write tables or need more than torch. All others must import alone."""

PROGRAM = '''
import sys
import torch, torch._dynamo  # with whatever torch itself needs, or looks for
import numpy, scipy, sklearn

THEIRS = set(sys.modules) | set(sys.stdlib_module_names)
OURS = {"winnow", "models", "filters", "torch", "numpy", "scipy", "sklearn"}
TORCHS = {"sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "typing_extensions"}


class Refuse:
    """Nothing else can be imported from here on."""

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in OURS | TORCHS | THEIRS and name not in sys.modules:
            raise ModuleNotFoundError(f"{name} is more than torch, numpy, scipy and scikit-learn")


sys.meta_path.insert(0, Refuse())
for module in sys.argv[1:]:
    __import__("models." + module)

from models.catalog import MODELS
from models.sampling import guided_denoiser, sample_loop
from models.text import Captions, empty_captions
from models.batch_loss import batch_loss

spec = MODELS["tiny-base"]
model = spec.build()
captions = Captions(torch.randint(1, 4000, (2, 24)), torch.ones(2, 24, dtype=torch.bool))
optimizer = torch.optim.AdamW(model.parameters())
images = torch.rand(2, 3, 32, 32) * 2 - 1
generator = torch.Generator().manual_seed(0)
before = batch_loss(model, spec, spec.schedule(), images, captions, generator=generator)["loss"]
before.backward()
optimizer.step()
with torch.no_grad():
    denoise = guided_denoiser(model.eval(), model.encode_text(*captions), model.encode_text(*empty_captions(1, 24)), scale=3.0)
    schedule = spec.schedule().respaced([500])
    sample = sample_loop(denoise, schedule, torch.randn(2, 3, 32, 32), generators=[generator, generator], sampler="ddim")
assert sample.shape == (2, 3, 32, 32) and sample.isfinite().all()
try:
    import PIL
except ModuleNotFoundError:
    print("alone")
'''


def test_models_train_and_sample_without_anything_but_torch_and_friends():
    folder = Path(__file__).parent.parent / "models"
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__" and path.stem not in PLUMBING)
    assert {"unet", "training", "sampling", "shard_loader", "checkpoints"} <= set(modules)
    result = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["alone"]
