import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters import duplicate_search, duplicate_stage
from filters.catalog import FILTERS
from filters.duplicate_search import read_images
from filters.duplicate_stage import CELLS as CELL_FILES
from filters.duplicate_stage import CENTROIDS as CENTROID_FILES
from filters.duplicate_stage import PAIRS, find_contamination, find_duplicates, settle_duplicates
from filters.duplicates import DuplicateConfig, near_pairs
from filters.fitting import FitConfig, labelled_table
from filters.label_records import Label
from filters.learning import _shared_groups
from filters.search import Features, join_features, read_features
from tests.duplicate_world import add_images, copy_of, part_name, planted_world, write_rows
from tests.filter_world import withdraw
from winnow import cell_files
from winnow.amending import Amender
from winnow.cell_files import without
from winnow.duplicates import (
    CENTROIDS,
    CONTAMINATION,
    WAVES,
    bound_together,
    cells_file,
    contamination_file,
    copy_reasons,
    duplicates_file,
    groups_file,
    reference_file,
)
from winnow.errors import ConfigError, ShardError
from winnow.forget import _table_edits
from winnow.forget_edits import rows_edits
from winnow.partitions import run_step
from winnow.receipts import list_done
from winnow.reported import write_reported
from winnow.tables import read_table, write_table
from winnow.workspace import decisions, embeddings

EXACT = DuplicateConfig()
CELLS = DuplicateConfig(exact_rows=1, cell_rows=12, nprobe=3)


@pytest.fixture
def world(tmp_path):
    return planted_world(tmp_path)


def find(world, config=EXACT, digests=None):
    return find_duplicates(world.storage, config, digests or world.digests(), "features")


def found_groups(world):
    groups: dict[str, set[str]] = {}
    for name in world.partitions:
        for row in read_table(world.storage, groups_file(name)).to_pylist():
            groups.setdefault(row["group"], set()).add(row["uid"])
    return {frozenset(uids) for uids in groups.values()}


def ran(runs, stage):
    return next(run.ran for run in runs if run.stage == stage)


def outputs(world, folder="duplicates"):
    return {path: world.storage.sha256(path) for path in world.storage.walk(folder) if path != WAVES}


@pytest.mark.parametrize("config", [EXACT, CELLS], ids=["exact", "cells"])
def test_the_planted_groups_are_found_across_partitions(world, config):
    find(world, config)
    assert found_groups(world) == world.groups()
    for name in world.partitions:
        for row in read_table(world.storage, groups_file(name)).to_pylist():
            group = next(uids for uids in world.groups() if row["uid"] in uids)
            best = max(group, key=lambda uid: (world.pixels[uid], [-int(digit, 16) for digit in uid]))
            assert (row["group"], row["group_size"], row["centre"]) == (min(group), len(group), best)
            assert (row["cosine"] is None) == (row["uid"] == best)


def test_cells_lose_pairs_that_no_probed_cell_holds_and_more_probes_find_them(tmp_path):
    world = planted_world(tmp_path, rows=200, pictures=250)
    counts = []
    for nprobe in (1, 2, 16):
        find(world, DuplicateConfig(exact_rows=1, cell_rows=4, nprobe=nprobe))
        counts.append(len(found_groups(world) & world.groups()))
    assert counts[0] <= counts[1] <= counts[2] == len(world.groups())


@pytest.mark.parametrize("config", [EXACT, DuplicateConfig(exact_rows=1, cell_rows=20, nprobe=2)], ids=["exact", "cells"])
def test_the_groups_are_the_same_bytes_whatever_came_when(tmp_path, config):
    at_once, in_steps = planted_world(tmp_path / "a", partitions=4), planted_world(tmp_path / "b", partitions=4)
    find(at_once, config)
    for path in at_once.storage.walk("receipts/duplicates-centroids"):  # cells are trained once: both have the same
        in_steps.storage.write_bytes(path, at_once.storage.read_bytes(path))
        in_steps.storage.write_bytes(CENTROIDS, at_once.storage.read_bytes(CENTROIDS))
    digests = in_steps.digests()
    for count in (2, 3, 4):
        find(in_steps, config, dict(list(digests.items())[:count]))
    record = json.loads(in_steps.storage.read_bytes(WAVES))
    assert [len(wave) for wave in record["waves"]] == [2, 1, 1]
    groups = {path: mark for path, mark in outputs(at_once).items() if path.startswith("duplicates/groups/")}
    assert len(groups) == 4
    assert groups == {path: mark for path, mark in outputs(in_steps).items() if path.startswith("duplicates/groups/")}


