"""Describes each machine of a run with several for `qft status`; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from commands.ui.nodes import rank_text
from infra.card_count import cards_text
from infra.errors import ErrorKind
from infra.provider import Observation, PowerState
from infra.run.budget import bill
from infra.run.nodes import together
from infra.run.state import RunState
from infra.run.workload import JobPhase, JobView


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of one machine just now."""

    machine: Observation | None
    job: JobView | None
    trouble: str
    """Why something could not be seen; empty if nothing stood in the way."""
    signed_in: bool
    """Whether the machine has ever answered since it was last started."""


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """One machine of a run with several, as it is now."""

    node: int
    state: RunState
    look: Look
    power: str
    """Its power in words, as a run with one machine tells it."""
    usd_per_h: float
    rank: str
    """Its place in the group that trains, such as `rank 0 of 3`; empty if it is in none."""

    @property
    def step(self) -> int:
        """How far it is, as its trainer or else the journal has it."""
        return self.look.job.step if self.look.job else self.state.step

    @property
    def summary(self) -> str:
        """What it does, or what it waits for."""
        state, job = self.state, self.look.job
        if state.vm is None:
            return self._without_machine()
        if not state.up:
            return self.power
        if not state.prepared:
            return "setting up" if self.look.signed_in else self.power
        running = job is not None and job.phase is JobPhase.RUNNING
        if not running or job is None:
            return "ready, does not train"
        phase = job.heartbeat.phase or "starting"
        return f"{phase} as {self.rank}, step {self.step}" if self.rank else phase

    def _without_machine(self) -> str:
        state = self.state
        if state.pending is not None:
            return "being rented or removed"
        last = state.refusals[-1] if state.refusals else None
        if last is not None and (not state.deleted or last.kind is ErrorKind.NO_CAPACITY):
            return f"waiting for capacity: {last.size} in {last.place} refused, {last.kind}"
        return "removed" if state.deleted else "not rented yet"

    @property
    def line(self) -> str:
        """What to print of it."""
        parts = [self.summary]
        if (vm := self.state.vm) is not None:
            cards = cards_text(vm)
            parts.append(
                f"{vm.size} ({cards}) in {vm.region}" if cards else f"{vm.size} in {vm.region}"
            )
            parts += [vm.host] * bool(vm.host and self.state.up)
        parts += [f"${self.usd_per_h:.4f}/h"] * bool(self.usd_per_h)
        plural = "s" * (self.state.evictions != 1)
        parts += [f"{self.state.evictions} eviction{plural}"] * bool(self.state.evictions)
        parts += [self.look.trouble] * bool(self.look.trouble)
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        state, vm = self.state, self.state.vm
        return {
            "node": self.node,
            "summary": self.summary,
            "rank": self.rank or None,
            "step": self.step,
            "checkpoint_home_step": state.home_step,
            "evictions": state.evictions,
            "usd_per_h_now": self.usd_per_h,
            "machine": None
            if vm is None
            else {
                "provider": vm.provider,
                "id": vm.id,
                "region": vm.region,
                "zone": vm.zone or None,
                "size": vm.size,
                "host": vm.host or None,
                "private_host": vm.private_host or None,
                "port": vm.port,
                "power": self.power if self.look.machine else None,
                "signed_in": self.look.signed_in,
                "generation": vm.generation,
            },
            "job": str(self.look.job.phase) if self.look.job else None,
            "trainer": self.look.job.heartbeat.to_json() if self.look.job else None,
            "switches": list(state.safeguards) if state.up else [],
            "switches_missing": list(state.safeguards_missing) if state.up else [],
            "trouble": self.look.trouble or None,
        }


def power_text(state: RunState, look: Look, *, now_s: float, boot_long_s: float) -> str:
    """Return a machine's power; one that runs and has let nobody sign in yet is starting."""
    if look.machine is None:
        return "not seen just now"
    if look.machine.power is not PowerState.RUNNING or look.signed_in:
        return str(look.machine.power)
    late = now_s - state.vm_started_s > boot_long_s
    return "not answering" if late else str(PowerState.STARTING)


def node_statuses(
    nodes: list[RunState], looks: list[Look], *, now_s: float, boot_long_s: float
) -> tuple[NodeStatus, ...]:
    """Describe each machine, by its state and what was seen of it."""
    whole = together(nodes)
    return tuple(
        NodeStatus(
            node=node,
            state=one,
            look=look,
            power=power_text(one, look, now_s=now_s, boot_long_s=boot_long_s),
            usd_per_h=bill(one, now_s).usd_per_h_now,
            rank=rank_text(whole, node),
        )
        for node, (one, look) in enumerate(zip(nodes, looks, strict=True))
    )


def with_nodes(state: RunState, nodes: list[RunState]) -> RunState:
    """Return the state of a run with those of its machines, and the ending that it has."""
    return replace(together(nodes), ending=state.ending)
