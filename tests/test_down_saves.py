"""`qft down` lets the trainer save, brings that home where the disk goes, and waits for nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.fakecloud import outcome_of
from support.runs import TIMEOUT_S, Project, json_of, make_project, wait_until
from support.sshd import serve

from commands.runs.home import RunFolder
from commands.runs.receipt import make_receipt
from commands.runs.save_before_release import LastSave, SaveLimits, let_trainer_save, lost_with_disk
from commands.runs.take_lock import lock_taker_of, take_lock
from infra.offer import Offer
from infra.provider import Vm
from infra.run.journal import Journal, Kind
from infra.run.state import RunState
from infra.run.workload import HostUnreachable, JobPhase, JobView

VM = Vm(provider="x", run_id="run-1", id="1", region="a", size="s", host="127.0.0.1")
QUICK = SaveLimits(look_s=0.2, save_s=0.4, home_s=0.4)


class Machine:
    """A machine that goes: each of its acts does as told, or never ends until it is let go."""

    def __init__(self, *, stuck: str = "", exit_code: int = 75, error: str = "") -> None:
        self.stuck, self.exit_code, self.error = stuck, exit_code, error
        self.stop_requested: list[str] = []
        self.forgotten = threading.Event()
        self.ended = False

    def _do(self, what: str) -> None:
        self.stop_requested.append(what)
        if what == self.error:
            raise HostUnreachable("the line was cut")
        if what == self.stuck:
            self.forgotten.wait(30)
            raise HostUnreachable("closed")

    def job_status(self, vm: Vm) -> JobView:
        """Tell of a trainer at step 61, at work until it was stopped."""
        del vm
        self._do("look")
        phase = JobPhase.EXITED if self.ended else JobPhase.RUNNING
        code = self.exit_code if self.ended else None
        outcome = outcome_of(code) if self.ended else None
        return JobView(phase=phase, outcome=outcome, exit_code=code, step=61, steps=90)

    def stop(self, vm: Vm, grace_s: float = 60.0) -> None:
        """End the trainer."""
        del vm
        assert grace_s < QUICK.save_s
        self._do("stop")
        self.ended = True

    def bring_home(self, vm: Vm) -> None:
        """Copy what there is."""
        del vm
        self._do("bring_home")

    def home_step(self) -> int:
        """What came home."""
        done = "bring_home" in self.stop_requested and "bring_home" not in {self.stuck, self.error}
        return (61 if self.exit_code == 75 and self.ended else 50) if done else 45

    def disconnect(self) -> None:
        """Let go of who waits."""
        self.forgotten.set()


@pytest.mark.parametrize(
    ("machine", "pull_checkpoint", "saved", "home", "trouble"),
    [
        (Machine(), True, 61, 61, ""),
        (Machine(exit_code=0), False, 61, 50, ""),
        (Machine(stuck="look"), True, None, 45, "the machine does not answer"),
        (Machine(error="look"), True, None, 45, "the line was cut"),
        (Machine(stuck="stop"), True, None, 45, "did not answer within"),
        (Machine(exit_code=137), True, None, 50, "the trainer did not save within"),
        (Machine(stuck="bring_home"), True, 61, 45, "did not come home within"),
        (Machine(stuck="bring_home"), False, 61, 45, ""),
        (Machine(error="bring_home"), True, 61, 45, "the line was cut"),
    ],
)
def test_a_machine_that_goes_is_waited_for_within_limits(
    machine: Machine, saved: int | None, home: int, trouble: str, *, pull_checkpoint: bool
) -> None:
    """What was saved, what is at home and what went wrong is told; nothing holds up the release."""
    began_s = time.monotonic()

    done = let_trainer_save(
        machine, VM, pull_checkpoint=pull_checkpoint, on_message=lambda _text: None, limits=QUICK
    )

    assert (done.saved_step, done.home_step) == (saved, home)
    assert trouble in done.trouble
    assert bool(trouble) == bool(done.trouble)
    assert machine.forgotten.is_set()
    assert time.monotonic() - began_s < 20


def test_a_machine_without_a_trainer_need_not_save() -> None:
    """One that ended by itself left its state already; only the way home is to be gone."""
    machine = Machine()
    machine.ended = True

    done = let_trainer_save(
        machine, VM, pull_checkpoint=True, on_message=lambda _text: None, limits=QUICK
    )

    assert machine.stop_requested == ["look", "bring_home"]
    assert (done.stop_requested, done.saved_step, done.trouble) == (False, None, "")


def test_what_goes_with_a_disk_is_reported() -> None:
    """Steps beyond the checkpoint at home, and an adapter that nobody fetched, are named."""
    state = RunState(vm=VM, disk_step=60, home_step=45)

    assert "step 45 of 61" in lost_with_disk(state, LastSave(step=61, home_step=45))[0]
    assert lost_with_disk(state, LastSave(step=61, home_step=61)) == []
    assert "not fetched" in lost_with_disk(RunState(vm=VM, trained=True), LastSave())[0]
    assert lost_with_disk(RunState(vm=VM, trained=True, fetched="out"), LastSave()) == []


def recorded(folder: Path, *acts: tuple[Kind, dict[str, Any]]) -> RunFolder:
    """Write the record of a run that trains on its first machine, and what follows."""
    run = RunFolder(root=folder)
    seconds = iter(range(1000))
    journal = Journal(run.journal, clock=lambda: float(next(seconds)))
    offer = asdict(Offer(provider="x", region="a", size="s", spot_usd_per_h=0.2))
    start: list[tuple[Kind, dict[str, Any]]] = [
        (Kind.RUN_STARTED, {"run_id": "run-1", "name": "run"}),
        (Kind.CREATE_INTENDED, {"offer": offer, "generation": 1}),
        (Kind.CREATE_ACCEPTED, {"vm": asdict(VM)}),
        (Kind.PREPARED, {}),
        (Kind.LAUNCHED, {}),
        (Kind.CHECKPOINT_HOME, {"step": 45}),
        (Kind.PROGRESS, {"step": 60, "steps": 90}),
    ]
    again = {"offer": offer, "generation": 2}
    for kind, data in [*start, *acts]:
        journal.append(kind, **(again if data == {"again": True} else data))
    return run


DOWN = {"reason": "qft down"}
STOP = {"power": "gone", "reason": "evicted", "detail": "", "certain": True, "since_s": None}
AGAIN = [(Kind.CREATE_INTENDED, {"again": True}), (Kind.CREATE_ACCEPTED, {"vm": asdict(VM)})]
REMOVED: tuple[Kind, dict[str, Any]] = (Kind.DELETED, {"removed": []})


@pytest.mark.parametrize(
    ("acts", "evictions", "downs", "redone", "words"),
    [
        ([(Kind.DEALLOCATE_INTENDED, DOWN), (Kind.DEALLOCATED, DOWN)], 0, 1, 0, ["none", "once"]),
        ([(Kind.DELETE_INTENDED, DOWN), REMOVED, *AGAIN], 0, 1, 15, ["none", "once", "15 steps"]),
        (
            [(Kind.DELETE_INTENDED, DOWN), (Kind.DELETE_INTENDED, DOWN), REMOVED, *AGAIN],
            *(0, 1, 15, ["none", "once", "15 steps"]),
        ),
        (
            [
                (Kind.CHECKPOINT_HOME, {"step": 60}),
                *[(Kind.DELETE_INTENDED, DOWN), REMOVED, *AGAIN],
            ],
            *(0, 1, 0, ["none", "once"]),
        ),
        (
            [(Kind.STOP_SEEN, STOP), (Kind.DELETE_INTENDED, {"reason": "gone"}), REMOVED, *AGAIN],
            *(1, 0, 15, ["1 survived, 15 steps redone"]),
        ),
    ],
)
def test_steps_are_counted_as_what_they_were(  # noqa: PLR0917  (parameters of the cases)
    tmp_path: Path,
    acts: list[tuple[Kind, dict[str, Any]]],
    evictions: int,
    downs: int,
    redone: int,
    words: list[str],
) -> None:
    """A release by `qft down` is no eviction, and what went with a machine was done again."""
    receipt = make_receipt(recorded(tmp_path / "run", *acts), tmp_path / "out", simulated=True)

    assert (receipt.evictions, receipt.downs, receipt.redone_steps) == (evictions, downs, redone)
    rows = dict(receipt.lines())
    reported = [rows[key] for key in ("evictions", "stopped", "redone") if key in rows]
    assert all(line.startswith(word) for line, word in zip(reported, words, strict=True))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A tiny project that would train for an hour, and saves by itself only once in that time."""
    tables: dict[str, Any] = {"train": {"steps": 1_000_000}, "checkpoint": {"every": 900_000}}
    made = make_project(tmp_path / "project", **tables)
    yield made
    for process in made.processes():
        if process.status() == psutil.STATUS_STOPPED:
            process.resume()
    made.tidy()


