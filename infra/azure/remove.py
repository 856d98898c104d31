"""Removes one machine of a run with what is its own, and leaves what its mates need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.azure.delete import CONFLICTS_MAX, Deleter, note_removal, removed_of
from infra.azure.errors import ConflictError
from infra.azure.naming import DISK, KINDS, Names, names_of
from infra.azure.permissions import revoke_role_assignments
from infra.azure.release_compute import ComputeRelease
from infra.azure.run_group import RunGroup
from infra.errors import NoCapacity, NotAllowed, Rejected, Transient
from infra.provider import OnMessage, Removed, Vm, ignore_message
from infra.renting.run_record import RunRecord
from infra.renting.tags import is_of_run


@dataclass(frozen=True, kw_only=True)
class MachineRemover:
    """Removes a machine, its disk, card and address; the group and the network stay."""

    deleter: Deleter
    group: RunGroup

    def remove(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove what is one machine's alone, by name; the list of what there was.

        Killed at any point it may simply be called again. Raises `NotAllowed` for what does not
        carry our tag; an unfinished `Transient` if Azure is not done within `operation_wait_s`.
        """
        context = self.deleter.context
        names = names_of(vm, context.settings.subscription_id)
        record = context.record(names.run_id, names.node)
        if not (record.generation == names.generation and record.removing) and not self._there(
            names
        ):
            self._leave(names, record)
            return []
        record = note_removal(context, names)
        deadline = context.clock() + context.settings.operation_wait_s
        conflicts = CONFLICTS_MAX
        while True:
            try:
                self._once(names, record, deadline, on_message)
                break
            except ConflictError as error:  # such as a write of Azure's own
                if not (conflicts := conflicts - 1):
                    self.deleter.deallocate([names], error)
                    raise
                context.sleep(self.deleter.retry_after_s)
            except (NotAllowed, Rejected) as error:
                self.deleter.deallocate([names], error)
                raise
            except (Transient, NoCapacity) as error:
                # Such as a network card reserved for the failed machine for another 180 s.
                if context.clock() >= deadline:
                    raise _gave_up(names) from error
                context.sleep(error.retry_after_s or self.deleter.retry_after_s)
        self._leave(names, record)
        return removed_of(record)

    def _there(self, names: Names) -> list[tuple[str, dict[str, Any]]]:
        """What there is of the machine alone, in the order of removal."""
        views = [(id_, self.deleter.parts.get(id_)) for id_ in names.own_ids()]
        return [(id_, view) for id_, view in views if view is not None]

    def _once(
        self, names: Names, record: RunRecord, deadline: float, on_message: OnMessage
    ) -> None:
        """Try to remove all of it once."""
        there = self._there(names)
        self._check(names, there)
        found = [[_kind(id_), id_] for id_, _ in there]
        record.removing += [one for one in found if one not in record.removing]
        record.save()
        context = self.deleter.context
        revoke_role_assignments(context, [names], names.vm_id)
        ComputeRelease(context=context).release(names, record, on_message)
        for id_ in names.own_ids():
            if self.deleter.parts.exists(id_):
                self.deleter.parts.remove_id(id_, deadline)

    def _check(self, names: Names, there: list[tuple[str, dict[str, Any]]]) -> None:
        """Raise `NotAllowed` for a part that neither it nor its group says to be ours.

        Azure gives a disk no tags: it is ours as the machine is that holds it.
        """
        group = self.deleter.group(names)
        if group is not None and is_of_run(group.get("tags"), names.run_id):
            return
        ours = {id_ for id_, view in there if is_of_run(view.get("tags"), names.run_id)}
        if names.vm_id in ours:
            ours.add(names.id_of(DISK, names.disk))
        for id_, _ in there:
            if id_ not in ours:
                raise NotAllowed(
                    f"`{id_.rpartition('/')[2]}` does not carry our tag: not touched",
                    hint="remove it in the portal if it is yours",
                )

    def _leave(self, names: Names, record: RunRecord) -> None:
        """Forget a machine that is gone, but not a later one of its node."""
        self.group.leave(names)
        if record.generation <= names.generation:
            record.delete()


def _gave_up(names: Names) -> Transient:
    """The error for a machine that Azure has not removed for as long as we wait."""
    error = Transient(
        f"`{names.vm}` is not gone yet, and its disk and address may bill until it is",
        hint="the same call once more waits on; the portal shows what holds it, such as a lock",
    )
    error.unfinished = True
    return error


def _kind(id_: str) -> str:
    return KINDS[id_.partition("/providers/")[2].rpartition("/")[0].lower()]
