"""The door: parse the command line, call the command, and map every error to its exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from commands import tools
from commands.runs.home import environment, qft_home
from commands.ui.errors import Exit, QftError, UsageError
from commands.ui.help_examples import EXIT_CODES, FIRST_STEPS, examples
from commands.ui.library_warnings import log_library_warnings
from commands.ui.options import AllowChange, Fresh, Json, Plain, ProviderName, Run
from commands.ui.output import (
    columns,
    last_resort,
    log,
    open_std_streams,
    out,
    print_error,
    print_interrupted,
    print_json,
    table,
)
from commands.ui.signals import sigterm_as_interrupt

VERSION = "0.1.0"

app = typer.Typer(
    name="qft",
    help="Fine-tune a language model with QLoRA on one cheap spot GPU machine, and bring the "
    "adapter home whatever the cloud does to the machine meanwhile.",
    epilog=f"{FIRST_STEPS}\n\n{EXIT_CODES}",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(epilog=examples("init"))
def init(
    directory: Annotated[str, typer.Argument(help="Where to write run.yaml.")] = ".",
    *,
    rows: Annotated[
        str,
        typer.Option(
            "--data", metavar="FILE", help="Your rows; the run.yaml then names its columns."
        ),
    ] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of run.yaml instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run.yaml to start from."""
    from commands import init as command

    if schema:
        out(command.schema())
        return
    written = command.write(directory, rows)
    if as_json:
        print_json(written.to_json())
    else:
        log("\n".join(written.lines()))


