"""A machine that an earlier commit made on Azure is found by its tags and removed by this one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm.dispatch import dispatch
from arm.harness import azure
from arm.replies import Request
from arm.roles import principal_of
from arm.runner import CliRunner, cli_runner
from support.recorded import INTERRUPTED, RUN, read
from support.runs import make_project

RECORDED = INTERRUPTED / "azure"
MADE_ANEW = ("qft-run", "qft-created", "qft-host-key")


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    """A command line in the recorded project, on a cloud in which nothing is yet."""
    vm = {"provider": "azure", "regions": ["eastus", "westus2"], "rehearse_evictions": [40]}
    made = make_project(tmp_path / "project", name=RUN, vm=vm)
    with (
        azure(tmp_path / "unused") as harness,
        cli_runner(made.folder, tmp_path / "home", harness, capsys) as runner,
    ):
        yield runner


def ask_again(runner: CliRunner) -> None:
    """Send the cloud every request with which the earlier commit made its machine.

    An identity's id is the cloud's own: the machine that may release itself is the one made here.
    """
    cloud = runner.harness.cloud
    for one in read(RECORDED / "requests.json"):
        path, body = one["path"], one["body"]
        if "principalId" in body.get("properties", {}):
            machine = path.partition("/providers/Microsoft.Authorization")[0]
            body["properties"]["principalId"] = principal_of(cloud.world, machine)
        request = Request(method=one["method"], path=path, query=one["query"], body=body)
        assert dispatch(cloud.world, cloud.server.base, request).status == one["status"]
        runner.harness.advance(60)
        cloud.world.run_due()


def recorded_tags() -> dict[str, str]:
    """Return the tags of the recorded machine."""
    (tags,) = (
        one["body"]["tags"]
        for one in read(RECORDED / "requests.json")
        if re.search("/virtualMachines/[^/]+$", one["path"])
    )
    return dict(tags)


def test_a_recorded_machine_is_listed_as_it_was(runner: CliRunner) -> None:
    """With every file of this computer lost, its tags tell the same machine as they did then."""
    ask_again(runner)

    listed = runner.qft("ls", "--all", "--provider", "azure", "--json")

    assert listed.code == 0, listed.err
    assert json.loads(listed.out) == read(RECORDED / "printed.json")["ls --all"]


@pytest.mark.parametrize("listed", [False, True])
def test_a_recorded_machine_is_removed(runner: CliRunner, listed: bool) -> None:  # noqa: FBT001
    """Known by the files that the earlier commit left, or by its tags alone, all of it goes."""
    ask_again(runner)
    if listed:
        shutil.copytree(RECORDED / "home", runner.home)
    words = [RUN, "--now"] if listed else ["--all", "--provider", "azure"]

    down = runner.qft("down", *words, "--delete", "--json")

    assert down.code == 0, down.err
    (reported,) = json.loads(down.out)
    assert (reported["left"], reported["bills_compute"]) == ([], False)
    assert runner.harness.cloud.leftovers() == []


def test_the_recorded_tags_are_still_written(runner: CliRunner) -> None:
    """Group, machine and network carry every tag that they did, so an earlier commit reads them.

    Values are those of the recorded run but for its id, its time and its host key, whose form is.
    """
    recorded = recorded_tags()
    assert runner.qft("up", "--plain").code == 0

    cloud = runner.harness.cloud
    parts: list[Any] = [*cloud.world.groups.values(), *cloud.world.resources.values()]
    tagged = [part.tags for part in parts if len(part.tags) > 1]

    assert len(tagged) == sum(
        len(one["body"].get("tags") or {}) > 1 for one in read(RECORDED / "requests.json")
    )
    for tags in tagged:
        fixed = {name: value for name, value in recorded.items() if name not in MADE_ANEW}
        assert {name: tags.get(name) for name in fixed} == fixed
        for name in MADE_ANEW:
            assert form(tags[name]) == form(recorded[name])


def form(value: str) -> str:
    """Return a value with every letter of an id or key, and every digit, made the same."""
    words = re.sub(r"AAAA[\w+/]+|-[0-9a-f]{4}$", "#", value)
    return re.sub(r"\d", "9", words)
