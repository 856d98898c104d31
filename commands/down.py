"""`qft down`: stops the billing, and proves it by asking the provider again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from commands.runs import factory
from commands.runs.all_providers import providers_to_ask
from commands.runs.find_config import reopen
from commands.runs.home import (
    RUN_NAME,
    RunBusyError,
    RunFolder,
    all_runs,
    environment,
    pick_run,
    qft_home,
    run_folder,
)
from commands.runs.release_run import Record, proved, release_recorded
from commands.runs.save_before_release import (
    LastSave,
    Result,
    clear,
    lost_with_disk,
    save_before_release,
)
from commands.runs.take_lock import take_lock
from commands.ui.errors import CloudError, UsageError
from commands.ui.options import Json, ProviderName, Run, check_all, examples, fail_after_output
from commands.ui.output import log, print_data, print_json
from infra.errors import Gone, ProviderError
from infra.provider import PowerState, Provider, Vm
from infra.retry import with_retries
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Journal, JournalDamaged, Kind, Outcome, read
from infra.run.release import may_restart

EXAMPLES = {
    "qft down": "let the trainer save, release the machine, keep its disk",
    "qft down --delete": "bring what it saved home, remove all of this run in the cloud",
    "qft down --now": "release it at once; steps since the last checkpoint are done again",
    "qft down --all --delete": "remove everything that qft ever rented",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913  (an argument is an option)
    run: Run = "",
    *,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the disk and all else, too.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every machine with our tag.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="At once: the trainer is not asked to save first.")
    ] = False,
    provider: ProviderName = "",
    as_json: Json = False,
) -> None:
    """Stop the billing, keep or delete the disk, and prove it."""
    check_all(run, everything=everything, provider=provider)
    if everything:
        home = qft_home(environment())
        providers = providers_to_ask(home, provider)
        results = down_all(providers, home, delete=delete, on_message=log, now=now)
    else:
        results = [down(run, delete=delete, on_message=log, now=now)]
    if as_json:
        print_json([result.to_json() for result in results])
    elif not results:
        print_data("nothing to release: no provider lists a machine of ours")
    else:
        print_data("\n".join(line for result in results for line in result.lines()))
    if error := failure(results):
        fail_after_output(error, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """The options of the command, and where messages go."""

    delete: bool
    now: bool
    on_message: Callable[[str], None]
    everything: bool = False

    @property
    def command(self) -> str:
        """Return the command line, without the name of a run."""
        words = (" --all", self.everything), (" --delete", self.delete), (" --now", self.now)
        return "qft down" + "".join(word * given for word, given in words)


def down(
    wanted: str, *, delete: bool, on_message: Callable[[str], None], now: bool = False
) -> Result:
    """Release (or with `delete` remove) the machine of one run. Safe to repeat.

    The trainer saves first, unless it must be `now`. Works with the local record lost, from the
    tags in the cloud alone.
    """
    home = qft_home(environment())
    if RUN_NAME.fullmatch(wanted) and not run_folder(home, wanted).exists():
        return _down_unrecorded(wanted, home, on_message, delete=delete)
    folder = pick_run(home, wanted, cwd=Path.cwd())
    options = _Options(delete=delete, now=now, on_message=on_message)
    try:
        with take_lock(folder, on_message, command=options.command, urgent=now) as ended:
            provider = factory.make_provider(reopen(folder).config.vm, home)
            on_message(f"asking {provider.name} about `{folder.name}`")
            return _release_run(options, folder, home, provider, ended=ended)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    except KeyboardInterrupt:
        on_message(_unfinished(folder, options))
        raise


def _unfinished(folder: RunFolder, options: _Options) -> str:
    """Describe what bills after Ctrl-C: the driver was ended before, so nobody watches it."""
    state = fold(read(folder.journal))
    if state.vm is None and state.pending is None:
        return f"\ninterrupted; nothing of `{folder.name}` is rented"
    price = bill(state, time.time()).usd_per_h_now
    again = replace(options, now=True).command
    return (
        f"\ninterrupted before it was done: `{folder.name}` bills ${price:.3f}/h, and nobody "
        f"drives it; `{again} {folder.name}` ends that at once"
    )


def _release_run(
    options: _Options, folder: RunFolder, home: Path, provider: Provider, *, ended: bool
) -> Result:
    """Let the trainer save, release or remove the machine, and record who ended the run."""
    record = Record(folder.name, Journal(folder.journal, clock=time.time), options.on_message)
    state = fold(record.journal.events)
    goes = options.delete or not provider.traits.rents or not provider.traits.keeps_disk
    save = LastSave(home_step=state.home_step)
    if not options.now:
        save = save_before_release(
            folder, home, provider, state, options.on_message, pull_checkpoint=goes
        )
        record.saved(save, state)
    for line in lost_with_disk(state, save) if goes else []:
        options.on_message(line)
    if state.vm is not None and not provider.traits.rents:
        clear(folder, home, provider, state, options.on_message, now=options.now)
    done = release_recorded(
        record, provider, state, delete=options.delete, disk_days=_disk_days(folder)
    )
    done = replace(done, save=save)
    if state.ending is None and (ended or state.vm is not None or state.pending is not None):
        reason = "another `qft` ended the run: " * ended + f"`{options.command}` {_outcome(done)}"
        record.note(Kind.RUN_ENDED, code=Outcome.STOPPED_BY_USER.value, reason=reason)
    return done


def _disk_days(folder: RunFolder) -> float | None:
    """Return how long a disk is kept by run.yaml; for ever if its record cannot be read."""
    try:
        return reopen(folder).config.budget.disk_days
    except UsageError:
        return None


def _outcome(done: Result) -> str:
    """Describe what was done, for those who followed the run."""
    if done.removed:
        return "removed its machine"
    return "released its machine, its disk is kept" if done.deallocated else "found no machine"


def down_all(
    providers: list[Provider],
    home: Path,
    *,
    delete: bool,
    on_message: Callable[[str], None],
    now: bool = False,
) -> list[Result]:
    """Release or remove every machine that carries our tag, with or without a local record.

    Whoever drives one of them from this computer is stopped first, or it would start it again.
    What fails for one machine, or one provider, is told in its result and stops no other.
    """
    options = _Options(delete=delete, now=now, on_message=on_message, everything=True)
    results: list[Result] = []
    done: set[tuple[str, str]] = set()
    try:
        for provider in providers:
            results += _down_listed_by(provider, home, options, done)
    except KeyboardInterrupt:
        on_message("\ninterrupted; `qft ls --all` shows what bills, the same command goes on")
        raise
    return results


def _down_listed_by(
    provider: Provider, home: Path, options: _Options, done: set[tuple[str, str]]
) -> Iterator[Result]:
    """Release or remove every machine that one provider lists, run by run, but those done.

    Two profiles may open the same account.
    """
    try:
        listed = with_retries(provider.list_all, time.sleep)
    except ProviderError as error:
        yield Result(run=provider.name, trouble=_message(error))
        return
    listed = [vm for vm in listed if (vm.provider, vm.id) not in done]
    done |= {(vm.provider, vm.id) for vm in listed}
    runs: dict[str, list[Vm]] = {}
    for vm in listed:
        runs.setdefault(vm.run_id, []).append(vm)
    for run_id, machines in runs.items():
        with _without_drivers(home, run_id, options) as (run, ended):
            try:
                if run is not None and _records_machine(run, options):
                    yield _release_run(options, run, home, provider, ended=ended)
                else:
                    yield _down_listed(
                        provider, machines, options.on_message, delete=options.delete
                    )
            except ProviderError as error:
                yield Result(run=run_id, trouble=_message(error))


def failure(results: list[Result]) -> CloudError | None:
    """Return the error that lists what could not be done; None if everything was."""
    failed = [one for one in results if one.trouble]
    if not failed:
        return None
    return CloudError(
        f"{len(failed)} of {len(results)} could not be released or removed, and may bill",
        problems=[f"{one.run}: {one.trouble}" for one in failed],
        hint="`qft ls --all` shows what is there; the same command may be repeated",
    )


def _message(error: ProviderError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


@contextlib.contextmanager
def _without_drivers(
    home: Path, run_id: str, options: _Options
) -> Iterator[tuple[RunFolder | None, bool]]:
    """Keep every driver of this computer away from a machine.

    Yield the run if that is done, and whether it was driven.
    """
    mine: RunFolder | None = None
    ended = False
    with contextlib.ExitStack() as held:
        for run in all_runs(home):
            if _run_id(run) == run_id:
                lock = take_lock(
                    run, options.on_message, command=options.command, urgent=options.now
                )
                try:
                    ended = held.enter_context(lock)
                    mine = run
                except RunBusyError as busy:  # the money goes first
                    options.on_message(f"{busy.message}, and may start the machine again")
        yield mine, ended


def _records_machine(run: RunFolder, options: _Options) -> bool:
    """Whether the release must be journalled, or the bill in the record would go on for ever."""
    return options.delete or fold(read(run.journal)).vm is not None


def _run_id(run: RunFolder) -> str:
    """Return the id that a run's machines carry; empty if its record cannot be read."""
    try:
        return fold(read(run.journal)).run_id
    except JournalDamaged:
        return ""


