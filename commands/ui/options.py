"""The options that several commands have, so that one word means one thing everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NoReturn

import typer

from commands.ui.errors import QftError, UsageError
from commands.ui.output import print_error

Run = Annotated[
    str,
    typer.Argument(
        help="A run's name or its run.yaml.", show_default="the run.yaml here, or the only run"
    ),
]
Node = Annotated[
    int | None,
    typer.Option(
        "--node",
        metavar="NUMBER",
        min=0,
        help="Which of several machines; without it, the one that leads.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Plain lines instead of a live view, as in a pipe.")
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Rent without asking; only a terminal is asked at all.")
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="KEY",
        help="Go on although KEY, such as train.steps, was changed in run.yaml; repeatable.",
    ),
]
ProviderName = Annotated[
    str,
    typer.Option(
        "--provider",
        metavar="local|azure|aws",
        help="Ask only this provider; works without any record on this computer.",
    ),
]


def examples(lines: Mapping[str, str]) -> str:
    """Lay out the foot of a command's help: lines that can be typed, and what each is for.

    The backspace keeps the parser from joining the lines.
    """
    width = max(len(line) for line in lines)
    shown = [f"  {line:<{width}}   {purpose}" for line, purpose in lines.items()]
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *shown])


def check_all(run: str, *, everything: bool, provider: str) -> None:
    """Raise UsageError where an option beside `--all` would be ignored.

    It would release a machine more, or less, than was meant.
    """
    if everything and run:
        raise UsageError(
            f"`{run}` is one run, and `--all` is every machine of ours",
            hint="leave one of them out",
        )
    if provider and not everything:
        raise UsageError(
            "`--provider` goes with `--all`", hint=f"write `--all --provider {provider}`"
        )


def fail_after_output(error: QftError, *, as_json: bool) -> NoReturn:
    """End with an error after the data was printed: a second JSON document could not be parsed."""
    if not as_json:
        raise error
    print_error(error, as_json=False)
    raise typer.Exit(error.exit_code)
