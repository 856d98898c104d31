"""`qft plan`: shows whether it fits, how long it takes and what it costs, before anything is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from commands.ui.options import Json, Run, examples
from commands.ui.output import print_data, print_json
from commands.ui.wrap import output_width

EXAMPLES = {
    "qft plan": "whether it fits, how long it takes, what it costs",
    "qft plan --all": "with every offer, and why it cannot be had",
    "qft plan --as published": "whether it would fit in the articles' loop, and why",
    "qft plan other.yaml --json": "the same of another file, for a script",
}

app = typer.Typer()


class OtherLoop(StrEnum):
    """A training loop that a run can be compared with."""

    PUBLISHED = "published"


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    all_of_them: Annotated[
        bool, typer.Option("--all", help="List every offer, and every detail of what limits it.")
    ] = False,
    other_loop: Annotated[
        OtherLoop | None,
        typer.Option("--as", help="Say whether it would fit in another training loop, and why."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether it fits, how long it takes, what it costs; create nothing."""
    if other_loop is not None:
        from commands.runs.planning.as_published import make_comparison

        comparison = make_comparison(run)
        if as_json:
            print_json(comparison.to_json())
        else:
            print_data("\n".join(comparison.lines()))
        return
    # Late, since it loads every room, and help needs none of them.
    from commands.runs.planning.make_page import make_plan

    page = make_plan(run)
    if as_json:
        print_json(page.to_json())
    else:
        print_data("\n".join(page.lines(output_width(), all_of_them=all_of_them)))
    if not page.answer.goes_ahead:
        raise typer.Exit(page.answer.exit_code)
