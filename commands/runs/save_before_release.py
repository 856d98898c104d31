"""What is done on a machine before it goes: the trainer saves, and that comes home if it must.

A minute at most for the saving, and not even that where nobody answers: the bill goes on meanwhile.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from commands.runs import session
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder
from commands.runs.request import RunRequest
from commands.runs.workload import SshWorkload
from commands.ui.console import PlainConsole
from commands.ui.errors import UsageError
from commands.ui.nodes import each_node, leader
from infra.errors import ProviderError
from infra.provider import PowerState, Provider, Vm
from infra.run.interruption import wait_until_taken
from infra.run.journal import Kind
from infra.run.state import RunState
from infra.run.workload import (
    HostNotTrusted,
    HostUnfit,
    HostUnreachable,
    JobOutcome,
    JobPhase,
    JobView,
)

KILL_S = 5.0
"""What is kept of the time for ending a trainer that does not save."""


@dataclass(frozen=True, kw_only=True)
class SaveLimits:
    """How long the machine is waited for, in seconds."""

    look_s: float = 10.0
    """For the first answer: none means that nothing is waited for."""
    save_s: float = 60.0
    """For that answer and the saving together."""
    home_s: float = 900.0
    """For the checkpoint's way home, where the disk goes too."""


@dataclass(frozen=True, kw_only=True)
class LastSave:
    """What became of the trainer's state before the machine went."""

    stop_requested: bool = False
    """Whether a trainer at work was asked to save."""
    saved_step: int | None = None
    """The step that it saved; None if it did not."""
    step: int = 0
    """The furthest step seen there."""
    steps: int = 0
    home_step: int = 0
    """Step of the newest verified checkpoint at home."""
    trouble: str = ""
    """What kept it from being saved or brought home; empty if nothing did."""
    eviction_announced: bool = False
    """Whether the trainer had ended because the vendor takes the machine."""
    node: int = 0
    """Which of several machines was asked."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "asked": self.stop_requested,
            "saved_step": self.saved_step,
            "home_step": self.home_step,
            "trouble": self.trouble or None,
        }

    def lines(self) -> list[str]:
        """What to print."""
        saved = self.saved_step is not None
        lines = [f"the trainer saved at step {self.saved_step}"] * saved
        what = "NOT brought home" if saved else "NOT saved"
        return [*lines, *[f"{what}: {self.trouble}"] * bool(self.trouble)]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was released or removed, and what still bills."""

    run: str
    removed: list[str] = field(default_factory=list)
    deallocated: list[str] = field(default_factory=list)
    idle_usd_per_h: float = 0.0
    left: list[str] = field(default_factory=list)
    """What the provider still lists afterwards."""
    bills_compute: bool = False
    """Whether a machine among that still bills its full price."""
    may_restart: bool = False
    """Whether the provider, which interrupted it, may start it again by itself."""
    stopped_again_by: list[str] = field(default_factory=list)
    """What of the provider's stops it then."""
    trouble: str = ""
    """Why it could not be done; empty if it was."""
    save: LastSave = field(default_factory=LastSave)
    """What became of the trainer's state."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "removed": self.removed,
            "deallocated": self.deallocated,
            "idle_usd_per_h": self.idle_usd_per_h,
            "left": self.left,
            "bills_compute": self.bills_compute,
            "may_restart": self.may_restart,
            "trouble": self.trouble or None,
            "save": self.save.to_json(),
        }

    def lines(self) -> list[str]:
        """What to print."""
        lines = self.save.lines()
        lines += [f"removed {what}" for what in self.removed]
        lines += [f"released {what}; its disk is kept" for what in self.deallocated]
        if self.trouble:
            lines.append(f"NOT done for `{self.run}`: {self.trouble}")
        elif self.left:
            price = f"${self.idle_usd_per_h:.4f}/h for the disk and address"
            price = "it bills its full price" if self.bills_compute else price
            lines.append(f"still there: {', '.join(self.left)} ({price})")
            lines += [self._restart_line()] * self.may_restart
            lines.append(f"hint: `qft down --delete {self.run}` removes it too")
        else:
            lines.append(f"nothing of `{self.run}` bills: the provider lists no machine of it")
        return lines

    def _restart_line(self) -> str:
        """What to say of a machine that runs again although nobody starts it."""
        names = " and ".join(self.stopped_again_by)
        ends = f"until the {names} of the provider stop it" if names else "until it is stopped"
        return (
            "warning: the provider interrupted it, and may start it again by itself; it then bills"
            f" its full price {ends}"
        )


class SavingWorkload(Protocol):
    """What is asked of a machine that goes; raises the errors of `infra.run.workload`."""

    def job_status(self, vm: Vm) -> JobView:
        """Look at the trainer once."""
        ...

    def stop(self, vm: Vm, grace_s: float = ...) -> None:
        """End the trainer; it is killed if it has not saved by then."""
        ...

    def bring_home(self, vm: Vm) -> None:
        """Copy the newest checkpoint, verified."""
        ...

    def home_step(self) -> int:
        """Step of the newest verified checkpoint at home."""
        ...

    def disconnect(self) -> None:
        """Drop connections, also one that another thread waits on."""
        ...


def save_before_release(  # noqa: PLR0913  (each is another room's)
    run: RunFolder,
    home: Path,
    provider: Provider,
    state: RunState,
    on_message: Callable[[str], None],
    *,
    pull_checkpoint: bool,
) -> LastSave:
    """Let the trainer of a run save; with `pull_checkpoint`, what it saved must come home.

    Without, it comes if the time suffices: its disk is kept. Of several machines one that trains is
    enough, for all of a group save when one of them stops; the next is asked if it does not answer.
    A machine that its vendor is about to take is left to the vendor for three minutes, where that
    costs less. Never raises for what the machine, the cloud or this computer's disk does: it must
    go anyway.
    """
    saves: list[LastSave] = []
    for node in [] if state.trained and state.fetched else _most_advanced_first(state):
        one = each_node(state)[node]
        tell = partial(_message_of_node, on_message, node if state.nodes else None)
        save = _save_on(run, home, provider, one, tell, pull_checkpoint=pull_checkpoint)
        home_step = max([save.home_step, *(other.home_step for other in saves)])
        saves.append(replace(save, node=node, home_step=home_step))
        if save.saved_step is not None and not save.trouble:
            return saves[-1]
    nothing = LastSave(home_step=state.home_step)
    return max(
        saves,
        key=lambda one: (one.saved_step is not None, one.step, bool(one.trouble)),
        default=nothing,
    )


def _most_advanced_first(state: RunState) -> list[int]:
    """Return the machines on which a trainer may run: the one that leads, then by their steps."""
    nodes, first = each_node(state), leader(state)
    launched = [
        node
        for node, one in enumerate(nodes)
        if one.up and (one.launches > 0 or one.pending is Kind.LAUNCH_INTENDED)
    ]
    return sorted(launched, key=lambda node: (node != first, -nodes[node].disk_step, node))


def _message_of_node(on_message: Callable[[str], None], node: int | None, text: str) -> None:
    """Pass a message on, with the machine that it is about where there are several."""
    on_message(text if node is None else f"node {node}: {text}")


def _save_on(  # noqa: PLR0913  (each is another room's)
    run: RunFolder,
    home: Path,
    provider: Provider,
    state: RunState,
    on_message: Callable[[str], None],
    *,
    pull_checkpoint: bool,
) -> LastSave:
    """Let the trainer on one machine save."""
    vm = None if state.vm is None else _as_it_is(provider, state.vm)
    if vm is None:
        return LastSave(home_step=state.home_step)
    try:
        workload = _workload(run, home, provider, state)
    except UsageError as error:
        return LastSave(home_step=state.home_step, trouble=error.message)
    save = let_trainer_save(workload, vm, pull_checkpoint=pull_checkpoint, on_message=on_message)
    if save.eviction_announced and vm.interruption_is_free:
        wait_until_taken(provider, vm, sleep=time.sleep, on_message=on_message)
    return save


def lost_with_disk(state: RunState, save: LastSave) -> list[str]:
    """What goes with the disk, in a sentence; empty if everything of worth is at home."""
    if state.fetched or state.vm is None:
        return []
    step = max(save.step, state.disk_step)
    if state.trained:
        return [
            "warning: the adapter was not fetched; `qft run` trains from the checkpoint at home"
        ]
    if step <= save.home_step:
        return []
    return [f"at home is step {save.home_step} of {step} reached: the rest is done again"]


def clear(  # noqa: PLR0913  (each is another room's)
    run: RunFolder,
    home: Path,
    provider: Provider,
    state: RunState,
    on_message: Callable[[str], None],
    *,
    now: bool,
) -> None:
    """End the trainer on a machine that stays the user's, and remove the run's folder there."""
    try:
        workload = _workload(run, home, provider, state)
    except UsageError as error:
        on_message(f"the folder `qft/{state.run_id}` stays on the machine: {error.message}")
        return
    try:
        if state.vm is not None:
            workload.clear(state.vm, 0.0 if now else SaveLimits().save_s)
    except (HostUnreachable, HostNotTrusted, HostUnfit) as error:
        on_message(f"the folder `qft/{state.run_id}` stays on the machine: {error}")
    finally:
        workload.disconnect()


def _workload(run: RunFolder, home: Path, provider: Provider, state: RunState) -> SshWorkload:
    console = PlainConsole(sys.stderr, simulated=False, clock=time.monotonic)
    request = RunRequest(loaded=reopen(run), home=home, console=console)
    return session.build_workload(request, state.run_id, provider, watch_only=True)


def _as_it_is(provider: Provider, vm: Vm) -> Vm | None:
    """The machine at the address that it has now; None if it does not run."""
    try:
        seen = provider.observe(vm)
    except ProviderError:  # the release will meet the same trouble, and tell it
        return vm if vm.host else None
    if seen.power is not PowerState.RUNNING or not (seen.host or vm.host):
        return None
    return replace(vm, host=seen.host, port=seen.port) if seen.host else vm


def let_trainer_save(
    workload: SavingWorkload,
    vm: Vm,
    *,
    pull_checkpoint: bool,
    on_message: Callable[[str], None],
    limits: SaveLimits | None = None,
) -> LastSave:
    """Ask the trainer on a machine to save, within the limits; KeyboardInterrupt ends the wait."""
    limits = limits or SaveLimits()
    before = workload.home_step()
    attempt = _Attempt(workload, vm, save_s=limits.save_s)
    thread = threading.Thread(target=attempt.run, name="last save", daemon=True)
    thread.start()
    trouble = ""
    try:
        if not attempt.answered.wait(limits.look_s):
            return LastSave(home_step=before, trouble="the machine does not answer")
        if attempt.stop_requested:
            on_message(
                f"letting the trainer save, {limits.save_s:.0f} s at most (`--now` skips that)"
            )
        if not attempt.stopped.wait(max(0.0, attempt.ends_s - time.monotonic())):
            trouble = f"the machine did not answer within {limits.save_s:.0f} s"
        elif not pull_checkpoint:
            attempt.home.wait(max(0.0, attempt.ends_s - time.monotonic()))
        elif not attempt.home.wait(1.0):
            on_message("bringing the newest checkpoint home")
            if not attempt.home.wait(limits.home_s):
                trouble = f"the checkpoint did not come home within {limits.home_s / 60:.0f} min"
    finally:
        workload.disconnect()
    return attempt.result(workload.home_step(), trouble)


class _Attempt:
    """The talk with the machine, in a thread of its own: nothing there may hold up the release."""

    def __init__(self, workload: SavingWorkload, vm: Vm, *, save_s: float) -> None:
        self._workload, self._vm = workload, vm
        self._save_s = save_s
        self.ends_s = time.monotonic() + save_s
        self.answered, self.stopped, self.home = (threading.Event() for _ in range(3))
        self.stop_requested = False
        self._job: JobView | None = None
        self._error = ""

    def run(self) -> None:
        """Look, let it save, bring that home; what goes wrong is remembered."""
        workload, vm = self._workload, self._vm
        try:
            self._job = workload.job_status(vm)
            self.stop_requested = self._job.phase is JobPhase.RUNNING
            self.answered.set()
            if self.stop_requested:
                left_s = self.ends_s - time.monotonic() - KILL_S
                workload.stop(vm, max(0.0, left_s))
                self._job = workload.job_status(vm)
            self.stopped.set()
            if self._job.phase is not JobPhase.ABSENT:
                workload.bring_home(vm)
        except (HostUnreachable, HostNotTrusted, HostUnfit, OSError) as error:
            self._error = str(error)
        except Exception as error:  # noqa: BLE001  (the machine bills: told, and it goes all the same)
            self._error = f"{type(error).__name__}: {error}"
        finally:
            for event in (self.answered, self.stopped, self.home):
                event.set()

    def result(self, home_step: int, trouble: str) -> LastSave:
        """What came of it."""
        job = self._job or JobView(phase=JobPhase.ABSENT)
        saved: int | None = None
        if self.stop_requested and self.stopped.is_set():
            if job.outcome in {JobOutcome.PREEMPTED, JobOutcome.DONE}:
                saved = job.step  # it saves between two steps, and leaves
            elif not self._error and not trouble:
                ended = "" if job.exit_code is None else f" (exit {job.exit_code})"
                trouble = f"the trainer did not save within {self._save_s:.0f} s{ended}"
        return LastSave(
            stop_requested=self.stop_requested,
            saved_step=saved,
            step=job.step,
            steps=job.steps,
            home_step=home_step,
            trouble=trouble or self._error,
            eviction_announced=job.eviction_announced,
        )
