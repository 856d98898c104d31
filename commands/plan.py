"""`qft plan`: shows whether it fits, how long it takes and what it costs, before anything is."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.ui.options import Json, Run, examples
from commands.ui.output import print_data, print_json
from commands.ui.wrap import output_width

EXAMPLES = {
    "qft plan": "whether it fits, how long it takes, what it costs",
    "qft plan --all": "with every offer, and why it cannot be had",
    "qft plan other.yaml --json": "the same of another file, for a script",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    all_of_them: Annotated[
        bool, typer.Option("--all", help="List every offer, and every detail of what limits it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show offers, prices and the worst-case bill; create nothing."""
    # Late, since it loads every room, and help needs none of them.
    from commands.runs.planning.make_page import make_plan

    page = make_plan(run)
    if as_json:
        print_json(page.to_json())
    else:
        print_data("\n".join(page.lines(output_width(), all_of_them=all_of_them)))
    if not page.answer.goes_ahead:
        raise typer.Exit(page.answer.exit_code)
