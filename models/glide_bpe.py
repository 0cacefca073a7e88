"""GLIDE's own byte-pair vocabulary, which the released diffusion models read captions with.

It is GPT-2's way of writing text with other merges, on lower-cased text, and is not part of this project: two files of the
released code, fetched at first use or given by path. A caption has neither a start nor an end token; padding is
the last token of the vocabulary.
"""

import functools
import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from models.byte_pairs import BytePairs
from models.fetch import RemoteFile, cache_folder, fetched, file_digest
from winnow.errors import MissingWeights

SOURCE = "https://raw.githubusercontent.com/openai/glide-text2im/69b530740eb6cef69442d6180579ef5ba9ef063e/glide_text2im/tokenizer"
"""The released code at one commit."""
SHA256 = {
    "encoder.json.gz": "4debc1cf25180021b07744bc9f4488d53c7bf112c8ce5de8097c6a7518f4ec7c",
    "vocab.bpe.gz": "ce239dd5a898827423fee00e3f7ab37de7900f247f2ba360753d860e8a46524d",
}
ENVIRONMENT = "WINNOW_GLIDE_BPE"
"""A folder with the two files, if they are not to be fetched."""
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


class GlideBpe:
    """Captions to tokens and back."""

    def __init__(self, byte_pairs: BytePairs) -> None:
        self._byte_pairs = byte_pairs
        self.n_vocab = len(byte_pairs.ids)
        self.end_token = self.n_vocab - 1
        """What captions are padded with."""

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Tokens of a caption, `limit` of them at most."""
        return self._byte_pairs.encode(text.lower(), limit)

    def decode(self, tokens: Sequence[int]) -> str:
        """The lower-cased text."""
        return self._byte_pairs.decode(tokens)

    def padded(self, text: str, context_length: int) -> tuple[list[int], list[bool]]:
        """Tokens cut or padded to the context length, and which of them are real. The empty caption is padding only."""
        tokens = self.encode(text, context_length)
        missing = context_length - len(tokens)
        return tokens + [self.end_token] * missing, [True] * len(tokens) + [False] * missing


def glide_bpe(folder: str | os.PathLike[str] | None = None) -> GlideBpe:
    """The vocabulary.

    Args:
        folder: holds encoder.json.gz and vocab.bpe.gz. None: the folder that WINNOW_GLIDE_BPE names, else the cache, to which
            the files are fetched at first use.

    Raises:
        MissingWeights: the files are not here and cannot be fetched, or they are other files. Says what to put where.
    """
    given = folder if folder is not None else os.environ.get(ENVIRONMENT) or None
    return _read(str(fetch_bpe() if given is None else given))


def fetch_bpe(source: str = SOURCE, folder: Path | None = None) -> Path:
    """The folder with both files, fetched if need be. Raises as `glide_bpe`."""
    into = cache_folder("glide-bpe") if folder is None else folder
    for name, sha256 in SHA256.items():
        try:
            fetched(RemoteFile(name=name, url=f"{source}/{name}", sha256=sha256), into)
        except MissingWeights as problem:
            raise MissingWeights(
                f"GLIDE's vocabulary: {problem}; or name a folder that holds {' and '.join(SHA256)} in {ENVIRONMENT}"
            ) from problem
    return into


@functools.lru_cache(maxsize=2)
def _read(folder: str) -> GlideBpe:
    pieces, merges = (_content(Path(folder) / name, sha256) for name, sha256 in SHA256.items())
    pairs = [(first, second) for first, second in (line.split() for line in merges.decode().split("\n")[1:-1])]
    return GlideBpe(BytePairs(pairs, json.loads(pieces), pattern=WORDS))


def _content(path: Path, sha256: str) -> bytes:
    how = f"fetch {SOURCE}/{path.name} (sha256 {sha256}) and put it there, or leave {ENVIRONMENT} unset to have it fetched"
    if not path.is_file():
        raise MissingWeights(f"GLIDE's vocabulary: {path} is not there; {how}")
    if (found := file_digest(path)) != sha256:
        raise MissingWeights(f"GLIDE's vocabulary: {path} is another file (sha256 {found}); {how}")
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as problem:  # the digest is right: not the file, but the disk
        raise MissingWeights(f"GLIDE's vocabulary: {path} cannot be read ({problem}); {how}") from problem
