"""Starts a Python program of ours here, so that nothing in the current folder becomes part of it.

`python -m` puts the current folder first among the places that modules are imported from. Beside a
run.yaml, or among results that came from a machine, any `trainer.py` or `random.py` would then be
executed in the place of the module of that name.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
"""Where `cli.py`, `commands` and `trainer` lie: a checkout, or a site-packages folder."""
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
ENDS_S = 2.0
NOT_HANDED_ON = ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT")
"""Settings of the user's own Python work: the first may name the current folder, or be empty."""


def argv_of(module: str, *arguments: str) -> list[str]:
    """The command line of one of our modules; `-P` keeps the current folder off its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment_of(around: Mapping[str, str]) -> dict[str, str]:
    """The environment for such a program: where our modules lie is named, no other folder is.

    Installed, they are found without being named; a site-packages folder named here would come
    before the standard library.
    """
    kept = {name: value for name, value in around.items() if name not in NOT_HANDED_ON}
    return kept if ROOT.name in PACKAGE_FOLDERS else {**kept, "PYTHONPATH": str(ROOT)}


def start(
    module: str,
    arguments: Sequence[str],
    *,
    around: Mapping[str, str],
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one of our modules to its end in the current folder; what it says is text, any bytes."""
    return subprocess.run(
        argv_of(module, *arguments),
        env=environment_of(around),
        stdout=stdout,
        stderr=stderr,
        text=True,
        errors="replace",
        check=False,
    )


@contextlib.contextmanager
def running(
    module: str,
    arguments: Sequence[str],
    *,
    around: Mapping[str, str],
    stderr: IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start one of our modules whose stdout is read while it runs; it has ended after the block.

    Where the block is left early, as by Ctrl-C, the program is given a moment to end by itself (a
    terminal interrupts both), then asked, then killed.
    """
    program = subprocess.Popen(
        argv_of(module, *arguments),
        env=environment_of(around),
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    try:
        yield program
        program.wait()
    finally:
        _end(program)
        if program.stdout is not None:
            program.stdout.close()


def _end(program: subprocess.Popen[bytes]) -> None:
    acts: list[Callable[[], None]] = [lambda: None, program.terminate, program.kill]
    for act in acts:
        act()
        try:
            program.wait(timeout=ENDS_S)
        except subprocess.TimeoutExpired:
            continue
        return
