"""`qft report`: writes a page about a run, or serves it while the run goes on."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from commands.runs.fetched_run import add_results, open_fetched, write_facts
from commands.runs.find_config import reopen
from commands.runs.home import environment, pick_run, qft_home, require_writable
from commands.runs.local_trainer import local_run_dir, output_of
from commands.ui.browser import open_page
from commands.ui.options import Json, Run, examples
from commands.ui.output import log, print_data, print_json

EXAMPLES = {
    "qft report": "out/NAME/report.html, report.json, and report.md for a pull request",
    "qft report --open": "the same, shown in the browser",
    "qft report --live --open": "the page while the run goes on; Ctrl-C ends it, not the run",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Serve the page on this computer while the run goes on, and refresh it."
        ),
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page.")] = False,
    as_json: Json = False,
) -> None:
    """Write a page about a run: scores, answers, curves, machine, costs."""
    if live:
        report_live(run, open_browser=open_browser, as_json=as_json)
        return
    page = report(run, as_json=as_json)
    if as_json:
        others = {"data": page.with_suffix(".json"), "markdown": page.with_suffix(".md")}
        print_json({key: str(path) for key, path in {"page": page, **others}.items()})
    else:
        print_data(str(page))
    if hint := tensorboard_hint(page.parent):
        log(hint)
    if open_browser:
        show(page.as_uri())


def tensorboard_hint(out: Path) -> str:
    """Return how to look at the curves of a run in TensorBoard; empty if it has none."""
    curves = out / "tb"
    if not any(curves.glob("events.*")):
        return ""
    return f"curves: `tensorboard --logdir {shlex.quote(str(curves))} --host 127.0.0.1`"


def report(wanted: str, *, as_json: bool) -> Path:
    """Write `report.html`, `report.json` and `report.md` beside the adapter; return the page."""
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


def report_live(wanted: str, *, open_browser: bool, as_json: bool) -> None:
    """Serve the page of a run, fetched or not, until Ctrl-C.

    Raises UsageError if there is no such run.
    """
    from commands.runs.live.serve import serve

    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)

    def tell(url: str) -> None:
        if as_json:
            print_json({"url": url})
        else:
            print_data(url)
        log("only this computer can open it; Ctrl-C ends the page, not the run")
        if open_browser:
            show(url)

    serve(folder, loaded, on_url=tell, on_message=log)


def show(url: str) -> None:
    """Open a page, or say why not: it is there all the same."""
    if why := open_page(url, environment=environment(), platform=sys.platform):
        log(f"{why}: open {url} yourself")
