"""CLIP's byte-pair tokenizer, whole or cut to its first merges for small models, as the released noised CLIP reads captions."""

import functools
import gzip
import html
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.byte_pairs import BytePairs, letters_in_vocabulary_order
from winnow.errors import ConfigError, MissingWeights

BYTES = 512
"""Single bytes, within a word and at its end: what every vocabulary starts with."""
SPECIAL = 2
"""Start and end of text: the last two of the vocabulary."""
ALL_MERGES = 49_152 - 256 - 2

START, END = "<|startoftext|>", "<|endoftext|>"
"""A caption that spells one of them gets that token, as in the released code."""
END_OF_WORD = "</w>"
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""The list of merges, which open_clip ships."""


def vocab_size(num_merges: int | None = None) -> int:
    """Number of tokens of `clip_tokenizer(num_merges)`."""
    return BYTES + (ALL_MERGES if num_merges is None else num_merges) + SPECIAL


@functools.lru_cache(maxsize=4)
def clip_byte_pairs(num_merges: int | None = None) -> BytePairs:
    """CLIP's vocabulary, or its first merges.

    Raises:
        ConfigError: there are not so many merges.
        MissingWeights: open_clip, which ships the list, is not installed.
    """
    count = ALL_MERGES if num_merges is None else num_merges
    if not 0 < count <= ALL_MERGES:
        raise ConfigError(f"clip_tokenizer: num_merges must be in 1..{ALL_MERGES}, got {num_merges}")
    with gzip.open(_vocabulary_file(), "rt", encoding="utf-8", newline="\n") as stream:
        lines = stream.read().split("\n")[1 : count + 1]  # the first line is a heading
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = letters_in_vocabulary_order()
    pieces = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges), START, END]
    ids = {piece: token for token, piece in enumerate(pieces)}
    return BytePairs(merges, ids, pattern=WORDS, ignore_case=True, end_of_word=END_OF_WORD, special=(START, END))


def clip_tokens(texts: Sequence[str], context_length: int, num_merges: int | None = None) -> tuple[Tensor, Tensor]:
    """Texts to int64 tokens (n, context_length): start, text, end, zeros; and how many of each row are real, (n,) int64.

    A longer text is cut and keeps its end token.
    """
    bpe = clip_byte_pairs(num_merges)
    start, end = bpe.ids[START], bpe.ids[END]
    rows = [[start, *bpe.encode(cleaned(text), context_length - 2), end] for text in texts]
    tokens = torch.zeros(len(rows), context_length, dtype=torch.long)
    for into, row in zip(tokens, rows, strict=True):
        into[: len(row)] = torch.tensor(row)
    return tokens, torch.tensor([len(row) for row in rows], dtype=torch.long)


@functools.lru_cache(maxsize=4)
def clip_tokenizer(num_merges: int | None = None, context_length: int = 77) -> Callable[[list[str]], Tensor]:
    """Texts -> int64 tokens (n, context_length): start, text, end, zeros; a longer text is cut and keeps its end token.

    Args:
        num_merges: use only CLIP's first merges: a word that later ones would join stays in pieces, so that a small model
            needs a small table. None: all of them, CLIP's own tokenizer.
    """
    clip_byte_pairs(num_merges)
    return lambda texts: clip_tokens(texts, context_length, num_merges)[0]


def cleaned(text: str) -> str:
    """What CLIP reads of a text: mended encoding, unescaped HTML (twice, as captions of the web need it), single spaces, lower case."""
    import ftfy
    import regex

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text.strip()).strip().lower()


def _vocabulary_file() -> Path:
    # Found without importing open_clip, which takes seconds.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise MissingWeights(f"CLIP's tokenizer reads {VOCABULARY}, which the package open_clip_torch ships: install that")
    return Path(spec.origin).parent / VOCABULARY
