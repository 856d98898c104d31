"""`up`, `train`, `fetch` and `run`: one way to a goal, resumable at any point, by anybody once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.runs.attach import follow
from commands.runs.config import LoadedConfig, load
from commands.runs.config_diff import is_changed
from commands.runs.estimate import forecast, forecast_line
from commands.runs.extras import demand, needed_here
from commands.runs.home import (
    RUN_NAME,
    Busy,
    RunFolder,
    environment,
    pick_run,
    qft_home,
    run_folder,
)
from commands.runs.receipt import Receipt, make_receipt
from commands.runs.session import Desk, Session, is_over, opened, reopen
from commands.runs.take_lock import Taker, taker_of
from commands.ui.announcing_console import Aloud
from commands.ui.console import make_console
from commands.ui.errors import TROUBLE_OF, CloudTrouble, Exit, Stopped, Trouble, Usage
from infra.catalog.gpus import resolve_gpu
from infra.durable import write_json
from infra.provider import BadRequest, ProviderError, Rejected, SignedOut
from infra.run.budget import Budget, bill, worst_case_usd
from infra.run.fold import fold
from infra.run.journal import JournalDamaged, Kind, Outcome, read
from infra.run.plan import Goal
from infra.run.state import RunEnd, RunState

HOURS_PER_MONTH = 730.0
"""As the clouds count them."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asked for."""

    goal: Goal
    wanted: str
    """A run.yaml or the name of a known run; empty takes `run.yaml` here."""
    allow_change: tuple[str, ...] = ()
    fresh: bool = False
    plain: bool = False
    attach: bool = False
    """Whether to follow, rather than refuse, when another process drives the run."""


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """How a drive ended well: what `--json` prints."""

    name: str
    goal: Goal
    reason: str
    receipt: Receipt
    missed: int = 0
    """How many of the steps at which run.yaml rehearses an eviction brought none."""
    outrun: int = 0
    """How many of the evictions that run.yaml times did not take place."""

    def lines(self) -> list[tuple[str, str]]:
        """What to print: a word and its fact."""
        said = "did NOT take place: the training was over before; take"
        steps = f"{self.missed} of `vm.rehearse_evictions` {said} an earlier step, or more steps"
        times = f"{self.outrun} of `vm.local.evict_after_s` {said} fewer seconds, or more steps"
        rows = [("rehearsal", steps)] * bool(self.missed)
        rows += [("rehearsal", times)] * bool(self.outrun)
        return [("result", self.reason), *self.receipt.lines(), *rows]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.name,
            "goal": str(self.goal),
            "result": self.reason,
            **self.receipt.to_json(),
            "rehearsals_missed": self.missed,
            "timed_evictions_missed": self.outrun,
        }


class Refused(Trouble):
    """The provider calls a request of ours wrong: our bug, told without a page of Python."""

    exit_code = Exit.BUG


def drive(order: Order) -> Arrived:
    """Bring a run to the goal. Raises a class of `commands.ui.errors` if it cannot get there."""
    home = qft_home(environment())
    loaded = find_config(order.wanted, home)
    name = loaded.config.name
    simulated = loaded.config.vm.provider == "local"
    console = _console(loaded, plain=order.plain)
    desk = Desk(
        loaded=loaded,
        home=home,
        console=console,
        allow_change=order.allow_change,
        fresh=order.fresh,
    )
    if order.goal is not Goal.FETCH:  # what is done already needs nothing to come home
        demand(needed_here(loaded.config), "training on this computer", home)
    _forewarn(console, loaded)
    try:
        while True:
            began = len(read(desk.folder.journal))
            try:
                with opened(desk) as session:
                    return _steer(session, order)
            except Busy:
                if not order.attach:
                    raise
                console.log(f"another `qft` drives `{name}`; following it")
                if is_changed(loaded, desk.folder):
                    warned = "warning: run.yaml or its rows changed since"
                    console.log(f"{warned}; it trains with what it had")
                ending = follow(desk, began=began)
                if ending is not None:
                    receipt = make_receipt(desk.folder, loaded.out, simulated=simulated)
                    state = fold(read(desk.folder.journal))
                    return _arrived(loaded, order.goal, ending, receipt, state)
                console.log("the other `qft` is gone; driving on from here")
    except KeyboardInterrupt:
        console.close()
        taker = taker_of(desk.folder)
        if taker is not None:
            raise _ended_by(taker, desk.folder) from None
        console.log("\n" + _left_behind(desk.folder, order))
        raise
    except ProviderError as error:
        receipt = make_receipt(desk.folder, loaded.out, simulated=simulated)
        # What is wrong with the request itself stays so, however often it is repeated.
        goes_on = "" if isinstance(error, BadRequest) else _goes_on(error, desk.folder, order)
        hint = "; ".join(part for part in (error.hint, goes_on, _bills(name, receipt)) if part)
        is_ours = isinstance(error, BadRequest) and not isinstance(error, Rejected)
        raise (Refused if is_ours else CloudTrouble)(str(error), hint=hint) from error
    finally:
        console.close()


