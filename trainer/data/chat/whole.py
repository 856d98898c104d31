"""Finds all answers in one rendering of a conversation, where the template only appends to it.

Rendering the turns before every answer would take time with the square of their number. So an
answer is rendered by itself only where it is the last, or where the rendering could differ from
what has been seen with this template: another kind of turn, another neighbour, twice as far from
the beginning, or words that the template looks for. The others are found in the one rendering by
what the template wrote around the one that was rendered by itself.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from trainer.data.chat.answers import Answer, AnswerRenderer
from trainer.data.chat.conversation import Conversation, Message
from trainer.data.chat.template import Rendered
from trainer.data.chat.words import find_special_end

SEARCHED = re.compile(
    r"(?:['\"]([^'\"\n]+)['\"]\s*(?:not\s+)?in\b)"
    r"|(?:(?:startswith|endswith|split|find|rfind|index|count|replace)\(\s*['\"]([^'\"\n]+)['\"])"
)
"""Words in a template's source that it looks for in what was said."""


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


@dataclass(frozen=True, kw_only=True)
class Around:
    """What a template wrote around an answer: from the start of its turn, and before it; its end.

    `closing` is the token that ends the answer, the `count`th of its kind behind the prompt.
    """

    asking: str | None
    before: str | None
    closing: str
    count: int


@dataclass(kw_only=True)
class WholeRenderer:
    """Renders a conversation once, and tells whether the template only appended to it."""

    renderer: AnswerRenderer
    _around: dict[Hashable, Around] = field(default_factory=dict)

    def spans(self, conversation: Conversation) -> tuple[str, list[Span]] | None:
        """Return the rendering and all its answers in order; None where the template rewrites.

        Raises:
            MissingFieldError: the template refuses the conversation, or leaves something out.
        """
        rendered = self.renderer.render(conversation, len(conversation.messages), prompting=False)
        kinds = [self._kind(message) for message in conversation.messages]
        last = len(conversation.messages) - 1
        found: list[Span] = []
        cursor = 0
        for at, message in enumerate(conversation.messages):
            if message["role"] != "assistant" or not at:
                continue
            if not conversation.learnt[at] and not self.renderer.can_prompt(conversation, at):
                continue
            key = (*kinds[at - 1 : at + 2], at.bit_length(), conversation.tools is None)
            span = None
            if at != last and key in self._around:
                span = self._located(rendered, conversation, at, self._around[key], cursor)
            if span is None:
                span = self._rendered_alone(rendered, conversation, at, key, cursor)
            if span is None:
                return None
            found.append(span)
            cursor = span.end
        self._check_words(conversation, rendered.text)
        return rendered.text, found

    def _rendered_alone(
        self, whole: Rendered, conversation: Conversation, at: int, key: Hashable, cursor: int
    ) -> Span | None:
        """Return an answer that was rendered by itself, if the whole continues it unchanged."""
        last = at == len(conversation.messages) - 1
        answer = self.renderer.answer(conversation, at, whole.text if last else None)
        text, start = whole.text, len(answer.prompt)
        if start < cursor or not text.startswith(answer.prompt):
            return None
        if last:  # what only the end of a conversation has is no part of the answer, or the reverse
            fits = text[start:].startswith(answer.text) or answer.text.startswith(text[start:])
        else:
            fits = answer.closed and text.startswith(answer.text, start)
        if not fits:
            return None
        self._remember(whole, conversation, answer, key)
        return Span(at=at, start=start, text=answer.text, opening=answer.opening)

    def _remember(
        self, whole: Rendered, conversation: Conversation, answer: Answer, key: Hashable
    ) -> None:
        pattern = self.renderer.ends.pattern
        tokens = [match.group() for match in pattern.finditer(answer.text)]
        if not tokens or not answer.text.endswith(tokens[-1]):
            return
        start = len(answer.prompt)
        turn = whole.starts.get(answer.at)
        words = str(conversation.messages[answer.at - 1].get("content") or "").strip()
        behind = whole.text.rfind(words, 0, start) if words else -1
        before = whole.text[behind + len(words) : start] if behind >= 0 else ""
        self._around[key] = Around(
            asking=whole.text[turn:start] if turn is not None and turn <= start else None,
            before=before if pattern.search(before) else None,
            closing=tokens[-1],
            count=tokens.count(tokens[-1]),
        )

    def _located(
        self, whole: Rendered, conversation: Conversation, at: int, around: Around, cursor: int
    ) -> Span | None:
        """Return where an answer stands by what was seen around one of its kind, or None."""
        text = whole.text
        start = -1
        turn = whole.starts.get(at, -1)
        if around.asking and turn >= cursor and text.startswith(around.asking, turn):
            start = turn + len(around.asking)
        elif around.before:  # nobody but the template writes its special tokens
            place = text.find(around.before, cursor)
            start = place + len(around.before) if place >= 0 else -1
        end = find_special_end(text, start, around.closing, around.count) if start >= 0 else -1
        if end < 0:
            return None
        words = str(conversation.messages[at].get("content") or "").strip()
        if text.find(words, start, end) < 0:
            return None
        return Span(at=at, start=start, text=text[start:end])

    def _check_words(self, conversation: Conversation, text: str) -> None:
        """Refuse a conversation of which the rendering leaves something out."""
        place = 0
        for at in range(len(conversation.messages)):
            place = self.renderer.find_words(conversation, at, text, place)

    def _kind(self, message: Message) -> Hashable:
        """Return what a template can see of a message but its words."""
        content = message.get("content")
        words = str(content or "")
        return (
            message["role"],
            tuple(sorted(message)),
            len(message.get("tool_calls", ())),
            _form(content),
            tuple(word in words for word in self._searched),
        )

    @property
    def _searched(self) -> tuple[str, ...]:
        if self._words is None:
            source = self.renderer.template.source
            found = {one or other for one, other in SEARCHED.findall(source)}
            self._words = tuple(sorted(found))
        return self._words

    _words: tuple[str, ...] | None = None


def _form(content: Any) -> str:
    if not isinstance(content, str):
        return "none"
    if not content.strip():
        return "empty"
    return "spaced" if content != content.strip() else "text"
