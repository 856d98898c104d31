"""Reads what a message holds beside its role: text, reasoning, tool calls, whether it is learnt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data.template import MissingFieldError

TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")
MEDIA = {
    "image": "a picture",
    "image_url": "a picture",
    "input_image": "a picture",
    "video": "a video",
    "video_url": "a video",
    "audio": "sound",
    "audio_url": "sound",
    "input_audio": "sound",
    "file": "a file",
}
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
LEARN_IF_TRUE = ("weight", "train", "training", "trainable", "train_on_turn", "loss")
LEARN_IF_FALSE = ("mask", "masked")


def text_of(content: object, where: str) -> tuple[str | None, str | None]:
    """Return the text and the reasoning of a message's content; parts of text are joined.

    Raises:
        MissingFieldError: a part is a picture, sound or unknown, or the content is no text.
    """
    if content is None or isinstance(content, str):
        return content, None
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        kind = type(content).__name__
        raise MissingFieldError(f"{where}: `content` is a {kind}, neither text nor a list of parts")
    texts: list[str] = []
    reasoning: list[str] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        value = part if isinstance(part, str) else None
        if isinstance(part, Mapping):
            value = part.get(kind if kind in REASONING_PARTS else "text")
        if kind in MEDIA:
            raise MissingFieldError(
                f"{where} holds {MEDIA[kind]} (a part of type `{kind}`), and only text can be "
                "learnt; leave the row out"
            )
        if kind not in (*TEXT_PARTS, *REASONING_PARTS) or not isinstance(value, str):
            raise MissingFieldError(
                f"{where} holds a part of type `{kind}` that is not understood; write it as text"
            )
        (reasoning if kind in REASONING_PARTS else texts).append(value)
    return "".join(texts), "".join(reasoning) or None


def reasoning_of(message: Mapping[str, Any], in_parts: str | None, where: str) -> str | None:
    """Return the reasoning of a message, which may stand under any one of its three names.

    Raises:
        MissingFieldError: it is no text, or two names hold different ones.
    """
    found = [in_parts] if in_parts else []
    for key in REASONING_KEYS:
        value = message.get(key)
        if value is not None and not isinstance(value, str):
            raise MissingFieldError(f"{where}: `{key}` is a {type(value).__name__}, and no text")
        if value and value not in found:
            found.append(value)
    if len(found) > 1:
        raise MissingFieldError(f"{where} holds two different reasonings; keep one")
    return found[0] if found else None


def learns(message: Mapping[str, Any], where: str) -> bool | None:
    """Return whether a message says that it is learnt, or None where it says nothing.

    Raises:
        MissingFieldError: it says so by a number that is neither 0 nor 1, or says both.
    """
    found: dict[str, bool] = {}
    for key in (*LEARN_IF_TRUE, *LEARN_IF_FALSE):
        value = message.get(key)
        if value is None:
            continue
        numeric = isinstance(value, int | float) and value in (0, 1)
        if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
            value, numeric = value.strip().lower() == "true", True
        if not numeric:
            raise MissingFieldError(
                f"{where}: `{key}: {json.dumps(value, default=str)}` is understood as 0 or 1 "
                "(false or true) only: an answer is learnt or not"
            )
        if key == "mask" and not isinstance(value, bool):  # 1 means "learnt" to some, not to others
            raise MissingFieldError(
                f"{where}: `mask: {value}` can be read both ways; write `train: true` or "
                "`train: false`"
            )
        found[key] = bool(value) if key in LEARN_IF_TRUE else not value
    if len(set(found.values())) > 1:
        keys = " and ".join(f"`{key}`" for key in found)
        raise MissingFieldError(f"{where}: {keys} contradict each other")
    return next(iter(found.values()), None)


def tool_calls_of(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the calls of a message, each with a `function` of `name` and `arguments`.

    Arguments become an object, as servers hand them to a template, also where they are JSON text.

    Raises:
        MissingFieldError: a call has no name, or arguments that are no JSON object.
    """
    given = message.get("tool_calls")
    if message.get("function_call") is not None:  # OpenAI's older name for a single call
        given = [*(given or []), message["function_call"]]
    given = parsed_json(given, f"{where}: `tool_calls`")
    if isinstance(given, Mapping):
        given = [given]
    if given is None:
        return []
    if not isinstance(given, list):
        raise MissingFieldError(f"{where}: `tool_calls` is no list of calls")
    return [_tool_call(call, number, where) for number, call in enumerate(given, start=1)]


def _tool_call(call: object, number: int, where: str) -> dict[str, Any]:
    place = f"{where}: tool call {number}"
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not name:
        raise MissingFieldError(f"{place} has no function with a `name`")
    if not isinstance(name, str):
        raise MissingFieldError(f"{place}: `name` is no text")
    in_call, in_function = {"id", "type", "function", "index"}, {"name", "arguments", "parameters"}
    if function is call:
        in_call |= in_function
    strangers = set(map(str, call)) - in_call
    if function is not call:
        strangers |= set(map(str, function)) - in_function
    if strangers:
        raise MissingFieldError(f"{place} holds `{min(strangers)}`, which is not understood")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = {} if arguments in (None, "") else parsed_json(arguments, f"{place}: `arguments`")
    if not isinstance(arguments, Mapping):
        raise MissingFieldError(f"{place}: `arguments` is no JSON object")
    found: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        found["id"] = str(call["id"])
    return {**found, "function": {"name": name, "arguments": dict(arguments)}}


def tools_of(value: object, where: str) -> list[dict[str, Any]] | None:
    """Return the tools of a row in the form `{"type": "function", "function": {...}}`.

    Raises:
        MissingFieldError: they are neither a list of objects with a name nor the JSON text of one.
    """
    value = None if value == "" else parsed_json(value, where)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise MissingFieldError(f"{where} is no list of tools")
    found = []
    for number, tool in enumerate(value, start=1):
        bare = "function" not in tool
        if not isinstance((tool if bare else tool["function"]), Mapping) or not (
            tool if bare else tool["function"]
        ).get("name"):
            raise MissingFieldError(f"{where}: tool {number} has no function with a `name`")
        if bare:
            described = {key: item for key, item in tool.items() if key != "type"}
            tool = {"type": "function", "function": described}  # noqa: PLW2901 - one form for all
        found.append(_without_nulls(dict(tool)))
    return found


def parsed_json(value: object, where: str) -> Any:
    """Return a value, parsed where it is JSON text.

    Raises:
        MissingFieldError: it is text and no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MissingFieldError(f"{where} is text that is no JSON ({error})") from error


def strings_in(value: object) -> Sequence[str]:
    """Return every string inside a value, keys of objects among them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [one for pair in value.items() for item in pair for one in strings_in(item)]
    if isinstance(value, list | tuple):
        return [one for item in value for one in strings_in(item)]
    return []


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null: Parquet gives every row all keys."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
