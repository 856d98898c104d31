"""Before the first machine of a run is rented, whoever sits there is asked once; nobody else is."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from arm import Cloud
from arm.harness import azure
from arm.runner import cli_runner
from support.runs import Project, make_project, wait_until
from support.terminal import CTRL_C, CTRL_D, terminal

from commands.runs.config import load
from commands.runs.home import make_private
from commands.runs.planning import confirm
from commands.runs.planning.confirm import PROMPT, confirm_renting
from commands.runs.request import RunRequest
from commands.ui import ask
from commands.ui.console import PlainConsole
from commands.ui.errors import StoppedError
from infra.azure import AzureProvider
from infra.errors import NotAllowed
from infra.run.journal import Journal, Kind
from infra.run.plan import Goal

VM = {"provider": "azure", "regions": ["eastus"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project on Azure."""
    return make_project(tmp_path_factory.mktemp("confirm"), vm=VM)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    """A simulated Azure, of which processes learn by their environment."""
    with Cloud(pace=100.0) as cloud, mock.patch.dict(os.environ, cloud.environment()):
        yield cloud


def test_a_terminal_gets_the_prompt_until_somebody_agrees(project: Project, cloud: Cloud) -> None:
    """No, the end of input and Ctrl-C rent nothing; yes rents; going on is not asked about."""
    for keys in ("n\r", CTRL_D, CTRL_C):
        with terminal(project, "run") as screen:
            screen.wait_for(PROMPT)
            screen.type(keys)
            assert screen.wait_for_end() == 130, screen.screen
        assert "nothing was rented" in screen.screen
        assert screen.screen.count(PROMPT) == 1
        for word in ("memory   ", "hours    ", "dollars  $"):
            assert word in screen.screen
        assert cloud.world.machines_made == []
        assert not (project.home / "runs" / "tiny").exists()

    with terminal(project, "run") as screen:
        screen.wait_for(PROMPT)
        screen.type("yes\r")
        wait_until(lambda: bool(cloud.machines()))
        screen.type(CTRL_C)
        assert screen.wait_for_end() == 130, screen.screen
    with terminal(project, "up") as screen:
        screen.wait_for("eastus")
        screen.type(CTRL_C)
        assert screen.wait_for_end() == 130, screen.screen
    assert PROMPT not in screen.screen
    assert "dollars  $" not in screen.screen
    project.tidy()
    assert cloud.leftovers() == []


def test_yes_on_the_command_line_rents_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--yes` shows the three lines and rents; so does a pipe, where nobody can answer."""
    made = make_project(tmp_path / "project", vm=VM)
    for words in (("up", "--yes"), ("up",)):
        with (
            azure(tmp_path / "unused") as harness,
            cli_runner(made.folder, tmp_path / words[-1], harness, capsys) as runner,
            mock.patch.object(confirm, "ask_yes", side_effect=AssertionError("asked")),
        ):
            result = runner.qft(*words)
        assert result.code == 0, result.err
        assert "dollars  $" in result.err
        assert "worst case $" in result.err
        assert "machine  Standard_NC4as_T4_v3 in eastus" in result.err


def request(project: Project, **changes: Any) -> tuple[RunRequest, io.StringIO]:
    """A request for the project's run, and where its console prints."""
    lines = io.StringIO()
    console = PlainConsole(lines, simulated=False, clock=time.monotonic)
    made = RunRequest(loaded=load(project.config), home=project.home, console=console, ask=True)
    return replace(made, **changes), lines


def refuse(prompt: str) -> bool:
    """Answer no."""
    assert prompt == PROMPT
    return False


def test_nothing_is_shown_where_nothing_is_charged(tmp_path: Path) -> None:
    """The simulated cloud and an own machine are used without a word about dollars."""
    local = make_project(tmp_path / "local")
    made_request, lines = request(local)

    confirm_renting(made_request, ask=refuse)

    assert lines.getvalue() == ""


def test_what_was_begun_goes_on_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A journal that says the run has begun ends the questions; `--fresh` begins, and is asked."""
    made = make_project(tmp_path / "project", vm=VM)
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(made.folder, made.home, harness, capsys),
    ):
        begun, lines = request(made)
        make_private(begun.folder.root)
        Journal(begun.folder.journal, clock=time.time).append(
            Kind.RUN_STARTED, run_id="tiny-1", name="tiny"
        )
        confirm_renting(begun, ask=refuse)
        confirm_renting(request(made, goal=Goal.FETCH)[0], ask=refuse)
        with pytest.raises(StoppedError) as caught:
            confirm_renting(replace(begun, fresh=True), ask=refuse)

    assert lines.getvalue().count("dollars  $") == 1
    assert int(caught.value.exit_code) == 130


def test_a_plan_that_cannot_be_made_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the cloud does not answer the run is not stopped by its plan, and still asks."""
    made = make_project(tmp_path / "project", vm=VM)
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(made.folder, made.home, harness, capsys),
        mock.patch.object(AzureProvider, "offers", side_effect=NotAllowed("not with this account")),
    ):
        made_request, lines = request(made)
        with pytest.raises(StoppedError):
            confirm_renting(made_request, ask=refuse)

    assert lines.getvalue() == (
        "warning: what this will cost cannot be said now: not with this account\n"
    )


@pytest.mark.parametrize(
    ("typed", "agreed"),
    [("y\n", True), ("Yes\n", True), ("no\n", False), ("", False), ("yy\n", False)],
)
def test_only_yes_is_a_yes(monkeypatch: pytest.MonkeyPatch, typed: str, *, agreed: bool) -> None:
    """Anything but `y` and `yes` is a no."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))

    assert ask.ask_yes("rent?") is agreed


def test_a_pipe_gets_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal on stdin nobody can answer."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    assert not ask.can_ask()
