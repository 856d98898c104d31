"""One run opened for driving: its lock, journal, rooms and plan, ready for the supervisor."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from commands.runs import factory
from commands.runs.config import LoadedConfig, check, check_files, demand_weights
from commands.runs.config_diff import (
    changes,
    demand_same_machine,
    digests,
    for_trainer,
    is_bound,
    remembered,
)
from commands.runs.home import (
    RunFolder,
    demand_place,
    demand_playable,
    driving,
    is_driven,
    make_home,
    make_private,
    run_folder,
    saved_config,
)
from commands.runs.payload import stage
from commands.runs.power_watch import Vigil, asking
from commands.runs.remote_layout import Setting, Site
from commands.runs.result_files import expected
from commands.runs.ssh_check import demand_host
from commands.runs.workload import SshWorkload
from commands.ui.console import Console
from commands.ui.errors import Usage
from infra.durable import write_json
from infra.provider import Provider
from infra.run.budget import Budget
from infra.run.context import RunContext
from infra.run.fold import fold
from infra.run.journal import Event, Journal, Kind, read
from infra.run.plan import Goal, Policy, RunPlan
from infra.run.state import RunState
from infra.run.supervisor import Supervisor
from trainer.config import EvictionBand

LOCAL_POLICY = Policy(
    poll_s=1.0,
    boot_wait_s=60.0,
    unreachable_wait_s=20.0,
    backoff_first_s=1.0,
    backoff_max_s=15.0,
    capacity_ttl_s=10.0,
    price_ttl_s=10.0,
    preempt_grace_s=30.0,
    offline_max_s=60.0,
)
"""A cloud played by this computer boots in a second, so patience of minutes would be idleness."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run under this process's control."""

    folder: RunFolder
    loaded: LoadedConfig
    journal: Journal
    provider: Provider
    workload: SshWorkload
    supervisor: Supervisor

    def plan(self, goal: Goal) -> RunPlan:
        """What the supervisor is told to reach."""
        config = self.loaded.config
        budget = config.budget
        return RunPlan(
            goal=goal,
            budget=Budget(usd=budget.usd, hours=budget.hours, evictions=budget.evictions),
            policy=policy_of(self.loaded),
            rehearse_evictions=tuple(config.vm.rehearse_evictions),
            rents=self.provider.traits.rents,
            has_safeguards=self.provider.traits.has_safeguards,
        )


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What the command line says about a run."""

    loaded: LoadedConfig
    home: Path
    console: Console
    allow_change: tuple[str, ...] = ()
    fresh: bool = False
    vigil: Vigil = field(default_factory=lambda: Vigil(lambda _vm: ""))
    """Asks the cloud whether the machine is still there while something long is done on it."""

    @property
    def folder(self) -> RunFolder:
        """The run's folder on this computer."""
        return run_folder(self.home, self.loaded.config.name)


def policy_of(loaded: LoadedConfig) -> Policy:
    """The numbers that fit the provider of a run."""
    return LOCAL_POLICY if loaded.config.vm.provider == "local" else Policy()


@contextlib.contextmanager
def opened(desk: Desk) -> Iterator[Session]:
    """Take control of the run on the desk, starting it if it is new.

    Raises Busy if another process drives it, Usage if config or data cannot be used; nothing is
    written to the cloud before everything on this side is in order.
    """
    loaded, folder = desk.loaded, desk.folder
    for_trainer(desk.allow_change)
    check_files(loaded)
    demand_weights(loaded)
    demand_place(loaded.out)
    if loaded.config.vm.provider == "local":
        demand_playable(desk.home)
    if loaded.config.vm.provider == "ssh" and _begins(desk):
        demand_host(loaded.config.vm, folder)
    make_home(desk.home)
    make_private(folder.root)
    with driving(folder):
        if desk.fresh:
            _set_aside(folder)
        journal = Journal(folder.journal, clock=time.time)
        saved, state = saved_config(folder), fold(journal.events)
        bound = is_bound(state)
        if bound or state.vm is not None:
            _demand_same_file(loaded, saved)
        demand_same_machine(loaded, saved, state)
        changed = changes(loaded, saved, desk.allow_change, bound=bound)
        if changed and not bound:
            keys = ", ".join(changed)
            desk.console.log(f"run.yaml changed ({keys}); nothing was trained yet, so it counts")
        desk = replace(desk, allow_change=remembered(saved, desk.allow_change))
        # The config first: a record without one could not be opened again.
        write_json(folder.config, _saved(loaded, desk.allow_change))
        if not state.run_id:
            run_id = f"{loaded.config.name}-{secrets.token_hex(2)}"
            journal.append(Kind.RUN_STARTED, run_id=run_id, name=loaded.config.name)
        elif not is_over(state) or changed:
            journal.append(Kind.RUN_RESUMED, changed=bool(changed))
        _tell_anew(desk, journal)
        session = build(desk, journal)
        try:
            yield session
        finally:
            session.workload.disconnect()


