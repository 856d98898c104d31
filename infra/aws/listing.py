"""Lists every machine with our tag, over all regions of the account."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from infra.aws.context import AwsContext
from infra.aws.inventory import Inventories, Inventory
from infra.aws.leftovers import idle_usd_per_h
from infra.aws.machine_view import SHUTTING_DOWN, MachineView, run_of, view_of
from infra.aws.naming import MachineId
from infra.aws.observe import VmObserver, orders_of
from infra.aws.reading import read
from infra.aws.regions import recorded_here, regions_to_ask
from infra.aws.vm import vm_from_instance
from infra.errors import NotAllowed, SignedOut
from infra.provider import PowerState, Vm
from infra.renting.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The machines of an account, and remnants of them."""

    context: AwsContext
    observer: VmObserver

    def list_all(self) -> list[Vm]:
        """List every machine with our tag, newest first, whoever made it, and remnants.

        Asks every region that the account has enabled, and those in which this computer has made
        something, at once. A region that an organisation closes to these credentials is left out,
        unless this computer has something there. Lists lag: what is on record and not listed is
        looked up by its id.
        """
        account = self.context.account()
        inventories = Inventories(context=self.context)
        regions = regions_to_ask(self.context)
        recorded = {one.ids["region"] for one in recorded_here(self.context)}
        answers = inventories.in_regions(regions, inventories.search)
        found: list[Vm] = []
        refused: list[Exception] = []
        for region, answer in zip(regions, answers, strict=True):
            if isinstance(answer, Inventory):
                found += self._in_region(answer, account)
            elif region not in recorded and _is_closed(answer):
                refused.append(answer)
            else:
                raise answer
        if len(refused) == len(regions):
            raise refused[0]
        found += self._unlisted(account, {vm.run_id for vm in found})
        return sorted(found, key=lambda vm: vm.created_at, reverse=True)

    def _in_region(self, found: Inventory, account: str) -> Iterator[Vm]:
        for run_id in found.runs():
            part = found.of_run(run_id)
            if not part.is_empty:
                yield from self._of_run(part, account)

    def _of_run(self, found: Inventory, account: str) -> Iterator[Vm]:
        """The machines of a run that somebody has yet to terminate; else what is left of it."""
        there = [one for one in found.views() if one.is_live]
        there = there or [one for one in found.views() if one.state == SHUTTING_DOWN]
        if not there:
            vm = self._vm(found, MachineView(), account)
            if vm is not None:
                yield replace(vm, power=PowerState.REMNANTS, idle_usd_per_h=idle_usd_per_h(found))
        for view in there:
            vm = self._vm(found, view, account)
            if vm is not None:
                yield self._as_seen(vm, view)

    def _vm(self, found: Inventory, view: MachineView, account: str) -> Vm | None:
        """The machine that tags describe: its own, or those of what it belongs to."""
        rows = [*found.requests, *found.instances, *found.volumes, *found.groups]
        instance = [one for one in found.instances if one.get("InstanceId") == view.instance]
        request = [
            one for one in found.requests if one.get("SpotInstanceRequestId") == view.request
        ]
        tagged = (one for one in [*instance, *request, *rows] if run_of(one))
        return vm_from_instance(
            {**(instance[0] if instance else {}), "Tags": next(tagged, {}).get("Tags")},
            account=account,
            region=found.region,
            settings=self.context.settings,
        )

    def _as_seen(self, vm: Vm, view: MachineView) -> Vm:
        orders = orders_of(RunRecord.load(self.context.state_dir, vm.run_id), vm)
        seen = read(view, orders, now_s=self.context.clock())
        return replace(vm, power=seen.power, host=seen.host)

    def _unlisted(self, account: str, listed: set[str]) -> Iterator[Vm]:
        """What this computer recorded in the account and no list by tag shows."""
        inventories = Inventories(context=self.context)
        for record in recorded_here(self.context):
            run_id, region = record.path.stem, record.ids["region"]
            if run_id in listed:
                continue
            found = inventories.of_run(region, run_id, record.ids)
            for row in found.untagged:
                view = view_of(row)
                vm = self._recorded(record, view, account)
                yield self._as_seen(vm, view)
            if not replace(found, untagged=[]).is_empty:
                yield from self._of_run(found, account)
            elif not found.untagged and self.observer.safeguard_names(run_id, region):
                yield self._recorded(record, MachineView(), account)  # a removal that was killed

    @staticmethod
    def _recorded(record: RunRecord, view: MachineView, account: str) -> Vm:
        """A machine, or what is left of one, by this computer's record alone."""
        region = record.ids.get("region", "")
        return Vm(
            provider="aws",
            run_id=record.path.stem,
            id=str(MachineId(account=account, region=region, instance=view.instance)),
            region=region,
            size=view.size,
            zone=view.zone,
            generation=record.generation,
            metadata_api="aws",
            power=PowerState.REMNANTS,
        )


def _is_closed(error: Exception) -> bool:
    """Whether a region refuses these credentials, so that nothing can be rented there either."""
    return isinstance(error, NotAllowed) and not isinstance(error, SignedOut)
