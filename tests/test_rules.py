"""Rules measure what they say, twice; a config lists them with limits; the decision log has their values and reasons."""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters import scoring
from filters.catalog import FILTERS
from filters.languages import caption_language
from filters.rules import RULES, Pair, Rule, check_rules, measured, needs_similarity
from filters.ruling import limits_of, settle_rules, share_limit, write_rules_json
from tasks.config import run_config
from winnow.errors import ConfigError, ConservationError, ShardError
from winnow.rule_values import value_again
from winnow.rules import SIMILARITY_STEP, RuleUsed, rules_used, similarity_file
from winnow.storage import Storage
from winnow.tables import read_table, write_table
from winnow.workspace import decisions, embeddings, manifest_part, raw_table

sys.path.insert(0, str(Path(__file__).parent))
from filter_world import make_world

SENTENCES = {
    "en": ("A red barn near the lake", "Two dogs playing with a ball", "Vintage car on the road", "it's raining"),
    "de": ("Ein rotes Haus am See", "Blick auf die Berge im Winter", "Schöner Garten für Kinder"),
    "fr": ("Une maison rouge près du lac", "Le chat dort dans le jardin"),
    "es": ("Una casa roja junto al lago", "Vista de las montañas en invierno"),
    "pt": ("Uma casa vermelha junto ao lago", "O gato dorme no jardim"),
    "it": ("Una casa rossa sul lago", "Il gatto dorme nel giardino"),
    "nl": ("Een rood huis aan het meer", "De kat slaapt in de tuin"),
    "sv": ("Ett rött hus vid sjön", "Katten sover i trädgården"),
    "da": ("Et rødt hus ved søen", "Udsigt over bjergene om vinteren"),
    "pl": ("Czerwony dom nad jeziorem", "Kot śpi w ogrodzie"),
    "cs": ("Červený dům u jezera", "Kočka spí na zahradě"),
    "tr": ("Gölün yanında kırmızı bir ev",),
    "ro": ("O casă roșie lângă lac",),
    "hu": ("Egy piros ház a tó mellett",),
    "fi": ("Punainen talo järven vieressä",),
    "id": ("Seorang wanita dengan anjing",),
    "vi": ("Ngôi nhà đỏ bên hồ",),
    "ru": ("Красный дом у озера",),
    "uk": ("Вид на гори взимку і річку",),
    "bg": ("Червена къща до езерото",),
    "el": ("Κόκκινο σπίτι",),
    "he": ("בית אדום",),
    "ar": ("بيت أحمر بجانب البحيرة",),
    "fa": ("خانه‌ای قرمز کنار دریاچه و گربه",),
    "ur": ("جھیل کے کنارے ایک گھر",),
    "zh": ("湖边的红房子",),
    "ja": ("湖のそばの赤い家", "赤い家と猫"),
    "ko": ("호수 옆의 빨간 집",),
    "hi": ("झील के पास लाल घर",),
    "th": ("บ้านสีแดงริมทะเลสาบ",),
    "und": ("Paris 2019", "IMG_2231.JPG", "", "12345", "🦊", "Zürich"[0]),
}


@pytest.mark.parametrize("language", SENTENCES)
def test_plain_sentences_are_told_by_language(language):
    assert {sentence: caption_language(sentence) for sentence in SENTENCES[language]} == dict.fromkeys(SENTENCES[language], language)


def test_of_25_014_english_captions_few_are_undetermined_and_hardly_one_is_taken_for_another_language(photos):
    captions = [entry["caption"] for entry in json.loads((photos / "coco_captions_val2017.json").read_bytes())["annotations"]]
    told = Counter(caption_language(caption) for caption in captions[::5])
    assert told["en"] / told.total() > 0.985
    assert 1 - (told["en"] + told["und"]) / told.total() < 0.002


TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="aeinorst ß'ñåöїыъ²ⅷ_1\u2003", max_size=40),
    st.lists(st.sampled_from(["the", "de", "a", "en", "it's", "o'o'o", "'", "und", "casa", "猫", "дом"]), max_size=8).map(" ".join),
)


@pytest.mark.parametrize("spec", RULES.values(), ids=lambda spec: spec.name)
@settings(max_examples=50, deadline=None)
@given(caption=TEXTS, width=st.integers(1, 9000), height=st.integers(1, 9000), grain=st.integers(-(2**14), 2**14))
def test_a_rules_second_computation_agrees_with_the_first(spec, caption, width, height, grain):
    row = {"caption": caption, "width": width, "height": height, "similarity": grain * SIMILARITY_STEP}
    assert value_again(spec.name, row) == spec.measure(Pair(**row))


@pytest.mark.parametrize("spec", RULES.values(), ids=lambda spec: spec.name)
def test_every_rule_tells_what_it_measures_and_no_filter_has_its_name(spec):
    assert spec.policy.endswith(".") and spec.title
    assert spec.name.isidentifier() and spec.name not in FILTERS
    assert isinstance(spec.measure(Pair(caption="a", width=3, height=2, similarity=0.5)), str if spec.choices else float)


