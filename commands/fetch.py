"""`qft fetch`: copies the results of a run to this computer, each file verified."""

from __future__ import annotations

import typer

from commands.run import run_and_print
from commands.ui.options import Json, Plain, Run, examples

EXAMPLES = {
    "qft fetch my-run": "the adapter into out/my-run/adapter beside run.yaml",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(run: Run = "", *, plain: Plain = False, as_json: Json = False) -> None:
    """Bring the adapter home, verified."""
    run_and_print("fetch", run, plain=plain, as_json=as_json)
