"""A spot cloud whose runs have several machines, and a trainer that trains on them in groups.

The rules of the trainer are those of `trainer/group` and `trainer/job`: a group makes steps while
all its members are in it; at its start the newest state of any of them is everybody's; who loses
one saves the last whole step and exits with 76, who has a notice with 75; the first ends with 0 and
has the results, the others with 79. Time passes in ticks of a second, whenever somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from infra import errors
from infra import provider as seam
from infra.offer import Offer, Want
from infra.provider import Observation, PowerState, StopReason, Vm, VmSpec
from support.fakecloud import World

SAVE_EVERY = 10
LEAVE_S = 5
"""How long the others take to see that one of them is gone, to save and to end."""
JOIN_S = 120
"""How long a trainer waits for those with which it is to train."""
USD_PER_H = 0.36
IDLE_USD_PER_H = 0.036


@dataclass
class Trainer:
    """The process of the trainer on a machine."""

    number: int
    """Its group; 0 for one that trains alone, without a group's arguments."""
    members: tuple[int, ...]
    node: int
    age_s: int = 0
    met: bool = False
    """Whether all of its group have been there."""
    lost_s: int = 0
    """For how long one of them is gone."""


@dataclass
class Machine:
    """One machine: what it holds on its disk, and what it has cost."""

    vm: Vm
    made_s: float
    power: PowerState = PowerState.RUNNING
    reason: StopReason = StopReason.UNKNOWN
    since_s: float = 0.0
    silent: bool = False
    """Whether it answers nobody, though the provider says that it runs."""
    step: int = 0
    saved: int = 0
    has_results: bool = False
    trainer: Trainer | None = None
    exit_code: int | None = None
    error: str = ""
    ends: int = 0
    """How many trainers have ended on it."""
    has_ended: bool = False
    """Whether a trainer has run on it since it booted, and runs no more."""
    billed_s: float = 0.0
    """Compute that is over."""
    removed_s: float | None = None

    @property
    def runs(self) -> bool:
        """Whether its compute bills."""
        return self.power is PowerState.RUNNING

    def end_trainer(self, exit_code: int | None, *, error: str = "") -> None:
        """End the trainer's process."""
        self.trainer, self.exit_code, self.error, self.has_ended = None, exit_code, error, True
        self.ends += 1

    def usd(self, now_s: float) -> float:
        """What it has cost: compute while it ran, its disk from its making to its removal."""
        running_s = now_s - self.since_s if self.runs and self.removed_s is None else 0.0
        kept_s = (now_s if self.removed_s is None else self.removed_s) - self.made_s
        return ((self.billed_s + running_s) * USD_PER_H + kept_s * IDLE_USD_PER_H) / 3600


