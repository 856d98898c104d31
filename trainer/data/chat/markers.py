"""Writes turns under plain headings, `### HUMAN:` and `### RESPONSE:`, for a base without any."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.chat.conversation import Conversation
from trainer.data.template import MissingFieldError

HUMAN = "### HUMAN:\n{}\n\n"
RESPONSE = "### RESPONSE:\n"
AFTER = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a rendered conversation; a learnt one is an answer."""

    text: str
    learnt: bool = False
    by_template: bool = False  # its special tokens count as such


def render_with_markers(conversation: Conversation) -> list[Segment]:
    """Render the turns under plain headings; the EOS after each answer is added later.

    Raises:
        MissingFieldError: the turns do not alternate, or hold more than text.
    """
    require_plain_turns(conversation)
    segments: list[Segment] = []
    for message, learnt in zip(conversation.messages, conversation.learnt, strict=True):
        content = message["content"]
        if message["role"] == "assistant":
            segments += [
                Segment(text=RESPONSE),
                Segment(text=content, learnt=learnt),
                Segment(text=AFTER),
            ]
        elif message["role"] == "user":
            segments.append(Segment(text=HUMAN.format(content)))
        else:
            segments.append(Segment(text=content + AFTER))
    return segments[:-1]  # nothing follows the last answer


def require_plain_turns(conversation: Conversation) -> None:
    """Refuse what the headings have no place for.

    Raises:
        MissingFieldError: the turns are not perhaps a system message and then user and assistant by
            turns, or hold reasoning, tool calls or tools.
    """
    base = "`chat: template` writes it as the base's own template does"
    if conversation.tools:
        raise MissingFieldError(f"`chat: markers` has no place for tools; {base}")
    expected = "user"
    for number, message in zip(conversation.numbers, conversation.messages, strict=True):
        role = message["role"]
        for key in ("reasoning_content", "tool_calls"):
            if key in message:
                raise MissingFieldError(
                    f"message {number} has `{key}`, and `chat: markers` has no place for it; "
                    f"{base}, or `data: {{ignore: [{key}]}}`"
                )
        if role == "system" and number == conversation.numbers[0]:
            continue
        if role != expected:
            raise MissingFieldError(
                f"message {number} is by {role!r}, and {expected}'s turn it is (`chat: markers` "
                f"wants them by turns); {base}, if that has one, or join the turns"
            )
        expected = "assistant" if expected == "user" else "user"
