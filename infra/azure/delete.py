"""Removes everything of a run, and returns when Azure says that nothing remains."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.azure.context import AzureContext
from infra.azure.errors import ConflictError
from infra.azure.group_tags import network_of, nodes_of
from infra.azure.leftovers import Leftovers
from infra.azure.naming import KINDS, VM, Names, check_subscription, ids_of, node_of
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
                revoke_role_assignments(self.context, [names], names.group_id)
        except KeyboardInterrupt:
            on_message(f"interrupted while removing; {_left(record, names)}; {AGAIN}")
            raise
        nodes = self.context.records_of_nodes(run_id)
        removed = removed_of(record, nodes)
        for one in nodes:
            one.delete()
        record.delete()
        return removed

    def _remove(
        self, record: RunRecord, names: Names, progress: ProgressReporter, deadline: float
    ) -> bool:
        """Remove until nothing is left, or raise; whether the machine's role was revoked."""
        conflicts, revoked = CONFLICTS_MAX, False
        while True:
            group = self.group(names)
            if group is None:
                return revoked
            if not is_of_run(group.get("tags"), names.run_id):
                Leftovers(context=self.context, parts=self.parts).remove(
                    record, names, group, deadline=deadline, on_message=progress.on_message
                )
                return False
            names = self._generation(names, group)
            machines = self._remember(record, names, group)
            revoked = revoked or self._revoked_role(machines)
            try:
                if not _deleting(group):
                    self._release_compute(record, machines, progress.on_message)
                if self._once(record, machines, deadline, progress):
                    return revoked
            except ConflictError as error:  # such as a write of Azure's own in the group
                if not (conflicts := conflicts - 1):
                    self.deallocate(machines, error)
                    raise
                self.context.sleep(self.retry_after_s)
            except (NotAllowed, Rejected) as error:
                self.deallocate(machines, error)
                raise
            except (Transient, NoCapacity) as error:  # the latter: it failed at Azure
                # Such as a network card reserved for the failed machine for another 180 s.
                if self.context.clock() >= deadline:
                    raise _gave_up(record, names, progress) from error
                self.context.sleep(error.retry_after_s or self.retry_after_s)
                progress.report(f"removing the resource group `{names.group}`")

    def _revoked_role(self, machines: Sequence[Names]) -> bool:
        """Revoke the machines' roles if possible now; whether they were."""
        try:
            revoke_role_assignments(self.context, machines, machines[0].group_id)
        except Transient:
            return False
        return True

    def _release_compute(
        self, record: RunRecord, machines: Sequence[Names], on_message: OnMessage
    ) -> None:
        """End the compute of every machine: of several at once, so that none waits for another."""
        nodes = {one.node: self.context.record(one.run_id, one.node) for one in machines[1:]}
        compute = ComputeRelease(context=self.context)
        begun: dict[int, str] = {}
        if nodes:
            begun = {one.node: compute.begin(one, nodes.get(one.node, record)) for one in machines}
        for one in machines:
            mine = nodes.get(one.node, record)
            compute.release(one, mine, on_message, begun=begun.get(one.node, ""))

    def deallocate(self, machines: Sequence[Names], refusal: ProviderError) -> None:
        """Deallocate what may not be removed, as under a lock, so that it bills no compute."""
        client = self.context.arm.compute.virtual_machines
        waiting: list[Operation] = []
        for one in machines:
            try:
                waiting.append(
                    self.context.arm.begin(
                        f"deallocate `{one.vm}`", client.begin_deallocate, one.group, one.vm
                    )
                )
            except ProviderError as error:
                refusal.add_note(f"nor could it be deallocated: {error}")
        done = True
        for operation in waiting:
            try:
                done &= operation.wait(wait_s=self.context.settings.operation_wait_s)
            except ProviderError as error:
                refusal.add_note(f"nor could it be deallocated: {error}")
                return
        if len(waiting) == len(machines):
            message = "its compute is released" if done else "its compute is being released"
            refusal.hint = f"{refusal.hint}; {message}, its disk and address still bill".lstrip(
                "; "
            )

    def existing_group(self, run_id: str) -> dict[str, Any] | None:
        """Find the run's group, after waiting out a deletion under way; None if there is none."""
        names = self.context.names(run_id, 1)
        deadline = self.context.clock() + self.context.settings.operation_wait_s
        while True:
            group = self.group(names)
            if group is None or not _deleting(group):
                return group
            if self.context.clock() >= deadline:
                late = Transient(f"Azure is still removing `{names.group}`", hint=AGAIN)
                late.unfinished = True  # waited for as long as it may be
                raise late
            self.context.sleep(self.retry_after_s)

    @property
    def retry_after_s(self) -> float:
        """After what pause a removal that hit an obstacle is tried again."""
        return RETRY_INTERVALS * self.context.settings.polling_s

    def group(self, names: Names) -> dict[str, Any] | None:
        """Get the run's group; None if there is none."""
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
        return replace(
            names, generation=generation, network_generation=network_of(group.get("tags"))
        )

    def _machines(
        self, names: Names, group: dict[str, Any], listed: Sequence[dict[str, Any]]
    ) -> list[Names]:
        """The names of the run's machines, node 0 first, by tags and by what is recorded here."""
        found = set(nodes_of(group.get("tags")).items())
        for record in self.context.records_of_nodes(names.run_id):
            found.add((record.node, max(record.generation, 1)))
        for one in listed:
            text = lower_case_names(one.get("tags")).get(GENERATION, "")
            if is_of_run(one.get("tags"), names.run_id) and text.isdigit():
                found |= {(node, int(text)) for node in [node_of(one["tags"])] if node}
        return [
            names,
            *(replace(names, node=node, generation=one) for node, one in sorted(found)),
        ]

    def _remember(self, record: RunRecord, names: Names, group: dict[str, Any]) -> list[Names]:
        """Record what will be removed, so that a removal that was killed can still report it.

        Returns the names of the machines that there are, or may be.
        """
        inventory = self.parts.inventory(names)
        machines = self._machines(names, group, inventory)
        ours = {
            str(one.get("id") or ""): KINDS.get(_type(one), _type(one))
            for one in inventory
            if _ours(one, machines)
        }
        listed = {id_.lower() for id_ in ours}
        for id_ in ids_of(machines):  # lists lag: what they do not show yet is asked for by name
            if id_.lower() not in listed and self.parts.exists(id_):
                type_ = id_.partition("/providers/")[2].rpartition("/")[0]
                ours[id_] = KINDS[type_.lower()]
        ours[str(group["id"])] = "resource group"
        ids = {id_.lower() for _, id_ in record.removing}
        record.removing += [[kind, id_] for id_, kind in ours.items() if id_.lower() not in ids]
        for one in machines[1:]:
            note_removal(self.context, one)
        record.note("delete", self.context.clock())
        return machines

    def _once(
        self,
        record: RunRecord,
        machines: Sequence[Names],
        deadline: float,
        progress: ProgressReporter,
    ) -> bool:
        """Try to remove the group once; whether everything is gone now."""
        names = machines[0]
        foreign = [one for one in self.parts.inventory(names) if not _ours(one, machines)]
        if foreign:
            self._piece_by_piece(record, machines, foreign, deadline)
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
        if self.group(names) is not None:
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
        self,
        record: RunRecord,
        machines: Sequence[Names],
        foreign: list[dict[str, Any]],
        deadline: float,
    ) -> None:
        """Remove only our own parts and leave the group, without our tags, to what is not ours."""
        names = machines[0]
        for id_ in ids_of(machines):
            if self.parts.exists(id_):
                self.parts.remove_id(id_, deadline)
        kept = ", ".join(str(one.get("name")) for one in foreign)
        record.removing = [[kind, id_] for kind, id_ in record.removing if kind != "resource group"]
        group = self.group(names)
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


