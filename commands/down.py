"""`qft down`: stop the billing, and prove it by looking again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from commands.runs import factory
from commands.runs.find_config import reopen
from commands.runs.home import (
    RUN_NAME,
    RunBusy,
    RunFolder,
    all_runs,
    environment,
    pick_run,
    qft_home,
    run_folder,
)
from commands.runs.save_before_release import (
    LastSave,
    Result,
    clear,
    lost_with_disk,
    save_before_release,
)
from commands.runs.take_lock import take_lock
from commands.ui.errors import CloudError, Exit, UsageError
from infra.azure.context import subscriptions
from infra.config import AzureTable, LocalTable, VmTable
from infra.provider import Gone, PowerState, Provider, ProviderError, Vm
from infra.retry import with_retries
from infra.run.budget import bill
from infra.run.fold import fold
from infra.run.journal import Journal, JournalDamaged, Kind, read
from infra.run.release import billed_until_s, release, still_there
from infra.run.state import RunState


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What was typed, and where to talk."""

    delete: bool
    now: bool
    on_message: Callable[[str], None]
    everything: bool = False

    @property
    def command(self) -> str:
        """The command line, without the name of a run."""
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
        return _down_unknown(wanted, home, on_message, delete=delete)
    folder = pick_run(home, wanted, cwd=Path.cwd())
    order = _Order(delete=delete, now=now, on_message=on_message)
    try:
        with take_lock(folder, on_message, command=order.command, urgent=now) as ended:
            provider = factory.make_provider(reopen(folder).config.vm, home)
            on_message(f"asking {provider.name} about `{folder.name}`")
            return _part(order, folder, home, provider, ended=ended)
    except ProviderError as error:
        raise CloudError(str(error), hint=error.hint) from error
    except KeyboardInterrupt:
        on_message(_unfinished(folder, order))
        raise


def _unfinished(folder: RunFolder, order: _Order) -> str:
    """What bills after Ctrl-C: whoever drove the run was ended before, so nobody watches it."""
    state = fold(read(folder.journal))
    if state.vm is None and state.pending is None:
        return f"\ninterrupted; nothing of `{folder.name}` is rented"
    price = bill(state, time.time()).usd_per_h_now
    again = replace(order, now=True).command
    return (
        f"\ninterrupted before it was done: `{folder.name}` bills ${price:.3f}/h, and nobody "
        f"drives it; `{again} {folder.name}` ends that at once"
    )


def _part(
    order: _Order, folder: RunFolder, home: Path, provider: Provider, *, ended: bool
) -> Result:
    """Let the trainer save, act, look again, and write down who ended the run."""
    record = _Record(folder.name, Journal(folder.journal, clock=time.time), order.on_message)
    state = fold(record.journal.events)
    goes = order.delete or not provider.traits.rents or not provider.traits.keeps_disk
    save = LastSave(home_step=state.home_step)
    if not order.now:
        save = save_before_release(
            folder, home, provider, state, order.on_message, pull_checkpoint=goes
        )
        record.saved(save, state)
    for line in lost_with_disk(state, save) if goes else []:
        order.on_message(line)
    if state.vm is not None and not provider.traits.rents:
        clear(folder, home, provider, state, order.on_message, now=order.now)
    done = replace(_down_known(record, provider, state, delete=order.delete), save=save)
    if state.ending is None and (ended or state.vm is not None or state.pending is not None):
        reason = "another `qft` ended the run: " * ended + f"`{order.command}` {_deed(done)}"
        record.note(Kind.RUN_ENDED, code=Exit.INTERRUPTED, reason=reason)
    return done


def _deed(done: Result) -> str:
    """What it did, in words for those who watched."""
    if done.removed:
        return "removed its machine"
    return "released its machine, its disk is kept" if done.deallocated else "found no machine"


