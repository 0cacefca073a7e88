"""Are the counts of words those of the captions? Counted again, plainly."""

from collections import defaultdict
from collections.abc import Sequence

from winnow.findings import Ledger
from winnow.forgotten import SLUGS
from winnow.progress import Progress
from winnow.receipts import list_done, read_receipt
from winnow.run_files import filters_used, rows
from winnow.storage import Storage
from winnow.tables import read_table
from winnow.weights import weights_file
from winnow.words import below_mark, words_file, words_of
from winnow.workspace import decisions, manifest_part

CLOSE = 1e-6


def check_words(storage: Storage, partitions: Sequence[str], ledger: Ledger, progress: Progress) -> None:
    """Every partition whose words were counted."""
    done = {entry.partition: entry for entry in list_done(storage, "words")}
    decided = {entry.partition: entry.output for entry in list_done(storage, "score")}
    for partition in partitions:
        if partition in done:
            path = words_file(partition)
            with ledger.reading("words", path):
                receipt = read_receipt(storage, "words", done[partition])
                if "decisions" in receipt.inputs and receipt.inputs["decisions"] != decided.get(partition):
                    ledger.add("words", path, "was counted for other decisions than are there: run words again")
                settings = receipt.arguments
                groups = {name: set(words) for name, words in settings["groups"].items()}
                _check_partition(storage, partition, groups, settings["halvings"], settings["weighted"], ledger)
        progress.advance()


def _check_partition(storage: Storage, partition: str, groups: dict[str, set[str]], halvings: int, weighted: bool, ledger: Ledger) -> None:
    names = {used.name for used in filters_used(storage)}
    captions = {row["uid"]: row["caption"] for row in rows(read_table(storage, manifest_part(partition), ["uid", "caption"]))}
    weights: dict[str, float] = {}
    if weighted:
        weights = {row["uid"]: row["weight"] for row in rows(read_table(storage, weights_file(partition), ["uid", "weight"]))}
    due: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    for row in rows(read_table(storage, decisions(partition), ["uid", "verdict", "reasons"])):
        reasons = set(row["reasons"] or [])
        if row["verdict"] == "failed" or reasons & set(SLUGS) or not below_mark(row["uid"], halvings):
            continue
        words = words_of(captions[row["uid"]])
        kept = row["verdict"] == "kept"
        for key in [("all", ""), *(("word", word) for word in words), *(("group", name) for name in groups if groups[name] & words)]:
            count = due[key]
            count[0] += 1
            count[1] += reasons <= names
            count[2] += kept
            count[3] += (weights[row["uid"]] if weighted else 1.0) if kept else 0.0
    said = {
        (row["kind"], row["word"]): [row["judged"], row["unfiltered"], row["kept"], row["weighted"]]
        for row in rows(read_table(storage, words_file(partition)))
    }
    ledger.count("words", len(due))
    for key in sorted(due.keys() | said.keys()):
        one, other = said.get(key, [0, 0, 0, 0.0]), due.get(key, [0, 0, 0, 0.0])
        if one[:3] != other[:3] or abs(one[3] - other[3]) > CLOSE * max(1.0, other[3]):
            ledger.add("words", words_file(partition), f"counts {one} for {key[1] or 'all captions'!r}, the captions give {other}")
