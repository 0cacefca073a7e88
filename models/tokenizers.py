"""CLIP's byte-pair tokenizer, whole or cut to its first merges for small models."""

import functools
import gzip
import os
import tempfile
from collections.abc import Callable

from torch import Tensor

from winnow.errors import ConfigError

BYTES = 512
"""Single bytes, within a word and at its end: what every vocabulary starts with."""
SPECIAL = 2
"""Start and end of text: the last two of the vocabulary."""
ALL_MERGES = 49_152 - 256 - 2


def vocab_size(num_merges: int | None = None) -> int:
    """Number of tokens of `clip_tokenizer(num_merges)`."""
    return BYTES + (ALL_MERGES if num_merges is None else num_merges) + SPECIAL


@functools.lru_cache(maxsize=4)
def clip_tokenizer(num_merges: int | None = None, context_length: int = 77) -> Callable[[list[str]], Tensor]:
    """Texts -> int64 tokens (n, context_length): start, text, end, zeros; a longer text is cut and keeps its end token.

    Args:
        num_merges: use only CLIP's first merges: a word that later ones would join stays in pieces, so that a small model
            needs a small table. None: all of them, CLIP's own tokenizer.
    """
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    if num_merges is None:
        return SimpleTokenizer(context_length=context_length)
    if not 0 < num_merges <= ALL_MERGES:
        raise ConfigError(f"clip_tokenizer: num_merges must be in 1..{ALL_MERGES}, got {num_merges}")
    with gzip.open(default_bpe()) as stream:
        lines = stream.read().split(b"\n")[: num_merges + 1]  # the first line is a heading
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "merges.txt.gz")
        with gzip.open(path, "wb") as stream:
            stream.write(b"\n".join(lines))
        return SimpleTokenizer(bpe_path=path, context_length=context_length)
