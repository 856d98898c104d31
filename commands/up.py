"""`qft up`: rents a machine and sets it up, without training."""

from __future__ import annotations

import typer

from commands.run import run_and_print
from commands.ui.options import Json, Plain, Run, Yes, examples

EXAMPLES = {
    "qft up": "rent and set up; `qft down` ends the billing",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "", *, yes: Yes = False, plain: Plain = False, as_json: Json = False
) -> None:
    """Rent a machine and make it ready to train."""
    run_and_print("up", run, yes=yes, plain=plain, as_json=as_json)
