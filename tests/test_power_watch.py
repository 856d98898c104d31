"""An eviction during set-up is noticed within a minute, whatever set-up waits for just then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import sshd
from support.fakecloud import FakeWorkload, Story, World

from commands.runs.payload import Payload
from commands.runs.power_watch import MachineDown, PowerWatch, power_check
from commands.runs.result_files import Expected
from commands.runs.workload import SshWorkload
from commands.runs.workload_config import RemoteLayout, WorkloadConfig
from infra.errors import Transient
from infra.provider import Observation, PowerState, StopReason, Traits, Vm
from infra.run.fold import fold
from infra.run.journal import Kind, Outcome, read
from infra.run.workload import HostUnreachable
from remote import ssh
from remote.errors import Unreachable
from trainer.method_table import MethodTable

EVICTED_S = 5.0
"""After how many seconds of work the machine is taken away."""


@dataclass
class Clock:
    """Time that passes only while the watcher waits, and not before the work hangs."""

    began: Path
    now_s: float = 0.0
    noticed_s: float = 0.0
    requested: int = 0
    failing: int = 0

    def pause(self, ended: threading.Event, seconds: float) -> bool:
        """Wait for the work to hang, then let time pass."""
        timeout = time.monotonic() + sshd.TIMEOUT_S
        while not self.began.exists() and time.monotonic() < timeout:
            if ended.wait(0.01):
                return True
        self.now_s += seconds
        return ended.is_set()

    def ask(self, vm: Vm) -> str:
        """What the cloud says by now."""
        del vm
        self.requested += 1
        if self.now_s < EVICTED_S:
            return ""
        self.noticed_s = self.now_s
        return "the machine is deallocated (evicted)"


@dataclass
class Place:
    """A real server with a program that never ends by itself, and a workload that uses it."""

    server: sshd.Sshd
    folder: Path
    clock: Clock
    steps: list[Callable[[ssh.SshConnection], ssh.SshConnection]] = field(default_factory=list)

    @property
    def vm(self) -> Vm:
        """The machine behind the server."""
        return Vm(
            provider="x",
            run_id="r",
            id="v",
            region="a",
            size="s",
            host="127.0.0.1",
            port=self.server.port,
            user=self.server.user,
            host_public_key=self.server.host_key,
        )

    def workload(self, *, helper: str) -> SshWorkload:
        """A workload whose set-up is `steps`, and whose scripts there run with `helper`."""
        power_watch = PowerWatch(self.clock.ask, pause=self.clock.pause)
        self.power_watch = power_watch

        def ready(connection: ssh.SshConnection, vm: Vm) -> tuple[ssh.SshConnection, str]:
            del vm
            for step in self.steps:
                connection = step(connection)
            return connection, "python3"

        config = self.folder / "config.json"
        config.write_text("{}")
        return SshWorkload(
            WorkloadConfig(
                layout=RemoteLayout(run_id="r"),
                key_path=self.server.client_key,
                payload=Payload(trainer=self.folder, data={}, config=config, model=None),
                home=self.folder / "home",
                out=self.folder / "out",
                make_ready=ready,
                cache=self.folder / "cache",
                helper_python=helper,
                rents=True,
                eviction_band=lambda: "",
                on_message=lambda _text: None,
                progress=lambda *_: None,
                power_watch=power_watch,
                expected=lambda: Expected(
                    method=MethodTable(), tensor_bytes_max=1 << 20, steps_max=10
                ),
            )
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A server with `hang`, which says that it began and waits until the test is over."""
    with sshd.serve(tmp_path / "there") as server:
        began, over = server.home / "began", server.home / "over"
        program = server.home / "bin" / "hang"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ntouch {began}\nwhile [ ! -e {over} ]; do sleep 0.1; done\n")
        program.chmod(0o755)
        folder = tmp_path / "here"
        folder.mkdir()
        yield Place(server=server, folder=folder, clock=Clock(began))
        over.touch()