def test_a_rule_nobody_can_check_is_named():
    with pytest.raises(ShardError, match="no rule is named 'sharpness'; there are caption_characters"):
        value_again("sharpness", {})
    with pytest.raises(ConfigError, match="'people': a filter has that name"):
        dataclasses.replace(RULES["caption_words"], name="people")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"rule": "x"}, "there is no rule 'x'. Choose from: caption_characters"),
        ({"rule": "caption_words"}, "caption_words needs min or max"),
        ({"rule": "clip_similarity"}, "clip_similarity needs min, max or top_share"),
        ({"rule": "caption_words", "any_of": ["en"]}, "caption_words needs min or max"),
        ({"rule": "caption_language", "min": 1}, "caption_language needs any_of with values of ar, .*; it takes nothing else"),
        ({"rule": "caption_language", "any_of": ["xx"]}, "'xx' is none"),
        ({"rule": "caption_words", "top_share": 0.5}, "caption_words: top_share is for clip_similarity"),
        ({"rule": "clip_similarity", "top_share": 0.5, "min": 0.1}, "between 0 and 1 and instead of min"),
        ({"rule": "clip_similarity", "top_share": 1.0}, "between 0 and 1"),
        ({"rule": "image_aspect", "min": 3, "max": 2}, "keeps nothing: min 3 is above max 2"),
        ({"rule": "image_aspect", "most": 3}, "rules.0.most: unknown setting. Known: rule, min, max"),
    ],
)
def test_limits_that_do_not_fit_a_rule_are_refused_by_name(rule, message):
    with pytest.raises(ConfigError, match=message):
        run_config({"workspace": "w", "manifest": "m", "rules": [rule]})


def test_a_rule_listed_twice_is_refused():
    with pytest.raises(ConfigError, match="caption_words is listed twice; give it min and max together"):
        check_rules([Rule(rule="caption_words", min=3), Rule(rule="caption_words", max=9)])


def test_limits_are_kept_themselves():
    used = [
        RuleUsed(name="caption_words", min=2, max=3),
        RuleUsed(name="image_aspect", max=2),
        RuleUsed(name="caption_language", any_of=("en",)),
    ]
    kept = Pair(caption="the barn", width=40, height=20)
    assert measured(used, kept) == ([2.0, 2.0, "en"], [])
    assert measured(used, dataclasses.replace(kept, caption="barn"))[1] == ["caption_words", "caption_language"]
    assert measured(used, dataclasses.replace(kept, caption="the red old barn", height=19))[1] == ["caption_words", "image_aspect"]
    assert [rule.limits for rule in used] == ["at least 2 and at most 3", "at most 2", "one of en"]


def write_similarities(storage: Storage, name: str, values: np.ndarray) -> None:
    uids = [f"{name}{number:04}" for number in range(len(values))]
    write_table(storage, similarity_file(name), pa.table({"uid": uids, "similarity": pa.array(values, pa.float32())}))


@settings(max_examples=12, deadline=None)
@given(grains=st.lists(st.integers(-50, 9000), min_size=1, max_size=80), share=st.floats(0.01, 0.99))
def test_a_shares_limit_keeps_at_least_that_share_and_no_higher_limit_does(tmp_path_factory, grains, share):
    storage = Storage(str(tmp_path_factory.mktemp("share")))
    values = np.array(grains) * SIMILARITY_STEP
    write_similarities(storage, "a", values[::2])
    write_similarities(storage, "b", values[1::2])
    limit, images = share_limit(storage, ["a", "b"], share)
    assert images == len(values)
    assert (values >= limit).mean() >= share > (values > limit).mean()


def test_a_shares_limit_is_found_once_and_stands_until_share_or_model_change(tmp_path):
    storage, rule = Storage(str(tmp_path)), Rule(rule="clip_similarity", top_share=0.25)
    write_similarities(storage, "a", np.arange(8) / 16)
    assert needs_similarity([rule])

    def settle(rule: Rule, similarity: dict[str, str], space: str = "vit") -> RuleUsed:
        (used,) = settle_rules(storage, [rule], similarity=similarity, space=space)
        write_rules_json(storage, [used])
        assert rules_used(storage) == [used]
        return used

    first = settle(rule, {"a": "1"})
    assert first.min == 6 / 16
    assert first.limits == "at least 0.375 (the top 25%)"
    assert first.measured_on["partitions"], first.measured_on["images"] == (1, 8)
    write_similarities(storage, "b", np.ones(8))
    assert settle(rule, {"a": "1", "b": "2"}) == first
    assert settle(rule, {"a": "1", "b": "2"}, space="resnet").min == 1.0
    half = dataclasses.replace(rule, top_share=0.5)
    assert settle(half, {"a": "1", "b": "2"}, space="resnet").min == 1.0
    assert settle(half, {"a": "1"}).min == 4 / 16
    write_rules_json(storage, [])
    assert rules_used(storage) == []


