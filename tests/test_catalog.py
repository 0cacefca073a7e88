import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from filters.catalog import FILTERS, FilterSpec, filter_specs
from filters.learning import LabelPlan
from winnow.errors import ConfigError


@pytest.mark.parametrize("spec", FILTERS.values(), ids=lambda spec: spec.name)
def test_every_filter_tells_its_labellers_what_to_drop_and_keep(spec):
    assert re.match(r"Drop .*; keep .*\.$", spec.policy)
    assert spec.title
    assert all(prompt.strip() for prompt in spec.seed_prompts)


@pytest.mark.parametrize("spec", FILTERS.values(), ids=lambda spec: spec.name)
def test_every_filter_promises_what_the_paper_asks_of_it(spec):
    assert spec.max_miss_rate <= 0.01
    assert spec.confidence >= 0.95


def test_filters_are_found_by_name():
    assert {spec.name: spec for spec in FILTERS.values()} == FILTERS
    assert [spec.name for spec in filter_specs(("violence", "people"))] == ["violence", "people"]
    with pytest.raises(ConfigError, match="no filter is named 'cats'; there are people, violence, hate_symbol"):
        filter_specs(("cats",))
    with pytest.raises(ConfigError, match="named twice"):
        filter_specs(("people", "people"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_miss_rate": 1.0}, "max_miss_rate must be between 0 and 1, got 1.0"),
        ({"confidence": 0.0}, "confidence must be between 0 and 1"),
        ({"scope": "everything"}, "scope must be one of population, curated"),
        ({"name": "no dots."}, "name must be lower-case letters"),
        ({"policy": " "}, "needs a policy"),
        ({"seed_prompts": ()}, "at least one seed prompt"),
    ],
)
def test_entries_that_cannot_work_are_refused(changes, message):
    good = FilterSpec(name="cats", title="Cats", policy="Drop cats; keep dogs.", seed_prompts=("a cat",))
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(good, **changes)


def test_the_entry_in_the_docs_is_one():
    text = (Path(__file__).parent.parent / "docs/add-a-filter.md").read_text()
    entry = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    spec = eval(entry, {"FilterSpec": FilterSpec})
    assert spec.name == "nudity"
    assert re.match(r"Drop .*; keep .*\.$", spec.policy)


def test_the_learning_plan_in_the_docs_is_one():
    text = (Path(__file__).parent.parent / "docs/add-a-filter.md").read_text()
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))["learn"]
    plans = {name: LabelPlan(**plan) for name, plan in settings["overrides"].items()}
    assert LabelPlan(**settings["plan"]) == LabelPlan()
    assert plans["nudity"].random_labels == 60_000
