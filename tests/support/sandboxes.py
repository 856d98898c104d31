"""Parents of answers for tests, in every sandbox that this computer can make."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.code_problems import problem, total
from trainer.code_eval import proof
from trainer.code_eval.client import NotEntered, ParentOfAnswers, parent_of_answers
from trainer.code_eval.limits import Limits, Outcome
from trainer.code_eval.problems import program_for
from trainer.code_eval.sandbox import LANDLOCK, NAMESPACES

MECHANISMS = (NAMESPACES, LANDLOCK)
LIMITS = Limits(
    wall_s=20.0,
    memory_bytes=256 << 20,
    folder_bytes=16 << 20,
    folder_files=512,
    file_bytes=8 << 20,
    output_bytes=64 << 10,
)
"""Small ones, so that an attack that gets through does no harm."""
WAIT_S = 20.0


class SandboxHere:
    """One kind of sandbox on this computer; one that cannot be made or does not hold says why."""

    def __init__(self, parent: ParentOfAnswers, mechanism: str) -> None:
        self.parent = parent
        self.mechanism = mechanism
        self.refusal = ""
        self.breaches: list[str] = []
        try:
            self.breaches = proof.breaches(parent, mechanism, [Path(__file__)])
        except NotEntered as error:
            self.refusal = str(error)
        if self.breaches and os.geteuid() != 0:  # as root both must hold
            self.refusal = f"it does not hold against {self.breaches}"

    def run(self, program: str, limits: Limits = LIMITS) -> Outcome:
        """Run a program as it is."""
        return self.parent.run(program, mechanism=self.mechanism, limits=limits)

    def answer(self, code: str, limits: Limits = LIMITS) -> Outcome:
        """Run code as an answer to the problem that wants a sum."""
        return self.run(program_for(problem(total()), code), limits)


def sandboxes_here() -> Iterator[dict[str, SandboxHere]]:
    """Yield every kind of sandbox with a parent that has imported nothing; end it afterwards."""
    if sys.platform != "linux":
        pytest.skip("answers run on Linux only; the refusal elsewhere has a test of its own")
    with parent_of_answers(sys.executable) as parent:
        yield {name: SandboxHere(parent, name) for name in MECHANISMS}


def named_processes(name: str) -> list[int]:
    """Return the processes of this computer that gave themselves a name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "comm").read_text().strip() == name:
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended meanwhile
    return found


def wait_for_none(name: str) -> None:
    """Wait until no process of that name is left; fail if one stays."""
    wait_for(lambda: not named_processes(name), f"a process named {name} stays")


def wait_for(condition: Callable[[], bool], problem: str) -> None:
    """Wait until something is the case; fail with the problem if it does not come."""
    ends_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends_at, problem
        time.sleep(0.02)


def naming(name: str) -> str:
    """Return code that gives its process a name by which others find it."""
    return f"import ctypes; ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)"


def change_name(name: str) -> None:
    """Give this process a name."""
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)


def everybodys_python() -> str:
    """Return an interpreter that any user can start, or an empty text."""
    for path in (sys.executable, "/usr/bin/python3"):
        real = Path(path).resolve()
        parts = (
            Path(path).absolute(),
            real,
            Path(sys.base_prefix) if path == sys.executable else real,
        )
        open_to_all = all(
            one.stat().st_mode & 0o001 for part in parts for one in part.parents if one.exists()
        )
        if real.exists() and (open_to_all or os.geteuid() != 0):
            return path
    return ""
