"""Normalises texts for comparison, and splits those whose script has no spaces between words."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right

CHARACTERS_MAX = 20_000
"""Of a text, what is compared; a measure of an answer that is longer has the note `cut`."""
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),  # Han
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
"""Ranges of code points (first, last) of scripts that write words without spaces between them."""
_FIRSTS = [first for first, _ in WITHOUT_SPACES]
ASCII_WORD = re.compile("[a-z0-9_]+")
JOINERS = "\u200c\u200d"
"""Characters without a width that stand inside words of Persian and of Indian languages."""


def is_without_spaces(character: str) -> bool:
    """Return whether a character belongs to a script without spaces between words."""
    code = ord(character)
    at = bisect_right(_FIRSTS, code) - 1
    return at >= 0 and code <= WITHOUT_SPACES[at][1]


def has_no_spaces(text: str) -> bool:
    """Return whether a text has a character of a script without spaces between words."""
    return not text.isascii() and any(map(is_without_spaces, text))


def in_word(character: str) -> bool:
    """Return whether a character is part of a word: a letter, a digit, `_`, or a mark on one."""
    if character.isalnum() or character == "_" or character in JOINERS:
        return True
    return not character.isascii() and unicodedata.category(character).startswith("M")


def words_and_characters(text: str) -> list[str]:
    """Return the lower-case words of a text; where a script has no spaces, its characters.

    Marks stay in their words: a regular expression's `w` would tear words of Hindi apart.
    """
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    found: list[str] = []
    word: list[str] = []
    for character in text.lower():
        apart = is_without_spaces(character)
        if not apart and in_word(character):
            word.append(character)
            continue
        if word:
            found.append("".join(word))
            word = []
        if apart and in_word(character):
            found.append(character)
    return [*found, "".join(word)] if word else found


def normalised(text: str, *, ignore_case: bool = False) -> str:
    """Return a text in Unicode's form C, without outer space, and with runs of space as one."""
    composed = unicodedata.normalize("NFC", text)
    spaced = " ".join(composed.split())
    return unicodedata.normalize("NFC", spaced.casefold()) if ignore_case else spaced


def bounded(*texts: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the part of each text that is compared, and the notes that this makes."""
    cut = any(len(text) > CHARACTERS_MAX for text in texts)
    return tuple(text[:CHARACTERS_MAX] for text in texts), ("cut",) * cut
