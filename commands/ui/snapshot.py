"""What is shown of a run while it goes on, in words and figures; pure, so all consoles agree."""

from __future__ import annotations

from dataclasses import dataclass

from commands.ui.output import clean
from infra.run import actions as act
from infra.run.cards import move_note
from infra.run.context import TurnReport
from infra.run.heartbeat import SILENCE
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

    @property
    def line(self) -> str:
        """The moment in one line of plain text."""
        # Scoring takes minutes; how far it is stands in what the trainer says of it.
        parts = [self.note if self.phase == Phase.EVALUATING and self.note else self.phase]
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
    training = state.launched and job is not None and not state.trained
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
    )


def _phase(report: TurnReport, *, own: bool) -> str:
    job = report.seen.job
    if isinstance(report.action, act.Wait) and job is not None:
        return job.heartbeat.phase or "starting the trainer"
    text = (_own_machine_text(report.action) if own else "") or _action_text(report.action)
    if isinstance(report.action, act.Create) and (
        note := move_note(report.state, report.action.offer)
    ):
        return f"{text}, {note}"
    return text


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