def _down_listed(
    provider: Provider, machines: Sequence[Vm], on_message: Callable[[str], None], *, delete: bool
) -> Result:
    """Release or remove the machines of one run without a record, as they are listed."""
    run_id = machines[0].run_id
    if delete or not provider.traits.keeps_disk or not provider.traits.rents:
        gone = with_retries(lambda: provider.delete(run_id, on_message), time.sleep)
        result = Result(run=run_id, removed=[f"{one.kind} {one.id}" for one in gone])
        return proved(result, provider, run_id)
    result = Result(run=run_id)
    for vm in machines:
        if vm.power is PowerState.REMNANTS:
            continue
        with contextlib.suppress(Gone):  # somebody removed it meanwhile
            with_retries(partial(provider.deallocate, vm), time.sleep)
            result = replace(
                result,
                deallocated=[*result.deallocated, f"{vm.size} {vm.id}"],
                may_restart=result.may_restart or may_restart(provider, vm, time.sleep),
            )
    return proved(result, provider, run_id)


def _down_unrecorded(
    name: str, home: Path, on_message: Callable[[str], None], *, delete: bool
) -> Result:
    """Release or remove the machine of a run without a record here, found by its tags."""
    for provider in providers_to_ask(home):
        try:
            listed = with_retries(provider.list_all, time.sleep)
        except ProviderError as error:
            raise CloudError(str(error), hint=error.hint) from error
        meant = [vm for vm in listed if name in {vm.run_id, vm.run_id.rpartition("-")[0]}]
        if len({vm.run_id for vm in meant}) > 1:
            found = [f"{vm.run_id}: {vm.size} in {vm.region}, {vm.power}" for vm in meant]
            raise UsageError(
                f"several runs are named `{name}`", problems=found, hint="give the whole id"
            )
        if meant:
            return _down_listed(provider, meant, on_message, delete=delete)
    raise UsageError(
        f"there is no run `{name}`, here or in the cloud", hint="`qft ls --all` lists all"
    )
