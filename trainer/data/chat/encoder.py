"""Tokenizes conversations so that every answer with its end, and nothing else, is learnt.

Two ways of writing turns: `markers`, as `### HUMAN:` and `### RESPONSE:`, and `template`, the chat
template that came with the tokenizer. Where the template only appends, a conversation is one
example; where it rewrites what was before, every answer is one, behind the very prompt that
generation makes for it. A conversation that is too long loses its oldest exchanges first, then the
middle of its last question, and never a part of an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from typing import Any, Literal

from trainer.data.chat.answers import AnswerRenderer
from trainer.data.chat.conversation import Conversation
from trainer.data.chat.ends import TurnEnds
from trainer.data.chat.markers import Segment, render_with_markers, require_plain_turns
from trainer.data.chat.template import ChatTemplate
from trainer.data.chat.whole import WholeRenderer
from trainer.data.chat.words import special_in
from trainer.data.codec import NOT_TRAINED, Codec, Example, TooLongError
from trainer.data.template import MissingFieldError, Template


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The tokens of an answer, and those before it since the last answer (`ids`)."""

    ids: list[int]
    answer: list[int]


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """One example as text: its segments, and which answers of the conversation are in it."""

    segments: list[Segment]
    opening: str = ""
    ends: bool = True  # the last segment is the conversation's last answer


