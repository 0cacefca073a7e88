"""Results of audit batches, as `winnow audit result` left them: read, checked again, and made into claims."""

from typing import Any

from winnow.errors import ShardError
from winnow.proof import exact_interval, upper_bound
from winnow.run_files import FilterUsed, read_json
from winnow.storage import Storage

FOLDER = "audits"
STATUSES = ("pass", "fail", "not measured", "stale")
FIELDS = (
    "honeypots",
    *("audit", "filter", "version", "status", "reasons", "claim", "estimate", "interval", "n", "found", "method", "confidence"),
    *("max_leak", "inputs", "command", "inspectors", "seed", "drawn_at"),
)


def audit_path(filter_name: str, batch: str) -> str:
    """Where the result of a batch stands in the workspace."""
    return f"{FOLDER}/{filter_name}/{batch}.json"


def gather_audits(storage: Storage, filters: list[FilterUsed]) -> list[dict[str, Any]]:
    """Every result that was taken, by time of its draw. One of another version of its filter than the decisions were made with is stale.

    Raises:
        ShardError: a file that is no result, or whose bound does not follow from its counts.
    """
    version_of = {used.name: used.version for used in filters}
    found = []
    for path in storage.walk(FOLDER):
        if not path.endswith(".json"):
            continue
        result = read_json(storage, path)
        if not isinstance(result, dict) or any(field not in result for field in FIELDS) or result["status"] not in STATUSES:
            raise ShardError(f"{storage.url}/{path} is no audit result. Remove it and run `winnow audit result` again.")
        _check(storage, path, result)
        if result["status"] in ("pass", "fail") and version_of.get(result["filter"]) != result["version"]:
            result |= {"status": "stale", "reasons": [f"the decisions were made with another version of {result['filter']} since"]}
        found.append(result)
    return sorted(found, key=lambda result: (result["filter"], result["drawn_at"], result["audit"]))


def recomputed_bound(result: dict[str, Any]) -> float:
    """The leak bound of a result from its counts, by this module's own arithmetic: of kept images drawn alike, by score or not."""
    seen, planted, confidence = result["honeypots"]["found"], result["honeypots"]["planted"], result["confidence"]
    if not result["n"]:
        return 1.0
    if not planted:
        return upper_bound(result["found"], result["n"], confidence)
    sensitivity = exact_interval(seen, planted, confidence).low
    return min(1.0, upper_bound(result["found"], result["n"], (1 + confidence) / 2) / sensitivity) if sensitivity else 1.0


def _check(storage: Storage, path: str, result: dict[str, Any]) -> None:
    bound = recomputed_bound(result)
    if abs(bound - result["interval"][1]) > 1e-9:
        raise ShardError(
            f"{storage.url}/{path}: its counts bound the leak at {bound:.6g}, it says {result['interval'][1]:.6g}. "
            "Remove it and run `winnow audit result` again."
        )
