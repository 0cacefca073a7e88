"""Tars and shards: the same bytes whatever happens, and damage that is named."""

import gc
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from winnow import shards
from winnow.decisions import schema
from winnow.errors import ConfigError, ShardError, StepFailed
from winnow.partitions import StageRun, run_step
from winnow.shards import ShardConfig, plan_shards, read_samples, write_index, write_shard
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.tars import TarWriter, read_members

MEMBERS = [("a.jpg", b"\xff\xd8" * 300), ("a.txt", b""), ("a.json", b"{}"), ("b.jpg", bytes(512)), ("b.txt", b"x" * 513), ("b.json", b"[]")]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with open(path, "wb") as stream:
        tar = TarWriter(stream)
        for name, data in members:
            tar.add(name, data)
        tar.close()
    return path


def uid_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def add_partition(storage: Storage, name: str, numbers: Sequence[int], *, dropped: Sequence[int] = ()) -> None:
    """What the download and score stages leave of one partition; every tenth number failed to download."""
    rows = sorted((uid_of(number), number) for number in numbers)
    members: list[tuple[str, bytes]] = []
    for uid, number in rows:
        if number % 10:
            meta = json.dumps({"uid": uid, "url": f"http://{number}"}).encode()
            members += [(f"{uid}.jpg", b"jpeg %d" % number), (f"{uid}.txt", f"größe {number}".encode()), (f"{uid}.json", meta)]
    with storage.scratch() as scratch:
        storage.put(write_tar(scratch / "t", members), f"raw/{name}.tar")
    verdicts = ["failed" if not number % 10 else "dropped" if number in dropped else "kept" for _, number in rows]
    reasons = [{"failed": ["download:timeout"], "dropped": ["people"], "kept": []}[verdict] for verdict in verdicts]
    columns: list[Any] = [[uid for uid, _ in rows], verdicts, reasons]
    write_table(storage, f"decisions/{name}.parquet", pa.table(columns, schema=schema([])))


def marks(storage: Storage, kind: str, ending: str) -> dict[str, str]:
    return {name.partition(".")[0]: storage.sha256(f"{kind}/{name}") for name in storage.names(kind) if name.endswith(ending)}


def shard(storage: Storage, size: int = 8, dataset: str = "curated", workers: int = 0) -> StageRun:
    config = ShardConfig(dataset=dataset, shard_samples=size)
    works = plan_shards(storage, config, raw=marks(storage, "raw", ".tar"), decided=marks(storage, "decisions", ".parquet"))
    result = run_step(write_shard, works, storage, stage=shards.STAGE, version=shards.VERSION, workers=workers)
    write_index(storage, config)
    return result


def contents(storage: Storage) -> dict[str, bytes]:
    return {path: storage.read_bytes(path) for path in storage.walk("shards")}


def fill(storage: Storage) -> list[str]:
    """Two partitions; the uids kept, in order."""
    add_partition(storage, "00000-aaaaaaaa", range(20), dropped=[3, 4])
    add_partition(storage, "00001-bbbbbbbb", range(20, 40), dropped=[25])
    first = sorted(uid_of(number) for number in range(20) if number % 10 and number not in (3, 4))
    return first + sorted(uid_of(number) for number in range(20, 40) if number % 10 and number != 25)


# Tars


def test_a_tar_is_byte_for_byte_what_tarfile_writes(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in MEMBERS:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert write_tar(tmp_path / "t.tar", MEMBERS).read_bytes() == sink.getvalue()


def test_members_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", MEMBERS)
    assert list(read_members(path)) == MEMBERS
    assert list(read_members(path, only=frozenset("b"))) == MEMBERS[3:]


def test_a_tar_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t.tar", MEMBERS).read_bytes()
    end = whole.rindex(b"[]") + 512 - len(b"[]")
    for size in [*range(0, end, 256), end - end % 512 + 512]:
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"cut\.tar is damaged: .*(ends|checksum|header)"):
            list(read_members(tmp_path / "cut.tar"))


