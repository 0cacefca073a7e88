"""The stages beside the filters: run when they are asked for, cost nothing when up to date, leave nothing when they are not."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from filters import scoring
from filters.ruling import ruled as measure
from filters.ruling import write_rules_json
from models.caption_similarity import compare_partition, similarities
from models.clip_embedder import ClipConfig, loaded_clip, resolve_weights
from tasks import selection
from tasks.config import RunConfig, run_config
from winnow.decisions import schema
from winnow.errors import ConfigError
from winnow.explain import explain, render
from winnow.receipts import list_done
from winnow.rules import SIMILARITY_STEP, RuleUsed, similarity_file
from winnow.run_files import partitions
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.verify import verify
from winnow.workspace import decisions, embeddings, manifest_part

sys.path.insert(0, str(Path(__file__).parent))
from fake_workspace import give_receipt, make_workspace

DEMO = ClipConfig(model="demo")
RULES = [
    RuleUsed(name="caption_words", min=5),
    RuleUsed(name="caption_language", any_of=("en", "und")),
    RuleUsed(name="image_aspect", max=1.4),
]


def config(storage: Storage, **changes) -> RunConfig:
    plain: dict[str, object] = {"workspace": storage.url, "manifest": "m.yaml", "embed": {"model": "demo"}}
    plain |= {"train": ["demo-base"], "sample": {"recipe": "demo-base"}, "duplicates": {"mode": "off"}, "shard": {"dataset": "kept"}}
    return run_config({**plain, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A made-up run without words and weights."""
    storage = make_workspace(tmp_path_factory.mktemp("made"), rows=30, labels=300, trained=False)
    for stage in ("importance", "weigh", "weigh-shard", "words"):
        storage.remove_folder(f"receipts/{stage}")
    for folder in ("weights", "words", "shards/kept/weights"):
        storage.remove_folder(folder)
    return Path(storage.url)


@pytest.fixture
def storage(made, tmp_path, monkeypatch) -> Storage:
    """A copy of it; the stages work in this process."""
    monkeypatch.setattr(RunConfig, "num_workers", property(lambda self: 0))
    shutil.copytree(made, tmp_path / "run")
    return Storage(str(tmp_path / "run"))


def test_a_similarity_is_the_cosine_of_caption_and_image(storage):
    clip = loaded_clip(DEMO, resolve_weights(DEMO))
    texts = ["a red barn", "a blue boat on the sea", "two dogs", "", "\udcff?".encode("utf-8", "replace").decode()]
    vectors = clip.encode_texts(texts)
    same = similarities(clip, 3 * vectors.astype(np.float16), texts)
    assert same == pytest.approx(1, abs=1e-3)
    assert np.array_equal(same / SIMILARITY_STEP, np.round(same / SIMILARITY_STEP))
    turned = similarities(clip, np.roll(vectors, 1, axis=0), texts)
    assert turned == pytest.approx((vectors * np.roll(vectors, 1, axis=0)).sum(axis=1), abs=SIMILARITY_STEP)
    assert turned.max() < 0.99


def test_similarities_are_made_when_a_rule_asks_for_them_and_go_when_none_does(storage):
    clip = loaded_clip(DEMO, resolve_weights(DEMO))
    for name in partitions(storage):
        table = read_table(storage, embeddings(name), ["uid"])
        captions = {row["uid"]: row["caption"] for row in read_table(storage, manifest_part(name)).to_pylist()}
        vectors = clip.encode_texts([captions[uid] for uid in table["uid"].to_pylist()]).astype(np.float16)
        feature = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), clip.dim)
        write_table(storage, embeddings(name), table.append_column("feature", feature))
    asked = config(storage, rules=[{"rule": "clip_similarity", "top_share": 0.5}])
    assert selection.similarity_stage(asked).ran == 2
    assert selection.similarity_stage(asked).ran == 0
    values = np.concatenate([read_table(storage, similarity_file(name))["similarity"].to_numpy() for name in partitions(storage)])
    assert values == pytest.approx(1, abs=1e-3)
    (rule,), marks = selection.settled_rules(storage, asked, partitions(storage))
    assert rule.min == np.sort(values)[::-1][int(np.ceil(len(values) / 2)) - 1]
    assert marks.keys() == set(partitions(storage))
    selection.similarity_stage(config(storage))
    assert storage.walk("caption_similarity") == [] and list_done(storage, "similarity") == []
    with pytest.raises(ConfigError, match="similarity is not done"):
        selection.settled_rules(storage, asked, partitions(storage))


def test_embeddings_of_another_clip_are_refused(storage):
    weights = resolve_weights(DEMO)
    with pytest.raises(ConfigError, match=r"has features of 16 dimensions, demo gives 128: run `winnow embed CONFIG`"):
        compare_partition(storage, partitions(storage)[0], config=DEMO, weights_sha256=weights.sha256, weights_path=weights.path)