def test_exact_search_reads_many_small_partitions_as_one_and_finds_the_same_in_any_waves(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicate_search, "BATCH_ROWS", 70)
    found = []
    for rows, waves in ((60, [1, 1, 1, 1, 1]), (150, [2, 2, 1]), (1_000, [5])):
        monkeypatch.setattr(duplicate_stage, "WAVE_ROWS", rows)
        world = planted_world(tmp_path / str(rows), partitions=5)
        assert ran(find(world), PAIRS) == len(waves)
        assert [len(wave) for wave in json.loads(world.storage.read_bytes(WAVES))["waves"]] == waves
        found.append({path: mark for path, mark in outputs(world).items() if path.startswith("duplicates/groups/")})
    assert found[0] == found[1] == found[2] and found_groups(world) == world.groups()


def test_a_partition_is_read_once_for_all_that_stand_in_one_wave(tmp_path, monkeypatch):
    reads = []

    def counted(storage, partition, number):
        reads.append(partition)
        return read_images(storage, partition, number)

    monkeypatch.setattr(duplicate_search, "read_images", counted)
    world = planted_world(tmp_path, partitions=8, rows=5, pictures=10)
    find(world)
    assert sorted(reads) == world.partitions
    add_images(world, part_name(8), [1, 2])
    find(world)
    assert sorted(reads[8:]) == world.partitions


def test_running_again_does_nothing(world):
    find(world)
    before = outputs(world)
    assert [run.ran for run in find(world)] == [0] * 4
    assert outputs(world) == before


@pytest.mark.parametrize("config", [EXACT, CELLS], ids=["exact", "cells"])
def test_a_new_partition_is_searched_against_the_old_ones_whose_pairs_are_kept(tmp_path, config):
    world = planted_world(tmp_path, partitions=5)
    first = find(world, config)
    old = {path: mark for path, mark in outputs(world).items() if "/pairs/" in path}
    add_images(world, part_name(5), range(0, 120, 3))
    after = find(world, config)
    works = len(list_done(world.storage, PAIRS))
    assert ran(after, PAIRS) == works - ran(first, PAIRS) == ran(first, PAIRS)
    assert old.items() <= outputs(world).items()
    assert found_groups(world) == world.groups()


def change(world, name, drop=0, more=()):
    """Takes images out of a partition, and adds others: as forgetting, and fetching at last, do."""
    rows = read_table(world.storage, embeddings(name)).to_pylist()
    for row in rows[:drop]:
        del world.truth[row["uid"]]
    kept = [(row["uid"], np.array(row["feature"]), row["dhash"] % 2**64, row["width"]) for row in rows[drop:]]
    for number in more:
        uid = f"{number:032x}"
        vector, bits = copy_of(number, np.random.default_rng(number))
        kept.append((uid, vector, bits, 50))
        world.truth[uid], world.pixels[uid] = number, 2500
    write_rows(world.storage, name, sorted(kept))


@pytest.mark.parametrize("config", [EXACT, CELLS], ids=["exact", "cells"])
def test_a_partition_that_lost_and_gained_images_is_searched_again_and_no_other(world, config):
    find(world, config)
    change(world, world.partitions[0], drop=20, more=range(0, 60, 2))
    after = find(world, config)
    assert found_groups(world) == world.groups()
    if config is EXACT:
        assert ran(after, PAIRS) == 1
    assert [run.ran for run in find(world, config)] == [0] * 4


def test_an_image_that_changed_under_its_uid_leaves_no_pair_behind(world):
    find(world)
    group = min(world.groups(), key=min)
    uid = min(group)
    name = next(name for name in world.partitions if uid in read_features(world.storage, embeddings(name)).uids)
    rows = read_table(world.storage, embeddings(name)).to_pylist()
    other = copy_of(9999, np.random.default_rng(0))
    write_rows(
        world.storage,
        name,
        [(row["uid"], *(other if row["uid"] == uid else (np.array(row["feature"]), row["dhash"] % 2**64)), row["width"]) for row in rows],
    )
    world.truth[uid] = 9999
    find(world)
    assert found_groups(world) == world.groups()


