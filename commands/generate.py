"""`qft generate`: lets the fetched adapter answer a prompt built as in training, or converse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from commands.runs.config import LoadedConfig
from commands.runs.extras import LEARNS, demand
from commands.runs.fetched_run import adapter_of, open_fetched
from commands.runs.home import environment, qft_home
from commands.runs.local_trainer import check_exit, local_run_dir, output_of, start
from commands.ui.errors import UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import print_data, print_json
from trainer.data.template import Template
from trainer.method_table import Quant

EXAMPLES = {
    "qft generate --field text='It was late.'": "fill the prompt of run.yaml",
    "qft generate --prompt 'Once upon'": "a ready prompt, as it is",
    "qft generate --chat < questions.txt": "one line in, one answer out",
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
    tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Ask the base model without the adapter.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the adapter answer, as training asked."""
    options = GenerateOptions(
        fields=tuple(fields or ()), prompt=prompt, chat=chat, tokens=tokens, base_only=base_only
    )
    answer = generate(run, options, as_json=as_json)
    if answer is not None and as_json:
        print_json({"answer": answer})
    elif answer is not None:
        print_data(answer)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What to ask: fields of the config's prompt, a ready prompt, or a conversation."""

    fields: tuple[str, ...] = ()
    prompt: str | None = None
    chat: bool = False
    tokens: int = 256
    base_only: bool = False

    @property
    def flags(self) -> list[str]:
        """Return flags of the trainer's generator. Raises UsageError for more than one prompt."""
        ways = {"--field": self.fields, "--prompt": self.prompt is not None, "--chat": self.chat}
        chosen = [f"`{way}`" for way, taken in ways.items() if taken]
        if len(chosen) > 1:
            raise UsageError(
                f"{' and '.join(chosen)} are different questions, and one is answered",
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
        return [*flags, *["--chat"] * self.chat, *["--base-only"] * self.base_only]


def generate(wanted: str, options: GenerateOptions, *, as_json: bool) -> str | None:
    """Return the adapter's answer, or None after a conversation."""
    flags = options.flags
    folder, loaded = open_fetched(wanted)
    if options.chat and as_json:
        raise UsageError("a conversation is no JSON", hint="leave `--chat` or `--json` out")
    if not (options.fields or options.chat or options.prompt is not None):
        raise UsageError("there is nothing to answer", hint=example_command(loaded))
    if options.fields:
        check_fields(loaded, options.fields)
    quantised = loaded.config.method.storage is not Quant.NONE
    packages = (*LEARNS, *("bitsandbytes",) * quantised)
    demand(packages, "`qft generate`", qft_home(environment()))
    with local_run_dir(loaded, folder) as run_dir:
        flags = ["--run-dir", str(run_dir), "--adapter", str(adapter_of(loaded)), *flags]
        if options.chat:
            check_exit("generate", start("generate", *flags, stdout=None).returncode)
            return None
        return output_of("generate", *flags, as_json=as_json).removesuffix("\n")


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
