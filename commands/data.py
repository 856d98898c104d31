"""`qft data`: converts a published data set into rows to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.runs.extras import demand
from commands.runs.home import environment, qft_home
from commands.runs.local_trainer import output_of
from commands.ui.options import Json, examples
from commands.ui.output import print_data, print_json
from trainer.data.converters import PublishedFormat

EXAMPLES = {
    "qft data sentiment reviews.csv --out data": "data/train.jsonl and data/eval.jsonl",
    "qft data jigsaw train.csv --tokenizer microsoft/phi-1_5": "by the published rule",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913  (an argument is an option)
    kind: Annotated[
        PublishedFormat,
        typer.Argument(metavar="FORMAT", help=f"One of {', '.join(PublishedFormat)}."),
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The file as published.")],
    *,
    folder: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Where train.jsonl and eval.jsonl go.")
    ] = ".",
    held_out: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the groups that is held out.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Draws the groups, and jigsaw's benign rows.")] = 0,
    benign: Annotated[
        int | None,
        typer.Option(min=0, help="jigsaw: how many benign rows to draw.", show_default="15000"),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="jigsaw: drop rows over --max-length tokens of this model."
        ),
    ] = "",
    max_length: Annotated[
        int | None, typer.Option(min=1, help="With --tokenizer.", show_default="1024")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a published data set into rows to train on."""
    flags = ["--held-out", str(held_out), "--seed", str(seed)]
    flags += [] if max_length is None else ["--max-length", str(max_length)]
    flags += [] if benign is None else ["--benign", str(benign)]
    if tokenizer:
        demand(("transformers",), "`qft data`", qft_home(environment()))
        flags += ["--tokenizer", tokenizer]
    arguments = [kind, source, "--out", folder, *flags, "--json"]
    counts = json.loads(output_of("convert", *arguments, as_json=as_json))
    files = {side: str(Path(folder) / f"{side}.jsonl") for side in ("train", "eval")}
    if as_json:
        print_json({**files, **counts})
    else:
        print_data("\n".join(files.values()))
