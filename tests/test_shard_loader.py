"""Samples are read once an epoch in an order that follows from (seed, epoch, rank, world); damaged shards are named."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.sample_order import batch_order, epoch_order
from models.shard_loader import ShardSamples, batches, square_image, to_uint8, to_unit_range
from models.training_data import read_data
from winnow.errors import ShardError

sys.path.insert(0, str(Path(__file__).parent))
from toy_shards import make_shards, write_tar


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 200), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= 4),
    world=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_workers_share_an_epoch_without_reading_anything_twice(counts, world, seed, epoch):
    read = np.concatenate([epoch_order(counts, seed=seed, epoch=epoch, rank=rank, world=world) for rank in range(world)])
    places = set(map(tuple, read.tolist()))
    assert len(places) == len(read) == sum(counts) // world * world
    assert all(0 <= sample < counts[shard] for shard, sample in places)


def test_the_order_is_another_in_each_epoch_and_for_each_seed_and_the_same_when_asked_again():
    first = epoch_order([50, 50], seed=1, epoch=0)
    assert np.array_equal(first, epoch_order([50, 50], seed=1, epoch=0))
    assert not np.array_equal(first, epoch_order([50, 50], seed=1, epoch=1))
    assert not np.array_equal(first, epoch_order([50, 50], seed=2, epoch=0))


def test_each_worker_sees_all_parts_of_a_single_shard():
    # One shard and two workers: a worker that read the first half only would never learn from the other.
    samples = epoch_order([1000], seed=0, epoch=0, rank=0, world=2)[:, 1]
    assert 0.3 < (samples < 500).mean() < 0.7


@settings(max_examples=30, deadline=None)
@given(batch_size=st.integers(1, 40), first=st.integers(0, 12))
def test_a_stream_taken_up_in_the_middle_goes_on_as_if_it_had_never_stopped(batch_size, first):
    def stream(first_batch: int) -> list[list[tuple[int, int]]]:
        order = batch_order([20, 13], batch_size=batch_size, first_batch=first_batch, num_batches=15, seed=3, rank=1, world=2)
        return list(order)

    whole = stream(0)
    assert len(whole) == 15
    assert all(len(batch) == batch_size for batch in whole)
    assert stream(first) == whole[first:]


def test_images_come_with_their_own_captions(tmp_path):
    data = read_data(make_shards(tmp_path / "shards"))
    images, captions, weights = next(batches(data, image_size_px=16, batch_size=32, first_batch=0, num_batches=1, seed=0))
    assert images.shape == (32, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert weights is None
    for image, caption in zip(images.int(), captions, strict=True):
        if caption.startswith("a red"):
            assert (image[0] - image[1] > 100).any()
        if caption.startswith("a blue"):
            assert (image[2] - image[0] > 100).any()


def test_decoding_in_other_processes_gives_the_same_stream(tmp_path):
    data = read_data(make_shards(tmp_path / "shards"))
    settings = {"image_size_px": 16, "batch_size": 8, "first_batch": 1, "num_batches": 5, "seed": 0}
    here, there = list(batches(data, **settings)), list(batches(data, **settings, num_processes=2))
    assert [batch.captions for batch in here] == [batch.captions for batch in there]
    assert all(torch.equal(one.images, other.images) for one, other in zip(here, there, strict=True))


def test_the_central_square_is_reduced_by_area():
    # Left and right thirds are red; the middle is a chessboard that averages to grey.
    board = np.zeros((8, 24, 3), np.uint8)
    board[:, :, 0] = 255
    board[:, 8:16] = (255 * (np.indices((8, 8)).sum(axis=0) % 2))[..., None]
    encoded = io.BytesIO()
    Image.fromarray(board).save(encoded, "PNG")
    pixels = square_image(encoded.getvalue(), 4)
    assert pixels.shape == (3, 4, 4)
    assert set(pixels.unique().tolist()) <= {127, 128}


def test_pixels_survive_the_way_to_unit_range_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit_range(values)), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def read_all(folder: str) -> None:
    data = read_data(folder)
    samples = ShardSamples(data, 16)
    for shard, entry in enumerate(data.parts[0].shards):
        for sample in range(entry.num_samples):
            samples[shard, sample]


@pytest.mark.parametrize("share", [0.999, 0.7, 0.3])
def test_a_truncated_shard_is_named(tmp_path, share):
    folder = make_shards(tmp_path / "shards", counts=(20,))
    path = tmp_path / "shards" / "00000.tar"
    members = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes()[: int(members * share)])
    with pytest.raises(ShardError, match=r"00000\.tar is damaged: (it ends after|the header after) \S+"):
        read_all(folder)


def test_a_shard_of_noise_is_named(tmp_path):
    folder = make_shards(tmp_path / "shards", counts=(4,))
    (tmp_path / "shards" / "00000.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ShardError, match=r"00000\.tar is damaged: the header after the beginning is not one of a tar"):
        read_all(folder)


def test_an_image_that_cannot_be_decoded_is_named_with_its_shard(tmp_path):
    folder = make_shards(tmp_path / "shards", counts=(1,))
    write_tar(tmp_path / "shards" / "00000.tar", [("a1.jpg", b"not an image"), ("a1.txt", b"a barn")])
    with pytest.raises(ShardError, match=r"00000\.tar: a1\.jpg or its caption cannot be read .*make the shards again"):
        read_all(folder)


def test_a_sample_without_a_caption_file_is_named(tmp_path):
    folder = make_shards(tmp_path / "shards", counts=(1,))
    write_tar(tmp_path / "shards" / "00000.tar", [("a1.jpg", b"x")])
    with pytest.raises(ShardError, match=r"00000\.tar: sample a1\.jpg has no \.txt"):
        read_all(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = make_shards(tmp_path / "shards")
    (tmp_path / "shards" / "00001.tar").unlink()
    with pytest.raises(ShardError, match=r"00001\.tar is listed in index\.json, but is not there"):
        read_all(folder)


def test_an_index_that_is_missing_damaged_or_empty_is_told_apart(tmp_path):
    with pytest.raises(ShardError, match=r"no index\.json there"):
        read_data(str(tmp_path))
    (tmp_path / "index.json").write_text('{"dataset": "x", "shards": [{"name": "0.tar"}]}')
    with pytest.raises(ShardError, match=r"index\.json is damaged \(KeyError: 'num_samples'\)"):
        read_data(str(tmp_path))
    (tmp_path / "index.json").write_text(json.dumps({"dataset": "x", "shards": []}))
    with pytest.raises(ShardError, match="nothing was kept"):
        read_data(str(tmp_path))


def test_more_workers_than_samples_are_refused():
    with pytest.raises(ShardError, match="3 samples cannot be shared among 4 workers"):
        epoch_order([2, 1], seed=0, epoch=0, rank=0, world=4)
