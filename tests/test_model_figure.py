"""The figure of the models is the one that its program draws, and names files that are there."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_figure_is_up_to_date_with_the_catalogue():
    spec = importlib.util.spec_from_file_location("model_figure", ROOT / "docs" / "model_figure.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.draw() == (ROOT / "docs" / "model.svg").read_text(encoding="utf-8"), "run: python docs/model_figure.py"


def test_every_file_in_the_figure_is_there():
    ET.parse(ROOT / "docs" / "model.svg")
    files = set(re.findall(r">(models/\w+\.py)<", (ROOT / "docs" / "model.svg").read_text(encoding="utf-8")))
    assert len(files) >= 15
    assert not [file for file in files if not (ROOT / file).exists()]