def at_work(project: Project, *words: str) -> subprocess.Popen[str]:
    """Start `qft run` and wait until the trainer is a few steps in."""
    process = project.start("run", *words)
    wait_until(lambda: process.poll() is not None or step_of(project) > 2)
    return process


def hear(process: subprocess.Popen[str], words: str) -> None:
    """Wait until a process has said these words."""
    assert process.stderr is not None
    assert any(words in line for line in process.stderr)


def step_of(project: Project) -> int:
    """How far the trainer says that it is."""
    for path in (project.home / "local").rglob("run/status.json"):
        return int(json.loads(path.read_text())["step"] or 0)
    return 0


def trainer_of(project: Project) -> psutil.Process:
    """The trainer's own process."""
    (found,) = [
        process
        for process in project.processes()
        if process.cmdline()[1:4] == ["-m", "trainer", "train"]
    ]
    return found


def test_down_delete_brings_home_what_the_trainer_saved_and_ends_who_drives_or_follows(
    project: Project,
) -> None:
    """Both terminals are told by whom the run was ended, and no step is done twice afterwards."""
    driver = at_work(project, "--json")
    follower = project.start("train")
    hear(follower, "following it")  # or it would come after the end

    done = project.qft("down", "--delete", "--json")

    out, _ = driver.communicate(timeout=TIMEOUT_S)
    _, printed = follower.communicate(timeout=TIMEOUT_S)
    (result,) = json_of(done)
    step = result["save"]["saved_step"]
    assert result["save"] == {"asked": True, "saved_step": step, "home_step": step, "trouble": None}
    assert step > 2
    assert (driver.returncode, follower.returncode) == (130, 130), printed
    assert "another `qft` ended the run `tiny`: `qft down --delete`" in json.loads(out)["error"]
    assert "bills $0.149/h until it is gone" in json.loads(out)["problems"][-1]
    assert "another `qft` ended the run" in printed
    assert (result["left"], project.processes()) == ([], [])
    content = project.config.read_text().replace("steps: 1000000", f"steps: {step + 3}")
    project.config.write_text(content)
    finished = project.qft("run", "--allow-change", "train.steps", "--json")
    assert finished.returncode == 0, finished.stderr
    receipt = json_of(finished)
    assert (receipt["evictions"], receipt["downs"], receipt["redone_steps"]) == (0, 1, 0)
    assert [number for number, _ in project.losses()] == list(range(1, step + 4))


