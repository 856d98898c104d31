"""Turns conversations into tokens in which every answer, and nothing else, is learnt with its end.

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
STAND_IN = "\ue000"  # of the characters for private use: no template writes it
PLAIN = Template.parse("")  # a template without control tokens: what people wrote is only text


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a conversation; a learnt one is an answer."""

    text: str
    learnt: bool = False
    control: bool = False  # written by a chat template, whose control tokens count as such


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What leads to an answer, and the answer; `ids` and `answer` are its tokens."""

    ids: list[int]
    answer: list[int]


def encode_conversation(
    codec: Codec, messages: object, *, style: str, row: int
) -> tuple[Example, bool]:
    """Return the example of one conversation, and whether it was shortened.

    Raises:
        MissingFieldError: `messages` is no conversation that ends with an answer.
        TooLongError: an answer alone does not fit.
    """
    talk = validate_messages(messages)
    write = partial(render_with_template, codec) if style == "template" else render_with_markers
    pieces = write(talk)
    exchanges, cut = _tokens(codec, pieces), False
    _check_answers(codec, exchanges)
    while len(exchanges) > 1 and _length(codec, exchanges) > codec.max_length:
        # Written anew, so that what opens a conversation (a system's word, a BOS) stays.
        talk, cut = _without_oldest(talk), True
        pieces = write(talk)
        exchanges = _tokens(codec, pieces)
    if _length(codec, exchanges) > codec.max_length:
        exchanges, cut = [_squeezed(codec, exchanges[0])], True
    ids, labels = list(codec.prefix), [NOT_TRAINED] * len(codec.prefix)
    start = 0
    for exchange in exchanges:
        ids += exchange.ids
        start = len(ids)
        ids += exchange.answer
        labels += [NOT_TRAINED] * len(exchange.ids) + exchange.answer
    asked = "".join(piece.text for piece in pieces[:-1])
    return Example(tuple(ids), tuple(labels), asked, talk[-1]["content"], row, start), cut


def validate_messages(messages: object) -> list[Mapping[str, str]]:
    """Return the messages if they are a conversation: a system's word, then turn and turn about.

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
    """Write the turns under plain headings; the end token after each answer is added later."""
    pieces: list[Segment] = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            pieces += [
                Segment(text=RESPONSE),
                Segment(text=content, learnt=True),
                Segment(text=AFTER),
            ]
        elif message["role"] == "user":
            pieces.append(Segment(text=HUMAN.format(content)))
        else:
            pieces.append(Segment(text=content + AFTER))
    return pieces[:-1]  # nothing follows the last answer


def render_with_template(codec: Codec, messages: Sequence[Mapping[str, str]]) -> list[Segment]:
    """Write the turns with the tokenizer's template, cut where answers begin and end.

    An answer ends with the token that the template closes a turn with. Many templates have one of
    their own, such as `<|im_end|>`, beside the tokenizer's EOS.

    What the template writes between its prompt and the answer's own words is read, not learnt, so
    a heading that only a finished turn carries is given to the model when it is asked, too.

    Raises:
        MissingFieldError: a message holds a control token, or the template refuses, leaves out or
            rewrites what was said.
    """
    if not getattr(codec.tokenizer, "chat_template", None):
        raise MissingFieldError("the tokenizer has no chat template; use `chat: markers`")
    for number, message in enumerate(messages, start=1):
        for token in codec.special_tokens:
            if token in message["content"]:
                raise MissingFieldError(f"message {number} holds the control token {token!r}")
    closing = [*codec.special_tokens, codec.tokenizer.convert_ids_to_tokens(codec.eos_id)]
    pieces: list[Segment] = []
    written = ""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(codec, messages[:at], asking=True)
        after = _rendered(codec, messages[: at + 1], asking=False)
        if not before.startswith(written) or not after.startswith(before):
            raise MissingFieldError("the chat template rewrites earlier turns; use `chat: markers`")
        before += _heading(codec, messages[: at + 1], before, after)
        answer = _closed(after[len(before) :], message["content"], closing)
        pieces += [
            Segment(text=before[len(written) :], control=True),
            Segment(text=answer, learnt=True, control=True),
        ]
        written = before + answer
    for number, message in enumerate(messages, start=1):
        if message["content"].strip() not in written:
            raise MissingFieldError(
                f"the chat template leaves out or rewrites what was said in message {number}; "
                "use `chat: markers`"
            )
    return pieces


