"""Tokenizes conversations so that every answer with its end, and nothing else, is learnt.

Two ways of writing turns: `markers`, as `### HUMAN:` and `### RESPONSE:`, and `template`, the chat
template that came with the tokenizer. A conversation that is too long loses its oldest exchanges
first, then the middle of its last question, and never a part of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from trainer.data.codec import NOT_TRAINED, Codec, Example, TooLongError
from trainer.data.template import MissingFieldError, Template

HUMAN = "### HUMAN:\n{}\n\n"
RESPONSE = "### RESPONSE:\n"
AFTER = "\n\n"
PLACEHOLDER = "\ue000"  # of the characters for private use: no template writes it
NO_SPECIAL_TOKENS = Template.parse("")  # what people wrote is only text


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a rendered conversation; a learnt one is an answer."""

    text: str
    learnt: bool = False
    by_template: bool = False  # its special tokens count as such


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The tokens of an answer, and those before it since the last answer (`ids`)."""

    ids: list[int]
    answer: list[int]


def encode_conversation(
    codec: Codec, messages: object, *, style: str, row: int
) -> tuple[Example, bool]:
    """Tokenize one conversation; return the example, and whether it was shortened.

    Raises:
        MissingFieldError: `messages` is no conversation that ends with an answer.
        TooLongError: an answer alone does not fit.
    """
    turns = validate_messages(messages)
    render = partial(render_with_template, codec) if style == "template" else render_with_markers
    segments = render(turns)
    exchanges, cut = _tokens(codec, segments), False
    _check_answers(codec, exchanges)
    while len(exchanges) > 1 and _length(codec, exchanges) > codec.max_length:
        # Rendered anew, so that what opens a conversation (a system message, a BOS) stays.
        turns, cut = _without_oldest(turns), True
        segments = render(turns)
        exchanges = _tokens(codec, segments)
    if _length(codec, exchanges) > codec.max_length:
        exchanges, cut = [_truncated(codec, exchanges[0])], True
    ids, labels = list(codec.prefix), [NOT_TRAINED] * len(codec.prefix)
    start = 0
    for exchange in exchanges:
        ids += exchange.ids
        start = len(ids)
        ids += exchange.answer
        labels += [NOT_TRAINED] * len(exchange.ids) + exchange.answer
    prompt = "".join(segment.text for segment in segments[:-1])
    return Example(tuple(ids), tuple(labels), prompt, turns[-1]["content"], row, start), cut


def validate_messages(messages: object) -> list[Mapping[str, str]]:
    """Return the messages if they are a conversation: perhaps a system message, then turns.

    Raises:
        MissingFieldError: they are not; the message says where it breaks.
    """
    if not isinstance(messages, list) or not messages:
        raise MissingFieldError("the conversation is no list of messages")
    expected = "user"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise MissingFieldError(f"message {number} is no object with `role` and `content`")
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise MissingFieldError(f"message {number} says nothing")
        if role == "system" and number == 1:
            continue
        if role != expected:
            raise MissingFieldError(f"message {number} is by {role!r}, and {expected}'s turn it is")
        expected = "assistant" if expected == "user" else "user"
    if expected == "assistant" or len(messages) < 2:
        raise MissingFieldError("the conversation does not end with an answer")
    return messages


def render_with_markers(messages: Sequence[Mapping[str, str]]) -> list[Segment]:
    """Render the turns under plain headings; the EOS after each answer is added later."""
    segments: list[Segment] = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            segments += [
                Segment(text=RESPONSE),
                Segment(text=content, learnt=True),
                Segment(text=AFTER),
            ]
        elif message["role"] == "user":
            segments.append(Segment(text=HUMAN.format(content)))
        else:
            segments.append(Segment(text=content + AFTER))
    return segments[:-1]  # nothing follows the last answer


def render_with_template(codec: Codec, messages: Sequence[Mapping[str, str]]) -> list[Segment]:
    """Render the turns with the tokenizer's chat template, split where answers begin and end.

    An answer ends with the token that the template closes a turn with. Many templates have one of
    their own, such as `<|im_end|>`, beside the tokenizer's EOS.

    What the template writes between its prompt and the answer's own words is read, not learnt, so
    a heading that only a finished turn carries is part of the prompt at inference, too.

    Raises:
        MissingFieldError: a message holds a special token, or the template refuses, leaves out or
            rewrites what was said.
    """
    if not getattr(codec.tokenizer, "chat_template", None):
        raise MissingFieldError("the tokenizer has no chat template; use `chat: markers`")
    for number, message in enumerate(messages, start=1):
        for token in codec.special_tokens:
            if token in message["content"]:
                raise MissingFieldError(f"message {number} holds the control token {token!r}")
    closing = [*codec.special_tokens, codec.tokenizer.convert_ids_to_tokens(codec.eos_id)]
    segments: list[Segment] = []
    written = ""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(codec, messages[:at], prompting=True)
        after = _rendered(codec, messages[: at + 1], prompting=False)
        if not before.startswith(written) or not after.startswith(before):
            raise MissingFieldError("the chat template rewrites earlier turns; use `chat: markers`")
        before += _heading(codec, messages[: at + 1], before, after)
        answer = _closed(after[len(before) :], message["content"], closing)
        segments += [
            Segment(text=before[len(written) :], by_template=True),
            Segment(text=answer, learnt=True, by_template=True),
        ]
        written = before + answer
    for number, message in enumerate(messages, start=1):
        if message["content"].strip() not in written:
            raise MissingFieldError(
                f"the chat template leaves out or rewrites what was said in message {number}; "
                "use `chat: markers`"
            )
    return segments


def _heading(codec: Codec, messages: Sequence[Mapping[str, str]], before: str, after: str) -> str:
    """Return the text between a rendered prompt and the answer to it."""
    turn, answer = after[len(before) :], messages[-1]["content"].strip()
    if turn.lstrip().startswith(answer):
        return ""
    # The answer may also stand in the heading (`assistant`); a placeholder cannot.
    other = _rendered(
        codec, [*messages[:-1], {**messages[-1], "content": PLACEHOLDER}], prompting=False
    )
    heading = other[len(before) :].partition(PLACEHOLDER)[0]
    return heading if turn[len(heading) :].startswith(answer) else ""


def _closed(turn: str, content: str, closing: Sequence[str]) -> str:
    """Return a rendered answer, cut after the special token that closes it, if there is one."""
    start = turn.find(content.strip())
    if start < 0:
        raise MissingFieldError("the chat template rewrites what was said; use `chat: markers`")
    end = start + len(content.strip())
    places = ((turn.find(token, end), token) for token in closing)
    first = min(((at, token) for at, token in places if at >= 0), default=None)
    return turn if first is None else turn[: first[0] + len(first[1])]


def _rendered(codec: Codec, messages: Sequence[Mapping[str, str]], *, prompting: bool) -> str:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        # Of the tokenizer's own `apply_chat_template`, which sees today, and takes no other day.
        compiled = _compile_jinja_template(codec.tokenizer.get_chat_template())
        text: str = compiled.render(
            messages=list(messages),
            add_generation_prompt=prompting,
            strftime_now=codec.day.strftime,
            **codec.tokenizer.special_tokens_map,
        )
    except TemplateError as error:  # many refuse a system message, or want other roles
        raise MissingFieldError(
            f"the chat template refuses the conversation ({error}); use `chat: markers`"
        ) from error
    return text


def _tokens(codec: Codec, segments: Sequence[Segment]) -> list[Exchange]:
    """Tokenize answers apart from what is before them: generation has the same prompt tokens.

    What is before an answer is one text, as others would write it: tokenizers that begin each text
    with a space put none into its middle. Every answer ends with a special token: the template's
    own, or EOS where it has none. After the last one EOS always follows, so that the model learns
    to stop.
    """
    closing = {*codec.special_tokens.values(), codec.eos_id}
    exchanges: list[Exchange] = []
    lead: list[int] = []
    for segment in _joined(segments):
        template = (
            Template.parse(_literal(segment.text)) if segment.by_template else NO_SPECIAL_TOKENS
        )
        ids = codec.encode([segment.text], template)[0] if segment.text else []
        if segment.learnt:
            open_ended = ids[-1] not in closing if ids else True
            if open_ended or (segment is segments[-1] and ids[-1] != codec.eos_id):
                ids = [*ids, codec.eos_id]
            exchanges.append(Exchange(ids=lead, answer=ids))
            lead = []
        else:
            lead = ids
    first, prefix = exchanges[0], list(codec.prefix)
    if prefix and first.ids[: len(prefix)] == prefix:  # the template writes its BOS itself
        exchanges[0] = Exchange(ids=first.ids[len(prefix) :], answer=first.answer)
    return exchanges


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments with neighbours that are not learnt joined to one."""
    found: list[Segment] = []
    for segment in segments:
        if found and not segment.learnt and not found[-1].learnt:
            found[-1] = replace(segment, text=found[-1].text + segment.text)
        else:
            found.append(segment)
    return found


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _check_answers(codec: Codec, exchanges: Sequence[Exchange]) -> None:
    room = codec.max_length - len(codec.prefix)
    for exchange in exchanges:
        if len(exchange.answer) > room:
            raise TooLongError(
                f"an answer needs {len(exchange.answer)} tokens with its end, and `max_length` "
                f"leaves {room}; raise it or leave the conversation out"
            )


def _length(codec: Codec, exchanges: Sequence[Exchange]) -> int:
    return len(codec.prefix) + sum(len(one.ids) + len(one.answer) for one in exchanges)


def _without_oldest(turns: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    opening = 1 if turns[0]["role"] == "system" else 0
    return [*turns[:opening], *turns[opening + 2 :]]


def _truncated(codec: Codec, exchange: Exchange) -> Exchange:
    """Return an exchange that fits: what stands before the answer loses its middle."""
    spare = codec.max_length - len(codec.prefix) - len(exchange.answer)
    tail = (spare + 1) // 2
    ids = exchange.ids[: spare - tail] + exchange.ids[len(exchange.ids) - tail :]
    return Exchange(ids=ids, answer=exchange.answer)
