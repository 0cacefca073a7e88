"""Forgetting: nothing of a sample is left anywhere, everything else stays, and a kill at any moment changes nothing of that."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filters.forget_derived import redo_derived
from filters.forget_labels import forget_in_labels
from filters.label_database import LabelDatabase
from filters.label_page.pictures import PictureMissing, Pictures
from tests.forget_world import LABELS, image_digest, label, make_world, places, report, rows_of, samples, shard, traces, well_known
from winnow import forget
from winnow.conservation import check_conservation
from winnow.decisions import score_column
from winnow.errors import ConfigError
from winnow.explain import explain, render
from winnow.forget_match import Match, Wanted, find_imported, find_listed, in_domains, read_list
from winnow.forgotten import FORGOTTEN, OPTED_OUT, Event, open_events, read_events, slug_of, tombstone_url
from winnow.machines import read_machine
from winnow.manifest import manifest_rows
from winnow.opt_outs import clear_notes, find_opted_out, list_digest, noted
from winnow.receipts import list_done, read_receipts
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.verify import render as render_verification
from winnow.verify import verify
from winnow.workspace import decisions, embeddings, manifest_part, raw_table


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = make_world(tmp_path_factory.mktemp("world") / "run")
    sample = well_known(storage)
    label(storage, sample, next(row["uid"] for row in samples(storage) if row["uid"] != sample["uid"]))
    return storage


@pytest.fixture
def run(world: Storage, tmp_path: Path) -> Storage:
    shutil.copytree(world.url, tmp_path / "run")
    return Storage(str(tmp_path / "run"))


def forget_labels(storage: Storage, *, erase: bool = False) -> Callable[[Collection[str], Collection[str], Collection[str]], None]:
    def take_out(uids: Collection[str], captions: Collection[str], pictures: Collection[str]) -> None:
        with LabelDatabase.open(storage.full(LABELS)) as database:
            forget_in_labels(database, uids, captions=captions, pictures=pictures, erase=erase)

    return take_out


def do_forget(storage: Storage, uids: Collection[str], *, slug: str = FORGOTTEN, erase: bool = False) -> Event:
    matches = find_all(storage, Wanted(uids=frozenset(uids)))
    event = forget.start(storage, forget.plan(storage, matches), slug=slug, reason="request 7", erase_labels=erase)
    return go_on(storage, event)


def go_on(storage: Storage, event: Event) -> Event:
    labels = forget_labels(storage, erase=event.erase_labels)
    forget.apply(storage, event, forget_labels=labels, redo=redo_derived)
    if storage.names("report"):
        report(storage, f"after {event.number}")
    return forget.close(storage, event)


def find_all(storage: Storage, wanted: Wanted) -> list[Match]:
    return list(find_listed(storage, sorted(manifest_rows(storage)), wanted))


def contents(storage: Storage, *folders: str) -> dict[str, bytes]:
    return {path: storage.read_bytes(path) for folder in folders for path in storage.walk(folder)}


def all_well(storage: Storage) -> None:
    found = verify(storage)
    assert found.ok, render_verification(found)


def test_nothing_of_a_forgotten_sample_is_left_in_any_file(run: Storage) -> None:
    report(run, "before")
    sample = well_known(run)
    wanted = traces(run, sample)
    before = places(run, wanted)
    assert all(before.values()), "each of them must be there to begin with"
    # Also in the database, in a receipt and in the page: this looks where it would be missed.
    assert {LABELS, "report/index.html"} <= before["caption"] and any(path.startswith("receipts/sample/") for path in before["caption"])
    do_forget(run, [sample["uid"]])
    assert places(run, wanted) == {name: set() for name in wanted}
    all_well(run)


def test_a_machine_that_holds_its_features_is_named(run: Storage) -> None:
    # A support vector cannot be taken out of a machine: the version is named, and another one can be fitted.
    path = next(path for path in run.walk("filters") if path.endswith("labelled.parquet"))
    row = next(row for row in read_table(run, path).to_pylist() if row["uid"] in {sample["uid"] for sample in samples(run)})
    machine = path.replace("labelled.parquet", "svm.safetensors")
    from safetensors.numpy import save

    vectors = np.array([row["feature"]], dtype=np.float32)
    run.write_bytes(machine, save({"support_vectors": vectors, "dual": np.ones(1), "intercept": np.zeros(1), "gamma": np.ones(1)}))
    assert read_machine(run, machine).support_vectors.shape == vectors.shape
    planned = forget.plan(run, find_all(run, Wanted(uids=frozenset([row["uid"]]))))
    assert planned.filters == (machine.removesuffix("/svm.safetensors"),)


def test_the_tombstone_keeps_the_sample_counted(run: Storage) -> None:
    before, sample = check_conservation(run), well_known(run)
    do_forget(run, [sample["uid"]])
    after = check_conservation(run)
    assert (after.listed, after.failed, after.kept) == (before.listed, before.failed, before.kept - 1)
    assert after.dropped_by_reasons["forgotten"] == 1 and after.datasets["kept"].samples == after.kept
    row = next(row for row in read_table(run, decisions(sample["partition"])).to_pylist() if row["uid"] == sample["uid"])
    assert (row["verdict"], row["reasons"]) == ("dropped", ["forgotten"])
    assert row[score_column("people")] is None
    listed = next(row for row in read_table(run, manifest_part(sample["partition"])).to_pylist() if row["uid"] == sample["uid"])
    assert (listed["url"], listed["caption"], listed["sha256"]) == ("urn:winnow:forgotten", "", None)
    assert listed["source"] == sample["source"]


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_forgotten_only_what_held_it_changes(run: Storage, seed: int) -> None:
    rng = np.random.default_rng(seed)
    every = samples(run)
    chosen = [every[i] for i in rng.choice(len(every), 1 + 6 * seed, replace=False)]
    uids = {row["uid"] for row in chosen}
    tables = {path for path in run.walk("shards") if path.endswith(".parquet")}
    holding = {path.removesuffix(".parquet") for path in tables if uids & set(read_table(run, path, ["uid"])["uid"].to_pylist())}
    before, law = contents(run, "shards", "raw", "embeddings", "decisions"), check_conservation(run)
    numbers = {path: os.stat(run.full(path)).st_ino for path in before}
    do_forget(run, uids)
    for path, data in before.items():
        # Weights beside shards are laid anew for the whole group: a few bytes.
        laid = path.endswith("index.json") or "/weights/" in path
        concerned = laid or path.rpartition(".")[0] in holding or any(row["partition"] in path for row in chosen)
        if not concerned:
            assert run.read_bytes(path) == data and os.stat(run.full(path)).st_ino == numbers[path], path
    after = check_conservation(run)
    assert after.listed == law.listed and after.failed + after.dropped + after.kept == after.listed
    assert after.kept == law.kept - sum(row["verdict"] == "kept" for row in chosen)
    all_well(run)
    # Another one on top: tombstones are not found again, and the first ones stay.
    rest = [row for row in every if row["uid"] not in uids]
    do_forget(run, [rest[0]["uid"]])
    assert find_all(run, Wanted(uids=frozenset(uids))) == []
    all_well(run)


def test_shards_are_what_the_shard_stage_would_make_of_what_is_left(run: Storage) -> None:
    do_forget(run, [row["uid"] for row in samples(run)[::9]])
    before = contents(run, "shards", "receipts/shard")
    shard(run)
    assert contents(run, "shards", "receipts/shard") == before


class Killed(BaseException):
    """As a kill: nothing catches it."""


CHANGES = ("write_bytes", "put", "remove")


def counting(patch: pytest.MonkeyPatch, at: int | None) -> list[int]:
    """Counts what changes a file, and kills before the change number `at`."""
    count = [0]
    for name in CHANGES:
        original = getattr(Storage, name)

        def change(self: Storage, *arguments: Any, original: Any = original) -> Any:
            if at is not None and count[0] >= at:
                raise Killed
            count[0] += 1
            return original(self, *arguments)

        patch.setattr(Storage, name, change)
    return count


def test_a_kill_at_any_moment_is_made_good_by_the_next_call(world: Storage, tmp_path: Path) -> None:
    uids = [well_known(world)["uid"], *(row["uid"] for row in samples(world)[5:50:20])]

    def fresh(name: str) -> Storage:
        shutil.copytree(world.url, tmp_path / name)
        return Storage(str(tmp_path / name))

    def result(storage: Storage) -> dict[str, bytes]:
        folders = (
            "manifest",
            "raw",
            "embeddings",
            "imports",
            "decisions",
            "filters",
            "shards",
            "samples",
            "regurgitation",
            "receipts",
            "weights",
            "words",
        )
        found = contents(storage, *folders)
        return {
            path: strip_seconds(data) if path.startswith("receipts/") else data for path, data in found.items() if "/report" not in path
        }

    whole = fresh("whole")
    with pytest.MonkeyPatch.context() as patch:
        changes = counting(patch, None)
        do_forget(whole, uids)
    assert changes[0] > 30
    expected = result(whole)
    for moment in range(2, changes[0], changes[0] // 9):
        storage = fresh(str(moment))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            counting(patch, moment)
            do_forget(storage, uids)
        storage.clear_temporary()
        if not open_events(storage):  # killed before it was on record: nothing has happened
            assert result(storage) == result(world)
            continue
        go_on(storage, open_events(storage)[0])
        assert result(storage) == expected, f"killed before change {moment}"
        assert open_events(storage) == [] and storage.names("forgotten/amending") == []
        shutil.rmtree(storage.url)
    all_well(whole)


def strip_seconds(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "seconds": 0}).encode()


def test_an_unfinished_forgetting_is_a_finding(run: Storage) -> None:
    forget.start(run, forget.plan(run, find_all(run, Wanted(uids=frozenset([well_known(run)["uid"]])))), slug=FORGOTTEN, reason="")
    texts = [found.what for found in verify(run).findings if found.check == "forgotten"]
    assert any("was begun and not completed" in text for text in texts) and any(
        "its url, caption or sha256 is there" in text for text in texts
    )


def change_table(storage: Storage, path: str, uid: str, **values: Any) -> None:
    table = read_table(storage, path)
    import pyarrow as pa

    rows = [row | values if row["uid"] == uid else row for row in table.to_pylist()]
    write_table(storage, path, pa.Table.from_pylist(rows, table.schema))


def test_tombstones_that_nobody_asked_for_and_changed_rows_are_found(run: Storage) -> None:
    kept = [row for row in samples(run) if row["verdict"] == "kept"]
    hidden, changed, dropped = kept[0], kept[1], kept[2]
    change_table(run, manifest_part(hidden["partition"]), hidden["uid"], url=tombstone_url(FORGOTTEN), caption="")
    change_table(run, manifest_part(changed["partition"]), changed["uid"], caption="something else")
    change_table(run, raw_table(dropped["partition"]), dropped["uid"], status="failed", cause=FORGOTTEN)
    texts = [found.what for found in verify(run).findings if found.check == "forgotten"]
    assert f"{hidden['uid']} is a tombstone, but forgotten/ does not say that it was forgotten" in texts
    assert f"{changed['uid']} is not the hash of its url and caption: they were changed" in texts
    assert f"{dropped['uid']} failed as forgotten, but forgotten/ does not name it" in texts


def test_what_came_back_is_found(run: Storage) -> None:
    sample = well_known(run)
    kept_aside = {path: run.read_bytes(path) for path in (embeddings(sample["partition"]), f"raw/{sample['partition']}.tar")}
    do_forget(run, [sample["uid"]])
    for path, data in kept_aside.items():
        run.write_bytes(path, data)
    found = {(finding.file, finding.what) for finding in verify(run).findings if finding.check == "forgotten"}
    assert found == {(path, f"holds {sample['uid']}, which was forgotten") for path in kept_aside}


def test_labels_stay_as_numbers_and_open_questions_go(run: Storage) -> None:
    sample = well_known(run)
    digest = image_digest(run, sample)
    before = rows_of(run.full(LABELS), "labels")
    assert digest in {row["item_digest"] for row in before}
    do_forget(run, [sample["uid"]])
    assert rows_of(run.full(LABELS), "labels") == [row | {"item_digest": None} if row["uid"] == sample["uid"] else row for row in before]
    questions = {(row["batch"], row["uid"]) for row in rows_of(run.full(LABELS), "batch_items")}
    assert ("open", sample["uid"]) not in questions and ("pairs", "pair 0") not in questions and ("pairs", "pair 1") in questions
    everything = b"".join(path.read_bytes() for path in Path(run.full("labels")).iterdir())
    assert digest.encode() not in everything and sample["caption"].encode() not in everything


def test_labels_go_when_asked_for_and_the_store_is_guarded_again(run: Storage) -> None:
    sample = well_known(run)
    do_forget(run, [sample["uid"]], erase=True)
    assert sample["uid"] not in {row["uid"] for row in rows_of(run.full(LABELS), "labels")}
    import sqlalchemy as sa

    with LabelDatabase.open(run.full(LABELS)) as database:
        for statement in ("DELETE FROM labels", "UPDATE batch_items SET reason = 'x'"):
            with pytest.raises(sa.exc.IntegrityError, match="are never"), database.writing() as connection:
                connection.execute(sa.text(statement))


def test_a_label_page_that_runs_meanwhile_shows_no_other_picture_in_its_place(run: Storage) -> None:
    part = sorted(manifest_rows(run))[0]
    held = [row["uid"] for row in samples(run) if row["partition"] == part and row["verdict"] in ("kept", "dropped")]
    pictures = Pictures(run, [part], held)
    stored = {uid: pictures.stored(f"uid:{uid}") for uid in held}
    do_forget(run, held[:1])
    with pytest.raises(PictureMissing, match="changed just now"):
        pictures.stored(f"uid:{held[-1]}")
    assert pictures.stored(f"uid:{held[-1]}") == stored[held[-1]]
    with pytest.raises(PictureMissing, match="not downloaded"):
        pictures.stored(f"uid:{held[0]}")


def test_models_that_learned_from_it_are_named(run: Storage) -> None:
    kept = [row["uid"] for row in samples(run) if row["verdict"] == "kept"]
    state = forget.plan(run, []).shards_digest
    run.write_text("checkpoints/base/run.json", json.dumps({"shards": state, "recipe": "base"}))
    run.write_text("checkpoints/noised-clip/run.json", json.dumps({"shards": "of long ago"}))
    first = do_forget(run, kept[:1])
    assert first.models == [
        "checkpoints/base: was trained on shards that held it",
        "checkpoints/noised-clip: was trained on an earlier state of the shards, which may have held it",
    ]
    # Its shards are not today's any more, but became today's by forgetting alone.
    assert do_forget(run, kept[1:2]).models[0] == "checkpoints/base: was trained on shards that held it"
    failed = next(row["uid"] for row in samples(run) if row["verdict"] == "failed")
    assert do_forget(run, [failed]).models == []


def test_receipts_say_what_they_would_say_had_the_sample_never_been_fetched(run: Storage) -> None:
    sample = well_known(run)
    part = sample["partition"]
    counts = {stage: read_receipts(run, stage, [part])[0].counts for stage in ("download", "embed", "score")}
    do_forget(run, [sample["uid"]])
    after = {stage: read_receipts(run, stage, [part])[0].counts for stage in counts}
    assert after["download"] == {"downloaded": counts["download"]["downloaded"] - 1, "failed": counts["download"]["failed"] + 1}
    assert after["embed"]["embedded"] == counts["embed"]["embedded"] - 1
    assert after["score"]["kept"] == counts["score"]["kept"] - 1 and after["score"]["forgotten"] == 1
    for stage in counts:
        assert len([done for done in list_done(run, stage) if done.partition == part]) == 1


def test_a_dry_run_changes_nothing(run: Storage) -> None:
    before = contents(run, "")
    planned = forget.plan(run, find_all(run, Wanted(uids=frozenset([well_known(run)["uid"]]))))
    assert (len(planned.matches), planned.groups, planned.matches[0].was) == (1, ("00000",), "kept")
    assert contents(run, "") == before


def test_the_story_of_a_forgotten_sample_is_told(run: Storage) -> None:
    sample = well_known(run)
    do_forget(run, [sample["uid"]])
    story = render(explain(run, sample["uid"]))
    assert f"FORGOTTEN on {read_events(run)[0].at[:10]}: request 7" in story
    assert sample["caption"] not in story


# Who is meant


def test_samples_are_found_by_uid_url_site_and_digest(run: Storage) -> None:
    every = samples(run)
    sample = next(row for row in every if row["verdict"] == "kept")
    raw = {row["uid"]: row["sha256"] for row in read_table(run, raw_table(sample["partition"])).to_pylist()}
    by_url = {row["uid"] for row in every if row["url"] == sample["url"]}
    site = sample["url"].split("/")[2]
    by_site = {row["uid"] for row in every if row["url"].split("/")[2] == site}
    by_digest = {row["uid"] for row in every if raw.get(row["uid"]) == raw[sample["uid"]]}
    for wanted, uids in (
        (Wanted(uids=frozenset([sample["uid"]])), {sample["uid"]}),
        (Wanted(urls=frozenset([sample["url"]])), by_url),
        (Wanted(domains=frozenset([site])), by_site),
        (Wanted(sha256s=frozenset([raw[sample["uid"]]])), by_digest),
    ):
        assert {match.uid for match in find_all(run, wanted)} == uids
    assert {match.was for match in find_all(run, Wanted(domains=frozenset([site])))} <= {"kept", "dropped", "failed"}


def test_curated_images_are_found_by_their_digest_and_forgotten(run: Storage) -> None:
    uid = read_table(run, "imports/hate_symbol.parquet", ["uid"])["uid"][0].as_py()
    matches = find_imported(run, Wanted(sha256s=frozenset([uid + "0" * 32])))
    assert matches == [Match(uid, "imports/hate_symbol", "import")]
    go_on(run, forget.start(run, forget.plan(run, matches), slug=FORGOTTEN, reason=""))
    assert uid not in read_table(run, "imports/hate_symbol.parquet", ["uid"])["uid"].to_pylist()
    all_well(run)


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("http://example.org/a.jpg", True),
        ("https://www.Example.ORG./a.jpg", True),
        ("https://user:x@example.org:8443/a", True),
        ("https://a.b.example.org?x", True),
        ("https://notexample.org/a", False),
        ("https://example.org.evil.net/a", False),
        ("https://evil.net/example.org", False),
        ("https://evil.net/?example.org/", False),
        ("not a url", False),
        (tombstone_url(OPTED_OUT), False),
    ],
)
def test_a_site_means_its_host_and_what_is_below_it(url: str, inside: bool) -> None:
    assert in_domains(url, {"example.org"}) is inside


def test_lists_are_read_from_text_and_parquet_alike(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    uid, digest = hashlib.sha256(b"").hexdigest()[:32], hashlib.sha256(b"").hexdigest()
    text = f"# our list\n{uid}\n{digest.upper()}  # an image\n\nhttps://example.org/a b#c\nExample.ORG\n".replace("a b#c", "a#c")
    (tmp_path / "list.txt").write_text(text)
    pq.write_table(
        pa.table({"uid": [uid, None], "sha256": [digest, None], "url": [None, "https://example.org/a#c"], "domain": ["example.org", None]}),
        tmp_path / "list.parquet",
    )
    expected = Wanted(
        uids=frozenset([uid]), sha256s=frozenset([digest]), urls=frozenset(["https://example.org/a#c"]), domains=frozenset(["example.org"])
    )
    assert read_list(tmp_path / "list.txt") == expected == read_list(tmp_path / "list.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example.org\nwhat is this\n", "line 2: 'what is this' is no url, domain, uid"),
        ("# nothing\n", "names nothing"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_list(tmp_path / "list.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_list(tmp_path / "none.txt")


# The opt-out list


def test_who_is_on_the_list_is_noted_until_forgotten(run: Storage, tmp_path: Path) -> None:
    every = samples(run)
    sample = next(row for row in every if row["verdict"] == "kept")
    (tmp_path / "list.txt").write_text(f"{sample['url']}\n")
    mark = list_digest(read_list(tmp_path / "list.txt"))
    counts = {}
    for partition in sorted(manifest_rows(run)):
        outcome = find_opted_out(run, partition, path=str(tmp_path / "list.txt"), sha256=mark)
        counts[partition] = outcome.counts["opted_out"]
    meant = {row["uid"] for row in every if row["url"] == sample["url"]}
    assert {match.uid for match in noted(run)} == meant and sum(counts.values()) == len(meant)
    go_on(run, forget.start(run, forget.plan(run, noted(run)), slug=OPTED_OUT, reason="on the opt-out list"))
    assert noted(run) == []
    clear_notes(run)
    row = next(row for row in read_table(run, decisions(sample["partition"])).to_pylist() if row["uid"] == sample["uid"])
    assert (row["verdict"], row["reasons"]) == ("dropped", ["opted_out"])
    all_well(run)


def test_a_list_that_changes_under_way_stops_the_run(run: Storage, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("example.org\n")
    with pytest.raises(ConfigError, match="changed while it was being worked through"):
        find_opted_out(run, sorted(manifest_rows(run))[0], path=str(tmp_path / "list.txt"), sha256="another")


def test_tombstones_are_no_urls_of_anything() -> None:
    assert slug_of(tombstone_url(FORGOTTEN)) == FORGOTTEN and slug_of(tombstone_url(OPTED_OUT)) == OPTED_OUT
    assert slug_of("http://example.org/forgotten") is None and slug_of("forgotten") is None
