"""Answers that are code get an environment of their own beside the trainer's, made once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from commands.runs import factory
from commands.runs.answers_env import needs_answers_env
from commands.runs.config import load
from infra.config import VmTable
from remote.errors import Unfit
from remote.setup import lock_requirements, python_env
from remote.setup.answers_env import NAMED_IN, answers_environment
from remote.setup.apply import plan_steps
from remote.setup.facts import Facts, PythonInterpreter, parse_facts
from remote.setup.python_env import ANSWERS, environment, interpreter, requirements
from remote.setup.steps import SetupGoal
from trainer.scoring import code

PYTHON = PythonInterpreter(command="python3.11", version=(3, 11), venv=True)
BARE = Facts(home="/home/qft", free_bytes=10**11, sudo=True, pythons=(PYTHON,))
GOAL = SetupGoal(rented=False, answers=True)
NAMED = replace(GOAL, python="/usr/bin/python3.11")


def names(facts: Facts, goal: SetupGoal) -> list[str]:
    """The steps that are planned, by name."""
    return [step.name for step in plan_steps(facts, goal)]


def made(facts: Facts, goal: SetupGoal) -> Facts:
    """The same machine after all steps."""
    answers = answers_environment(PYTHON, interpreter(facts, goal))
    return replace(
        facts,
        venvs=(environment(PYTHON, "cpu"), answers),
        answers_python=f"/home/qft/qft/{answers}/bin/python",
    )


def test_the_environment_is_made_after_the_trainers_and_only_once() -> None:
    """A bare machine gets both environments, one that has them gets nothing."""
    assert names(BARE, GOAL) == ["make the Python environment", "make the environment for answers"]
    assert names(made(BARE, GOAL), GOAL) == []
    assert names(BARE, replace(GOAL, answers=False)) == ["make the Python environment"]


def test_a_named_interpreter_gets_one_beside_it() -> None:
    """Where the user named the trainer's interpreter, only the environment for answers is made."""
    assert names(BARE, NAMED) == ["make the environment for answers"]
    assert names(made(BARE, NAMED), NAMED) == []
    assert names(replace(BARE, pythons=()), NAMED) == []


def test_of_several_environments_one_is_named() -> None:
    """If the file names another environment than this version's, it is written again."""
    other = replace(made(BARE, GOAL), answers_python="/home/qft/qft/venv-answers-old/bin/python")
    (step,) = plan_steps(other, GOAL)

    assert step.name == "choose the environment for answers"
    assert f"> {NAMED_IN}.new && mv -f {NAMED_IN}.new {NAMED_IN}" in step.command


def test_a_disk_without_room_for_it_is_refused() -> None:
    """Their size is known, so that a full disk is found before anything is fetched."""
    little = replace(made(BARE, GOAL), venvs=(environment(PYTHON, "cpu"),), free_bytes=10**8)
    with pytest.raises(Unfit, match="are needed on the disk"):
        plan_steps(little, GOAL)


def test_every_package_is_a_pin_with_hashes_and_torch_is_the_trainers() -> None:
    """The lock is made from its short file, has no torch, and differs by Python."""
    text = requirements(ANSWERS)
    source = python_env.REQUIREMENTS / f"{ANSWERS}.in"
    rest = re.sub(
        r"^[\w.-]+==\S+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+$",
        "",
        text,
        flags=re.MULTILINE,
    )

    assert [line for line in rest.splitlines() if line and not line.startswith("# ")] == []
    assert f"{lock_requirements.INPUTS}{lock_requirements.digest([source])}\n" in text
    assert "torch" not in {line.partition("==")[0] for line in text.splitlines()}
    assert re.search(r'^numpy==1\.26\.4 ; python_version == "3\.11" ', text, re.MULTILINE)
    assert re.search(r'^numpy==2\.\S+ ; python_version == "3\.12"', text, re.MULTILINE)
    for line in source.read_text().splitlines():
        if not line.startswith("#"):
            assert f"\n{line.partition(' ')[0]} " in text


def test_a_fact_tells_which_interpreter_is_named() -> None:
    """The line of the facts' script is read, and its absence is no interpreter."""
    assert parse_facts(["answers_python=/a/b"]).answers_python == "/a/b"
    assert parse_facts([]).answers_python == ""


def wants(folder: Path, provider: str, tests: str, **table: object) -> bool:
    """Whether set-up makes an environment for a run with one problem."""
    row = {"p": "a", "c": "b", "code_context": tests}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    settings = {
        "name": "coder",
        "vm": {"provider": provider, "max_price": 1.0},
        "model": {"id": "somebody/something"},
        "data": {
            "train": "rows.jsonl", "eval": "rows.jsonl", "prompt": "{p}", "completion": "{c}"
        },
        "eval": {"kind": "code", **table},
    }  # fmt: skip
    if provider == "local":
        del settings["vm"]["max_price"]  # type: ignore[attr-defined]
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return needs_answers_env(load(folder / "run.yaml"))


def test_only_code_without_a_named_interpreter_needs_it(tmp_path: Path) -> None:
    """Other kinds of scoring, and `eval.python`, leave a rented machine as it is."""
    program = "import numpy\ndef test_execution(solution): pass"

    assert wants(tmp_path, "azure", program)
    assert not wants(tmp_path, "azure", program, python="/usr/bin/python3")
    assert not wants(tmp_path, "azure", program, kind="loss")


def test_here_the_python_that_runs_qft_does_where_it_has_the_libraries(tmp_path: Path) -> None:
    """With `provider: local` an environment is made for libraries that are missing only."""
    program = "def test_execution(solution): import {}"
    absent = next((one for one in ("seaborn", "matplotlib") if find_spec(one) is None), None)

    assert not wants(tmp_path, "local", program.format("numpy, torch"))
    if absent is not None:
        assert wants(tmp_path, "local", program.format(absent))


def test_a_machine_of_this_computer_is_set_up_for_answers_only() -> None:
    """With `provider: local` the trainer runs in qft's own Python, and only answers need one."""
    local = VmTable(provider="local")
    machine = None

    assert factory.setup_wanted(local, machine).python  # type: ignore[arg-type]
    assert not factory.setup_wanted(local, machine).rented  # type: ignore[arg-type]


def test_the_trainer_takes_the_interpreter_that_set_up_named(tmp_path: Path) -> None:
    """It lies above the run's folder; a file that names nothing that is there counts for none."""
    run_dir = tmp_path / "run-id" / "run"
    run_dir.mkdir(parents=True)
    python = tmp_path / "python"
    python.touch()
    before = code._interpreter_made(run_dir)
    (tmp_path / Path(NAMED_IN).name).write_text(str(python))
    there = code._interpreter_made(run_dir)
    python.unlink()

    assert (before, there, code._interpreter_made(run_dir)) == (None, str(python), None)
