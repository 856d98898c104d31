"""`qft generate`: lets the fetched adapter answer prompts built as in training, or converse."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands.runs.config import LoadedConfig
from commands.runs.extras import LEARNS, demand
from commands.runs.fetched_run import adapter_of, open_fetched
from commands.runs.home import environment, qft_home
from commands.runs.local_trainer import local_run_dir, output_of, stream_of
from commands.runs.piped_prompt import read_piped
from commands.ui.errors import UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import data_writer, print_json
from trainer.data.template import Template
from trainer.method_table import Quant

EXAMPLES = {
    "qft generate --field text='It was late.'": "fill the prompt of run.yaml",
    "qft generate --prompt 'Once upon'": "a ready prompt, as it is",
    "qft generate --chat < questions.txt": "one line in, one answer out",
    "qft generate < prompt.txt": "a prompt, or a row as JSON",
    "qft generate --rows new.csv --out answers.jsonl": "one load for many rows",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", metavar="NAME=TEXT", help="Fills {NAME} of `data.prompt`; repeatable."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A ready prompt, used as it is.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Hold a conversation: a line in, an answer out.")
    ] = False,
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer every row of a file, each as JSON on a line."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the answers to --rows go; goes on if cut off."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Ask the base model without the adapter.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the adapter answer, as training asked.

    Without any of --field, --prompt, --chat and --rows, what is piped in is answered: a row as
    JSON, or a ready prompt.
    """
    options = GenerateOptions(
        fields=tuple(fields or ()),
        prompt=prompt,
        chat=chat,
        rows=rows,
        out=out,
        tokens=tokens,
        base_only=base_only,
    )
    generate(run, options, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What to answer: fields of the config's prompt, a ready prompt, rows, or a conversation."""

    fields: tuple[str, ...] = ()
    prompt: str | None = None
    chat: bool = False
    rows: Path | None = None
    out: Path | None = None
    tokens: int = 256
    base_only: bool = False

    @property
    def chosen(self) -> list[str]:
        """The options given that say what to answer."""
        ways = {
            "--field": bool(self.fields),
            "--prompt": self.prompt is not None,
            "--chat": self.chat,
            "--rows": self.rows is not None,
        }
        return [f"`{way}`" for way, taken in ways.items() if taken]

    @property
    def flags(self) -> list[str]:
        """Return flags of the trainer's generator. Raises UsageError for more than one prompt."""
        if len(self.chosen) > 1:
            raise UsageError(
                f"{' and '.join(self.chosen)} are different questions, and one is answered",
                hint="leave the others out; a ready `--prompt` is used as it is",
            )
        flags = ["--tokens", str(self.tokens)]
        for pair in self.fields:
            if "=" not in pair:
                raise UsageError(
                    f"`--field {pair}` names no field", hint="write `--field NAME=TEXT`"
                )
            flags += ["--field", pair]
        flags += [] if self.prompt is None else ["--prompt", self.prompt]
        flags += self._file_flags()
        return [*flags, *["--chat"] * self.chat, *["--base-only"] * self.base_only]

    def _file_flags(self) -> list[str]:
        """Return the flags for rows and answers in files. Raises UsageError where one cannot be."""
        if self.rows is None:
            if self.out is not None:
                raise UsageError(
                    "`--out` goes with `--rows`", hint="redirect one answer: `qft generate > FILE`"
                )
            return []
        if not self.rows.is_file():
            raise UsageError(f"`--rows {self.rows}`: there is no such file")
        if self.out is None:
            return ["--rows", str(self.rows)]
        if self.out.is_dir() or not self.out.absolute().parent.is_dir():
            raise UsageError(
                f"`--out {self.out}` cannot be a file", hint="name one in a folder that is there"
            )
        if self.out.resolve() == self.rows.resolve():
            raise UsageError("`--out` is the file of `--rows`, which it would replace")
        return ["--rows", str(self.rows), "--out", str(self.out)]


def generate(wanted: str, options: GenerateOptions, *, as_json: bool) -> None:
    """Print the adapter's answers as they come. Raises UsageError for what cannot be answered."""
    flags = options.flags
    folder, loaded = open_fetched(wanted)
    if options.chat and as_json:
        raise UsageError("a conversation is no JSON", hint="leave `--chat` or `--json` out")
    piped = None if options.chosen else read_piped(sys.stdin)
    if piped is None and not options.chosen:
        raise UsageError("there is nothing to answer", hint=example_command(loaded))
    if options.fields:
        check_fields(loaded, options.fields)
    quantised = loaded.config.method.storage is not Quant.NONE
    packages = (*LEARNS, *("bitsandbytes",) * quantised)
    demand(packages, "`qft generate`", qft_home(environment()))
    with local_run_dir(loaded, folder) as run_dir:
        flags = ["--run-dir", str(run_dir), "--adapter", str(adapter_of(loaded)), *flags]
        flags += [] if piped is None else piped.flags(run_dir)
        if not as_json:
            stream_of("generate", *flags, write=data_writer())
        elif options.rows is None:
            print_json(json.loads(output_of("generate", *flags, "--json", as_json=True)))
        else:
            stream_of("generate", *flags, write=data_writer(), as_json=True)
            if options.out is not None:
                print_json({"out": str(options.out)})


def example_command(loaded: LoadedConfig) -> str:
    """Write the command that fills this run's own prompt, or holds a conversation."""
    table = loaded.config.data
    way = "--chat" if table.messages else _example_flags(Template.parse(table.prompt).fields)
    return f"`qft generate {loaded.config.name} {way}`"


def check_fields(loaded: LoadedConfig, pairs: Sequence[str]) -> None:
    """Raise UsageError unless the fields given are those of this run's own prompt."""
    table = loaded.config.data
    if table.messages is not None:
        raise UsageError(
            f"`{loaded.config.name}` learnt conversations, which have no fields",
            hint="ask with `--chat`, or with `--prompt TEXT`",
        )
    fields = Template.parse(table.prompt).fields
    given = [pair.partition("=")[0] for pair in pairs]
    unknown = [name for name in given if name not in fields]
    missing = [name for name in fields if name not in given]
    if unknown or missing:
        problem = f"--field {unknown[0]}" if unknown else f"`--field {missing[0]}` is missing"
        raise UsageError(
            f"{problem}: the prompt's fields are {', '.join(fields) or 'none'}",
            hint=f"`qft generate {loaded.config.name} {_example_flags(fields)}`",
        )


def _example_flags(fields: Sequence[str]) -> str:
    return " ".join(f"--field {field}='...'" for field in fields) or "--prompt '...'"
