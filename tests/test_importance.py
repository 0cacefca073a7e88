"""Weights undo what filtering did to the data, as far as kept images can; they are calibrated, clipped and 1 on average."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from filters.importance import (
    GRAIN,
    Importance,
    ImportanceConfig,
    calibration_error,
    effective_size,
    fit_importance,
)
from winnow.errors import ConfigError
from winnow.words import words_of

CONFIG = ImportanceConfig(enabled=True)


def drawn(n: int = 12_000, dim: int = 8, pull: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit features, whether each is kept with chance sigmoid(1.5 - pull x_0 sqrt(dim)), and that chance."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    chance = 1 / (1 + np.exp(-(1.5 - pull * x[:, 0] * np.sqrt(dim))))
    return x.astype(np.float32), rng.random(n) < chance, chance


def test_weights_are_one_by_the_chance_to_be_kept():
    x, kept, chance = drawn(25_000)
    importance, _ = fit_importance(x, kept, dataclasses.replace(CONFIG, max_weight=1000.0))
    true = 1 / chance[kept]
    true /= true.mean()
    found = importance.weights(x[kept])
    common = chance[kept] > 0.1  # rarer ones are known by few
    assert np.corrcoef(np.log(found[common]), np.log(true[common]))[0, 1] > 0.995
    assert np.abs(found[common] / true[common] - 1).max() < 0.15


def test_weighted_kept_images_look_like_those_before_filtering():
    x, kept, _ = drawn()
    importance, told = fit_importance(x, kept, CONFIG)
    weights = importance.weights(x[kept])
    before, after = x.mean(axis=0)[0], x[kept].mean(axis=0)[0]
    weighted = np.average(x[kept], axis=0, weights=weights)[0]
    assert abs(after - before) > 0.1
    assert abs(weighted - before) < 0.15 * abs(after - before)
    assert told["mean_weight"] == pytest.approx(1, abs=GRAIN)
    assert told["effective_share"] == pytest.approx(effective_size(weights) / len(weights))
    assert 0.3 < told["effective_share"] < 0.95


def test_what_is_measured_is_measured_on_images_kept_apart():
    x, kept, chance = drawn(30_000)
    _, told = fit_importance(x, kept, CONFIG)
    assert told["auc"] > 0.8
    assert told["log_loss"] < told["log_loss_of_the_share"]
    best = -np.mean(np.where(kept, np.log(chance), np.log(1 - chance)))  # what the true chances give
    assert told["log_loss"] == pytest.approx(best, abs=0.03)
    assert told["calibration_error"] < 0.03


def test_pure_chance_teaches_nothing_and_weighs_nearly_nothing():
    x, _, _ = drawn(12_000, dim=16)
    kept = np.random.default_rng(1).random(len(x)) < 0.6
    importance, told = fit_importance(x, kept, CONFIG)
    assert abs(told["auc"] - 0.5) < 0.03
    assert told["effective_share"] > 0.98
    assert np.abs(importance.weights(x) - 1).max() < 0.6


@pytest.mark.parametrize("share", [0.0, 1.0, 0.999])
def test_with_too_few_of_a_kind_every_image_weighs_one(share):
    x, _, _ = drawn(3000)
    kept = np.arange(3000) < share * 3000
    importance, told = fit_importance(x, kept, CONFIG)
    assert np.array_equal(importance.weights(x), np.ones(3000))
    assert told["note"] == f"{int(kept.sum()):,} of 3,000 images are kept: too few of one kind to learn from, so every image weighs 1"


def test_weights_are_clipped_and_still_one_on_average():
    x, kept, _ = drawn(pull=6.0)
    config = dataclasses.replace(CONFIG, max_weight=2.0)
    importance, told = fit_importance(x, kept, config)
    weights = importance.weights(x[kept])
    assert weights.max() == 2.0
    assert weights.min() >= 0.5
    assert weights.mean() == pytest.approx(1, abs=GRAIN)
    assert told["clipped_share"] > 0.04
    assert np.array_equal(weights / GRAIN, np.round(weights / GRAIN))


def test_the_closed_form_of_a_weight():
    importance = Importance(coefficients=np.array([2.0, 0.0]), intercept=0.0, scale=0.5, max_weight=10.0)
    weights = importance.weights(np.array([[0.0, 1.0], [-np.log(3) / 2, 0.0], [-20.0, 0.0]]))
    assert weights == pytest.approx([0.5 * 2, 0.5 * 4, 10.0], abs=GRAIN)


def test_the_same_rows_give_the_same_weights_and_another_seed_others():
    x, kept, _ = drawn(3000)
    one, other, third = (fit_importance(x, kept, dataclasses.replace(CONFIG, seed=seed))[0] for seed in (0, 0, 1))
    assert np.array_equal(one.coefficients, other.coefficients) and one.scale == other.scale
    assert not np.array_equal(one.coefficients, third.coefficients)


def test_effective_size_is_kishs():
    assert effective_size(np.full(50, 3.0)) == pytest.approx(50)
    assert effective_size(np.array([1.0, 0, 0, 0])) == pytest.approx(1)
    assert effective_size(np.array([1.0, 2.0])) == pytest.approx(9 / 5)


def test_a_calibration_error_is_the_mean_gap_of_ten_groups():
    said = np.repeat(np.arange(10) / 10, 100)
    assert calibration_error(said, said) == pytest.approx(0, abs=1e-12)
    assert calibration_error(said, said + 0.2) == pytest.approx(0.2)


def test_on_real_photos_weights_bring_words_back_towards_those_before_filtering(photos):
    """A filter for people that drops two thirds of 1,592 photos with captions; words of a third that the classifier has not seen."""
    rng = np.random.default_rng(0)
    table = pq.read_table(photos / "photos/features_mobilenetv2.parquet")
    vectors = table["feature"].combine_chunks().flatten().to_numpy().astype(np.float32).reshape(table.num_rows, -1)
    feature_of = dict(zip(table["file"].to_pylist(), vectors @ rng.normal(size=(vectors.shape[1], 64)), strict=True))
    rows = pq.read_table(photos / "photos/index.parquet", columns=["file", "person", "captions"]).to_pylist()
    rows = [row for row in rows if row["captions"] and row["person"] is not None and row["file"] in feature_of]
    x = np.array([feature_of[row["file"]] for row in rows])
    x -= x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    person = np.array([row["person"] for row in rows])
    words = [words_of(" ".join(json.loads(row["captions"]))) for row in rows]
    common = sorted(word for word, count in Counter(word for own in words for word in own).items() if count > 60)
    there = np.array([[word in own for word in common] for own in words], np.float64)
    kept = LogisticRegression(max_iter=300).fit(x, person).decision_function(x) + 0.7 * rng.logistic(size=len(x)) < 0
    apart = rng.random(len(x)) < 1 / 3
    importance, told = fit_importance(x[~apart], kept[~apart], dataclasses.replace(CONFIG, max_weight=5.0))
    assert told["auc"] > 0.8
    before = there[apart].mean(axis=0)

    def distance(rows: np.ndarray, weights: np.ndarray) -> float:
        """Mean of |log(share / share before)| over words, as the report has it."""
        shares = np.average(there[rows], axis=0, weights=weights[rows])
        left = (shares > 0) & (before > 0)
        return float(np.average(np.abs(np.log(shares[left] / before[left])), weights=before[left]))

    one, drawn = np.ones(len(x)), rng.choice(np.flatnonzero(apart), (apart & kept).sum(), replace=False)
    assert distance(drawn, one) < distance(apart & kept, importance.weights(x)) < 0.92 * distance(apart & kept, one)


@pytest.mark.parametrize("change", [{"max_weight": 1.0}, {"sample": 0}, {"partitions": 0}])
def test_settings_out_of_range_are_refused_by_name(change):
    with pytest.raises(ConfigError, match=f"importance.{next(iter(change))} must be"):
        ImportanceConfig(**change)
