"""Lets a loaded base, with its adapter or without, answer the prompt tokens that training had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import TrainerConfig
from trainer.data.codec import Codec, TooLongError
from trainer.data.examples import padding_id
from trainer.data.template import MissingFieldError, Template
from trainer.errors import ConfigError, DataError
from trainer.saving.run_day import load_run_config

if TYPE_CHECKING:
    from trainer.data.chat.conversation import Conversation
    from trainer.data.chat.encoder import ChatEncoder

UNCUT_TOKENS = 1 << 30
"""A `max_length` that no prompt reaches."""
NEXT_ANSWER = {"role": "assistant", "content": "."}
"""A dummy where the real answer will be."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The tokens to generate from, and how many were left out of them to fit `max_length`.

    `opening` are the tokens that a chat template opens the answer with.
    """

    ids: tuple[int, ...]
    left_out: int = 0
    opening: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A generated answer, and whether it ended with an end token."""

    text: str
    stopped: bool


def write_nothing(_text: str) -> None:
    """Take a piece of an answer that nobody reads as it comes."""


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A loaded model with its tokenizer, which generates greedily."""

    model: Any
    tokenizer: Any
    config: TrainerConfig

    @property
    def seq2seq(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return bool(self.model.config.is_encoder_decoder)

    def generate(
        self,
        prompt: Prompt,
        *,
        tokens_max: int,
        write: Callable[[str], None] = write_nothing,
    ) -> Answer:
        """Return the answer to a prompt; `write` gets its text in pieces while it is generated.

        What a template opens answers with is left out.

        Raises:
            TooLongError: the prompt leaves no place for an answer, or there is none.
        """
        from trainer.results.answer_stream import AnswerStream
        from trainer.scoring.constrained import Decoder, eval_mode

        tokens_max = self.new_tokens_max(prompt.ids, wanted=tokens_max)
        chat = self.config.data.messages is not None or prompt.opening
        ends = self._encoder(self.codec()).stop_ids() if chat else (self.codec().eos_id,)
        decoder = Decoder(self.model, eos_ids=ends, pad_id=padding_id(self.tokenizer))
        stream = AnswerStream(self.tokenizer, write, opening=prompt.opening)
        with eval_mode(self.model):
            state = decoder.prefill([prompt.ids])
            generated = decoder.generate(
                state, tokens_max=tokens_max, on_token=lambda _row, token: stream.add(token)
            )
        return Answer(text=stream.finish(), stopped=generated[0].stopped)

    def new_tokens_max(self, prompt: Sequence[int], *, wanted: int) -> int:
        """Return how many of the tokens wanted the model can generate after this prompt.

        Raises:
            TooLongError: the prompt leaves no place for an answer, or there is none.
        """
        from trainer.model import place_limit

        if not prompt:
            raise TooLongError("the prompt is empty, and this base has no token to begin with")
        limit = None if self.seq2seq else place_limit(self.model)
        if limit is None:
            return wanted
        if len(prompt) > limit:
            raise TooLongError(
                f"the prompt has {len(prompt)} tokens, and the base has places for {limit}; "
                "shorten it"
            )
        return min(wanted, limit - len(prompt) + 1)  # the last one is not read again

    def encode_row(
        self, fields: Mapping[str, Any], *, others: Sequence[Mapping[str, Any]] = ()
    ) -> Prompt:
        """Encode the prompt of a row as training did; a row may lack a field that `others` have.

        Raises:
            DataError: the row lacks a field that the run reads, or holds no text there.
            MissingFieldError: its conversation is none that the template takes.
            TooLongError: the messages leave no place for an answer.
        """
        table = self.config.data
        if table.messages is not None:
            return self._chat_prompt(to_be_answered(fields, table.messages, ignore=table.ignore))
        try:
            if table.text is not None:
                return self.encode_text(Template.parse(f"{{{table.text}}}").render(fields))
            template = Template.parse(table.prompt)
            template = template.for_rows(others) if others else template
            text = template.render(fields)
        except MissingFieldError as error:
            raise DataError([str(error)]) from error
        return self._fitting(self.codec().encode([text], template)[0])

    def encode_text(self, text: str) -> Prompt:
        """Encode a ready prompt; special tokens written in it count as such."""
        written = Template.parse(text.replace("{", "{{").replace("}", "}}"))
        return self._fitting(self.codec().encode([text], written)[0])

    def _fitting(self, tokens: list[int]) -> Prompt:
        """Frame the tokens of a prompt, without its middle if it exceeds `max_length`."""
        codec = self.codec()
        ids, _, length, cut = codec.assemble(tokens, [])
        uncut = replace(codec, max_length=UNCUT_TOKENS).assemble(tokens, [])[2] if cut else length
        return Prompt(ids=ids[:length], left_out=uncut - length)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """Encode a conversation up to its next answer as training did.

        Raises:
            MissingFieldError: the messages are no conversation, or hold control tokens.
            TooLongError: they leave no place for an answer.
        """
        from trainer.data.chat.conversation import parse_messages

        return self._chat_prompt(parse_messages([*messages, NEXT_ANSWER]))

    def _chat_prompt(self, conversation: Conversation) -> Prompt:
        """Encode what is before the last answer of a conversation."""
        item, cut = self._encoder(self.codec()).encode(conversation, row=0)[-1]
        uncut = item
        if cut:
            unlimited = replace(self.codec(), max_length=UNCUT_TOKENS)
            uncut, _ = self._encoder(unlimited).encode(conversation, row=0)[-1]
        return Prompt(
            ids=item.prompt_ids,
            left_out=uncut.prompt_length - item.prompt_length,
            opening=item.opening,
        )

    def _encoder(self, codec: Codec) -> ChatEncoder:
        from trainer.data.chat.encoder import ChatEncoder

        return ChatEncoder(codec=codec, style=self.config.data.chat, answers="last")

    def codec(self) -> Codec:
        """Return the codec of this model's tokenizer."""
        length, day = self.config.train.max_length, self.config.data.day
        return Codec.from_tokenizer(
            self.tokenizer, max_length=length, seq2seq=self.seq2seq, day=day
        )