def test_a_partition_that_comes_back_is_searched_against_what_came_meanwhile(world):
    digests = world.digests()
    first, middle, last = world.partitions
    away = {name: world.storage.read_bytes(embeddings(name)) for name in (first, last)}

    def only(*names):
        for name in (first, last):
            if name in names:
                world.storage.write_bytes(embeddings(name), away[name])
            else:
                world.storage.remove(embeddings(name))
        find(world, digests={name: digests[name] for name in names})

    only(first, middle)
    only(middle)
    assert not world.storage.exists(groups_file(first))
    only(middle, last)
    only(first, middle, last)
    assert found_groups(world) == world.groups()


def test_withdrawn_images_are_in_no_group(world):
    gone = sorted(min(world.groups(), key=min))[:1]
    name = next(name for name in world.partitions if gone[0] in read_features(world.storage, embeddings(name)).uids)
    withdraw(world.storage, name, gone)
    find(world)
    assert found_groups(world) == {uids - set(gone) for uids in world.groups() if len(uids - set(gone)) > 1}


def test_switched_off_nothing_is_left(world):
    find(world)
    find(world, DuplicateConfig(mode="off"))
    assert world.storage.walk("duplicates") == []


def score(world, config=EXACT, contaminated=None):
    from filters import scoring

    digests = world.digests()
    plain = list(scoring.score_works(world.storage, [], raw=digests, embedded=digests))
    copies = settle_duplicates(world.storage, config, plain, contaminated=contaminated or {})
    works = scoring.score_works(world.storage, [], raw=digests, embedded=digests, copies=copies)
    return run_step(scoring.score_partition, works, world.storage, stage="score", version=scoring.VERSION)


def log(world):
    return {row["uid"]: row for name in world.partitions for row in read_table(world.storage, decisions(name)).to_pylist()}


def test_one_of_each_group_is_kept_and_the_others_say_why_they_are_not(world):
    find(world)
    result = score(world)
    rows = log(world)
    for group in world.groups():
        kept = [uid for uid in group if rows[uid]["verdict"] == "kept"]
        assert len(kept) == 1 and world.pixels[kept[0]] == max(world.pixels[uid] for uid in group)
        assert all(rows[uid]["reasons"] == ["duplicate"] for uid in group if uid != kept[0])
    grouped = {uid for group in world.groups() for uid in group}
    assert all(row["verdict"] == "kept" for uid, row in rows.items() if uid not in grouped)
    assert result.counts["dropped_as_duplicate"] == len(grouped) - len(world.groups())


def test_where_the_best_was_reported_its_copies_go_too_and_elsewhere_nothing_changes(world):
    find(world)
    score(world)
    before = log(world)
    group = max(world.groups(), key=len)
    best = next(uid for uid in group if before[uid]["verdict"] == "kept")
    write_reported(world.storage, {best}, world.partitions)
    score(world)
    after = log(world)
    assert after[best]["reasons"] == ["reported"]
    assert all(after[uid]["reasons"] == ["duplicate"] for uid in group - {best})
    assert {uid: row for uid, row in after.items() if uid not in group} == {uid: row for uid, row in before.items() if uid not in group}


@pytest.mark.parametrize("mode", ["down_weight", "mark"])
def test_other_modes_keep_every_image(world, mode):
    config = DuplicateConfig(mode=mode)
    find(world, config)
    score(world, config)
    assert {row["verdict"] for row in log(world).values()} == {"kept"}
    rows = [row for name in world.partitions for row in read_table(world.storage, duplicates_file(name)).to_pylist()]
    for row in rows:
        assert row["weight"] == pytest.approx(1 / row["num_passing"] if mode == "down_weight" else 1)
        assert not row["is_dropped"] and row["num_passing"] == row["group_size"]


def test_another_mode_searches_nothing_again(world):
    find(world)
    assert ran(find(world, DuplicateConfig(mode="down_weight")), PAIRS) == 0
    assert ran(find(world, DuplicateConfig(limits=((0.9, 10),))), PAIRS) == 1


def test_only_partitions_whose_groups_changed_are_decided_again(world):
    find(world)
    score(world)
    add_images(world, part_name(3), [5000, 5001])  # like nothing else
    find(world)
    assert score(world).ran == 1


