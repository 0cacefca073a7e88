"""Labels in the JSON of Label Studio: a task for each image, an annotation for each person's answer.

The labelling interface this fits has one choice: <Choices name="choice" toName="image"> with drop, keep and unsure.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filters.label_opinions import answer_of
from filters.label_records import Row
from winnow.errors import ConfigError

CHOICES = {"yes": "drop", "no": "keep", "unsure": "unsure"}
WORDS = {"drop": "yes", "yes": "yes", "1": "yes", "keep": "no", "no": "no", "0": "no", "unsure": "unsure"}
OURS = ("origin", "mode", "policy_version", "blur", "zoomed", "flagged", "early", "item_digest", "decided_at")
"""Kept in an annotation's `meta`, which Label Studio carries along."""


def write_label_studio(path: str, filter_name: str, rows: Sequence[Row], urls: Mapping[str, str]) -> None:
    """Writes answers as tasks that Label Studio imports. Raises OSError."""
    tasks: dict[str, dict[str, Any]] = {}
    for row in rows:
        data = {"uid": row.uid, "filter": filter_name} | ({"image": urls[row.uid]} if row.uid in urls else {})
        task = tasks.setdefault(row.uid, {"data": data, "annotations": []})
        task["annotations"].append(_annotation(row))
    Path(path).write_text(json.dumps(list(tasks.values()), indent=1) + "\n")


def _annotation(row: Row) -> dict[str, Any]:
    choice = CHOICES.get(answer_of(row))
    result = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
    return {
        "completed_by": {"email": row.person},
        "was_cancelled": choice is None,
        "result": [result] if choice else [],
        "lead_time": row.seconds,
        "created_at": row.created_at,
        "meta": {name: getattr(row, name) for name in OURS},
    }


def read_label_studio(path: str) -> tuple[str, list[dict[str, Any]]]:
    """What names the images ("uid" or "url"), and name, answer and person of every annotation.

    Raises:
        ConfigError: no such file, no Label Studio export, or a choice that is none of drop, keep and unsure.
    """
    try:
        tasks = json.loads(Path(path).read_text())
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{path} cannot be read as JSON: {problem}") from problem
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks):
        raise ConfigError(f"{path} is not what Label Studio exports: a list of tasks, each with 'data'")
    key = "uid" if all("uid" in task["data"] for task in tasks) else "url"
    field = "uid" if key == "uid" else "url" if all("url" in task["data"] for task in tasks) else "image"
    if not all(isinstance(task["data"].get(field), str) for task in tasks):
        raise ConfigError(f"{path}: not every task's data has a 'uid', a 'url' or an 'image' to know it by")
    return key, [_entry(task["data"][field], note, path) for task in tasks for note in task.get("annotations") or ()]


def _entry(name: str, note: Mapping[str, Any], path: str) -> dict[str, Any]:
    answer = _answer(name, note, path)
    entry = {"name": name, "answer": answer, "value": {"yes": 1, "no": 0}.get(answer), "person": _person(note.get("completed_by"))}
    meta = note.get("meta") if isinstance(note.get("meta"), dict) else {}
    entry |= {field: meta.get(field) for field in OURS} if meta else {}
    return entry | {"seconds": note.get("lead_time"), "created_at": note.get("created_at")}


def _answer(name: str, note: Mapping[str, Any], path: str) -> str:
    chosen = [
        choice
        for result in note.get("result") or ()
        if isinstance(result, dict) and result.get("type") == "choices"
        for choice in result.get("value", {}).get("choices", ())
    ]
    if note.get("was_cancelled") or not chosen:
        return "skip"
    if len(chosen) > 1 or str(chosen[0]).lower() not in WORDS:
        raise ConfigError(f"{path}: {name} has the choice {', '.join(map(str, chosen))}; one of drop, keep, unsure is needed")
    return WORDS[str(chosen[0]).lower()]


def _person(who: Any) -> str | None:
    """Label Studio names people by a number, or by an object with an email, depending on the export."""
    if isinstance(who, dict):
        who = who.get("email") or who.get("username") or who.get("id")
    return None if who is None else str(who)
