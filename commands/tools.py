"""The commands around a training: look at the data before, use and share the adapter after."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from commands.ui.errors import Exit
from commands.ui.help_examples import examples
from commands.ui.options import Json, Run
from commands.ui.output import log, out, print_json

app = typer.Typer(rich_markup_mode=None)


class Format(StrEnum):
    """The published formats that can be turned into rows."""

    CONVERSATIONS = "conversations"
    COUNSELLING = "counselling"
    DS1000 = "ds1000"
    INSTRUCTIONS = "instructions"
    JIGSAW = "jigsaw"
    SENTIMENT = "sentiment"


class Dtype(StrEnum):
    """The number formats that a merged model can be written in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Onto(StrEnum):
    """Which base an adapter can be merged onto."""

    ORIGINAL = "original"
    QUANTIZED = "quantized"


@app.command(name="eval", epilog=examples("eval"))
def evaluate(
    run: Run = "",
    *,
    again: Annotated[bool, typer.Option("--again", help="Measure anew on this computer.")] = False,
    as_json: Json = False,
) -> None:
    """Show the metric before and after, with intervals."""
    from commands import evaluation

    scores = evaluation.scores(run, again=again, on_message=log)
    if as_json:
        print_json(scores.to_json())
    else:
        out("\n".join(scores.lines()))


@app.command(epilog=examples("verify"))
def verify(
    run: Run = "",
    *,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="How many steps to do again.", show_default="a few"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Do some steps again and compare every bit."""
    from commands import verify as command

    verdict = command.verify(run, steps=steps, on_message=log)
    if as_json:
        print_json(verdict.to_json())
    else:
        out("\n".join(verdict.lines()))
    if not verdict.equal:
        raise typer.Exit(Exit.TRAINING)


@app.command(epilog=examples("data"))
def data(  # noqa: PLR0913  (an argument is an option)
    kind: Annotated[Format, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(Format)}.")],
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
    from commands import after

    flags = ["--held-out", str(held_out), "--seed", str(seed)]
    flags += ["--tokenizer", tokenizer] if tokenizer else []
    flags += [] if max_length is None else ["--max-length", str(max_length)]
    flags += [] if benign is None else ["--benign", str(benign)]
    made = after.convert(kind, source, folder, flags, as_json=as_json)
    if as_json:
        print_json(made)
    else:
        out(f"{made['train']}\n{made['eval']}")


@app.command(epilog=examples("audit"))
def audit(
    run: Run = "",
    *,
    html: Annotated[
        str, typer.Option("--html", metavar="FILE", help="Also write a page there.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show what would be trained, before any money is spent."""
    from commands import after

    after.audit(run, html=html, as_json=as_json)


@app.command(epilog=examples("report"))
def report(run: Run = "", *, as_json: Json = False) -> None:
    """Write report.html beside the adapter: curves, scores, costs."""
    from commands import after

    page = after.report(run, as_json=as_json)
    if as_json:
        print_json({"page": str(page), "data": str(page.with_suffix(".json"))})
    else:
        out(str(page))


@app.command(epilog=examples("generate"))
def generate(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", metavar="NAME=TEXT", help="Fills {NAME} of `data.prompt`; repeatable."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A ready prompt, used as it is.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Hold a conversation: a line in, an answer out.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Ask the base model without the adapter.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the adapter answer, as training asked."""
    from commands import after

    asked = after.Question(
        fields=tuple(fields or ()), prompt=prompt, chat=chat, tokens=tokens, base_only=base_only
    )
    answer = after.generate(run, asked, as_json=as_json)
    if answer is not None and as_json:
        print_json({"answer": answer})
    elif answer is not None:
        out(answer)


@app.command(epilog=examples("export"))
def export(
    run: Run = "",
    *,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of a DyLoRA run.", show_default="the best in validation"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a plain LoRA adapter of one rank that any PEFT loads."""
    from commands import after

    _tell({"adapter": str(after.export(run, rank=rank))}, as_json=as_json)


@app.command(epilog=examples("merge"))
def merge(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    base: Annotated[
        str,
        typer.Option(metavar="DIR", help="The base model.", show_default="the run's, or its hub's"),
    ] = "",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format.", show_default="the base's own")
    ] = None,
    onto: Annotated[
        Onto, typer.Option(help="The base as its files have it, or as training quantised it.")
    ] = Onto.ORIGINAL,
    rows: Annotated[
        int, typer.Option("--compare", min=0, help="Held-out rows to compare it on; 0 for none.")
    ] = 32,
    as_json: Json = False,
) -> None:
    """Merge the adapter into its base, and compare."""
    from commands import after

    quantised = onto is Onto.QUANTIZED
    order = after.Fold(base=base, dtype=dtype or "", quantised=quantised, rows=rows)
    merged, parity = after.merge(run, order, as_json=as_json)
    if as_json:
        print_json({"model": str(merged), "parity": parity})
    else:
        out(str(merged))


@app.command(epilog=examples("push"))
def push(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    repo: Annotated[str, typer.Option(metavar="OWNER/MODEL", help="The place on the hub.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="The merged model instead of the adapter.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Visible to everybody; otherwise private.")
    ] = False,
    base: Annotated[
        str,
        typer.Option(metavar="OWNER/NAME", help="What a base in a directory is called on the hub."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Publish the adapter with its model card."""
    from commands import after

    shelf = after.Shelf(repo=repo, merged=merged, public=public, base=base)
    _tell({"address": after.push(run, shelf, as_json=as_json)}, as_json=as_json)


def _tell(made: dict[str, str], *, as_json: bool) -> None:
    """Where a result lies: as JSON, or one place a line."""
    if as_json:
        print_json(made)
    else:
        out("\n".join(made.values()))
