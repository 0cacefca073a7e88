"""Words of captions as they stand in a workspace: where their counts are, and what a word is."""

import re

import pyarrow as pa

WORD = re.compile(r"[^\W\d_]{2,40}")
LONGEST = 200
"""Different words of one caption that count: a caption is a sentence, whatever a stranger puts there."""
WORD_COUNTS = pa.schema(
    [
        ("kind", pa.string()),
        ("word", pa.string()),
        ("judged", pa.int64()),
        ("unfiltered", pa.int64()),
        ("kept", pa.int64()),
        ("weighted", pa.float64()),
    ]
)


def words_file(partition: str) -> str:
    return f"words/{partition}.parquet"


def words_of(caption: str | None) -> set[str]:
    """Its different words in small letters: runs of 2 to 40 letters. (In scripts without spaces that is a run between other signs.)"""
    return set(WORD.findall((caption or "").casefold())[:LONGEST])


def below_mark(uid: str, halvings: int) -> bool:
    """Whether a uid is in the sample that is halved so often: the first bits of its hash are zeros."""
    return int(uid[:8], 16) >> max(0, 32 - halvings) == 0 if halvings else True
