"""When a local machine ends, everything that ever ran in it ends; its disk and its key stay."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from support.machines import Subject, execute, until

from infra.durable import write_json
from infra.local.machine import BOOT_TIMEOUT_S, Machine, MachinePower
from infra.local.processes import machine_processes

QUIET = "</dev/null >/dev/null 2>&1 &"
HIDERS = {
    "child": "sleep 301",
    "detached": f"setsid nohup sleep 302 {QUIET}",
    "twice detached": f"setsid sh -c 'setsid sh -c \"sleep 303 & sleep 304\" & exit' {QUIET}",
    "without the mark": f"env -i setsid sh -c 'sleep 305; true' {QUIET}",
    "deaf": f"setsid sh -c 'trap \"\" TERM HUP INT; sleep 306; sleep 307' {QUIET}",
    "frozen": f"setsid sh -c 'kill -STOP $$; true' {QUIET}",
    "breeding": f"setsid sh -c 'while :; do sleep 308 & sleep 0.01; done' {QUIET}",
}
SLEEPERS = {"301", "302", "303", "304", "305", "306", "308"}  # 307 comes after 306


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    """A machine that by itself announces its end an hour before, powered off; ended afterwards."""
    subject = Subject.make(tmp_path, notice_s=3600.0)
    yield subject
    subject.machine.power_off("user")


@dataclass(frozen=True)
class Crowd:
    """A machine full of processes that hide in every way we know."""

    vm_process: psutil.Process
    processes: set[psutil.Process]

    @classmethod
    def gather(cls, subject: Subject) -> Crowd:
        """Let them in, and see that each is there, with some of the breed."""
        record = json.loads((subject.machine.directory / "guest.json").read_text())
        vm_process = psutil.Process(record["pid"])
        client = subject.enter()
        for command in HIDERS.values():
            client.exec_command(command)
        until(lambda: is_gathered(vm_process.children(recursive=True)))
        return cls(vm_process, {vm_process, *vm_process.children(recursive=True)})

    def living(self) -> list[list[str]]:
        """Which of them can still do anything."""
        alive = []
        for process in self.processes:
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process.cmdline())
            except psutil.NoSuchProcess:
                continue
        return alive


def is_gathered(processes: list[psutil.Process]) -> bool:
    """Whether all that hide are there."""
    asleep, frozen = [], False
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was on its way to be another
            words = process.cmdline()
            asleep += words[1:] if words[:1] == ["sleep"] else []
            frozen |= process.status() == psutil.STATUS_STOPPED
    return frozen and set(asleep) >= SLEEPERS and asleep.count("308") > 5


def test_power_off_spares_nothing(subject: Subject) -> None:
    """When a power-off returns, no process of the machine lives, however it hid."""
    subject.up()
    crowd = Crowd.gather(subject)

    subject.machine.power_off("user")

    assert crowd.living() == []
    state = subject.machine.state()
    assert (state.power, state.reason) == (MachinePower.OFF, "user")


def test_eviction_spares_nothing(subject: Subject) -> None:
    """The machine that takes itself away leaves no process, and says why it went."""
    subject.up()
    crowd = Crowd.gather(subject)

    subject.machine.request_eviction(0.0, "evicted", "asked for")
    state = subject.wait_for(MachinePower.OFF)

    assert crowd.living() == []
    assert (state.reason, state.detail) == ("evicted", "asked for")
    assert state.since != ""


def test_eviction_is_announced_inside(subject: Subject) -> None:
    """A job that asks the metadata service learns of its end, and lives until it comes."""
    port = subject.up().metadata_port
    client = subject.enter()
    url = f"http://127.0.0.1:{port}/metadata/scheduledevents?api-version=2020-07-01"
    job = (
        "import json, pathlib, time, urllib.request\n"
        "def ask(data=None):\n"
        f"    request = urllib.request.Request({url!r}, data, {{'Metadata': 'true'}})\n"
        "    return json.load(urllib.request.urlopen(request))\n"
        "while True:\n"
        "    events = ask()['Events']\n"
        "    open('seen', 'a').write(f'{[e[\"EventType\"] for e in events]}\\n')\n"
        "    if events and pathlib.Path('agree').exists():\n"
        "        ask(json.dumps({'StartRequests': events}).encode())\n"
        "    time.sleep(0.02)\n"
    )
    execute(client, "cat > job.py", job.encode())
    execute(client, "setsid python job.py </dev/null >job.log 2>&1 &")
    seen = subject.machine.disk / "seen"
    until(lambda: seen.exists() and "[]" in seen.read_text())

    subject.machine.request_eviction(3000.0)

    until(lambda: seen.read_text().count("Preempt") > 10)
    assert subject.machine.state().power is MachinePower.ON
    (subject.machine.disk / "agree").touch()
    subject.wait_for(MachinePower.OFF)


def test_notice_is_kept(subject: Subject) -> None:
    """An announced eviction comes when its time has come, not before."""
    subject.up()
    requested_s = time.time()

    subject.machine.request_eviction(0.5)

    gone_s = datetime.fromisoformat(subject.wait_for(MachinePower.OFF).since).timestamp()
    assert gone_s - requested_s > 0.4  # less than half a second only where the clock is being set


def test_zero_notice_is_no_notice(subject: Subject) -> None:
    """An eviction without notice does not wait for the machine's usual hour."""
    subject.up()

    subject.machine.request_eviction(0.0)

    assert subject.wait_for(MachinePower.OFF).reason == "evicted"


