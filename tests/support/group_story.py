"""One run with several machines in the fake world: what a person types, again after every kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.offer import Offer, Want
from infra.provider import Vm, VmSpec
from infra.run.budget import bill
from infra.run.context import RunContext, TurnReport
from infra.run.fold import fold
from infra.run.group import GroupContext, GroupSupervisor
from infra.run.heartbeat import Heartbeat
from infra.run.journal import Kind, read
from infra.run.nodes import NodeJournal, node_count
from infra.run.order import Group
from infra.run.plan import Goal, Policy, RunPlan
from infra.run.state import RunEnd, RunState
from infra.run.workload import HostNotTrusted, HostUnreachable, JobOutcome, JobPhase, JobView
from support.fakecloud import MortalJournal, outcome_of, spec_of
from support.fakegroup import GroupCloud, Machine, Trainer, private_host
from support.virtual_threads import ThreadedWorld

PREPARE_S = 8.0
OUTCOMES = {76: JobOutcome.LEFT, 79: JobOutcome.DONE_ELSEWHERE}


@dataclass
class Home:
    """What is on the computer of whoever drives the run."""

    step: int = 0
    out: str = ""


@dataclass
class GroupWorkload:
    """Works on one of the machines of the fake cloud."""

    cloud: GroupCloud
    home: Home
    strangers: set[int]
    """Nodes at whose address another machine answers."""

    def connect(self, vm: Vm) -> None:
        """Answer, unless silent, booting or down."""
        self._reach(vm)

    def make_host_key(self, vm: Vm) -> str:
        """None of these machines has a host key that others can read."""
        raise AssertionError(vm)

    def use_host_key(self, vm: Vm, public_key: str) -> None:
        """As `make_host_key`."""
        raise AssertionError(vm, public_key)

    def prepare(self, vm: Vm) -> float | None:
        """Bring the newest checkpoint; takes seconds."""
        self.cloud.world.moment()
        self._reach(vm)
        self.cloud.world.sleep(PREPARE_S)
        machine = self._reach(vm)
        if machine.trainer is None:
            machine.saved = max(machine.saved, self.home.step)
            machine.step = machine.saved
        self.cloud.world.moment()
        return None

    def set_time_limit(self, vm: Vm, left_s: float) -> None:
        """No safeguards here."""
        raise AssertionError(vm, left_s)

    def launch(self, vm: Vm, group: Group | None = None) -> None:
        """Start the trainer unless it runs."""
        self.cloud.world.moment()
        machine = self._reach(vm)
        assert group is not None
        master = self.cloud.machines.get(group.members[0])
        if master is not None:
            assert group.master == private_host(master.vm) or not self.cloud.answers(master)
        if machine.trainer is None:
            number = group.number if len(group.members) > 1 else 0
            machine.trainer = Trainer(number=number, members=group.members, node=vm.node)
            assert vm.node in group.members
            for code, error in self.cloud.failures.get(vm.node, [])[:1]:
                self.cloud.failures[vm.node].pop(0)
                machine.end_trainer(code, error=error)
        self.cloud.world.moment()

    def job_status(self, vm: Vm) -> JobView:
        """See how far it is, and bring home what it has saved."""
        machine = self._reach(vm)
        self.home.step = max(self.home.step, machine.saved)
        beat = f"ended {machine.ends}" if machine.trainer is None else self.cloud.world.now_s
        view = JobView(
            phase=JobPhase.ABSENT,
            step=machine.step,
            steps=self.cloud.steps,
            heartbeat=Heartbeat(updated_at=str(beat), phase="training"),
        )
        if machine.trainer is not None:
            return replace(view, phase=JobPhase.RUNNING)
        if not machine.has_ended:
            return view
        code = machine.exit_code
        outcome = OUTCOMES.get(code or 0) or outcome_of(code)
        return replace(
            view, phase=JobPhase.EXITED, outcome=outcome, exit_code=code, error=machine.error
        )

    def stop(self, vm: Vm) -> None:
        """Let it save and end."""
        machine = self._reach(vm)
        if machine.trainer is not None:
            machine.saved = machine.step
            machine.end_trainer(75)

    def save_and_pull(self, vm: Vm) -> None:
        """Save, and bring that home."""
        self.stop(vm)
        self.home.step = max(self.home.step, self.cloud.machines[vm.node].saved)

    def fetch(self, vm: Vm) -> str:
        """Bring the adapter home."""
        self.cloud.world.moment()
        machine = self._reach(vm)
        assert machine.has_results, "fetched where no results are"
        self.home.out = "out"
        self.cloud.world.moment()
        return self.home.out

    def clear(self, vm: Vm) -> None:
        """Nothing to remove."""

    def home_step(self) -> int:
        """The newest checkpoint at home."""
        return self.home.step

    def disconnect(self) -> None:
        """No connections."""

    def _reach(self, vm: Vm) -> Machine:
        self.cloud.advance()
        machine = self.cloud.find(vm)
        if machine is None or not self.cloud.answers(machine):
            raise HostUnreachable("no answer")
        if vm.node in self.strangers:
            raise HostNotTrusted("another host key")
        assert vm.private_host in {"", private_host(machine.vm)}
        return machine


@dataclass
class GroupStory:
    """One run with several machines; `go` is what a person types again after every kill."""

    path: Path
    nodes: int = 3
    nodes_min: int = 1
    world: ThreadedWorld = field(default_factory=ThreadedWorld)
    policy: Policy = field(default_factory=lambda: Policy(poll_s=1.0))
    plan: RunPlan = field(default_factory=lambda: RunPlan(goal=Goal.RUN))
    strangers: set[int] = field(default_factory=set)
    on_turn: Callable[[TurnReport], None] = lambda _: None
    shares: set[tuple[int | None, str]] = field(default_factory=set)
    """Which machines reported which actions."""

    def __post_init__(self) -> None:
        self.cloud = GroupCloud(world=self.world)
        self.home = Home()

    def go(self, *, changed: bool = False) -> RunEnd:
        """Drive the run until it ends or the process is killed."""
        try:
            return self._go(changed=changed)
        finally:
            self.world.drain()
            self.cloud.advance()

    def _go(self, *, changed: bool) -> RunEnd:
        journal = MortalJournal(self.path, self.world)
        if not journal.events:
            journal.append(Kind.RUN_STARTED, run_id="run-1", name="run")
        else:
            journal.append(Kind.RUN_RESUMED, changed=changed)
        context = GroupContext(
            journal=journal,
            make_node=self._make_node,
            on_turn=self._on_turn,
            clock=self.world.clock,
            sleep=self.world.sleep,
            start=self.world.start,
        )
        plan = replace(
            self.plan,
            policy=self.policy,
            nodes=self.nodes,
            nodes_min=self.nodes_min,
            several_places=len(self.cloud.room) > 1,
        )
        count = max(self.nodes, node_count(journal.events))
        return GroupSupervisor(context, count=count).run(plan)

    def _make_node(self, number: int, journal: NodeJournal) -> RunContext:
        def make_spec(offer: Offer, generation: int) -> VmSpec:
            return replace(spec_of(offer, generation), node=number, nodes=self.nodes)

        return RunContext(
            provider=self.cloud,
            workload=GroupWorkload(cloud=self.cloud, home=self.home, strangers=self.strangers),
            journal=journal,
            make_spec=make_spec,
            want=Want(nodes=self.nodes_min),
            clock=self.world.clock,
            sleep=self.world.sleep,
            on_turn=lambda _: None,
        )

    def _on_turn(self, report: TurnReport) -> None:
        self.shares.add((report.node, type(report.action).__name__))
        self.on_turn(report)

    # ---- what came of it ----

    @property
    def state(self) -> RunState:
        """The run as its journal tells."""
        return fold(read(self.path))

    def billed_usd(self) -> float:
        """The bill that the journal adds up to, now."""
        return bill(self.state, self.world.now_s).usd

    def members(self) -> list[tuple[int, ...]]:
        """The nodes of each group that made steps, in the order of its ranks."""
        return [members for _, _, members in self.cloud.groups]
