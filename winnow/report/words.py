"""What filtering did to the captions: words whose share fell or rose most. A filter that drops swords also drops knights."""

import re
from collections import Counter
from typing import Any

from winnow.run_files import rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, manifest_part

MAX_CAPTIONS = 1_000_000
"""Of larger runs a uniform sample is read: uids are hashes, so those below a mark are one."""
SHOWN = 14
WORD = re.compile(r"[^\W\d_]{3,40}")


def gather_words(storage: Storage, partitions: list[str], judged: int) -> dict[str, Any]:
    """Share of captions with a word among all judged images and among kept ones.

    Args:
        judged: images with a verdict other than failed.
    """
    share = min(1.0, MAX_CAPTIONS / max(judged, 1))
    mark = f"{int(share * 16**8):08x}" if share < 1 else "g"  # above every hex digit
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    num_before = num_after = 0
    for partition in partitions:
        verdicts = {
            row["uid"]: row["verdict"] == "kept"
            for row in rows(read_table(storage, decisions(partition), ["uid", "verdict"]))
            if row["verdict"] != "failed" and row["uid"] < mark
        }
        for row in rows(read_table(storage, manifest_part(partition), ["uid", "caption"])):
            kept = verdicts.get(row["uid"])
            if kept is None:
                continue
            words = set(WORD.findall((row["caption"] or "").casefold()))
            before.update(words)
            num_before += 1
            if kept:
                after.update(words)
                num_after += 1
    at_least = max(8, num_before // 1000)
    table: list[dict[str, Any]] = []
    for word, count in before.items():
        if count >= at_least and num_after:
            was, now = count / num_before, after[word] / num_after
            table.append({"word": word, "before": was, "after": now, "change": now / was - 1, "count": count})
    table.sort(key=lambda entry: (entry["change"], entry["word"]))
    rising = [entry for entry in reversed(table) if entry["change"] > 0.02]
    return {
        "captions": num_before,
        "kept_captions": num_after,
        "sampled": share,
        "at_least": at_least,
        "fell": [entry for entry in table if entry["change"] < -0.02][:SHOWN],
        "rose": rising[: SHOWN // 2],
    }
