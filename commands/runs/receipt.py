"""What a run cost and what it was good for, added up from its journal and its results."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from commands.runs.home import RunFolder
from commands.runs.measured import read_measured, read_result
from commands.runs.planning.actual import actual_of
from commands.runs.planning.comparison import Comparison
from commands.runs.planning.planned import read_planned
from commands.runs.score import Score, read_score, score_lines
from commands.ui.nodes import each_node
from infra.offer import Offer
from infra.run.budget import bill, bills_by_provider
from infra.run.cards import NOT_EXACT
from infra.run.fold import apply, fold
from infra.run.heartbeat import SILENCE, Heartbeat, read_heartbeat
from infra.run.journal import RELEASE_INTENTS, Event, Kind, read
from infra.run.nodes import node_count, node_of
from infra.run.state import RunState
from infra.untrusted import table, text
from trainer.rundir.layout import RECEIPT
from trainer.saving.manifest import directory_name, steps_present
from trainer.text import duration, inexact

DOWN_REASON = "qft down"
"""The reason that `commands.down` writes into the journal of a run that it releases."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is told at the end of a run; seconds, hours and dollars."""

    run_id: str
    wall_s: float
    machine_h: float
    usd: float
    simulated: bool
    usd_per_h_now: float
    evictions: int
    resumes: int
    steps: int
    redone_steps: int
    """Also those that went with a machine, of which the trainer on the next one knows nothing."""
    downs: int
    """Times that `qft down` ended a training, which was then gone on with."""
    exact: bool
    before: Score | None
    after: Score | None
    adapter: str
    inexact_from: int | None = None
    """First step from which bits may differ from those of an undisturbed run."""
    day: str | None = None
    """The day that a chat template saw, in UTC: that on which the run began, unless it says."""
    own: bool = False
    """Whether it was the user's own machine, which costs nothing here."""
    parent: str = ""
    """The adapter that the training went on from, by `method.from`; empty if it began anew."""
    comparison: Comparison | None = None
    """What was planned against what it took; None for a run that began without a plan."""
    providers: tuple[ProviderBill, ...] = ()
    """What each provider billed, where there was more than one; they add up to the whole."""
    cards: tuple[str, ...] = ()
    """The GPUs that it was trained on, where it moved from one to another."""
    machines: tuple[str, ...] = ()
    """The cards of its machines, one after the other, where one had several."""
    nodes: tuple[NodeBill, ...] = ()
    """What each machine billed, where the run had several at a time; they add up to the whole."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; those that not every run has are there only if there is one."""
        values = asdict(replace(self, comparison=None))
        del values["comparison"]
        del values["providers"], values["cards"], values["machines"], values["nodes"]
        if not self.parent:
            del values["parent"]
        return values | self.moves_json() | (self.comparison.to_json() if self.comparison else {})

    def moves_json(self) -> dict[str, Any]:
        """Plain values of the providers and cards between which it moved; empty if it did not."""
        found = {
            "providers": [asdict(one) for one in self.providers],
            "cards": [*self.cards],
            "machines": [*self.machines],
            "nodes": [asdict(one) for one in self.nodes],
        }
        return {key: value for key, value in found.items() if value}

    def lines(self) -> list[tuple[str, str]]:
        """What to print: a word and its fact."""
        mark = " at the listed spot price; simulated, nobody is charged" if self.simulated else ""
        exact = "bit for bit"
        if not self.exact:
            exact = f"exact state, but {inexact(self.inexact_from)} (`qft logs` says why)"
        steps = "1 step" if self.redone_steps == 1 else f"{self.redone_steps} steps"
        redone = f"{steps} redone, {exact}"
        again = f"{steps}, {exact}"
        survived = f"{self.evictions} survived" if self.evictions else "none"
        apart = self.downs > 0 or not self.evictions
        # Where they stand apart, the steps redone are not, or not all, an eviction's.
        show_redone = self.redone_steps > 0 or not self.exact
        rows = [
            ("wall time", duration(self.wall_s)),
            ("machine time", duration(self.machine_h * 3600)),
            ("cost", "nothing: your own machine" if self.own else f"${self.usd:.4f}{mark}"),
            *[("of that", one.line) for one in self.providers],
            *[(f"node {one.node}", one.line) for one in self.nodes],
            ("evictions", survived if apart else f"{survived}, {redone}"),
            *[("stopped", f"{_times(self.downs)} by `qft down`")] * (self.downs > 0),
            *[("redone", again)] * (apart and show_redone),
            ("steps", str(self.steps)),
        ]
        if self.cards:
            rows.append(("cards", f"{', then '.join(self.cards)}: {NOT_EXACT}"))
        if self.machines:
            rows.append(("on", ", then ".join(self.machines)))
        if self.comparison:
            rows += self.comparison.lines(simulated=self.simulated)
        rows += score_lines(self.before, self.after)
        if self.parent:
            rows.append(("went on from", self.parent))
        if self.adapter:
            rows.append(("adapter", self.adapter))
        still = f"${self.usd_per_h_now:.4f}/h" if self.usd_per_h_now else "nothing"
        return rows if self.own else [*rows, ("still billing", still)]


