"""A run that an earlier commit began and that was cut off there is finished by this one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.recorded import COMMITS, INTERRUPTED, RECORDED, RUN, lay_out, log_until, lost, read
from support.runs import Project, json_of

HOME_STEP = 97
"""Of the newest checkpoint that had come home when the run was cut off."""
DISK_STEP = 117
"""Of the newest one on the machine, the transfer of which was cut off."""
STEPS = 160


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The recorded run at its end, and what was said on the way."""

    project: Project
    train: subprocess.CompletedProcess[str]
    printed: dict[str, Any]
    """What commands printed with --json, by the name under which it was recorded."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The run whose machine is gone, taken up with `qft train --resume`, ended with `qft run`."""
    project = lay_out(tmp_path_factory.mktemp("recorded") / "project", machine=False)
    train = project.qft("train", "--resume", "--plain")
    printed = {}
    for name, words in (
        ("status, training", ("status",)),
        ("ls", ("ls",)),
        ("ls --all", ("ls", "--all")),
        ("run", ("run",)),
        ("status, done", ("status",)),
        ("report", ("report",)),
        ("logs", ("logs",)),
        ("eval", ("eval",)),
        ("plan", ("plan",)),
        ("down --delete", ("down", "--delete")),
        ("error", ("status", "nobody")),
    ):
        done = project.qft(*words, "--json")
        assert done.returncode == (2 if name == "error" else 0), done.stderr
        printed[name] = json_of(done)
    yield Finished(project=project, train=train, printed=printed)
    project.tidy()


def test_an_interrupted_run_goes_on_from_its_recorded_checkpoint(finished: Finished) -> None:
    """The newest whole checkpoint at home is sent to a new machine, and training goes on there."""
    project = finished.project
    recorded = INTERRUPTED / "home" / "runs" / RUN / "checkpoints" / f"step-{HOME_STEP:08}"

    assert finished.train.returncode == 0, finished.train.stderr
    status = read(project.out / "status.json")
    assert (status["resumed_from"], status["step"], status["phase"]) == (HOME_STEP, STEPS, "done")
    log = (project.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert log[:HOME_STEP] == log_until(HOME_STEP).splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, STEPS + 1))
    base = read(project.out / "adapter" / "qft.json")["base"]
    assert base == read(recorded / "fingerprint.json")["base"]


def test_what_was_finished_is_fetched_and_its_machine_is_gone(finished: Finished) -> None:
    """The adapter came home, both machines are in the journal, and none is left."""
    project = finished.project

    assert (project.out / "adapter" / "adapter_model.safetensors").exists()
    assert [str(kind) for kind in project.kinds()].count("create_accepted") == 2
    assert json_of(project.qft("ls", "--all", "--json")) == []
    assert project.processes() == []


def test_a_run_finished_by_other_code_is_called_not_bit_for_bit(finished: Finished) -> None:
    """Terminal, receipt, status, log and report say from which step the bits may differ."""
    project, since = finished.project, HOME_STEP + 1
    words = f"not bit for bit from step {since}"

    assert words in finished.train.stdout
    assert words in finished.train.stderr
    assert words in project.qft("status").stdout
    lines = finished.printed["logs"]["lines"]
    assert any(line.startswith(f"{words}: trainer: was ") for line in lines)
    assert (finished.printed["run"]["exact"], words in project.qft("run").stdout) == (False, True)
    for name in ("status.json", "report.json"):
        reported = read(project.out / name)
        assert (reported["exact"], reported["inexact_from"]) == (False, since), name
    adapter = read(project.out / "adapter" / "qft.json")["status"]
    assert (adapter["exact"], adapter["inexact_from"]) == (False, since)


def test_a_machine_of_the_interrupted_run_is_started_again(tmp_path: Path) -> None:
    """A machine that an earlier commit made is started, and its own newer checkpoint is taken."""
    project = lay_out(tmp_path / "project", machine=True)
    try:
        done = project.qft("run", "--json")

        assert done.returncode == 0, done.stderr
        status = read(project.out / "status.json")
        assert (status["resumed_from"], status["inexact_from"]) == (DISK_STEP, DISK_STEP + 1)
        assert json_of(done)["redone_steps"] == status["redone_steps"] > 0
        kinds = [str(kind) for kind in project.kinds()]
        assert (kinds.count("create_accepted"), kinds[-2:]) == (1, ["deleted", "run_ended"])
    finally:
        project.tidy()


@pytest.mark.parametrize("commit", COMMITS)
def test_no_recorded_key_of_a_printed_document_is_gone(finished: Finished, commit: str) -> None:
    """What commands print with --json has every key that it had, with values of the same kind."""
    recorded = read(RECORDED / commit / "words" / "printed.json")

    assert [*lost({name: recorded[name] for name in finished.printed}, finished.printed)] == []


@pytest.mark.parametrize("commit", COMMITS)
def test_no_recorded_key_of_a_written_file_is_gone(finished: Finished, commit: str) -> None:
    """run.json, status.json, metrics, scores, receipts and report have every key that they had."""
    recorded = read(RECORDED / commit / "words" / "files.json")
    project = finished.project
    found = {name: project.out / name for name in recorded}
    found["run.json"] = project.home / "runs" / RUN / "run.json"
    log = found.pop("metrics.jsonl").read_text(encoding="utf-8").splitlines()

    now = {name: read(path) for name, path in found.items()}
    now["metrics.jsonl"] = [json.loads(log[-1])]

    assert [*lost(recorded, now)] == []
