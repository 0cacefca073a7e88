"""A stage whose inputs are missing names the command that makes them, and that command is there."""

import re
from pathlib import Path

import click
import pytest

from flows.cli import cli
from tasks.stages import STAGES
from tasks.upstream import outputs
from winnow.errors import ConfigError
from winnow.receipts import Receipt, write_receipt
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


def test_a_partition_with_two_receipts_is_not_done(tmp_path: Path) -> None:
    storage = open_workspace(str(tmp_path))

    def write(fingerprint: str, sha256: str) -> None:
        rest = {"version": 1, "inputs": {}, "arguments": {}, "counts": {}, "facts": {}, "seconds": 0.1}
        outputs = {"raw/part.tar": {"sha256": sha256, "bytes": 1}}
        write_receipt(storage, Receipt(stage="download", partition="part", fingerprint=fingerprint, outputs=outputs, **rest))

    write("f" * 16, "0" * 64)
    assert set(outputs(storage, "download", ["part"])) == {"part"}
    write("f" * 16, "1" * 64)
    with pytest.raises(ConfigError, match=r"download is not done for part \(1 missing\): run `winnow download CONFIG` first"):
        outputs(storage, "download", ["part"])