@app.command(epilog=examples("doctor"))
def doctor(
    run: Run = "",
    *,
    provider: Annotated[
        str,
        typer.Option(
            metavar="local|azure|ssh",
            help="Whether this one would work.",
            show_default="the run.yaml's, or local",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check this computer, account and host; say the fixes."""
    from commands import doctor as command
    from commands.runs.checks import exit_code

    checks = command.examine(run, provider)
    if as_json:
        print_json([check.to_json() for check in checks])
    else:
        out("\n".join(check.line for check in checks))
    if code := exit_code(checks):
        raise typer.Exit(code)


@app.command(epilog=examples("plan"))
def plan(run: Run = "", *, as_json: Json = False) -> None:
    """Show offers, prices and the worst-case bill; create nothing."""
    from commands import plan as command

    made = command.make_plan(run)
    if as_json:
        print_json(made.to_json())
    else:
        out("\n".join(made.lines()))


@app.command(epilog=examples("up"))
def up(run: Run = "", *, plain: Plain = False, as_json: Json = False) -> None:
    """Rent a machine and make it ready to train."""
    _run_to_goal("up", run, plain=plain, as_json=as_json)


@app.command(epilog=examples("train"))
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
    _run_to_goal(
        "train",
        run,
        allow_change=tuple(allow_change or ()),
        fresh=not resume,
        plain=plain,
        attach=True,
        as_json=as_json,
    )


@app.command(epilog=examples("status"))
def status(run: Run = "", *, as_json: Json = False) -> None:
    """Show where a run is and what it costs."""
    from commands import status as command

    found = command.status(run)
    if as_json:
        print_json(found.to_json())
    else:
        out(columns(found.lines()))


@app.command(epilog=examples("logs"))
def logs(
    run: Run = "",
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the training ends.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help='{"lines": [...]}; with --follow {"line": ...}, one a line.'),
    ] = False,
) -> None:
    """Print what the trainer said."""
    from commands import logs as command
    from commands.ui.output import json_log_writer, log_writer

    if as_json:
        with json_log_writer(follow=follow) as write:
            command.logs(run, follow=follow, write=write, on_message=log)
    else:
        command.logs(run, follow=follow, write=log_writer(), on_message=log)


@app.command(epilog=examples("fetch"))
def fetch(run: Run = "", *, plain: Plain = False, as_json: Json = False) -> None:
    """Bring the adapter home, verified."""
    _run_to_goal("fetch", run, plain=plain, as_json=as_json)


@app.command(epilog=examples("down"))
def down(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the disk and all else, too.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every machine with our tag.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="At once: the trainer is not asked to save first.")
    ] = False,
    provider: ProviderName = "",
    as_json: Json = False,
) -> None:
    """Stop the billing, keep or delete the disk, and prove it."""
    from commands import down as command
    from commands.runs.home import environment, qft_home

    _demand_one_meaning(run, everything=everything, provider=provider)
    if everything:
        home = qft_home(environment())
        providers = command.known_providers(home, provider)
        results = command.down_all(providers, home, delete=delete, on_message=log, now=now)
    else:
        results = [command.down(run, delete=delete, on_message=log, now=now)]
    if as_json:
        print_json([result.to_json() for result in results])
    elif not results:
        out("nothing to release: no provider lists a machine of ours")
    else:
        out("\n".join(line for result in results for line in result.lines()))
    try:
        command.check_all(results)
    except QftError as trouble:
        _besides(trouble, as_json=as_json)


@app.command(name="run", epilog=examples("run"))
def run_all(
    run: Run = "",
    *,
    allow_change: AllowChange = None,
    fresh: Fresh = False,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Do all of it: up, train, recover, eval, fetch, down."""
    _run_to_goal(
        "run",
        run,
        allow_change=tuple(allow_change or ()),
        fresh=fresh,
        plain=plain,
        as_json=as_json,
    )


@app.command(epilog=examples("ls"))
def ls(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Machines in the cloud.")] = False,
    provider: ProviderName = "",
    as_json: Json = False,
) -> None:
    """List runs; with --all, every machine with our tag."""
    from commands import ls as command

    _demand_one_meaning("", everything=everything, provider=provider)
    lines, trouble = command.machines(provider) if everything else (command.runs(), None)
    rows = command.to_json(lines)
    if trouble and not rows:
        raise trouble  # an empty list would say that nothing bills
    if as_json:
        print_json(rows)
    elif rows:
        out(table(rows))
    else:
        log("no machine of ours anywhere" if everything else "no run yet: try `qft run run.yaml`")
    if trouble:
        _besides(trouble, as_json=as_json)


@app.command(epilog=examples("evict"))
def evict(run: Run = "", *, as_json: Json = False) -> None:
    """Ask the cloud to rehearse an eviction."""
    from commands import machine

    said = machine.evict(run)
    if as_json:
        print_json({"asked": said})
    else:
        log(said)


@app.command(
    epilog=examples("ssh"),
    # From the first word on everything belongs to the command there, options and all.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def ssh(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|COMMAND",
            help="A run's name or run.yaml, then a command to run there, with its own options.",
            show_default="the run.yaml here, or the only run; a shell",
        ),
    ] = None,
) -> None:
    """Open a shell on the machine, its host key pinned."""
    from commands import machine

    machine.ssh(words or [])


app.add_typer(tools.app)


@app.callback(invoke_without_command=True)
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that come before a command."""
    if version:
        out(VERSION)
        raise typer.Exit


def main() -> None:
    """Run the command line; every error leaves through here, with its documented exit code."""
    as_json = "--json" in sys.argv[1:]
    open_std_streams()
    with sigterm_as_interrupt():
        _run(as_json=as_json)


def _run(*, as_json: bool) -> NoReturn:
    try:
        log_library_warnings(qft_home(environment()) / "warnings.log", os.environ)
        if not sys.argv[1:]:
            with contextlib.redirect_stdout(sys.stderr):
                app(["--help"], standalone_mode=False)
            sys.exit(Exit.USAGE)
        code = app(standalone_mode=False)  # what `typer.Exit` carries is returned, not raised
        if code == Exit.INTERRUPTED:  # and so is Ctrl-C
            sys.exit(print_interrupted(as_json=as_json))
        sys.exit(code if isinstance(code, int) else Exit.DONE)
    except QftError as trouble:
        print_error(trouble, as_json=as_json)
        sys.exit(trouble.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(print_interrupted(as_json=as_json))
    except Exception as error:  # noqa: BLE001  (the one place that maps whatever is left)
        sys.exit(last_resort(error, as_json=as_json))


def _demand_one_meaning(run: str, *, everything: bool, provider: str) -> None:
    """Raise Usage where one word would be ignored: a machine more or less is released then."""
    if everything and run:
        raise UsageError(
            f"`{run}` is one run, and `--all` is every machine of ours",
            hint="leave one of them out",
        )
    if provider and not everything:
        raise UsageError(
            "`--provider` goes with `--all`", hint=f"write `--all --provider {provider}`"
        )


def _besides(trouble: QftError, *, as_json: bool) -> NoReturn:
    """Fail after the data was printed: a second document on stdout could not be parsed."""
    if not as_json:
        raise trouble
    print_error(trouble, as_json=False)
    raise typer.Exit(trouble.exit_code)


def _run_to_goal(goal: str, run: str, *, as_json: bool, **options: Any) -> None:
    from commands.runs.run_to_goal import request_run, run_to_goal
    from infra.run.decide import Goal

    options["plain"] = options["plain"] or as_json
    result = run_to_goal(request_run(Goal(goal), run, **options))
    if as_json:
        print_json(result.to_json())
    else:
        out(columns(result.lines()))
        if goal == "run":
            from commands import after

            log(f"\nnext: {after.next_steps(result.name)}")


if __name__ == "__main__":
    main()