def _heading(codec: Codec, messages: Sequence[Mapping[str, str]], before: str, after: str) -> str:
    """Return what stands between a rendered prompt and the words of the answer to it."""
    turn, words = after[len(before) :], messages[-1]["content"].strip()
    if turn.lstrip().startswith(words):
        return ""
    # The words may also stand in the heading (`assistant`): a stand-in that cannot tells where.
    other = _rendered(codec, [*messages[:-1], {**messages[-1], "content": STAND_IN}], asking=False)
    heading = other[len(before) :].partition(STAND_IN)[0]
    return heading if turn[len(heading) :].startswith(words) else ""


def _closed(turn: str, content: str, closing: Sequence[str]) -> str:
    """Return a rendered answer up to and with the control token that closes it, if there is one."""
    said = turn.find(content.strip())
    if said < 0:
        raise MissingFieldError("the chat template rewrites what was said; use `chat: markers`")
    end = said + len(content.strip())
    places = ((turn.find(token, end), token) for token in closing)
    first = min(((at, token) for at, token in places if at >= 0), default=None)
    return turn if first is None else turn[: first[0] + len(first[1])]


def _rendered(codec: Codec, messages: Sequence[Mapping[str, str]], *, asking: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = codec.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asking
        )
    except TemplateError as error:  # many refuse a system's word, or want turns of their own kind
        raise MissingFieldError(
            f"the chat template refuses the conversation ({error}); use `chat: markers`"
        ) from error
    return text


def _tokens(codec: Codec, pieces: Sequence[Segment]) -> list[Exchange]:
    """Tokenize answers apart from what leads to them: generation meets the same tokens before one.

    What leads to an answer is one text, as others would write it: tokenizers that begin each text
    with a space put none into its middle. Every answer ends with a control token: the template's
    own, or EOS where it has none. After the last one EOS always follows, so that the model learns
    to stop.
    """
    closing = {*codec.special_tokens.values(), codec.eos_id}
    exchanges: list[Exchange] = []
    lead: list[int] = []
    for piece in _joined(pieces):
        template = Template.parse(_literal(piece.text)) if piece.control else PLAIN
        ids = codec.encode([piece.text], template)[0] if piece.text else []
        if piece.learnt:
            open_ended = ids[-1] not in closing if ids else True
            if open_ended or (piece is pieces[-1] and ids[-1] != codec.eos_id):
                ids = [*ids, codec.eos_id]
            exchanges.append(Exchange(ids=lead, answer=ids))
            lead = []
        else:
            lead = ids
    first, prefix = exchanges[0], list(codec.prefix)
    if prefix and first.ids[: len(prefix)] == prefix:  # the template writes its BOS itself
        exchanges[0] = Exchange(ids=first.ids[len(prefix) :], answer=first.answer)
    return exchanges


def _joined(pieces: Sequence[Segment]) -> list[Segment]:
    """Return the pieces with neighbours that are read made one."""
    found: list[Segment] = []
    for piece in pieces:
        if found and not piece.learnt and not found[-1].learnt:
            found[-1] = replace(piece, text=found[-1].text + piece.text)
        else:
            found.append(piece)
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


def _without_oldest(talk: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    opening = 1 if talk[0]["role"] == "system" else 0
    return [*talk[:opening], *talk[opening + 2 :]]


def _squeezed(codec: Codec, exchange: Exchange) -> Exchange:
    """Return an exchange that fits: what leads to the answer loses its middle."""
    spare = codec.max_length - len(codec.prefix) - len(exchange.answer)
    tail = (spare + 1) // 2
    ids = exchange.ids[: spare - tail] + exchange.ids[len(exchange.ids) - tail :]
    return Exchange(ids=ids, answer=exchange.answer)
