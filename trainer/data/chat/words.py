"""Looks for what was said in what was rendered, and for control tokens in what was said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from trainer.data.chat.conversation import Conversation, Message
from trainer.data.chat.message_parts import strings_in

THOUGHT = re.compile(r"\s*(?:<think>)?(?P<reasoning>.*?)</think>", re.DOTALL)


def contains(text: str, words: str) -> bool:
    """Return whether a text holds words as they are, or as JSON writes them."""
    return find(text, words.strip(), 0) >= 0


def find(text: str, words: str, start: int) -> int:
    """Return where words stand, from `start` or else from the beginning; -1 where they do not."""
    for form in (words, json.dumps(words, ensure_ascii=False)[1:-1]):
        found = text.find(form, start)
        if found < 0 and start:
            found = text.find(form)
        if found >= 0:
            return found
    return -1


def words_in(message: Mapping[str, Any]) -> list[str]:
    """Return the words of a message that a rendering must hold, each without space around it."""
    content = str(message.get("content") or "")
    if message["role"] != "assistant" or "</think>" not in content:
        return [content.strip()] if content.strip() else []
    return [part for one in re.split("</?think>", content) if (part := one.strip())]


def reasoning_in(message: Message) -> str:
    """Return the reasoning of an answer, from its own key or from `<think>` in its text."""
    given = message.get("reasoning_content")
    if given is None:
        found = THOUGHT.match(str(message.get("content") or ""))
        given = found["reasoning"] if found else ""
    return str(given).strip()


def with_text_arguments(message: Message) -> Message:
    """Return a message with the arguments of its tool calls as JSON text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(
            call["function"]["arguments"], ensure_ascii=False)}}
        for call in message.get("tool_calls", ())
    ]  # fmt: skip
    return {**message, "tool_calls": calls} if calls else message


def shortened(words: str) -> str:
    """Return the beginning of what was said, to show where it is."""
    return repr(words if len(words) <= 40 else words[:37] + "...")


def special_in(conversation: Conversation, pattern: re.Pattern[str]) -> tuple[int, str] | None:
    """Return the first turn that holds a control token, and the token; tools count as turn 0."""
    for number, message in zip(conversation.numbers, conversation.messages, strict=True):
        for text in strings_in(message):
            own = re.sub("</?think>", "", text) if message["role"] == "assistant" else text
            if found := pattern.search(own):
                return number, found.group()
    for text in strings_in([conversation.tools, conversation.template_kwargs]):
        if found := pattern.search(text):
            return 0, found.group()
    return None


def find_special_end(text: str, start: int, token: str, count: int) -> int:
    """Return the end of the `count`th such token behind `start`, or -1."""
    end = start
    for _ in range(count):
        place = text.find(token, end)
        if place < 0:
            return -1
        end = place + len(token)
    return end


def common_prefix(one: str, other: str) -> str:
    """Return the text that both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return one[:low]
