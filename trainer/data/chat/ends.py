"""Finds the token that closes a turn: the end of an answer, at which generation stops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from trainer.data.chat.template import ChatTemplate, TemplateRefusal

PROBE = "b" * 9


@dataclass
class TurnEnds:
    """How one chat template closes turns; `special_tokens` are the tokens that count as such."""

    template: ChatTemplate
    special_tokens: Sequence[str]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A pattern that finds every special token."""
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @property
    def closing(self) -> str:
        """The tokens that the template closes a plain answer with, or an empty text."""
        return self._probed[0]

    @property
    def next_begins(self) -> str:
        """The token that the next turn begins with, where nothing closes a turn; or nothing."""
        return self._probed[1]

    @cached_property
    def _probed(self) -> tuple[str, str]:
        """Return what closes a plain answer, and else what the next turn begins with.

        Several tokens close it where nothing stands between them, and all of them also stand before
        the next turn: what only the end of a conversation has is no part of the answer.
        """
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
        try:
            ended = self.template.render(messages, prompting=False)
            followed = self.template.render([*messages, messages[0]], prompting=False)
        except TemplateRefusal:
            return "", ""
        ended, followed = (one[one.rfind(PROBE) + len(PROBE) :] for one in (ended, followed))
        spans = [found.span() for found in self.pattern.finditer(ended)]
        if not spans:
            begins = self.pattern.match(followed, len(ended))
            return "", begins.group() if begins else ""
        start, end = spans[0]
        for begin, after in spans[1:]:
            if begin != end or not followed.startswith(ended[:after]):
                break
            end = after
        return ended[start:end], ""

    def cut(self, turn: str) -> tuple[str, bool]:
        """Return a turn, cut behind the token that closes it, and whether there is one.

        That is the first one behind the last words, or of a tool call perhaps the last of several.
        """
        places = [match.span() for match in self.pattern.finditer(turn)]
        words_end, start = 0, 0
        for begin, end in [*places, (len(turn), len(turn))]:
            if turn[start:begin].strip():
                words_end = begin
            start = end
        behind = [end for begin, end in places if begin >= words_end]
        if not behind:
            return turn, False
        place = turn.find(self.closing, words_end) if self.closing else -1
        return turn[: place + len(self.closing) if place >= 0 else behind[-1]], True