@dataclass(kw_only=True)
class ChatEncoder:
    """Encodes the conversations of a data set with one codec, in one way of writing turns."""

    codec: Codec
    style: Literal["markers", "template"]
    answers: Literal["all", "last"] = "all"
    _wholes: dict[bool, WholeRenderer] = field(default_factory=dict)

    def encode(self, conversation: Conversation, *, row: int) -> list[tuple[Example, bool]]:
        """Tokenize one conversation; return its examples, and whether each was shortened.

        Raises:
            MissingFieldError: the template or the headings do not take it; the reason is named.
            TooLongError: an answer alone does not fit.
        """
        if self.answers == "last":
            last = len(conversation.messages) - 1
            learnt = tuple(at == last for at in range(last + 1))
            conversation = replace(conversation, learnt=learnt)
        if self.style == "markers":
            return [self._fitting(conversation, row)]
        self._check_template(conversation)
        self._check_control_tokens(conversation)
        rendering = self._appended(conversation)
        if rendering is not None:
            return [self._fitting(conversation, row, rendering)]
        return list(self._one_by_one(conversation, row))

    def stop_ids(self) -> tuple[int, ...]:
        """Return the tokens that end an answer: EOS, and what the template closes a turn with."""
        if self.style == "markers" or not self.codec.tokenizer.chat_template:
            return (self.codec.eos_id,)
        ends = self._whole(tools=False).renderer.ends
        ids = self._encoded([Segment(text=ends.closing or ends.next_begins, by_template=True)])[0]
        return tuple(dict.fromkeys((self.codec.eos_id, *ids)))

    def _fitting(
        self, conversation: Conversation, row: int, rendering: Rendering | None = None
    ) -> tuple[Example, bool]:
        """Return one example of all answers, without the oldest exchanges if it is too long."""
        rendering = rendering or self._rendered(conversation)
        exchanges = self._tokens(rendering)
        self._check_answers(exchanges)
        cut = self._length(exchanges) > self.codec.max_length
        if cut and len(conversation.exchange_starts()) > 1:
            conversation, rendering, exchanges = self._shortened(conversation, exchanges)
        if self._length(exchanges) > self.codec.max_length:
            exchanges = [self._truncated(exchanges)]
        return self._example(conversation, rendering, exchanges, row), cut

    def _rendered(self, conversation: Conversation) -> Rendering:
        if self.style == "markers":
            return Rendering(segments=render_with_markers(conversation))
        found = self._appended(conversation)
        if found is None:  # without its beginning the template does rewrite: the last answer counts
            found = self._prompted(conversation, len(conversation.messages) - 1)
        return found

    def _shortened(
        self, conversation: Conversation, exchanges: list[Exchange]
    ) -> tuple[Conversation, Rendering, list[Exchange]]:
        """Leave out the fewest oldest exchanges with which the rest fits, or all but the last.

        The rest is rendered anew, so that what opens a conversation (a system message, a BOS)
        stays. How many must go is counted in the tokens there are, and then tried.
        """
        starts = conversation.exchange_starts()
        drop = self._estimated(conversation, exchanges, starts)

        def tried(drop: int) -> tuple[Conversation, Rendering, list[Exchange]]:
            rest = conversation.since(starts[drop])
            rendering = self._rendered(rest)
            return rest, rendering, self._tokens(rendering)

        found = tried(drop)
        while drop < len(starts) - 1 and self._length(found[2]) > self.codec.max_length:
            drop += 1
            found = tried(drop)
        while drop > 1:
            fuller = tried(drop - 1)
            if self._length(fuller[2]) > self.codec.max_length:
                break
            drop, found = drop - 1, fuller
        return found

    def _estimated(
        self, conversation: Conversation, exchanges: Sequence[Exchange], starts: Sequence[int]
    ) -> int:
        """Return how many exchanges must go, if each takes the tokens that it has here."""
        learnt = list(accumulate(conversation.learnt, initial=0))
        sizes = list(accumulate((len(one.ids) + len(one.answer) for one in exchanges), initial=0))
        spare = self._length(exchanges) - self.codec.max_length
        drops = (
            drop
            for drop in range(1, len(starts))
            if sizes[min(learnt[starts[drop]], len(sizes) - 1)] >= spare
        )
        return next(drops, len(starts) - 1)

    def _one_by_one(self, conversation: Conversation, row: int) -> Iterator[tuple[Example, bool]]:
        """Yield an example for each answer that is learnt.

        What was too long for one answer is too long for the next: each begins where the last did.
        """
        starts, dropped = conversation.exchange_starts(), 0
        last = len(conversation.messages) - 1
        for at, learnt in enumerate(conversation.learnt):
            if not learnt or not self._renderer(conversation).can_prompt(conversation, at):
                continue
            part, fits = conversation.upto(at + 1), False
            while not fits:
                rest = part.since(starts[dropped])
                rendering = self._prompted(rest, len(rest.messages) - 1, ends=at == last)
                exchanges = self._tokens(rendering)
                self._check_answers(exchanges)
                fits = self._length(exchanges) <= self.codec.max_length
                if fits or dropped == len(starts) - 1 or starts[dropped + 1] > at:
                    break
                dropped += 1
            if not fits:
                exchanges = [self._truncated(exchanges)]
            yield self._example(rest, rendering, exchanges, row), bool(dropped) or not fits

    def _appended(self, conversation: Conversation) -> Rendering | None:
        """Return all answers behind one another, or None where the template rewrites."""
        if sum(conversation.learnt) == 1:
            return self._prompted(conversation, len(conversation.messages) - 1)
        found = self._whole(tools=bool(conversation.tools)).spans(conversation)
        if found is None:
            return None
        text, spans = found
        segments: list[Segment] = []
        written = 0
        for span in spans:
            segments += [
                Segment(text=text[written : span.start], by_template=True),
                Segment(text=span.text, learnt=conversation.learnt[span.at], by_template=True),
            ]
            written = span.end
        ends = "tool_calls" not in conversation.messages[-1]
        return Rendering(segments=segments, opening=spans[-1].opening, ends=ends)

    def _prompted(self, conversation: Conversation, at: int, *, ends: bool = True) -> Rendering:
        """Return one answer behind its prompt; `ends` says whether it ends the conversation."""
        answer = self._renderer(conversation).answer(conversation, at)
        return Rendering(
            segments=[
                Segment(text=answer.prompt, by_template=True),
                Segment(text=answer.text, learnt=True, by_template=True),
            ],
            opening=answer.opening,
            ends=ends and "tool_calls" not in conversation.messages[at],
        )

    def _renderer(self, conversation: Conversation) -> AnswerRenderer:
        return self._whole(tools=bool(conversation.tools)).renderer

    def _whole(self, *, tools: bool) -> WholeRenderer:
        if tools not in self._wholes:
            tokenizer = self.codec.tokenizer
            template = ChatTemplate.of(tokenizer, day=self.codec.day, tools=tools)
            if template is None:
                raise MissingFieldError("the tokenizer has no chat template")
            eos = tokenizer.convert_ids_to_tokens(self.codec.eos_id)
            tokens = [*self.codec.special_tokens, *([eos] if eos else [])]
            self._wholes[tools] = WholeRenderer(
                renderer=AnswerRenderer(template=template, ends=TurnEnds(template, tokens))
            )
        return self._wholes[tools]

    def _check_template(self, conversation: Conversation) -> None:
        """Refuse a base without a chat template, with what can be written without one."""
        if self.codec.tokenizer.chat_template:
            return
        try:
            require_plain_turns(conversation)
        except MissingFieldError as error:
            raise MissingFieldError(
                "the tokenizer has no chat template, and these turns need one: take a base that "
                "has one, such as an instruct model"
            ) from error
        raise MissingFieldError("the tokenizer has no chat template; use `chat: markers`")

    def _check_control_tokens(self, conversation: Conversation) -> None:
        """Refuse what people wrote if the tokenizer would act on it."""
        longest_first = sorted(self.codec.special_tokens, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        found = special_in(conversation, pattern)
        if found is not None:
            where = f"message {found[0]}" if found[0] else "a column beside the conversation"
            raise MissingFieldError(f"{where} holds the control token {found[1]!r}")

    def _tokens(self, rendering: Rendering) -> list[Exchange]:
        """Tokenize answers apart from what is before them: generation has the same prompt tokens.

        What is before an answer is one text, as others would write it: tokenizers that begin each
        text with a space put none into its middle. Every answer ends with a special token: the
        template's own, or EOS where it has none. After the last one of a conversation EOS always
        follows, so that the model learns to stop.
        """
        codec = self.codec
        closing = {*codec.special_tokens.values(), codec.eos_id}
        exchanges: list[Exchange] = []
        lead: list[int] = []
        segments = _joined(rendering.segments)
        for segment, encoded in zip(segments, self._encoded(segments), strict=True):
            ids = encoded
            if segment.learnt:
                open_ended = ids[-1] not in closing if ids else True
                last = segment is segments[-1] and rendering.ends
                if open_ended or (last and ids[-1] != codec.eos_id):
                    ids = [*ids, codec.eos_id]
                exchanges.append(Exchange(ids=lead, answer=ids))
                lead = []
            else:
                lead = ids
        first, prefix = exchanges[0], list(codec.prefix)
        if prefix and first.ids[: len(prefix)] == prefix:  # the template writes its BOS itself
            exchanges[0] = Exchange(ids=first.ids[len(prefix) :], answer=first.answer)
        return exchanges

    def _encoded(self, segments: Sequence[Segment]) -> list[list[int]]:
        """Tokenize every segment by itself; special tokens count where the template wrote them."""
        tokens = [*self.codec.special_tokens]
        found: list[list[int]] = [[] for _ in segments]
        holds_special = [
            segment.by_template and any(one in segment.text for one in tokens)
            for segment in segments
        ]
        for special in (True, False):
            places = [
                at
                for at, segment in enumerate(segments)
                if segment.text and holds_special[at] == special
            ]
            literal = (
                Template.parse(_literal(tokens[0])) if special and tokens else Template.parse("")
            )
            encoded = self.codec.encode([segments[at].text for at in places], literal)
            for at, ids in zip(places, encoded, strict=True):
                found[at] = ids
        return found

    def _example(
        self, conversation: Conversation, rendering: Rendering, exchanges: list[Exchange], row: int
    ) -> Example:
        ids = list(self.codec.prefix)
        labels = [NOT_TRAINED] * len(ids)
        start = 0
        for exchange in exchanges:
            ids += exchange.ids
            start = len(ids)
            ids += exchange.answer
            labels += [NOT_TRAINED] * len(exchange.ids) + exchange.answer
        texts = [segment.text for segment in rendering.segments if segment.learnt]
        return Example(
            input_ids=tuple(ids),
            labels=tuple(labels),
            prompt="".join(segment.text for segment in rendering.segments[:-1]),
            completion=_completion(conversation),
            row=row,
            prompt_length=start,
            opening=self._opening(rendering.opening, ids[start:]),
            learnt=tuple(
                (len(one.answer), text)
                for one, text in zip(exchanges, texts[-len(exchanges) :], strict=True)
            ),
        )

    def _opening(self, text: str, answer: list[int]) -> tuple[int, ...]:
        """Return the first tokens of an answer, those that the template's opening of it takes."""
        opening = self._encoded([Segment(text=text, by_template=True)])[0]
        same = takewhile(lambda pair: pair[0] == pair[1], zip(opening, answer, strict=False))
        return tuple(token for token, _ in same)

    def _check_answers(self, exchanges: Sequence[Exchange]) -> None:
        room = self.codec.max_length - len(self.codec.prefix)
        for exchange in exchanges:
            if len(exchange.answer) > room:
                raise TooLongError(
                    f"an answer needs {len(exchange.answer)} tokens with its end, and `max_length` "
                    f"leaves {room}; raise it or leave the conversation out"
                )

    def _length(self, exchanges: Sequence[Exchange]) -> int:
        return len(self.codec.prefix) + sum(len(one.ids) + len(one.answer) for one in exchanges)

    def _truncated(self, exchanges: Sequence[Exchange]) -> Exchange:
        """Return the last exchange so that it fits: what is before the answer loses its middle."""
        last = exchanges[-1]
        before = [token for one in exchanges[:-1] for token in (*one.ids, *one.answer)]
        ids = [*before, *last.ids]
        spare = self.codec.max_length - len(self.codec.prefix) - len(last.answer)
        tail = (spare + 1) // 2
        return Exchange(ids=ids[: spare - tail] + ids[len(ids) - tail :], answer=last.answer)


def _completion(conversation: Conversation) -> str:
    """Return the words of the last answer, or its tool calls where it says nothing."""
    calls = conversation.messages[-1].get("tool_calls", ())
    return conversation.answer or "; ".join(
        f"{call['function']['name']}({json.dumps(call['function']['arguments'])})" for call in calls
    )


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


def words_of(tokenizer: Any, tokens: Sequence[int], opening: Sequence[int]) -> str:
    """Return the words of a generated answer, without what the template opens answers with.

    Where the model wrote another opening (reasoning of its own, say), the words begin behind the
    last token that ends such an opening: `</think>`, or gpt-oss's `<|message|>`.
    """
    added = tokenizer.added_tokens_decoder
    ends = [token for token in opening if token in added]
    if opening and tuple(tokens[: len(opening)]) == tuple(opening):
        tokens = tokens[len(opening) :]
    elif ends and ends[-1] in tokens:
        last = max(at for at, token in enumerate(tokens) if token == ends[-1])
        tokens = tokens[last + 1 :]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
