"""What rules measure, computed a second time for those who check: plainly, and without the code that made the decisions.

Similarities are taken from their file, whose digest its receipt names; computing them again would need the CLIP of the run.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from winnow.errors import ShardError
from winnow.stop_words import LETTERS, RUSSIAN, SCRIPTS, STOP_WORDS, UNDETERMINED, WITHIN_SCRIPT


def value_again(rule: str, row: dict[str, Any]) -> float | str:
    """The value of a rule for a pair.

    Args:
        row: caption, width, height, similarity, as far as they are known.

    Raises:
        ShardError: no rule has that name.
    """
    if rule not in _AGAIN:
        raise ShardError(f"no rule is named {rule!r}; there are {', '.join(_AGAIN)}")
    return _AGAIN[rule](row)


def _characters(row: dict[str, Any]) -> float:
    text = row["caption"] or ""
    inner = [place for place, letter in enumerate(text) if not letter.isspace()]
    return float(inner[-1] - inner[0] + 1) if inner else 0.0


def _words(row: dict[str, Any]) -> float:
    count, inside = 0, False
    for letter in row["caption"] or "":
        count += not letter.isspace() and not inside
        inside = not letter.isspace()
    return float(count)


def _language(row: dict[str, Any]) -> str:
    caption = row["caption"] or ""
    scripts = Counter(unicodedata.name(letter, "UNKNOWN").partition(" ")[0] for letter in caption if letter.isalpha())
    if not scripts:
        return UNDETERMINED
    script = max(scripts, key=lambda name: scripts[name])  # the first met, of equals
    text = unicodedata.normalize("NFC", caption).casefold()
    if script == "LATIN":
        return _of_latin(text)
    if script == "CJK" and any(unicodedata.name(letter, "").startswith(("HIRAGANA", "KATAKANA")) for letter in text):
        return "ja"
    for language, letters in WITHIN_SCRIPT.get(script, {}).items():
        if any(letter in text for letter in letters) and not (language == "bg" and any(letter in text for letter in RUSSIAN)):
            return language
    return SCRIPTS.get(script, UNDETERMINED)


def _of_latin(text: str) -> str:
    found = dict.fromkeys(STOP_WORDS, 0.0)
    tokens = _tokens(text)
    for table, evidence in ((STOP_WORDS, tokens), ({key: frozenset(letters) for key, letters in LETTERS.items()}, sorted(set(text)))):
        for one in evidence:
            owners = [language for language, members in table.items() if one in members]
            for language in owners:
                found[language] += 1 / len(owners)
    highest = max(found.values())
    leaders = [language for language, value in found.items() if highest - value < 1e-9]
    return leaders[0] if highest > 0 and len(leaders) == 1 else UNDETERMINED


def _tokens(text: str) -> list[str]:
    """Runs of letters; an apostrophe between two letters joins them, once a word."""
    tokens, word, joined = [], "", False
    for place, letter in enumerate(text):
        if _is_letter(letter):
            word += letter
        elif letter == "'" and word and not joined and _is_letter(text[place + 1 : place + 2]):
            word, joined = word + letter, True
        else:
            tokens.append(word)
            word, joined = "", False
    return [token for token in [*tokens, word] if token]


def _is_letter(letter: str) -> bool:
    """As regular expressions have it: also numbers that are no decimal digits, such as a raised two."""
    return letter.isalnum() and not letter.isdecimal()


_AGAIN: dict[str, Callable[[dict[str, Any]], float | str]] = {
    "caption_characters": _characters,
    "caption_words": _words,
    "caption_language": _language,
    "image_side_px": lambda row: float(row["width"] if row["width"] < row["height"] else row["height"]),
    "image_aspect": lambda row: row["width"] / row["height"] if row["width"] > row["height"] else row["height"] / row["width"],
    "clip_similarity": lambda row: float(row["similarity"]),
}
