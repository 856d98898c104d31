"""How a run ended: the result that is printed, or the error that stands for its ending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from commands.runs.advice import after_ending
from commands.runs.receipt import Receipt
from commands.runs.request import RunRequest
from commands.ui.errors import ERROR_OF
from commands.ui.nodes import each_node
from infra.run.journal import Outcome
from infra.run.plan import Goal
from infra.run.state import RunEnd, RunState


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A goal that was reached: what `--json` prints."""

    name: str
    goal: Goal
    reason: str
    receipt: Receipt
    missed_rehearsals: int = 0
    """How many of the steps at which run.yaml rehearses an eviction brought none."""
    missed_timed_evictions: int = 0
    """How many of the evictions that run.yaml times did not take place."""

    def lines(self) -> list[tuple[str, str]]:
        """What to print: a word and its fact."""
        missed = "did NOT take place: the training was over before; take"
        rows = [("result", self.reason), *self.receipt.lines()]
        if count := self.missed_rehearsals:
            fact = f"{count} of `vm.rehearse_evictions` {missed} an earlier step, or more steps"
            rows.append(("rehearsal", fact))
        if count := self.missed_timed_evictions:
            fact = f"{count} of `vm.local.evict_after_s` {missed} fewer seconds, or more steps"
            rows.append(("rehearsal", fact))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.name,
            "goal": str(self.goal),
            "result": self.reason,
            **self.receipt.to_json(),
            "rehearsals_missed": self.missed_rehearsals,
            "timed_evictions_missed": self.missed_timed_evictions,
        }


def result_of(request: RunRequest, ending: RunEnd, receipt: Receipt, state: RunState) -> RunResult:
    """Return the result of a run that reached its goal; raise the error of any other ending."""
    name, vm = request.loaded.config.name, request.loaded.config.vm
    if ending.outcome is Outcome.DONE:
        return RunResult(
            name=name,
            goal=request.goal,
            reason=ending.reason,
            receipt=receipt,
            missed_rehearsals=missed_rehearsals(vm.rehearse_evictions, state),
            missed_timed_evictions=missed_timed_evictions(
                vm.local.timed_evictions if vm.provider == "local" else (), state
            ),
        )
    hint = after_ending(name, ending.outcome, receipt, gone=state.deleted)
    raise ERROR_OF[ending.outcome](ending.reason, hint=hint)


def missed_rehearsals(steps: Sequence[int], state: RunState) -> int:
    """Return how many rehearsals a finished training outran: never asked for, or never come."""
    wanted = set(steps)
    happened = min(len(wanted & _rehearsed(state)), state.evictions)
    return len(wanted) - happened if state.trained else 0


def missed_timed_evictions(times_s: Sequence[float], state: RunState) -> int:
    """Return how many timed evictions a finished training outran; rehearsed ones are no such."""
    happened = max(state.evictions - len(_rehearsed(state)), 0)
    return max(len(times_s) - happened, 0) if state.trained else 0


def _rehearsed(state: RunState) -> frozenset[int]:
    """Return the steps at which an eviction of any machine was rehearsed."""
    return frozenset[int]().union(*(one.rehearsed for one in each_node(state)))
