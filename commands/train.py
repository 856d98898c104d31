"""`qft train`: trains to the end through evictions, or follows a training that is under way."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.run import run_and_print
from commands.ui.options import AllowChange, Json, Plain, Run, Yes, examples

EXAMPLES = {
    "qft train": "start, go on, or follow a training; the machine stays",
    "qft train --allow-change train.steps": "go on with another number of steps",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from the newest checkpoint, or anew.")
    ] = True,
    allow_change: AllowChange = None,
    yes: Yes = False,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Sync, train, survive evictions; attach if it already runs."""
    run_and_print(
        "train",
        run,
        allow_change=tuple(allow_change or ()),
        fresh=not resume,
        yes=yes,
        plain=plain,
        attach=True,
        as_json=as_json,
    )
