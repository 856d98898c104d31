"""Removes everything of a run, and returns when Azure says that nothing remains."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.azure.context import AzureContext
from infra.azure.errors import ConflictError
from infra.azure.leftovers import Leftovers
from infra.azure.naming import KINDS, VM, Names, check_subscription
from infra.azure.permissions import revoke_role_assignments
from infra.azure.release_compute import ComputeRelease
from infra.azure.resources import Parts
from infra.errors import (
    BadRequest,
    Gone,
    NoCapacity,
    NotAllowed,
    ProviderError,
    Rejected,
    Transient,
)
from infra.provider import OnMessage, Removed, ignore_message
from infra.renting.progress import REPORT_EVERY_S, ProgressReporter
from infra.renting.run_record import RunRecord
from infra.renting.tags import GENERATION, is_of_run, lower_case_names
from infra.timestamps import format_utc

if TYPE_CHECKING:
    from infra.azure.sdk import Operation

CONFLICTS_MAX = 5
"""How often a removal may meet a 409 of an unknown code before a person is asked."""
RETRY_INTERVALS = 3
"""After how many intervals of polling a removal that hit an obstacle is tried again."""


@dataclass(frozen=True, kw_only=True)
class Deleter:
    """Removes the resource group of a run: what carries our tag, and nothing else."""

    context: AzureContext

    def remove(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove all of the run; the list of what there was. Empty if nothing was left.

        Compute ends first, within seconds; then the group goes, with a line for `on_message` about
        once a minute. Killed at any point it may simply be called again: what is half removed is
        found by name and by tag. In a group without our tag only what carries it is removed. Raises
        `NotAllowed` for what is then left, and if what this computer remembers of the run is in
        another subscription; an unfinished `Transient` if Azure is not done within
        `operation_wait_s`.
        """
        record = self.context.record(run_id)
        names = self.context.names(run_id, max(record.generation, 1))
        check_subscription(record.ids.get("group", ""), names.subscription_id)
        now_s = self.context.clock()
        progress = ProgressReporter(on_message=on_message, clock=self.context.clock, began_s=now_s)
        try:
            deadline = now_s + self.context.settings.operation_wait_s
            if not self._remove(record, names, progress, deadline):
                revoke_role_assignments(self.context, names)
        except KeyboardInterrupt:
            on_message(f"interrupted while removing; {_left(record, names)}; {AGAIN}")
            raise
        ended = format_utc(record.compute_ended_at) if record.compute_ended_at else ""
        removed = [
            Removed(kind=kind, id=id_, billed_until=ended if kind == KINDS[VM.lower()] else "")
            for kind, id_ in record.removing
        ]
        record.delete()
        return removed

    def _remove(
        self, record: RunRecord, names: Names, progress: ProgressReporter, deadline: float
    ) -> bool:
        """Remove until nothing is left, or raise; whether the machine's role was revoked."""
        conflicts, revoked = CONFLICTS_MAX, False
        while True:
            group = self._group(names)
            if group is None:
                return revoked
            if not is_of_run(group.get("tags"), names.run_id):
                Leftovers(context=self.context, parts=self.parts).remove(
                    record, names, group, deadline=deadline, on_message=progress.on_message
                )
                return False
            names = self._generation(names, group)
            self._remember(record, names, group)
            revoked = revoked or self._revoked_role(names)
            try:
                if not _deleting(group):
                    ComputeRelease(context=self.context).release(names, record, progress.on_message)
                if self._once(record, names, deadline, progress):
                    return revoked
            except ConflictError as error:  # such as a write of Azure's own in the group
                if not (conflicts := conflicts - 1):
                    self._release(names, error)
                    raise
                self.context.sleep(self._retry_after_s)
            except (NotAllowed, Rejected) as error:
                self._release(names, error)
                raise
            except (Transient, NoCapacity) as error:  # the latter: it failed at Azure
                # Such as a network card reserved for the failed machine for another 180 s.
                if self.context.clock() >= deadline:
                    raise _gave_up(record, names, progress) from error
                self.context.sleep(error.retry_after_s or self._retry_after_s)
                progress.report(f"removing the resource group `{names.group}`")

    def _revoked_role(self, names: Names) -> bool:
        """Revoke the machine's role if possible now; whether it was."""
        try:
            revoke_role_assignments(self.context, names)
        except Transient:
            return False
        return True

    def _release(self, names: Names, refusal: ProviderError) -> None:
        """Deallocate what may not be removed, as under a lock, so that it bills no compute."""
        machines = self.context.arm.compute.virtual_machines
        try:
            operation = self.context.arm.begin(
                f"deallocate `{names.vm}`", machines.begin_deallocate, names.group, names.vm
            )
            done = operation.wait(wait_s=self.context.settings.operation_wait_s)
        except ProviderError as error:
            refusal.add_note(f"nor could it be deallocated: {error}")
        else:
            message = "its compute is released" if done else "its compute is being released"
            refusal.hint = f"{refusal.hint}; {message}, its disk and address still bill".lstrip(
                "; "
            )

    def existing_group(self, run_id: str) -> dict[str, Any] | None:
        """Find the run's group, after waiting out a deletion under way; None if there is none."""
        names = self.context.names(run_id, 1)
        deadline = self.context.clock() + self.context.settings.operation_wait_s
        while True:
            group = self._group(names)
            if group is None or not _deleting(group):
                return group
            if self.context.clock() >= deadline:
                late = Transient(f"Azure is still removing `{names.group}`", hint=AGAIN)
                late.unfinished = True  # waited for as long as it may be
                raise late
            self.context.sleep(self._retry_after_s)

    @property
    def _retry_after_s(self) -> float:
        return RETRY_INTERVALS * self.context.settings.polling_s

    def _group(self, names: Names) -> dict[str, Any] | None:
        groups = self.context.arm.resources.resource_groups
        try:
            return dict(
                self.context.arm.call("look at the resource group", groups.get, names.group)
            )
        except Gone:
            return None

    @staticmethod
    def _generation(names: Names, group: dict[str, Any]) -> Names:
        text = lower_case_names(group.get("tags")).get(GENERATION, "")
        generation = int(text) if text.isdigit() else names.generation
        return Names(
            subscription_id=names.subscription_id, run_id=names.run_id, generation=generation
        )

    def _remember(self, record: RunRecord, names: Names, group: dict[str, Any]) -> None:
        """Record what will be removed, so that a removal that was killed can still report it."""
        ours = {
            str(one.get("id") or ""): KINDS.get(_type(one), _type(one))
            for one in self.parts.inventory(names)
            if _ours(one, names)
        }
        listed = {id_.lower() for id_ in ours}
        for id_ in names.all_ids():  # lists lag: what they do not show yet is asked for by name
            if id_.lower() not in listed and self.parts.exists(id_):
                type_ = id_.partition("/providers/")[2].rpartition("/")[0]
                ours[id_] = KINDS[type_.lower()]
        ours[str(group["id"])] = "resource group"
        ids = {id_.lower() for _, id_ in record.removing}
        record.removing += [[kind, id_] for id_, kind in ours.items() if id_.lower() not in ids]
        record.note("delete", self.context.clock())

    def _once(
        self, record: RunRecord, names: Names, deadline: float, progress: ProgressReporter
    ) -> bool:
        """Try to remove the group once; whether everything is gone now."""
        foreign = [one for one in self.parts.inventory(names) if not _ours(one, names)]
        if foreign:
            self._piece_by_piece(record, names, foreign, deadline)
            return True
        try:
            with contextlib.suppress(Gone):  # its page expired, or somebody was quicker
                operation = self.context.begin_or_resume(
                    record, "group", lambda token: self.parts.begin_group_removal(names, token)
                )
                self._wait_out(record, names, operation, deadline, progress)
        except (Transient, BadRequest, NoCapacity):
            self.context.clear_tokens(record, "group")
            raise
        self.context.clear_tokens(record, "group")
        if self._group(names) is not None:
            raise Transient(f"`{names.group}` is not gone yet")
        return True

    def _wait_out(
        self,
        record: RunRecord,
        names: Names,
        operation: Operation,
        deadline: float,
        progress: ProgressReporter,
    ) -> None:
        """Wait for the end of the group's deletion, minute by minute."""
        while True:
            left_s = max(deadline - self.context.clock(), 0.0)
            done = self.context.wait(record, "group", operation, wait_s=min(left_s, REPORT_EVERY_S))
            if done or self.context.clock() >= deadline:
                return
            progress.report(f"removing the resource group `{names.group}`")

    # ---- a group that also holds things that are not ours ----

    def _piece_by_piece(
        self, record: RunRecord, names: Names, foreign: list[dict[str, Any]], deadline: float
    ) -> None:
        """Remove only our own parts and leave the group, without our tags, to what is not ours."""
        for id_ in names.all_ids():
            if self.parts.exists(id_):
                self.parts.remove_id(id_, deadline)
        kept = ", ".join(str(one.get("name")) for one in foreign)
        record.removing = [[kind, id_] for kind, id_ in record.removing if kind != "resource group"]
        group = self._group(names)
        if group is not None:
            every = group.get("tags") or {}
            tags = {k: v for k, v in every.items() if not k.lower().startswith("qft-")}
            self.context.arm.call(
                f"leave the resource group to {kept}",
                self.context.arm.resources.resource_groups.create_or_update,
                names.group,
                {"location": group["location"], "tags": tags},
            )

    @property
    def parts(self) -> Parts:
        """The parts of a run's group."""
        return Parts(context=self.context)


