"""What dropping images did to the captions: words whose share fell or rose, and what weights make good of it.

A word's change is the share of captions with it among kept images by that among judged ones, less 1. Its interval comes from the ratio
r of two shares that are kept, of captions with the word and of those without it; with the word in a share f of captions, the change is
r / (f r + 1 - f) - 1. All intervals of a report hold together with a chance of 95 % (Bonferroni), so that of thousands of words none is
listed because it fell by chance.
"""

import math
from typing import Any

import numpy as np
from scipy.stats import norm

from winnow.storage import Storage
from winnow.tables import read_table
from winnow.weights import CLASSIFIER
from winnow.words import words_file

SHOWN = 14
CONFIDENCE = 0.95
MOST_WORDS = 2_000_000
"""Different words in memory. Of more, the rarest go: hostile captions may be nothing but new words."""
COLUMNS = ("judged", "unfiltered", "kept", "weighted")


def gather_words(storage: Storage, partitions: list[str]) -> dict[str, Any] | None:
    """Shares of words among judged and kept images, changed ones first; None if they were not counted."""
    there = set(storage.names("words"))
    if not partitions or any(f"{name}.parquet" not in there for name in partitions):
        return None
    counts, forgotten = merged(storage, partitions)
    totals = counts.pop(("all", ""), np.zeros(len(COLUMNS)))
    judged, kept = int(totals[0]), int(totals[2])
    at_least = max(8, judged // 1000, forgotten + 1)
    common = sorted(key for key, row in counts.items() if key[0] == "word" and row[0] >= at_least)
    groups = sorted(key for key in counts if key[0] == "group")
    z = float(norm.ppf(1 - (1 - CONFIDENCE) / 2 / max(1, len(common) + len(groups))))
    table = [_entry(key[1], counts[key], totals, z) for key in common] if kept else []
    fell = sorted((entry for entry in table if entry["high"] < 0), key=lambda entry: (entry["high"], entry["word"]))
    rose = sorted((entry for entry in table if entry["low"] > 0), key=lambda entry: (-entry["low"], entry["word"]))
    return {
        "captions": judged,
        "kept_captions": kept,
        "at_least": at_least,
        "tested": len(common),
        "confidence": CONFIDENCE,
        "undercount": forgotten,
        "num_fell": len(fell),
        "num_rose": len(rose),
        "fell": fell[:SHOWN],
        "rose": rose[: SHOWN // 2],
        "groups": [_entry(key[1], counts[key], totals, z) for key in groups] if kept else [],
        "weighted": _weighted(counts, totals, common) if storage.exists(CLASSIFIER) and kept else None,
    }


def merged(storage: Storage, partitions: list[str]) -> tuple[dict[tuple[str, str], np.ndarray], int]:
    """(kind, word) -> counts of COLUMNS over all partitions; and by how many captions a rare word may be counted too few.

    Memory is bounded by lossy counting (Manku and Motwani, 2002): whenever there are too many words, those go whose count, with what
    may have been lost before they were met, is at most the number of times that this happened. No word in more captions is lost.
    """
    found: dict[tuple[str, str], np.ndarray] = {}
    before_met: dict[tuple[str, str], int] = {}
    forgotten = 0
    for partition in partitions:
        table = read_table(storage, words_file(partition))
        values = np.stack([table[column].to_numpy().astype(np.float64) for column in COLUMNS], axis=1)
        for kind, word, row in zip(table["kind"].to_pylist(), table["word"].to_pylist(), values, strict=True):
            before = found.get((kind, word))
            found[kind, word] = row if before is None else before + row
            if before is None and forgotten:
                before_met[kind, word] = forgotten
        while len(found) > MOST_WORDS:
            forgotten += 1
            found = {key: row for key, row in found.items() if key[0] != "word" or row[0] + before_met.get(key, 0) > forgotten}
            before_met = {key: lost for key, lost in before_met.items() if key in found}
    return found, forgotten


def change(a: float, b: float, kept: float, judged: float, z: float) -> tuple[float, float, float]:
    """Change of a word's share with its interval.

    Args:
        a, b: captions with the word, among kept and among judged ones; a <= b.
        kept, judged: all captions.
        z: half width of the interval in standard deviations.
    """
    if b in (0, judged) or not kept:
        return 0.0, 0.0, 0.0  # a word of no caption, or of every one, has the same share before and after
    f, rest = b / judged, judged - b
    low, high = ratio_interval(a, b, kept - a, rest, z)

    def of(r: float) -> float:
        return 1 / f - 1 if math.isinf(r) else r / (f * r + 1 - f) - 1

    return (a / kept) / f - 1, of(low), of(high)


def ratio_interval(a: float, n: float, c: float, m: float, z: float) -> tuple[float, float]:
    """Interval of (a / n) / (c / m), two shares of different images: MOVER-R (Donner and Zou 2012) on Wilson's intervals of each.

    Unlike the logarithm's, it is narrow where a share is zero: that a word of 30 captions is gone is no chance.
    """
    p, q = a / n, c / m
    (p_low, p_high), (q_low, q_high) = _wilson(a, n, z), _wilson(c, m, z)
    both = (p * q) ** 2
    low = p * q - math.sqrt(max(0.0, both - p_low * q_high * (2 * p - p_low) * (2 * q - q_high)))
    high = p * q + math.sqrt(max(0.0, both - p_high * q_low * (2 * p - p_high) * (2 * q - q_low)))
    below, above = q_high * (2 * q - q_high), q_low * (2 * q - q_low)
    # Where the second share may be 0 the ratio has no upper end; where it is 0 the formula's lower end is lost, too.
    return max(0.0, low / below) if below > 0 else 0.0, high / above if above > 0 else math.inf


def _wilson(hits: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share; exactly 0 or 1 at its ends where all or none are hits."""
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(hits * (n - hits) / n + z**2 / 4)
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half


def _entry(word: str, row: np.ndarray, totals: np.ndarray, z: float) -> dict[str, Any]:
    middle, low, high = change(row[2], row[0], totals[2], totals[0], z)
    return {
        "word": word,
        "before": float(row[0] / totals[0]),
        "after": float(row[2] / totals[2]),
        "change": middle,
        "low": low,
        "high": high,
        "count": int(row[0]),
    }


def _weighted(counts: dict[tuple[str, str], np.ndarray], totals: np.ndarray, common: list[tuple[str, str]]) -> dict[str, Any] | None:
    """How far words of kept captions are from those before filtering, without weights and with them.

    The distance is the mean of |log (share kept / share before)| over words, each as often as it stood before: 0.1 is "a tenth off".
    Words of no kept caption are counted apart: no weight brings them back.
    """
    if not totals[1] or not totals[3]:
        return None
    listed = [key for key in common if counts[key][1] > 0]
    words = [key[1] for key in listed if counts[key][3] > 0]
    if not words:
        return None
    rows = np.stack([counts["word", word] for word in words])
    before, kept, weighted = (np.log(rows[:, column] / totals[column]) for column in (1, 2, 3))
    often = rows[:, 1] / rows[:, 1].sum()
    furthest = sorted(range(len(words)), key=lambda number: (-abs(kept[number] - before[number]), words[number]))[: SHOWN // 2]
    return {
        "words": len(words),
        "gone": len(listed) - len(words),
        "distance_kept": float((often * np.abs(kept - before)).sum()),
        "distance_weighted": float((often * np.abs(weighted - before)).sum()),
        "furthest": [
            {
                "word": words[number],
                "before": float(rows[number, 1] / totals[1]),
                "kept": float(rows[number, 2] / totals[2]),
                "weighted": float(rows[number, 3] / totals[3]),
            }
            for number in furthest
        ],
    }
