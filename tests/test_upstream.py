"""A stage whose inputs are missing names the command that makes them, and that command is there."""

import re
from pathlib import Path

import click
import pytest

from flows.cli import cli
from tasks.stages import STAGES
from tasks.upstream import outputs
from winnow.errors import ConfigError
from winnow.workspace import open_workspace


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_stage_is_named_by_a_command_that_takes_a_config(stage: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{stage} is not done for part") as refusal:
        outputs(open_workspace(str(tmp_path)), stage, ["part"])
    found = re.search(r"run `winnow (.*) CONFIG` first", str(refusal.value))
    assert found is not None
    command: click.Command = cli
    for name in found[1].split():
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert [parameter.name for parameter in command.params][:1] == ["config"]
