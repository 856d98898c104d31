"""The door: parse the command line, call the command, and map every error to its exit code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from commands.errors import Exit, Trouble
from commands.output import columns, last_resort, out, out_json, settle, table, talk, tell_trouble

VERSION = "0.1.0"

app = typer.Typer(
    name="qft",
    help="Fine-tune a language model with QLoRA on one cheap spot GPU machine, and bring the "
    "adapter home whatever the cloud does to the machine meanwhile.",
    epilog="Exit codes: 0 done, 1 our bug, 2 usage or config, 3 the cloud refused, 4 host "
    "unreachable or unfit, 5 training failed, 6 budget reached, 130 interrupted.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[str, typer.Argument(help="A run's name or its run.yaml; default: the one here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live view.")]
AllowChange = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="KEY", help="Resume although KEY changed, e.g. steps."),
]
ProviderName = Annotated[
    str, typer.Option("--provider", help="Ask only this one: local or azure; needs no record.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Set an earlier run of this name aside.")]


@app.command()
def init(
    directory: Annotated[str, typer.Argument(help="Where to write run.yaml.")] = ".",
    *,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
) -> None:
    """Write a run.yaml to start from."""
    from commands import init as command

    if schema:
        out(command.schema())
    else:
        talk(f"wrote {command.write_template(directory)}\nnext: edit it, then `qft run`")


@app.command()
def doctor(run: Run = "", *, as_json: Json = False) -> None:
    """Check this computer, account and host; say the fixes."""
    from commands import doctor as command

    checks = command.examine(run)
    if as_json:
        out_json([check.to_json() for check in checks])
    else:
        out("\n".join(check.line for check in checks))
    if not all(check.ok for check in checks):
        raise typer.Exit(Exit.USAGE)


@app.command()
def plan(run: Run = "", *, as_json: Json = False) -> None:
    """Show offers, prices and the worst-case bill; create nothing."""
    from commands import plan as command

    made = command.make_plan(run)
    if as_json:
        out_json(made.to_json())
    else:
        out("\n".join(made.lines()))


@app.command()
def up(run: Run = "", *, plain: Plain = False, as_json: Json = False) -> None:
    """Rent a machine and make it ready to train."""
    _drive("up", run, plain=plain, as_json=as_json)


@app.command()
def train(
    run: Run = "",
    *,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from the newest checkpoint, or anew.")
    ] = True,
    allow_change: AllowChange = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Sync, train, survive evictions; attach if it already runs."""
    _drive(
        "train",
        run,
        allow_change=tuple(allow_change or ()),
        fresh=not resume,
        plain=plain,
        attach=True,
        as_json=as_json,
    )


@app.command()
def status(run: Run = "", *, as_json: Json = False) -> None:
    """Show where a run is and what it costs."""
    from commands import status as command

    found = command.status(run)
    if as_json:
        out_json(found.to_json())
    else:
        out(columns(found.lines()))


