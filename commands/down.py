"""`qft down`: stop the billing, and prove it by looking again."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from infra.config import AzureTable, LocalTable, VmTable
from infra.journal import Journal, JournalDamaged, Kind, read
from infra.provider import Gone, Provider, ProviderError, Vm
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

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "removed": self.removed,
            "deallocated": self.deallocated,
            "idle_usd_per_h": self.idle_usd_per_h,
            "left": self.left,
        }

    def lines(self) -> list[str]:
        """What to print."""
        said = [f"removed {what}" for what in self.removed]
        said += [f"released {what}; its disk is kept" for what in self.deallocated]
        if self.left:
            price = f"${self.idle_usd_per_h:.4f}/h for the disk and address"
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
        return _down_unknown(wanted, home, delete=delete)
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
    if state.vm is not None and provider.traits.rents:
        record.note(Kind.DEALLOCATE_INTENDED, reason="qft down")
        try:
            provider.deallocate(state.vm)
        except Gone:  # the machine is; its disk or address may still be there, and bill
            return _remove(record, provider, state)
        record.note(Kind.DEALLOCATED, reason="qft down")
        released.append(f"{state.vm.size} {state.vm.id}")
    idle = state.offer.idle_usd_per_h if state.offer else 0.0
    left = _left(provider, state.run_id)
    idle = idle if left else 0.0
    return Result(run=record.name, deallocated=released, idle_usd_per_h=idle, left=left)


def _remove(record: _Record, provider: Provider, state: RunState) -> Result:
    """Remove everything of the run, and look again."""
    record.note(Kind.DELETE_INTENDED, reason="qft down")
    removed = [f"{r.kind} {r.id}" for r in provider.delete(state.run_id)]
    record.note(Kind.DELETED, removed=removed)
    return Result(run=record.name, removed=removed, left=_left(provider, state.run_id))


def down_all(
    providers: list[Provider], home: Path, *, delete: bool, say: Callable[[str], None]
) -> list[Result]:
    """Release or remove every machine that carries our tag, with or without a local record.

    Whoever drives one of them from this computer is stopped first, or it would start it again.
    """
    results = []
    for provider in providers:
        try:
            for vm in provider.list_all():
                with _released(home, vm, say) as run:
                    results.append(_down_one(provider, vm, run, say, delete=delete))
        except ProviderError as error:
            raise CloudTrouble(str(error), hint=error.hint) from error
    return results


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
    return _down_listed(provider, vm, delete=delete)


def _run_id(run: RunFolder) -> str:
    """The id that a run's machines carry; empty if its record cannot be read."""
    try:
        return fold(read(run.journal)).run_id
    except JournalDamaged:
        return ""


def _down_listed(provider: Provider, vm: Vm, *, delete: bool) -> Result:
    if delete or not provider.traits.keeps_disk or not provider.traits.rents:
        removed = [f"{r.kind} {r.id}" for r in provider.delete(vm.run_id)]
        return Result(run=vm.run_id, removed=removed, left=_left(provider, vm.run_id))
    try:
        provider.deallocate(vm)
    except Gone:
        return Result(run=vm.run_id)
    left = _left(provider, vm.run_id)
    return Result(run=vm.run_id, deallocated=[f"{vm.size} {vm.id}"], left=left)


def _down_unknown(name: str, home: Path, *, delete: bool) -> Result:
    """A run that this computer has no record of: the tags decide."""
    for provider in known_providers(home):
        try:
            listed = provider.list_all()
        except ProviderError as error:
            raise CloudTrouble(str(error), hint=error.hint) from error
        meant = [vm for vm in listed if name in {vm.run_id, vm.run_id.rpartition("-")[0]}]
        if len({vm.run_id for vm in meant}) > 1:
            found = [f"{vm.run_id}: {vm.size} in {vm.region}, {vm.power}" for vm in meant]
            raise Usage(
                f"several runs are named `{name}`", problems=found, hint="give the whole id"
            )
        if meant:
            return _down_listed(provider, meant[0], delete=delete)
    raise Usage(f"there is no run `{name}`, here or in the cloud", hint="`qft ls --all` lists all")


def known_providers(home: Path, name: str = "") -> list[Provider]:
    """The providers to ask: the one named; else local, those that runs used, and a set-up Azure.

    Works with every local file lost: what is in the cloud is found by its tags.
    """
    if name:
        return [wire.make_provider(_bare_table(name), home)]
    tables: dict[str, VmTable] = {"local": VmTable()}
    for run in all_runs(home):
        try:
            vm = reopen(run).config.vm
        except Usage:
            continue  # a damaged record must not hide the machines of others
        tables.setdefault(vm.provider, vm)
    if environment().get("AZURE_SUBSCRIPTION_ID"):
        tables.setdefault("azure", _bare_table("azure"))
    return [wire.make_provider(vm, home) for vm in tables.values()]


def _bare_table(name: str) -> VmTable:
    """What it takes to list and remove machines of a provider, without any run's config."""
    if name not in {"local", "azure"}:
        raise Usage(f"`--provider {name}` lists no machines", hint="it is `local` or `azure`")
    return VmTable.model_construct(
        provider=name, local=LocalTable(), azure=AzureTable(), ssh=None, max_price=None
    )


def _left(provider: Provider, run_id: str) -> list[str]:
    return [f"{vm.size} {vm.id} ({vm.power})" for vm in provider.list_all() if vm.run_id == run_id]
