"""The language of a caption, by its script, its stop words and its letters: without a model, in microseconds, and only as well as that.

What it is good for: keeping captions that are surely of a language. What it is not: short captions often hold no word that tells
("Paris 2019"), and are undetermined ("und"); languages that are not listed are taken for one that is, or for none; captions that mix
languages get the one with most words. docs/selection.md has its measured accuracy.
"""

import re
import unicodedata

from filters.slice_columns import caption_script
from winnow.stop_words import LETTERS, RUSSIAN, SCRIPTS, STOP_WORDS, UNDETERMINED, WITHIN_SCRIPT

TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
KANA = ("HIRAGANA", "KATAKANA")


def caption_language(caption: str | None) -> str:
    """ISO 639-1 code of a caption's language, or "und"."""
    script = caption_script(caption)
    text = unicodedata.normalize("NFC", caption or "").casefold()
    if script == "LATIN":
        return _latin_language(text)
    if script == "CJK" and any(unicodedata.name(letter, "").startswith(KANA) for letter in text):
        return "ja"  # Japanese has Chinese characters too, Chinese has no kana
    for language, letters in WITHIN_SCRIPT.get(script, {}).items():
        if set(letters) & set(text) and not (language == "bg" and set(RUSSIAN) & set(text)):
            return language
    return SCRIPTS.get(script, UNDETERMINED)


def _latin_language(text: str) -> str:
    """The language with most evidence: a stop word counts as one by the number of languages it belongs to, a letter likewise."""
    evidence: dict[str, float] = {}
    for token in TOKEN.findall(text):
        for language in _OF_WORD.get(token, ()):
            evidence[language] = evidence.get(language, 0.0) + 1 / len(_OF_WORD[token])
    for letter in set(text):
        for language in _OF_LETTER.get(letter, ()):
            evidence[language] = evidence.get(language, 0.0) + 1 / len(_OF_LETTER[letter])
    ranked = sorted(evidence.items(), key=lambda entry: -entry[1])[:2]
    # Equal evidence tells nothing: "a foto" is as Portuguese as it is Italian.
    if not ranked or (len(ranked) == 2 and ranked[0][1] - ranked[1][1] < 1e-9):
        return UNDETERMINED
    return ranked[0][0]


def _languages_of(entries: dict[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for language in sorted(entries):
        for entry in entries[language]:
            found.setdefault(entry, []).append(language)
    return {entry: tuple(languages) for entry, languages in found.items()}


_OF_WORD = _languages_of(STOP_WORDS)
_OF_LETTER = _languages_of({language: frozenset(letters) for language, letters in LETTERS.items()})