def hang(connection: ssh.SshConnection) -> ssh.SshConnection:
    """A step such as apt's or pip's that says nothing for half an hour."""
    connection.run("hang", timeout_s=1800)
    return connection


def test_step_that_hangs_is_left_when_the_machine_is_gone(place: Place) -> None:
    """In an apt step or a pip install, the cloud's word ends the wait within a minute."""
    place.steps = [hang]
    work = place.workload(helper="python3")

    with pytest.raises(HostUnreachable, match="deallocated"):
        work.prepare(place.vm)

    assert place.clock.noticed_s - EVICTED_S <= 60


def test_line_that_was_cut_is_not_waited_for_when_the_machine_is_gone(place: Place) -> None:
    """Set-up that tries to come back for minutes is told that there is nobody any more."""
    tries: list[int] = []

    def come_back(connection: ssh.SshConnection) -> ssh.SshConnection:
        place.server.process.terminate()
        place.server.process.wait(sshd.TIMEOUT_S)
        connection.close()
        place.clock.began.touch()
        timeout = time.monotonic() + sshd.TIMEOUT_S
        while time.monotonic() < timeout:
            try:
                return place.power_watch.connect(connection.host)
            except Unreachable:
                tries.append(1)
                time.sleep(0.01)
        raise AssertionError("nobody said so")

    place.steps = [come_back]
    work = place.workload(helper="python3")

    with pytest.raises(HostUnreachable, match="deallocated"):
        work.prepare(place.vm)

    assert place.clock.noticed_s - EVICTED_S <= 60


@pytest.mark.parametrize("act", ["prepare", "launch", "fetch"])
def test_sync_and_launch_that_hang_are_left_too(place: Place, act: str) -> None:
    """While pushing data, starting the trainer or fetching, it is the same."""
    work = place.workload(helper="hang")

    with pytest.raises(HostUnreachable, match="deallocated"):
        getattr(work, act)(place.vm)

    assert place.clock.noticed_s - EVICTED_S <= 60


def test_second_connection_of_set_up_is_cut_as_well(place: Place) -> None:
    """What hangs on the line that was opened anew, as after a reboot, does not hang on."""
    place.steps = [lambda old: place.power_watch.connect(old.host), hang]
    work = place.workload(helper="python3")

    with pytest.raises(HostUnreachable, match="deallocated"):
        work.prepare(place.vm)


def test_work_that_ends_is_not_disturbed(place: Place) -> None:
    """A machine that stays up is asked about, and its set-up goes on to its end."""
    power_watch = PowerWatch(lambda _vm: "", every_s=0.01)

    with power_watch.over(place.vm, lambda: pytest.fail("cut")):
        time.sleep(0.05)

    assert not [one for one in threading.enumerate() if one.name == "vigil"]
    with pytest.raises(Unreachable), power_watch.over(place.vm, lambda: None):
        raise Unreachable("the line was cut, and nothing else")


# ---- what counts as down, and what the supervisor makes of it ----


@dataclass
class Answering:
    """A provider that answers one thing, or fails."""

    seen: Observation | None
    traits = Traits(rents=True, evicts=True)

    def observe(self, vm: Vm) -> Observation:
        """That thing."""
        del vm
        if self.seen is None:
            raise Transient("no network")
        return self.seen


@pytest.mark.parametrize("power", list(PowerState))
def test_every_state_but_up_ends_the_wait(power: PowerState) -> None:
    """Evicted, stopped or deleted by a person, or failed: nobody waits for such a machine."""
    vm = Vm(provider="x", run_id="r", id="v", region="a", size="s")
    up = {PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING}
    provider = Answering(Observation(power=power, stop_reason=StopReason.USER, detail="by a@b"))

    reported = power_check(provider)(vm)  # type: ignore[arg-type]  # what is asked of it is there

    assert bool(reported) == (power not in up)