def reference(world, pictures, name="val"):
    rng = np.random.default_rng(1)
    rows = [(f"{number:032x}", *copy_of(number, rng), 64) for number in pictures]
    write_rows(world.storage, "scratch", rows)
    table = read_table(world.storage, embeddings("scratch"))
    world.storage.remove(embeddings("scratch"))
    write_table(world.storage, reference_file(name), table.append_column("item", pa.array([f"{number}.jpg" for number in pictures])))
    return {name: world.storage.sha256(reference_file(name))}


def test_images_of_an_evaluation_set_are_dropped_with_its_name_and_its_matched_items_are_known(world):
    pictures = [*range(0, 120, 4), *range(7000, 7030)]
    config = DuplicateConfig(references={"val": "unread"})
    matched = find_contamination(world.storage, config, world.digests(), reference(world, pictures))
    find(world, config)
    score(world, config, matched.outputs)
    rows = log(world)
    contaminated = {uid for uid, number in world.truth.items() if number in pictures}
    assert {uid for uid, row in rows.items() if "contaminated:val" in row["reasons"]} == contaminated
    assert all(rows[uid]["reasons"] == ["contaminated:val"] for uid in contaminated)  # none of them can be the best of its group
    tables = [read_table(world.storage, contamination_file(name)) for name in world.partitions]
    assert all(table.schema == CONTAMINATION for table in tables)
    items = {item for table in tables for item in table["item"].to_pylist()}
    assert items == {f"{number}.jpg" for number in pictures if number in set(world.truth.values())}
    assert sum(matched.counts.values()) == len(contaminated)


def test_without_references_nothing_of_them_is_left(world):
    config = DuplicateConfig(references={"val": "unread"}, mode="off")
    find_contamination(world.storage, config, world.digests(), reference(world, range(50)))
    assert any(copy_reasons(world.storage, name) for name in world.partitions)
    find_contamination(world.storage, EXACT, world.digests(), {})
    assert not any(copy_reasons(world.storage, name) for name in world.partitions)


def test_files_of_pairs_name_both_images_and_where_they_are(world):
    find(world)
    for path in world.storage.walk("duplicates/pairs"):
        for row in read_table(world.storage, path).to_pylist():
            for side in ("worse", "better"):
                assert row[side] in read_features(world.storage, embeddings(row[f"{side}_partition"])).uids
            assert any(row["cosine"] >= cosine and row["hamming"] <= bits for cosine, bits in EXACT.limits)


def test_the_record_of_what_was_searched_names_every_partition_once(world):
    find(world)
    record = json.loads(world.storage.read_bytes(WAVES))
    assert record["waves"] == [world.digests()]
    assert sum(record["images"].values()) == len(world.truth)


def test_the_same_cells_come_out_of_the_same_images(tmp_path):
    worlds = [planted_world(tmp_path / name) for name in ("a", "b")]
    for world in worlds:
        find(world, CELLS)
    assert outputs(worlds[0]) == outputs(worlds[1])
    assert CENTROIDS in outputs(worlds[0]) and ran(find(worlds[0], CELLS), CELL_FILES) == 0


def test_images_that_the_search_found_to_be_one_picture_are_split_as_one(world):
    find(world)
    group = sorted(max(world.groups(), key=len))
    others = sorted(set(world.truth) - {uid for uids in world.groups() for uid in uids})[:5]
    bound = bound_together(world.storage, {*group, *others})
    assert bound == dict.fromkeys(group, group[0])
    every = join_features([read_features(world.storage, embeddings(name)) for name in world.partitions])
    # Hashes that say nothing: the search alone knows.
    found = Features(uids=every.uids, features=every.features, dhashes=np.random.default_rng(0).integers(0, 2**62, len(every.uids)))
    labels = [Label(uid=uid, value=1, origin="random", batch="b") for uid in sorted((*group, *others))]
    groups = dict(labelled_table(FILTERS["people"], FitConfig(), labels, found, bound).select(["uid", "group"]).to_pandas().to_numpy())
    assert [groups[uid] for uid in group] == [group[0]] * len(group)
    assert [groups[uid] for uid in others] == others


def test_a_filter_hangs_on_groups_of_its_own_labels_alone():
    bound = {"a": "a", "b": "a", "c": "c", "d": "c"}
    assert _shared_groups({"a", "b", "c", "e"}, bound) == [["a", "b"]]
    assert _shared_groups({"a", "c"}, bound) == []


