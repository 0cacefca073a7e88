"""Tars and shards: the same bytes whatever happens, and damage that is named."""

import gc
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow import resharding, shards
from winnow.decisions import schema
from winnow.errors import ConfigError, ShardError, StepFailed
from winnow.partitions import StageRun, run_step
from winnow.resharding import plan_shards, write_group
from winnow.shard_groups import MAX_PARTITIONS, cut, group_partitions, shuffled
from winnow.shards import ShardConfig, kept_uids, read_samples, write_index
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.tars import TarWriter, header_of, read_members

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


def shard(
    storage: Storage, size: int = 8, dataset: str = "curated", shuffle_rows: int = 40, holes: Sequence[str] = (), seed: int = 0
) -> StageRun:
    config = ShardConfig(dataset=dataset, shard_samples=size, shuffle_rows=shuffle_rows, seed=seed)
    decided = marks(storage, "decisions", ".parquet")
    rows = {name: read_table(storage, f"decisions/{name}.parquet").num_rows for name in decided}
    works = plan_shards(config, rows=rows, raw=marks(storage, "raw", ".tar"), decided=decided, holes={min(rows): holes})
    result = run_step(write_group, works, storage, stage=shards.STAGE, version=resharding.VERSION)
    write_index(storage, dataset)
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


def test_a_header_with_a_negative_size_is_refused_and_not_followed_back(tmp_path: Path) -> None:
    header = bytearray(header_of("a.jpg", 512))
    header[124:136] = b"-0000000777\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    (tmp_path / "t.tar").write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(ShardError, match="the header after the beginning is not one of a tar"):
        list(read_members(tmp_path / "t.tar"))


