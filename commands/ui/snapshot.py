"""What is shown of a run while it goes on, in words and figures; pure, so all consoles agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

from commands.ui.nodes import leader, node_words
from commands.ui.output import clean
from infra.run import actions as act
from infra.run.cards import move_note
from infra.run.context import TurnReport
from infra.run.heartbeat import SILENCE
from infra.run.state import RunState
from infra.run.workload import JobPhase
from trainer.rundir.status import Phase
from trainer.text import duration, inexact


@dataclass(frozen=True, kw_only=True)
class RunSnapshot:
    """What is shown of a run at one moment."""

    phase: str
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    place: str
    price_usd_per_h: float
    spent_usd: float
    simulated: bool
    evictions: int
    home_step: int
    note: str
    inexact: str = ""
    """From which step bits may differ; empty if from none."""
    own: bool = False
    """Whether the machine is the user's own, so that there is no price."""
    node: int | None = None
    """Which of several machines it is about; None where the run has one."""
    leads: bool = True
    """Whether that machine leads: how far the run is, is told with its phases."""
    nodes: tuple[str, ...] = ()
    """What each of several machines does, in a few words."""

    @property
    def milestone(self) -> str:
        """The phase, with the machine that it is of where there are several."""
        return self.phase if self.node is None else f"node {self.node}: {self.phase}"

    @property
    def line(self) -> str:
        """The moment in one line of plain text."""
        if not self.leads:
            return " · ".join(filter(None, [self.milestone, self.money]))
        # Scoring takes minutes; how far it is stands in what the trainer says of it.
        scoring = self.phase == Phase.EVALUATING and bool(self.note)
        parts = [replace(self, phase=self.note).milestone if scoring else self.milestone]
        if self.steps:
            parts.append(f"step {self.step}/{self.steps}")
        if self.eta_s is not None and self.step < self.steps:
            parts.append(f"{duration(self.eta_s)} left")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.tokens_per_s:
            parts.append(f"{self.tokens_per_s:.0f} tokens/s")
        parts += [self.inexact, self.money, *self.survived]
        return " · ".join(part for part in parts if part)

    @property
    def survived(self) -> list[str]:
        """How many evictions there were; nothing where there was none."""
        plural = "s" * (self.evictions > 1)
        return [f"{self.evictions} eviction{plural} survived"] if self.evictions else []

    @property
    def money(self) -> str:
        """Price and spending; dollars of a rehearsal are marked. Empty for an own machine."""
        if self.own:
            return ""
        mark = " (simulated)" if self.simulated else ""
        return f"${self.price_usd_per_h:.3f}/h, ${self.spent_usd:.4f} so far{mark}"


def take_snapshot(report: TurnReport, *, simulated: bool, own: bool = False) -> RunSnapshot:
    """Describe what the supervisor reported."""
    state, job = report.state, report.seen.job
    heartbeat = job.heartbeat if job else SILENCE
    several = len(state.nodes) > 1
    node = report.node if several else None
    training = _own_state(report).launched and job is not None and not state.trained
    return RunSnapshot(
        phase=clean(_phase(report, own=own)),
        step=job.step if job else state.step,
        steps=job.steps if job else state.steps,
        loss=heartbeat.loss if training else None,
        tokens_per_s=heartbeat.tokens_per_s if training else None,
        eta_s=heartbeat.eta_s if training else None,
        place=f"{state.offer.machine} in {state.offer.place}" if state.offer else "",
        price_usd_per_h=report.bill.usd_per_h_now,
        spent_usd=report.bill.usd,
        simulated=simulated,
        evictions=state.evictions,
        home_step=state.home_step,
        note=clean(heartbeat.message[:200]),
        inexact="" if heartbeat.exact else inexact(heartbeat.inexact_from),
        own=own,
        node=node,
        leads=node is None or node == leader(state),
        nodes=tuple(
            f"node {number}: {node_words(state, number)}" for number in range(len(state.nodes))
        )
        if several
        else (),
    )


def _phase(report: TurnReport, *, own: bool) -> str:
    job = report.seen.job
    waits_for_others = (
        report.node is not None and job is not None and job.phase is not JobPhase.RUNNING
    )
    if isinstance(report.action, act.Wait) and job is not None and not waits_for_others:
        return job.heartbeat.phase or "starting the trainer"
    text = (_own_machine_text(report.action) if own else "") or _action_text(report.action)
    if isinstance(report.action, act.Create) and (
        note := move_note(_own_state(report), report.action.offer)
    ):
        return f"{text}, {note}"
    return text


def _own_state(report: TurnReport) -> RunState:
    """Return the state of the machine that a turn is of."""
    several = len(report.state.nodes) > 1 and report.node is not None
    return report.state.nodes[report.node or 0] if several else report.state


def _own_machine_text(action: act.Action) -> str:
    """Describe an action on the user's own machine; empty if it is described as elsewhere."""
    match action:
        case act.FindOffers():
            return "looking at your machine"
        case act.Create():
            return "taking your machine into use"
        case act.Start():
            return "waiting for your machine"
        case act.RecordStop(observation=seen):
            return f"your machine does not answer ({clean(seen.detail or 'no reason given')})"
        case act.Deallocate(reason=reason):
            return f"leaving your machine: {reason}"
        case act.Delete(reason=reason):
            return f"leaving your machine as it was: {reason}"
        case _:
            return ""


def _action_text(action: act.Action) -> str:  # the table of what each act is called
    match action:
        case act.FindOffers():
            return "looking for machines"
        case act.Create(offer=offer):
            return f"renting {offer.machine} in {offer.place} at ${offer.spot_usd_per_h:.3f}/h"
        case act.Start(running_since_s=since_s):
            again = "starting the same machine again"
            return again if since_s is None else "going on with the machine, which runs again"
        case act.RecordStop(observation=seen):
            return f"the machine went down ({seen.stop_reason or 'no reason given'})"
        case act.AbandonBoot(reason=reason):
            return f"giving up on this boot: {reason}"
        case act.ChangeHostKey():
            return "giving the machine a new host key"
        case act.Prepare():
            return "preparing the machine"
        case act.SetSafeguards():
            return "setting what ends the bill without us"
        case act.Launch():
            return "starting the trainer"
        case act.LeaveGroup(reason=reason):
            return f"letting the trainer save and end: {reason}"
        case act.RecordExit(exit_code=code):
            return f"the trainer ended ({'killed' if code is None else f'exit {code}'})"
        case act.StopHung(reason=reason):
            return f"stopping a hung trainer: {reason}"
        case act.RehearseEviction(step=step):
            return f"asking the cloud for an eviction at step {step}"
        case act.RecordTrained():
            return "training complete"
        case act.Fetch():
            return "fetching the adapter"
        case act.Deallocate(reason=reason) | act.Delete(reason=reason):
            kind = "releasing the machine" if isinstance(action, act.Deallocate) else "removing it"
            return f"{kind}: {reason}"
        case act.Replace(reason=reason):
            return f"moving to another machine: {reason}"
        case act.Wait(reason=reason):
            return reason
        case act.Finish(ending=ending):
            return ending.reason
    raise AssertionError(f"no words for {action}")
