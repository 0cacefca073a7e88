import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from filters.catalog import FILTERS
from filters.certificate import Labelled, certify, percent
from filters.decision_values import Scorer
from filters.splits import SplitConfig, assign_splits, near_duplicate_groups
from filters.svm import SvmConfig, fit_svm
from winnow.certificates import Certificate, recompute
from winnow.errors import NotEnoughLabels


def labelled(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    values = (rng.random(n) < 0.4).astype(int)
    uids = [f"{seed}-{i}" for i in range(n)]
    splits = assign_splits(uids, values.tolist(), ["random"] * n, uids, scope="population", config=SplitConfig())
    return Labelled(values=values, origins=["random"] * n, groups=uids, splits=splits, scores=rng.normal(size=n) + 3 * values)


def test_a_certificate_holds_up_to_an_auditors_own_arithmetic():
    rows = labelled()
    threshold, content = certify(FILTERS["people"], rows)
    read = Certificate(**{name: (content | {"version": "1"})[name] for name in Certificate.__dataclass_fields__})
    again = recompute(read, pa.table({"value": rows.values, "split": list(rows.splits), "score": rows.scores}))
    assert (again.num_positives, again.rank, again.threshold) == (content["num_positives"], content["rank"], threshold.value)
    for ours, theirs in (("miss_rate", again.test_misses), ("clean_dropped", again.test_clean_dropped)):
        assert (content["test"][ours]["count"], content["test"][ours]["n"]) == (theirs.hits, theirs.n)
        assert (content["test"][ours]["low"], content["test"][ours]["high"]) == pytest.approx((theirs.low, theirs.high))


def test_auc_is_of_the_test_labels_alone():
    rows = labelled()
    test = np.array(rows.splits) == "test"
    assert certify(FILTERS["people"], rows)[1]["test"]["auc"] == pytest.approx(
        roc_auc_score(rows.values[test], rows.scores[test]), abs=1e-6
    )


def test_calibration_does_not_look_at_the_other_splits():
    rows = labelled()
    other = np.where(np.array(rows.splits) == "calibrate", rows.scores, -rows.scores)
    assert certify(FILTERS["people"], dataclasses.replace(rows, scores=other))[0] == certify(FILTERS["people"], rows)[0]


def test_what_is_not_covered_depends_on_the_scope():
    rows = labelled()
    population = certify(FILTERS["people"], rows)[1]["does_not_cover"]
    curated = certify(FILTERS["hate_symbol"], rows)[1]["does_not_cover"]
    assert any("new source" in line for line in population)
    assert any("collection lacks" in line for line in curated)


def test_too_few_positives_give_no_certificate():
    with pytest.raises(NotEnoughLabels, match="Label at least 299"):
        certify(FILTERS["people"], labelled(n=600))


def test_certificates_are_json_of_numbers_that_exist():
    content = certify(FILTERS["people"], labelled())[1]
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize(("share", "text"), [(0.01, "1 %"), (0.95, "95 %"), (0.001, "0.1 %"), (1 / 3, "33.33 %"), (1, "100 %")])
def test_shares_read_as_percentages(share, text):
    assert percent(share) == text


def test_on_real_photos_people_are_told_apart_and_the_promise_is_kept(photos):
    """Mean-pooled MobileNetV2 features of 1,686 photos: poor ones, with which keeping the promise drops most clean photos."""
    features = pq.read_table(photos / "photos/features_mobilenetv2.parquet")
    index = {row["file"]: row for row in pq.read_table(photos / "photos/index.parquet", columns=["file", "person", "group"]).to_pylist()}
    files = features.column("file").to_pylist()
    known = [i for i, file in enumerate(files) if index[file]["person"] is not None]
    uids = [files[i] for i in known]
    rows = (
        features.column("feature")
        .combine_chunks()
        .flatten()
        .to_numpy(zero_copy_only=False)
        .astype(np.float32)
        .reshape(len(files), -1)[known]
    )
    values = np.array([index[uid]["person"] for uid in uids])
    far_apart = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, size=len(uids))
    groups = near_duplicate_groups(uids, rows, far_apart, [index[uid]["group"] for uid in uids])
    splits = assign_splits(uids, values.tolist(), ["random"] * len(uids), groups, scope="population", config=SplitConfig())
    fitted = np.flatnonzero(np.array(splits) == "fit")
    fit = fit_svm(rows[fitted], values[fitted], [groups[i] for i in fitted], SvmConfig(costs=(10.0,), gamma_scales=(1.0,)))
    scores = Scorer([fit.svm]).scores(rows)[:, 0]
    result = Labelled(values=values, origins=["random"] * len(uids), groups=groups, splits=splits, scores=scores)
    loose = dataclasses.replace(FILTERS["people"], max_miss_rate=0.1)
    for spec, most_dropped in ((FILTERS["people"], 1.0), (loose, 0.5)):
        threshold, content = certify(spec, result)
        assert content["test"]["auc"] > 0.9
        # The test positives agree with the promise: their exact interval does not lie above it.
        assert content["test"]["miss_rate"]["low"] <= spec.max_miss_rate
        assert content["test"]["clean_dropped"]["share"] < most_dropped
        assert threshold.n >= 299
