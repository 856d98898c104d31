"""A spot cloud and a trainer made of plain values, for tests of decisions; its clock is a number.

The cloud behaves as the seam promises and can be told to evict, to be full or to be dear. The
trainer gains one step a second, saves every ten, and loses what it has not saved. `Killed` is
raised at a chosen moment, as SIGKILL would come: before or after any act or any journal write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from commands.ui.snapshot import take_snapshot
from infra import errors
from infra import provider as seam
from infra.offer import Offer, Want
from infra.provider import Observation, PowerState, StopReason, Vm, VmSpec
from infra.run.context import RunContext, TurnReport
from infra.run.heartbeat import Heartbeat
from infra.run.journal import Event, Journal, Kind
from infra.run.order import Group
from infra.run.plan import Goal, Policy, RunPlan
from infra.run.state import RunEnd
from infra.run.supervisor import Supervisor
from infra.run.workload import (
    HostNotTrusted,
    HostUnfit,
    HostUnreachable,
    JobOutcome,
    JobPhase,
    JobView,
)
from trainer.exit_codes import ExitCode

SAVE_EVERY = 10
OUTCOMES: dict[int | None, JobOutcome] = {
    ExitCode.DONE: JobOutcome.DONE,
    ExitCode.BAD_DATA: JobOutcome.BAD_INPUT,
    ExitCode.BAD_CONFIG: JobOutcome.BAD_INPUT,
    ExitCode.PREEMPTED: JobOutcome.PREEMPTED,
}


def outcome_of(exit_code: int | None) -> JobOutcome:
    """What an exit code of the trainer means."""
    return OUTCOMES.get(exit_code, JobOutcome.CRASHED)


class Killed(BaseException):
    """The process dies here; no handler may run, so it is no Exception."""


@dataclass
class World:
    """Time, and the moment at which the process is killed."""

    now_s: float = 1_000_000.0
    kill_at: int | None = None
    moments: int = 0
    """How many moments at which a kill could come have passed."""

    def clock(self) -> float:
        """Seconds since the epoch."""
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        """Let time pass."""
        self.now_s += wait_s

    def moment(self) -> None:
        """A kill could come here."""
        self.moments += 1
        if self.kill_at is not None and self.moments == self.kill_at:
            raise Killed


@dataclass
class Disk:
    """What a machine holds that survives a power cut."""

    step: int = 0
    saved: int = 0
    done: bool = False
    running_since: float | None = None
    exit_code: int | None = None


@dataclass
class FakeCloud(seam.Provider):
    """Keeps the promises of the seam in memory."""

    world: World
    regions: tuple[str, ...] = ("a", "b")
    full: set[str] = field(default_factory=set)
    dear: set[str] = field(default_factory=set)
    no_quota: set[str] = field(default_factory=set)
    vms: dict[str, Vm] = field(default_factory=dict)
    power: dict[str, PowerState] = field(default_factory=dict)
    reason: dict[str, StopReason] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    created: int = 0
    most_alive: int = 0
    hiccups: int = 0
    """How many calls fail with `Transient` before one works."""
    hung: bool = False
    """Whether trainers show no life, though their process is there."""
    log: list[str] = field(default_factory=list)
    host_key_is_readable: bool = False
    interruption_is_free: bool = False
    taken_at_s: float = float("inf")
    """When it takes every machine, after a notice."""

    name: str = "fake"
    usd_per_h: float = 0.36
    card: str = ""
    """The GPU of every machine."""
    card_count: int = 1
    traits: seam.Traits = field(default_factory=lambda: seam.Traits(rents=True, evicts=True))
    signed_out: bool = False
    """Whether nobody is signed in, so that every request fails."""

    def offers(self, want: Want) -> list[Offer]:  # noqa: ARG002  (the seam names it)
        """One offer per region."""
        self._hiccup()
        return [
            Offer(
                provider=self.name,
                region=region,
                size="small",
                gpu=self.card,
                gpu_count=self.card_count,
                spot_usd_per_h=self.usd_per_h,
                idle_usd_per_h=0.036,
            )
            for region in self.regions
        ]

    def create(self, spec: VmSpec) -> Vm:
        """Make the machine, or return it."""
        self.world.moment()
        self._hiccup()
        if spec.run_id in self.vms:
            return self.vms[spec.run_id]
        self._check_available(spec.offer.region)
        self.created += 1
        self.log.append(f"create {spec.offer.region}")
        vm = Vm(
            provider=self.name,
            run_id=spec.run_id,
            id=f"vm{self.created}" if self.name == "fake" else f"{self.name}{self.created}",
            region=spec.offer.region,
            size="small",
            generation=spec.generation,
            host_key_is_readable=self.host_key_is_readable,
            interruption_is_free=self.interruption_is_free,
        )
        self.vms[spec.run_id] = vm
        self.disks[vm.id] = Disk()
        self._boot(vm)
        self.world.moment()
        return vm

    def observe(self, vm: Vm) -> Observation:
        """Look at it."""
        self._hiccup()
        if self.world.now_s >= self.taken_at_s:
            self.taken_at_s = float("inf")
            self.evict_all()
        if vm.run_id not in self.vms or self.vms[vm.run_id].id != vm.id:
            return Observation(power=PowerState.GONE, stop_reason=StopReason.UNKNOWN)
        power = self.power[vm.id]
        if power is PowerState.RUNNING:
            return Observation(power=power, host=f"host-{vm.id}")
        return Observation(power=power, stop_reason=self.reason[vm.id])

    def start(self, vm: Vm) -> None:
        """Start it again."""
        self.world.moment()
        self._hiccup()
        if vm.run_id not in self.vms:
            raise errors.Gone("no such machine")
        if self.power[vm.id] is not PowerState.RUNNING:
            self._check_available(vm.region)
            self.log.append(f"start {vm.region}")
            self._boot(vm)
        self.world.moment()

    def deallocate(self, vm: Vm) -> None:
        """Release it."""
        self.world.moment()
        self._hiccup()
        if vm.run_id not in self.vms:
            raise errors.Gone("no such machine")
        running = self.power[vm.id] is PowerState.RUNNING
        self._halt(vm, StopReason.USER if running else self.reason[vm.id])
        self.log.append("deallocate" if running else "deallocated already")
        self.world.moment()

    def delete(
        self, run_id: str, on_message: seam.OnMessage = seam.ignore_message
    ) -> list[seam.Removed]:
        """Remove it."""
        del on_message
        self.world.moment()
        self._hiccup()
        vm = self.vms.pop(run_id, None)
        self.log.append("delete")
        self.world.moment()
        return [] if vm is None else [seam.Removed(kind="machine", id=vm.id)]

    def list_all(self) -> list[Vm]:
        """Everything there is."""
        self._hiccup()
        return [replace(vm, power=self.power[vm.id]) for vm in self.vms.values()]

    def evict(self, vm: Vm) -> None:
        """Take it away at once."""
        self.world.moment()
        self._halt(vm, StopReason.EVICTED)
        self.log.append("evict")
        self.world.moment()

    def evict_all(self) -> None:
        """The market takes every machine."""
        for vm in self.vms.values():
            if self.power[vm.id] is PowerState.RUNNING:
                self._halt(vm, StopReason.EVICTED)

    def stop_all(self, reason: StopReason) -> None:
        """Somebody or something deallocates every machine, and nobody asked this run."""
        for vm in self.vms.values():
            self._halt(vm, reason)
        self.log.append(f"stopped: {reason}")

    def lose_all(self) -> None:
        """Every machine is deleted, disk and all."""
        self.vms.clear()

    def progress(self, vm: Vm) -> Disk:
        """The machine's disk, with the training brought up to now."""
        disk = self.disks[vm.id]
        works = disk.running_since is not None and self.power[vm.id] is PowerState.RUNNING
        if works and not self.hung and disk.running_since is not None:
            disk.step += int(self.world.now_s - disk.running_since)
            disk.running_since = self.world.now_s
            disk.saved = max(disk.saved, disk.step - disk.step % SAVE_EVERY)
        return disk

    def _boot(self, vm: Vm) -> None:
        self.power[vm.id] = PowerState.RUNNING
        alive = [v for v in self.vms.values() if self.power[v.id] is PowerState.RUNNING]
        self.most_alive = max(self.most_alive, len(alive))

    def _halt(self, vm: Vm, reason: StopReason) -> None:
        disk = self.progress(vm)
        disk.step, disk.running_since = disk.saved, None
        self.power[vm.id] = PowerState.DEALLOCATED
        self.reason[vm.id] = reason

    def _check_available(self, region: str) -> None:
        if region in self.full:
            raise errors.NoCapacity(f"{region} is full")
        if region in self.dear:
            raise errors.PriceAboveCap(f"{region} is dear", current_usd_per_h=1.0)
        if region in self.no_quota:
            raise errors.OverQuota(f"{region} has no quota", family="T4", limit=0)

    def _hiccup(self) -> None:
        if self.signed_out:
            raise errors.SignedOut(f"nobody is signed in to {self.name}", hint="sign in")
        if self.hiccups:
            self.hiccups -= 1
            raise errors.Transient("a hiccup", retry_after_s=1.0)


