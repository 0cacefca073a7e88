import subprocess
import sys

ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pyarrow", "fsspec", "safetensors", "ray", "prefect", "open_clip", "PIL", "pandas", "pydantic"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import dataclasses
import numpy as np
from filters.active_learning import spread_out
from filters.catalog import FILTERS
from filters.certificate import Labelled, certify
from filters.decision_values import Scorer
from filters.duplicates import Images, near_pairs
from filters.splits import SplitConfig, assign_splits, near_duplicate_groups
from filters.svm import SvmConfig, fit_svm

rng = np.random.default_rng(0)
values = (np.arange(600) % 2).astype(int)
features = (rng.normal(size=(600, 8)) + values[:, None]).astype(np.float32)
uids, origins = [f"{i:04}" for i in range(600)], ["random"] * 600
groups = near_duplicate_groups(uids, features, rng.integers(-(2**63), 2**63 - 1, size=600))
splits = assign_splits(uids, values, origins, groups, scope="population", config=SplitConfig())
rows = np.flatnonzero(np.array(splits) == "fit")
fit = fit_svm(features[rows], values[rows], [groups[i] for i in rows], SvmConfig())
scores = Scorer([fit.svm]).scores(features)[:, 0]
spec = dataclasses.replace(FILTERS["people"], max_miss_rate=0.05)
threshold, certificate = certify(spec, Labelled(values=values, origins=origins, groups=groups, splits=splits, scores=scores))
assert certificate["num_positives"] == threshold.n > 59
assert len(spread_out(np.sort(np.abs(scores)), features, 5)) == 5
vectors, ones = np.ones((3, 8), np.float16), np.ones(3, np.int64)
three = Images(uids=np.array(["a", "b", "c"], "S32"), vectors=vectors, dhashes=ones.astype(np.uint64), pixels=ones, partitions=ones)
assert len(near_pairs(three, iter(()), ((0.9, 0),))) == 3
print(certificate["sentence"])
"""


def test_filters_are_fitted_certified_and_used_with_torch_numpy_and_scikit_learn_alone():
    done = subprocess.run([sys.executable, "-W", "error", "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("With 95 % confidence, at most 5 % of the images in the data that the filter 'People' is meant to drop")