@dataclass(frozen=True)
class _Record:
    """The journal of a run that goes down; it may not stand in the way of the end of the bill."""

    name: str
    journal: Journal
    on_message: Callable[[str], None]

    def note(self, kind: Kind, **data: object) -> None:
        """Write an event; on a disk that refuses, say so and go on: the cloud is the truth."""
        try:
            self.journal.append(kind, **data)
        except OSError as error:
            self.on_message(f"warning: `{kind}` is not recorded ({error}); releasing all the same")

    def saved(self, save: LastSave, state: RunState) -> None:
        """Write down how far the trainer was, and what of it is at home."""
        if save.step > state.step:
            self.note(Kind.PROGRESS, step=save.step, steps=save.steps)
        if save.home_step > state.home_step:
            self.note(Kind.CHECKPOINT_HOME, step=save.home_step)


def _down_known(record: _Record, provider: Provider, state: RunState, *, delete: bool) -> Result:
    """Journal the intent, act, and look again."""
    unsure = state.pending in {Kind.CREATE_INTENDED, Kind.DELETE_INTENDED}
    if delete or unsure or not provider.traits.rents or not provider.traits.keeps_disk:
        return _remove(record, provider, state)
    released = []
    vm = state.vm or next(iter(_listed(provider, state.run_id)), None)
    if vm is not None and vm.power is not PowerState.REMNANTS:
        record.note(Kind.DEALLOCATE_INTENDED, reason="qft down")
        try:
            until_s = release(provider, vm, time.sleep)
        except Gone:  # the machine is; its disk or address may still be there, and bill
            return _remove(record, provider, state)
        record.note(Kind.DEALLOCATED, reason="qft down", until_s=until_s)
        released.append(f"{vm.size} {vm.id}")
    result = Result(run=record.name, deallocated=released)
    return _proved(result, provider, state.run_id, state.vm)


def _remove(record: _Record, provider: Provider, state: RunState) -> Result:
    """Remove everything of the run, and look again."""
    record.note(Kind.DELETE_INTENDED, reason="qft down")
    gone = with_retries(lambda: provider.delete(state.run_id, record.on_message), time.sleep)
    removed = [f"{one.kind} {one.id}" for one in gone]
    record.note(Kind.DELETED, removed=removed, until_s=billed_until_s(gone))
    return _proved(Result(run=record.name, removed=removed), provider, state.run_id, state.vm)


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
    order = _Order(delete=delete, now=now, on_message=on_message, everything=True)
    results: list[Result] = []
    try:
        for provider in providers:
            results += _down_listed_by(provider, home, order)
    except KeyboardInterrupt:
        on_message("\ninterrupted; `qft ls --all` shows what bills, the same command goes on")
        raise
    return results


def _down_listed_by(provider: Provider, home: Path, order: _Order) -> Iterator[Result]:
    """Do it for every machine that one provider lists."""
    try:
        listed = with_retries(provider.list_all, time.sleep)
    except ProviderError as error:
        yield Result(run=provider.name, trouble=_told(error))
        return
    for vm in listed:
        with _released(home, vm, order) as (run, ended):
            try:
                if run is not None and _knows_machine(run, order):
                    yield _part(order, run, home, provider, ended=ended)
                else:
                    yield _down_listed(provider, vm, order.on_message, delete=order.delete)
            except ProviderError as error:
                yield Result(run=vm.run_id, trouble=_told(error))


def check_all(results: list[Result]) -> None:
    """Raise CloudTrouble if anything could not be done, after everything was tried."""
    failed = [one for one in results if one.trouble]
    if failed:
        raise CloudError(
            f"{len(failed)} of {len(results)} could not be released or removed, and may bill",
            problems=[f"{one.run}: {one.trouble}" for one in failed],
            hint="`qft ls --all` shows what is there; the same command may be repeated",
        )