def test_down_now_waits_for_nobody(project: Project) -> None:
    """With `--now` a trainer that hangs is not even asked; a driver in a script is found, too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    driver = at_work(project)
    signal.signal(signal.SIGINT, before)
    trainer_of(project).suspend()

    done = project.qft("down", "--now", "--json")

    driver.communicate(timeout=TIMEOUT_S)
    assert (done.returncode, driver.returncode) == (0, 130)
    (result,) = json_of(done)
    assert (result["save"]["asked"], result["bills_compute"]) == (False, False)
    assert "letting the trainer save" not in done.stderr


def test_ctrl_c_while_the_trainer_saves_says_what_bills_and_another_down_goes_on(
    project: Project,
) -> None:
    """The first is interrupted, the second killed; a third with `--now` ends the bill at once."""
    driver = at_work(project)
    trainer_of(project).suspend()
    first = project.start("down")
    hear(first, "letting the trainer save")
    driver.communicate(timeout=TIMEOUT_S)
    second = project.start("down")
    hear(second, "is at work on `tiny`: waiting for it")
    first.send_signal(signal.SIGINT)
    _, printed = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 130
    assert "`tiny` bills $0.149/h, and nobody drives it" in printed
    assert "`qft down --now tiny` ends that at once" in printed
    second.kill()
    second.communicate(timeout=TIMEOUT_S)

    done = project.qft("down", "--now")

    assert done.returncode == 0, done.stderr
    (machine,) = json_of(project.qft("ls", "--all", "--json"))
    assert machine["power"] == "deallocated"


def test_the_note_of_who_takes_a_run_is_of_a_living_process_or_none(tmp_path: Path) -> None:
    """A note that a killed `qft down` left speaks for nobody, and our own is not another's."""
    run = RunFolder(root=tmp_path)
    note = {"pid": os.getpid(), "since": 1.0, "command": "qft down"}
    parent = psutil.Process(os.getppid())
    living = {"pid": parent.pid, "since": round(parent.create_time(), 2), "command": "qft down"}

    found = []
    contents: list[Any] = [note, {**living, "since": 1.0}, {"pid": "x"}, [], living]
    for content in contents:
        (tmp_path / "down.json").write_text(json.dumps(content))
        found.append(lock_taker_of(run))

    assert found[:-1] == [None] * 4
    assert found[-1] is not None
    assert str(found[-1]) == f"`qft down`, process {parent.pid}"
    (tmp_path / "down.json").write_text("{")
    assert lock_taker_of(run) is None