def test_cloud_that_does_not_answer_ends_no_wait() -> None:
    """Without network nothing is known, and the machine may well be working."""
    vm = Vm(provider="x", run_id="r", id="v", region="a", size="s")

    assert power_check(Answering(None))(vm) == ""  # type: ignore[arg-type]  # as above


class Interrupted(FakeWorkload):
    """Its set-up is cut by what becomes of the machine, once."""

    happen: Callable[[], None] | None = None
    began_s = 0.0

    def prepare(self, vm: Vm) -> None:
        """Hang until the cloud's word, or set up."""
        if self.happen is not None:
            happen, self.happen = self.happen, None
            happen()
            self.began_s = self.world.now_s
            self.world.sleep(20.0)
            raise HostUnreachable("the machine is deallocated")
        super().prepare(vm)


@pytest.mark.parametrize("what", ["evicted", "stopped by a person", "deleted"])
def test_supervisor_records_it_within_a_minute(tmp_path: Path, what: str) -> None:
    """From the moment that set-up is left, the stop is written down and answered at once."""
    world = World()
    story = Story(path=tmp_path / "journal.jsonl", world=world)
    story.work = Interrupted(world=world, cloud=story.cloud)
    happenings: dict[str, Callable[[], None]] = {
        "evicted": story.cloud.evict_all,
        "stopped by a person": lambda: story.cloud.stop_all(StopReason.USER),
        "deleted": story.cloud.lose_all,
    }
    story.work.happen = happenings[what]

    ending = story.go()

    (stop,) = [one for one in read(story.path) if one.kind is Kind.STOP_SEEN]
    assert stop.at_s - story.work.began_s <= 60
    by_user = what == "stopped by a person"
    assert ending.outcome is (Outcome.STOPPED_BY_USER if by_user else Outcome.DONE)
    assert fold(read(story.path)).evictions == (what == "evicted")


def test_long_pause_after_many_cuts_still_looks(tmp_path: Path) -> None:
    """However often a line was cut before, the next eviction is seen within half a minute."""
    world = World()
    story = Story(path=tmp_path / "journal.jsonl", world=world)
    work = story.work
    prepare, cuts = work.prepare, [1] * 6
    gone_s: list[float] = []

    def cut_often(vm: Vm) -> None:
        if cuts:
            cuts.pop()
            if not cuts:
                gone_s.append(world.now_s)
                story.cloud.evict_all()
            raise HostUnreachable("the line was cut")
        prepare(vm)

    work.prepare = cut_often  # type: ignore[method-assign]  # the fake's own set-up, but for cuts

    assert story.go().outcome is Outcome.DONE
    (stop,) = [one for one in read(story.path) if one.kind is Kind.STOP_SEEN]
    assert stop.at_s - gone_s[0] <= 31


def test_notice_names_the_cloud_s_word() -> None:
    """The error in the place of the cut says what the cloud said."""
    power_watch = PowerWatch(lambda _vm: "the machine is gone", every_s=0.001)
    vm = Vm(provider="x", run_id="r", id="v", region="a", size="s")
    cut = threading.Event()

    def work() -> None:
        with power_watch.over(vm, cut.set):
            cut.wait(sshd.TIMEOUT_S)
            raise Unreachable("cut")

    with pytest.raises(MachineDown, match="is gone"):
        work()


def test_machine_that_never_answered_is_seen_to_be_gone(tmp_path: Path) -> None:
    """While the first SSH is waited for, the cloud is asked at each turn."""
    story = Story(path=tmp_path / "journal.jsonl")
    story.work.mute = True
    gone_s: list[float] = []

    def evict_once() -> None:
        if not gone_s and story.world.now_s > 1_000_030.0:
            gone_s.append(story.world.now_s)
            story.cloud.evict_all()
            story.work.mute = False

    story.between = evict_once

    assert story.go().outcome is Outcome.DONE
    (stop,) = [one for one in read(story.path) if one.kind is Kind.STOP_SEEN]
    assert stop.at_s - gone_s[0] <= 60