@dataclass
class FakeWorkload:
    """Trains on the fake cloud's machines."""

    world: World
    cloud: FakeCloud
    steps: int = 50
    home: int = 0
    out: str = ""
    exit_codes: list[int | None] = field(default_factory=list)
    """How the next launches end, once each, instead of training."""
    mute: bool = False
    stranger: bool = False
    """Whether another machine answers in its place."""
    launches: int = 0
    inexact_from: int | None = None
    """The step from which its trainer calls the training not bit for bit."""
    limits: list[float] = field(default_factory=list)
    eviction_announced: bool = False
    """Whether trainers that were to save have heard the notice of an eviction."""
    host_keys: dict[str, str] = field(default_factory=dict)
    """What each machine presents; none for what it was made with."""
    next_host_keys: dict[str, str] = field(default_factory=dict)
    """What was made there and is not in use yet."""
    unfit: str = ""
    """Why host keys cannot be changed."""

    def make_host_key(self, vm: Vm) -> str:
        """Make one, unless a change was cut."""
        self.world.moment()
        self.connect(vm)
        if self.unfit:
            raise HostUnfit(self.unfit)
        used = self.host_keys.get(vm.id, "")
        if used and used == vm.next_host_public_key:
            return used
        line = self.next_host_keys.setdefault(vm.id, f"ssh-ed25519 N{self.world.moments}")
        self.world.moment()
        return line

    def use_host_key(self, vm: Vm, public_key: str) -> None:
        """Present it from now on."""
        self.world.moment()
        self.connect(vm)
        if self.host_keys.get(vm.id, "") != public_key:
            assert self.next_host_keys.pop(vm.id) == public_key
            self.host_keys[vm.id] = public_key
        self.world.moment()

    def connect(self, vm: Vm) -> None:
        """Answer, unless mute or down."""
        if self.host_keys.get(vm.id, "") not in ["", *vm.accepted_host_keys]:
            raise HostNotTrusted("another host key")
        if self.stranger:
            raise HostNotTrusted("another host key")
        if self.mute or self.cloud.power.get(vm.id) is not PowerState.RUNNING:
            raise HostUnreachable("no answer")

    def prepare(self, vm: Vm) -> None:
        """Bring the newest checkpoint, to a machine whose host key nobody else has."""
        self.world.moment()
        self.connect(vm)
        assert self.unfit or not vm.host_key_is_readable
        disk = self.cloud.progress(vm)
        disk.saved = max(disk.saved, self.home)
        if disk.running_since is None:
            disk.step = disk.saved
        self.world.moment()

    def set_time_limit(self, vm: Vm, left_s: float) -> None:  # noqa: ARG002  (the seam names it)
        """Note the limit."""
        self.limits.append(left_s)

    def launch(self, vm: Vm, group: Group | None = None) -> None:  # noqa: ARG002  (one machine)
        """Start training unless it runs."""
        self.world.moment()
        self.connect(vm)
        disk = self.cloud.progress(vm)
        if disk.running_since is None and not disk.done:
            self.launches += 1
            disk.exit_code = self.exit_codes.pop(0) if self.exit_codes else -1
            disk.running_since = self.world.now_s if disk.exit_code == -1 else None
        self.world.moment()

    def job_status(self, vm: Vm) -> JobView:
        """See how far it is."""
        self.connect(vm)
        disk = self.cloud.progress(vm)
        if disk.running_since is not None and disk.step >= self.steps:
            disk.step, disk.saved, disk.done = self.steps, self.steps, True
            disk.running_since = None
        self.home = max(self.home, disk.saved)
        beat = "frozen" if self.cloud.hung else str(self.world.now_s)
        since = self.inexact_from
        heartbeat = Heartbeat(
            updated_at=beat, phase="training", exact=since is None, inexact_from=since
        )
        view = JobView(phase=JobPhase.ABSENT, step=disk.step, steps=self.steps, heartbeat=heartbeat)
        if disk.done:
            return replace(view, phase=JobPhase.EXITED, outcome=JobOutcome.DONE, exit_code=0)
        if disk.running_since is not None:
            return replace(view, phase=JobPhase.RUNNING)
        if disk.exit_code is None or disk.exit_code >= 0:
            outcome = outcome_of(disk.exit_code)
            view = replace(view, phase=JobPhase.EXITED, outcome=outcome, exit_code=disk.exit_code)
            return replace(view, eviction_announced=self.eviction_announced)
        return view

    def stop(self, vm: Vm) -> None:
        """Let it save and end."""
        self.connect(vm)
        disk = self.cloud.progress(vm)
        if disk.running_since is not None:
            disk.saved, disk.running_since, disk.exit_code = disk.step, None, 75
        self.cloud.hung = False

    def save_and_pull(self, vm: Vm) -> None:
        """Save, and bring that home."""
        self.stop(vm)
        self.home = max(self.home, self.cloud.disks[vm.id].saved)

    def fetch(self, vm: Vm) -> str:
        """Bring the adapter home."""
        self.world.moment()
        if not self.cloud.progress(vm).done:
            raise AssertionError("fetched before the training was over")
        self.out = "out"
        self.world.moment()
        return self.out

    def clear(self, vm: Vm) -> None:
        """Nothing to remove."""

    def home_step(self) -> int:
        """The newest checkpoint at home."""
        return self.home

    def disconnect(self) -> None:
        """No connections."""


