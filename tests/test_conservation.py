"""The conservation law holds on a whole run, and every way of breaking it is found and named."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from winnow.conservation import check_conservation
from winnow.errors import ConservationError, WinnowError
from winnow.run_files import partitions
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import decisions

sys.path.insert(0, str(Path(__file__).parent))
from fake_workspace import make_workspace


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return make_workspace(tmp_path, rows=40, trained=False)


def test_every_pair_of_a_whole_run_is_counted_once(run: Storage) -> None:
    found = check_conservation(run)
    assert found.listed == 80
    assert found.failed + found.dropped + found.kept == found.listed
    assert found.failed > 0 and found.dropped > 0 and found.kept > 0
    assert found.datasets["kept"].samples == found.kept


def test_a_pair_that_two_filters_drop_counts_once_among_the_dropped(run: Storage) -> None:
    path = decisions(partitions(run)[0])
    rows = read_table(run, path).to_pylist()
    row = next(row for row in rows if row["verdict"] == "dropped")
    before = check_conservation(run)
    row["reasons"] = ["people", "violence"]
    write_table(run, path, pa.Table.from_pylist(rows, read_table(run, path).schema))
    after = check_conservation(run)
    assert after.dropped == before.dropped
    assert after.dropped_by_reasons["people+violence"] == 1
    assert sum(after.dropped_by_filter.values()) == sum(before.dropped_by_filter.values()) + 1


def test_a_deleted_decision_is_named_with_its_partition_and_uid(run: Storage) -> None:
    path = decisions(partitions(run)[1])
    table = read_table(run, path)
    uid = table["uid"][7].as_py()
    write_table(run, path, pa.concat_tables([table.slice(0, 7), table.slice(8)]))
    with pytest.raises(ConservationError, match=rf"{path}: 1 listed uids have no decision \({uid}\)"):
        check_conservation(run)


def test_a_decision_written_twice_is_named(run: Storage) -> None:
    path = decisions(partitions(run)[0])
    table = read_table(run, path)
    write_table(run, path, pa.concat_tables([table, table.slice(3, 1)]))
    with pytest.raises(ConservationError, match=rf"1 uids are decided twice \({table['uid'][3].as_py()}\)"):
        check_conservation(run)


def test_a_decision_about_a_pair_that_nobody_lists_is_named(run: Storage) -> None:
    path = decisions(partitions(run)[0])
    rows = read_table(run, path).to_pylist()
    rows.append({**rows[0], "uid": "f" * 32})
    write_table(run, path, pa.Table.from_pylist(rows, read_table(run, path).schema))
    with pytest.raises(ConservationError, match=r"decided that the partition does not list \(f{32}\)"):
        check_conservation(run)


def test_withdrawn_pairs_must_have_no_decision(run: Storage) -> None:
    name = partitions(run)[0]
    uid = read_table(run, decisions(name))["uid"][0].as_py()
    write_table(run, "manifest/withdrawn.parquet", pa.table({"partition": [name], "uid": [uid]}))
    with pytest.raises(ConservationError, match=rf"1 uids are decided that the partition does not list \({uid}\)"):
        check_conservation(run)


def test_a_kept_sample_missing_from_the_shards_is_named(run: Storage) -> None:
    path = "shards/kept/00000-000.parquet"
    table = read_table(run, path)
    write_table(run, path, table.slice(1))
    with pytest.raises(ConservationError, match=rf"shards/kept: 1 kept uids of decisions/.* are in no shard \({table['uid'][0].as_py()}\)"):
        check_conservation(run)


def test_a_sample_in_two_shards_is_named(run: Storage) -> None:
    path = "shards/kept/00000-000.parquet"
    table = read_table(run, path)
    write_table(run, path, pa.concat_tables([table, table.slice(0, 1)]))
    with pytest.raises(ConservationError, match=rf"{path}: holds a sample that is not kept .* or that an earlier row holds"):
        check_conservation(run)


def test_a_tar_whose_members_differ_from_its_table_is_named(run: Storage) -> None:
    data = run.read_bytes("shards/kept/00000-000.tar")
    uid = read_table(run, "shards/kept/00000-000.parquet")["uid"][0].as_py()
    assert data[:32] == uid.encode()
    # The header's checksum is the sum of its bytes: swapping two different digits of the name leaves it right.
    swap = next(i for i in range(1, 32) if uid[i] != uid[0])
    name = uid[swap] + uid[1:swap] + uid[0] + uid[swap + 1 :]
    run.write_bytes("shards/kept/00000-000.tar", name.encode() + data[32:])
    with pytest.raises(ConservationError, match=rf"00000-000.tar: 1 members missing \({uid}.jpg\)"):
        check_conservation(run)


def test_a_failed_sample_with_two_reasons_is_refused(run: Storage) -> None:
    path = decisions(partitions(run)[0])
    rows = read_table(run, path).to_pylist()
    row = next(row for row in rows if row["verdict"] == "failed")
    row["reasons"] = ["download:timeout", "embed:undecodable"]
    write_table(run, path, pa.Table.from_pylist(rows, read_table(run, path).schema))
    with pytest.raises(ConservationError, match="a failed sample needs one reason"):
        check_conservation(run)


def test_a_folder_that_is_no_run_is_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="is not the workspace of a run"):
        check_conservation(Storage(str(tmp_path)))
