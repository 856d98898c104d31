"""Brings a run to the goal of `up`, `train`, `fetch` or `run`; started again, it goes on.

The way of `qft run` in the order in which it is read: this file, `session.py` (opens the run),
`infra/run/supervisor.py` (observe, decide, journal, act), `workload.py` (what an act does on the
machine), then `trainer/__main__.py` there. `result.py` and `advice.py` put the end into words.
"""

from __future__ import annotations

import time
from dataclasses import replace

from commands.runs.advice import (
    after_interrupt,
    after_other_command,
    after_provider_error,
    still_billing,
)
from commands.runs.attach import follow
from commands.runs.config import LoadedConfig
from commands.runs.config_diff import is_changed
from commands.runs.extras import demand, needed_here
from commands.runs.find_config import find_config
from commands.runs.home import RunBusyError, environment, qft_home
from commands.runs.hub_base import name_sent_base
from commands.runs.notify import make_notifier
from commands.runs.parent_adapter import resolve_parent
from commands.runs.planning.confirm import confirm_renting
from commands.runs.planning.estimates import warn_before_renting
from commands.runs.receipt import make_receipt
from commands.runs.request import RunRequest, Watcher
from commands.runs.result import RunResult, result_of
from commands.runs.session import Session, is_over, open_session
from commands.runs.take_lock import lock_taker_of
from commands.runs.trackers.beside_run import make_feed
from commands.ui.console import AnnouncingConsole, make_console
from commands.ui.errors import CloudError, Exit, QftError
from infra.durable import write_json
from infra.errors import BadRequest, ProviderError, Rejected
from infra.run.budget import Budget, worst_case_usd
from infra.run.fold import fold
from infra.run.journal import Outcome, read
from infra.run.plan import Goal
from infra.run.state import RunEnd
from trainer.secret import Secret


class BadProviderRequestError(QftError):
    """The provider calls a request of ours wrong: our bug, told without a page of Python."""

    exit_code = Exit.BUG


def request_run(  # noqa: PLR0913  (an argument is an option of a command)
    goal: Goal,
    wanted: str,
    *,
    allow_change: tuple[str, ...] = (),
    fresh: bool = False,
    plain: bool = False,
    attach: bool = False,
    ask: bool = False,
    notify: Secret | None = None,
) -> RunRequest:
    """Make the request that a command line stands for. Raises UsageError for a config with faults.

    `wanted` is a run.yaml or the name of a known run; empty takes the `run.yaml` here.
    """
    home = qft_home(environment())
    loaded, parent = resolve_parent(find_config(wanted, home), home, fresh=fresh)
    console = make_console(
        simulated=loaded.simulated, plain=plain, clock=time.monotonic, own=loaded.own_machine
    )
    return RunRequest(
        loaded=loaded,
        home=home,
        console=AnnouncingConsole(console, most=worst_case_text(loaded)),
        goal=goal,
        allow_change=allow_change,
        fresh=fresh,
        attach=attach,
        ask=ask,
        notify=notify,
        parent=parent,
    )


def run_to_goal(request: RunRequest) -> RunResult:
    """Bring a run to the goal. Raises a class of `commands.ui.errors` if it cannot get there."""
    loaded, folder, console = request.loaded, request.folder, request.console
    if request.goal is not Goal.FETCH:  # what is done already needs nothing to come home
        demand(needed_here(loaded.config), "training on this computer", request.home)
    warn_before_renting(loaded, console.log)
    request = replace(request, page_offer=confirm_renting(request))
    request = replace(request, watchers=_watchers(request))
    try:
        while True:
            began = len(read(folder.journal))
            try:
                with open_session(request) as session:
                    return _supervise(session)
            except RunBusyError:
                if not request.attach:
                    raise
            if (result := _follow(request, began)) is not None:
                return result
            console.log("the other `qft` is gone; driving on from here")
    except KeyboardInterrupt:
        console.close()
        taker = lock_taker_of(folder)
        if taker is not None:
            raise after_other_command(taker, folder) from None
        console.log("\n" + after_interrupt(folder, request.goal))
        raise
    except ProviderError as error:
        _finish(request)
        raise _as_trouble(error, request) from error
    finally:
        for watcher in request.watchers:
            watcher.close()
        console.close()


def _watchers(request: RunRequest) -> tuple[Watcher, ...]:
    """Return what follows the run beside the console."""
    feed = make_feed(request, around=environment(), clock=time.monotonic, sleep=time.sleep)
    notifier = make_notifier(request, clock=time.time)
    return tuple(watcher for watcher in (notifier, feed) if watcher is not None)


def _finish(request: RunRequest) -> None:
    for watcher in request.watchers:
        watcher.finish()


def _supervise(session: Session) -> RunResult:
    """Let the supervisor work, then write the receipt."""
    request = session.request
    out = request.loaded.out
    over = is_over(session.supervisor.state)
    reason = "this run was complete already; `--fresh` begins it again"
    ending = (
        RunEnd(outcome=Outcome.DONE, reason=reason)
        if over
        else session.supervisor.run(session.plan)
    )
    simulated = session.provider.traits.simulated_prices
    receipt = make_receipt(request.folder, out, simulated=simulated)
    if out.is_dir() and not over:
        write_json(out / "receipt.json", receipt.to_json(), mode=0o644)
        name_sent_base(request.loaded, request.folder)
    _finish(request)
    return result_of(request, ending, receipt, session.supervisor.state)


def _follow(request: RunRequest, began: int) -> RunResult | None:
    """Follow the process that drives the run to its end; None if it died without one."""
    loaded, folder, console = request.loaded, request.folder, request.console
    console.log(f"another `qft` drives `{folder.name}`; following it")
    if is_changed(loaded, folder):
        console.log("warning: run.yaml or its rows changed since; it trains with what it had")
    ending = follow(request, began=began)
    if ending is None:
        return None
    receipt = make_receipt(folder, loaded.out, simulated=loaded.simulated)
    return result_of(request, ending, receipt, fold(read(folder.journal)))


def _as_trouble(error: ProviderError, request: RunRequest) -> QftError:
    """What a person is told of a provider's error: the fix, what goes on, and what bills."""
    loaded, folder = request.loaded, request.folder
    receipt = make_receipt(folder, loaded.out, simulated=loaded.simulated)
    # What is wrong with the request itself stays so, however often it is repeated.
    is_bad = isinstance(error, BadRequest)
    goes_on = "" if is_bad else after_provider_error(error, folder, request.goal)
    parts = (error.hint, goes_on, still_billing(folder.name, receipt))
    is_ours = is_bad and not isinstance(error, Rejected)
    kind = BadProviderRequestError if is_ours else CloudError
    return kind(str(error), hint="; ".join(part for part in parts if part))


def worst_case_text(loaded: LoadedConfig) -> str:
    """The most that the budget lets the run cost, in dollars; empty if it has no limit."""
    table = loaded.config.budget
    budget = Budget(usd=table.usd, hours=table.hours, evictions=table.evictions)
    usd = worst_case_usd(budget, loaded.config.vm.max_price)
    return "" if usd is None else f"${usd:.2f} (budget)"
