"""Answers prompts with base or adapter: one, a file of rows, or a conversation.

    python -m trainer generate --run-dir DIR [--field text="..."] [--prompt "..."] [--chat]

Without `--prompt` the template of the config is filled with the fields given; `--rows` answers
every row of a file after one load; `--chat` holds a conversation on the terminal. Answers go to
stdout as they are generated, and stop at the end token; with `--json`, an object a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer import hub
from trainer.config import TrainerConfig, load_config
from trainer.data.rows import Row, read_rows
from trainer.data.template import Template
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.results.answer_rows import RowAnswers, answer_rows, check_rows, kept_answers
from trainer.results.generator import Generator, Prompt, load
from trainer.text import print_line

NOT_TRAINED_ON_CHATS = (
    "(this run was not trained on conversations: answers under --chat are what its own prompts "
    "taught, in a form it has not seen)"
)


def chat_loop(
    generator: Generator,
    lines: Iterator[str],
    write: Callable[[str], None],
    *,
    tokens_max: int,
    on_note: Callable[[str], None] = print_line,
) -> None:
    """Answer every line with the whole conversation before it, until the lines end.

    `write` gets each answer in pieces, and a line end behind it.
    """
    messages: list[dict[str, str]] = []
    for line in lines:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.rstrip("\n")})
        prompt = generator.encode_chat(messages)
        if prompt.left_out:
            on_note(cut_text("the conversation", prompt, generator.config))
        text = generator.generate(prompt, tokens_max=tokens_max, write=write).text
        write("\n")
        messages.append({"role": "assistant", "content": text if text.strip() else "."})


def cut_text(what: str, prompt: Prompt, config: TrainerConfig) -> str:
    """Say how much of a prompt was left out to fit `train.max_length`, and of how much."""
    total = len(prompt.ids) + prompt.left_out
    return (
        f"({what} was cut: {prompt.left_out} of its {total} tokens were left out, as in training; "
        f"`train.max_length` is {config.train.max_length})"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run, the prompts and the length of the answers."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    parser.add_argument("--adapter", type=Path, help="another adapter than the run's own")
    parser.add_argument("--base-only", action="store_true", help="ask the base without an adapter")
    parser.add_argument("--tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--prompt", help="a ready prompt, used as it is")
    parser.add_argument("--prompt-file", type=Path, help="a file that is a ready prompt")
    parser.add_argument("--chat", action="store_true", help="one line in, one answer out")
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=TEXT", help="a field of the template"
    )
    parser.add_argument("--row-file", type=Path, help="a file of one row to answer")
    parser.add_argument("--rows", type=Path, help="a file of rows to answer, each in turn")
    parser.add_argument(
        "--out", type=Path, help="where the answers to --rows go, once all are done"
    )
    parser.add_argument("--json", action="store_true", help="print an answer as an object a line")


def run(args: argparse.Namespace) -> int:
    """Answer once, answer rows, or hold a conversation."""
    hint = None
    try:
        config = load_config(args.run_dir / "config.json")
        rows = _read(args, config)
        if not (args.run_dir / Path(config.model.id).expanduser()).is_dir():
            hint = hub.rely_on_cache()
        generator = load(args.run_dir, adapter=args.adapter, base_only=args.base_only)
        _check_request(args, generator)
        if args.chat:
            _converse(generator, tokens_max=args.tokens, base_only=args.base_only)
        elif args.rows is not None:
            _answer_rows(args, generator, rows)
        else:
            _answer_once(args, generator, rows)
    except (ConfigError, ConnectionError) as error:
        raise ConfigError([str(error), *([hint] if hint else [])]) from error
    return ExitCode.DONE


def _read(args: argparse.Namespace, config: TrainerConfig) -> Sequence[Row]:
    """Read the rows to answer, if any, and check them before a model is loaded."""
    path = args.rows or args.row_file
    if path is None:
        return ()
    rows = read_rows(path)
    check_rows(config.data, rows, path if args.rows else None)
    return rows


def _converse(generator: Generator, *, tokens_max: int, base_only: bool) -> None:
    if generator.config.data.messages is None and not base_only:
        print_line(NOT_TRAINED_ON_CHATS)
    # Started without a stdin there is none, and nobody asks anything.
    with _interruption_on_its_own_line():
        chat_loop(generator, iter(sys.stdin or ()), _write, tokens_max=tokens_max)


def _answer_rows(args: argparse.Namespace, generator: Generator, rows: Sequence[Row]) -> None:
    answers = RowAnswers(generator=generator, rows=rows, source=args.rows, tokens_max=args.tokens)
    if args.out is None:
        answer_rows(answers, lambda answer: _write(json.dumps(answer) + "\n"), on_note=print_line)
        return
    adapter = None if args.base_only else args.adapter or args.run_dir / "adapter"
    with kept_answers(answers, args.out, adapter=adapter, on_note=print_line) as kept:
        answer_rows(answers, kept.add, on_note=print_line, done=kept.done)


def _answer_once(args: argparse.Namespace, generator: Generator, rows: Sequence[Row]) -> None:
    """Print the one answer in pieces as they come, or as an object at its end."""
    prompt = _prompt(args, generator, rows)
    if prompt.left_out:
        print_line(cut_text("the prompt", prompt, generator.config))
    write = (lambda _text: None) if args.json else _write
    with _interruption_on_its_own_line():
        answer = generator.generate(prompt, tokens_max=args.tokens, write=write)
    if args.json:
        fields = {"answer": answer.text, "stopped": answer.stopped, "left_out": prompt.left_out}
        _write(json.dumps(fields))
    _write("\n")
    if not answer.stopped:
        length = generator.new_tokens_max(prompt.ids, wanted=args.tokens)
        print_line(f"(stopped after {length} tokens without an end)")


@contextmanager
def _interruption_on_its_own_line() -> Iterator[None]:
    """End the line of an answer that Ctrl-C on a terminal cut off: what follows has its own."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print_line("")
        raise


def _prompt(args: argparse.Namespace, generator: Generator, rows: Sequence[Row]) -> Prompt:
    """Encode the one prompt that was given."""
    if args.prompt is not None:
        return generator.encode_text(args.prompt)
    if args.prompt_file is not None:
        return generator.encode_text(args.prompt_file.read_text(encoding="utf-8"))
    if rows:
        return generator.encode_row(rows[0].fields)
    return generator.encode_row(_fields(args))


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
    given = (args.prompt, args.prompt_file, args.rows, args.row_file)
    by_fields = not args.chat and given == (None, None, None, None)
    if config.data.messages is None and by_fields:
        fields, named = Template.parse(config.data.prompt).fields, _fields(args)
        strangers = [name for name in named if name not in fields]
        if strangers and all(name in named for name in fields):  # else what is missing says more
            names = ", ".join(fields) or "none"
            raise ConfigError([f"--field {strangers[0]}: the prompt's fields are {names}"])
    if config.data.messages is not None and by_fields:
        raise ConfigError(["this run learnt conversations: ask with --chat, or with --prompt TEXT"])
    untemplated = config.data.chat == "template" and not generator.tokenizer.chat_template
    if args.chat and config.data.messages is None and untemplated:
        words = " ".join(
            f"--field {name}=TEXT" for name in Template.parse(config.data.prompt).fields
        )
        problem = "this run learnt no conversations, and its base has no chat template"
        raise ConfigError([f"{problem}\nhint: ask with {words or '--prompt TEXT'}"])


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
