from pathlib import Path

import pytest
import yaml

from tasks.config import RunConfig, plain, read_config, run_config
from winnow.errors import ConfigError

LEAST = {"workspace": "w", "manifest": "m.yaml"}


def test_a_config_needs_only_a_workspace_and_a_manifest_and_has_the_papers_defaults() -> None:
    config = run_config(LEAST)
    assert (config.embed.model, config.embed.pretrained) == ("ViT-B-16", "openai")
    assert config.filters == ("people", "violence", "hate_symbol")
    assert config.sample.num_prompts == 30_000


def test_an_unknown_setting_is_refused_at_any_depth_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"worksapce: unknown setting\. Known: workspace, manifest"):
        run_config({**LEAST, "worksapce": "x"})
    with pytest.raises(ConfigError, match=r"embed\.modle: unknown setting\. Known: model, pretrained, weights"):
        run_config({**LEAST, "embed": {"modle": "demo"}})
    with pytest.raises(ConfigError, match=r"download\.\w+: unknown setting"):
        run_config({**LEAST, "download": {"timeout": 3}})


def test_every_wrong_value_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as problem:
        run_config({**LEAST, "workers": "many", "embed": {"precision": "fp8"}})
    assert "workers:" in str(problem.value) and "precision must be one of fp32, bf16, got 'fp8'" in str(problem.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filters": ["nudity"]}, "no filter 'nudity'. Choose from: people, violence, hate_symbol"),
        ({"train": ["bsae"]}, "no recipe 'bsae'. Choose from: "),
        ({"imports": {"people": "x"}, "filters": ["violence"]}, "imports: 'people' is not one of this run's filters"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"partition_rows": 0}, "partition_rows must be at least 1"),
    ],
)
def test_impossible_values_say_what_is_possible(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        run_config({**LEAST, **values})


def test_a_printed_config_reads_back_as_itself() -> None:
    config = run_config({**LEAST, "embed": {"model": "demo"}, "imports": {"hate_symbol": "/x"}})
    assert run_config(yaml.safe_load(yaml.safe_dump(plain(config)))) == config


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "workspace: out\nmanifest: /abs/m.yaml\nimports: {hate_symbol: bad}\nembed: {weights: w.safetensors}\n"
    )
    config = read_config(str(tmp_path / "run.yaml"))
    assert config.workspace == str(tmp_path / "out")
    assert config.manifest == "/abs/m.yaml"
    assert config.imports == {"hate_symbol": str(tmp_path / "bad")}
    assert config.embed.weights == str(tmp_path / "w.safetensors")


def test_a_url_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("workspace: s3://bucket/run\nmanifest: m.yaml\n")
    assert read_config(str(tmp_path / "run.yaml")).workspace == "s3://bucket/run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (": :", "is not YAML"),
        ("- a list", "must hold settings"),
        ("filters: [people]\nworkspace: w\nfilters: [violence]", "'filters' is given twice\n.*line 3"),
        ("workspace: w\nmanifest: m\nfilters: people", "filters: Input should be a list"),
    ],
)
def test_a_file_that_is_no_config_says_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(str(tmp_path / "run.yaml"))


def test_a_config_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no config nowhere\.yaml"):
        read_config("nowhere.yaml")


def test_a_config_needs_its_manifest() -> None:
    with pytest.raises(ConfigError, match="manifest"):
        run_config({"workspace": "w"})


def test_a_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        RunConfig(**LEAST).workers = 3  # type: ignore[misc]


def test_the_demo_s_config_can_be_read_back(tmp_path):
    from flows.demo import demo_config

    config = demo_config(str(tmp_path / "demo"), port=8731)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain(config), sort_keys=False))
    assert read_config(str(tmp_path / "run.yaml")) == config
