"""`qft down`: stop the billing, and prove it by looking again."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from commands import wire
from commands.config import LoadedConfig
from commands.console import PlainConsole
from commands.errors import CloudTrouble, Usage
from commands.home import (
    RUN_NAME,
    Busy,
    RunFolder,
    all_runs,
    environment,
    pick_run,
    qft_home,
    run_folder,
)
from commands.session import Desk, make_workload, reopen
from commands.takeover import taken
from infra.azure.record import subscriptions
from infra.config import AzureTable, LocalTable, VmTable
from infra.journal import Journal, JournalDamaged, Kind, read
from infra.patience import ask
from infra.provider import Gone, PowerState, Provider, ProviderError, Vm
from infra.removal import billed_until_s, release, remove, still_there
from infra.state import RunState, fold
from infra.workload import HostNotTrusted, HostUnfit, HostUnreachable


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
    trouble: str = ""
    """Why it could not be done; empty if it was."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "removed": self.removed,
            "deallocated": self.deallocated,
            "idle_usd_per_h": self.idle_usd_per_h,
            "left": self.left,
            "bills_compute": self.bills_compute,
            "trouble": self.trouble or None,
        }

    def lines(self) -> list[str]:
        """What to print."""
        said = [f"removed {what}" for what in self.removed]
        said += [f"released {what}; its disk is kept" for what in self.deallocated]
        if self.trouble:
            said.append(f"NOT done for `{self.run}`: {self.trouble}")
        elif self.left:
            price = f"${self.idle_usd_per_h:.4f}/h for the disk and address"
            price = "it bills its full price" if self.bills_compute else price
            said.append(f"still there: {', '.join(self.left)} ({price})")
            said.append(f"hint: `qft down --delete {self.run}` removes it too")
        else:
            said.append(f"nothing of `{self.run}` bills: the provider lists no machine of it")
        return said


def down(wanted: str, *, delete: bool, say: Callable[[str], None]) -> Result:
    """Release (or with `delete` remove) the machine of one run. Safe to repeat.

    Works with the local record lost, from the tags in the cloud alone.
    """
    home = qft_home(environment())
    if RUN_NAME.fullmatch(wanted) and not run_folder(home, wanted).exists():
        return _down_unknown(wanted, home, say, delete=delete)
    folder = pick_run(home, wanted, cwd=Path.cwd())
    with taken(folder, say):
        loaded = reopen(folder)
        provider = wire.make_provider(loaded.config.vm, home)
        journal = Journal(folder.journal, clock=time.time)
        state = fold(journal.events)
        say(f"asking {provider.name} about `{folder.name}`")
        if state.vm is not None and not provider.traits.rents:
            _clear(loaded, home, state, say)
        try:
            return _down_known(_Record(folder.name, journal, say), provider, state, delete=delete)
        except ProviderError as error:
            raise CloudTrouble(str(error), hint=error.hint) from error


def _clear(loaded: LoadedConfig, home: Path, state: RunState, say: Callable[[str], None]) -> None:
    """Stop the trainer on a machine that stays the user's, and remove the run's folder there."""
    console = PlainConsole(sys.stderr, simulated=False, clock=time.monotonic)
    desk = Desk(loaded=loaded, home=home, console=console)
    workload = make_workload(desk, state.run_id, rents=False, watch_only=True)
    try:
        if state.vm is not None:
            workload.clear(state.vm)
    except (HostUnreachable, HostNotTrusted, HostUnfit) as error:
        say(f"the folder `qft/{state.run_id}` stays on the machine: {error}")
    finally:
        workload.forget()


@dataclass(frozen=True)
class _Record:
    """The journal of a run that goes down; it may not stand in the way of the end of the bill."""

    name: str
    journal: Journal
    say: Callable[[str], None]

    def note(self, kind: Kind, **data: object) -> None:
        """Write an event; on a disk that refuses, say so and go on: the cloud is the truth."""
        try:
            self.journal.append(kind, **data)
        except OSError as error:
            self.say(f"warning: `{kind}` is not recorded ({error}); releasing all the same")


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
    gone = remove(provider, state.run_id, record.say, time.sleep)
    removed = [f"{one.kind} {one.id}" for one in gone]
    record.note(Kind.DELETED, removed=removed, until_s=billed_until_s(gone))
    return _proved(Result(run=record.name, removed=removed), provider, state.run_id, state.vm)


def down_all(
    providers: list[Provider], home: Path, *, delete: bool, say: Callable[[str], None]
) -> list[Result]:
    """Release or remove every machine that carries our tag, with or without a local record.

    Whoever drives one of them from this computer is stopped first, or it would start it again.
    What fails for one machine, or one provider, is told in its result and stops no other.
    """
    results = []
    for provider in providers:
        try:
            listed = ask(provider.list_all, time.sleep)
        except ProviderError as error:
            results.append(Result(run=provider.name, trouble=_told(error)))
            continue
        for vm in listed:
            with _released(home, vm, say) as run:
                try:
                    results.append(_down_one(provider, vm, run, say, delete=delete))
                except ProviderError as error:
                    results.append(Result(run=vm.run_id, trouble=_told(error)))
    return results


