"""Progress of anything long: a live line on a terminal, one line a minute without one. The end of a stage is told by who ran it."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

CLEAR_LINE = "\r\x1b[2K"


class Progress:
    """Counts finished things and says so. `with Progress("embed", total=25) as progress: progress.advance(rows=10_000)`."""

    def __init__(self, title: str, *, total: int, unit: str = "partitions", done: int = 0, stream: TextIO | None = None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.failed, self.skipped = 0, 0, done
        self.counts: dict[str, int] = {}
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._every = 0.2 if self._live else 60.0
        self._began = self._told = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def advance(self, counts: Mapping[str, int] | None = None, *, failed: bool = False) -> None:
        if failed:
            self.failed += 1
        else:
            self.done += 1
        for name, value in (counts or {}).items():
            self.counts[name] = self.counts.get(name, 0) + value
        self.tick()

    def tick(self) -> None:
        """Tells how far it is, if it is time to. Called while waiting, too, so that silence means a hang."""
        if time.monotonic() - self._told >= self._every:
            self._say()

    def line(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        parts = [f"{self.title}: {self.done + self.skipped} of {self.total} {self.unit}"]
        if self.skipped:
            parts.append(f"{self.skipped} up to date")
        if self.failed:
            parts.append(f"{self.failed} failed")
        parts += [f"{value:,} {name.replace('_', ' ')}" for name, value in self.counts.items() if value]
        rows = max(self.counts.values(), default=0)
        if rows:
            parts.append(f"{rows / seconds:,.0f}/s")
        if self.done:
            parts.append(f"{seconds:.1f} s")
        return ", ".join(parts)

    def _say(self) -> None:
        self._told = time.monotonic()
        if self._live:
            self._stream.write(CLEAR_LINE + self.line())
            self._stream.flush()
        else:
            print(self.line(), file=self._stream, flush=True)
