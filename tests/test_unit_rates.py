"""`winnow plan --measure`: that something is measured, and in the right units; how fast this machine is cannot be tested."""

import dataclasses
from pathlib import Path

import pytest

from models.clip_embedder import DEMO, ClipConfig
from tasks.unit_rates import drawn_images, images_of, measured_numbers
from winnow.errors import ConfigError
from winnow.plan.settings import Rates, Workload


def test_every_rate_is_measured_and_of_a_size_that_can_be() -> None:
    images = drawn_images(6)
    assert len(images) == 6
    numbers = measured_numbers(ClipConfig(model=DEMO), images)
    assert set(numbers) <= {entry.name for group in (Workload, Rates) for entry in dataclasses.fields(group)}
    assert {"download_cpu_seconds", "decode_cpu_seconds", "score_cpu_seconds", "shard_cpu_seconds", "gemm_flops_per_cpu_second"} < set(
        numbers
    )
    assert numbers["image_bytes"] == sum(map(len, images)) / 6 and 1 <= numbers["crops_per_image"] <= 3
    # Bounds that a thousandfold mistake in a unit would break, and no machine does.
    assert 1e-5 < numbers["decode_cpu_seconds"] < 0.3
    assert 1e-5 < numbers["download_cpu_seconds"] < 1
    assert 1e-10 < numbers["score_cpu_seconds"] < 1e-6
    assert 1e-6 < numbers["shard_cpu_seconds"] < 0.1
    assert 1e8 < numbers["gemm_flops_per_cpu_second"] < 1e13
    assert 1e6 < numbers["hash_pairs_per_cpu_second"] < 1e12
    assert 1 < numbers.get("crops_per_cpu_second", 100) < 1e5


def test_photos_to_measure_with_come_from_a_folder(tmp_path: Path) -> None:
    for number, data in enumerate(drawn_images(3)):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert len(images_of(str(tmp_path))) == 3


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="holds no image"):
        images_of(str(tmp_path))
