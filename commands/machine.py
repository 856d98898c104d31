"""`qft evict`, `qft ssh`: reach into the machine of a run without driving it."""

from __future__ import annotations

import base64
import difflib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from commands.runs import factory
from commands.runs.config import LoadedConfig
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, all_runs, environment, pick_run, qft_home
from commands.ui.errors import CloudError, UsageError
from infra.names import host_error, user_error
from infra.provider import PowerState, ProviderError, Vm
from infra.run.fold import fold
from infra.run.journal import read
from remote import keys
from remote.errors import RemoteError, shorten
from remote.ssh import Host

UP = frozenset({PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING})


def evict(wanted: str) -> str:
    """Ask the provider to rehearse an eviction of the run's machine; return what was asked."""
    folder, loaded = _run(wanted)
    vm = _machine(folder)
    if vm is None:
        raise UsageError(
            f"`{folder.name}` has no machine to evict",
            hint=f"`qft status {folder.name}` tells where it is; evict it while it trains",
        )
    provider = factory.make_provider(loaded.config.vm, qft_home(environment()))
    if not provider.traits.evicts:
        raise UsageError(
            f"machines of `provider: {provider.name}` are never evicted",
            hint="`provider: local` rehearses an eviction on this computer",
        )
    try:
        power = provider.observe(vm).power
        if power not in UP:
            raise UsageError(
                f"the machine of `{folder.name}` is {power}: there is nothing to evict",
                hint=f"`qft train {folder.name}` goes on with the run; evict it while it trains",
            )
        provider.evict(vm)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    return f"{provider.name} was asked to evict {vm.id}"


def meant(words: Sequence[str], home: Path, *, cwd: Path) -> tuple[RunFolder, list[str]]:
    """The run and the command that the words after `qft ssh` mean.

    The first word is a run if one of that name exists, or a run.yaml; else all of them are the
    command, for the run that goes without saying. `--` parts the two. Raises Usage if neither fits.
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


def ssh_argv(words: Sequence[str]) -> list[str]:
    """The `ssh` command line into the run's machine, with the pinned host key and nothing else."""
    folder, command = meant(words, qft_home(environment()), cwd=Path.cwd())
    loaded = reopen(folder)
    vm = _machine(folder)
    if vm is None or not vm.host:
        raise UsageError(
            f"`{folder.name}` has no machine that runs", hint=f"`qft up {folder.name}` gets one"
        )
    program = shutil.which("ssh")
    if program is None:
        raise UsageError("there is no `ssh` on this computer", hint="install OpenSSH's client")
    known = folder.root / "known_hosts"
    alias = f"qft-{folder.name}"
    known.write_text(f"{alias} {_checked(folder, vm)}\n")
    options = {
        "HostKeyAlias": alias,
        "UserKnownHostsFile": _quoted(known),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "IdentityFile": _quoted(factory.user_key(loaded.config.vm, folder)),
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    # No config file: `ForwardAgent yes` there would hand the user's keys to the machine. After the
    # `--` nothing is an option, neither the host's name nor the words of the command.
    to = ["-p", str(vm.port), "-l", vm.user, "--", vm.host]
    return [program, "-F", "none", *flags, *to, *command]


def _checked(folder: RunFolder, vm: Vm) -> str:
    """The machine's key line; raises Usage if the record names what `ssh` must not be given."""
    problem = host_error(vm.host) or user_error(vm.user)
    try:
        kind, blob = keys.parse_line(vm.host_public_key)
    except RemoteError as error:
        problem = problem or str(error)
    if problem:
        raise UsageError(
            f"the record of `{folder.name}` names no machine that can be reached: {problem}",
            hint=f"`qft down --delete {folder.name}` ends it; mend `vm.ssh`, and begin anew",
        )
    return f"{kind} {base64.b64encode(blob).decode()}"


def _quoted(path: Path) -> str:
    """A path as `ssh` reads it in an option: spaces part words there, and `%` begins a token."""
    return '"{}"'.format(str(path).replace("%", "%%"))


def ssh(words: Sequence[str]) -> None:
    """Become that `ssh`, whose exit code is the command's; does not return."""
    argv = ssh_argv(words)
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606  (a list of arguments, and no shell between)


def _run(wanted: str) -> tuple[RunFolder, LoadedConfig]:
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    return folder, reopen(folder)


def _machine(folder: RunFolder) -> Vm | None:
    return fold(read(folder.journal)).vm


def running_now(loaded: LoadedConfig, vm: Vm | None) -> Vm | None:
    """The machine with the address it has now; None if its provider says that it does not run."""
    if vm is None:
        return None
    provider = factory.make_provider(loaded.config.vm, qft_home(environment()))
    try:
        seen = provider.observe(vm)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    if seen.power is not PowerState.RUNNING or not seen.host:
        return None
    return replace(vm, host=seen.host, port=seen.port)


def host_of(folder: RunFolder, loaded: LoadedConfig, vm: Vm) -> Host:
    """How to connect to the machine of a run."""
    return Host(
        address=vm.host,
        port=vm.port,
        user=vm.user,
        key_path=factory.user_key(loaded.config.vm, folder),
        host_key=vm.host_public_key,
    )
