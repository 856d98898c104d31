"""What goes on after a command ended, what it costs, and the command to type next; pure text."""

from __future__ import annotations

import time

from commands.runs.home import RunFolder
from commands.runs.receipt import Receipt
from commands.runs.take_lock import LockTaker
from commands.ui.errors import StoppedError
from commands.ui.nodes import each_node
from infra.errors import ProviderError, SignedOut
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import JournalDamaged, Kind, Outcome, read
from infra.run.plan import Goal
from infra.run.state import RunState

HOURS_PER_MONTH = 730.0
"""As the clouds count them."""


def after_interrupt(folder: RunFolder, goal: Goal) -> str:
    """What goes on after Ctrl-C, what it costs, and which commands take it up or end it.

    The command is the one that was typed: `train` in the place of `run` would leave a machine.
    """
    try:
        state = fold(read(folder.journal))
    except JournalDamaged as error:
        return f"interrupted; {error}"
    again = f"`qft {goal} {folder.name}`"
    works = state.launched and state.up and not state.trained
    if _is_own(state):
        what = "the job goes on without this terminal" if works else "interrupted"
        leaves = f"`qft down {folder.name}` ends the job there" if state.vm is not None else ""
        return "; ".join(part for part in (what, f"{again} goes on", leaves) if part)
    if state.vm is None and state.pending is None:
        return f"interrupted; nothing is rented; {again} goes on"
    price = bill(state, time.time()).usd_per_h_now
    if state.pending is Kind.DELETE_INTENDED:
        ends = f"`qft down --delete {folder.name}` waits for the end of it and proves it"
        return f"interrupted while everything was being removed (${price:.3f}/h); {ends}"
    ends = f"`qft down {folder.name}` ends the billing (${price:.3f}/h)"
    if works:
        return f"the job goes on without this terminal; {again} follows it again; {ends}"
    stays = "the machines stay" if len(each_node(state)) > 1 else "the machine stays"
    return f"interrupted; {stays}; {again} goes on; {ends}"


def after_other_command(taker: LockTaker, folder: RunFolder) -> StoppedError:
    """The error of a run that another `qft` ended: by whom, and what is left at that moment.

    The release is that one's business, and still under way.
    """
    state = fold(read(folder.journal))
    step = max(state.step, state.disk_step)
    left = [f"step {step} reached, checkpoint at home: step {state.home_step}"] if step else []
    if state.vm is not None:
        price = bill(state, time.time()).usd_per_h_now
        there = sum(one.vm is not None for one in each_node(state))
        what, gone = f"{state.vm.size} in {state.vm.region} bills", "it is gone"
        if there > 1:
            what, gone = f"{there} × {state.vm.size} in {state.vm.region} bill", "they are gone"
        left.append(f"{what} ${price:.3f}/h until {gone}")
    return StoppedError(
        f"another `qft` ended the run `{folder.name}`: {taker}",
        problems=left,
        hint=f"`qft status {folder.name}` shows what is left, `qft run {folder.name}` goes on",
    )


def after_provider_error(error: ProviderError, folder: RunFolder, goal: Goal) -> str:
    """What a sign-in that ran out leaves going, and what takes it up; empty for other errors."""
    state = fold(read(folder.journal))
    if not isinstance(error, SignedOut) or not state.up or state.vm is None:
        return ""
    machine = "each machine" if len(each_node(state)) > 1 else "the machine"
    return f"{machine} goes on without this terminal, and `qft {goal} {folder.name}` with it"


def after_ending(name: str, outcome: Outcome, receipt: Receipt, *, gone: bool = False) -> str:
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
    bills = still_billing("" if outcome is Outcome.STOPPED_BY_USER else name, receipt)
    return "; ".join(part for part in (advice, bills) if part)


def still_billing(name: str, receipt: Receipt) -> str:
    """What still bills, and how to end it, unless that has been printed (no `name`)."""
    if not receipt.usd_per_h_now:
        return "nothing of this run bills"
    per_h = receipt.usd_per_h_now
    price = f"${per_h:.4f}/h, ${per_h * HOURS_PER_MONTH:.2f} a month"
    return f"still billing {price}" + (f": `qft down --delete {name}` ends it" if name else "")


def _is_own(state: RunState) -> bool:
    """Whether the run is on a machine of the user's own, which bills nothing."""
    return state.vm is not None and state.vm.provider == "ssh"