def _told(error: ProviderError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


@contextlib.contextmanager
def _released(home: Path, vm: Vm, order: _Order) -> Iterator[tuple[RunFolder | None, bool]]:
    """Keep every driver of this computer away from a machine.

    Yield the run if that is done, and whether it was driven.
    """
    mine: RunFolder | None = None
    ended = False
    with contextlib.ExitStack() as held:
        for run in all_runs(home):
            if _run_id(run) == vm.run_id:
                take = take_lock(run, order.on_message, command=order.command, urgent=order.now)
                try:
                    ended = held.enter_context(take)
                    mine = run
                except RunBusy as busy:  # the money goes first
                    order.on_message(f"{busy.message}, and may start the machine again")
        yield mine, ended


def _knows_machine(run: RunFolder, order: _Order) -> bool:
    """Whether a run's record must tell of the release: or the bill there would go on for ever."""
    return order.delete or fold(read(run.journal)).vm is not None


def _run_id(run: RunFolder) -> str:
    """The id that a run's machines carry; empty if its record cannot be read."""
    try:
        return fold(read(run.journal)).run_id
    except JournalDamaged:
        return ""


def _down_listed(
    provider: Provider, vm: Vm, on_message: Callable[[str], None], *, delete: bool
) -> Result:
    if delete or not provider.traits.keeps_disk or not provider.traits.rents:
        gone = with_retries(lambda: provider.delete(vm.run_id, on_message), time.sleep)
        result = Result(run=vm.run_id, removed=[f"{one.kind} {one.id}" for one in gone])
        return _proved(result, provider, vm.run_id)
    released = []
    if vm.power is not PowerState.REMNANTS:
        with contextlib.suppress(Gone):
            with_retries(lambda: provider.deallocate(vm), time.sleep)
            released.append(f"{vm.size} {vm.id}")
    return _proved(Result(run=vm.run_id, deallocated=released), provider, vm.run_id)


def _listed(provider: Provider, run_id: str) -> list[Vm]:
    return [vm for vm in with_retries(provider.list_all, time.sleep) if vm.run_id == run_id]


def _proved(result: Result, provider: Provider, run_id: str, known: Vm | None = None) -> Result:
    """The result with what the provider still lists, looked at again."""
    left = still_there(provider, run_id, known, time.sleep)
    return replace(
        result,
        left=[f"{vm.size} {vm.id} ({vm.power})" for vm in left],
        idle_usd_per_h=sum(vm.idle_usd_per_h for vm in left),
        bills_compute=any(vm.power.bills_compute for vm in left) and provider.traits.rents,
    )


def _down_unknown(
    name: str, home: Path, on_message: Callable[[str], None], *, delete: bool
) -> Result:
    """A run that this computer has no record of: the tags decide."""
    for provider in known_providers(home):
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
            return _down_listed(provider, meant[0], on_message, delete=delete)
    raise UsageError(
        f"there is no run `{name}`, here or in the cloud", hint="`qft ls --all` lists all"
    )


def known_providers(home: Path, name: str = "") -> list[Provider]:
    """The providers to ask: the one named; else local, those that runs used, and a set-up Azure.

    Works with every local file lost: what is in the cloud is found by its tags.
    """
    if name:
        return [factory.make_provider(_bare_table(name), home)]
    tables: dict[tuple[str, str], VmTable] = {("local", ""): VmTable()}
    for run in all_runs(home):
        try:
            vm = reopen(run).config.vm
        except UsageError:
            continue  # a damaged record must not hide the machines of others
        account = vm.azure.subscription.lower() if vm.provider == "azure" else ""
        tables.setdefault((vm.provider, account), vm)
    chosen = environment().get("AZURE_SUBSCRIPTION_ID", "")
    accounts = {chosen.lower(), *subscriptions(home / "azure")} - {""}
    tables |= {("azure", one): _bare_table("azure", one) for one in sorted(accounts)}
    if accounts:
        tables.pop(("azure", ""), None)
    return [factory.make_provider(vm, home) for vm in tables.values()]


def _bare_table(name: str, subscription: str = "") -> VmTable:
    """What it takes to list and remove machines of a provider, without any run's config."""
    if name not in {"local", "azure"}:
        raise UsageError(f"`--provider {name}` lists no machines", hint="it is `local` or `azure`")
    return VmTable.model_construct(
        provider=name,
        local=LocalTable(),
        azure=AzureTable(subscription=subscription),
        ssh=None,
        max_price=None,
    )