class MortalJournal(Journal):
    """A journal whose process may be killed before or after every write."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path, clock=world.clock)
        self._world = world

    def append(self, kind: Kind, **data: object) -> Event:
        """Write one event, unless killed."""
        self._world.moment()
        event = super().append(kind, **data)
        self._world.moment()
        return event


@dataclass
class Story:
    """One run in the fake world; `go` is what a person types again after every kill."""

    path: Path
    world: World = field(default_factory=World)
    policy: Policy = field(default_factory=lambda: Policy(poll_s=1.0))
    plan: RunPlan = field(default_factory=lambda: RunPlan(goal=Goal.RUN))
    between: Callable[[], None] = lambda: None
    """What happens in the world at each turn of the loop."""
    warnings: list[str] = field(default_factory=list)
    """What a person was warned of, each change once; empty for the end of a trouble."""

    def __post_init__(self) -> None:
        self.cloud = FakeCloud(world=self.world)
        self.work = FakeWorkload(world=self.world, cloud=self.cloud)

    def on_turn(self, report: TurnReport) -> None:
        """Keep what a person is warned of, and let the world go on; every report has words."""
        assert take_snapshot(report, simulated=False, own=False).phase
        if report.warning != (self.warnings or [""])[-1]:
            self.warnings.append(report.warning)
        self.between()

    def journal(self) -> Journal:
        """The run's journal as a new process opens it."""
        return MortalJournal(self.path, self.world)

    def go(self) -> RunEnd:
        """Drive the run until it ends or the process is killed."""
        journal = self.journal()
        if not journal.events:
            journal.append(Kind.RUN_STARTED, run_id="run-1", name="run")
        else:
            journal.append(Kind.RUN_RESUMED, changed=False)
        context = RunContext(
            provider=self.cloud,
            workload=self.work,
            journal=journal,
            make_spec=spec_of,
            want=Want(),
            clock=self.world.clock,
            sleep=self.world.sleep,
            on_turn=self.on_turn,
        )
        return Supervisor(context).run(replace(self.plan, policy=self.policy))


def spec_of(offer: Offer, generation: int) -> VmSpec:
    """What is asked for, of the only run."""
    return VmSpec(
        run_id="run-1",
        generation=generation,
        offer=offer,
        max_price_usd_per_h=None,
        public_key="ssh-ed25519 AAAA",
        host_private_key="secret",
        host_public_key="ssh-ed25519 BBBB",
    )