def _forewarn(console: Aloud, loaded: LoadedConfig) -> None:
    """Say what the user should know before anything is rented: which card, and will it fit."""
    vm = loaded.config.vm
    if note := resolve_gpu(vm.gpu).note if vm.gpu and vm.provider != "ssh" else "":
        console.log(f"note: {note}")
    told = forecast(loaded) if vm.provider != "ssh" else None  # which card it has, set-up sees
    if told is not None and not told["fits"] and vm.provider != "local":
        console.log(f"warning: {forecast_line(told)}")


def _left_behind(folder: RunFolder, order: Order) -> str:
    """What goes on after Ctrl-C, what it costs, and which commands take it up or end it.

    The command is the one that was typed: `train` in the place of `run` would leave a machine.
    """
    try:
        state = fold(read(folder.journal))
    except JournalDamaged as error:
        return f"interrupted; {error}"
    again = f"`qft {order.goal} {folder.name}`"
    if _is_own(state):
        goes_on = state.launched and state.up and not state.trained
        what = "the job goes on without this terminal" if goes_on else "interrupted"
        leaves = f"`qft down {folder.name}` ends the job there" if state.vm is not None else ""
        return "; ".join(part for part in (what, f"{again} goes on", leaves) if part)
    if state.vm is None and state.pending is None:
        return f"interrupted; nothing is rented; {again} goes on"
    price = bill(state, time.time()).usd_per_h_now
    if state.pending is Kind.DELETE_INTENDED:
        ends = f"`qft down --delete {folder.name}` waits for the end of it and proves it"
        return f"interrupted while everything was being removed (${price:.3f}/h); {ends}"
    ends = f"`qft down {folder.name}` ends the billing (${price:.3f}/h)"
    if state.launched and state.up and not state.trained:
        return f"the job goes on without this terminal; {again} follows it again; {ends}"
    return f"interrupted; the machine stays; {again} goes on; {ends}"


def _console(loaded: LoadedConfig, *, plain: bool) -> Aloud:
    """What tells people of the run, in the words that fit its kind of machine."""
    simulated, own = loaded.config.vm.provider == "local", _uses_own(loaded)
    inner = make_console(simulated=simulated, plain=plain, clock=time.monotonic, own=own)
    return Aloud(inner, most=_most(loaded))


def _uses_own(loaded: LoadedConfig) -> bool:
    """Whether run.yaml names a machine of the user's own."""
    return loaded.config.vm.provider == "ssh"


def _is_own(state: RunState) -> bool:
    """Whether the run is on a machine of the user's own, which bills nothing."""
    return state.vm is not None and state.vm.provider == "ssh"


def _ended_by(taker: Taker, folder: RunFolder) -> Stopped:
    """What is told where another `qft` took the run away: by whom, and what is left at that moment.

    The release is that one's business, and still under way.
    """
    state = fold(read(folder.journal))
    step = max(state.step, state.disk_step)
    left = [f"step {step} reached, checkpoint at home: step {state.home_step}"] if step else []
    if state.vm is not None:
        price = bill(state, time.time()).usd_per_h_now
        left.append(f"{state.vm.size} in {state.vm.region} bills ${price:.3f}/h until it is gone")
    return Stopped(
        f"another `qft` ended the run `{folder.name}`: {taker}",
        problems=left,
        hint=f"`qft status {folder.name}` shows what is left, `qft run {folder.name}` goes on",
    )


def _goes_on(error: ProviderError, folder: RunFolder, order: Order) -> str:
    """What a sign-in that ran out leaves going, and what takes it up; empty for other trouble."""
    state = fold(read(folder.journal))
    if not isinstance(error, SignedOut) or not state.up or state.vm is None:
        return ""
    return (
        f"the machine goes on without this terminal, and `qft {order.goal} {folder.name}` with it"
    )


def _most(loaded: LoadedConfig) -> str:
    """The most that the budget lets the run cost; empty if it has no limit."""
    table = loaded.config.budget
    budget = Budget(usd=table.usd, hours=table.hours, evictions=table.evictions)
    usd = worst_case_usd(budget, loaded.config.vm.max_price)
    return "" if usd is None else f"${usd:.2f} (budget)"


