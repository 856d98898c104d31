"""One run opened for driving: its lock, journal, rooms and plan, ready for the supervisor."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from commands.runs import factory
from commands.runs.answers_env import needs_answers_env
from commands.runs.base_checks import require_trainable
from commands.runs.base_description import described
from commands.runs.base_record import HubBase, recorded_base
from commands.runs.config import LoadedConfig, check_data_and_model, require_weights
from commands.runs.config_diff import (
    changes,
    digests,
    is_bound,
    keys_for_trainer,
    remembered,
    require_same_machine,
)
from commands.runs.home import (
    RunFolder,
    is_locked,
    make_home,
    make_private,
    read_saved_config,
    require_utf8_home,
    require_writable,
    run_lock,
)
from commands.runs.hub_base import choose_base, require_token
from commands.runs.parent_adapter import keep_parent
from commands.runs.payload import build_payload
from commands.runs.peer_copies import PeerCopies
from commands.runs.planning.estimates import warn_if_too_large
from commands.runs.planning.pricing import order_for
from commands.runs.planning.start_plan import keep_plan
from commands.runs.power_watch import PowerWatch, power_check
from commands.runs.request import RunRequest
from commands.runs.result_files import expected
from commands.runs.run_day import day_of_run
from commands.runs.ssh_check import check_ssh_host
from commands.runs.workload import SshWorkload
from commands.runs.workload_config import RemoteLayout, WorkloadConfig
from commands.ui.errors import UsageError
from infra.durable import write_json
from infra.provider import Provider
from infra.renting.eviction_rate import hourly_band
from infra.run.budget import Budget
from infra.run.context import RunContext, TurnReport
from infra.run.fold import fold, fold_node
from infra.run.group import GroupContext, GroupSupervisor
from infra.run.journal import Event, Journal, Kind, read
from infra.run.nodes import NodeJournal, node_count
from infra.run.plan import Goal, Policy, RunPlan
from infra.run.state import RunState
from infra.run.supervisor import Supervisor
from trainer.config import EvictionBand
from trainer.hub_models import Account

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
    gather_s=10.0,
    regroup_every_s=20.0,
    short_max_s=30.0,
)
"""A cloud played by this computer boots in a second, so patience of minutes would be idleness."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run under this process's control: what was asked, and the rooms wired for it."""

    request: RunRequest
    journal: Journal
    provider: Provider
    workloads: tuple[SshWorkload, ...]
    """What is done on each of its machines."""
    supervisor: Supervisor | GroupSupervisor

    @property
    def plan(self) -> RunPlan:
        """What the supervisor is told to reach, and by which numbers."""
        config = self.request.loaded.config
        budget = config.budget
        return RunPlan(
            goal=self.request.goal,
            budget=Budget(
                usd=budget.usd,
                hours=budget.hours,
                evictions=budget.evictions,
                disk_days=budget.disk_days,
            ),
            policy=replace(
                policy_of(self.request.loaded), capacity_ttl_s_at=self.provider.capacity_ttls_s()
            ),
            rehearse_evictions=tuple(config.vm.rehearse_evictions),
            rents=self.provider.traits.rents,
            has_safeguards=self.provider.traits.has_safeguards,
            several_providers=len(config.vm.providers) > 1,
            nodes=config.vm.nodes,
            nodes_min=config.vm.nodes_min,
            several_places=len(config.vm.regions) != 1 or len(config.vm.providers) > 1,
        )


def policy_of(loaded: LoadedConfig) -> Policy:
    """The numbers that fit the provider of a run."""
    return LOCAL_POLICY if loaded.simulated else Policy()


@contextlib.contextmanager
def open_session(request: RunRequest) -> Iterator[Session]:
    """Take control of the run that is asked for, starting it if it is new.

    Raises RunBusyError if another process drives it, UsageError if config or data cannot be used;
    nothing is written to the cloud before everything on this side is in order.
    """
    loaded, folder = request.loaded, request.folder
    keys_for_trainer(request.allow_change)
    warnings = check_data_and_model(loaded)
    for warning in warnings if _begins(request) else ():
        request.console.log(f"warning: {warning}")
    require_weights(loaded)
    require_writable(loaded.out)
    if loaded.simulated:
        require_utf8_home(request.home)
    if loaded.own_machine and _begins(request):
        check_ssh_host(loaded.config.vm, folder)
    make_home(request.home)
    make_private(folder.root)
    with run_lock(folder):
        if request.fresh:
            _set_aside(folder)
        journal = Journal(folder.journal, clock=time.time)
        saved, state = read_saved_config(folder), fold(journal.events)
        bound = is_bound(state)
        if bound or state.vm is not None:
            _demand_same_file(loaded, saved)
        require_same_machine(loaded, saved, state)
        changed = changes(loaded, saved, request.allow_change, bound=bound)
        if changed and not bound:
            keys = ", ".join(changed)
            request.console.log(f"run.yaml changed ({keys}); nothing was trained yet, so it counts")
        request = replace(request, allow_change=remembered(saved, request.allow_change))
        base = _base_of(request, saved, state)
        if not bound:
            require_trainable(loaded)
        request = replace(request, account=_account_for_machine(request, base, state))
        # The config first: a record without one could not be opened again.
        write_json(folder.config, _saved(loaded, request.allow_change, base))
        if request.parent is not None:
            keep_parent(request.parent, folder.payload)
        if request.goal is not Goal.FETCH and (not state.run_id or (changed and not bound)):
            keep_plan(request, clock=time.time)
        if not state.run_id:
            run_id = f"{loaded.config.name}-{secrets.token_hex(2)}"
            journal.append(Kind.RUN_STARTED, run_id=run_id, name=loaded.config.name)
        elif not is_over(state) or changed:
            journal.append(Kind.RUN_RESUMED, changed=bool(changed))
        _refresh_own_machine(request, journal)
        session = build(request, journal)
        try:
            yield session
        finally:
            for workload in session.workloads:
                workload.disconnect()


