import json

import numpy as np
import pyarrow as pa
import pytest

from filters import scoring
from filters.decision_values import Scorer, Svm
from filters.learning import FilterRun
from filters.search import read_features
from filters.svm import svm_to_bytes
from tests.filter_world import DIM, make_world, withdraw, write_embeddings
from winnow.decisions import coarsened, schema
from winnow.errors import ConfigError, ConservationError
from winnow.partitions import run_step
from winnow.reported import write_reported
from winnow.tables import read_table, write_table
from winnow.workspace import decisions, embeddings, raw_table

PART = "00000-00000000"


def machine(seed, dim=DIM):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(40, dim)).astype(np.float32)
    return Svm(support_vectors=vectors, dual=rng.normal(size=40), intercept=-0.1, gamma=0.3)


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path, partitions=2, rows=80, failed=0.1)


@pytest.fixture
def runs(world):
    return [use(world.storage, "people", machine(0)), use(world.storage, "violence", machine(1), threshold=0.25)]


def use(storage, name, svm, threshold=0.0):
    folder = f"filters/{name}/v1"
    storage.write_bytes(f"{folder}/svm.safetensors", svm_to_bytes(svm))
    storage.write_text(f"{folder}/certificate.json", "{}")
    return FilterRun(name=name, version="v1", threshold=threshold, folder=folder, num_labels=0)


@pytest.fixture(autouse=True)
def nothing_cached():
    scoring._scorer.cache_clear()


def score(storage, runs, name=PART):
    return scoring.score_partition(storage, name, filters=scoring.filters_used(storage, runs))


def log(storage, name=PART):
    return read_table(storage, decisions(name)).to_pylist()


def test_every_listed_sample_has_one_row_with_its_verdict_and_why(world, runs):
    outcome = score(world.storage, runs)
    found = read_features(world.storage, embeddings(PART))
    full = Scorer([machine(0), machine(1)]).scores(found.features)
    logged = np.column_stack([coarsened(full[:, 0], 0.0), coarsened(full[:, 1], 0.25)])
    scores = {uid: (row, verdict) for uid, row, verdict in zip(found.uids, logged.tolist(), (full >= [0.0, 0.25]).tolist(), strict=True)}
    raw = {row["uid"]: row for row in read_table(world.storage, raw_table(PART)).to_pylist()}
    rows = log(world.storage)
    assert [row["uid"] for row in rows] == sorted(raw)
    for row in rows:
        if row["uid"] not in scores:
            reason = "download:http_404" if raw[row["uid"]]["status"] == "failed" else "embed:undecodable"
            assert row == {"uid": row["uid"], "verdict": "failed", "reasons": [reason], "score_people": None, "score_violence": None}
            continue
        (people, violence), (drops_people, drops_violence) = scores[row["uid"]]
        assert (row["score_people"], row["score_violence"]) == (people, violence)
        assert row["reasons"] == ["people"] * drops_people + ["violence"] * drops_violence
        assert row["verdict"] == ("dropped" if row["reasons"] else "kept")
    verdicts = [row["verdict"] for row in rows]
    assert {name: outcome.counts[name] for name in ("kept", "dropped", "failed")} == {
        v: verdicts.count(v) for v in ("kept", "dropped", "failed")
    }
    assert min(outcome.counts.values()) > 0
    assert outcome.counts["dropped_by_violence"] == sum("violence" in row["reasons"] for row in rows)
    assert {"embed:undecodable", "download:http_404"} <= {reason for row in rows for reason in row["reasons"]}


def test_a_score_at_the_threshold_is_dropped(world):
    some = float(np.sort(Scorer([machine(0)]).scores(read_features(world.storage, embeddings(PART)).features)[:, 0])[20])
    score(world.storage, [use(world.storage, "people", machine(0), threshold=some)])
    assert [row["verdict"] for row in log(world.storage) if row["score_people"] == some] == ["dropped"]


def test_the_log_has_the_columns_it_is_known_by(world, runs):
    score(world.storage, runs)
    assert read_table(world.storage, decisions(PART)).schema.equals(schema(("people", "violence")))


def test_scores_do_not_depend_on_how_the_samples_are_partitioned(world, runs):
    for name in world.partitions:
        score(world.storage, runs, name)
    apart = sorted(log(world.storage, world.partitions[0]) + log(world.storage, world.partitions[1]), key=lambda row: row["uid"])
    for path_of in (scoring.manifest_part, raw_table, embeddings):
        tables = [read_table(world.storage, path_of(name)) for name in world.partitions]
        write_table(world.storage, path_of("00009-9"), pa.concat_tables(tables).sort_by("uid"))
    score(world.storage, runs, "00009-9")
    assert log(world.storage, "00009-9") == apart


def test_withdrawn_samples_are_left_out(world, runs):
    score(world.storage, runs)
    before = log(world.storage)
    gone = [row["uid"] for row in before[::7]]
    withdraw(world.storage, PART, gone)
    outcome = score(world.storage, runs)
    assert log(world.storage) == [row for row in before if row["uid"] not in gone]
    assert sum(outcome.counts[name] for name in ("kept", "dropped", "failed")) == len(before) - len(gone)


def test_without_filters_everything_embedded_is_kept(world):
    outcome = score(world.storage, [])
    assert outcome.counts["dropped"] == 0
    assert outcome.counts["kept"] == len(read_features(world.storage, embeddings(PART)).uids)


