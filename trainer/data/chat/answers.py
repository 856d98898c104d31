"""Finds each answer of a conversation behind the very prompt that generation makes for it.

The prompt of an answer is what the chat template renders of the turns before it when it is asked
for the next one; the answer is what the template renders of its turn behind that prompt, up to and
with the token that closes the turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from trainer.data.chat.conversation import OPENING, Conversation, Message
from trainer.data.chat.ends import TurnEnds
from trainer.data.chat.template import ChatTemplate, TemplateRefusal
from trainer.data.chat.words import (
    common_prefix,
    contains,
    find,
    reasoning_in,
    shortened,
    with_text_arguments,
    words_in,
)
from trainer.data.template import MissingFieldError

PLACEHOLDER = "\ue000"  # of the characters for private use: no template writes it
THINKS = re.compile(r"<think>(?P<space>\s*)(?P<closed></think>\s*)?$")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer as text: the prompt that asks for it, and what follows.

    `opening` is what stands before the answer's own words (an empty block of reasoning, a channel),
    `closed` says whether the template closes the turn with a token of its own.
    """

    at: int
    prompt: str
    text: str
    opening: str = ""
    closed: bool = True


@dataclass(kw_only=True)
class AnswerRenderer:
    """Renders conversations with one chat template; `special_tokens` are those that count as such.

    It keeps what it learns about the template, whatever the rows: which token closes a plain
    answer, and whether the arguments of tool calls are wanted as an object or as JSON text.
    """

    template: ChatTemplate
    ends: TurnEnds
    arguments_as_text: bool = False
    _openings: set[str] = field(default_factory=set)

    def render(self, conversation: Conversation, end: int, *, prompting: bool) -> str:
        """Render the first `end` turns of a conversation.

        Raises:
            MissingFieldError: the template refuses them; it names the turn and what to do.
        """
        try:
            return self._render(conversation, end, prompting=prompting)
        except TemplateRefusal as refusal:
            raise MissingFieldError(self._advice(conversation, refusal.reason)) from refusal

    def answer(self, conversation: Conversation, at: int, whole: str | None = None) -> Answer:
        """Return the answer at place `at`; `whole` is the rendering up to and with it, if at hand.

        Raises:
            MissingFieldError: the template refuses the turns before it, leaves out or rewrites
                what was said, or writes the answer so that it cannot follow the prompt.
        """
        prompt = self.render(conversation, at, prompting=True)
        finished = whole or self.render(conversation, at + 1, prompting=False)
        prompt, turn, opening = self._turn(conversation, at, prompt, finished)
        text, closed = self.ends.cut(turn)
        if not closed:
            following = self._following(conversation, at, finished) or self.ends.next_begins
            text, closed = text + following, bool(following)
        self._check_words(conversation, at, prompt, text)
        if not opening:
            opening = self._opening(conversation, at, text)
        return Answer(at=at, prompt=prompt, text=text, opening=opening, closed=closed)

    def can_prompt(self, conversation: Conversation, at: int) -> bool:
        """Return whether an answer can be asked for: a greeting before any question often cannot.

        Raises:
            MissingFieldError: the template refuses the turns before it, though somebody asks.
        """
        if any(message["role"] not in OPENING for message in conversation.messages[:at]):
            return True
        try:
            self._render(conversation, at, prompting=True)
        except TemplateRefusal:
            return False
        return True

    def _render(self, conversation: Conversation, end: int, *, prompting: bool) -> str:
        messages = conversation.messages[:end]
        calls = any("tool_calls" in message for message in messages)
        as_text = [self.arguments_as_text] if self.arguments_as_text or not calls else [False, True]
        for attempt in as_text:
            try:
                found = self.template.render(
                    [with_text_arguments(one) for one in messages] if attempt else messages,
                    prompting=prompting,
                    tools=conversation.tools,
                    kwargs=conversation.template_kwargs,
                )
            except TemplateRefusal as refusal:
                if attempt is as_text[-1] or not refusal.reason.startswith("TypeError"):
                    raise
            else:
                self.arguments_as_text = attempt
                return found
        raise AssertionError("one of the attempts returns or raises")

    def _turn(
        self, conversation: Conversation, at: int, prompt: str, finished: str
    ) -> tuple[str, str, str]:
        """Return the prompt, the answer's turn behind it, and its opening where it is known."""
        if "add_generation_prompt" not in self.template.source:
            # Such a template cannot ask, so whoever asks writes the answer's heading himself.
            heading = self._heading(conversation, at, prompt, finished)
            return prompt + heading, finished[len(prompt + heading) :], ""
        if finished.startswith(prompt):
            return prompt, finished[len(prompt) :], ""
        message = conversation.messages[at]
        thinks = THINKS.search(prompt)
        if thinks is None:
            return (
                prompt,
                self._behind(conversation, at, self._asking(conversation, at), finished),
                "",
            )
        asking = self._asking(conversation, at)
        head = asking[: len(asking) - len(prompt) + thinks.start()]
        before = prompt[: thinks.start()]
        turn = (
            finished[len(before) :]
            if finished.startswith(before)
            else self._behind(conversation, at, head, finished)
        )
        reasoning = reasoning_in(message)
        if thinks["closed"]:
            if reasoning:
                raise MissingFieldError(
                    f"message {conversation.numbers[at]} has reasoning, and the prompt that this "
                    "base's chat template asks with closes the reasoning before the answer: "
                    "`data: {ignore: [reasoning_content]}` leaves it out, a column "
                    '`chat_template_kwargs` with {"enable_thinking": true} opens it'
                )
            return (
                prompt,
                turn.removeprefix("<think>").lstrip().removeprefix("</think>").lstrip(),
                "",
            )
        if turn.startswith("<think>"):  # only the space behind it is another
            return prompt, turn.removeprefix("<think>").lstrip(), ""
        # The template shows a finished turn without its reasoning, and asks with `<think>` open.
        opening = f"{reasoning}\n</think>\n\n"
        return prompt, opening + turn, opening

    def _asking(self, conversation: Conversation, at: int) -> str:
        """Return what the template adds to the turns before an answer to ask for it."""
        prompt = self._render(conversation, at, prompting=True)
        without = self._render(conversation, at, prompting=False)
        return prompt[len(common_prefix(prompt, without)) :]

    def _behind(self, conversation: Conversation, at: int, asking: str, finished: str) -> str:
        """Return the answer's turn where the template renders earlier turns anew around it."""
        other = self._with_placeholder(conversation, at)
        start = common_prefix(other, finished).rfind(asking) if asking else -1
        if start < 0:
            raise MissingFieldError(
                f"the chat template writes message {conversation.numbers[at]} so that it cannot "
                "follow the prompt that asks for it; leave the row out"
            )
        return finished[start + len(asking) :]

    def _heading(self, conversation: Conversation, at: int, before: str, finished: str) -> str:
        """Return the text between the turns before an answer and its own words."""
        if not finished.startswith(before):
            raise MissingFieldError(
                "the chat template rewrites earlier turns and cannot ask for an answer"
            )
        turn = finished[len(before) :]
        words = str(conversation.messages[at].get("content") or "").strip()
        if turn.lstrip().startswith(words):
            return ""
        # The answer may also stand in the heading (`assistant`); a placeholder cannot.
        other = self._with_placeholder(conversation, at)
        heading = other[len(before) :].partition(PLACEHOLDER)[0]
        return heading if turn[len(heading) :].startswith(words) else ""

    def _opening(self, conversation: Conversation, at: int, text: str) -> str:
        """Return what the template writes between its prompt and the words of a plain answer."""
        message = conversation.messages[at]
        words = str(message.get("content") or "").strip()
        if not words or "tool_calls" in message or "reasoning_content" in message:
            return ""
        if text.lstrip().startswith(words):
            return ""
        for opening in self._openings:
            if text.startswith(opening + words):
                return opening
        # The words may also stand in the opening; where a placeholder stands, only they begin.
        other = self._with_placeholder(conversation, at)
        finished = self._render(conversation, at + 1, prompting=False)
        common = common_prefix(other, finished)
        start = text.find(words)
        while start >= 0 and not common.endswith(text[:start]):
            start = text.find(words, start + 1)
        if start > 0:
            self._openings.add(text[:start])
        return text[: max(start, 0)]

    def _with_placeholder(self, conversation: Conversation, at: int) -> str:
        """Render the turns up to an answer whose own words are a placeholder."""
        message = {"role": "assistant", "content": PLACEHOLDER}
        given = conversation.messages[at]
        if "reasoning_content" in given:
            message["reasoning_content"] = PLACEHOLDER
        other = replace(conversation.upto(at + 1), messages=(*conversation.messages[:at], message))
        return self._render(other, at + 1, prompting=False)

    def _following(self, conversation: Conversation, at: int, finished: str) -> str:
        """Return the token that the next turn begins with, at which such a base stops, or nothing.

        GLM's template, for one, closes no turn: the model writes `<|user|>` or `<|observation|>`.
        """
        following: Message = {"role": "user", "content": PLACEHOLDER}
        if at + 1 < len(conversation.messages):
            following = conversation.messages[at + 1]
        elif "tool_calls" in conversation.messages[at]:
            following = {"role": "tool", "content": PLACEHOLDER}
        longer = replace(conversation, messages=(*conversation.messages[: at + 1], following))
        try:
            text = self._render(longer, at + 2, prompting=False)
        except TemplateRefusal:
            return ""
        if not text.startswith(finished):
            return ""
        found = self.ends.pattern.match(text, len(finished))
        return found.group() if found else ""

    def _check_words(self, conversation: Conversation, at: int, prompt: str, text: str) -> None:
        """Refuse an answer whose words, or words said since the last one, are not rendered."""
        message = conversation.messages[at]
        if "reasoning_content" in message and not contains(text, message["reasoning_content"]):
            self._require_text()
            raise MissingFieldError(
                f"the chat template leaves out the reasoning of message {conversation.numbers[at]};"
                " `data: {ignore: [reasoning_content]}` learns the answer without it"
            )
        self.find_words(conversation, at, text)
        for earlier in range(at - 1, -1, -1):
            if conversation.messages[earlier]["role"] == "assistant":
                break
            self.find_words(conversation, earlier, prompt)

    def find_words(self, conversation: Conversation, at: int, text: str, start: int = 0) -> int:
        """Return where in a text a message's words stand, searched from `start` first.

        Raises:
            MissingFieldError: they do not.
        """
        message, number = conversation.messages[at], conversation.numbers[at]
        place = start
        for words in words_in(message):
            found = find(text, words, start)
            if found < 0:
                self._require_text()
                raise MissingFieldError(
                    f"the chat template leaves out or rewrites what was said in message {number} "
                    f"({shortened(words)}); leave the row out"
                )
            place = max(place, found)
        for call in message.get("tool_calls", ()):
            if not contains(text, call["function"]["name"]):
                raise MissingFieldError(
                    f"the chat template leaves out the tool calls of message {number}; "
                    "this base is never shown them, so leave the row out"
                )
        return place

    def _require_text(self) -> None:
        """Refuse a template that takes no plain text, only parts of it beside pictures.

        Raises:
            MissingFieldError: the template is such a one.
        """
        seen = []
        for content in (PLACEHOLDER, [{"type": "text", "text": PLACEHOLDER}]):
            try:
                found = self.template.render([{"role": "user", "content": content}], prompting=True)
                seen.append(PLACEHOLDER in found)
            except TemplateRefusal:
                seen.append(False)
        if seen == [False, True]:
            raise MissingFieldError(
                "the chat template of this base takes texts only as parts beside pictures, and "
                "pictures cannot be learnt; take a base for text"
            )

    def _advice(self, conversation: Conversation, reason: str) -> str:
        """Return what a template refuses, in which turn, and what can be done."""
        self._require_text()
        messages, low, high = conversation.messages, 1, len(conversation.messages)
        while low < high:  # the first turn with which it refuses
            middle = (low + high) // 2
            try:
                self._render(conversation, middle, prompting=False)
                low = middle + 1
            except TemplateRefusal as refusal:
                if refusal.reason == reason:
                    high = middle
                else:
                    low = middle + 1
        role, number = messages[low - 1]["role"], conversation.numbers[low - 1]
        where = f"message {number}" if number else "the column `system`"
        before = messages[low - 2]["role"] if low > 1 else None
        if role in ("system", "developer"):
            advice = "put its words into the first turn of the user"
        elif role == before:
            advice = f"join it with message {conversation.numbers[low - 2]}, which is by the same"
        elif role == "assistant" and low == 1:
            advice = "let the user begin, or leave this turn out"
        elif role == "tool" or "tool_calls" in messages[low - 1]:
            advice = "this base knows no tool calls so: leave the row out"
        else:
            advice = "mend the turn, or leave the row out"
        return (
            f"the chat template refuses the conversation ({reason}) at {where} by the {role}; "
            f"{advice}"
        )