CAPTIONS = ("A red barn near the lake", "barn", "Ein rotes Haus am See", None, "two boats on the sea", "  ")


@pytest.fixture
def world(tmp_path):
    """One partition with captions, sizes and similarities, and no filters."""
    world = make_world(tmp_path / "w", partitions=1, rows=60)
    (name,) = world.partitions
    table = read_table(world.storage, manifest_part(name))
    captions = pa.array([CAPTIONS[number % len(CAPTIONS)] for number in range(60)], pa.string())
    write_table(world.storage, manifest_part(name), table.set_column(2, "caption", captions))
    raw = read_table(world.storage, raw_table(name))
    sizes = {
        side: pa.array([100 + 10 * ((number * factor) % 7) for number in range(60)], pa.int32())
        for side, factor in (("width", 1), ("height", 5))
    }
    write_table(world.storage, raw_table(name), pa.table({**{key: raw[key] for key in raw.column_names}, **sizes}))
    uids = read_table(world.storage, embeddings(name), ["uid"])["uid"]
    similarity = pa.array([(number % 9) / 16 for number in range(len(uids))], pa.float32())
    write_table(world.storage, similarity_file(name), pa.table({"uid": uids, "similarity": similarity}))
    return world.storage, name


USED = (
    RuleUsed(name="caption_words", min=2),
    RuleUsed(name="caption_language", any_of=("en",)),
    RuleUsed(name="image_side_px", min=120),
    RuleUsed(name="clip_similarity", min=0.25, top_share=0.5, measured_on={"images": 60}),
)


def score(storage: Storage, name: str, rules) -> tuple[dict[str, int], list[dict]]:
    counts = scoring.score_partition(storage, name, filters=[], rules=limits_of(rules)).counts
    return dict(counts), read_table(storage, decisions(name)).to_pylist()


def test_the_decision_log_has_values_and_reasons_of_rules(world):
    storage, name = world
    counts, rows = score(storage, name, USED)
    captions = {row["uid"]: row["caption"] for row in read_table(storage, manifest_part(name)).to_pylist()}
    sides = {row["uid"]: min(row["width"], row["height"]) for row in read_table(storage, raw_table(name)).to_pylist()}
    alike = {row["uid"]: row["similarity"] for row in read_table(storage, similarity_file(name)).to_pylist()}
    seen: set[str] = set()
    for row in rows:
        uid = row["uid"]
        values = [row[f"value_{rule.name}"] for rule in USED]
        if row["verdict"] == "failed":
            assert values == [None] * 4
            continue
        caption = captions[uid] or ""
        assert values == [len(caption.split()), caption_language(caption), sides[uid], alike[uid]]
        due = [
            name
            for name, breaks in zip(
                (rule.name for rule in USED), (values[0] < 2, values[1] != "en", values[2] < 120, values[3] < 0.25), strict=True
            )
            if breaks
        ]
        assert row["reasons"] == due
        assert row["verdict"] == ("dropped" if due else "kept")
        seen.update(due)
    assert seen == {rule.name for rule in USED}
    assert counts["kept"] > 0
    assert counts["dropped_by_caption_words"] == sum("caption_words" in row["reasons"] for row in rows)


def test_without_rules_the_log_is_byte_for_byte_what_it_was(world):
    storage, name = world
    scoring.score_partition(storage, name, filters=[])
    before = storage.sha256(decisions(name))
    assert read_table(storage, decisions(name)).column_names == ["uid", "verdict", "reasons"]
    score(storage, name, USED)
    assert storage.sha256(decisions(name)) != before
    score(storage, name, [])
    assert storage.sha256(decisions(name)) == before


def test_a_changed_limit_decides_again_and_how_it_was_found_does_not(world):
    storage, name = world

    def mark(rules, similarity=None) -> str:
        works = scoring.score_works(storage, [], raw={name: "1"}, embedded={name: "1"}, rules=rules, similarity=similarity)
        return next(iter(works)).fingerprint("score", 1)

    assert mark(USED) == mark([*USED[:3], dataclasses.replace(USED[3], top_share=None, measured_on=None)])
    assert len({mark(()), mark(USED), mark(USED[:3]), mark(USED, {name: "1"}), mark(USED, {name: "2"})}) == 5


def test_a_missing_similarity_is_named(world):
    storage, name = world
    table = read_table(storage, similarity_file(name))
    write_table(storage, similarity_file(name), table.slice(1))
    with pytest.raises(ConservationError, match=rf"{similarity_file(name)} lacks 1 embedded samples, {table['uid'][0]} for one"):
        score(storage, name, USED)
