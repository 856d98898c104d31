"""`qft run`: everything from a rented machine to the adapter at home; resumable at any point."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.ui.ask import can_ask
from commands.ui.options import AllowChange, Json, Plain, Run, Yes, examples
from commands.ui.output import columns, log, print_data, print_json

if TYPE_CHECKING:
    from commands.runs.result import RunResult
    from trainer.secret import Secret

EXAMPLES = {
    "qft run": "the run.yaml here",
    "qft run my-run --plain": "a run started before, with lines for a log file",
    "qft run --fresh": "once more from the beginning",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    allow_change: AllowChange = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Begin anew; the record of an earlier run is set aside."),
    ] = False,
    notify: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="POST there when the run is done, evicted, failed, waiting, or its budget is "
            "used to 80 %. Others here can read a command line: QFT_NOTIFY_URL is not shown.",
            show_default=False,
        ),
    ] = "",
    yes: Yes = False,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Do all of it: up, train, recover, eval, fetch, down."""
    result = run_and_print(
        "run",
        run,
        notify=notify_url(notify),
        allow_change=tuple(allow_change or ()),
        fresh=fresh,
        yes=yes,
        plain=plain,
        as_json=as_json,
    )
    if not as_json:
        log(f"\nnext: {next_steps(result.name)}")


def notify_url(given: str) -> Secret | None:
    """Return the address to tell of the run, by option or environment; None if there is none.

    No program that this one starts finds it in its environment. Raises UsageError if it is none.
    """
    from commands.runs.notify import URL_ENV, checked_url

    by_environment = os.environ.pop(URL_ENV, "")
    url = given or by_environment
    return checked_url(url) if url else None


def run_and_print(
    goal: str, run: str, *, plain: bool, as_json: bool, yes: bool = False, **options: Any
) -> RunResult:
    """Bring a run to a goal and print the result; what `up`, `train`, `fetch` and `run` share.

    Whoever sits at a terminal is asked before a run that begins rents, unless `yes` is given.
    """
    # Late, since it loads every room, and help needs none of them.
    from commands.runs.run_to_goal import request_run, run_to_goal
    from infra.run.plan import Goal

    plain = plain or as_json
    request = request_run(
        Goal(goal), run, plain=plain, ask=not (yes or plain) and can_ask(), **options
    )
    result = run_to_goal(request)
    if as_json:
        print_json(result.to_json())
    else:
        print_data(columns(result.lines()))
    return result


def next_steps(name: str) -> str:
    """List what can be typed once the adapter is home, each as it stands but for the prompt."""
    from commands.generate import example_command
    from commands.runs.find_config import reopen
    from commands.runs.home import environment, qft_home, run_folder

    loaded = reopen(run_folder(qft_home(environment()), name))
    return f"`qft report {name}`, {example_command(loaded)}, `qft merge {name}`"