def _refresh_own_machine(request: RunRequest, journal: Journal) -> None:
    """Know the user's own machine by the port and host key that run.yaml tells now.

    A wrong one is mended there; kept in the record, it would be refused for ever.
    """
    vm, table = fold(journal.events).vm, request.loaded.config.vm.ssh
    if vm is None or table is None or vm.provider != "ssh" or not table.host_key:
        return
    if (vm.port, vm.host_public_key) == (table.port, table.host_key):
        return
    current = replace(vm, port=table.port, host_public_key=table.host_key)
    journal.append(Kind.CREATE_ACCEPTED, vm=current.to_json())


def _begins(request: RunRequest) -> bool:
    """Whether there is work for this process: the run is not over, and nobody else drives it."""
    folder = request.folder
    if not folder.exists():
        return True
    return (request.fresh or not is_over(fold(read(folder.journal)))) and not is_locked(folder)


def build(request: RunRequest, journal: Journal) -> Session:
    """Wire the rooms of one run."""
    vm = request.loaded.config.vm
    count = max(vm.nodes, node_count(journal.events))
    if count > 1:
        return _build_group(request, journal, count)
    run_id = fold(journal.events).run_id
    provider = factory.make_provider(vm, request.home)
    workload = build_workload(request, run_id, provider, changed=_is_changed(journal.events))
    context = RunContext(
        provider=provider,
        workload=workload,
        journal=journal,
        make_spec=factory.spec_maker(vm, request.folder, run_id),
        want=factory.want(vm),
        clock=time.time,
        sleep=time.sleep,
        on_turn=_turn_reporter(request),
        order=order_for(request.loaded),
    )
    return Session(
        request=request,
        journal=journal,
        provider=provider,
        workloads=(workload,),
        supervisor=Supervisor(context),
    )


def _build_group(request: RunRequest, journal: Journal, count: int) -> Session:
    """Wire the rooms of a run with several machines: provider and workload of each are its own."""
    vm = request.loaded.config.vm
    run_id = fold(journal.events).run_id
    changed = _is_changed(journal.events)
    pull_lock, copies = threading.Lock(), PeerCopies()
    contexts: list[RunContext] = []
    workloads: list[SshWorkload] = []

    def make_node(number: int, own: NodeJournal) -> RunContext:
        provider = factory.make_provider(vm, request.home)
        workload = build_workload(
            request,
            run_id,
            provider,
            changed=changed,
            node=NodeWorkload(
                number=number, pull_lock=pull_lock, copies=copies, leads=partial(_leads, own)
            ),
        )
        context = RunContext(
            provider=provider,
            workload=workload,
            journal=own,
            make_spec=factory.spec_maker(vm, request.folder, run_id, number),
            want=factory.want(vm),
            clock=time.time,
            sleep=time.sleep,
            on_turn=_turn_reporter(request),
            order=order_for(request.loaded),
        )
        contexts.append(context)
        workloads.append(workload)
        return context

    group = GroupContext(
        journal=journal,
        make_node=make_node,
        on_turn=_turn_reporter(request),
        clock=time.time,
        sleep=time.sleep,
    )
    supervisor = GroupSupervisor(group, count=count)
    return Session(
        request=request,
        journal=journal,
        provider=contexts[0].provider,
        workloads=tuple(workloads),
        supervisor=supervisor,
    )


@dataclass(frozen=True, kw_only=True)
class NodeWorkload:
    """What the workload of one machine of several has to know of the others."""

    number: int
    pull_lock: threading.Lock
    copies: PeerCopies
    leads: Callable[[], bool]


def _leads(journal: NodeJournal) -> bool:
    """Whether it is the first of the group in which it trains, and has what all of them make."""
    state = fold_node(journal.events)
    return state.members[:1] in {(), (journal.node,)}


def _turn_reporter(request: RunRequest) -> Callable[[TurnReport], None]:
    """Return what shows a turn, and lets whoever watches the run know of it."""

    def report(turn: TurnReport) -> None:
        request.console.report(turn)
        for watcher in request.watchers:
            watcher.on_turn(turn)

    return report


def _is_changed(events: Sequence[Event]) -> bool:
    """Whether the training was changed since the trainer was last started."""
    for event in reversed(events):
        if event.kind is Kind.LAUNCHED:
            return False
        if event.kind is Kind.RUN_RESUMED and event.data.get("changed"):
            return True
    return False


