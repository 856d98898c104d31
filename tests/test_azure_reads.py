"""Looking changes nothing: not a fresh subscription, and not for a second longer than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.desk import CommandLine, command_line
from arm.harness import azure
from arm.replies import Request
from support.runs import make_project

READING_POSTS = ("/providers/microsoft.resourcegraph/resources", "/placementscores/spot/generate")
"""Questions that are too long for an address; they are asked by POST and change nothing."""
DONE, CLOUD = 0, 3


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    """A command line on a subscription on which nothing was ever used."""
    made = make_project(
        tmp_path / "project", vm={"provider": "azure", "regions": ["eastus", "westus2"]}
    )
    with (
        azure(tmp_path / "unused", registered=False) as harness,
        command_line(made.folder, tmp_path / "home", harness, capsys) as desk,
    ):
        yield desk


def changes(desk: CommandLine) -> list[str]:
    """The requests that change something, or might."""
    return [
        f"{one.method} {one.path}"
        for one in desk.harness.cloud.requests
        if one.method not in {"GET", "HEAD"} and not _is_question(one)
    ]


def _is_question(request: Request) -> bool:
    signs_in = not request.path.lower().startswith(("/subscriptions/", "/providers/"))
    return request.method == "POST" and (signs_in or request.path.lower().endswith(READING_POSTS))


@pytest.mark.parametrize(
    "command",
    [
        ("doctor",),
        ("plan",),
        ("plan", "--json"),
        ("ls", "--all"),
        ("status",),
        ("down", "--all"),
        ("down", "--all", "--delete"),
    ],
    ids=" ".join,
)
def test_command_that_looks_registers_nothing(desk: CommandLine, command: tuple[str, ...]) -> None:
    """Every request of a command that looks is a read, and none waits for a registration."""
    before_s = desk.harness.cloud.clock.now()

    desk.qft(*command)

    assert desk.harness.cloud.requests or command == ("status",)
    assert changes(desk) == []
    assert set(desk.harness.cloud.world.providers.values()) == {"NotRegistered"}
    assert desk.harness.cloud.clock.now() - before_s < 10


def test_doctor_says_what_is_not_registered(desk: CommandLine) -> None:
    """A fresh subscription is no failure: doctor names what the first machine will register."""
    said = desk.qft("doctor")

    for namespace in ("Microsoft.Compute", "Microsoft.Network"):
        assert f"az provider register --wait --namespace {namespace}" in said.out + said.err
    assert "Traceback" not in said.err


def test_a_machine_registers_what_it_needs(desk: CommandLine) -> None:
    """Renting one registers, once, and only the namespaces that it uses."""
    said = desk.qft("up", "--plain")

    asked = [one for one in changes(desk) if one.endswith("/register")]
    assert said.code == DONE, said.err
    assert sorted(one.split("/")[-2].lower() for one in asked) == [
        "microsoft.compute",
        "microsoft.devtestlab",
        "microsoft.network",
    ]
