"""What the README says about the program is what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from commands.runs.config import RunConfig
from commands.ui.errors import Exit, exit_of
from infra.run.journal import Outcome

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def help_of(*command: str) -> str:
    """What `qft … --help` prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_every_command_is_in_the_readme_and_the_other_way_round() -> None:
    """The table of commands has exactly the commands of `qft --help`."""
    listed = help_of().partition("Commands:")[2]
    real = set(re.findall(r"^  ([a-z]+)  ", listed, flags=re.MULTILINE))
    printed = set(re.findall(r"^\| `qft ([a-z]+)", README, flags=re.MULTILINE))

    assert printed == real


def test_the_options_that_the_readme_names_exist() -> None:
    """Every `qft command --option` in the README is understood by the command."""
    pairs = re.findall(r"`qft ([a-z]+)(?: [A-Za-z.]+)? (--[a-z-]+)", README)

    missing = [f"{command} {option}" for command, option in pairs if option not in help_of(command)]

    assert missing == []
    assert pairs


def test_the_exit_codes_are_the_programs() -> None:
    """The table of exit codes lists each code that the program can give."""
    table = README.partition("## Exit codes")[2]
    printed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}

    assert printed == {int(code) for code in Exit}


def test_every_outcome_of_a_run_ends_qft_with_the_code_in_its_journal() -> None:
    """The journal, the errors and the table of exit codes give one outcome the same code."""
    assert {exit_of(outcome): outcome.value for outcome in Outcome} == {
        code: int(code) for code in Exit if code is not Exit.BUG
    }


def test_the_help_lists_the_exit_codes_with_their_meanings() -> None:
    """`qft --help` ends with the table of exit codes, word for word."""
    listed = " ".join(help_of().partition("Exit codes:")[2].split())

    assert listed == ", ".join(f"{int(code)} {code.meaning}" for code in Exit) + "."


def test_the_example_config_is_one() -> None:
    """The run.yaml of the README passes the program's own check."""
    block = README.partition("```yaml")[2].partition("```")[0]

    assert RunConfig.model_validate(yaml.safe_load(block)).name == "toxic-phi"


def test_the_table_of_recipes_has_the_figures_of_their_pages() -> None:
    """Each recipe is in the table, and its memory, time and cost are those of its own page."""
    row = re.compile(
        r"^\| \[(\S+)\]\(examples/\S+\) .* ([\d.]+) of ([\d.]+) GB .*, (.+), \$(.+) \|$"
    )
    found = [match for line in README.splitlines() if (match := row.match(line))]
    pages = {page.parent.name: page for page in (ROOT / "examples").glob("*/README.md")}

    assert {match[1] for match in found} == set(pages) - {"quickstart"}
    for recipe, used, size, time, usd in (match.groups() for match in found):
        page = pages[recipe].read_text(encoding="utf-8")

        assert re.search(rf"^    memory   {used} GB of the \S+'s {size}: ", page, re.MULTILINE)
        assert f"\n    time     {time} (" in page
        assert f"\n    dollars  {usd} (" in page


def test_the_documents_that_are_linked_exist() -> None:
    """No link of the README or of docs/ leads nowhere."""
    connection = re.compile(r"\]\(([^)#:]+?)(?:#[^)]*)?\)")
    broken = [
        f"{page.name}: {target}"
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for target in connection.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]

    assert broken == []