def find_config(wanted: str, home: Path) -> LoadedConfig:
    """The config that a command line means: a file, or a run that was started before."""
    if not wanted:
        here = Path("run.yaml")
        if here.exists():
            return load(here)
        return reopen(pick_run(home, "", cwd=Path.cwd()))
    if wanted.endswith((".yaml", ".yml")) or os.path.isfile(wanted):  # noqa: PTH113  (a name of any length)
        return load(Path(wanted))
    named = RUN_NAME.fullmatch(wanted) and run_folder(home, wanted).exists()
    if os.path.isdir(wanted) and not named:  # noqa: PTH112
        raise Usage(f"`{wanted}` is a directory", hint=f"try `{wanted.rstrip('/')}/run.yaml`")
    return reopen(pick_run(home, wanted, cwd=Path.cwd()))


def _steer(session: Session, order: Order) -> Arrived:
    """Let the supervisor work, then write the receipt."""
    simulated = session.provider.traits.simulated_prices
    plan = session.plan(order.goal)
    over = is_over(session.supervisor.state)
    reason = "this run was complete already; `--fresh` begins it again"
    ending = RunEnd(outcome=Outcome.DONE, reason=reason) if over else session.supervisor.run(plan)
    receipt = make_receipt(session.folder, session.loaded.out, simulated=simulated)
    if session.loaded.out.is_dir() and not over:
        write_json(session.loaded.out / "receipt.json", receipt.to_json(), mode=0o644)
    return _arrived(session.loaded, order.goal, ending, receipt, session.supervisor.state)


def missed(steps: Sequence[int], state: RunState) -> int:
    """Return how many rehearsals a finished training outran: never asked for, or never come."""
    wanted = set(steps)
    happened = min(len(wanted & state.rehearsed), state.evictions)
    return len(wanted) - happened if state.trained else 0


def outrun(times_s: Sequence[float], state: RunState) -> int:
    """Return how many timed evictions a finished training outran; rehearsed ones are no such."""
    happened = max(state.evictions - len(state.rehearsed), 0)
    return max(len(times_s) - happened, 0) if state.trained else 0


def _arrived(
    loaded: LoadedConfig, goal: Goal, ending: RunEnd, receipt: Receipt, state: RunState
) -> Arrived:
    name, vm = loaded.config.name, loaded.config.vm
    if ending.outcome is Outcome.DONE:
        return Arrived(
            name=name,
            goal=goal,
            reason=ending.reason,
            receipt=receipt,
            missed=missed(vm.rehearse_evictions, state),
            outrun=outrun(vm.local.evict_after_s if vm.provider == "local" else (), state),
        )
    hint = _what_now(name, ending.outcome, receipt, gone=state.deleted)
    raise TROUBLE_OF[ending.outcome](ending.reason, hint=hint)


def _what_now(name: str, outcome: Outcome, receipt: Receipt, *, gone: bool = False) -> str:
    """What a person can do about an ending, and what still bills; `gone` with its machine."""
    advice = {
        Outcome.CLOUD_REFUSED: f"`qft plan {name}` shows every offer and why it cannot be had",
        Outcome.MACHINE_FAILED: f"`qft doctor {name}` looks at the connection",
        Outcome.TRAINING_FAILED: f"`qft logs {name}` shows what the trainer said",
        Outcome.BUDGET_REACHED: "raise `budget` in run.yaml and run the same command again: "
        "it goes on where it was",
        Outcome.STOPPED_BY_USER: f"`qft run {name}` goes on from the checkpoint at home"
        if gone
        else f"`qft train --resume {name}` starts it again and goes on, "
        f"`qft down --delete {name}` removes everything",
    }.get(outcome, "")
    bills = _bills("" if outcome is Outcome.STOPPED_BY_USER else name, receipt)
    return "; ".join(part for part in (advice, bills) if part)


def _bills(name: str, receipt: Receipt) -> str:
    """What still bills, and how to end it, unless that has been said (no `name`)."""
    if not receipt.usd_per_h_now:
        return "nothing of this run bills"
    per_h = receipt.usd_per_h_now
    price = f"${per_h:.4f}/h, ${per_h * HOURS_PER_MONTH:.2f} a month"
    return f"still billing {price}" + (f": `qft down --delete {name}` ends it" if name else "")


def dump(arrived: Arrived) -> str:
    """The JSON of an arrival."""
    return json.dumps(arrived.to_json(), indent=2)
