"""What each filter promises, what its labels say, what it dropped and what that cost."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from winnow.certificates import Certificate, read_certificate, read_labels, recompute
from winnow.decisions import COARSE, score_column
from winnow.proof import Interval, exact_interval
from winnow.receipts import FOLDER, read_receipts
from winnow.run_files import FilterUsed, read_json
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions

BINS = 56


def gather_filter(storage: Storage, used: FilterUsed, partitions: Iterable[str], counts: dict[str, Any]) -> dict[str, Any]:
    """Everything the report says about one filter.

    Args:
        counts: of `gather_counts`.
    """
    certificate = read_certificate(storage, used)
    labels = read_labels(storage, used)
    found = recompute(certificate, labels)
    # A k-fold certificate is an estimate: its own sentence says so, and no claim may rest on it.
    kind = read_json(storage, used.certificate_path).get("certificate", "held_out")
    table = labels.select(["value", "origin", "split", "score"]).to_pydict()
    by_origin = Counter(zip(table["origin"], table["split"], table["value"], strict=True))
    edges = _edges(storage, used, partitions, [score for score in table["score"] if score is not None])
    apart = [
        (score, value)
        for score, value, split in zip(table["score"], table["value"], table["split"], strict=True)
        if split in ("calibrate", "test") and score is not None
    ]
    random = [value for value, origin in zip(table["value"], table["origin"], strict=True) if origin == "random"]
    prevalence = exact_interval(sum(random), len(random))
    dropped = counts["dropped_by_filter"].get(used.name, 0)
    alone = counts["dropped_by_reasons"].get(used.name, 0)
    return {
        "name": used.name,
        "title": certificate.title,
        "blurred": is_blurred(storage, used),
        "version": used.version,
        "policy": certificate.policy,
        "scope": certificate.scope,
        "sentence": certificate.sentence,
        "does_not_cover": certificate.does_not_cover,
        "max_miss_rate": certificate.max_miss_rate,
        "confidence": certificate.confidence,
        "num_positives": certificate.num_positives,
        "rank": certificate.rank,
        "threshold": used.threshold,
        "kind": kind,
        "proven": kind == "held_out" and found.threshold is not None and found.threshold == certificate.threshold == used.threshold,
        "labels": [
            {"origin": origin, "split": split, "value": value, "count": count}
            for (origin, split, value), count in sorted(by_origin.items(), key=lambda item: tuple(map(str, item[0])))
        ],
        "num_labels": labels.num_rows,
        "prevalence": plain(prevalence),
        "left": _left(certificate, prevalence, counts),
        "test_misses": plain(found.test_misses),
        "test_clean_dropped": plain(found.test_clean_dropped),
        "dropped": dropped,
        "dropped_alone": alone,
        "dropped_share": plain(exact_interval(dropped, counts["embedded"])),
        "edges": [round(float(edge), 6) for edge in edges],
        "histogram": _histogram(storage, used, partitions, edges),
        "labelled_positive": _counts([score for score, value in apart if value == 1], edges),
        "labelled_negative": _counts([score for score, value in apart if value == 0], edges),
    }


def is_blurred(storage: Storage, used: FilterUsed) -> bool:
    """Whether images of this filter are shown only after a click: what its catalogue entry said when it was fitted, yes if unknown."""
    stages = sorted({path.split("/")[1] for path in storage.walk(FOLDER)})
    for stage in stages:
        if stage.startswith("fit"):
            for receipt in read_receipts(storage, stage, [used.name]):
                if used.certificate_path in receipt.outputs:
                    return bool(receipt.arguments.get("spec", {}).get("blurred", True))
    return True


def plain(interval: Interval) -> dict[str, Any]:
    return {"hits": interval.hits, "n": interval.n, "share": interval.share, "low": interval.low, "high": interval.high}


def _left(certificate: Certificate, prevalence: Interval, counts: dict[str, Any]) -> dict[str, float] | None:
    """Upper bound of the share of kept images that should have been dropped; None where the labels do not speak of the data.

    Missed images are at most `max_miss_rate` of the positives, and positives at most `prevalence.high` of what was judged. Both hold
    together with the chances of error added up: one tail of the prevalence's interval (2.5 %) and that of the certificate.
    """
    if certificate.scope != "population" or not prevalence.n or not counts["kept"]:
        return None
    share = min(1.0, certificate.max_miss_rate * prevalence.high * counts["embedded"] / counts["kept"])
    return {"at_most": share, "confidence": certificate.confidence - 0.025}


def _scores(storage: Storage, used: FilterUsed, partition: str) -> np.ndarray:
    column = read_table(storage, decisions(partition), [score_column(used.name)])[score_column(used.name)]
    scores: np.ndarray = column.drop_null().to_numpy()
    return scores[np.isfinite(scores)]


def _edges(storage: Storage, used: FilterUsed, partitions: Iterable[str], labelled: list[float]) -> np.ndarray:
    """Bin edges over all scores, one of them at the threshold, so that no bar is on both sides of it."""
    low, high = min([used.threshold, *labelled]), max([used.threshold, *labelled])
    for partition in partitions:
        scores = _scores(storage, used, partition)
        if scores.size:
            low, high = min(low, float(scores.min())), max(high, float(scores.max()))
    # Whole cells of the log: narrower bars would be full where a cell begins and empty elsewhere.
    width = COARSE * max(1.0, np.ceil((high - low) / BINS / COARSE))
    before, after = int(np.ceil((used.threshold - low) / width)), int(np.floor((high - used.threshold) / width)) + 1
    return used.threshold + width * np.arange(-before, after + 1)


def _histogram(storage: Storage, used: FilterUsed, partitions: Iterable[str], edges: np.ndarray) -> list[int]:
    total = np.zeros(len(edges) - 1, np.int64)
    for partition in partitions:
        total += np.array(_counts(_scores(storage, used, partition), edges))
    return [int(count) for count in total]


def _counts(scores: Iterable[float], edges: np.ndarray) -> list[int]:
    values = np.asarray(list(scores) if not isinstance(scores, np.ndarray) else scores, np.float64)
    # The edges are computed, so an extreme score can lie a rounding error outside: it belongs to the outermost bar.
    return [int(count) for count in np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]]
