"""The manifests that ship: each is read with a file of its source's form."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from winnow.manifest import build_manifest, load_manifest, sample_uid
from winnow.storage import Storage
from winnow.tables import read_table

SHIPPED = Path(__file__).parent.parent / "data_manifests"
COCO = {
    "licenses": [{"id": 1, "name": "Attribution License"}],
    "images": [{"id": 7, "coco_url": "http://c/7", "flickr_url": "http://f/7", "license": 1}],
    "annotations": [{"image_id": 7, "caption": "a"}, {"image_id": 7, "caption": "b"}],
}


def parquet(**columns: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


FILES = {
    "demo.yaml": ("urls.parquet", parquet(url=["http://d"], caption=["d"], licence=["CC0-1.0"]), [("http://d", "d")]),
    "coco_captions.yaml": ("captions_val2017.json", json.dumps(COCO), [("http://c/7", "a")]),
    "cc12m.yaml": ("cc12m.tsv", 'http://a\t"it\'s" 12" wide\n\thttp\nhttp://b\tb\n', [("http://a", '"it\'s" 12" wide'), ("http://b", "b")]),
}


def test_every_manifest_that_ships_is_tested() -> None:
    assert {path.name for path in SHIPPED.glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_manifest_reads_its_source(name: str, tmp_path: Path) -> None:
    file, content, pairs = FILES[name]
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    storage = Storage(str(tmp_path / "run"))
    summary = build_manifest(storage, load_manifest(tmp_path / name))
    (partition,) = summary.names
    rows = read_table(storage, f"manifest/{partition}.parquet").to_pylist()
    assert sorted((row["url"], row["caption"]) for row in rows) == pairs


def test_the_real_coco_captions_are_one_pair_a_photo(photos: Path, tmp_path: Path) -> None:
    real = photos / "coco_captions_val2017.json"
    if not real.exists():
        pytest.skip(f"there is no {real.name} in {photos}")
    (tmp_path / "captions_val2017.json").symlink_to(real)
    (tmp_path / "m.yaml").write_bytes((SHIPPED / "coco_captions.yaml").read_bytes())
    storage = Storage(str(tmp_path / "run"))
    summary = build_manifest(storage, load_manifest(tmp_path / "m.yaml"), partition_rows=2000)
    assert (summary.listed, summary.duplicates, summary.partitions) == (5000, 0, 3)
    row = read_table(storage, f"manifest/{summary.names[0]}.parquet").slice(0, 1).to_pylist()[0]
    assert row["uid"] == sample_uid(row["url"], row["caption"])
    assert row["licence"].endswith("License") or "restrictions" in row["licence"]