def check_all(results: list[Result]) -> None:
    """Raise CloudTrouble if anything could not be done, after everything was tried."""
    failed = [one for one in results if one.trouble]
    if failed:
        raise CloudTrouble(
            f"{len(failed)} of {len(results)} could not be released or removed, and may bill",
            problems=[f"{one.run}: {one.trouble}" for one in failed],
            hint="`qft ls --all` shows what is there; the same command may be repeated",
        )


def _told(error: ProviderError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


@contextlib.contextmanager
def _released(home: Path, vm: Vm, say: Callable[[str], None]) -> Iterator[RunFolder | None]:
    """Keep every driver of this computer away from a machine; yield the run if that is done."""
    mine: RunFolder | None = None
    with contextlib.ExitStack() as held:
        for run in all_runs(home):
            if _run_id(run) == vm.run_id:
                try:
                    held.enter_context(taken(run, say))
                    mine = run
                except Busy as busy:  # the money goes first
                    say(f"{busy.message}, and may start the machine again")
        yield mine


def _down_one(
    provider: Provider,
    vm: Vm,
    run: RunFolder | None,
    say: Callable[[str], None],
    *,
    delete: bool,
) -> Result:
    """Release a machine, also in the record of its run: or the bill there would go on for ever."""
    if run is not None:
        journal = Journal(run.journal, clock=time.time)
        state = fold(journal.events)
        if state.vm is not None or delete:
            record = _Record(run.name, journal, say)
            return _down_known(record, provider, state, delete=delete)
    return _down_listed(provider, vm, say, delete=delete)


def _run_id(run: RunFolder) -> str:
    """The id that a run's machines carry; empty if its record cannot be read."""
    try:
        return fold(read(run.journal)).run_id
    except JournalDamaged:
        return ""


def _down_listed(provider: Provider, vm: Vm, say: Callable[[str], None], *, delete: bool) -> Result:
    if delete or not provider.traits.keeps_disk or not provider.traits.rents:
        gone = remove(provider, vm.run_id, say, time.sleep)
        result = Result(run=vm.run_id, removed=[f"{one.kind} {one.id}" for one in gone])
        return _proved(result, provider, vm.run_id)
    released = []
    if vm.power is not PowerState.REMNANTS:
        with contextlib.suppress(Gone):
            ask(lambda: provider.deallocate(vm), time.sleep)
            released.append(f"{vm.size} {vm.id}")
    return _proved(Result(run=vm.run_id, deallocated=released), provider, vm.run_id)


def _listed(provider: Provider, run_id: str) -> list[Vm]:
    return [vm for vm in ask(provider.list_all, time.sleep) if vm.run_id == run_id]


def _proved(result: Result, provider: Provider, run_id: str, known: Vm | None = None) -> Result:
    """The result with what the provider still lists, looked at again."""
    left = still_there(provider, run_id, known, time.sleep)
    return replace(
        result,
        left=[f"{vm.size} {vm.id} ({vm.power})" for vm in left],
        idle_usd_per_h=sum(vm.idle_usd_per_h for vm in left),
        bills_compute=any(vm.power.bills_compute for vm in left) and provider.traits.rents,
    )


def _down_unknown(name: str, home: Path, say: Callable[[str], None], *, delete: bool) -> Result:
    """A run that this computer has no record of: the tags decide."""
    for provider in known_providers(home):
        try:
            listed = ask(provider.list_all, time.sleep)
        except ProviderError as error:
            raise CloudTrouble(str(error), hint=error.hint) from error
        meant = [vm for vm in listed if name in {vm.run_id, vm.run_id.rpartition("-")[0]}]
        if len({vm.run_id for vm in meant}) > 1:
            found = [f"{vm.run_id}: {vm.size} in {vm.region}, {vm.power}" for vm in meant]
            raise Usage(
                f"several runs are named `{name}`", problems=found, hint="give the whole id"
            )
        if meant:
            return _down_listed(provider, meant[0], say, delete=delete)
    raise Usage(f"there is no run `{name}`, here or in the cloud", hint="`qft ls --all` lists all")


def known_providers(home: Path, name: str = "") -> list[Provider]:
    """The providers to ask: the one named; else local, those that runs used, and a set-up Azure.

    Works with every local file lost: what is in the cloud is found by its tags.
    """
    if name:
        return [wire.make_provider(_bare_table(name), home)]
    tables: dict[tuple[str, str], VmTable] = {("local", ""): VmTable()}
    for run in all_runs(home):
        try:
            vm = reopen(run).config.vm
        except Usage:
            continue  # a damaged record must not hide the machines of others
        account = vm.azure.subscription.lower() if vm.provider == "azure" else ""
        tables.setdefault((vm.provider, account), vm)
    chosen = environment().get("AZURE_SUBSCRIPTION_ID", "")
    accounts = {chosen.lower(), *subscriptions(home / "azure")} - {""}
    tables |= {("azure", one): _bare_table("azure", one) for one in sorted(accounts)}
    if accounts:
        tables.pop(("azure", ""), None)
    return [wire.make_provider(vm, home) for vm in tables.values()]


def _bare_table(name: str, subscription: str = "") -> VmTable:
    """What it takes to list and remove machines of a provider, without any run's config."""
    if name not in {"local", "azure"}:
        raise Usage(f"`--provider {name}` lists no machines", hint="it is `local` or `azure`")
    return VmTable.model_construct(
        provider=name,
        local=LocalTable(),
        azure=AzureTable(subscription=subscription),
        ssh=None,
        max_price=None,
    )