@dataclass(frozen=True, kw_only=True)
class ProviderBill:
    """What one of several providers billed."""

    provider: str
    machine_h: float
    usd: float

    @property
    def line(self) -> str:
        """What to print of it."""
        return f"${self.usd:.4f} at {self.provider}, {duration(self.machine_h * 3600)} of a machine"


@dataclass(frozen=True, kw_only=True)
class NodeBill:
    """What one of several machines of a run billed."""

    node: int
    place: str
    """Where it was last asked for; empty if it never was."""
    size: str
    machine_h: float
    usd: float
    evictions: int

    @property
    def line(self) -> str:
        """What to print of it."""
        where = f"{self.size} in {self.place}" if self.place else "never rented"
        plural = "s" * (self.evictions != 1)
        evicted = f", {self.evictions} eviction{plural}" if self.evictions else ""
        return f"{where}, {duration(self.machine_h * 3600)}, ${self.usd:.4f}{evicted}"


def _node_bills(state: RunState, at_s: float) -> tuple[NodeBill, ...]:
    """Return what each of several machines billed; empty where there was one."""
    bills = [bill(one, at_s) for one in state.nodes]
    return tuple(
        NodeBill(
            node=node,
            place=one.offer.place if one.offer else "",
            size=one.offer.size if one.offer else "",
            machine_h=used.compute_h,
            usd=used.usd,
            evictions=one.evictions,
        )
        for node, (one, used) in enumerate(zip(state.nodes, bills, strict=True))
    )


def _longest_h(state: RunState, at_s: float) -> float:
    """Return for how many hours a machine was there: of several, the one that was longest."""
    return max(bill(one, at_s).compute_h for one in each_node(state))


def _provider_bills(state: RunState, at_s: float) -> tuple[ProviderBill, ...]:
    """Return what each provider billed; empty where there was one at most."""
    bills = bills_by_provider(state, at_s)
    if len(bills) < 2:
        return ()
    return tuple(
        ProviderBill(provider=name, machine_h=one.compute_h, usd=one.usd)
        for name, one in bills.items()
    )


def _machines(events: list[Event]) -> tuple[str, ...]:
    """Return the cards of each machine that was made, each change once; empty if all had one."""
    made, offers = [], dict[int, Offer]()
    for event in events:
        if event.kind is Kind.CREATE_INTENDED:
            offers[node_of(event)] = Offer.from_json(event.data["offer"])
        elif event.kind is Kind.CREATE_ACCEPTED and node_of(event) in offers:
            made.append(offers.pop(node_of(event)))
    if not any(one.cards for one in made):
        return ()
    names = [one.cards or one.gpu or "one card" for one in made]
    return tuple(name for name, _ in groupby(names))


def _is_own(event: Event) -> bool:
    """Whether an event tells of a machine that was taken into use, and not rented."""
    vm = event.data.get("vm")
    return isinstance(vm, dict) and vm.get("provider") == "ssh"