@app.command()
def logs(
    run: Run = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """Print what the trainer said."""
    from commands import machine
    from commands.output import log_writer

    machine.logs(run, follow=follow, write=log_writer())


@app.command()
def fetch(run: Run = "", *, plain: Plain = False, as_json: Json = False) -> None:
    """Bring the adapter home, verified."""
    _drive("fetch", run, plain=plain, as_json=as_json)


@app.command()
def down(
    run: Run = "",
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the disk and all else.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every machine with our tag.")] = False,
    provider: ProviderName = "",
    as_json: Json = False,
) -> None:
    """Stop the billing, keep or delete the disk, and prove it."""
    from commands import down as command
    from commands.home import environment, qft_home

    if everything:
        home = qft_home(environment())
        providers = command.known_providers(home, provider)
        results = command.down_all(providers, home, delete=delete, say=talk)
    else:
        results = [command.down(run, delete=delete, say=talk)]
    if as_json:
        out_json([result.to_json() for result in results])
        return
    if not results:
        out("nothing to release: no provider lists a machine of ours")
    for result in results:
        out("\n".join(result.lines()))


@app.command(name="run")
def run_all(
    run: Run = "",
    *,
    allow_change: AllowChange = None,
    fresh: Fresh = False,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Do all of it: up, train, recover, eval, fetch, down."""
    _drive(
        "run",
        run,
        allow_change=tuple(allow_change or ()),
        fresh=fresh,
        plain=plain,
        as_json=as_json,
    )


@app.command()
def ls(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Machines in the cloud.")] = False,
    provider: ProviderName = "",
    as_json: Json = False,
) -> None:
    """List runs; with --all, every machine with our tag."""
    from commands import ls as command

    lines = command.machines(provider) if everything else command.runs()
    rows = command.to_json(lines)
    if as_json:
        out_json(rows)
    elif rows:
        out(table(rows))
    else:
        talk("no machine of ours anywhere" if everything else "no run yet: try `qft run run.yaml`")


@app.command()
def evict(run: Run = "") -> None:
    """Ask the cloud to rehearse an eviction."""
    from commands import machine

    talk(machine.evict(run))


@app.command(name="eval")
def evaluate(
    run: Run = "",
    *,
    again: Annotated[bool, typer.Option("--again", help="Measure anew on this computer.")] = False,
    as_json: Json = False,
) -> None:
    """Show the metric before and after, with intervals."""
    from commands import evaluation

    scores = evaluation.scores(run, again=again, say=talk)
    if as_json:
        out_json(scores.to_json())
    else:
        out("\n".join(scores.lines()))


@app.command()
def verify(
    run: Run = "",
    *,
    steps: Annotated[int | None, typer.Option(min=1, help="How many steps to do again.")] = None,
    as_json: Json = False,
) -> None:
    """Do some steps again and compare every bit."""
    from commands import verify as command

    verdict = command.verify(run, steps=steps, say=talk)
    if as_json:
        out_json(verdict.to_json())
    else:
        out("\n".join(verdict.lines()))
    if not verdict.equal:
        raise typer.Exit(Exit.TRAINING)


@app.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
def data(
    arguments: Annotated[list[str] | None, typer.Argument(help="The converter's.")] = None,
) -> None:
    """Turn a published data set into rows: FORMAT SOURCE --out DIR."""
    from commands import after

    after.convert(arguments or ["--help"])


@app.command()
def audit(
    run: Run = "",
    *,
    html: Annotated[str, typer.Option("--html", help="Also write a page there.")] = "",
    as_json: Json = False,
) -> None:
    """Show what would be trained, before any money is spent."""
    from commands import after

    after.audit(run, html=html, as_json=as_json)


@app.command()
def report(run: Run = "") -> None:
    """Write report.html beside the adapter: curves, scores, costs."""
    from commands import after

    out(str(after.report(run)))


@app.command(context_settings={"ignore_unknown_options": True})
def generate(
    run: str,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="--field, --prompt, --chat.")
    ] = None,
) -> None:
    """Let the adapter answer, as training asked."""
    from commands import after

    after.generate(run, arguments or [])


@app.command()
def export(
    run: Run = "",
    *,
    rank: Annotated[int | None, typer.Option(min=1, help="Of a DyLoRA run; default: best.")] = None,
) -> None:
    """Write a plain LoRA adapter of one rank that any PEFT loads."""
    from commands import after

    out(str(after.export(run, rank=rank)))


@app.command()
def merge(
    run: Run = "",
    *,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "",
) -> None:
    """Merge the adapter into its 16-bit base."""
    from commands import after

    out(str(after.merge(run, dtype=dtype)))


@app.command()
def push(
    run: Run = "",
    *,
    repo: Annotated[str, typer.Option(help="OWNER/MODEL on the hub.")],
    merged: Annotated[bool, typer.Option("--merged", help="The merged model instead.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Visible to everybody.")] = False,
) -> None:
    """Publish the adapter with its model card."""
    from commands import after

    after.push(run, repo=repo, merged=merged, public=public)


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    run: Run = "",
    command: Annotated[list[str] | None, typer.Argument(help="A command to run there.")] = None,
) -> None:
    """Open a shell on the machine, its host key pinned."""
    from commands import machine

    machine.ssh(run, command or [])


@app.callback(invoke_without_command=True)
def root(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Hold the options that come before a command."""
    if version:
        out(VERSION)
        raise typer.Exit


def main() -> None:
    """Run the command line; every error leaves through here, with its documented exit code."""
    as_json = "--json" in sys.argv[1:]
    settle()
    try:
        code = app(standalone_mode=False)  # what `typer.Exit` carries is returned, not raised
        sys.exit(code if isinstance(code, int) else Exit.DONE)
    except Trouble as trouble:
        tell_trouble(trouble, as_json=as_json)
        sys.exit(trouble.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:  # noqa: BLE001  (the one place that maps whatever is left)
        sys.exit(last_resort(error, as_json=as_json))


def _drive(goal: str, run: str, *, as_json: bool, **options: Any) -> None:
    from commands import drive
    from infra.lifecycle import Goal

    options["plain"] = options["plain"] or as_json
    arrived = drive.drive(drive.Order(goal=Goal(goal), wanted=run, **options))
    if as_json:
        out(drive.dump(arrived))
    else:
        out(columns([("result", arrived.reason), *arrived.receipt.lines()]))


if __name__ == "__main__":
    main()
