"""Byte-pair encoding: text to tokens by merges learned elsewhere. models/tokenizers.py and models/glide_bpe.py have a vocabulary each.

A text is cut into words by a pattern, a word into the bytes of its UTF-8, and neighbours are joined in the order in which
the merges were learned (Sennrich et al., arXiv:1508.07909; on bytes, as GPT-2 does it). A word costs n log n: a caption may
be one word of a million letters, and comes from a stranger.
"""

import functools
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

CACHED_WORDS = 2**16
"""Words whose tokens are remembered."""
CACHED_LENGTH = 64
"""Bytes of the longest word that is remembered."""


def _letters() -> dict[int, str]:
    """The letter each byte is written as in vocabulary files: itself where it prints, else one from 256 on."""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in prints else next(others)) for byte in range(256)}


LETTERS = _letters()
BYTES = {letter: byte for byte, letter in LETTERS.items()}


def letters_in_vocabulary_order() -> list[str]:
    """The 256 letters as vocabularies list them: those that print first."""
    return sorted(LETTERS.values())


class BytePairs:
    """Texts to tokens and back, by a list of merges."""

    def __init__(
        self,
        merges: Sequence[tuple[str, str]],
        ids: Mapping[str, int],
        *,
        pattern: str,
        ignore_case: bool = False,
        end_of_word: str = "",
        special: Iterable[str] = (),
    ) -> None:
        """
        Args:
            merges: pairs of pieces, in letters, the first learned first.
            ids: the token of each piece.
            pattern: what a word is, for the `regex` library.
            end_of_word: written behind the last letter of a word.
            special: pieces that are found in a text as they stand.
        """
        import regex

        self.ids = dict(ids)
        self.pieces = {token: piece for piece, token in self.ids.items()}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: Any = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
        self._end_of_word = end_of_word
        self._special = frozenset(special)
        self._remembered = functools.lru_cache(CACHED_WORDS)(self._word)

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Tokens of a text; stops after `limit` of them, and then reads no further."""
        tokens: list[int] = []
        for word in self._found(text):
            tokens += self._remembered(word) if len(word) <= CACHED_LENGTH else self._word(word)
            if limit is not None and len(tokens) >= limit:
                return tokens[:limit]
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become replacement characters."""
        letters = "".join(self.pieces[token] for token in tokens)
        if self._end_of_word:
            letters = letters.replace(self._end_of_word, LETTERS[ord(" ")])
        return bytes(BYTES[letter] for letter in letters).decode("utf-8", errors="replace")

    def _found(self, text: str) -> Iterator[str]:
        """Words, in letters. Half a surrogate pair, which UTF-8 cannot write, becomes a question mark."""
        for match in self._words.finditer(text):
            yield "".join(LETTERS[byte] for byte in match[0].encode("utf-8", errors="replace"))

    def _word(self, word: str) -> tuple[int, ...]:
        if word in self._special:
            return (self.ids[word],)
        return tuple(self.ids[piece] for piece in self.merge([*word[:-1], word[-1] + self._end_of_word]))

    def merge(self, pieces: list[str]) -> list[str]:
        """Joins neighbours, the pair learned first everywhere from left to right, then the next, until no merge is left."""
        pieces = list(pieces)
        after = [*range(1, len(pieces)), -1]
        before = list(range(-1, len(pieces) - 1))
        waiting: list[tuple[int, int, str, str]] = []

        def offer(left: int) -> None:
            if left >= 0 and after[left] >= 0:
                pair = (pieces[left], pieces[after[left]])
                if pair in self._ranks:
                    heapq.heappush(waiting, (self._ranks[pair], left, *pair))

        for left in range(len(pieces) - 1):
            offer(left)
        while waiting:
            rank, joined = waiting[0][0], []
            # All of one merge before any other: what it makes may belong to an earlier one, and must wait all the same.
            while waiting and waiting[0][0] == rank:
                _, left, first, second = heapq.heappop(waiting)
                right = after[left]
                if right < 0 or (pieces[left], pieces[right]) != (first, second):
                    continue  # one of the two was joined to another neighbour meanwhile
                pieces[left], pieces[right] = first + second, ""
                after[left] = after[right]
                if after[right] >= 0:
                    before[after[right]] = left
                after[right] = -1
                joined.append(left)
            for left in joined:
                if pieces[left]:
                    offer(left)
                    offer(before[left])
        return [piece for piece in pieces if piece]
