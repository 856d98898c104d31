"""Runs one command of `python -m trainer`, and turns every error into its exit code.

A command is a module with `add_arguments(parser)` and `run(arguments)`. Only the one that is asked
for is imported, since many of them load torch. The codes stand in `exit_codes.py`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType

from trainer.device.host_memory import free_memory
from trainer.device.out_of_memory import is_out_of_memory
from trainer.errors import Preempted, TrainerError
from trainer.exit_codes import ExitCode
from trainer.job.job import prepare_environment
from trainer.text import gigabytes, print_line

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Command:
    """One command: its module, its help, and whether its errors go under headings, into a log."""

    module: str
    help: str
    headings: bool = False


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "train": Command("job.job", "train, or go on, until the adapter is whole", headings=True),
        "eval": Command("scoring.rescore", "score the base, or an adapter", headings=True),
        "verify": Command("job.replay", "do some steps again, compare every bit", headings=True),
        "export": Command("results.export", "write a plain LoRA for any PEFT", headings=True),
        "probe": Command("device.probe", "print versions and device as JSON", headings=True),
        "convert": Command("data.convert", "turn a published data set into rows"),
        "shape": Command("device.count", "count the parameters that a config.json describes"),
        "forecast": Command("estimate.points", "predict published peaks of memory from a CSV"),
        "step-memory": Command("step_memory.command", "count the memory of a training step"),
        "audit": Command("pages.audit", "show what would be trained"),
        "generate": Command("results.generate", "let the base or the adapter answer"),
        "report": Command("pages.report", "write the page of a run"),
        "fetch-base": Command("results.base_weights", "fetch the 16-bit base from the hub"),
        "fetch-adapter": Command("results.adapter_files", "fetch an adapter from the hub"),
        "merge": Command("results.merge", "merge the adapter into its base"),
        "merge-check": Command("results.merge_check", "compare a merged model with the adapter"),
        "publish": Command("results.publish", "put an adapter or a merged model on the hub"),
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; only a bug of ours shows a traceback."""
    argv = sys.argv[1:] if argv is None else list(argv)
    headings = not argv or argv[0] not in COMMANDS or COMMANDS[argv[0]].headings
    try:
        arguments = make_parser(argv).parse_args(argv)
        return int(arguments.run(arguments))
    except Preempted:
        print_line("preempted: the state is saved, the same command goes on from there")
        return ExitCode.PREEMPTED
    except TrainerError as error:
        print_problems(error.heading if headings else "", str(error).splitlines())
        return error.exit_code
    except KeyboardInterrupt:
        print_line(
            "interrupted: the newest checkpoint stands, the same command goes on from there"
            if headings
            else "interrupted"
        )
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort, with its own exit code
        if is_out_of_memory(error):
            print_problems("memory ran out" if headings else "", [describe_shortage(error)])
            return ExitCode.BAD_CONFIG
        if failure := loading_failure(error):
            print_problems("nothing can be trained here" if headings else "", [failure])
            return ExitCode.BAD_CONFIG
        if isinstance(error, OSError):
            heading = "the disk or the network failed" if headings else ""
            print_problems(heading, [describe_os_error(error)])
            return ExitCode.FAILED_IO
        traceback.print_exc()
        return ExitCode.BUG


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Describe all commands, and the arguments of the one that `argv` begin with."""
    top = argparse.ArgumentParser(
        prog="python -m trainer", description="Train, score and use adapters in a run directory."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        parser = commands.add_parser(name, help=command.help, description=command.help)
        if argv and argv[0] == name:
            prepare_environment(adaptive_waits=name == "train")
            module = importlib.import_module(f"trainer.{command.module}")
            module.add_arguments(parser)
            parser.set_defaults(run=module.run)
    return top


def loading_failure(error: BaseException) -> str:
    """Say what is wrong with a package if importing it raised `error`; empty for other errors.

    A package that is there and cannot be loaded, such as one built for another torch, raises
    whatever it likes when it is imported. That is no bug of ours, and no traceback helps.
    """
    trace: TracebackType | None = error.__traceback__
    loading = isinstance(error, ImportError)
    while trace is not None and not loading:
        code = trace.tb_frame.f_code  # a module's own code runs while it is loaded, and only then
        loading = code.co_name == "<module>" and not Path(code.co_filename).is_relative_to(ROOT)
        trace = trace.tb_next
    if not loading:
        return ""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{sys.executable} lacks a package, or has one that cannot be loaded: {text}"


def describe_os_error(error: OSError) -> str:
    """Say what failed where, and what to do about a full disk."""
    what = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return f"{where}{what}{'; free some space, or take a larger disk' if full else ''}"


def describe_shortage(error: BaseException) -> str:
    """Say how much memory there is, and what helps."""
    found = free_memory()
    limit = "" if found is None else f"; {found.limit} is {gigabytes(found.limit_bytes)}"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text}{limit}: take a machine with more, or raise the limit"


def print_problems(heading: str, problems: Sequence[str]) -> None:
    """Tell the user what to change, below a heading if there is one."""
    if heading:
        print_line(f"{heading}:")
    for problem in problems:
        print_line(f"  {problem}" if heading else problem)


if __name__ == "__main__":
    sys.exit(main())