def build_workload(  # noqa: PLR0913  (what the machine, and who asks, decide)
    request: RunRequest,
    run_id: str,
    provider: Provider,
    *,
    watch_only: bool = False,
    changed: bool = False,
    node: NodeWorkload | None = None,
) -> SshWorkload:
    """Build what this run does on a machine; with `watch_only` it copies nothing home."""
    power_watch = PowerWatch(power_check(provider))
    vm, on_message = request.loaded.config.vm, request.console.log
    of_node: dict[str, Any] = {}
    if node is not None:
        on_message = partial(_log_of_node, request.console.log, node.number)
        of_node = {"leads": node.leads, "pull_lock": node.pull_lock, "copies": node.copies}
    config = WorkloadConfig(
        layout=RemoteLayout(run_id=run_id),
        key_path=factory.user_key(vm, request.folder),
        payload=build_payload(
            request.loaded,
            request.folder.payload,
            write=not watch_only,
            day=day_of_run(request.loaded, request.folder),
            base=recorded_base(request.loaded, read_saved_config(request.folder), request.folder),
        ),
        home=request.folder.checkpoints,
        out=request.loaded.out,
        cards_on=partial(factory.cards_on, vm),
        gpus=vm.gpus,
        nodes=vm.nodes,
        make_ready=factory.make_ready(
            vm,
            on_message,
            power_watch.connect,
            answers=needs_answers_env(request.loaded),
        ),
        cache=request.home / "cache",
        helper_python=factory.helper_python(vm),
        rents=provider.traits.rents,
        brings_home=not watch_only,
        expected=lambda: expected(request.loaded),
        eviction_band=lambda: _band(request.folder),
        power_watch=power_watch,
        allow_change=keys_for_trainer(request.allow_change),
        changed=changed,
        account=request.account,
        on_message=on_message,
        progress=request.console.progress,
        **of_node,
    )
    return SshWorkload(config)


def _log_of_node(log: Callable[[str], None], number: int, text: str) -> None:
    """Print a line about one machine of several."""
    log(f"node {number}: {text}")


def _band(folder: RunFolder) -> str:
    """The hourly eviction band of the offer that was taken; empty if the vendor tells none."""
    offer = fold(read(folder.journal)).offer
    band = hourly_band(offer.eviction_band, offer.eviction_period) if offer else ""
    return band if band in {str(one) for one in EvictionBand} else ""


def is_over(state: RunState) -> bool:
    """Whether the run has reached everything that `qft run` promises."""
    return bool(state.fetched) and state.deleted


def _base_of(request: RunRequest, saved: Mapping[str, object], state: RunState) -> HubBase | None:
    """The base on a hub that the run takes; the hub is asked, where that is still open."""
    if request.goal is Goal.FETCH or is_over(state):
        return recorded_base(request.loaded, saved, request.folder)
    described_before = described(request.loaded) is not None
    base = choose_base(
        request.loaded,
        saved,
        request.folder,
        bound=is_bound(state),
        console=request.console,
    )
    if not described_before:
        warn_if_too_large(request.loaded, request.console.log)
    return base


def _account_for_machine(
    request: RunRequest, base: HubBase | None, state: RunState
) -> Account | None:
    """As whom the trainer there fetches the base; None if it needs no token."""
    if request.goal is Goal.FETCH or is_over(state) or (base is not None and base.sent):
        return None
    return require_token(request.loaded, request.console.log)


def _saved(
    loaded: LoadedConfig, allowed: Sequence[str], base: HubBase | None = None
) -> dict[str, Any]:
    return {
        "path": str(loaded.path),
        "config": loaded.config.model_dump(mode="json"),
        "rows": digests(loaded),
        "allowed": list(allowed),
        **({} if base is None else {"base": base.to_json()}),
    }


def _demand_same_file(loaded: LoadedConfig, saved: dict[str, object]) -> None:
    """Raise UsageError if the name belongs to another `run.yaml` that is still there."""
    first = Path(str(saved.get("path", "")))
    if first.is_file() and not first.samefile(loaded.path):
        raise UsageError(
            f"the name `{loaded.config.name}` belongs to the run of `{first}`",
            hint="choose another `name`, or `--fresh` to begin anew under this one",
        )


def _set_aside(folder: RunFolder, *, clock: Callable[[], float] = time.time) -> None:
    """Begin again, the old record kept beside the new. Raises UsageError while it has a machine."""
    if not folder.exists():
        return
    state = fold(Journal(folder.journal, clock=clock).events)
    if state.vm is not None or state.pending is not None:
        raise UsageError(
            f"the run `{folder.name}` still has a machine",
            hint=f"`qft down --delete {folder.name}` removes it; then begin afresh",
        )
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(clock()))
    old = folder.root / f"before-{stamp}"
    old.mkdir()
    for path in (
        folder.journal,
        folder.config,
        folder.plan,
        folder.checkpoints,
        folder.payload,
        folder.live,
        folder.root / "scores",
    ):
        if path.exists():
            path.rename(old / path.name)