def test_who_takes_a_run_leaves_no_note_behind(tmp_path: Path) -> None:
    """The next driver is not told that somebody ended it."""
    run = RunFolder(root=tmp_path)
    with take_lock(run, print) as ended:
        assert (tmp_path / "down.json").exists()

    assert not ended
    assert not (tmp_path / "down.json").exists()


def test_down_of_a_users_own_machine_brings_the_state_home_before_the_folder_goes(
    tmp_path: Path,
) -> None:
    """What stays the user's is cleared, and nothing that was trained there is lost with it."""
    with serve(tmp_path / "server") as server:
        ssh = {
            "host": "127.0.0.1",
            "port": server.port,
            "user": server.user,
            "gpu": False,
            "key": str(server.client_key),
            "host_key": server.host_key,
            "python": sys.executable,
        }
        vm = {"provider": "ssh", "ssh": ssh, "max_price": None}
        tables: dict[str, Any] = {"train": {"steps": 1_000_000}, "checkpoint": {"every": 900_000}}
        project = make_project(tmp_path / "project", vm=vm, **tables)
        driver = project.start("run")
        mark = server.home / "qft"
        wait_until(
            lambda: (
                driver.poll() is not None
                or any(
                    int(json.loads(path.read_text())["step"] or 0) > 2
                    for path in mark.glob("tiny-*/run/status.json")
                )
            )
        )

        done = project.qft("down", "--json")

        driver.communicate(timeout=TIMEOUT_S)
        (result,) = json_of(done)
        assert result["save"]["home_step"] == result["save"]["saved_step"] > 2, done.stderr
        assert driver.returncode == 130
        assert list(mark.glob("tiny-*")) == []
