"""Reads a row's conversation once, at the border: roles, text, tools, and what is not learnt.

Whatever is not understood is refused by name, with `data: {ignore: [KEY]}` as the way out: a key
that changes the meaning of a conversation must not get lost in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.data.chat import message_parts as parts
from trainer.data.template import MissingFieldError, Template

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""How published formats call who speaks; `function_call` is a turn whose text is a tool call."""
CALLS_AS_TEXT = ("function_call", "tool_call")
MESSAGE_KEYS = frozenset(
    {
        "role", "content", "from", "value", "name", "tool_call_id", "tool_calls", "function_call",
        *parts.REASONING_KEYS, *parts.LEARN_IF_TRUE, *parts.LEARN_IF_FALSE,
    }
)  # fmt: skip
ROW_KEYS = frozenset({"system", "tools", "functions", "chat_template_kwargs"})
DESCRIPTIONS = frozenset(
    {
        "_id", "category", "conversation_hash", "conversation_id", "created",
        "created_at", "dataset", "dataset_id", "dataset_name", "date", "domain", "file",
        "filename", "generator", "group", "hash", "id", "idx", "index", "lang",
        "language", "license", "meta", "metadata", "model", "model_name", "n_tokens",
        "n_turns", "num_tokens", "num_turns", "origin", "parallel_tool_calls",
        "prompt_id", "row_id", "sample_id", "source", "source_id", "split", "subset",
        "tag", "tags", "task", "task_id", "thread_id", "timestamp", "title", "topic",
        "turn", "turns", "uid", "url", "uuid", "version",
    }
)  # fmt: skip
"""Columns that describe a conversation and are no part of it; `group` keeps rows together."""
MEDIA_COLUMNS = frozenset(
    {
        "audio", "audios", "image", "image_path", "image_paths", "images", "media",
        "picture", "pictures", "sound", "sounds", "speech", "video", "videos",
    }
)  # fmt: skip
PREFERENCES = frozenset(
    {
        "chosen", "kto_tag", "preference", "preferences", "rejected", "score_chosen",
    }
)  # fmt: skip
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The turns of one row in the form that chat templates take, the last one an answer to learn.

    `numbers` are the places of the turns in their row, from 1; 0 is the row's `system` column.
    """

    messages: tuple[Message, ...]
    learnt: tuple[bool, ...]
    numbers: tuple[int, ...]
    tools: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The words of the last answer."""
        return str(self.messages[-1].get("content") or "")

    def upto(self, end: int) -> Conversation:
        """Return the first `end` turns."""
        return self._picked(range(end))

    def exchange_starts(self) -> list[int]:
        """Return where each exchange begins: with the first that speaks after an answer.

        Answers, tool calls and results in between belong to an exchange; what stands first
        (system, developer) belongs to none.
        """
        starts, answered = [self.opening], False
        for at in range(self.opening, len(self.messages)):
            role = self.messages[at]["role"]
            if answered and role == "user":
                starts.append(at)
                answered = False
            answered = answered or role == "assistant"
        return starts

    def since(self, start: int) -> Conversation:
        """Return the turns from `start` on, behind the system and developer turns."""
        return self._picked((*range(self.opening), *range(start, len(self.messages))))

    def require_all_learnt(self) -> None:
        """Refuse a conversation of which an answer is not learnt, where every token would be.

        Raises:
            MissingFieldError: names the answer.
        """
        for message, learnt, number in zip(
            self.messages[1:], self.learnt[1:], self.numbers[1:], strict=True
        ):
            if message["role"] == "assistant" and not learnt:
                raise MissingFieldError(
                    f"message {number} says that it is not learnt, and `data: {{loss_on: all}}` "
                    "learns every token; keep one of them"
                )

    @property
    def opening(self) -> int:
        """The number of system and developer turns at the beginning."""
        roles = [message["role"] for message in self.messages]
        return next((at for at, role in enumerate(roles) if role not in OPENING), len(roles))

    def _picked(self, places: Sequence[int]) -> Conversation:
        return replace(
            self,
            messages=tuple(self.messages[at] for at in places),
            learnt=tuple(self.learnt[at] for at in places),
            numbers=tuple(self.numbers[at] for at in places),
        )


OPENING = ("system", "developer")


