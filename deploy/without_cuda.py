"""Reads requirements.lock, writes it without torch and what only its CUDA build needs. Every other line stays, hashes included.

python deploy/without_cuda.py < requirements.lock
"""

import re
import sys
from collections.abc import Iterable, Iterator

LEFT_OUT = re.compile(r"(nvidia-|cuda-|torch==|torchvision==|triton==)")


def without_cuda(lines: Iterable[str]) -> Iterator[str]:
    """A requirement is a line that begins in the first column, and the indented lines below it."""
    drop = False
    for line in lines:
        if line[:1].isalnum():
            drop = LEFT_OUT.match(line) is not None
        if not drop:
            yield line


if __name__ == "__main__":
    sys.stdout.writelines(without_cuda(sys.stdin))
