"""metrics.jsonl: one line a logged step, and what it says about a training as a whole."""

import json
import os
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lines of a training's metrics.jsonl, in order of steps; none if there is no such file. A half line is passed over."""
    path = Path(folder) / FILE
    if not path.exists():
        return []
    return lines_of(path.read_text())


def lines_of(text: str) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a half line is passed over."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def cut_metrics(folder: str | os.PathLike[str], last_step: int) -> None:
    """Forgets lines after a step, so that a training that goes on from there does not tell it twice."""
    path = Path(folder) / FILE
    kept = [line for line in read_metrics(folder) if line["step"] <= last_step]
    temporary = path.with_suffix(".writing")
    temporary.write_text("".join(map(_line, kept)))
    os.replace(temporary, path)


def append_metrics(folder: str | os.PathLike[str], metrics: dict[str, Any]) -> None:
    with open(Path(folder) / FILE, "a") as stream:
        stream.write(_line(metrics))


def _line(metrics: dict[str, Any]) -> str:
    return json.dumps(metrics, sort_keys=True) + "\n"
