"""The command line: the table of commands, and the one map from errors to exit codes.

A command is the file of its name in `commands/`, which is imported when it is run: its options,
its help and its work are there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from commands.runs.home import environment, qft_home
from commands.ui.errors import Exit, QftError
from commands.ui.library_warnings import log_library_warnings
from commands.ui.output import (
    log,
    open_std_streams,
    print_data,
    print_error,
    print_interrupted,
)

VERSION = "0.1.0"
COMMANDS = {
    "init": "Write a run.yaml to start from.",
    "doctor": "Check this computer, account and host; say the fixes.",
    "plan": "Say whether it fits, how long it takes, what it costs; create nothing.",
    "up": "Rent a machine and make it ready to train.",
    "train": "Sync, train, survive evictions; attach if it already runs.",
    "status": "Show where a run is and what it costs.",
    "logs": "Print what the trainer said.",
    "fetch": "Bring the adapter home, verified.",
    "down": "Stop the billing, keep or delete the disk, and prove it.",
    "run": "Do all of it: up, train, recover, eval, fetch, down.",
    "ls": "List runs; with --all, every machine with our tag.",
    "evict": "Ask the cloud to rehearse an eviction.",
    "ssh": "Open a shell on the machine, its host key pinned.",
    "eval": "Show the metric before and after, with intervals.",
    "verify": "Do some steps again and compare every bit.",
    "data": "Turn a published data set into rows to train on.",
    "audit": "Show what would be trained, before any money is spent.",
    "report": "Write a page about a run: scores, answers, curves, machine, costs.",
    "track": "Send what a run logged to trackers; each step arrives once.",
    "generate": "Let the adapter answer, as training asked.",
    "export": "Write a plain LoRA adapter of one rank that any PEFT loads.",
    "merge": "Merge the adapter into its base, and compare.",
    "push": "Publish the adapter with its model card.",
}
"""Each command with the first line of its help, which `qft --help` shows without importing it."""
FIRST_STEPS = """\b
First steps:
  qft init --data rows.csv   a run.yaml that fits your rows
  qft audit                  what would be trained
  qft plan                   will it fit, how long, how much
  qft run                    do it; type it again whenever it was cut off"""
EXIT_CODES = f"Exit codes: {', '.join(f'{int(code)} {code.meaning}' for code in Exit)}."


class LazyGroup(TyperGroup):
    """Lists the commands by name and summary, and imports the one that is run."""

    def __init__(self, **settings: Any) -> None:
        listed = [TyperCommand(name, help=summary) for name, summary in COMMANDS.items()]
        super().__init__(**{**settings, "commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name, the command and its arguments, as the parser asks for them."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else listed, rest


def load_command(name: str) -> Any:
    """Import the file of a command and return what the parser needs of it."""
    app = importlib.import_module(f"commands.{name}").app
    command = typer.main.get_command_from_info(
        app.registered_commands[0], pretty_exceptions_short=False, rich_markup_mode=None
    )
    command.name = name
    if not gc.isenabled():  # the entry point's doing, for the modules that are now loaded
        gc.freeze()
        gc.enable()
    return command


app = typer.Typer(
    name="qft",
    cls=LazyGroup,
    help="Fine-tune a language model with QLoRA on one cheap spot GPU machine, and bring the "
    "adapter home whatever the cloud does to the machine meanwhile.",
    epilog=f"{FIRST_STEPS}\n\n{EXIT_CODES}",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that come before a command."""
    if version:
        print_data(VERSION)
        raise typer.Exit


def main() -> None:
    """Run the command line; every error leaves through here, with its documented exit code."""
    as_json = "--json" in sys.argv[1:]
    open_std_streams()
    with sigterm_as_interrupt():
        _run(as_json=as_json)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM while inside; outside the main thread nothing changes.

    A script's background job ignores SIGINT, so another `qft` asks with SIGTERM, as `kill` does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(print_interrupted(as_json=as_json))
    except Exception as error:  # noqa: BLE001  (the one place that maps whatever is left)
        sys.exit(_report(error, as_json=as_json))


def _report(error: Exception, *, as_json: bool) -> int:
    """Print an error that ended the command, and return the exit code that it stands for.

    Beside our own errors there are those of the parser, a damaged journal and a full disk here;
    the rest is our bug, and gets a traceback.
    """
    expected = error if isinstance(error, QftError) else _expected_error(error)
    if expected is not None:
        print_error(expected, as_json=as_json)
        return expected.exit_code
    import traceback

    traceback.print_exception(error)
    log("this is a bug in qft, and nothing you did wrong")
    log("hint: `qft ls --all` shows what may still bill; `qft down` ends it")
    return Exit.BUG


def _expected_error(error: Exception) -> QftError | None:
    """Describe an error that is not ours but can be acted on; None for a bug."""
    from infra.run.journal import JournalDamaged

    # The parser's errors, whichever click it is.
    parser_message = getattr(error, "format_message", None)
    if parser_message is not None:
        return QftError(parser_message().rstrip(), hint=_help_for(error))
    if isinstance(error, JournalDamaged):
        return QftError(str(error), hint=error.hint)
    if isinstance(error, OSError) and error.errno is not None:
        hint = (
            "nothing was lost: make room or mend the rights, then run the same command again;"
            " `qft ls --all` shows what bills meanwhile"
        )
        return QftError(f"this computer refused: {error}", hint=hint)
    return None


def _help_for(error: Exception) -> str:
    """Name the help that explains what the parser did not understand."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "info_name", None) if getattr(context, "parent", None) else None
    if command is None:
        return "`qft --help` lists every command"
    return f"`qft {command} --help` explains its options"


if __name__ == "__main__":
    main()
