"""Manifests: what is refused, and how partitions answer to a list that changes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from winnow import buckets, manifest
from winnow.errors import ConfigError, ManifestError, VerifyError
from winnow.manifest import build_manifest, load_manifest, read_summary, sample_uid, withdrawn_marks
from winnow.receipts import read_receipts
from winnow.run_files import withdrawn_uids
from winnow.storage import Storage
from winnow.tables import read_table

Pair = tuple[str, str]
PAIRS: list[Pair] = [(f"http://a.example/{number}.jpg", f"picture {number}") for number in range(25)]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def write_csv(folder: Path, pairs: list[Pair], name: str = "list.csv") -> None:
    folder.mkdir(exist_ok=True)
    lines = ["URL,TEXT", *(f'{url},"{caption}"' for url, caption in pairs)]
    (folder / name).write_text("\n".join(lines) + "\n")


def source(**changes: Any) -> dict[str, Any]:
    entry = {"name": "web", "path": "list.csv", "licence": "CC-BY-4.0", "columns": {"url": "URL", "caption": "TEXT"}}
    return {key: value for key, value in (entry | changes).items() if value is not None}


def write_yaml(folder: Path, *entries: dict[str, Any], **top: Any) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "sources": list(entries) or [source()]} | top))
    return path


def build(storage: Storage, folder: Path, pairs: list[Pair], rows: int = 10) -> manifest.ManifestSummary:
    write_csv(folder, pairs)
    return build_manifest(storage, load_manifest(write_yaml(folder)), partition_rows=rows)


def files(storage: Storage) -> dict[str, bytes]:
    return {name: storage.read_bytes(f"manifest/{name}") for name in storage.names("manifest")}


def rows_of(storage: Storage, partition: str) -> list[dict[str, Any]]:
    return read_table(storage, f"manifest/{partition}.parquet").to_pylist()


def test_a_uid_is_a_hash_of_url_and_caption() -> None:
    assert sample_uid("http://é", "a cat") == hashlib.sha256("http://é\0a cat".encode()).hexdigest()[:32]


def test_pairs_become_partitions_sorted_by_uid(storage: Storage, tmp_path: Path) -> None:
    summary = build(storage, tmp_path, PAIRS)
    assert [len(rows_of(storage, name)) for name in summary.names] == [10, 10, 5]
    rows = [row for name in summary.names for row in rows_of(storage, name)]
    assert [row["uid"] for row in rows] == sorted(sample_uid(*pair) for pair in PAIRS)
    assert {(row["url"], row["caption"]) for row in rows} == set(PAIRS)
    assert {(row["source"], row["licence"], row["sha256"]) for row in rows} == {("web", "CC-BY-4.0", None)}
    assert (summary.listed, summary.duplicates, summary.withdrawn, summary.new) == (25, 0, 0, 25)
    for name, digest in summary.inputs.items():
        assert hashlib.sha256(storage.read_bytes(f"manifest/{name}.parquet")).hexdigest() == digest
    assert storage.names("manifest") == [*(f"{name}.parquet" for name in summary.names), "index.json", "withdrawn.parquet"]


def test_a_second_run_reads_nothing_and_changes_nothing(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(storage, tmp_path, PAIRS)
    before, receipts = files(storage), storage.names("receipts/manifest")
    monkeypatch.setattr(manifest, "read_source", None)
    second = build(storage, tmp_path, PAIRS)
    assert second.inputs == first.inputs
    assert (second.new, second.new_partitions) == (0, 0)
    assert (files(storage), storage.names("receipts/manifest")) == (before, receipts)
    assert read_summary(storage) == second


def test_a_reordered_list_changes_no_partition(storage: Storage, tmp_path: Path) -> None:
    first = build(storage, tmp_path, PAIRS)
    before = files(storage)
    second = build(storage, tmp_path, PAIRS[::-1])
    assert (second.inputs, second.new) == (first.inputs, 0)
    assert {name: data for name, data in files(storage).items() if name != "index.json"} == {
        name: data for name, data in before.items() if name != "index.json"
    }


def test_inserted_rows_form_new_partitions_and_old_ones_stay(storage: Storage, tmp_path: Path) -> None:
    first = build(storage, tmp_path, PAIRS)
    before = files(storage)
    added = [(f"http://b.example/{number}.jpg", "new") for number in range(12)]
    second = build(storage, tmp_path, added[:6] + PAIRS + added[6:])
    assert second.new == 12
    assert (first.partitions, second.partitions, second.new_partitions) == (3, 5, 2)
    assert second.names[:3] == first.names
    added_names = second.names[3:]
    assert [name[:6] for name in added_names] == ["00003-", "00004-"]
    assert all(files(storage)[f"{name}.parquet"] == before[f"{name}.parquet"] for name in first.names)
    assert {row["uid"] for name in added_names for row in rows_of(storage, name)} == {sample_uid(*pair) for pair in added}


def test_cut_rows_are_withdrawn_and_come_back_when_listed_again(storage: Storage, tmp_path: Path) -> None:
    first = build(storage, tmp_path, PAIRS)
    second = build(storage, tmp_path, PAIRS[3:])
    gone = {sample_uid(*pair) for pair in PAIRS[:3]}
    assert (second.listed, second.withdrawn, second.inputs) == (22, 3, first.inputs)
    assert frozenset[str]().union(*withdrawn_uids(storage).values()) == gone
    assert set(withdrawn_marks(storage)) == set(withdrawn_uids(storage)) <= set(second.names)
    index = json.loads(storage.read_text("manifest/index.json"))
    assert [(entry["rows"], entry["rows"] - entry["listed"]) for entry in index["partitions"]] == [
        (len(rows_of(storage, name)), len(withdrawn_uids(storage).get(name, ()))) for name in second.names
    ]
    third = build(storage, tmp_path, PAIRS)
    assert (third.listed, third.withdrawn, third.new) == (25, 0, 0)
    assert withdrawn_marks(storage) == {}


def test_a_pair_listed_twice_is_one_row_of_the_first_source(storage: Storage, tmp_path: Path) -> None:
    write_csv(tmp_path, PAIRS[:5] + PAIRS[:2])
    write_csv(tmp_path, PAIRS[4:8], "more.csv")
    path = write_yaml(tmp_path, source(), source(name="more", path="more.csv", licence="AAA"))
    summary = build_manifest(storage, load_manifest(path))
    assert (summary.listed, summary.duplicates) == (8, 3)
    origin = {row["url"]: (row["source"], row["licence"]) for row in rows_of(storage, summary.names[0])}
    assert origin[PAIRS[4][0]] == ("web", "CC-BY-4.0")
    assert origin[PAIRS[5][0]] == ("more", "AAA")
    sources = json.loads(storage.read_text("manifest/index.json"))["sources"]
    assert [(entry["name"], entry["rows"]) for entry in sources] == [("web", 7), ("more", 4)]


def test_which_of_two_repeats_stands_does_not_depend_on_their_order(tmp_path: Path) -> None:
    kept = []
    for number, hashes in enumerate((["a" * 64, "b" * 64], ["b" * 64, "a" * 64])):
        path = with_parquet(tmp_path, {"URL": ["http://a"] * 2, "TEXT": ["a"] * 2, "h": hashes}, sha256="h")
        storage = Storage(str(tmp_path / str(number)))
        kept.append(rows_of(storage, build_manifest(storage, load_manifest(path)).names[0]))
    assert kept[0] == kept[1]
    assert [row["sha256"] for row in kept[0]] == ["a" * 64]


def test_rows_that_went_through_the_disk_give_the_same_bytes(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(f"http://a.example/{number}.jpg", "") for number in range(700)]
    build(storage, tmp_path, pairs[:300], rows=64)
    build(storage, tmp_path, pairs[100:], rows=64)
    other = Storage(str(tmp_path / "other"))
    monkeypatch.setattr(buckets, "HELD_ROWS", 50)
    monkeypatch.setattr("winnow.sources.CSV_BLOCK_BYTES", 2000)
    build(other, tmp_path, pairs[:300], rows=64)
    build(other, tmp_path, pairs[100:], rows=64)
    assert files(other) == files(storage)


def test_a_kill_before_the_index_leaves_the_old_state_and_the_redo_gives_the_same_bytes(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Storage(str(tmp_path / "undisturbed"))
    for target in (storage, undisturbed):
        build(target, tmp_path, PAIRS[:10])
    build(undisturbed, tmp_path, PAIRS[2:])
    old = storage.read_text("manifest/index.json")

    def killed(self: Storage, path: str, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Storage, "write_text", killed)
        build(storage, tmp_path, PAIRS[2:])
    assert storage.read_text("manifest/index.json") == old
    # The list changed once more before the next run: partitions that no index ever named are gone afterwards.
    build(storage, tmp_path, PAIRS[:10])
    assert len(storage.names("manifest")) == 3
    build(storage, tmp_path, PAIRS[2:])
    assert files(storage) == files(undisturbed)


def test_the_receipt_names_every_file_with_its_digest(storage: Storage, tmp_path: Path) -> None:
    build(storage, tmp_path, PAIRS)
    build(storage, tmp_path, PAIRS[1:])
    (receipt,) = read_receipts(storage, "manifest")
    assert sorted(receipt.outputs) == [f"manifest/{name}" for name in storage.names("manifest")]
    for path, entry in receipt.outputs.items():
        assert entry == {"sha256": storage.sha256(path), "bytes": storage.size(path)}
    assert receipt.counts == {"listed": 24, "duplicates": 0, "skipped": 0, "withdrawn": 1}


def test_a_partition_that_is_gone_is_an_error(storage: Storage, tmp_path: Path) -> None:
    summary = build(storage, tmp_path, PAIRS)
    storage.remove(f"manifest/{summary.names[1]}.parquet")
    with pytest.raises(VerifyError, match=f"{summary.names[1]}.parquet is gone"):
        build(storage, tmp_path, PAIRS)


def test_a_wrong_list_leaves_the_state_and_its_receipt(storage: Storage, tmp_path: Path) -> None:
    build(storage, tmp_path, PAIRS)
    before = {path: storage.read_bytes(path) for path in storage.walk()}
    with pytest.raises(ManifestError, match="the url is empty"):
        build(storage, tmp_path, [*PAIRS, ("http://new", "new"), ("", "no url")])
    assert {path: storage.read_bytes(path) for path in storage.walk()} == before


def test_more_partitions_than_names_sort_is_an_error(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_SEQUENCE", 1)
    with pytest.raises(ConfigError, match=r"there is room for 2 partitions; make them larger \(partition_rows\)"):
        build(storage, tmp_path, PAIRS)


def test_nothing_is_written_when_a_late_row_is_wrong(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"list\.csv, row 26: the url is empty"):
        build(storage, tmp_path, [*PAIRS, ("", "no url")])
    assert storage.walk() == []


# The formats


def one(storage: Storage, path: Path) -> list[tuple[Any, ...]]:
    summary = build_manifest(storage, load_manifest(path))
    rows = [row for name in summary.names for row in rows_of(storage, name)]
    return sorted(tuple(row[key] for key in ("url", "caption", "licence", "sha256")) for row in rows)


def test_parquet_with_all_columns_and_several_files(storage: Storage, tmp_path: Path) -> None:
    for number, caption in enumerate((None, "b")):
        columns = {
            "u": [f"http://{number}"],
            "c": pa.array([caption], pa.large_string()),
            "h": ["AB" * 32 if number else ""],
            "l": pa.array(["MIT" if number else None], pa.string()).dictionary_encode(),
        }
        pq.write_table(pa.table(columns), tmp_path / f"part-{number}.parquet")
    columns_in_yaml = {"url": "u", "caption": "c", "sha256": "h", "licence": "l"}
    path = write_yaml(tmp_path, source(format="parquet", path="part-*.parquet", columns=columns_in_yaml))
    assert one(storage, path) == [("http://0", "", "CC-BY-4.0", None), ("http://1", "b", "MIT", "ab" * 32)]


def test_tsv_without_a_header_and_with_stray_quotes(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text('http://a\ta "quoted" cat\nhttp://b\t"\n')
    path = write_yaml(tmp_path, source(format="tsv", path="list.tsv", column_names=["URL", "TEXT"]))
    assert one(storage, path) == [("http://a", 'a "quoted" cat', "CC-BY-4.0", None), ("http://b", '"', "CC-BY-4.0", None)]


def test_csv_with_line_breaks_in_captions(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('TEXT,x,URL\n"one\ntwo, three",1,http://a\nNA,2,http://b\n')
    assert one(storage, write_yaml(tmp_path)) == [
        ("http://a", "one\ntwo, three", "CC-BY-4.0", None),
        ("http://b", "NA", "CC-BY-4.0", None),
    ]


COCO = {
    "licenses": [{"id": 1, "name": "Attribution License"}],
    "images": [{"id": 7, "coco_url": "http://c/7", "flickr_url": "http://f/7", "license": 1}, {"id": 8, "coco_url": "http://c/8"}],
    "annotations": [{"image_id": 7, "caption": "a"}, {"image_id": 7, "caption": "b"}, {"image_id": 8, "caption": "c"}],
}


def coco(folder: Path, content: Any = COCO, **changes: Any) -> Path:
    (folder / "captions.json").write_text(json.dumps(content))
    return write_yaml(folder, source(format="coco", path="captions.json", columns=None, **changes))


def test_coco_gives_a_row_for_each_caption_with_the_licence_of_its_image(storage: Storage, tmp_path: Path) -> None:
    assert one(storage, coco(tmp_path)) == [
        ("http://c/7", "a", "Attribution License", None),
        ("http://c/7", "b", "Attribution License", None),
        ("http://c/8", "c", "CC-BY-4.0", None),
    ]


def test_coco_gives_the_first_caption_only_if_asked(storage: Storage, tmp_path: Path) -> None:
    assert [row[:2] for row in one(storage, coco(tmp_path, captions="first"))] == [("http://c/7", "a"), ("http://c/8", "c")]


def test_bad_rows_are_skipped_and_counted_if_asked(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("URL,TEXT\nhttp://a,a\n,empty\nhttp://b,b,too many\nhttp://c,c\n")
    summary = build_manifest(storage, load_manifest(write_yaml(tmp_path, source(bad_rows="skip"))))
    assert (summary.listed, summary.skipped) == (2, 2)


def test_a_matching_sha256_is_accepted_and_another_refused(storage: Storage, tmp_path: Path) -> None:
    write_csv(tmp_path, PAIRS)
    found = hashlib.sha256((tmp_path / "list.csv").read_bytes()).hexdigest()
    build_manifest(storage, load_manifest(write_yaml(tmp_path, source(sha256=found.upper()))))
    with pytest.raises(ManifestError, match=rf"list\.csv has sha256 {found}, but source 'web' says {'0' * 64}. Fetch the right file"):
        build_manifest(storage, load_manifest(write_yaml(tmp_path, source(sha256="0" * 64))))


# What is refused before anything runs

Make = Callable[[Path], Path]
Case = tuple[Callable[[Path], Any], str]
WRONG: dict[str, Case] = {
    "no such manifest": (lambda folder: folder / "absent.yaml", "absent.yaml cannot be read: No such file"),
    "a name twice": (lambda folder: write(folder / "m.yaml", b"name: a\nname: b"), "'name' is given twice"),
    "not YAML": (lambda folder: write(folder / "m.yaml", b"a: [1"), "m.yaml is not YAML"),
    "empty YAML": (lambda folder: write(folder / "m.yaml", b""), r"expected keys and values \(name, sources\), got NoneType"),
    "unknown key": (lambda folder: write_yaml(folder, licence="x"), "unknown key 'licence'. Known are name, sources"),
    "no sources": (lambda folder: write_yaml(folder, sources=[]), "sources must be a list with at least one source"),
    "unknown key of a source": (
        lambda folder: write_yaml(folder, source(url_field="x")),
        "source 1: unknown key 'url_field'. Known are name, format, path, licence, sha256, bad_rows, columns, column_names, quotes",
    ),
    "unknown column": (lambda folder: write_yaml(folder, source(columns={"url": "a", "text": "b"})), "columns: unknown key 'text'"),
    "no caption column": (lambda folder: write_yaml(folder, source(columns={"url": "a"})), "columns: caption is missing"),
    "no licence": (lambda folder: write_yaml(folder, source(licence=None)), "source 1: licence is missing"),
    "unknown format": (
        lambda folder: write_yaml(folder, source(format="json")),
        "must be one of parquet, csv, tsv, coco, got 'json'",
    ),
    "no format": (
        lambda folder: write_yaml(folder, source(format=None, path="list")),
        "must be one of parquet, csv, tsv, coco, got 'list'",
    ),
    "two of a name": (lambda folder: with_csv(folder, source(), source()), "two sources are named 'web'"),
    "no such file": (lambda folder: write_yaml(folder, source(path="absent.csv")), r"source 1 \(web\): there is no file .*absent\.csv"),
    "no file matches": (lambda folder: write_yaml(folder, source(path="absent-*.csv")), r"there is no file .*absent-\*\.csv"),
    "bad sha256": (lambda folder: with_csv(folder, source(sha256="abc")), "sha256 must be 64 hexadecimal digits"),
    "missing column": (
        lambda folder: with_csv(folder, source(columns={"url": "URL", "caption": "caption"})),
        r"list\.csv has no column 'caption' for caption; it has 'URL', 'TEXT'. Say which one to take: columns: \{caption: ...\}",
    ),
    "empty file": (lambda folder: (write(folder / "list.csv", b""), write_yaml(folder))[1], r"list\.csv is empty"),
    "not parquet": (
        lambda folder: with_csv(folder, source(format="parquet")),
        r"list\.csv is not a parquet file: .* Check path and format",
    ),
    "a column of numbers": (
        lambda folder: with_parquet(folder, {"URL": [1], "TEXT": ["a"]}),
        r"p\.parquet: column 'URL' \(url\) is int64, expected text",
    ),
    "parquet without rows": (lambda folder: with_parquet(folder, dict.fromkeys(("URL", "TEXT"), pa.array([], pa.string()))), "has no rows"),
}
WRONG_ROWS: dict[str, Case] = {
    "header only": (
        lambda folder: (write(folder / "list.csv", b"URL,TEXT\n"), write_yaml(folder))[1],
        r"source 'web' is empty: no usable row in .*list",
    ),
    "empty url": (
        lambda folder: (write(folder / "list.csv", b"URL,TEXT\nhttp://a,a\n ,b\n"), write_yaml(folder))[1],
        r"list\.csv, row 2: the url is empty. Mend or remove the row, or set bad_rows: skip in source 'web'",
    ),
    "null url": (
        lambda folder: with_parquet(folder, {"URL": ["http://a", None], "TEXT": ["a", "b"]}),
        r"row 2: the url is empty",
    ),
    "broken sha256": (
        lambda folder: with_parquet(folder, {"URL": ["http://a"], "TEXT": ["a"], "h": ["12"]}, sha256="h"),
        "row 1: sha256 is not 64 hexadecimal digits",
    ),
    "too many fields": (
        lambda folder: (write(folder / "list.csv", b"URL,TEXT\nhttp://a,a\nhttp://b,b,c\n"), write_yaml(folder))[1],
        r"list\.csv cannot be read as CSV: .*Row #3: Expected 2 columns, got 3.* bad_rows: skip",
    ),
    "not UTF-8": (lambda folder: (write(folder / "list.csv", b"URL,TEXT\nhttp://a,\xff\n"), write_yaml(folder))[1], "invalid UTF8 data"),
    "COCO is not JSON": (lambda folder: (coco(folder), write(folder / "captions.json", b"{"))[0], r"captions\.json is not JSON"),
    "COCO without images": (lambda folder: coco(folder, {"annotations": []}), "it has no list of objects named 'images'"),
    "COCO is a list": (lambda folder: coco(folder, []), "it has no list of objects named 'images'"),
    "COCO instances": (
        lambda folder: coco(folder, COCO | {"annotations": [{"image_id": 7}]}),
        "1: caption is None, expected text",
    ),
    "COCO orphan": (lambda folder: coco(folder, COCO | {"annotations": [{"image_id": 9}]}), "annotation 1: no image has the id 9"),
    "COCO without that url": (
        lambda folder: coco(folder, url_field="flickr_url"),
        "annotation 3: image 8 has no text in 'flickr_url'; its urls are in: coco_url",
    ),
    "COCO with half a character": (
        lambda folder: coco(folder, COCO | {"annotations": [{"image_id": 7, "caption": "\ud800"}]}),
        "holds text that is not valid Unicode",
    ),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def with_csv(folder: Path, *entries: dict[str, Any]) -> Path:
    write_csv(folder, PAIRS)
    return write_yaml(folder, *entries)


def with_parquet(folder: Path, columns: dict[str, Any], **more: str) -> Path:
    pq.write_table(pa.table(columns), folder / "p.parquet")
    return write_yaml(folder, source(format="parquet", path="p.parquet", columns={"url": "URL", "caption": "TEXT", **more}))


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_manifest_is_refused_by_its_headers(make: Make, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        load_manifest(make(tmp_path))


@pytest.mark.parametrize(("make", "message"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_wrong_rows_are_refused_and_nothing_is_written(make: Make, message: str, tmp_path: Path, storage: Storage) -> None:
    path = make(tmp_path)
    with pytest.raises(ManifestError, match=message):
        build_manifest(storage, load_manifest(path))
    assert storage.walk() == []


def test_partitions_need_at_least_a_row(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="partition_rows must be at least 1, got 0"):
        build(storage, tmp_path, PAIRS, rows=0)
