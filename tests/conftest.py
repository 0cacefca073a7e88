"""Shared fixtures: one quiet surrounding for Prefect and Ray, and the real photos where there are some."""

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_web import web  # noqa: F401  # a fixture for all
from tests.s3_server import S3Server, faulty, s3, s3_behind_proxy  # noqa: F401  # fixtures for all

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need one; those marked `network` run when WINNOW_TEST_NETWORK is set.

    Where two processes run the tests, one of them has all that starts a cluster or a server, so that there is one of each.
    The other tests of a file stay together, for its fixtures.
    """
    import torch

    for item in items:
        starts_something = item.get_closest_marker("slow") or "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("cluster" if starts_something else item.path.name))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("network") and not os.environ.get("WINNOW_TEST_NETWORK"):
            item.add_marker(pytest.mark.skip(reason="WINNOW_TEST_NETWORK is not set"))


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of real photos with captions and labels."""
    folder = os.environ.get("WINNOW_TEST_DATA")
    if not folder:
        pytest.skip("WINNOW_TEST_DATA does not name the folder of test photos")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[int]:
    """A local Ray of two workers for the tests that need one; yields how many partitions to run at a time."""
    from winnow.partitions import start_ray

    start_ray(2)
    yield 2
    _end_ray()


@pytest.fixture
def ray_with_store(ray_cluster: int, s3: S3Server) -> int:  # noqa: F811  # the fixture
    """The same, started anew: workers find the store by the surroundings in which Ray was started, as on a real cluster."""
    from winnow.partitions import start_ray

    _end_ray()
    start_ray(ray_cluster)
    return ray_cluster


def _end_ray() -> None:
    from winnow.partitions import stop_ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray lets go of its processes before they have ended
        stop_ray()
        gc.collect()