def load(run_dir: Path, *, adapter: Path | None, base_only: bool) -> Generator:
    """Load the base of a run, and its adapter unless only the base is wanted.

    Raises:
        ConfigError: the run, its base or its adapter cannot be loaded.
    """
    from trainer.model import load_for_inference

    config = load_run_config(run_dir)
    directory = None if base_only else adapter or run_dir / "adapter"
    if directory is not None and not (directory / "adapter_config.json").is_file():
        raise ConfigError([f"{directory} holds no adapter; train first, or give --adapter"])
    model, tokenizer = load_for_inference(config, run_dir, directory)
    return Generator(model=model, tokenizer=tokenizer, config=config)


def to_be_answered(
    fields: Mapping[str, Any], name: str, *, ignore: Sequence[str] = ()
) -> Conversation:
    """Return the conversation of a row with a dummy as its last answer, which may be there or not.

    Raises:
        MissingFieldError: it is none, or holds what is not understood.
    """
    from trainer.data.chat.conversation import ROLES, read_conversation

    messages = Template.parse(f"{{{name}}}").value(fields)
    last = messages[-1] if isinstance(messages, list) and messages else None
    author = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
    if isinstance(messages, list) and ROLES.get(str(author).strip().lower()) != "assistant":
        fields = _with_value(fields, name, [*messages, NEXT_ANSWER])
    found = read_conversation(fields, name, ignore=ignore)
    return replace(found, messages=(*found.messages[:-1], dict(NEXT_ANSWER)))


def _with_value(fields: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    """Return a copy of a row in which the field `name`, perhaps an inner one, has another value."""
    if name in fields:
        return {**fields, name: value}
    outer, _, inner = name.partition(".")
    return {**fields, outer: _with_value(fields[outer], inner, value)}
