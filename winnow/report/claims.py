"""What the report claims, each with status, number, interval, n and method. What was not measured stands there, too."""

from typing import Any

from winnow.conservation import Breach

PASS, FAIL, NOT_MEASURED = "pass", "fail", "not measured"
MAX_CLEAN_LOST = 0.3
"""A filter that drops more of the clean images costs more than its promise is worth."""


def claim(text: str, status: str, value: str, n: int | None, method: str) -> dict[str, Any]:
    return {"claim": text, "status": status, "value": value, "n": n, "method": method}


def percent(share: float | None, digits: int = 1) -> str:
    return "—" if share is None else f"{share * 100:.{digits}f}\u00a0%"  # no line break before the sign


def interval_text(found: dict[str, Any]) -> str:
    if not found["n"]:
        return "no labels"
    between = f"{percent(found['low'])} to {percent(found['high'])}"
    return f"{percent(found['share'])} ({found['hits']:,} of {found['n']:,}; 95\u00a0% interval {between})"


def gather_claims(summary: dict[str, Any], breaches: list[Breach]) -> list[dict[str, Any]]:
    """All claims, in the order in which a reader asks."""
    counts = summary["counts"]
    found = [
        claim(
            "Every listed pair ends in exactly one place: failed, dropped or kept in a shard.",
            FAIL if breaches else PASS,
            f"{len(breaches):,} breaches, first: {breaches[0]}"
            if breaches
            else f"{counts['listed']:,} of {counts['listed']:,} accounted for",
            counts["listed"],
            "uids of manifest, decision log, shard tables and tar members compared one by one",
        )
    ]
    for entry in summary["filters"]:
        found += _filter_claims(entry)
    if summary["filters"]:
        joint = max(0.0, 1 - sum(1 - entry["confidence"] for entry in summary["filters"]))
        found.append(
            claim(
                "All filters keep their promises at once.",
                PASS if all(entry["proven"] for entry in summary["filters"]) else FAIL,
                f"joint confidence at least {percent(joint, 0)}",
                len(summary["filters"]),
                "chances of error added up (Bonferroni)",
            )
        )
    else:
        found.append(claim("Filters keep a promised miss rate.", NOT_MEASURED, "no filter has decided anything yet", None, "—"))
    found += _audit_claims(summary) + _unmeasured_audits()
    found += _model_claims(summary)
    return found


def _filter_claims(entry: dict[str, Any]) -> list[dict[str, Any]]:
    name, misses = entry["title"], entry["test_misses"]
    if not misses["n"]:
        test = claim(f"{name}: labels kept apart agree with the promise.", NOT_MEASURED, "no labels were kept apart for testing", 0, "—")
    else:
        # Contradicted only when the whole interval lies above the promise: a small test cannot prove it a second time.
        status = FAIL if misses["low"] > entry["max_miss_rate"] else PASS
        method = "share missed among labels never used before; fails if the whole interval lies above the promise"
        test = claim(f"{name}: labels kept apart agree with the promise.", status, interval_text(misses), misses["n"], method)
    clean = entry["test_clean_dropped"]
    text = f"{name}: at most {percent(MAX_CLEAN_LOST, 0)} of clean images are lost."
    if not clean["n"]:
        cost = claim(text, NOT_MEASURED, "no clean labels were kept apart for testing", 0, "—")
    else:
        status = PASS if clean["share"] <= MAX_CLEAN_LOST else FAIL
        cost = claim(text, status, interval_text(clean), clean["n"], "share dropped among clean labels never used before")
    return [
        claim(
            f"{name}: at most {percent(entry['max_miss_rate'], 2)} of what must be dropped is missed ({entry['scope']}).",
            PASS if entry["proven"] else FAIL,
            f"threshold {entry['threshold']:.6g}, rank {entry['rank']} of {entry['num_positives']:,}; "
            f"confidence {percent(entry['confidence'], 0)}",
            entry["num_positives"],
            f"order statistic of calibration scores, recomputed from filters/{entry['name']}/{entry['version']}/labels.parquet",
        ),
        test,
        cost,
    ]


def _audit_claims(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One for each audit batch whose result was taken; if there is none, that nobody looked."""
    titles = {entry["name"]: entry["title"] for entry in summary["filters"]}
    found = []
    for entry in summary["audits"]:
        name, limit = titles.get(entry["filter"], entry["filter"]), percent(entry["max_leak"], 2)
        text = f"{name}: at most {limit} of the kept images should have been dropped, by people who inspected some."
        bound = f"at most {percent(entry['interval'][1], 3)} ({percent(entry['confidence'], 0)})"
        # Answers that are not complete bound nothing.
        numbers = [] if entry["status"] == NOT_MEASURED else [f"{entry['found']:,} found", bound]
        value = "; ".join([*numbers, *entry["reasons"]])
        found.append(claim(text, entry["status"], value, entry["n"], f"audits/{entry['filter']}/{entry['audit']}.json: {entry['method']}"))
    return found or [
        claim("People inspected a random draw of kept images and found nothing that should have been dropped.", NOT_MEASURED,
              "no audit batch was inspected", 0, "1,024 kept images with hidden known positives mixed in"),
    ]  # fmt: skip


def _unmeasured_audits() -> list[dict[str, Any]]:
    return [
        claim("Kept captions are free of hateful text.", NOT_MEASURED, "captions are not judged; only images are", 0, "—"),
        claim("No kept image is on a list of known illegal material.", NOT_MEASURED, "no hash list was used", 0, "—"),
    ]  # fmt: skip


def _model_claims(summary: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for entry in summary["training"]:
        if entry["final_loss"] is None:
            found.append(claim(f"Training of {entry['model']} lowered its loss.", NOT_MEASURED, "no step was logged", 0, "—"))
            continue
        value = f"{entry['first_loss']:.4f} → {entry['final_loss']:.4f} over {entry['steps']:,} steps"
        status = PASS if entry["final_loss"] < entry["first_loss"] else FAIL
        found.append(
            claim(
                f"Training of {entry['model']} lowered its loss.",
                status,
                value,
                entry["logged"],
                "means of the first and the last tenth of logged steps",
            )
        )
    if not summary["training"]:
        found.append(claim("A model was trained on the kept images.", NOT_MEASURED, "training has not run", None, "—"))
    near = summary["regurgitation"]
    if near is None:
        found.append(claim("Samples were compared with training images.", NOT_MEASURED, "the comparison has not run", None, "—"))
    else:
        value = f"closest to its own training image {near['closest_own']:.3f}, to any kept image {near['closest_nearest']:.3f}"
        found.append(
            claim(
                "Samples were compared with training images.",
                PASS,
                value,
                near["pairs"],
                "cosine distance of CLIP features, exact search over all kept images",
            )
        )
    found.append(
        claim(
            "No sample repeats a training image.",
            NOT_MEASURED,
            "no person has judged the closest pairs",
            0,
            "verdicts of people on the closest pairs",
        )
    )
    return found
