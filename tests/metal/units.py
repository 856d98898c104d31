"""Plays systemd for units that were written onto the machine: enabled, started, kept alive."""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from metal.state import Store

HOME = "etc/systemd/system"
KEEP = 'while :; do "$@" 2>> {log}; sleep {pause}; done'


def units(store: Store) -> Path:
    """Where written units lie."""
    return Path(store.read().root) / HOME


def enabled(store: Store) -> list[str]:
    """The units that a boot starts."""
    return sorted(path.name for path in units(store).glob("multi-user.target.wants/*"))


def systemctl(store: Store, verb: str, names: list[str], *, now: bool) -> int:
    """`enable` and `disable`, with `--now` or not, `start`, `stop`, `restart`, `is-active`."""
    for name in names:
        if not (units(store) / name).exists():
            sys.stderr.write(f"Failed to {verb} unit: Unit file {name} does not exist.\n")
            return 1
        if verb in {"enable", "disable"}:
            wanted_by(store, name, wanted=verb == "enable")
        if verb in {"stop", "restart"} or (verb == "disable" and now):
            stop(store, name)
        if verb in {"start", "restart"} or (verb == "enable" and now):
            start(store, name)
    with store.change() as state:
        state.done.append(f"systemctl {verb} {' '.join(names)}")
    return 0


def section(store: Store, name: str, title: str) -> configparser.SectionProxy:
    """A section of a unit's file."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read_string((units(store) / name).read_text())
    return parser[title]


def wanted_by(store: Store, name: str, *, wanted: bool) -> None:
    """Have the boot start a unit, or no longer."""
    connection = units(store) / f"{section(store, name, 'Install')['WantedBy']}.wants" / name
    connection.parent.mkdir(exist_ok=True)
    connection.unlink(missing_ok=True)
    if wanted:
        connection.symlink_to(units(store) / name)


def start(store: Store, name: str) -> None:
    """Start what the unit's file names, and again whenever it ends; not twice."""
    if running(store, name):
        return
    state = store.read()
    service = section(store, name, "Service")
    base_argv = [
        f"{state.root}{word}" if word.startswith("/") else word
        for word in shlex.split(service["ExecStart"])
    ]
    argv = [*base_argv, "--ssh-port", str(state.ssh_port), *state.hurry]
    if service.get("Restart") == "always":
        text = KEEP.format(log=shlex.quote(str(log(store, name))), pause=service["RestartSec"])
        argv = ["/bin/sh", "-c", text, name, *argv]
    process = subprocess.Popen(
        argv,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log(store, name).with_suffix(".pid").write_text(f"{state.boot_count} {process.pid}")


def stop(store: Store, name: str) -> None:
    """End a unit with everything that it started."""
    if group := running(store, name):
        os.killpg(group, signal.SIGKILL)
    log(store, name).with_suffix(".pid").unlink(missing_ok=True)


def running(store: Store, name: str) -> int:
    """The process group of a unit; 0 if it was not started in this life, or has ended."""
    try:
        boot, group = log(store, name).with_suffix(".pid").read_text().split()
    except FileNotFoundError:
        return 0
    if int(boot) != store.read().boot_count:
        return 0
    try:
        os.killpg(int(group), 0)
    except ProcessLookupError:
        return 0
    return int(group)


def log(store: Store, name: str) -> Path:
    """What a unit had to say, as `journalctl -u` shows it."""
    return Path(store.directory) / f"{name}.log"