def _ours(resource: dict[str, Any], machines: Sequence[Names]) -> bool:
    """Whether a resource is part of the run: by tag, by name, or as a part of its machines."""
    if is_of_run(resource.get("tags"), machines[0].run_id):
        return True
    id_ = str(resource.get("id") or "").lower()
    ids = [one.lower() for one in ids_of(machines)]
    return any(id_ == one or id_.startswith(f"{one}/") for one in ids) or (
        str(resource.get("managedBy") or "").lower() in {one.vm_id.lower() for one in machines}
    )


def note_removal(context: AzureContext, names: Names) -> RunRecord:
    """Record that a machine beside node 0 is to be removed, and return what is known of it."""
    record = context.record(names.run_id, names.node)
    if record.generation != names.generation:
        record = RunRecord(path=record.path, generation=names.generation)
    record.ids |= {"group": names.group_id, "vm": names.vm_id}
    record.note("delete", context.clock())
    return record


def removed_of(record: RunRecord, nodes: Sequence[RunRecord] = ()) -> list[Removed]:
    """What a removal that is over removed, with the time at which each machine ceased to bill."""
    ended = {
        one.ids.get("vm", "").lower(): one.compute_ended_at for one in nodes if one.ids.get("vm")
    }
    found = []
    for kind, id_ in record.removing:
        machine = kind == KINDS[VM.lower()]
        at_s = ended.get(id_.lower(), record.compute_ended_at) if machine else 0.0
        found.append(Removed(kind=kind, id=id_, billed_until=format_utc(at_s) if at_s else ""))
    return found
