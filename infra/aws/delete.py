"""Removes a run: cancel its spot request, terminate, prove; reports what is left, with its price.

The order is what keeps the bill from beginning again. A persistent request whose instance goes
launches another one, so it is cancelled first. Schedules and alarms go last: they are what ends the
bill of a removal that was killed half-way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from infra.aws.context import AwsContext
from infra.aws.inventory import Inventories, Inventory
from infra.aws.naming import (
    LEFT,
    SEVERAL,
    MachineId,
    check_account,
    record_name_of_replaced,
)
from infra.aws.reading import NEW_S
from infra.aws.refused_requests import RefusedRequests
from infra.aws.regions import regions_to_ask
from infra.aws.removal import AGAIN, ENDED, MachineOfRun, RegionRemoval
from infra.aws.safeguards import AwsSafeguards
from infra.errors import NotAllowed, ProviderError, SignedOut
from infra.provider import OnMessage, Removed, Vm, ignore_message
from infra.renting.progress import ProgressReporter
from infra.renting.run_record import RunRecord
from infra.timestamps import format_utc

GROUP_WAIT_S = 600.0
"""How long a security group may be busy after its machine went, as users report."""
MACHINE = "virtual machine"


@dataclass(frozen=True, kw_only=True)
class Deleter:
    """Removes everything of a run, or of one of its machines."""

    context: AwsContext
    safeguards: AwsSafeguards
    refused_requests: RefusedRequests

    def remove(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove everything that carries `run_id`, and return when AWS says that it is gone.

        Killed at any point it may simply be called again: what is half removed is found by its tag
        and by its id, and what a killed removal had found is still reported. Without a record here
        every region of the account is looked at. Raises `NotAllowed` for a run of another account;
        an unfinished `Transient` if something is left after `stop_wait_s` and ten minutes more.
        What refused creates left open is waited for.
        """
        nodes = self.context.nodes_on_record(run_id)
        regions = self._regions(run_id, [0, *nodes], whole=True)
        removed = self._remove(run_id, regions, on_message)
        for node in nodes:  # what only its record names, or may still appear
            removed += self.clear(run_id, on_message, node=node)
        for node in (0, *nodes):
            regions = self.refused_requests.wait(run_id, node)
            if regions:
                removed += self._remove(run_id, regions, on_message)
            if regions or node:
                self.context.record(run_id, node).delete()
        return removed

    def remove_node(
        self,
        run_id: str,
        on_message: OnMessage = ignore_message,
        *,
        node: int,
        keeps_groups: bool = False,
    ) -> list[Removed]:
        """Remove what belongs to one node alone, as `remove` does with all of a run."""
        removed = self.clear(run_id, on_message, node=node, keeps_groups=keeps_groups)
        regions = self.refused_requests.wait(run_id, node)
        if regions:
            part = MachineOfRun(node=node, keeps_groups=keeps_groups)
            removed += self._remove(run_id, regions, on_message, part)
            record = self.context.record(run_id, node)
            record.refused_at = {}
            record.close() if record.is_closed else record.save()
        return removed

    def remove_machine(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove one machine, and nothing of the others of its run, nor of one that replaced it."""
        id_ = MachineId.parse(vm.id)
        if id_ is None:
            return []
        check_account(id_.account, self.context.account())
        record = self.context.record(vm.run_id, vm.node)
        if record.generation in {0, vm.generation} and record.ids.get("region") == id_.region:
            return self.remove_node(vm.run_id, on_message, node=vm.node)
        part = MachineOfRun(node=vm.node, generation=vm.generation)
        return self._remove(vm.run_id, [id_.region], on_message, part)

    def clear(
        self,
        run_id: str,
        on_message: OnMessage = ignore_message,
        *,
        node: int,
        keeps_groups: bool = False,
    ) -> list[Removed]:
        """Do as `remove_node` with what is shown now: what a refused create left may come later."""
        part = MachineOfRun(node=node, keeps_groups=keeps_groups)
        return self._remove(run_id, self._regions(run_id, [node]), on_message, part)

    def _remove(
        self,
        run_id: str,
        regions: Sequence[str],
        on_message: OnMessage,
        part: MachineOfRun | None = None,
    ) -> list[Removed]:
        """Remove what the run has in these regions, or a part of that."""
        record = self._record(run_id, part)
        account, now_s = self.context.account(), self.context.clock()
        _await_create(record, now_s)
        progress = ProgressReporter(on_message=on_message, clock=self.context.clock, began_s=now_s)
        deadline_s = now_s + self.context.settings.stop_wait_s + GROUP_WAIT_S
        try:
            for region in regions:
                RegionRemoval(
                    context=self.context,
                    safeguards=self.safeguards,
                    record=record,
                    run_id=run_id,
                    region=region,
                    account=account,
                    progress=progress,
                    deadline_s=deadline_s,
                    part=part,
                ).run()
        except KeyboardInterrupt:
            on_message(f"interrupted while removing `{run_id}`, which may bill; {AGAIN}")
            raise
        removed = [
            Removed(kind=kind, id=id_, billed_until=_ended(record, id_) if kind == MACHINE else "")
            for kind, id_ in record.removing
        ]
        close_record(record, regions, may_leave_groups=part is not None)
        return removed

    def _record(self, run_id: str, part: MachineOfRun | None) -> RunRecord:
        """The record of what is removed; one of its own for a machine that was replaced."""
        record = self.context.record(run_id, part.node if part else 0)
        if part is None or part.generation in {None, record.generation} or not record.generation:
            return record
        name = record_name_of_replaced(run_id, part.node, part.generation or 0)
        return replace(RunRecord.load(self.context.state_dir, name), generation=part.generation)

    def _regions(self, run_id: str, nodes: Sequence[int], *, whole: bool = False) -> list[str]:
        """Where the run has something, by this computer's records or else by its tags.

        For the whole run, also where a group stayed that its machines have left.
        """
        recorded = [self.context.record(run_id, node) for node in nodes]
        places = [one.ids["region"] for one in recorded if one.ids.get("region")]
        if whole:
            places += [region for one in recorded for region in one.ids.get(LEFT, "").split()]
        if places:
            return [*dict.fromkeys(places)]
        inventories = Inventories(context=self.context)
        regions = regions_to_ask(self.context)
        answers = inventories.in_regions(regions, lambda one: inventories.search(one, run_id))
        refused: list[ProviderError] = []
        found: list[str] = []
        for region, answer in zip(regions, answers, strict=True):
            if isinstance(answer, Inventory):
                found += [region] * (not answer.is_empty)
            elif isinstance(answer, NotAllowed) and not isinstance(answer, SignedOut):
                refused.append(answer)  # such as a region that the organisation closes
            else:
                raise answer
        if len(refused) == len(regions):
            raise refused[0]
        return found


def close_record(
    record: RunRecord, regions: Sequence[str] = (), *, may_leave_groups: bool = False
) -> None:
    """Forget a machine that is gone, and remember where a group of several machines stays."""
    left = record.ids.get(LEFT, "").split()
    if record.ids.get(SEVERAL):
        left += regions
    if not may_leave_groups or not left:
        record.close()
        return
    closed = record.renewed(record.generation)
    closed.ids = {key: record.ids.get(key, "") for key in ("account", "profile")}
    closed.ids[LEFT] = " ".join(sorted(set(left)))
    closed.save()


def _ended(record: RunRecord, id_: str) -> str:
    """When a machine that was removed ceased to bill; empty if it is not known."""
    last = format_utc(record.compute_ended_at) if record.compute_ended_at else ""
    return record.tokens.get(ENDED + id_, last)


def _await_create(record: RunRecord, now_s: float) -> None:
    """Record until when a machine may appear that was requested and whose answer never came."""
    unanswered = record.requested == "create" and bool(record.pending_request)
    if unanswered and 0 <= now_s - record.requested_at < NEW_S:
        record.tokens["appears_until"] = format_utc(record.requested_at + NEW_S)
        record.save()