AGAIN = "`qft down --delete` once more waits on, and tells when nothing is left"


def _left(record: RunRecord, names: Names) -> str:
    """Describe what of a removal under way still bills, as far as this computer knows."""
    group = f"Azure goes on removing the resource group `{names.group}`"
    if record.compute_ended_at:
        return f"the compute is released; {group}, and its disk and address bill until then"
    return f"{group}, and it may bill until then"


def _gave_up(record: RunRecord, names: Names, progress: ProgressReporter) -> Transient:
    """The error for a group that Azure has not removed for as long as we wait."""
    error = Transient(
        f"given up after {progress.elapsed}: `{names.group}` is not gone; {_left(record, names)}",
        hint=f"{AGAIN}; the portal shows what holds it, such as a lock",
    )
    error.unfinished = True
    return error


def _deleting(group: dict[str, Any]) -> bool:
    state = str((group.get("properties") or {}).get("provisioningState") or "")
    return state.lower() == "deleting"


def _type(resource: dict[str, Any]) -> str:
    return str(resource.get("type") or "").lower()


def _ours(resource: dict[str, Any], names: Names) -> bool:
    """Whether a resource is part of the run: by tag, by name, or as a part of its machine."""
    if is_of_run(resource.get("tags"), names.run_id):
        return True
    id_ = str(resource.get("id") or "").lower()
    ids = [one.lower() for one in names.all_ids()]
    return any(id_ == one or id_.startswith(f"{one}/") for one in ids) or (
        str(resource.get("managedBy") or "").lower() == names.vm_id.lower()
    )
