"""Do the report and the summary of closest pairs say what the files say?"""

from collections.abc import Iterator
from typing import Any

from winnow.audit import summarise
from winnow.findings import Ledger
from winnow.report.models import gather_regurgitation
from winnow.run_files import SUMMARY, read_json
from winnow.storage import Storage
from winnow.workspace import REPORT

REGURGITATION = "regurgitation/summary.json"


def check_report(storage: Storage, ledger: Ledger) -> None:
    """Gathers every number of the report again and compares it with report/summary.json."""
    if not storage.exists(SUMMARY):
        return
    if not storage.exists(REPORT):
        ledger.add("report", REPORT, "is missing, though its summary is there")
    with ledger.reading("report", SUMMARY):
        written = read_json(storage, SUMMARY)
        ledger.count("report", sum(1 for _ in _leaves(written)))
        # Through JSON's own types: what was written has no tuples.
        # Audits whose results came after the report are no fault of it.
        now = summarise(storage, only_audits=[entry["audit"] for entry in written.get("audits", [])])
        for place, said, found in _differences(written, now, ""):
            ledger.add("report", SUMMARY, f"{place} is {said!r}, the files say {found!r}")


def check_regurgitation(storage: Storage, ledger: Ledger) -> None:
    if not storage.exists(REGURGITATION):
        return
    with ledger.reading("regurgitation", REGURGITATION):
        written, found = read_json(storage, REGURGITATION), gather_regurgitation(storage)
        assert found is not None, "the summary exists"
        ledger.count("regurgitation", found["pairs"])
        named = {
            "num_prompts": "pairs",
            "closest_own": "closest_own",
            "closest_nearest": "closest_nearest",
            "own_is_nearest": "own_is_nearest",
        }
        for key, ours in named.items():
            said, due = written[key], found[ours]
            if said is None or due is None or abs(said - due) > 1e-5:
                ledger.add("regurgitation", REGURGITATION, f"{key} is {said!r}, the pairs say {due!r}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _differences(said: Any, found: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(said, dict) and isinstance(found, dict):
        for key in sorted(said.keys() | found.keys()):
            yield from _differences(said.get(key), found.get(key), f"{place}.{key}" if place else str(key))
    elif isinstance(said, list) and isinstance(found, list | tuple) and len(said) == len(found):
        for index, (one, other) in enumerate(zip(said, found, strict=True)):
            yield from _differences(one, other, f"{place}[{index}]")
    elif isinstance(said, float) and isinstance(found, float):
        if abs(said - found) > 1e-9 * max(1.0, abs(found)):
            yield place, said, found
    elif said != found:
        yield place, _brief(said), _brief(found)


def _brief(value: Any) -> Any:
    """A short list as it is: of two lists of one length it is the entries that differ."""
    long = isinstance(value, dict) or (isinstance(value, list | tuple) and len(value) > 6)
    return f"{len(value)} entries" if long else value