def test_second_eviction_does_not_move_the_first(subject: Subject) -> None:
    """While an eviction is under way, another one changes nothing."""
    subject.up()
    subject.machine.request_eviction(0.5, "price")

    subject.machine.request_eviction(300.0, "evicted")

    assert subject.wait_for(MachinePower.OFF).reason == "price"


def test_eviction_needs_nobody(subject: Subject) -> None:
    """An eviction is carried out although whoever asked for it is killed at once."""
    subject.up()
    script = (
        "import os, pathlib, signal, sys\nfrom infra.local.machine import Machine\n"
        "Machine(pathlib.Path(sys.argv[1])).request_eviction(0.5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    asker = subprocess.run(
        [sys.executable, "-c", script, str(subject.machine.directory)],
        cwd=Path(__file__).parents[1],
        check=False,
    )

    assert asker.returncode == -signal.SIGKILL
    assert subject.wait_for(MachinePower.OFF).reason == "evicted"


def test_scripted_eviction_comes_by_itself(subject: Subject) -> None:
    """A boot that is to be evicted after a while is, and the next one is not."""
    spec = subject.machine.spec()
    assert spec is not None
    data = json.loads((subject.machine.directory / "spec.json").read_text())
    write_json(subject.machine.directory / "spec.json", data | {"notice_s": 0})
    subject.machine.power_on(evict_after_s=0.6)

    state = subject.wait_for(MachinePower.OFF)
    subject.up()
    time.sleep(0.8)

    assert (state.reason, state.detail) == ("evicted", "scripted")
    assert subject.machine.state().power is MachinePower.ON


@pytest.mark.parametrize("how", ["order", "script", "rm"])
def test_machine_may_end_before_it_is_up(tmp_path: Path, how: str) -> None:
    """A machine that takes long to boot is evicted or deleted while it boots, not later."""
    subject = Subject.make(tmp_path, boot_s=3000.0, notice_s=0.0)
    mark, disk = subject.mark, subject.machine.disk
    subject.machine.power_on(evict_after_s=0.3 if how == "script" else None)
    if how != "script":  # it may be over by now
        until(lambda: subject.processes() == 1)
        assert subject.machine.state().power is MachinePower.BOOTING

    if how == "order":
        subject.machine.request_eviction(0.0)
    if how == "rm":
        shutil.rmtree(subject.machine.directory)

    until(lambda: machine_processes(mark, disk) == set())
    assert not (subject.machine.directory / "guest.json").exists()
    assert subject.machine.state().power is (
        MachinePower.ABSENT if how == "rm" else MachinePower.OFF
    )


def test_next_boot_has_the_disk_and_the_key(subject: Subject) -> None:
    """After an end the machine starts again with its files, behind the key that was pinned."""
    subject.up()
    execute(subject.enter(), "echo kept > file")
    subject.machine.power_off("user")

    state = subject.up()

    assert state.boot == 2
    assert execute(subject.enter(), "cat file") == (0, b"kept\n", b"")