@given(st.text("abcdefghij0123456789._-", min_size=1, max_size=100), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert header_of(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


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


def index_of(storage: Storage, dataset: str = "curated") -> dict[str, Any]:
    return json.loads(storage.read_text(f"shards/{dataset}/index.json"))


def in_order(storage: Storage) -> list[list[str]]:
    """The uids of every shard, as its tar has them."""
    return [
        [sample.uid for sample in read_samples(storage.full(f"shards/curated/{entry['name']}"))] for entry in index_of(storage)["shards"]
    ]


def test_every_kept_sample_is_in_one_shard_as_it_lies_in_raw(storage: Storage) -> None:
    kept = fill(storage)
    result = shard(storage)
    assert (result.counts, len(kept)) == ({"samples": 33, "shards": 4}, 33)
    found = [sample for entry in index_of(storage)["shards"] for sample in read_samples(storage.full(f"shards/curated/{entry['name']}"))]
    assert sorted(sample.uid for sample in found) == sorted(kept)
    numbers = {uid_of(number): number for number in range(40)}
    for sample in found:
        number = numbers[sample.uid]
        assert (sample.image, sample.caption, sample.meta["url"]) == (b"jpeg %d" % number, f"größe {number}", f"http://{number}")


def test_samples_of_a_group_are_shuffled_by_seed_across_its_partitions(storage: Storage) -> None:
    kept = fill(storage)
    shard(storage)
    first = [uid for shard in in_order(storage) for uid in shard]
    assert first == shuffled(kept, 0) != sorted(first)
    assert {row["partition"] for row in read_table(storage, "shards/curated/00000-000.parquet").to_pylist()} == {
        "00000-aaaaaaaa",
        "00001-bbbbbbbb",
    }
    shard(storage, seed=1)
    second = [uid for shard in in_order(storage) for uid in shard]
    assert sorted(second) == sorted(first) and second == shuffled(kept, 1) != first


@given(st.integers(0, 500), st.integers(1, 120))
def test_shards_of_a_group_differ_by_one_sample_at_most(count: int, wanted: int) -> None:
    order = [str(number) for number in range(count)]
    shards = cut(order, wanted)
    assert [uid for shard in shards for uid in shard] == order
    sizes = [len(shard) for shard in shards]
    assert not sizes or max(sizes) - min(sizes) <= 1
    # As many as come closest: one more or one fewer would be further from what was asked for.
    assert not sizes or len(sizes) == max(1, int(count / wanted + 0.5))


@given(st.lists(st.integers(1, 50), max_size=150), st.integers(1, 200), st.integers(1, 50))
def test_a_new_partition_changes_the_last_group_alone(sizes: list[int], at_least: int, more: int) -> None:
    rows = {f"{number:05d}": size for number, size in enumerate(sizes)}
    before = group_partitions(rows, at_least)
    after = group_partitions(rows | {f"{len(sizes):05d}": more}, at_least)
    assert after[: len(before) - 1] == before[:-1]
    assert [name for group in before for name in group] == sorted(rows)
    assert all(sum(rows[name] for name in group) >= at_least or len(group) >= MAX_PARTITIONS for group in before[:-1])
    assert all(len(group) < 2 * MAX_PARTITIONS for group in before)


def test_the_sidecar_says_where_each_sample_is_and_comes_from(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    for entry, uids in zip(index_of(storage)["shards"], in_order(storage), strict=True):
        rows = read_table(storage, f"shards/curated/{entry['name'].removesuffix('.tar')}.parquet").to_pylist()
        assert [row["uid"] for row in rows] == uids
        assert [row["index"] for row in rows] == list(range(len(uids)))
        assert all(row["uid"] in kept_uids(storage, row["partition"]) for row in rows)
        assert all(row["caption"].startswith("größe ") for row in rows)


def test_the_index_has_counts_digests_and_lineage(storage: Storage) -> None:
    fill(storage)
    storage.write_text("manifest/index.json", "{}")
    storage.write_text("decisions/filters.json", '[{"name": "people", "version": "v1"}]')
    shard(storage)
    index = index_of(storage)
    assert (index["dataset"], index["num_samples"]) == ("curated", 33)
    for entry, samples in zip(index["shards"], (8, 8, 8, 9), strict=True):
        data = storage.read_bytes(f"shards/curated/{entry['name']}")
        assert entry == {"name": entry["name"], "num_samples": samples, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    lineage = index["lineage"]
    assert lineage["manifest"] == storage.sha256("manifest/index.json")
    assert lineage["filters"] == [{"name": "people", "version": "v1"}]
    assert lineage["partitions"] == ["00000-aaaaaaaa", "00001-bbbbbbbb"]
    before = lineage["decisions"]
    add_partition(storage, "00001-bbbbbbbb", range(20, 40), dropped=[26])
    shard(storage)
    assert index_of(storage)["lineage"]["decisions"] != before


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_plain_webdataset_reads_them(storage: Storage) -> None:
    import webdataset

    kept = fill(storage)
    shard(storage)
    paths = [storage.full(f"shards/curated/{entry['name']}") for entry in index_of(storage)["shards"]]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == shuffled(kept, 0)
    assert all(set(sample) >= {"jpg", "txt", "json"} for sample in samples)
    gc.collect()  # while its warnings about open files are still ignored


def test_new_partitions_leave_the_shards_of_full_groups_as_they_are(storage: Storage) -> None:
    fill(storage)
    shard(storage, shuffle_rows=20)
    before = contents(storage)
    add_partition(storage, "00002-cccccccc", range(40, 60))
    result = shard(storage, shuffle_rows=20)
    assert (result.ran, result.skipped) == (1, 2)
    after = contents(storage)
    assert [path for path in before if after[path] != before[path]] == ["shards/curated/index.json"]
    fresh = Storage(storage.url + "-fresh")
    fill(fresh)
    add_partition(fresh, "00002-cccccccc", range(40, 60))
    shard(fresh, shuffle_rows=20)
    assert contents(fresh) == after


def test_a_second_run_does_nothing(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    before = contents(storage)
    result = shard(storage)
    assert (result.ran, result.skipped, contents(storage) == before) == (0, 1, True)


def test_a_sample_that_leaves_its_place_empty_changes_its_own_shard_alone(storage: Storage) -> None:
    kept = fill(storage)
    shard(storage)
    before, places = contents(storage), in_order(storage)
    files = {path: os.stat(storage.full(path)).st_ino for path in before}
    gone = uid_of(1)
    add_partition(storage, "00000-aaaaaaaa", range(20), dropped=[1, 3, 4])
    shard(storage, holes=[gone])
    own = next(number for number, uids in enumerate(places) if gone in uids)
    changed = [path for path in before if contents(storage)[path] != before[path]]
    assert changed == [f"shards/curated/00000-{own:03d}.{kind}" for kind in ("parquet", "tar")] + ["shards/curated/index.json"]
    # What did not change was not even written again.
    assert sorted(path for path in before if os.stat(storage.full(path)).st_ino != files[path]) == changed
    assert [uid for uids in in_order(storage) for uid in uids] == [uid for uid in shuffled(kept, 0) if uid != gone]


def test_a_shard_with_a_flipped_bit_is_written_again_when_its_group_is(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    before = contents(storage)
    data = bytearray(before["shards/curated/00000-001.tar"])
    data[600] ^= 1
    storage.write_bytes("shards/curated/00000-001.tar", bytes(data))
    for name in storage.names("receipts/shard"):
        storage.remove(f"receipts/shard/{name}")
    shard(storage)
    assert contents(storage) == before


def test_fewer_kept_samples_take_shards_away(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    add_partition(storage, "00001-bbbbbbbb", range(20, 40), dropped=range(40))
    shard(storage)
    names = [f"00000-{number:03d}.{kind}" for number in (0, 1) for kind in ("parquet", "tar")]
    assert storage.names("shards/curated") == [*names, "index.json"]
    assert index_of(storage)["num_samples"] == 16


def test_a_shard_that_a_killed_run_left_behind_is_taken_away(storage: Storage) -> None:
    fill(storage)
    shard(storage)
    storage.write_bytes("shards/curated/00000-004.tar", b"stale")
    shard(storage)
    assert storage.names("shards/curated")[-2:] == ["00000-003.tar", "index.json"]


def test_nothing_kept_is_an_empty_index(storage: Storage) -> None:
    add_partition(storage, "00000-aaaaaaaa", range(9), dropped=range(9))
    shard(storage)
    assert (index_of(storage)["shards"], index_of(storage)["num_samples"]) == ([], 0)


def test_a_damaged_raw_tar_leaves_no_shard_and_is_named(storage: Storage) -> None:
    fill(storage)
    data = bytearray(storage.read_bytes("raw/00001-bbbbbbbb.tar"))
    data[512 * 8] ^= 1  # the second sample's caption: its header
    storage.write_bytes("raw/00001-bbbbbbbb.tar", bytes(data))
    with pytest.raises(StepFailed, match=r"00001-bbbbbbbb\.tar is damaged: the header after .* has a wrong checksum"):
        shard(storage)
    assert storage.walk("shards") == []


def test_a_kept_sample_that_the_raw_tar_lacks_is_named(storage: Storage) -> None:
    fill(storage)
    with storage.scratch() as scratch:
        storage.put(write_tar(scratch / "t", []), "raw/00000-aaaaaaaa.tar")
    first = min(kept_uids(storage, "00000-aaaaaaaa"))
    with pytest.raises(StepFailed, match=f"lacks 16 samples that the decision log keeps, {first} for one"):
        shard(storage)


def test_a_kill_while_a_shard_is_written_leaves_nothing_and_the_redo_is_the_same(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Storage(str(tmp_path / "undisturbed"))
    for target in (storage, undisturbed):
        fill(target)
    shard(undisturbed)
    add, calls = TarWriter.add_blocks, 0

    def killed(self: TarWriter, blocks: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 10:
            raise KeyboardInterrupt
        add(self, blocks)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TarWriter, "add_blocks", killed)
        shard(storage)
    assert storage.names("shards/curated") == ["00000-000.parquet", "00000-000.tar"]
    assert storage.walk(".tmp") == []
    shard(storage)
    assert contents(storage) == contents(undisturbed)


@pytest.mark.parametrize(("change", "message"), [({"dataset": "a/b"}, "dataset must be"), ({"shard_samples": 0}, "at least 1, got 0")])
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardConfig(**change)
