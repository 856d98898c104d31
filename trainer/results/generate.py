"""Generates answers with base and adapter, with the prompt tokens that training had.

    python -m trainer generate --run-dir DIR [--field text="..."] [--prompt "..."] [--chat]

Without `--prompt` the template of the config is filled with the fields given; `--chat` holds a
conversation on the terminal. Answers go to stdout and stop at the end token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import hub
from trainer.config import TrainerConfig, load_config
from trainer.data.codec import Codec, Example, TooLongError
from trainer.data.examples import encode_prompt, padding_id
from trainer.data.template import Template
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.saving.run_day import load_run_config

if TYPE_CHECKING:
    from trainer.data.chat.encoder import ChatEncoder


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
        self, prompt: Sequence[int], *, tokens_max: int, opening: Sequence[int] = ()
    ) -> tuple[str, bool]:
        """Return the answer to prompt tokens, and whether it ended with an end token.

        What a template opens answers with is left out, if the `opening` says so.

        Raises:
            TooLongError: the prompt leaves no place for an answer, or there is none.
        """
        from trainer.data.chat.encoder import words_of
        from trainer.scoring.constrained import Decoder, eval_mode

        tokens_max = self.new_tokens_max(prompt, wanted=tokens_max)
        chat = self.config.data.messages is not None or opening
        ends = self._encoder().stop_ids() if chat else (self.codec().eos_id,)
        decoder = Decoder(self.model, eos_ids=ends, pad_id=padding_id(self.tokenizer))
        with eval_mode(self.model):
            written = decoder.generate(decoder.prefill([prompt]), tokens_max=tokens_max)[0]
        return words_of(self.tokenizer, written.tokens, opening), written.stopped

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

    def encode_row(self, fields: dict[str, str]) -> tuple[int, ...]:
        """Encode the prompt of a row as training did.

        Raises:
            DataError: the template names a field that is not given.
        """
        length = self.config.train.max_length
        return encode_prompt(
            self.config.data, fields, self.tokenizer, max_length=length, seq2seq=self.seq2seq
        )

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Encode a ready prompt; special tokens written in it count as such."""
        codec = self.codec()
        written = Template.parse(text.replace("{", "{{").replace("}", "}}"))
        ids, _, length, _ = codec.assemble(codec.encode([text], written)[0], [])
        return ids[:length]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Encode a conversation up to its next answer as training did.

        Raises:
            MissingFieldError: the messages are no conversation, or hold control tokens.
        """
        return self._chat_example(messages).prompt_ids

    def answer_chat(self, messages: Sequence[dict[str, str]], *, tokens_max: int) -> str:
        """Return the words of the next answer of a conversation.

        Raises:
            MissingFieldError: the messages are no conversation, or hold control tokens.
            TooLongError: they leave no place for an answer.
        """
        item = self._chat_example(messages)
        return self.generate(item.prompt_ids, tokens_max=tokens_max, opening=item.opening)[0]

    def _chat_example(self, messages: Sequence[dict[str, str]]) -> Example:
        from trainer.data.chat.conversation import parse_messages

        # Where the dummy answer is, the real one will be.
        with_answer = [*messages, {"role": "assistant", "content": "."}]
        return self._encoder().encode(parse_messages(with_answer), row=0)[-1][0]

    def _encoder(self) -> ChatEncoder:
        from trainer.data.chat.encoder import ChatEncoder

        return ChatEncoder(codec=self.codec(), style=self.config.data.chat, answers="last")

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


def chat_loop(
    generator: Generator,
    lines: Iterator[str],
    on_message: Callable[[str], None],
    *,
    tokens_max: int,
) -> None:
    """Answer every line with the whole conversation before it, until the lines end."""
    messages: list[dict[str, str]] = []
    for line in lines:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.rstrip("\n")})
        text = generator.answer_chat(messages, tokens_max=tokens_max)
        on_message(text)
        messages.append({"role": "assistant", "content": text if text.strip() else "."})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run, the prompt and the length of the answer."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    parser.add_argument("--adapter", type=Path, help="another adapter than the run's own")
    parser.add_argument("--base-only", action="store_true", help="ask the base without an adapter")
    parser.add_argument("--tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--prompt", help="a ready prompt, used as it is")
    parser.add_argument("--chat", action="store_true", help="one line in, one answer out")
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=TEXT", help="a field of the template"
    )


def run(args: argparse.Namespace) -> int:
    """Answer once, or hold a conversation."""
    hint = None
    try:
        base = load_config(args.run_dir / "config.json").model.id
        if not (args.run_dir / Path(base).expanduser()).is_dir():
            hint = hub.rely_on_cache()
        generator = load(args.run_dir, adapter=args.adapter, base_only=args.base_only)
        _check_request(args, generator)
        if args.chat:
            # Started without a stdin there is none, and nobody asks anything.
            chat_loop(generator, iter(sys.stdin or ()), _log, tokens_max=args.tokens)
            return ExitCode.DONE
        if args.prompt is not None:
            prompt = generator.encode_text(args.prompt)
        else:
            prompt = generator.encode_row(_fields(args))
        text, stopped = generator.generate(prompt, tokens_max=args.tokens)
    except (ConfigError, ConnectionError) as error:
        raise ConfigError([str(error), *([hint] if hint else [])]) from error
    _log(text)
    if not stopped:
        length = generator.new_tokens_max(prompt, wanted=args.tokens)
        sys.stderr.write(f"(stopped after {length} tokens without an end)\n")
    return ExitCode.DONE


def _fields(args: argparse.Namespace) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in args.field)


def _check_request(args: argparse.Namespace, generator: Generator) -> None:
    """Raise `ConfigError` for a command line that this run cannot answer."""
    config = generator.config
    if args.tokens < 1:
        raise ConfigError([f"--tokens: {args.tokens} is no length of an answer"])
    odd = [pair for pair in args.field if "=" not in pair]
    if odd:
        raise ConfigError([f"--field {odd[0]}: write NAME=TEXT"])
    if config.data.messages is None and not args.chat and args.prompt is None:
        fields, given = Template.parse(config.data.prompt).fields, _fields(args)
        strangers = [name for name in given if name not in fields]
        if strangers and all(name in given for name in fields):  # else what is missing says more
            names = ", ".join(fields) or "none"
            raise ConfigError([f"--field {strangers[0]}: the prompt's fields are {names}"])
    if config.data.messages is not None and not args.chat and args.prompt is None:
        raise ConfigError(["this run learnt conversations: ask with --chat, or with --prompt TEXT"])
    untemplated = config.data.chat == "template" and not generator.tokenizer.chat_template
    if args.chat and config.data.messages is None and untemplated:
        words = " ".join(
            f"--field {name}=TEXT" for name in Template.parse(config.data.prompt).fields
        )
        problem = "this run learnt no conversations, and its base has no chat template"
        raise ConfigError([f"{problem}\nhint: ask with {words or '--prompt TEXT'}"])


def _log(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