def read_conversation(
    fields: Mapping[str, Any], name: str, *, ignore: Sequence[str] = ()
) -> Conversation:
    """Return the conversation that a row holds in the field `name`, with the row's tools.

    Raises:
        MissingFieldError: it is none, holds what is not understood, or has no answer to learn.
    """
    value = Template.parse("{" + name + "}").value(fields)
    beside = _beside(fields, name, ignore)
    found = parse_messages(value, ignore=ignore)
    _check_columns(beside, found, name)
    system = beside.get("system")
    if isinstance(system, str) and system.strip():
        first = found.messages[0]
        if first["role"] in OPENING and first.get("content") != system:
            raise MissingFieldError(
                "the row has a `system` column beside a system turn that differs; keep one, or "
                "`data: {ignore: [system]}`"
            )
        if first["role"] not in OPENING:
            found = replace(
                found,
                messages=({"role": "system", "content": system}, *found.messages),
                learnt=(False, *found.learnt),
                numbers=(0, *found.numbers),
            )
    elif system is not None and not isinstance(system, str):
        raise MissingFieldError("the column `system` is no text")
    given = [key for key in ("tools", "functions") if beside.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise MissingFieldError("the row has both `tools` and `functions`; keep one")
    tools = parts.tools_of(beside[given[0]], f"the column `{given[0]}`") if given else None
    return replace(found, tools=tools, template_kwargs=_template_kwargs(beside))


def parse_messages(messages: object, *, ignore: Sequence[str] = ()) -> Conversation:
    """Return the turns of a conversation up to the last answer that is learnt.

    Raises:
        MissingFieldError: it is no conversation; the message says where it breaks.
    """
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # of a CSV
        messages = parts.parsed_json(messages, "the conversation")
    if not isinstance(messages, list) or not messages:
        raise MissingFieldError("the conversation is no list of messages")
    read = [_message(one, number, ignore) for number, one in enumerate(messages, start=1)]
    if read[0][0]["role"] == "assistant":  # a greeting: no prompt asks for it, so it is context
        read[0] = (read[0][0], False)
    if read[-1][0]["role"] != "assistant":
        raise MissingFieldError(
            "the conversation does not end with an answer; leave out what follows the last one"
        )
    end = max((at + 1 for at, (_, learnt) in enumerate(read) if learnt), default=0)
    if not end:
        raise MissingFieldError("every answer of the conversation says that it is not learnt")
    if len(messages) < 2:
        raise MissingFieldError("the conversation is an answer to nothing: nobody speaks before")
    return Conversation(
        messages=tuple(message for message, _ in read[:end]),
        learnt=tuple(learnt for _, learnt in read[:end]),
        numbers=tuple(range(1, end + 1)),
    )


def _message(given: object, number: int, ignore: Sequence[str]) -> tuple[Message, bool]:
    """Return one turn as chat templates take it, and whether it is learnt."""
    where = f"message {number}"
    if not isinstance(given, Mapping):
        raise MissingFieldError(f"{where} is no object with `role` and `content`")
    present = {
        key: value for key, value in given.items() if value is not None and key not in ignore
    }
    for key in present:
        if key not in MESSAGE_KEYS:
            raise MissingFieldError(
                f"{where} has a key `{key}` that is not understood; if it does not matter, "
                f"`data: {{ignore: [{key}]}}`"
            )
    author = present.get("role", present.get("from"))
    role = ROLES.get(author.strip().lower()) if isinstance(author, str) else None
    if role is None:
        raise MissingFieldError(
            f"{where} is by {author!r}; known are system, developer, user, assistant and tool"
        )
    text, reasoning = parts.text_of(present.get("content", present.get("value")), where)
    if author in CALLS_AS_TEXT and text:
        present, text = {**present, "tool_calls": text}, None
    calls = parts.tool_calls_of(present, where)
    reasoning = parts.reasoning_of(present, reasoning, where)
    if role != "assistant" and (calls or reasoning):
        what = "tool calls" if calls else "reasoning"
        raise MissingFieldError(f"{where} is by the {role} and holds {what}; only answers may")
    if not (text and text.strip()) and not calls and role != "tool":
        raise MissingFieldError(f"{where} says nothing")
    learnt = parts.learns(present, where)
    if learnt and role != "assistant" and not {"weight", "loss"} & present.keys():
        raise MissingFieldError(f"{where} is by the {role} and asks to be learnt; only answers are")
    message: Message = {"role": role}
    if text is not None:
        message["content"] = text
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if key in present:
            message[key] = str(present[key])
    return message, role == "assistant" and learnt is not False


def _beside(fields: Mapping[str, Any], name: str, ignore: Sequence[str]) -> dict[str, Any]:
    """Return what stands beside the conversation in its row, and in the object that holds it."""
    beside = dict(fields)
    if name in fields:
        beside.pop(name)
    else:
        holder: Any = fields
        *outer, last = name.split(".")
        for key in outer:
            holder = holder[key]
        beside.pop(outer[0])
        beside |= {key: value for key, value in holder.items() if key != last}
    return {
        key: value
        for key, value in beside.items()
        if key not in ignore and value is not None and value not in ("", [], {})
    }


def _check_columns(beside: Mapping[str, Any], found: Conversation, name: str) -> None:
    contents = {message.get("content") for message in found.messages}
    for key, value in beside.items():
        if key in ROW_KEYS or key in DESCRIPTIONS:
            continue
        if isinstance(value, str) and value in contents:  # the first question once more, say
            continue
        if name == "chosen" and (key in PREFERENCES or key.startswith("score")):
            continue  # whoever names this column has chosen
        if key in MEDIA_COLUMNS:
            reason = "holds pictures, films or sound, and only text can be learnt"
        elif key in PREFERENCES:
            reason = "is a preference between answers, which this training does not learn"
        else:
            reason = "is not understood"
        raise MissingFieldError(
            f"the column `{key}` beside `{name}` {reason}; if it does not matter, "
            f"`data: {{ignore: [{key}]}}`"
        )


def _template_kwargs(beside: Mapping[str, Any]) -> Mapping[str, Any]:
    where = "the column `chat_template_kwargs`"
    given = parts.parsed_json(beside.get("chat_template_kwargs", {}), where)
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise MissingFieldError(f"{where} is no object of names and values")
    taken = sorted(RESERVED & given.keys())
    if taken:
        raise MissingFieldError(f"{where} must not name `{taken[0]}`")
    return {key: value for key, value in given.items() if value is not None}
