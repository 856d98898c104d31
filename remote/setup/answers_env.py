"""Plans the environment that answers which are code run in, beside the trainer's own.

It has the libraries that problems are about: on Python 3.11 in the versions that DS-1000 was
published with, on newer ones in today's. Torch is the trainer's, which is read beside them.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from remote.on_machine import pip_settings
from remote.setup.facts import Facts, PythonInterpreter
from remote.setup.python_env import (
    ANSWERS,
    COUNTED,
    SETTINGS,
    begin_environment,
    dotted,
    fit_python,
    interpreter,
    pins,
    pip_install,
    require_room,
    requirements,
    size_bytes,
    venv_steps,
)
from remote.setup.steps import SetupGoal, Step

NAMED_IN = "qft/answers-python"
"""The file that names the interpreter, as an absolute path; the trainer reads it."""


def answers_environment(python: PythonInterpreter, trainer: str) -> str:
    """Return the environment's name: a hash of its packages, its Python and the trainer's."""
    text = f"{requirements(ANSWERS)}\n{python.version}\n{trainer}"
    return f"venv-answers-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def answers_steps(facts: Facts, goal: SetupGoal) -> list[Step]:
    """Plan the step that makes the environment; empty if it is there, or none is wanted.

    Where the user named the trainer's interpreter and no other Python will do, answers run in that
    one, with the libraries that it has. Raises `Unfit` if the disk is too small.
    """
    if not goal.answers:
        return []
    python = facts.python if goal.python else fit_python(facts)
    if python is None:
        return []
    name = answers_environment(python, interpreter(facts, goal))
    if name in facts.venvs and facts.answers_python.endswith(f"/qft/{name}/bin/python"):
        return []
    if name in facts.venvs:
        return [_naming_step(name)]
    require_room(facts, goal, size_bytes(ANSWERS))
    # The trainer's environment is made first, and brings the part that makes environments.
    before = venv_steps(python) if goal.python else []
    return [*before, _install_step(python, name, interpreter(facts, goal))]


def _name(name: str) -> str:
    """Return the commands that name the interpreter to the trainer, whole or not at all."""
    put = f'printf %s "$PWD"/qft/{name}/bin/python > {NAMED_IN}.new'
    return f"{put} && mv -f {NAMED_IN}.new {NAMED_IN}"


def _naming_step(name: str) -> Step:
    return Step(
        name="choose the environment for answers",
        command=_name(name),
        why="another version of it was used last",
        timeout_s=60,
    )


def _install_step(python: PythonInterpreter, name: str, trainer: str) -> Step:
    """Return the step that installs the lock of answers, as that of the trainer is installed."""
    folder, lock = f"qft/{name}", f"qft/{name}.txt"
    count = len(pins(requirements(ANSWERS), python))
    version = ", ".join(map(str, python.version))
    beside = (
        "import sys, sysconfig; "
        f'print(sysconfig.get_path("purelib") if sys.version_info[:2] == ({version}) else "")'
    )
    packages = f"{folder}/lib/python{dotted(python.version)}/site-packages"
    return Step(
        name="make the environment for answers",
        command=f"{begin_environment(python, folder)}"
        f" && echo {shlex.quote(COUNTED.format(count=count))}"
        f" && {pip_install(folder)} -r {lock}"
        # Found last, so that only what is missing here comes from there: torch.
        f" && {shlex.quote(trainer)} -c {shlex.quote(beside)} > {packages}/trainer.pth"
        # Answers run as another user, who must be able to read it.
        f" && rm -rf {folder}/wheels && chmod -R go+rX {folder}"
        f" && sync && touch {folder}/.ready && {_name(name)}",
        why="answers that are code run with the versions that their problems were written for",
        timeout_s=3600,
        files={
            lock: requirements(ANSWERS),
            SETTINGS: Path(pip_settings.__file__).read_text(encoding="utf-8"),
        },
    )
