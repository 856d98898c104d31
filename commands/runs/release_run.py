"""Releases or removes the machines of a recorded run, and proves that none of them bills."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from commands.runs.save_before_release import LastSave, Result
from commands.ui.nodes import each_node, of_node
from infra.errors import Gone
from infra.provider import PowerState, Provider, Removed, Vm
from infra.retry import with_retries
from infra.run.journal import Journal, Kind
from infra.run.release import (
    billed_until_s,
    may_restart,
    release,
    still_there,
    stop_restarts,
)
from infra.run.state import RunState

REASON = "qft down"
_UNSURE = frozenset({Kind.CREATE_INTENDED, Kind.DELETE_INTENDED})


@dataclass(frozen=True)
class Record:
    """The journal of a run whose machines are released, which must not fail with the journal."""

    name: str
    journal: Journal
    on_message: Callable[[str], None]

    def note(self, kind: Kind, node: int = 0, **data: object) -> None:
        """Append an event; on a disk that refuses, print so and go on: the cloud is the truth."""
        try:
            self.journal.append(kind, **of_node(node), **data)
        except OSError as error:
            self.on_message(f"warning: `{kind}` is not recorded ({error}); releasing all the same")

    def saved(self, save: LastSave, state: RunState) -> None:
        """Record how far the trainer was, and which checkpoint is at home."""
        if save.step > state.step:
            self.note(Kind.PROGRESS, save.node, step=save.step, steps=save.steps)
        if save.home_step > state.home_step:
            self.note(Kind.CHECKPOINT_HOME, save.node, step=save.home_step)


def release_recorded(
    record: Record,
    provider: Provider,
    state: RunState,
    *,
    delete: bool,
    disk_days: float | None,
) -> Result:
    """Release or remove the machines of a recorded run: journal the intent, act, observe."""
    nodes = each_node(state)
    delete = delete or not provider.traits.rents or not provider.traits.keeps_disk
    if delete or all(_is_unsure(one) or (state.nodes and _is_nothing(one)) for one in nodes):
        return _remove(record, provider, state)
    result = Result(run=record.name)
    machines, found = _machines(provider, state)
    for node, vm in sorted(machines.items()):
        if node < len(nodes) and _is_unsure(nodes[node]):
            result = _remove_node(record, provider, result, node, vm)
        elif vm.power is not PowerState.REMNANTS:
            try:
                result = _release(record, provider, result, node, vm, disk_days=disk_days)
            except Gone:  # the machine is; its disk or address may still be there, and bill
                if not state.nodes:
                    return _remove(record, provider, state)
                result = _remove_node(record, provider, result, node, vm)
    for node, one in enumerate(nodes):  # a machine that never came to be
        if state.nodes and _is_unsure(one) and node not in machines:
            record.note(Kind.DELETE_INTENDED, node, reason=REASON)
            record.note(Kind.DELETED, node, removed=[], until_s=None)
    return proved(result, provider, state.run_id, found)


def _is_unsure(one: RunState) -> bool:
    return one.pending in _UNSURE


def _is_nothing(one: RunState) -> bool:
    return one.vm is None and one.pending is None


def _machines(provider: Provider, state: RunState) -> tuple[dict[int, Vm], list[Vm]]:
    """Return the machine of each node, as recorded or else as listed; then those recorded."""
    if not state.nodes:
        vm = state.vm or next(iter(listed(provider, state.run_id)), None)
        return ({} if vm is None else {0: vm}), ([] if state.vm is None else [state.vm])
    recorded = {node: one.vm for node, one in enumerate(state.nodes) if one.vm is not None}
    there = {vm.node: vm for vm in listed(provider, state.run_id)}
    return {**there, **recorded}, list(recorded.values())


def _release(  # noqa: PLR0913  (each is another room's)
    record: Record,
    provider: Provider,
    result: Result,
    node: int,
    vm: Vm,
    *,
    disk_days: float | None,
) -> Result:
    """Release one machine, its disk kept. Raises Gone if there is none."""
    record.note(Kind.DEALLOCATE_INTENDED, node, reason=REASON)
    ended = release(provider, vm, time.sleep)
    record.note(Kind.DEALLOCATED, node, reason=REASON, **ended)
    result = replace(result, deallocated=[*result.deallocated, f"{vm.size} {vm.id}"])
    if may_restart(provider, vm, time.sleep):
        stops = stop_restarts(
            provider, vm, now_s=time.time(), disk_days=disk_days, sleep=time.sleep
        )
        names = [*result.stopped_again_by, *(s for s in stops if s not in result.stopped_again_by)]
        result = replace(result, may_restart=True, stopped_again_by=names)
    return result


def _remove_node(record: Record, provider: Provider, result: Result, node: int, vm: Vm) -> Result:
    """Remove one of several machines, and leave the others of its run."""
    record.note(Kind.DELETE_INTENDED, node, reason=REASON)
    gone = with_retries(lambda: provider.remove(vm, record.on_message), time.sleep)
    removed = [f"{one.kind} {one.id}" for one in gone]
    record.note(Kind.DELETED, node, removed=removed, until_s=billed_until_s(gone))
    return replace(result, removed=[*result.removed, *removed])


def _remove(record: Record, provider: Provider, state: RunState) -> Result:
    """Remove everything of the run, and observe what is left."""
    nodes = each_node(state)
    numbers = [node for node, one in enumerate(nodes) if not (state.nodes and _is_nothing(one))]
    numbers = numbers or [0]
    for node in numbers:
        record.note(Kind.DELETE_INTENDED, node, reason=REASON)
    gone = with_retries(lambda: provider.delete(state.run_id, record.on_message), time.sleep)
    removed = [f"{one.kind} {one.id}" for one in gone]
    for node in numbers:
        names = removed if node == numbers[0] else []
        until_s = _billed_until_s(gone, nodes[node].vm)
        record.note(Kind.DELETED, node, removed=names, until_s=until_s)
    machines = [one.vm for one in nodes if one.vm is not None]
    return proved(Result(run=record.name, removed=removed), provider, state.run_id, machines)


def _billed_until_s(gone: Sequence[Removed], vm: Vm | None) -> float | None:
    """Return when a machine ceased to bill, by its own line where the provider has one of it."""
    mine = [one for one in gone if vm is not None and one.id == vm.id]
    return billed_until_s(mine or gone)


def listed(provider: Provider, run_id: str) -> list[Vm]:
    """Return what the provider lists of a run."""
    return with_retries(lambda: provider.list_run(run_id), time.sleep)


def proved(result: Result, provider: Provider, run_id: str, recorded: Sequence[Vm] = ()) -> Result:
    """Return the result with what the provider lists now, asked again.

    Each recorded machine is asked for: a provider that lists by tags does not see what lost them.
    """
    left = still_there(provider, run_id, recorded[0] if recorded else None, time.sleep)
    for vm in recorded if len(recorded) > 1 else ():
        if any(one.id == vm.id for one in left):
            continue
        seen = with_retries(partial(provider.observe, vm), time.sleep)
        if seen.power is not PowerState.GONE:
            left.append(replace(vm, power=seen.power))
    return replace(
        result,
        left=[f"{one.size} {one.id} ({one.power})" for one in left],
        idle_usd_per_h=sum(one.idle_usd_per_h for one in left),
        bills_compute=any(one.power.bills_compute for one in left) and provider.traits.rents,
    )
