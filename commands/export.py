"""`qft export`: writes the adapter as plain LoRA of one rank, which any PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.runs.extras import demand
from commands.runs.fetched_run import add_results, open_fetched
from commands.runs.home import environment, qft_home, require_writable
from commands.runs.local_trainer import check_exit, local_run_dir, start
from commands.ui.errors import UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import print_data, print_json

EXAMPLES = {
    "qft export --rank 4": "rank 4 of a DyLoRA run, as plain LoRA",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of a DyLoRA run.", show_default="the best in validation"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a plain LoRA adapter of one rank that any PEFT loads."""
    adapter = str(export(run, rank=rank))
    if as_json:
        print_json({"adapter": adapter})
    else:
        print_data(adapter)


def export(wanted: str, *, rank: int | None) -> Path:
    """Write the adapter of one rank as plain LoRA beside the trained one; return its folder."""
    folder, loaded = open_fetched(wanted)
    target = loaded.out / (f"exported-rank-{rank}" if rank else "exported")
    if target.exists():
        raise UsageError(f"`{target}` is there already", hint="remove it, or choose another rank")
    require_writable(target)
    demand(("torch", "safetensors"), "`qft export`", qft_home(environment()))
    with local_run_dir(loaded, folder) as run_dir:
        add_results(run_dir, loaded)
        flags = ["--run-dir", str(run_dir), "--out", str(target.absolute())]
        done = start("export", *flags, *(["--rank", str(rank)] if rank else []))
    check_exit("export", done.returncode)
    return target