def test_a_flipped_bit_in_a_header_is_damage_and_not_the_end(tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "t.tar", MEMBERS).read_bytes())
    second = data.index(b"a.txt")
    data[second] ^= 1
    (tmp_path / "t.tar").write_bytes(data)
    with tarfile.open(tmp_path / "t.tar") as tar:
        assert len(tar.getnames()) == 1  # what tarfile makes of it: why there is a reader of our own
    with pytest.raises(ShardError, match=r"t\.tar is damaged: the header after a\.jpg has a wrong checksum"):
        list(read_members(tmp_path / "t.tar"))


def test_a_tar_with_links_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ShardError, match=r"a\.jpg is not a plain USTAR file"):
        list(read_members(tmp_path / "t.tar"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (MEMBERS[:2], "a has the files jpg, txt, expected jpg, json, txt"),
        ([("a.jpg", b""), ("a.txt", b"\xff"), ("a.json", b"{}")], "a has unreadable text"),
        ([("a.jpg", b""), ("a.txt", b""), ("a.json", b"{")], "a has unreadable text"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=message):
        list(read_samples(write_tar(tmp_path / "t.tar", members)))


# Shards


def test_kept_samples_are_cut_in_the_order_of_partition_and_uid(storage: Storage) -> None:
    kept = fill(storage)
    result = shard(storage)
    assert (result.counts, len(kept)) == ({"samples": 33}, 33)
    found = [[sample.uid for sample in read_samples(storage.full(f"shards/curated/{number:05d}.tar"))] for number in range(5)]
    assert found == [kept[start : start + 8] for start in range(0, 33, 8)]
    sample = next(read_samples(storage.full("shards/curated/00000.tar")))
    number = next(number for number in range(20) if uid_of(number) == sample.uid)
    assert (sample.image, sample.caption, sample.meta["url"]) == (b"jpeg %d" % number, f"größe {number}", f"http://{number}")


def test_the_sidecar_says_where_each_sample_is_and_comes_from(storage: Storage) -> None:
    kept = fill(storage)
    shard(storage)
    rows = [row for number in range(5) for row in read_table(storage, f"shards/curated/{number:05d}.parquet").to_pylist()]
    assert [row["uid"] for row in rows] == kept
    assert [row["index"] for row in rows] == [position % 8 for position in range(33)]
    assert [row["partition"] for row in rows] == ["00000-aaaaaaaa"] * 16 + ["00001-bbbbbbbb"] * 17
    assert all(row["caption"].startswith("größe ") for row in rows)


def test_the_index_has_counts_digests_and_lineage(storage: Storage) -> None:
    fill(storage)
    storage.write_text("manifest/index.json", "{}")
    storage.write_text("decisions/filters.json", '[{"name": "people", "version": "v1"}]')
    shard(storage)
    index = json.loads(storage.read_text("shards/curated/index.json"))
    assert (index["dataset"], index["num_samples"]) == ("curated", 33)
    for entry, samples in zip(index["shards"], (8, 8, 8, 8, 1), strict=True):
        data = storage.read_bytes(f"shards/curated/{entry['name']}")
        assert entry == {"name": entry["name"], "num_samples": samples, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    lineage = index["lineage"]
    assert lineage["manifest"] == storage.sha256("manifest/index.json")
    assert lineage["filters"] == [{"name": "people", "version": "v1"}]
    assert lineage["partitions"] == ["00000-aaaaaaaa", "00001-bbbbbbbb"]
    before = lineage["decisions"]
    add_partition(storage, "00001-bbbbbbbb", range(20, 40), dropped=[26])
    shard(storage)
    assert json.loads(storage.read_text("shards/curated/index.json"))["lineage"]["decisions"] != before


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_plain_webdataset_reads_them(storage: Storage) -> None:
    import webdataset

    kept = fill(storage)
    shard(storage)
    paths = [storage.full(f"shards/curated/{number:05d}.tar") for number in range(5)]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == kept
    assert all(set(sample) >= {"jpg", "txt", "json"} for sample in samples)
    gc.collect()  # while its warnings about open files are still ignored


def test_new_partitions_change_the_last_shard_only_and_add_new_ones(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    before = contents(storage)
    add_partition(storage, "00002-cccccccc", range(40, 60))
    result = shard(storage)
    assert (result.ran, result.skipped) == (3, 4)
    after = contents(storage)
    same = [path for path in before if after[path] == before[path]]
    assert same == [f"shards/curated/{number:05d}.{kind}" for number in range(4) for kind in ("parquet", "tar")]
    fresh = Storage(storage.url + "-fresh")
    fill(fresh)
    add_partition(fresh, "00002-cccccccc", range(40, 60))
    shard(fresh)
    assert contents(fresh) == after


def test_a_second_run_does_nothing(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    before = contents(storage)
    result = shard(storage)
    assert (result.ran, result.skipped, contents(storage) == before) == (0, 5, True)


def test_fewer_kept_samples_take_shards_away(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    add_partition(storage, "00001-bbbbbbbb", range(20, 40), dropped=range(40))
    shard(storage)
    assert storage.names("shards/curated") == ["00000.parquet", "00000.tar", "00001.parquet", "00001.tar", "index.json"]
    assert json.loads(storage.read_text("shards/curated/index.json"))["num_samples"] == 16


def test_a_shard_that_a_killed_run_left_behind_is_taken_away(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    storage.write_bytes("shards/curated/00005.tar", b"stale")
    shard(storage)
    assert storage.names("shards/curated")[-2:] == ["00004.tar", "index.json"]


def test_nothing_kept_is_an_empty_index(storage: Storage) -> None:
    add_partition(storage, "00000-aaaaaaaa", range(9), dropped=range(9))
    shard(storage)
    index = json.loads(storage.read_text("shards/curated/index.json"))
    assert (index["shards"], index["num_samples"]) == ([], 0)


def test_a_damaged_raw_tar_leaves_no_shard_and_is_named(storage: Storage) -> None:
    fill(storage)
    data = bytearray(storage.read_bytes("raw/00001-bbbbbbbb.tar"))
    data[512 * 8] ^= 1  # the second sample's caption: its header
    storage.write_bytes("raw/00001-bbbbbbbb.tar", bytes(data))
    with pytest.raises(StepFailed, match=r"00001-bbbbbbbb\.tar is damaged: the header after .* has a wrong checksum"):
        shard(storage)
    assert not [name for name in storage.names("shards/curated") if name > "00002"]
    assert not storage.exists("shards/curated/index.json")


def test_a_kept_sample_that_the_raw_tar_lacks_is_named(storage: Storage) -> None:
    kept = fill(storage)
    with storage.scratch() as scratch:
        storage.put(write_tar(scratch / "t", []), "raw/00000-aaaaaaaa.tar")
    with pytest.raises(StepFailed, match=f"lacks 8 samples that the decision log keeps, {kept[0]} for one"):
        shard(storage)


def test_a_kill_while_a_shard_is_written_leaves_nothing_and_the_redo_is_the_same(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Storage(str(tmp_path / "undisturbed"))
    for target in (storage, undisturbed):
        fill(target)
    shard(undisturbed)
    add, calls = TarWriter.add, 0

    def killed(self: TarWriter, name: str, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise KeyboardInterrupt
        add(self, name, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TarWriter, "add", killed)
        shard(storage)
    assert storage.names("shards/curated") == ["00000.parquet", "00000.tar"]
    assert storage.walk(".tmp") == []
    shard(storage)
    assert contents(storage) == contents(undisturbed)


@pytest.mark.parametrize(("change", "message"), [({"dataset": "a/b"}, "dataset must be"), ({"shard_samples": 0}, "at least 1, got 0")])
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardConfig(**change)
