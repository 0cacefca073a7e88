"""One line about a finished stage, for the person who waits."""

import sys

from winnow.partitions import StageRun


def announce(result: StageRun) -> None:
    print(line(result), file=sys.stderr, flush=True)


def line(result: StageRun) -> str:
    """`download        8 done in 12.3 s    7,812 downloaded, 188 failed`, or `... up to date ...`"""
    if result.ran:
        state = f"{result.ran} done in {result.seconds:.1f} s" + (f", {result.skipped} up to date" if result.skipped else "")
    else:
        state = "up to date" if result.partitions else "nothing to do"
    counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in result.counts.items() if value)
    return f"{result.stage:<14} {state:<32} {counts}".rstrip()
