"""Words that people type and programs read are those of earlier commits, and none has gone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.recorded import COMMITS, RECORDED, read
from support.runs import Project
from support.tiny import ROOT
from typer.testing import CliRunner

import cli

EXIT_CODES = re.compile(r"Exit codes: (.*)\.", re.DOTALL)


OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")


@pytest.mark.parametrize("commit", COMMITS)
def test_no_recorded_command_or_option_is_gone(commit: str) -> None:
    """Every command that an earlier commit had is there, and its help names every option."""
    recorded = read(RECORDED / commit / "words" / "options.json")
    gone = {}
    for command, options in recorded.items():
        reported = CliRunner().invoke(cli.app, [*command.split(), "--help"], terminal_width=200)
        assert reported.exit_code == 0, command
        gone[command] = set(options) - set(OPTION.findall(reported.output))

    assert {command: options for command, options in gone.items() if options} == {}


@pytest.mark.parametrize("commit", COMMITS)
def test_help_tells_the_recorded_exit_codes(tmp_path: Path, commit: str) -> None:
    """`qft --help` gives every exit code the meaning that it had."""
    recorded = (RECORDED / commit / "words" / "help.txt").read_text(encoding="utf-8")
    now = Project(folder=tmp_path).qft("--help").stdout

    assert exit_codes(now) == exit_codes(recorded)


def exit_codes(page: str) -> list[str]:
    """Return what a help page says of the exit codes, without its line breaks."""
    found = EXIT_CODES.search(page)
    assert found, page
    return " ".join(found[1].split()).split(", ")


def test_commands_end_with_the_recorded_exit_codes(tmp_path: Path) -> None:
    """Command lines that need no run end as they ended when they were recorded."""
    project = Project(folder=tmp_path)
    for commit in COMMITS:
        recorded = read(RECORDED / commit / "words" / "exit-codes.json")
        assert recorded == read(RECORDED / COMMITS[0] / "words" / "exit-codes.json")
    trainer = [sys.executable, "-m", "trainer"]

    assert {code for _, code in recorded["qft"]} == {0, 2}
    for words, code in recorded["qft"]:
        assert (words, project.qft(*words).returncode) == (words, code)
    for words, code in recorded["trainer"]:
        done = subprocess.run([*trainer, *words], cwd=ROOT, capture_output=True, check=False)
        assert (words, done.returncode) == (words, code)


@pytest.mark.parametrize("commit", COMMITS)
def test_the_trainer_documents_the_recorded_exit_codes(commit: str) -> None:
    """The page on what a run leaves on the disk has every row of the trainer's exit codes."""
    page = (ROOT / "docs" / "checkpoint.md").read_text(encoding="utf-8").splitlines()
    recorded = RECORDED / commit / "words" / "trainer-exit-codes.md"

    rows = recorded.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 10
    assert {first_cell(row) for row in rows} <= {first_cell(row) for row in page}


def first_cell(row: str) -> str:
    """Return the first cell of a row of a table; empty for another line."""
    return row.split("|")[1].strip() if row.startswith("|") else ""