@dataclass
class GroupCloud(seam.Provider):
    """Keeps the promises of the seam for one run with several machines, in memory."""

    world: World
    room: dict[str, int] = field(default_factory=lambda: {"a": 9, "b": 9})
    """How many machines may run in each region."""
    forbidden: set[int] = field(default_factory=set)
    """Nodes that the account may not have, for whatever reason only a person can change."""
    steps: int = 60
    machines: dict[int, Machine] = field(default_factory=dict)
    """Those that exist, by node."""
    removed: list[Machine] = field(default_factory=list)
    rules: list[tuple[Callable[[], bool], Callable[[], None]]] = field(default_factory=list)
    """What happens in the world, once each, as soon as it may."""
    log: list[str] = field(default_factory=list)
    groups: list[tuple[float, int, tuple[int, ...]]] = field(default_factory=list)
    """When a group, by number, began to make steps, with which nodes."""
    failures: dict[int, list[tuple[int | None, str]]] = field(default_factory=dict)
    """How the next trainers on a node end, once each, instead of training."""
    overlaps: list[str] = field(default_factory=list)
    """Seconds in which two groups made steps: never."""
    idle_s: int = 0
    """The longest time in which machines billed and no step was made."""
    mute: set[int] = field(default_factory=set)
    """Nodes whose machines never answer."""
    boot_s: float = 20.0

    name: str = "fake"
    traits: seam.Traits = field(
        default_factory=lambda: seam.Traits(rents=True, evicts=True, several_machines=True)
    )

    def __post_init__(self) -> None:
        self._at_s = self.world.now_s
        self._made = 0
        self._idle_s = 0

    # ---- the seam ----

    def offers(self, want: Want) -> list[Offer]:  # noqa: ARG002  (the seam names it)
        """One offer per region."""
        return [
            Offer(
                provider=self.name,
                region=region,
                size="small",
                spot_usd_per_h=USD_PER_H,
                idle_usd_per_h=IDLE_USD_PER_H,
            )
            for region in self.room
        ]

    def create(self, spec: VmSpec) -> Vm:
        """Make the machine, or return it; another generation replaces it."""
        self.advance()
        self.world.moment()
        there = self.machines.get(spec.node)
        if there is not None and there.vm.generation == spec.generation:
            return there.vm
        if there is not None:
            self._remove(there)
        if spec.node in self.forbidden:
            raise errors.NotAllowed("the account may not do this", hint="ask for the right")
        self._check_room(spec.offer.region)
        self._made += 1
        vm = Vm(
            provider=self.name,
            run_id=spec.run_id,
            id=f"vm{self._made}",
            region=spec.offer.region,
            size="small",
            generation=spec.generation,
            node=spec.node,
        )
        now_s = self.world.now_s
        self.machines[spec.node] = Machine(vm=vm, made_s=now_s, since_s=now_s)
        self.log.append(f"create {spec.node} {spec.offer.region}")
        self.world.moment()
        return vm

    def observe(self, vm: Vm) -> Observation:
        """Look at it."""
        self.advance()
        found = self.find(vm)
        if found is None:
            return Observation(power=PowerState.GONE, stop_reason=StopReason.UNKNOWN)
        since = utc(found.since_s)
        if found.runs:
            return Observation(
                power=found.power,
                host=f"host-{vm.id}",
                private_host=private_host(vm),
                since=since,
                bills_since=since,
            )
        return Observation(power=found.power, stop_reason=found.reason, since=since)

    def start(self, vm: Vm) -> None:
        """Start it again."""
        self.advance()
        self.world.moment()
        found = self.find(vm)
        if found is None:
            raise errors.Gone("no such machine")
        if not found.runs:
            self._check_room(vm.region)
            self.log.append(f"start {vm.node} {vm.region}")
            found.power, found.since_s, found.silent = PowerState.RUNNING, self.world.now_s, False
            found.has_ended, found.step = False, found.saved
        self.world.moment()

    def deallocate(self, vm: Vm) -> None:
        """Release it."""
        self.advance()
        self.world.moment()
        found = self.find(vm)
        if found is None:
            raise errors.Gone("no such machine")
        if found.runs:
            self._halt(found, StopReason.USER)
            self.log.append(f"deallocate {vm.node}")
        self.world.moment()

    def delete(
        self, run_id: str, on_message: seam.OnMessage = seam.ignore_message
    ) -> list[seam.Removed]:
        """Remove all of them."""
        del run_id, on_message
        self.advance()
        self.world.moment()
        self.log.append("delete")
        removed = [self._remove(one) for one in list(self.machines.values())]
        self.world.moment()
        return removed

    def remove(
        self, vm: Vm, on_message: seam.OnMessage = seam.ignore_message
    ) -> list[seam.Removed]:
        """Remove one."""
        del on_message
        self.advance()
        self.world.moment()
        found = self.find(vm)
        removed = [] if found is None else [self._remove(found)]
        self.world.moment()
        return removed

    def list_all(self) -> list[Vm]:
        """Everything there is."""
        return [replace(one.vm, power=one.power) for one in self.machines.values()]

    def evict(self, vm: Vm) -> None:
        """Take it away at once."""
        self.advance()
        self.world.moment()
        found = self.find(vm)
        if found is not None and found.runs:
            self.take(vm.node)
        self.world.moment()

    # ---- what happens in the world ----

    def when(self, condition: Callable[[], bool], act: Callable[[], None]) -> None:
        """Do something once, in the second in which the condition holds first."""
        self.rules.append((condition, act))

    def at_step(self, step: int, act: Callable[[], None]) -> None:
        """Do something once, when the training is so far."""
        self.when(lambda: self.step >= step, act)

    @property
    def step(self) -> int:
        """How far the training is on any machine."""
        return max((one.step for one in self.machines.values()), default=0)

    def take(self, *nodes: int, reason: StopReason = StopReason.EVICTED) -> None:
        """The market, or a person, stops these machines at once."""
        for node in nodes:
            if node in self.machines and self.machines[node].runs:
                self._halt(self.machines[node], reason)
                self.log.append(f"{reason} {node}")

    def lose(self, node: int) -> None:
        """A machine is deleted, disk and all, and nobody asked this run."""
        self._remove(self.machines[node])

    def silence(self, node: int) -> None:
        """Nothing of it answers any more, and the provider says that it runs."""
        self.machines[node].silent = True
        self.log.append(f"silent {node}")

    def give_notice(self, node: int, *, taken_after_s: float) -> None:
        """Its trainer learns that it will be taken, and saves."""
        found = self.machines[node]
        if found.trainer is not None:
            found.saved = found.step
            found.end_trainer(75)
        self.log.append(f"notice {node}")
        due_s = self._at_s + taken_after_s
        self.when(lambda: self._at_s >= due_s, lambda: self.take(node))

    def find(self, vm: Vm) -> Machine | None:
        """The machine, if it is still there."""
        found = self.machines.get(vm.node)
        return found if found is not None and found.vm.id == vm.id else None

    def answers(self, machine: Machine) -> bool:
        """Whether it answers over SSH."""
        booted = self.world.now_s - machine.since_s >= self.boot_s
        return machine.runs and booted and not machine.silent and machine.vm.node not in self.mute

    def usd(self) -> float:
        """What all its machines have cost."""
        every = [*self.machines.values(), *self.removed]
        return sum(one.usd(self.world.now_s) for one in every)

    def compute_h(self) -> float:
        """How many hours of machines have been billed."""
        now_s = self.world.now_s
        every = [*self.machines.values(), *self.removed]
        running = [now_s - one.since_s for one in self.machines.values() if one.runs]
        return (sum(one.billed_s for one in every) + sum(running)) / 3600

    def running(self) -> list[int]:
        """The nodes whose compute bills."""
        return sorted(node for node, one in self.machines.items() if one.runs)

    # ---- time ----

    def advance(self) -> None:
        """Bring the world up to now."""
        while self._at_s + 1.0 <= self.world.now_s:
            self._at_s += 1.0
            self._tick()
            for rule in [one for one in self.rules if one[0]()]:
                self.rules.remove(rule)
                rule[1]()

    def _tick(self) -> None:
        before = self.step
        trainers = [(m, m.trainer) for m in self.machines.values() if m.trainer is not None]
        stepped = set()
        for machine, trainer in trainers:
            trainer.age_s += 1
            others = [self._mate(trainer, node) for node in trainer.members]
            there = [one for one in others if one is not None]
            if machine.silent or len(there) < len(others):
                self._miss(machine, trainer)
            elif not trainer.met:
                self._meet(there, trainer)
            else:
                stepped.add((trainer.number, trainer.members))
        if len(stepped) > 1:
            self.overlaps.append(f"{self._at_s:.0f}: {sorted(stepped)}")
        for _, members in stepped:
            for node in members:
                self._step(self.machines[node])
        billing = bool(self.running()) and self.step == before
        self._idle_s = self._idle_s + 1 if billing else 0
        self.idle_s = max(self.idle_s, self._idle_s)

    def _mate(self, trainer: Trainer, node: int) -> Machine | None:
        """Another member of its group that is in it, or itself; None if it is not there."""
        found = self.machines.get(node)
        if found is None or not found.runs or found.silent or found.trainer is None:
            return None
        return found if found.trainer.number == trainer.number else None

    def _miss(self, machine: Machine, trainer: Trainer) -> None:
        """Leave when one is gone for seconds, or has not come for minutes."""
        trainer.lost_s += trainer.met
        if trainer.lost_s >= LEAVE_S:
            machine.saved = machine.step
            machine.end_trainer(76)
        elif not trainer.met and trainer.age_s >= JOIN_S:
            machine.end_trainer(76)

    def _meet(self, there: list[Machine], trainer: Trainer) -> None:
        """Begin with the newest state of any of them."""
        newest = max(one.saved for one in there)
        for one in there:
            assert one.trainer is not None
            assert one.trainer.members == trainer.members, "one number, two groups"
            one.step = one.saved = newest
            one.trainer.met = True
        self.groups.append((self._at_s, trainer.number, trainer.members))

    def _step(self, machine: Machine) -> None:
        machine.step = min(machine.step + 1, self.steps)
        machine.saved = max(machine.saved, machine.step - machine.step % SAVE_EVERY)
        trainer = machine.trainer
        assert trainer is not None
        if machine.step >= self.steps:
            machine.saved = self.steps
            machine.has_results = trainer.members[0] == trainer.node
            machine.end_trainer(0 if machine.has_results else 79)

    def _halt(self, machine: Machine, reason: StopReason) -> None:
        machine.billed_s += self.world.now_s - machine.since_s
        machine.power, machine.reason = PowerState.DEALLOCATED, reason
        machine.since_s, machine.trainer = self.world.now_s, None

    def _remove(self, machine: Machine) -> seam.Removed:
        if machine.runs:
            self._halt(machine, StopReason.USER)
        machine.removed_s = self.world.now_s
        del self.machines[machine.vm.node]
        self.removed.append(machine)
        self.log.append(f"remove {machine.vm.node}")
        return seam.Removed(kind="machine", id=machine.vm.id)

    def _check_room(self, region: str) -> None:
        alive = [one for one in self.machines.values() if one.runs and one.vm.region == region]
        if len(alive) >= self.room[region]:
            raise errors.NoCapacity(f"{region} is full")


def private_host(vm: Vm) -> str:
    """The address of a machine in the private network."""
    return f"10.0.0.{vm.id.removeprefix('vm')}"


def utc(at_s: float) -> str:
    """A time with its fraction, so that the bill can be compared to the cent."""
    return datetime.fromtimestamp(at_s, tz=UTC).isoformat()
