"""`qft report`: writes a page about a finished run: curves, scores and costs."""

from __future__ import annotations

from pathlib import Path

import typer

from commands.runs.fetched_run import add_results, open_fetched, write_facts
from commands.runs.home import require_writable
from commands.runs.local_trainer import local_run_dir, output_of
from commands.ui.options import Json, Run, examples
from commands.ui.output import print_data, print_json

EXAMPLES = {
    "qft report": "out/NAME/report.html and report.json",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(run: Run = "", *, as_json: Json = False) -> None:
    """Write report.html beside the adapter: curves, scores, costs."""
    page = report(run, as_json=as_json)
    if as_json:
        print_json({"page": str(page), "data": str(page.with_suffix(".json"))})
    else:
        print_data(str(page))


def report(wanted: str, *, as_json: bool) -> Path:
    """Write `report.html` and `report.json` beside the adapter; return the page."""
    folder, loaded = open_fetched(wanted)
    page = loaded.out / "report.html"
    require_writable(page.parent)  # a page of before is replaced
    with local_run_dir(loaded, folder) as run_dir:
        add_results(run_dir, loaded)
        facts = write_facts(run_dir, folder, loaded)
        places = ["--run-dir", str(run_dir), "--facts", str(facts)]
        target = ["--out", str(loaded.out.absolute()), "--name", folder.name]
        output_of("report", *places, *target, as_json=as_json)
    return page
