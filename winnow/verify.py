"""Recomputes what a run claims from its files: digests, the conservation law, verdicts, thresholds, the report's numbers.

Nothing of the code that made the run is asked: the arithmetic of certificates and scores is written a second time here
(winnow/proof.py, winnow/verify_verdicts.py, winnow/rule_values.py). One partition is in memory at a time.

Not covered: that the images are those the urls gave, that labels are right, that trained weights come from the data they name.
"""

from collections.abc import Callable
from dataclasses import dataclass

from winnow.conservation import examine
from winnow.findings import Finding, Ledger
from winnow.progress import Progress
from winnow.run_files import datasets, partitions
from winnow.storage import Storage
from winnow.verify_duplicates import check_duplicates
from winnow.verify_forgotten import check_forgotten
from winnow.verify_receipts import check_indexes, check_lineage, check_receipts, check_strays
from winnow.verify_report import check_regurgitation, check_report
from winnow.verify_verdicts import check_certificates, check_verdicts
from winnow.verify_weights import check_weights
from winnow.verify_words import check_words

CHECKS = {
    "receipts": "every output has the digest its receipt names",
    "strays": "every file has a receipt",
    "lineage": "every stage was made from what the stage before it left",
    "indexes": "index files agree with what they list",
    "conservation": "listed = failed + dropped + kept, each uid once",
    "forgotten": "what was forgotten is nowhere, and every other uid is the hash of its url and caption",
    "certificates": "thresholds follow from the labels, scores of labels from the machines",
    "verdicts": "verdicts follow from scores and thresholds, scores from features (a sample)",
    "weights": "weights of samples follow from features, classifier and duplicates, and shards carry them",
    "words": "words of captions are counted right",
    "duplicates": "groups, choices and weights recounted; some pairs measured again from features and hashes",
    "regurgitation": "the summary of closest pairs follows from the pairs",
    "report": "the report's numbers equal the recomputed ones",
}
"""In the order in which they run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    findings: tuple[Finding, ...]
    checked: dict[str, int]
    """Check -> how many files or rows it looked at."""

    @property
    def ok(self) -> bool:
        return not self.findings


def verify(storage: Storage) -> Verification:
    """Looks at everything, goes on after a difference, and returns all of them.

    Raises:
        WinnowError: this is no workspace of a run.
    """
    names = partitions(storage)
    ledger = Ledger()
    digests = check_receipts(storage, ledger)
    num_shards = _num_shards(storage, ledger)
    steps: dict[str, Callable[[Progress], None]] = {
        "strays": lambda progress: check_strays(storage, names, digests, ledger),
        "lineage": lambda progress: check_lineage(storage, names, ledger, progress),
        "indexes": lambda progress: check_indexes(storage, digests, ledger),
        "conservation": lambda progress: _conservation(storage, ledger, progress),
        "forgotten": lambda progress: check_forgotten(storage, names, ledger, progress),
        "certificates": lambda progress: check_certificates(storage, ledger),
        "verdicts": lambda progress: check_verdicts(storage, names, ledger, progress),
        "weights": lambda progress: check_weights(storage, names, ledger, progress),
        "words": lambda progress: check_words(storage, names, ledger, progress),
        "duplicates": lambda progress: check_duplicates(storage, names, ledger, progress),
        "regurgitation": lambda progress: check_regurgitation(storage, ledger),
        "report": lambda progress: check_report(storage, ledger),
    }
    totals = {
        "lineage": len(names),
        "forgotten": len(names),
        "conservation": len(names) + num_shards,
        "verdicts": len(names),
        "duplicates": len(names),
    }
    totals |= {"weights": len(names), "words": len(names)}
    for check, step in steps.items():
        with Progress(f"verify {check}", total=totals.get(check, 1), unit="parts") as progress, ledger.reading(check, check):
            step(progress)
            if check not in totals:
                progress.advance()
    return Verification(findings=tuple(ledger.settled()), checked={check: ledger.checked[check] for check in CHECKS})


def render(result: Verification) -> str:
    """The result for a terminal: each check with what it looked at, then every difference."""
    width = max(map(len, CHECKS))
    counts = {check: sum(found.check == check for found in result.findings) for check in CHECKS}
    lines = []
    for check, text in CHECKS.items():
        looked = f"{result.checked[check]:,} checked" if result.checked[check] else "nothing to check"
        state = "FAILED" if counts[check] else "ok" if result.checked[check] else "-"
        lines.append(f"{state:<6}  {check:<{width}}  {looked:<18}  {text}")
    if result.findings:
        lines += ["", f"{len(result.findings):,} differences:"] + [f"  {found}" for found in result.findings]
    else:
        lines += ["", "Nothing differs: the files are what the receipts, the certificates and the report say."]
    return "\n".join(lines)


def _conservation(storage: Storage, ledger: Ledger, progress: Progress) -> None:
    found, breaches = examine(storage, progress)
    ledger.count("conservation", found.listed)
    for breach in breaches:
        uids = f" ({', '.join(breach.uids)})" if breach.uids else ""
        ledger.add("conservation", breach.file, breach.what + uids)


def _num_shards(storage: Storage, ledger: Ledger) -> int:
    count = 0
    with ledger.reading("indexes", "shards"):
        count = sum(len(index["shards"]) for index in datasets(storage).values())
    return count
