"""Whatever happens to ranks or their launcher, the next start ends with the bits of one process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support import tiny

from trainer.saving.manifest import steps_present

STEPS = 80
WAIT_S = 300.0
"""For libraries to be loaded, several times at once on a busy machine."""
LEAVE_S = 120.0
"""More than a silent rank is waited for, and far less than a torchrun would hang."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process that nothing disturbed; it saves at the end only."""
    run = tiny.make_run(
        tmp_path_factory.mktemp("undisturbed"),
        rows=24,
        train={"steps": STEPS, "micro_batch": 1},
        checkpoint={"every": 1000},
    )
    ended = tiny.run_trainer("train", run)

    assert ended.returncode == 0, ended.stderr
    return run


class Group:
    """A training by several ranks that runs until it is disturbed."""

    def __init__(self, run: Path, cards: int) -> None:
        self.run = run
        self.log = run.with_name(f"{run.name}.log")
        with self.log.open("w") as log:
            self.launcher = subprocess.Popen(
                tiny.trainer_command("train", run, "--cards", str(cards)),
                cwd=tiny.ROOT,
                env=tiny.quiet_environment(),
                stderr=log,
            )

    def await_step(self, step: int) -> None:
        """Return when so many steps are logged."""
        until = time.monotonic() + WAIT_S
        while logged_steps(self.run) < step:
            assert self.launcher.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.002)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks, in order."""
        found = psutil.Process(self.launcher.pid).children()
        return sorted(found, key=lambda one: one.cmdline()[one.cmdline().index("--rank") + 1])

    def end(self) -> int:
        """Wait for the end of the launcher and return its exit code."""
        return self.launcher.wait(LEAVE_S)


def logged_steps(run: Path) -> int:
    """How many whole lines the metrics log has."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def fresh(undisturbed: Path, place: Path) -> Path:
    """A run directory with the same config, in which nothing was done."""
    place.mkdir()
    shutil.copy(undisturbed / "config.json", place)
    return place


def assert_same_bits(one: Path, other: Path) -> None:
    """The logs, timings aside, and the adapters are the same."""
    assert tiny.losses(one) == tiny.losses(other)
    assert tiny.adapter_bytes(one) == tiny.adapter_bytes(other)


def status_of(run: Path) -> dict[str, object]:
    """What `status.json` says."""
    found: dict[str, object] = json.loads((run / "status.json").read_text())
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_one_step_at_most(undisturbed: Path, tmp_path: Path, rank: int) -> None:
    """The others save the last whole step; the exit code is a crash; more ranks may go on."""
    run = fresh(undisturbed, tmp_path / "run")
    group = Group(run, 2)
    group.await_step(6)
    group.ranks()[rank].kill()
    code = group.end()
    logged = logged_steps(run)

    assert code == 128 + signal.SIGKILL, group.log.read_text()
    assert steps_present(run / "checkpoints")[0] in {logged - 1, logged, logged + 1}
    assert status_of(run)["phase"] == "failed"
    assert status_of(run)["error"] == f"card {rank}: was killed by SIGKILL"
    again = tiny.run_trainer("train", run, "--cards", "3")
    assert again.returncode == 0, again.stderr
    assert "resuming after step" in again.stderr
    assert int(str(status_of(run)["redone_steps"])) <= 1
    assert_same_bits(undisturbed, run)


def test_a_silent_rank_ends_the_start_and_not_the_training(
    undisturbed: Path, tmp_path: Path
) -> None:
    """A stopped rank is given up; a SIGTERM saves; a killed launcher takes its ranks along."""
    run = fresh(undisturbed, tmp_path / "run")
    silent = Group(run, 2)
    silent.await_step(3)
    silent.ranks()[1].suspend()
    assert silent.end() == 128 + signal.SIGKILL, silent.log.read_text()
    first = steps_present(run / "checkpoints")[0]
    assert first >= 3

    terminated = Group(run, 2)
    terminated.await_step(first + 5)
    terminated.launcher.terminate()
    assert terminated.end() == 75, terminated.log.read_text()
    second = steps_present(run / "checkpoints")[0]
    assert second >= first + 5
    assert status_of(run)["phase"] == "preempted"

    killed = Group(run, 2)
    killed.await_step(second + 5)
    ranks = killed.ranks()
    killed.launcher.kill()
    gone, alive = psutil.wait_procs(ranks, timeout=LEAVE_S)
    assert (len(gone), alive) == (2, [])
    killed.end()

    last = tiny.run_trainer("train", run)
    assert last.returncode == 0, last.stderr
    assert_same_bits(undisturbed, run)


def test_what_is_wrong_with_the_config_is_reported_once(tmp_path: Path) -> None:
    """The launcher itself refuses a config, before any rank is started."""
    run = tiny.write_config(tmp_path / "run", {"model": {"id": "absent"}, "train": {"lr": -1}})
    ended = tiny.run_trainer("train", run, "--cards", "2")

    assert ended.returncode == 78
    assert ended.stderr.count("train.lr") == 1
    assert status_of(run)["phase"] == "failed"


def test_a_finished_run_starts_no_ranks(undisturbed: Path) -> None:
    """The launcher sees that everything is done, and leaves the adapter alone."""
    before = tiny.adapter_bytes(undisturbed)
    ended = tiny.run_trainer("train", undisturbed, "--cards", "4")

    assert ended.returncode == 0
    assert ended.stderr.splitlines() == ["everything is done already: nothing to do"]
    assert tiny.adapter_bytes(undisturbed) == before
