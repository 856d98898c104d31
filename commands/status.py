"""`qft status`: shows where a run is, what it has cost and what still bills; changes nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer

from commands.runs import factory
from commands.runs.home import RunFolder, environment, is_locked, pick_run, qft_home
from commands.runs.node_status import Look, NodeStatus, node_statuses, power_text, with_nodes
from commands.runs.planning.corrected import Corrected, corrected_hours
from commands.runs.planning.planned import read_planned
from commands.runs.receipt import Receipt, make_receipt
from commands.runs.saved_run import SavedRun, read_saved_run
from commands.runs.score import score_lines
from commands.ui.errors import exit_of
from commands.ui.nodes import each_node, leader
from commands.ui.options import Json, Run, examples
from commands.ui.output import columns, print_data, print_json
from infra.card_count import card_count
from infra.errors import ProviderError
from infra.provider import Observation, PowerState, Provider, StopReason, Vm
from infra.run.budget import bill
from infra.run.cards import NOT_EXACT
from infra.run.fold import apply, fold
from infra.run.heartbeat import SILENCE
from infra.run.journal import Event, Kind, Outcome, read
from infra.run.plan import Policy
from infra.run.state import RunState
from infra.run.stop_reasons import stop_event_data
from infra.run.workload import (
    HostNotTrusted,
    HostUnfit,
    HostUnreachable,
    JobPhase,
    JobView,
    Workload,
)
from trainer.text import duration, inexact

BOOT_LONG_S = Policy().boot_wait_s
"""A machine that nobody could sign in to for longer than this is not just starting."""

EXAMPLES = {
    "qft status my-run": "step, time left, cost",
    "qft status --json": "for scripts",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(run: Run = "", *, as_json: Json = False) -> None:
    """Show where a run is and what it costs."""
    found = status(run)
    if as_json:
        print_json(found.to_json())
    else:
        print_data(columns(found.lines()))


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Everything that `qft status` shows."""

    name: str
    state: RunState
    receipt: Receipt
    driven: bool
    """Whether a `qft` drives the run at this moment."""
    look: Look
    now_s: float
    usd: float
    usd_per_h_now: float
    nodes: tuple[NodeStatus, ...] = ()
    """Each machine, where the run has several; `machine` and `job` are of the one that leads."""
    corrected: Corrected | None = None
    """The planned hours and those expected now; None of a run from before plans were kept."""

    @property
    def machine(self) -> Observation | None:
        """The machine as its provider tells it; None if that could not be asked."""
        return self.look.machine

    @property
    def job(self) -> JobView | None:
        """The trainer as it is now; None if there is none, or it could not be seen."""
        return self.look.job

    @property
    def summary(self) -> str:
        """Return the state of the run in one word or two."""
        if self.state.fetched and self.state.deleted:
            return "done"
        if self.job is not None and self.job.phase is JobPhase.RUNNING:
            return self.job.heartbeat.phase or "starting"
        if self.state.fetched:
            return "fetched"
        if self.state.trained:
            return "trained"
        if self.state.ending is not None and self.state.ending.outcome is not Outcome.DONE:
            return "stopped"
        if self.machine is not None:
            return f"machine {self.power}"
        return "not started" if not self.state.generation else "no machine"

    @property
    def power(self) -> str:
        """Return the machine's power; one that runs and has let nobody sign in yet is starting."""
        lead = self.lead
        return power_text(lead, self.look, now_s=self.now_s, boot_long_s=BOOT_LONG_S)

    @property
    def lead(self) -> RunState:
        """The state of the machine that was looked at: of several, the one that leads."""
        found = (one.state for one in self.nodes if one.look is self.look)
        return next(found, self.state)

    @property
    def safeguards(self) -> list[str]:
        """What ends the bill without us; of several machines, each with its number."""
        return self._of_each_up(lambda state: state.safeguards)

    @property
    def safeguards_missing(self) -> list[str]:
        """What could not be set; of several machines, each with its number."""
        return self._of_each_up(lambda state: state.safeguards_missing)

    def _of_each_up(self, lines: Callable[[RunState], Sequence[str]]) -> list[str]:
        """Return lines of each machine that bills, with its number where there are several."""
        if not self.nodes:
            return list(lines(self.state)) if self.state.up else []
        up = [one for one in self.nodes if one.state.up]
        return [f"node {one.node}: {line}" for one in up for line in lines(one.state)]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        state = self.state
        return {
            "run": self.name,
            "run_id": state.run_id,
            "summary": self.summary,
            "driven": self.driven,
            "step": self.job.step if self.job else state.step,
            "steps": self.job.steps if self.job else state.steps,
            "checkpoint_home_step": state.home_step,
            "evictions": state.evictions,
            "trained": state.trained,
            "fetched": state.fetched or None,
            "machine": _machine_json(self),
            "trainer": self.job.heartbeat.to_json() if self.job else None,
            "job": str(self.job.phase) if self.job else None,
            "switches": self.safeguards,
            "switches_missing": self.safeguards_missing,
            "usd": round(self.usd, 6),
            "usd_per_h_now": self.usd_per_h_now,
            "planned_hours": self.corrected.planned.to_json() if self.corrected else None,
            "expected_hours": self.corrected.expected_h if self.corrected else None,
            "hours_left": self.corrected.left_h if self.corrected else None,
            "before": asdict(self.receipt.before) if self.receipt.before else None,
            "after": asdict(self.receipt.after) if self.receipt.after else None,
            "simulated": self.receipt.simulated,
            **self.receipt.moves_json(),
            **({"nodes": [one.to_json() for one in self.nodes]} if self.nodes else {}),
            "ending": {"code": exit_of(state.ending.outcome), "reason": state.ending.reason}
            if state.ending
            else None,
            "trouble": self.look.trouble or None,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return the rows to print: a word and its fact."""
        state, job = self.state, self.job
        step, steps = (job.step, job.steps) if job else (state.step, state.steps)
        rows = [("run", f"{self.name}: {self.summary}")]
        if steps:
            # Once the adapter is home, what was kept until then says nothing about its safety.
            kept = "" if state.fetched else f", checkpoint at home: step {state.home_step}"
            rows.append(("step", f"{step}/{steps}{kept}"))
        eta_s = job.heartbeat.eta_s if job and step < steps else None
        left = _left_text(self.corrected, eta_s)
        if left and state.ending is None:
            rows.append(("time left", left))
        if self.corrected is not None:
            rows.append(("hours", self.corrected.line))
        rows += [(f"node {one.node}", one.line) for one in self.nodes]
        if state.vm is not None and not self.nodes:
            own = state.vm.provider == "ssh"
            rows.append(("machine", f"{self._place(state.vm)}, {self.power}"))
            if self.machine and self.power != str(self.machine.power):
                age = duration(max(0.0, self.now_s - state.vm_started_s))
                bills = "" if own else "; it bills"
                rows.append(("sign-in", f"none yet, {age} after it was started{bills}"))
        source = job.heartbeat if job is not None else self.receipt
        if not source.exact:
            rows.append(("exactness", inexact(source.inexact_from)))
        if self.receipt.cards:
            rows.append(("cards", f"{', then '.join(self.receipt.cards)}: {NOT_EXACT}"))
        if len(self.receipt.machines) > 1:
            rows.append(("on", ", then ".join(self.receipt.machines)))
        rows.append(("evictions", str(state.evictions)))
        rows += [("ends the bill", safeguard) for safeguard in self.safeguards]
        rows += [("does not", safeguard) for safeguard in self.safeguards_missing]
        mark = " (simulated)" if self.receipt.simulated else ""
        money = f"${self.usd:.4f} so far, ${self.usd_per_h_now:.4f}/h now{mark}"
        rows.append(("cost", "nothing: your own machine" if self.receipt.own else money))
        rows += [("of that", one.line) for one in self.receipt.providers]
        rows += score_lines(self.receipt.before, self.receipt.after)
        if state.ending is not None and state.ending.outcome is not Outcome.DONE:
            rows.append(("stopped", state.ending.reason))
        if state.fetched:
            rows.append(("results", state.fetched))
        if self.look.trouble and not self.nodes:
            rows.append(("trouble", self.look.trouble))
        if self.driven:
            rows.append(("driven", "by another `qft` right now"))
        elif not (state.fetched and state.deleted):
            rows.append(("driven", f"by nobody; `qft run {self.name}` goes on"))
        return rows

    def _place(self, vm: Vm) -> str:
        """Describe a machine: its size, its cards where it has several, and where it is."""
        cards = self.state.offer.cards if self.state.offer is not None else ""
        if vm.provider == "ssh":
            return f"your own, {vm.id}" + (f" with {cards}" if cards else "")
        place = f"{vm.size} ({cards})" if cards else vm.size
        at = f" at {vm.provider}" if self.receipt.providers else ""
        return f"{place} in {vm.region}{at}"


def _left_text(corrected: Corrected | None, eta_s: float | None) -> str:
    """Describe the time left: of the whole job by its plan, and of the training by the trainer."""
    training = "" if eta_s is None else duration(eta_s)
    if corrected is None or not corrected.left_h:
        return training
    left = duration(corrected.left_h * 3600)
    return f"{left}, {training} of it training" if training else left


def status(wanted: str) -> RunStatus:
    """Read the journal of a run, then observe its machine, then its trainer."""
    home = qft_home(environment())
    folder = pick_run(home, wanted, cwd=Path.cwd())
    saved = read_saved_run(folder)
    events = read(folder.journal)
    state = fold(events)
    looks = [_look(home, folder, saved, one) for one in each_node(state)]
    look = looks[leader(state)]
    now_s = time.time()
    seen = [_as_seen(one, look.machine) for one, look in zip(each_node(state), looks, strict=True)]
    state = with_nodes(state, seen) if state.nodes else seen[0]
    used = bill(state, now_s)
    planned = read_planned(folder)
    return RunStatus(
        name=folder.name,
        state=state,
        receipt=make_receipt(folder, saved.out, simulated=saved.simulated),
        driven=is_locked(folder),
        look=look,
        nodes=node_statuses(seen, looks, now_s=now_s, boot_long_s=BOOT_LONG_S)
        if state.nodes
        else (),
        now_s=now_s,
        usd=used.usd,
        usd_per_h_now=used.usd_per_h_now,
        corrected=corrected_hours(
            planned.hours if planned else {},
            events,
            now_s=now_s,
            heartbeat=look.job.heartbeat if look.job else SILENCE,
        ),
    )


def _as_seen(state: RunState, machine: Observation | None) -> RunState:
    """Return the state as a driver would fold it after this observation of a stopped machine."""
    if machine is None or not state.up or machine.power.bills_compute:
        return state
    data = stop_event_data(state, machine, machine.stop_reason or StopReason.UNKNOWN)
    return apply(state, Event(number=0, at_s=time.time(), kind=Kind.STOP_SEEN, data=data))


def _look(home: Path, folder: RunFolder, saved: SavedRun, state: RunState) -> Look:
    """Observe a machine and its trainer, or find out why they cannot be observed."""
    look = Look(machine=None, job=None, trouble="", signed_in=state.prepared)
    if state.vm is None:
        return look
    try:
        provider = factory.make_provider(saved.vm, home)
        machine = provider.observe(state.vm)
    except ProviderError as error:
        return replace(look, trouble=str(error))
    look = replace(look, machine=machine)
    if machine.power is not PowerState.RUNNING or not state.up:
        return look
    if not (machine.host or state.vm.host):
        return look
    workload = _watch_only(home, folder, state.run_id, provider)
    try:
        if state.prepared:
            return replace(look, job=workload.job_status(state.vm), signed_in=True)
        workload.connect(state.vm if state.vm.host else replace(state.vm, host=machine.host))
        return replace(look, signed_in=True)
    except (HostUnreachable, HostNotTrusted, HostUnfit) as error:
        return replace(look, trouble=str(error))
    finally:
        workload.disconnect()


def _watch_only(home: Path, folder: RunFolder, run_id: str, provider: Provider) -> Workload:
    """Build what talks to the trainer of a run and changes nothing there."""
    # Half of this program, imported only where there is a machine to talk to.
    from commands.runs.find_config import reopen
    from commands.runs.request import RunRequest
    from commands.runs.session import build_workload
    from commands.ui.console import PlainConsole

    console = PlainConsole(sys.stderr, simulated=False, clock=time.monotonic)
    request = RunRequest(loaded=reopen(folder), home=home, console=console)
    return build_workload(request, run_id, provider, watch_only=True)


def _machine_json(status: RunStatus) -> dict[str, Any] | None:
    vm = status.lead.vm
    if vm is None:
        return None
    return {
        "provider": vm.provider,
        "id": vm.id,
        "region": vm.region,
        "zone": vm.zone or None,
        "size": vm.size,
        **({"gpu_count": count} if (count := card_count(vm)) > 1 else {}),
        "host": vm.host or None,
        "port": vm.port,
        "power": status.power if status.machine else None,
        "signed_in": status.look.signed_in,
        "generation": vm.generation,
    }