def test_environment_is_the_same_for_all_starts(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine started again from a shell with other settings computes as it did before."""
    with monkeypatch.context() as other:
        other.setenv("OMP_NUM_THREADS", "7")
        other.setenv("MKL_NUM_THREADS", "7")
        subject.up()
    with subject.enter() as client:
        _, out, _ = execute(client, "env")

    assert b"NUM_THREADS=7" not in out


def test_vanished_process_is_no_running_machine(subject: Subject) -> None:
    """If its own process is killed from outside, a machine is dead, with everything in it."""
    subject.up()
    crowd = Crowd.gather(subject)
    crowd.vm_process.kill()

    state = subject.wait_for(MachinePower.DEAD)

    assert crowd.living() == []
    assert state.reason == "failed"
    assert state.since != ""
    assert "restarts" in state.detail
    assert subject.up().boot == 2


def test_process_that_cannot_boot_logs_why(subject: Subject) -> None:
    """A process that fails on its own leaves its last line of output in the look at the machine."""
    subject.machine.host_key.write_text("no key")

    subject.machine.power_on()
    desired = subject.machine.desired_state()
    assert desired is not None
    born_s = datetime.fromisoformat(desired.since).timestamp()
    until(lambda: subject.processes() == 0)
    early, state = (
        Machine(subject.machine.directory, clock=lambda: born_s + passed_s).state()  # noqa: B023
        for passed_s in (BOOT_TIMEOUT_S - 1, BOOT_TIMEOUT_S + 1)
    )

    assert (early.power, state.power) == (MachinePower.BOOTING, MachinePower.DEAD)
    assert "guest.log" in state.detail
    assert "KeyImportError" in state.detail


def test_reused_process_number_is_no_machine(subject: Subject) -> None:
    """Another living process of the same number does not make a machine run."""
    subject.up()
    file = subject.machine.directory / "guest.json"
    record = json.loads(file.read_text())
    psutil.Process(record["pid"]).kill()
    me = psutil.Process()

    write_json(file, record | {"pid": me.pid, "created_at": me.create_time()})

    assert subject.wait_for(MachinePower.DEAD).reason == "failed"


def test_terminated_process_takes_all_along(subject: Subject) -> None:
    """A process that is asked to end, as when the computer shuts down, leaves nothing running."""
    subject.up()
    crowd = Crowd.gather(subject)

    crowd.vm_process.terminate()

    until(lambda: crowd.living() == [])
    assert subject.machine.state().power is MachinePower.DEAD


def test_deleted_machine_ends_by_itself(subject: Subject) -> None:
    """If somebody removes the machine's directory by hand, all its processes end."""
    subject.up()
    crowd = Crowd.gather(subject)

    shutil.rmtree(subject.machine.directory)

    until(lambda: crowd.living() == [])


def test_boot_has_one_process(subject: Subject) -> None:
    """A second process for a boot that has one ends at once."""
    subject.up()
    environ = {**os.environ, "QFT_VM": subject.mark, "QFT_GUEST": "1"}
    argv = ["-m", "infra.local.vm_process", "--dir", str(subject.machine.directory), "--boot", "1"]

    subprocess.run([sys.executable, *argv], cwd=Path(__file__).parents[1], env=environ, check=True)

    until(lambda: subject.processes() == 1)
    assert subject.machine.state().power is MachinePower.ON


def test_process_of_an_earlier_boot_ends(subject: Subject) -> None:
    """A process that comes up after its boot was ended touches nothing and ends."""
    subject.machine.power_on()
    subject.machine.power_off("user")
    (subject.machine.directory / "guest.json").unlink(missing_ok=True)  # it may have been quick
    environ = {**os.environ, "QFT_VM": subject.mark, "QFT_GUEST": "1"}
    argv = ["-m", "infra.local.vm_process", "--dir", str(subject.machine.directory), "--boot", "1"]

    subprocess.run([sys.executable, *argv], cwd=Path(__file__).parents[1], env=environ, check=True)

    until(lambda: subject.processes() == 0)
    assert not (subject.machine.directory / "guest.json").exists()


def test_full_disk_does_not_keep_a_machine_alive(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power-off whose record cannot be written says so, and ends everything all the same."""
    subject.up()

    def refuse(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("infra.local.machine.write_json", refuse)
        with pytest.raises(OSError, match="No space left"):
            subject.machine.power_off("user")

    assert subject.processes() == 0
    assert subject.machine.state().power is MachinePower.DEAD


def test_orphans_are_buried(subject: Subject) -> None:
    """A detached process that has ended does not stay a zombie for ever."""
    subject.up()
    vm_process = psutil.Process(
        json.loads((subject.machine.directory / "guest.json").read_text())["pid"]
    )

    execute(subject.enter(), "setsid sh -c 'setsid sleep 0.1 & exit' </dev/null >/dev/null 2>&1")
    time.sleep(0.3)

    until(lambda: vm_process.children() == [])


def test_machine_outlives_its_maker(tmp_path: Path) -> None:
    """A machine powered on by a process that is killed runs on, in a session of its own."""
    subject = Subject.make(tmp_path)
    script = (
        "import os, pathlib, signal, sys\nfrom infra.local.machine import Machine\n"
        "Machine(pathlib.Path(sys.argv[1])).power_on()\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", script, str(subject.machine.directory)],
        cwd=Path(__file__).parents[1],
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    with maker:
        output = maker.communicate(timeout=60)[
            0
        ]  # ends only if the machine's process has no pipe of ours

    subject.wait_for(MachinePower.ON)
    subject.machine.power_off("user")

    assert (maker.returncode, output) == (-signal.SIGKILL, b"")
