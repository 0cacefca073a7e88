import numpy as np
import pytest

from models.regurgitation import nearest_kept


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_the_nearest_neighbour_is_exact_whatever_the_chunks(chunk: int) -> None:
    rng = np.random.default_rng(0)
    kept, samples = unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(6, 8)))
    uids = [f"u{row}" for row in range(50)]
    found = nearest_kept(samples, uids[:6], ((uids[i : i + chunk], kept[i : i + chunk]) for i in range(0, 50, chunk)))
    cosine = samples @ kept.T
    assert found.uid == [uids[column] for column in cosine.argmax(axis=1)]
    np.testing.assert_allclose(found.distance, 1 - cosine.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.own, kept[:6])


def test_a_model_that_returns_the_training_image_is_at_distance_zero_of_it() -> None:
    kept = unit(np.random.default_rng(1).normal(size=(20, 8)))
    uids = [str(row) for row in range(20)]
    found = nearest_kept(kept[:5], uids[:5], [(uids, kept)])
    assert found.uid == uids[:5]
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)


def test_a_training_image_that_is_not_kept_is_not_invented() -> None:
    kept = unit(np.eye(3))
    found = nearest_kept(kept[:1], ["gone"], [(["a", "b", "c"], kept)])
    assert np.isnan(found.own).all()