def _tell_anew(desk: Desk, journal: Journal) -> None:
    """Know the user's own machine by the port and host key that run.yaml tells now.

    A wrong one is mended there; kept in the record, it would be refused for ever.
    """
    vm, table = fold(journal.events).vm, desk.loaded.config.vm.ssh
    if vm is None or table is None or vm.provider != "ssh" or not table.host_key:
        return
    if (vm.port, vm.host_public_key) == (table.port, table.host_key):
        return
    known = replace(vm, port=table.port, host_public_key=table.host_key)
    journal.append(Kind.CREATE_ACCEPTED, vm=asdict(known))


def _begins(desk: Desk) -> bool:
    """Whether there is work for this process: the run is not over, and nobody else drives it."""
    folder = desk.folder
    if not folder.exists():
        return True
    return (desk.fresh or not is_over(fold(read(folder.journal)))) and not is_driven(folder)


def reopen(folder: RunFolder) -> LoadedConfig:
    """The config that the run was last started with, checked again."""
    saved = saved_config(folder)
    content, path = saved.get("config"), saved.get("path")
    if not isinstance(content, dict) or not isinstance(path, str):
        raise Usage(
            f"the run `{folder.name}` has lost its config `{folder.config}`",
            hint="`qft ls --all` and `qft down --all` work without it",
        )
    return check(content, Path(path))


def build(desk: Desk, journal: Journal) -> Session:
    """Wire the rooms of one run."""
    vm = desk.loaded.config.vm
    run_id = fold(journal.events).run_id
    provider = factory.make_provider(vm, desk.home)
    changed = _is_changed(journal.events)
    desk = replace(desk, vigil=Vigil(asking(provider)))
    workload = make_workload(desk, run_id, rents=provider.traits.rents, changed=changed)
    context = RunContext(
        provider=provider,
        workload=workload,
        journal=journal,
        make_spec=factory.spec_maker(vm, desk.folder, run_id),
        want=factory.want(vm),
        clock=time.time,
        sleep=time.sleep,
        on_turn=desk.console.report,
    )
    return Session(
        folder=desk.folder,
        loaded=desk.loaded,
        journal=journal,
        provider=provider,
        workload=workload,
        supervisor=Supervisor(context),
    )


def _is_changed(events: Sequence[Event]) -> bool:
    """Whether the training was changed since the trainer was last started."""
    for event in reversed(events):
        if event.kind is Kind.LAUNCHED:
            return False
        if event.kind is Kind.RUN_RESUMED and event.data.get("changed"):
            return True
    return False


def make_workload(
    desk: Desk, run_id: str, *, rents: bool, watch_only: bool = False, changed: bool = False
) -> SshWorkload:
    """What this run does on a machine; with `watch_only` it copies nothing home."""
    vm, on_message = desk.loaded.config.vm, desk.console.log
    setting = Setting(
        site=Site(run_id=run_id),
        key_path=factory.user_key(vm, desk.folder),
        staged=stage(desk.loaded, desk.folder.staging, write=not watch_only),
        home=desk.folder.checkpoints,
        out=desk.loaded.out,
        make_ready=factory.make_ready(vm, on_message, desk.vigil.connect),
        cache=desk.home / "cache",
        helper_python=factory.helper_python(vm),
        rents=rents,
        brings_home=not watch_only,
        expected=lambda: expected(desk.loaded),
        eviction_band=lambda: _band(desk.folder),
        vigil=desk.vigil,
        allow_change=for_trainer(desk.allow_change),
        changed=changed,
        on_message=on_message,
        progress=desk.console.progress,
    )
    return SshWorkload(setting)


def _band(folder: RunFolder) -> str:
    """The eviction band of the offer that was taken; empty if the vendor tells none."""
    offer = fold(read(folder.journal)).offer
    known = {str(band) for band in EvictionBand}
    return offer.eviction_band if offer and offer.eviction_band in known else ""


def is_over(state: RunState) -> bool:
    """Whether the run has reached everything that `qft run` promises."""
    return bool(state.fetched) and state.deleted


def _saved(loaded: LoadedConfig, allowed: Sequence[str]) -> dict[str, Any]:
    return {
        "path": str(loaded.path),
        "config": loaded.config.model_dump(mode="json"),
        "rows": digests(loaded),
        "allowed": list(allowed),
    }


def _demand_same_file(loaded: LoadedConfig, saved: dict[str, object]) -> None:
    """Raise Usage if the name belongs to another `run.yaml` that is still there; it may move."""
    first = Path(str(saved.get("path", "")))
    if first.is_file() and not first.samefile(loaded.path):
        raise Usage(
            f"the name `{loaded.config.name}` belongs to the run of `{first}`",
            hint="choose another `name`, or `--fresh` to begin anew under this one",
        )


def _set_aside(folder: RunFolder, *, clock: Callable[[], float] = time.time) -> None:
    """Begin again: keep the old record beside the new one. Raises Usage while it has a machine."""
    if not folder.exists():
        return
    state = fold(Journal(folder.journal, clock=clock).events)
    if state.vm is not None or state.pending is not None:
        raise Usage(
            f"the run `{folder.name}` still has a machine",
            hint=f"`qft down --delete {folder.name}` removes it; then begin afresh",
        )
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(clock()))
    old = folder.root / f"before-{stamp}"
    old.mkdir()
    for path in (
        folder.journal,
        folder.config,
        folder.checkpoints,
        folder.staging,
        folder.root / "scores",
    ):
        if path.exists():
            path.rename(old / path.name)
