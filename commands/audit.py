"""`qft audit`: shows what would be trained: samples, lengths, labels and duplicates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from commands.runs.base_checks import require_trainable
from commands.runs.config import check_data_and_model
from commands.runs.extras import READS, demand
from commands.runs.find_config import find_config
from commands.runs.home import environment, qft_home, run_folder
from commands.runs.hub_base import base_begun_with, inspect_base
from commands.runs.local_trainer import local_run_dir, output_of
from commands.runs.parent_adapter import resolve_parent
from commands.ui.errors import UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import log, print_data

EXAMPLES = {
    "qft audit": "samples, lengths, labels, duplicates",
    "qft audit --html audit.html": "also as a page",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    html: Annotated[
        str, typer.Option("--html", metavar="FILE", help="Also write a page there.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show what would be trained, before any money is spent."""
    print_data(audit(run, html=html, as_json=as_json))


def audit(wanted: str, *, html: str, as_json: bool) -> str:
    """Return what would be trained, as text or JSON; with `html`, also write a page there."""
    if html:
        check_page(Path(html))
    home = qft_home(environment())
    loaded, _ = resolve_parent(find_config(wanted, home), home)
    check_data_and_model(loaded)
    run = run_folder(home, loaded.config.name)
    answer = inspect_base(loaded, log, base_begun_with(loaded, run))
    require_trainable(loaded)
    demand(READS, "`qft audit`", home)
    flags = ["--html", str(Path(html).absolute())] if html else []
    flags += ["--json"] if as_json else []
    base = answer.base if answer else None  # of it, an audit reads the description alone
    with local_run_dir(loaded, run, base) as run_dir:
        audited = output_of("audit", "--run-dir", str(run_dir), *flags, as_json=as_json)
    return audited.rstrip("\n")


def check_page(path: Path) -> None:
    """Raise UsageError if a page could not be written to `path`."""
    folder = path.parent
    if path.is_dir():
        problem = "is a directory"
    elif not folder.is_dir():
        problem = f"lies in `{folder}`, which is no directory"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        problem = "cannot be written"
    else:
        return
    raise UsageError(f"--html: `{path}` {problem}", hint="name a file, such as `--html page.html`")
