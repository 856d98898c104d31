"""`qft ssh`: opens a shell on the run's machine, or runs a command there, its host key pinned."""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from commands.runs import factory
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, all_runs, environment, pick_run, qft_home
from commands.runs.running_machine import other_nodes, recorded_machine
from commands.ui.errors import UsageError
from commands.ui.options import Node, examples
from commands.ui.output import log
from infra.names import host_error, user_error
from infra.provider import Vm
from remote import keys
from remote.errors import RemoteError, shorten

EXAMPLES = {
    "qft ssh": "a shell",
    "qft ssh my-run nvidia-smi -L": "one command, with its own options",
    "qft ssh my-run --node 1": "a shell on another machine of the run",
    "qft ssh uname -a": "the same on the run of the run.yaml here, or the only one",
}

app = typer.Typer()


@app.command(
    epilog=examples(EXAMPLES),
    # From the first word on everything belongs to the command there, options and all.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|COMMAND",
            help="A run's name or run.yaml, then a command to run there, with its own options.",
            show_default="the run.yaml here, or the only run; a shell",
        ),
    ] = None,
    *,
    node: Node = None,
) -> None:
    """Open a shell on the machine, its host key pinned."""
    ssh(words or [], node)


def parse_words(words: Sequence[str], home: Path, *, cwd: Path) -> tuple[RunFolder, list[str]]:
    """Parse the words after `qft ssh` into a run and the command for its machine.

    The first word is a run if one of that name exists, or a run.yaml; else all of them are the
    command, for the run that goes without saying. `--` parts the two. Raises UsageError if neither
    fits.
    """
    first, *rest = words or [""]
    if not first or first == "--":
        return pick_run(home, "", cwd=cwd), rest
    named = first in {run.name for run in all_runs(home)}
    if named or first.endswith((".yaml", ".yml")) or rest[:1] == ["--"]:
        return pick_run(home, first, cwd=cwd), rest[1:] if rest[:1] == ["--"] else rest
    near = difflib.get_close_matches(first, [run.name for run in all_runs(home)], n=1, cutoff=0.75)
    if near and not rest:
        raise UsageError(
            f"there is no run `{first}`; did you mean `{near[0]}`?",
            hint=f"`qft ssh {near[0]} -- {first}` runs it as a command there",
        )
    try:
        return pick_run(home, "", cwd=cwd), [first, *rest]
    except UsageError as error:
        raise UsageError(
            f"there is no run `{shorten(first)}`, and no telling on which machine it is a command:"
            f" {error.message}",
            hint=f"`qft ssh NAME -- {shorten(' '.join(words))}` says which",
        ) from error


def parse_node(words: Sequence[str], node: int | None) -> tuple[list[str], int | None]:
    """Take `--node NUMBER` from behind the first word, where it may stand, too.

    No command has that name, so that nothing is lost.
    """
    match list(words):
        case [first, "--node", number, *rest] if number.isdecimal():
            return [first, *rest], int(number)
        case [first, option, *rest] if option.removeprefix("--node=").isdecimal() and "=" in option:
            return [first, *rest], int(option.removeprefix("--node="))
        case others:
            return others, node


def ssh_argv(words: Sequence[str], node: int | None = None) -> list[str]:
    """Build the `ssh` command line into a machine of the run, with the pinned host key alone."""
    words, node = parse_node(words, node)
    folder, remote_command = parse_words(words, qft_home(environment()), cwd=Path.cwd())
    loaded = reopen(folder)
    vm = recorded_machine(folder, node)
    if vm is None or not vm.host:
        raise UsageError(
            f"`{folder.name}` has no machine that runs", hint=f"`qft up {folder.name}` gets one"
        )
    program = shutil.which("ssh")
    if program is None:
        raise UsageError("there is no `ssh` on this computer", hint="install OpenSSH's client")
    if others := other_nodes(folder, node):
        log(others)
    which = f"-node-{vm.node}" if vm.node else ""
    known_hosts = folder.root / f"known_hosts{which}"
    alias = f"qft-{folder.name}{which}"
    known_hosts.write_text("".join(f"{alias} {line}\n" for line in _host_keys(folder, vm)))
    options = {
        "HostKeyAlias": alias,
        "UserKnownHostsFile": _quoted(known_hosts),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "IdentityFile": _quoted(factory.user_key(loaded.config.vm, folder)),
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    # No config file: `ForwardAgent yes` there would hand the user's keys to the machine. After the
    # `--` nothing is an option, neither the host's name nor the words of the command.
    to = ["-p", str(vm.port), "-l", vm.user, "--", vm.host]
    return [program, "-F", "none", *flags, *to, *remote_command]


def _host_keys(folder: RunFolder, vm: Vm) -> list[str]:
    """Return the machine's key line, and the one that is about to replace it.

    Raises UsageError if the record names what `ssh` must not get.
    """
    problem = host_error(vm.host) or user_error(vm.user)
    lines: list[str] = []
    try:
        lines = [keys.plain_line(one) for one in vm.accepted_host_keys]
    except RemoteError as error:
        problem = problem or str(error)
    if problem:
        raise UsageError(
            f"the record of `{folder.name}` names no machine that can be reached: {problem}",
            hint=f"`qft down --delete {folder.name}` ends it; mend `vm.ssh`, and begin anew",
        )
    return lines


def _quoted(path: Path) -> str:
    """Quote a path for an option of `ssh`, where spaces part words and `%` begins a token."""
    return '"{}"'.format(str(path).replace("%", "%%"))


def ssh(words: Sequence[str], node: int | None = None) -> None:
    """Replace this process with `ssh`, whose exit code is the command's; does not return."""
    argv = ssh_argv(words, node)
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606  (a list of arguments, and no shell between)