def test_a_partition_of_which_nothing_came_is_all_failed(world, runs):
    raw = read_table(world.storage, raw_table(PART)).to_pydict()
    raw |= {"status": ["failed"] * 80, "cause": ["timeout"] * 80}
    write_table(world.storage, raw_table(PART), pa.table(raw))
    write_embeddings(world.storage, embeddings(PART), [], np.zeros((0, DIM)), np.random.default_rng(0))
    assert score(world.storage, runs).counts == {"kept": 0, "dropped": 0, "failed": 80, "dropped_by_people": 0, "dropped_by_violence": 0}


def spoil(storage, path, change):
    write_table(storage, path, change(read_table(storage, path)))


@pytest.mark.parametrize(
    ("path_of", "change", "message"),
    [
        (raw_table, lambda table: table.slice(1), r"raw/.* lacks a row of 1 listed samples, the first is [0-9a-f]{32}"),
        (scoring.manifest_part, lambda table: table.slice(2), r"raw/.* has 2 samples that are not listed"),
        (raw_table, lambda table: pa.concat_tables([table, table.slice(0, 3)]), r"raw/.*: 3 samples stand twice"),
        (embeddings, lambda table: pa.concat_tables([table, table.slice(0, 1)]), r"embeddings/.*: 1 samples stand twice"),
        (
            raw_table,
            lambda table: table.set_column(1, "status", pa.array(["failed"] * table.num_rows)),
            r"embeddings/.* has \d+ samples that were not downloaded",
        ),
    ],
)
def test_files_that_speak_of_different_samples_are_refused(world, runs, path_of, change, message):
    spoil(world.storage, path_of(PART), change)
    with pytest.raises(ConservationError, match=message):
        score(world.storage, runs)
    assert not world.storage.exists(decisions(PART))


def test_filters_of_other_features_are_refused(world):
    with pytest.raises(ConfigError, match=f"fitted on features of 16 dimensions, these have shape .*{DIM}"):
        score(world.storage, [use(world.storage, "people", machine(0, dim=16))])


def test_features_that_are_no_numbers_are_refused_by_name(world, runs):
    found = read_features(world.storage, embeddings(PART))
    rows = found.features.copy()
    rows[5, 2] = np.nan
    write_embeddings(world.storage, embeddings(PART), found.uids, rows, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=rf"{embeddings(PART)}: features must be finite numbers; 1 of {len(rows)} rows .* is row 5"):
        score(world.storage, runs)
    assert not world.storage.exists(decisions(PART))


def test_filters_fitted_on_features_of_another_model_are_refused(world, runs):
    for run in runs:
        world.storage.write_text(f"{run.folder}/certificate.json", '{"feature_digest": "vit"}')
    scoring.check_features(world.storage, runs, "vit")
    world.storage.write_text(f"{runs[1].folder}/certificate.json", '{"feature_digest": "resnet"}')
    with pytest.raises(ConfigError, match=r"violence v1 was fitted on .* another model \(digest resnet, .* have vit\)\. Run `winnow"):
        scoring.check_features(world.storage, runs, "vit")


def test_only_what_changed_is_scored_again(world, runs):
    digests = {name: "1" for name in world.partitions}

    def go(runs, **changes):
        works = list(scoring.score_works(world.storage, runs, **({"raw": digests, "embedded": digests} | changes)))
        return run_step(scoring.score_partition, works, world.storage, stage="score", version=scoring.VERSION).ran

    assert go(runs) == 2
    assert go(runs) == 0
    assert go(runs, raw=digests | {PART: "2"}) == 1
    assert go([use(world.storage, "people", machine(0), threshold=0.1)]) == 2
    withdraw(world.storage, PART, [log(world.storage)[0]["uid"]])
    assert go([use(world.storage, "people", machine(0), threshold=0.1)]) == 1


def test_the_filters_used_are_on_record(world, runs):
    scoring.write_filters_json(world.storage, runs)
    entries = json.loads(world.storage.read_bytes("decisions/filters.json"))
    assert [entry["name"] for entry in entries] == ["people", "violence"]
    assert set(entries[1]) == {"name", "version", "threshold", "certificate_sha256"}
    assert entries[1]["certificate_sha256"] == world.storage.sha256("filters/violence/v1/certificate.json")


def test_a_reported_image_is_dropped_whatever_its_scores_and_only_its_partition_is_scored_again(world, runs):
    def run():
        works = scoring.score_works(
            world.storage, runs, raw=dict.fromkeys(world.partitions, ""), embedded=dict.fromkeys(world.partitions, "")
        )
        return run_step(scoring.score_partition, works, world.storage, stage="score", version=scoring.VERSION)

    run()
    before = {row["uid"]: row for row in log(world.storage)}
    kept = next(uid for uid, row in before.items() if row["verdict"] == "kept")
    by_filter = next(uid for uid, row in before.items() if row["reasons"] == ["people"])
    failed = next(uid for uid, row in before.items() if row["verdict"] == "failed")
    write_reported(world.storage, {kept, by_filter, failed, "listed nowhere"}, world.partitions)
    assert run().ran == 1
    after = {row["uid"]: row for row in log(world.storage)}
    assert after[kept] == before[kept] | {"verdict": "dropped", "reasons": ["reported"]}
    assert after[by_filter] == before[by_filter] | {"reasons": ["people", "reported"]}
    assert {uid: row for uid, row in after.items() if uid not in (kept, by_filter)} == {
        uid: row for uid, row in before.items() if uid not in (kept, by_filter)
    }
    write_reported(world.storage, {kept, by_filter, failed}, world.partitions)
    assert run().ran == 0
    write_reported(world.storage, (), world.partitions)
    assert run().ran == 1
    assert {row["uid"]: row for row in log(world.storage)} == before