def test_nothing_is_weighed_unless_it_is_asked_for_and_all_of_it_goes_when_it_no_longer_is(storage):
    off, on = config(storage), config(storage, importance={"enabled": True})
    assert selection.weigh_stage(off).ran == 0 and storage.walk("weights") == []
    first = selection.weigh_stage(on)
    num_shards = len(list_done(storage, "weigh-shard"))
    assert num_shards >= 1 and first.ran == 1 + 2 + num_shards
    assert first.counts["weighed"] == sum(
        row["verdict"] == "kept" for name in partitions(storage) for row in read_table(storage, decisions(name)).to_pylist()
    )
    assert selection.weigh_stage(on).ran == 0
    assert selection.words_stage(on).ran == 2 and selection.words_stage(on).ran == 0
    found = verify(storage)
    assert found.ok, found.findings
    assert found.checked["weights"] > 0 and found.checked["words"] > 0
    selection.weigh_stage(off)
    assert storage.walk("weights") == [] and storage.walk("shards/kept/weights") == []
    assert selection.words_stage(off).ran == 2  # they were weighted


def test_settings_of_words_count_again_and_a_new_decision_does_too(storage):
    selection.words_stage(config(storage))
    assert selection.words_stage(config(storage, words={"groups": {"cows": ["cow"]}})).ran == 2
    name = partitions(storage)[0]
    (done,) = (done for done in list_done(storage, "score") if done.partition == name)
    storage.remove(f"receipts/score/{done.file_name}")
    give_receipt(storage, "score", name, [decisions(name)], inputs={"filters": "others"})
    assert selection.words_stage(config(storage, words={"groups": {"cows": ["cow"]}})).ran == 0  # equal decisions from other inputs


def ruled(storage: Storage) -> str:
    """Decides a partition again with rules, as the stage would; returns its name."""
    name = partitions(storage)[0]
    before = {row["uid"]: row for row in read_table(storage, decisions(name)).to_pylist()}
    there = [uid for uid, row in before.items() if row["verdict"] != "failed"]
    found = measure(storage, name, RULES, there)
    for uid, row in before.items():
        for place, rule in enumerate(RULES):
            row[f"value_{rule.name}"] = found[uid][0][place] if uid in found else None
        if uid in found and found[uid][1]:
            row |= {"verdict": "dropped", "reasons": [*row["reasons"], *found[uid][1]]}
    write_table(storage, decisions(name), pa.Table.from_pylist(list(before.values()), schema(("people", "violence", "hate_symbol"), RULES)))
    write_rules_json(storage, RULES)
    assert any(found[uid][1] for uid in there)
    return name


def named(storage: Storage, name: str) -> list[str]:
    return [str(one) for one in verify(storage).findings if one.check == "verdicts" and (name in one.file or "rules.json" in one.file)]


def test_verify_follows_every_rule_to_its_verdict_and_names_what_does_not_follow(storage):
    name = ruled(storage)
    assert named(storage, name) == []
    table = read_table(storage, decisions(name))
    rows = table.to_pylist()
    kept = next(row for row in rows if row["verdict"] == "kept")
    kept["value_caption_words"] = 2.0
    write_table(storage, decisions(name), pa.Table.from_pylist(rows, table.schema))
    found = named(storage, name)
    verdict = rf"{kept['uid']} is kept, but its scores say dropped by caption_words .*caption_words 2.0 against at least 5"
    assert any(re.search(verdict, one) for one in found)
    assert any(re.search(rf"{kept['uid']} has 2.0 by the rule caption_words, it gives \d+\.0", one) for one in found)
    kept["value_caption_words"] = None
    write_table(storage, decisions(name), pa.Table.from_pylist(rows, table.schema))
    assert any(f"{kept['uid']} has no value by caption_words" in one for one in named(storage, name))


def test_verify_finds_a_shares_limit_again(storage):
    for number, name in enumerate(partitions(storage)):
        uids = read_table(storage, embeddings(name), ["uid"])["uid"]
        values = pa.array([(7 * row + number) % 32 / 64 for row in range(len(uids))], pa.float32())
        write_table(storage, similarity_file(name), pa.table({"uid": uids, "similarity": values}))
        give_receipt(storage, "similarity", name, [similarity_file(name)])
    asked = config(storage, rules=[{"rule": "clip_similarity", "top_share": 0.3}])
    (rule,), _ = selection.settled_rules(storage, asked, partitions(storage))
    for name in partitions(storage):  # no verdict names it yet, so only the limit itself is looked at
        assert not any("clip_similarity: " in one for one in named(storage, name))
    write_rules_json(storage, [dataclasses.replace(rule, min=rule.min + SIMILARITY_STEP)])
    found = [str(one) for one in verify(storage).findings if "rules.json" in one.file]
    assert any(re.search(rf"clip_similarity: the top 30.00% begin at {rule.min:.6f}, it says", one) for one in found), found


def test_explain_tells_what_each_rule_measured(storage):
    name = ruled(storage)
    rows = read_table(storage, decisions(name)).to_pylist()
    dropped = next(row for row in rows if "caption_words" in row["reasons"])
    story = explain(storage, dropped["uid"])
    assert [one.rule for one in story.ruled] == [rule.name for rule in RULES]
    text = render(story)
    assert "DROPPED by" in text
    assert f"caption_words drops it: {dropped['value_caption_words']:g}, kept is at least 5" in text
    assert re.search(r"caption_language lets it pass: (en|und), kept is one of en, und", text)


def test_scoring_with_rules_is_what_the_stage_asks_for(storage):
    name = partitions(storage)[0]
    works = scoring.score_works(storage, [], raw={name: "1"}, embedded={name: "1"}, rules=RULES)
    assert next(iter(works)).arguments["rules"] == [
        {"name": "caption_words", "min": 5},
        {"name": "caption_language", "any_of": ["en", "und"]},
        {"name": "image_aspect", "max": 1.4},
    ]