def _day(adapter: Path) -> str | None:
    """The day that the trainer noted beside the adapter; None if there is none yet."""
    try:
        return date.fromisoformat(str(read_result(adapter / RECEIPT).get("day"))).isoformat()
    except ValueError:
        return None


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def make_receipt(folder: RunFolder, out: Path, *, simulated: bool) -> Receipt:
    """Add up a run as its journal and its out folder tell it now."""
    events = read(folder.journal)
    state = fold(events)
    last_s = events[-1].at_s if events else 0.0
    used = bill(state, last_s)
    status = last_status(folder, out)
    adapter = out / "adapter"
    downs, lost = _interrupted(events)
    moved_card = len(set(state.cards)) > 1
    return Receipt(
        run_id=state.run_id,
        # A job goes on without any `qft`, too: what the machine worked has passed on the wall.
        wall_s=max(_worked_s(events), _longest_h(state, last_s) * 3600),
        machine_h=used.compute_h,
        usd=used.usd,
        simulated=simulated,
        day=_day(adapter),
        own=any(_is_own(event) for event in events),
        usd_per_h_now=used.usd_per_h_now,
        evictions=state.evictions,
        resumes=status.resumes,
        steps=state.steps,
        redone_steps=status.redone_steps + lost,
        downs=downs,
        exact=status.exact and state.exact and not moved_card,
        providers=_provider_bills(state, last_s),
        cards=state.cards if moved_card else (),
        machines=_machines(events),
        nodes=_node_bills(state, last_s),
        inexact_from=status.inexact_from or state.inexact_from,
        before=read_score(out / "eval-before.json"),
        after=read_score(out / "eval-after.json"),
        adapter=str(adapter) if state.fetched and adapter.is_dir() else "",
        parent=_parent(folder),
        comparison=compare(folder, events, out, redone_steps=status.redone_steps + lost),
    )


def compare(
    folder: RunFolder, events: list[Event], out: Path, *, redone_steps: int
) -> Comparison | None:
    """Hold what a run took until its last event against its plan; None if it has none."""
    planned = read_planned(folder)
    if planned is None:
        return None
    measured = read_measured(out, redone_steps=redone_steps)
    return Comparison(planned=planned, actual=actual_of(events, measured))


def _parent(folder: RunFolder) -> str:
    """The adapter that the run goes on from, as its config names it; empty if there is none."""
    method = table(table(read_result(folder.config).get("config")).get("method"))
    return text(method.get("from")) or ""


def _worked_s(events: list[Event]) -> float:
    """Seconds from the first event to the last, without the nights between an ending and a resume.

    A clock that jumped back counts as nothing.
    """
    total = 0.0
    for before, after in pairwise(events):
        idle = before.kind is Kind.RUN_ENDED or after.kind is Kind.RUN_RESUMED
        total += 0.0 if idle else max(0.0, after.at_s - before.at_s)
    return total


def _interrupted(events: list[Event]) -> tuple[int, int]:
    """How often `qft down` ended a training, and how many steps went with machines.

    The trainer on a next machine begins at the checkpoint that was at home, and cannot know how
    far the one before had come.
    """
    if (count := node_count(events)) > 1:
        return _interrupted_group(events, count)
    state = RunState()
    downs = lost = ahead = 0
    for event in events:
        ours = event.kind in RELEASE_INTENTS and event.data.get("reason") == DOWN_REASON
        downs += ours and state.up and state.launched and state.pending not in RELEASE_INTENTS
        if event.kind is Kind.DELETED:
            ahead = 0 if state.fetched else max(ahead, state.disk_step)
        elif event.kind is Kind.CREATE_ACCEPTED:
            lost += max(0, ahead - state.home_step)
            ahead = 0
        state = apply(state, event)
    return downs, lost


def _interrupted_group(events: list[Event], count: int) -> tuple[int, int]:
    """How often `qft down` ended a training of several machines, and how many steps went with them.

    A step is lost where neither a machine that is left nor the copy at home has it.
    """
    states = [RunState() for _ in range(count)]
    downs = lost = ahead = 0
    down = False
    for event in events:
        node = node_of(event)
        ours = event.kind in RELEASE_INTENTS and event.data.get("reason") == DOWN_REASON
        if ours and not down and any(one.up and one.launched for one in states):
            downs, down = downs + 1, True  # the other machines follow
        elif event.kind is Kind.LAUNCHED:
            down = False
        if event.kind is Kind.DELETED:
            over = any(one.fetched for one in states)
            ahead = 0 if over else max(ahead, states[node].disk_step)
        elif event.kind is Kind.LAUNCH_INTENDED:
            lost += max(0, ahead - max(max(one.disk_step, one.home_step) for one in states))
            ahead = 0
        states[node] = apply(states[node], event)
    return downs, lost


def last_status(folder: RunFolder, out: Path) -> Heartbeat:
    """The trainer's status; until that is fetched, the counters of the newest checkpoint here."""
    with contextlib.suppress(OSError):  # not fetched yet
        return read_heartbeat((out / "status.json").read_bytes())
    for step in steps_present(folder.checkpoints):
        state = folder.checkpoints / directory_name(step) / "state.json"
        if counters := table(read_result(state).get("counters")):
            exact = counters.get("inexact_from") is None
            return read_heartbeat(json.dumps({**counters, "exact": exact}))
    return SILENCE
