"""What a verification finds: each difference with the file it is in."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from winnow.errors import WinnowError

MAX_PER_FILE = 5
"""Rows of one file and check that are named one by one; further ones are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is not as the run says."""

    check: str
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(kw_only=True)
class Ledger:
    """Findings, and how much was looked at. `checked` counts per check, so that "nothing found" can be told from "nothing looked at"."""

    findings: list[Finding] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    more: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, check: str, file: str, what: str) -> None:
        known = sum(found.check == check and found.file == file for found in self.findings[-2 * MAX_PER_FILE :])
        if known >= MAX_PER_FILE:
            self.more[check, file] += 1
        else:
            self.findings.append(Finding(check=check, file=file, what=what))

    def count(self, check: str, number: int = 1) -> None:
        self.checked[check] += number

    @contextlib.contextmanager
    def reading(self, check: str, file: str) -> Iterator[None]:
        """A file that is missing, damaged or lacks what it must have is a finding, and the verification goes on."""
        try:
            yield
        except FileNotFoundError as problem:
            self.add(check, file, f"cannot be checked: {problem.filename or problem} is missing")
        except WinnowError as problem:
            self.add(check, file, f"cannot be checked: {problem}")
        except (LookupError, TypeError, ValueError, AttributeError, pa.ArrowException) as problem:
            # What damaged content does to code that expects it whole; the difference is reported either way.
            self.add(check, file, f"cannot be checked: it is not laid out as it must be ({type(problem).__name__}: {problem})")

    def settled(self) -> list[Finding]:
        """All findings, with a line for those that were only counted."""
        rest = [Finding(check=check, file=file, what=f"and {count:,} more like this") for (check, file), count in sorted(self.more.items())]
        return self.findings + rest
