"""Finds all answers in one rendering of a conversation, where the template only appends to it.

Rendering the turns before every answer would take time with the square of their number. So an
answer is rendered by itself only where it is the last, or where the rendering could differ from
what has been seen with this template: another kind of turn, another neighbour, twice as far from
the beginning, or words that the template looks for. For the others, the one rendering must hold
exactly what the template wrote around the one that was rendered by itself, with their own words in
it: turns that stand there as they were written when they were new have not been written anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.data.chat.answers import Answer, AnswerRenderer
from trainer.data.chat.conversation import Conversation, Message
from trainer.data.chat.words import find_special_end
from trainer.data.template import MissingFieldError

SEARCHED = re.compile(
    r"(?:['\"]([^'\"\n]+)['\"]\s*(?:not\s+)?in\b)"
    r"|(?:(?:startswith|endswith|split|find|rfind|index|count|replace)\(\s*['\"]([^'\"\n]+)['\"])"
)
"""Words in a template's source that it looks for in what was said."""
FORMS: tuple[Callable[[str], str], ...] = (
    lambda words: words,
    lambda words: words.strip(),
    lambda words: json.dumps(words, ensure_ascii=False)[1:-1],
)
"""How templates write what was said."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """An answer in a rendering, from `start` on, behind its prompt."""

    at: int
    start: int
    text: str
    opening: str = ""

    @property
    def end(self) -> int:
        """Where the answer ends."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Frame:
    """What a template wrote around the words of some turns, and the form of the words."""

    between: tuple[str, ...]
    forms: tuple[int, ...]

    @classmethod
    def around(cls, words: Sequence[str], text: str) -> Frame | None:
        """Take the words out of a text in which they stand in order, or return None."""
        between: list[str] = []
        forms: list[int] = []
        place = 0
        for one in words:
            found = [(text.find(form(one), place), at) for at, form in enumerate(FORMS)]
            start, form = min((pair for pair in found if pair[0] >= 0), default=(-1, 0))
            if start < 0:
                return None
            between.append(text[place:start])
            forms.append(form)
            place = start + len(FORMS[form](one))
        return cls((*between, text[place:]), tuple(forms))

    def fill(self, words: Sequence[str]) -> str:
        """Return what the template writes around other words of such turns."""
        pieces = [self.between[0]]
        for one, form, behind in zip(words, self.forms, self.between[1:], strict=True):
            pieces += [FORMS[form](one), behind]
        return "".join(pieces)


@dataclass(frozen=True, kw_only=True)
class Around:
    """What a template wrote since the last answer, and around the words of an answer.

    An answer with tool calls has no frame: it ends with `closing`, the `count`th of its kind.
    """

    prompt: Frame
    answer: Frame | None
    closing: str
    count: int


@dataclass(kw_only=True)
class WholeRenderer:
    """Renders a conversation once, and tells whether the template only appended to it."""

    renderer: AnswerRenderer
    _around: dict[Hashable, Around] = field(default_factory=dict)
    _searched: tuple[str, ...] | None = None

    def spans(self, conversation: Conversation) -> tuple[str, list[Span]] | None:
        """Return the rendering and all its answers in order; None where the template rewrites.

        Raises:
            MissingFieldError: the template refuses the conversation, or leaves something out.
        """
        text = self.renderer.render(conversation, len(conversation.messages), prompting=False)
        kinds = [self._kind(message) for message in conversation.messages]
        last = len(conversation.messages) - 1
        found: list[Span] = []
        cursor = since = 0
        for at, message in enumerate(conversation.messages):
            if message["role"] != "assistant" or not at:
                continue
            if not conversation.learnt[at] and not self.renderer.can_prompt(conversation, at):
                continue
            key = (*kinds[since : at + 2], at.bit_length(), conversation.tools is None)
            around = self._around.get(key) if at != last else None
            turns = conversation.messages[since : at + 1]
            span = _located(text, turns, at, around, cursor) if around is not None else None
            if span is None:
                span = self._rendered_alone(text, conversation, at, cursor)
                if span is None:
                    return None
                self._remember(text, turns, span, key, cursor)
            found.append(span)
            cursor, since = span.end, at + 1
        return (text, found) if self._holds_all(conversation, text) else None

    def _rendered_alone(
        self, text: str, conversation: Conversation, at: int, cursor: int
    ) -> Span | None:
        """Return an answer that was rendered by itself, if the whole continues it unchanged."""
        last = at == len(conversation.messages) - 1
        answer: Answer = self.renderer.answer(conversation, at, text if last else None)
        start = len(answer.prompt)
        if start < cursor or not text.startswith(answer.prompt):
            return None
        if last:  # what only the end of a conversation has is no part of the answer, or the reverse
            fits = text[start:].startswith(answer.text) or answer.text.startswith(text[start:])
        else:
            fits = answer.closed and text.startswith(answer.text, start)
        return Span(at=at, start=start, text=answer.text, opening=answer.opening) if fits else None

    def _remember(
        self, text: str, turns: Sequence[Message], span: Span, key: Hashable, cursor: int
    ) -> None:
        """Keep what the template wrote around an answer and the turns before it."""
        tokens = [match.group() for match in self.renderer.ends.pattern.finditer(span.text)]
        prompt = Frame.around(_words(turns[:-1]), text[cursor : span.start])
        if prompt is None or not tokens or not span.text.endswith(tokens[-1]):
            return
        calls = "tool_calls" in turns[-1]
        answer = None if calls else Frame.around(_words(turns[-1:]), span.text)
        if calls or answer is not None:
            count = tokens.count(tokens[-1])
            around = Around(prompt=prompt, answer=answer, closing=tokens[-1], count=count)
            self._around[key] = around

    def _holds_all(self, conversation: Conversation, text: str) -> bool:
        """Return whether all that was said stands in the rendering; earlier turns may be cut."""
        place = 0
        try:
            for at in range(len(conversation.messages)):
                place = self.renderer.find_words(conversation, at, text, place)
        except MissingFieldError:  # rendered one by one, the answers show what is really lost
            return False
        return True

    def _kind(self, message: Message) -> Hashable:
        """Return what a template can see of a message but its words."""
        if self._searched is None:
            source = self.renderer.template.source
            found = {one or other for one, other in SEARCHED.findall(source)}
            self._searched = tuple(sorted(found))
        content = message.get("content")
        words = str(content or "")
        return (
            message["role"],
            tuple(sorted(message)),
            len(message.get("tool_calls", ())),
            _form(content),
            tuple(word in words for word in self._searched),
        )


def _located(
    text: str, turns: Sequence[Message], at: int, around: Around, cursor: int
) -> Span | None:
    """Return where an answer stands by what was seen around one of its kind, or None."""
    prompt = around.prompt.fill(_words(turns[:-1]))
    if not text.startswith(prompt, cursor):
        return None
    start = cursor + len(prompt)
    if around.answer is not None:
        answer = around.answer.fill(_words(turns[-1:]))
        return Span(at=at, start=start, text=answer) if text.startswith(answer, start) else None
    end = find_special_end(text, start, around.closing, around.count)
    return Span(at=at, start=start, text=text[start:end]) if end >= 0 else None


def _words(turns: Sequence[Message]) -> list[str]:
    """Return what was said in some turns, in the order in which templates write it."""
    keys = ("reasoning_content", "content")
    return [turn[key] for turn in turns for key in keys if turn.get(key)]


def _form(content: Any) -> str:
    if not isinstance(content, str):
        return "none"
    if not content.strip():
        return "empty"
    return "spaced" if content != content.strip() else "text"
