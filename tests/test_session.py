"""How long a run waits for a workspace that another one holds."""

import pytest
from click.testing import CliRunner

from flows.cli import cli
from tasks.session import wait_seconds
from winnow.errors import ConfigError


def test_a_run_does_not_wait_unless_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINNOW_WAIT_SECONDS", raising=False)
    assert wait_seconds() == 0
    monkeypatch.setenv("WINNOW_WAIT_SECONDS", "90.5")
    assert wait_seconds() == 90.5


@pytest.mark.parametrize("text", ["-1", "soon", "", "inf", "nan"])
def test_what_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WINNOW_WAIT_SECONDS", text)
    with pytest.raises(ConfigError, match=rf"WINNOW_WAIT_SECONDS must be a number of seconds, 0 or more, got '{text}'"):
        wait_seconds()


def test_the_command_line_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_WAIT_SECONDS", "0")  # restored afterwards, whatever the command sets
    assert CliRunner().invoke(cli, ["--wait", "30", "config", "no-such-file.yaml"]).exit_code != 0
    assert wait_seconds() == 30
