"""What became of each source's pairs: a source that loses most of its images deserves a look."""

from collections import Counter
from typing import Any

from winnow.run_files import rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.workspace import decisions, manifest_part


def gather_sources(storage: Storage, partitions: list[str]) -> list[dict[str, Any]]:
    """Pairs of each source by verdict, sorted by name. One partition is in memory at a time."""
    counts: Counter[tuple[str, str]] = Counter()
    for partition in partitions:
        listed = rows(read_table(storage, manifest_part(partition), ["uid", "source"]))
        source = {row["uid"]: row["source"] or "not named" for row in listed}
        for row in rows(read_table(storage, decisions(partition), ["uid", "verdict"])):
            if row["uid"] in source:  # one that is not listed is a breach of conservation, named there
                counts[source[row["uid"]], row["verdict"]] += 1
    return [
        {"name": name, **{verdict: counts[name, verdict] for verdict in ("failed", "dropped", "kept")}}
        for name in sorted({name for name, _ in counts})
    ]
