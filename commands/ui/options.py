"""What several commands take, so that one word means one thing everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

Run = Annotated[
    str,
    typer.Argument(
        help="A run's name or its run.yaml.", show_default="the run.yaml here, or the only run"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Plain lines instead of a live view, as in a pipe.")
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="KEY",
        help="Go on although KEY, such as train.steps, was changed in run.yaml; repeatable.",
    ),
]
ProviderName = Annotated[
    str,
    typer.Option(
        "--provider",
        metavar="local|azure",
        help="Ask only this provider; works without any record on this computer.",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Begin anew; the record of an earlier run is set aside."),
]
