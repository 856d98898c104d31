"""What a second terminal does to a run that a first one drives, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from support.runs import TIMEOUT_S, Project, json_of, make_project, wait_until

from commands.runs.home import RunFolder
from commands.runs.receipt import make_receipt
from infra.local.provider import LocalProvider
from infra.offer import Offer
from infra.run.journal import Journal, Kind


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A tiny project that would train for an hour."""
    made = make_project(tmp_path / "project", train={"steps": 100_000})
    yield made
    made.tidy()


def driven(project: Project, until: Kind) -> subprocess.Popen[str]:
    """Start `qft run` and wait until its journal says `until`."""
    process = project.start("run", "--json")
    wait_until(lambda: process.poll() is not None or until in kinds(project))
    return process


def kinds(project: Project) -> list[Kind]:
    """What the journal says so far; nothing before there is one."""
    journal = project.home / "runs" / project.name / "journal.jsonl"
    return project.kinds() if journal.exists() else []


def test_down_stops_the_driver_first_and_the_machine_stays_down(project: Project) -> None:
    """`qft down` beside a running `qft run` ends both: nothing starts the machine again."""
    driver = driven(project, Kind.LAUNCHED)

    done = project.qft("down", "--json")

    _, message = driver.communicate(timeout=TIMEOUT_S)
    assert (done.returncode, driver.returncode) == (0, 130), done.stderr + message
    assert "stopping the `qft` that drives `tiny`" in done.stderr
    assert [m["power"] for m in json_of(project.qft("ls", "--all", "--json"))] == ["deallocated"]


def test_down_all_stops_a_driver_that_would_start_the_machine_again(project: Project) -> None:
    """`qft down --all --delete` ends every driver of this computer and leaves no machine."""
    driver = driven(project, Kind.LAUNCHED)

    done = project.qft("down", "--all", "--delete", "--json")

    driver.communicate(timeout=TIMEOUT_S)
    assert (done.returncode, driver.returncode) == (0, 130), done.stderr
    assert json_of(project.qft("ls", "--all", "--json")) == []
    assert project.processes() == []


def test_a_machine_stopped_by_hand_ends_the_run_with_a_clear_word(project: Project) -> None:
    """Stopped past every `qft`, as in a portal: exit 130 says how to go on and how to end it."""
    driver = driven(project, Kind.LAUNCHED)
    cloud = LocalProvider(project.home / "local")
    (vm,) = cloud.list_all()

    cloud.deallocate(vm)

    _, message = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 130
    assert "and not by this run" in message
    assert "`qft train --resume tiny` starts it again and goes on" in message
    assert "`qft down --delete tiny` removes everything" in message
    assert "nothing of this run bills" in message
    assert kinds(project)[-2:] == [Kind.STOP_SEEN, Kind.RUN_ENDED]
    again = driven(project, Kind.START_ACCEPTED)
    assert again.poll() is None
    assert project.qft("down", "--delete").returncode == 0
    again.communicate(timeout=TIMEOUT_S)


def test_ctrl_c_names_the_command_that_was_typed_and_the_price(project: Project) -> None:
    """After Ctrl-C a person reads what goes on, what it costs an hour, and how to end that."""
    driver = driven(project, Kind.LAUNCHED)

    driver.send_signal(signal.SIGINT)
    out, message = driver.communicate(timeout=TIMEOUT_S)

    assert (driver.returncode, json.loads(out)["exit_code"]) == (130, 130)
    assert "the job goes on without this terminal; `qft run tiny` follows it again" in message
    assert "`qft down tiny` ends the billing ($0.149/h)" in message


def test_ctrl_c_before_the_training_does_not_claim_that_a_job_goes_on(project: Project) -> None:
    """While the machine is made ready there is no job yet, only a machine that bills."""
    driver = driven(project, Kind.CREATE_ACCEPTED)

    driver.send_signal(signal.SIGINT)
    _, message = driver.communicate(timeout=TIMEOUT_S)

    assert driver.returncode == 130
    assert "the job goes on" not in message
    assert "interrupted; the machine stays; `qft run tiny` goes on" in message


def test_a_run_yaml_that_was_not_started_never_means_another_run(tmp_path: Path) -> None:
    """In a folder whose own run was not started, `qft down` does not touch the only other run."""
    first = make_project(tmp_path / "first")
    second = make_project(tmp_path / "second", name="other")
    try:
        assert first.qft("up").returncode == 0
        (second.folder / "home").symlink_to(first.home)

        refused = second.qft("down", "--delete", "--json")

        assert refused.returncode == 2
        assert "`other`" in json_of(refused)["error"]
        assert "tiny" in json_of(refused)["hint"]
        assert len(json_of(first.qft("ls", "--all", "--json"))) == 1
    finally:
        first.tidy()


def test_the_wall_never_shows_less_than_the_machine_worked(tmp_path: Path) -> None:
    """Between Ctrl-C and the next `qft run` the job goes on, and that time has passed as well."""
    folder = RunFolder(root=tmp_path)
    ticks = iter([0.0, 5.0, 3605.0, 3615.0])
    journal = Journal(folder.journal, clock=lambda: next(ticks))
    journal.append(Kind.RUN_STARTED, run_id="run-1", name="run")
    offer = Offer(provider="x", region="a", size="s", spot_usd_per_h=0.2)
    journal.append(Kind.CREATE_INTENDED, offer=asdict(offer), generation=1)
    journal.append(Kind.RUN_RESUMED, changed=False)
    journal.append(Kind.RUN_ENDED, code=0, reason="done")

    receipt = make_receipt(folder, tmp_path, simulated=True)

    assert [receipt.wall_s, receipt.machine_h * 3600] == pytest.approx([3610.0, 3610.0])
