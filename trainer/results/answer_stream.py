"""Turns generated tokens into text as they come: whole characters, whole words, nothing twice."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from trainer.data.chat.encoder import words_of

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the first bytes of a character to."""
WORD_MAX = 120
"""Of a word with more characters, such as a line of base64, the first ones are written before."""
JOINER = "\N{ZERO WIDTH JOINER}"
WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3000, 0x30FF),  # CJK punctuation, kana
    (0x3400, 0x9FFF),  # CJK ideographs
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)
"""Ranges of characters that are written without spaces between words, each a word by itself."""


class AnswerStream:
    """Writes one answer in pieces which, joined, are the text of all its tokens.

    A token may hold half a character, and what a tokenizer decodes it to may depend on the next
    one (spaces before a full stop, bytes of an emoji). So the tokens are decoded together each
    time, and the text is written up to the last end of a word that another character follows.
    """

    def __init__(
        self, tokenizer: Any, write: Callable[[str], None], *, opening: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._opening = tuple(opening)
        self._tokens: list[int] = []
        self._written = ""

    def add(self, token: int) -> None:
        """Take the next token, and write the words that it completes."""
        self._tokens.append(token)
        opening = self._opening
        if opening and tuple(self._tokens[: len(opening)]) != opening:
            return  # where an answer begins after another opening is clear only at its end
        text = words_of(self._tokenizer, self._tokens, opening)
        end = end_of_words(text)
        if len(text) - max(end, len(self._written)) > WORD_MAX:
            end = len(text.rstrip(UNFINISHED)) - WORD_MAX // 2
        whole = text[: max(end, 0)]
        if len(whole) > len(self._written) and whole.startswith(self._written):
            self._write(whole[len(self._written) :])
            self._written = whole

    def finish(self) -> str:
        """Write what is left of the answer, and return all of it."""
        text = words_of(self._tokenizer, self._tokens, self._opening)
        same = text.startswith(self._written)
        # A tokenizer that decodes a beginning anew: the answer stands whole on the next line.
        rest = text[len(self._written) :] if same else f"\n{text}"
        if rest:
            self._write(rest)
        return text


def end_of_words(text: str) -> int:
    """Return the length of the longest beginning of `text` that no further token changes.

    It ends after a word and before a character that is there: a space, or the next one in a
    script without spaces. Characters of which bytes are missing are not in it.
    """
    for at in range(len(text.rstrip(UNFINISHED)) - 1, 0, -1):
        if text[at].isspace():
            if not text[at - 1].isspace():
                return at
        elif not _continues(text, at) and _is_word(text[at - 1]):
            return at
    return 0


def _continues(text: str, at: int) -> bool:
    """Whether the character belongs to the one before it: a mark, or one that is joined on."""
    mark = unicodedata.category(text[at]).startswith("M")
    return mark or JOINER in (text[at], text[at - 1])


def _is_word(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in WITHOUT_SPACES)