def test_what_is_forgotten_leaves_the_files_of_the_search_too_and_their_blocks_stay_right(world):
    find(world, CELLS)
    gone = set(sorted(world.truth)[::7])
    for name in world.partitions:
        path = cells_file(name)
        world.storage.write_bytes("cut.cells", without(world.storage, path, gone))
        before, after = (cell_files.read_ranges(world.storage, file) for file in (path, "cut.cells"))
        for number, (whole, left) in enumerate(zip(before, after, strict=True)):
            stays = [uid.decode() not in gone for uid in whole[0]["uid"]]
            ((rows, vectors),) = cell_files.read_ranges(world.storage, "cut.cells", number, number)
            assert rows.tobytes() == left[0].tobytes() == whole[0][stays].tobytes()
            assert vectors.tobytes() == left[1].tobytes() == whole[1][stays].tobytes()
        assert without(world.storage, "cut.cells", gone) is None
    path = next(path for path in world.storage.walk("duplicates/pairs"))
    left = pq.read_table(io.BytesIO(rows_edits(world.storage, path, gone).files[path]))
    assert not gone & {*left["worse"].to_pylist(), *left["better"].to_pylist()}
    assert 0 < left.num_rows < read_table(world.storage, path).num_rows


def test_forgetting_reads_the_cells_of_images_and_leaves_the_centroids_alone(world):
    find(world, CELLS)
    gone = set(sorted(world.truth)[:5])
    amender = Amender(world.storage, [CELL_FILES, CENTROID_FILES], {})
    edited = {path for name in world.partitions for path in _table_edits(amender, CELL_FILES, name, gone).files}
    holding = {name for name in world.partitions if gone & set(read_features(world.storage, embeddings(name)).uids)}
    assert edited == {cells_file(name) for name in holding}
    assert _table_edits(amender, CENTROID_FILES, "centroids", gone).files == {}


def test_a_file_of_cells_that_was_cut_short_is_named(world):
    find(world, CELLS)
    path = cells_file(world.partitions[0])
    world.storage.write_bytes(path, world.storage.read_bytes(path)[:-1])
    with pytest.raises(ShardError, match=f"{path} is cut short. Remove it and its receipt"):
        cell_files.read_ranges(world.storage, path)


def test_scoring_waits_for_the_search(world):
    with pytest.raises(ConfigError, match="have not been looked for: run `winnow duplicates CONFIG` first, or set"):
        score(world)
    find(world)
    add_images(world, part_name(3), [1, 2, 3])
    with pytest.raises(ConfigError, match="came or went since near-duplicates were looked for: run `winnow duplicates"):
        score(world)
    find(world)
    withdraw(world.storage, world.partitions[0], sorted(world.truth)[:1])
    with pytest.raises(ConfigError, match="came or went"):
        score(world)


@pytest.mark.parametrize("steps", [(4,), (2, 3, 4)], ids=["at once", "in steps"])
def test_cells_find_exactly_the_pairs_whose_home_the_other_image_visits(tmp_path, steps):
    # Limits so loose that many pairs lie in different cells.
    world, config = (
        planted_world(tmp_path, partitions=4),
        DuplicateConfig(exact_rows=1, cell_rows=8, nprobe=2, limits=((0.4, 31),)),
    )
    digests = world.digests()
    for count in steps:
        find(world, config, dict(list(digests.items())[:count]))
    homes, visited = {}, {}
    for name in world.partitions:
        for row in np.concatenate([rows for rows, _ in cell_files.read_ranges(world.storage, cells_file(name))]):
            visited.setdefault(row["uid"], set()).add(int(row["cell"]))
            if row["home"]:
                homes[row["uid"]] = int(row["cell"])
    images = [read_images(world.storage, name, number) for number, name in enumerate(world.partitions)]
    every = np.concatenate([near_pairs(image, images[:number], config.limits) for number, image in enumerate(images)])
    due = {
        (p["worse"], p["better"]) for p in every if homes[p["worse"]] in visited[p["better"]] or homes[p["better"]] in visited[p["worse"]]
    }
    tables = [read_table(world.storage, path).to_pylist() for path in world.storage.walk("duplicates/pairs")]
    found = {(row["worse"].encode(), row["better"].encode()) for table in tables for row in table}
    assert found == due
    assert sum(homes[worse] != homes[better] for worse, better in due) > 50
