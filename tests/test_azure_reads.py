"""Looking changes nothing: not a fresh subscription, and not for a second longer than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm.harness import azure
from arm.replies import Request
from arm.runner import CliRunner, cli_runner
from support.runs import make_project

READING_POSTS = ("/providers/microsoft.resourcegraph/resources", "/placementscores/spot/generate")
"""Questions that are too long for an address; they are asked by POST and change nothing."""
DONE, CLOUD = 0, 3


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line on a subscription on which nothing was ever used."""
    made = make_project(
        tmp_path / "project", vm={"provider": "azure", "regions": ["eastus", "westus2"]}
    )
    with (
        azure(tmp_path / "unused", registered=False) as harness,
        cli_runner(made.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def changes(runner: CliRunner) -> list[str]:
    """The requests that change something, or might."""
    return [
        f"{one.method} {one.path}"
        for one in runner.harness.cloud.requests
        if one.method not in {"GET", "HEAD"} and not _only_reads(one)
    ]


def _only_reads(request: Request) -> bool:
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
def test_command_that_looks_registers_nothing(runner: CliRunner, command: tuple[str, ...]) -> None:
    """Every request of a command that looks is a read, and none waits for a registration."""
    before_s = runner.harness.cloud.clock.now()

    runner.qft(*command)

    assert runner.harness.cloud.requests or command == ("status",)
    assert changes(runner) == []
    assert set(runner.harness.cloud.world.providers.values()) == {"NotRegistered"}
    assert runner.harness.cloud.clock.now() - before_s < 10


def test_doctor_says_what_is_not_registered(runner: CliRunner) -> None:
    """A fresh subscription is no failure: doctor names what the first machine will register."""
    result = runner.qft("doctor")

    for namespace in ("Microsoft.Compute", "Microsoft.Network"):
        assert f"az provider register --wait --namespace {namespace}" in result.out + result.err
    assert "Traceback" not in result.err


def test_a_machine_registers_what_it_needs(runner: CliRunner) -> None:
    """Renting one registers, once, and only the namespaces that it uses."""
    result = runner.qft("up", "--plain")

    requests = [one for one in changes(runner) if one.endswith("/register")]
    assert result.code == DONE, result.err
    assert sorted(one.split("/")[-2].lower() for one in requests) == [
        "microsoft.compute",
        "microsoft.devtestlab",
        "microsoft.network",
    ]
