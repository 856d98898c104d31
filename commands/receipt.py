"""What a run cost and what it was good for, added up from its journal and its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from commands.home import RunFolder
from infra.cost import bill
from infra.durable import read_json
from infra.journal import Event, Kind, read
from infra.state import fold
from trainer.words import duration


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric with its bootstrap interval, as the trainer measured it."""

    metric: str
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n})"


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
    exact: bool
    before: Score | None
    after: Score | None
    adapter: str
    own: bool = False
    """Whether it was the user's own machine, which costs nothing here."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """What to print: a word and its fact."""
        mark = " at the listed spot price; simulated, nobody is charged" if self.simulated else ""
        redone = f"{self.redone_steps} steps redone"
        exact = "bit for bit" if self.exact else "exact state, but not bit for bit (see status)"
        rows = [
            ("wall time", duration(self.wall_s)),
            ("machine time", duration(self.machine_h * 3600)),
            ("cost", "nothing: your own machine" if self.own else f"${self.usd:.4f}{mark}"),
            (
                "evictions",
                f"{self.evictions} survived, {redone}, {exact}"
                if self.evictions or self.redone_steps or not self.exact
                else "none",
            ),
            ("steps", str(self.steps)),
        ]
        if self.before:
            rows.append(("before", str(self.before)))
        if self.after:
            rows.append(("after", str(self.after)))
        if self.adapter:
            rows.append(("adapter", self.adapter))
        still = f"${self.usd_per_h_now:.4f}/h" if self.usd_per_h_now else "nothing"
        return rows if self.own else [*rows, ("still billing", still)]


def _is_own(event: Event) -> bool:
    """Whether an event tells of a machine that was taken into use, and not rented."""
    vm = event.data.get("vm")
    return isinstance(vm, dict) and vm.get("provider") == "ssh"


def make_receipt(folder: RunFolder, out: Path, *, simulated: bool) -> Receipt:
    """Add up a run as its journal and its out folder tell it now."""
    events = read(folder.journal)
    state = fold(events)
    last_s = events[-1].at_s if events else 0.0
    used = bill(state, last_s)
    status = _table(out / "status.json")
    adapter = out / "adapter"
    return Receipt(
        run_id=state.run_id,
        # A job goes on without any `qft`, too: what the machine worked has passed on the wall.
        wall_s=max(_worked_s(events), used.compute_h * 3600),
        machine_h=used.compute_h,
        usd=used.usd,
        simulated=simulated,
        own=any(_is_own(event) for event in events),
        usd_per_h_now=used.usd_per_h_now,
        evictions=state.evictions,
        resumes=_count(status.get("resumes")),
        steps=state.steps,
        redone_steps=_count(status.get("redone_steps")),
        exact=status.get("exact") is not False,
        before=read_score(out / "eval-before.json"),
        after=read_score(out / "eval-after.json"),
        adapter=str(adapter) if state.fetched and adapter.is_dir() else "",
    )


def read_score(path: Path) -> Score | None:
    """The score in an evaluation's JSON; None if there is none or it is not one."""
    table = _table(path)
    try:
        return Score(
            metric=str(table["metric"]),
            value=float(table["value"]),
            low=float(table["low"]),
            high=float(table["high"]),
            n=int(table["n"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _worked_s(events: list[Event]) -> float:
    """Seconds from the first event to the last, without the nights between an ending and a resume.

    A clock that jumped back counts as nothing.
    """
    total = 0.0
    for before, after in pairwise(events):
        idle = before.kind is Kind.RUN_ENDED or after.kind is Kind.RUN_RESUMED
        total += 0.0 if idle else max(0.0, after.at_s - before.at_s)
    return total


def _table(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError:  # it came from the machine; a receipt must not fail on it
        return {}
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
