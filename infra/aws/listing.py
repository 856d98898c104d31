"""Lists every machine with our tag, over all regions of the account."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from infra.aws.context import AwsContext
from infra.aws.inventory import Inventories, Inventory
from infra.aws.leftovers import idle_usd_per_h
from infra.aws.machine_view import SHUTTING_DOWN, MachineView, run_of, view_of
from infra.aws.naming import SEVERAL, MachineId, run_of_record
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
        found += self._unlisted(account, {(vm.run_id, vm.node) for vm in found})
        return sorted(found, key=lambda vm: vm.created_at, reverse=True)

    def _in_region(self, found: Inventory, account: str) -> Iterator[Vm]:
        for run_id in found.runs():
            part = found.of_run(run_id)
            if not part.is_empty:
                yield from self._of_run(part, account)

    def _of_run(self, found: Inventory, account: str) -> Iterator[Vm]:
        """The machines of a run, node by node; else what is left of it."""
        nodes = sorted(found.nodes())
        if not found.has_several:
            yield from self._of_node(found, account)
        elif not nodes:
            only = Inventory(region=found.region, groups=found.groups)
            yield from self._of_node(only, account)
        for node in nodes if found.has_several else []:
            for vm in self._of_node(found.of_node(node), account):
                yield replace(vm, private_host=_private_host(found, vm))

    def _of_node(self, found: Inventory, account: str) -> Iterator[Vm]:
        """The machine of a node that somebody has yet to terminate; else what is left of it."""
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
        orders = orders_of(self.context.record(vm.run_id, vm.node), vm)
        seen = read(view, orders, now_s=self.context.clock())
        return replace(vm, power=seen.power, host=seen.host)

    def _unlisted(self, account: str, listed: set[tuple[str, int]]) -> Iterator[Vm]:
        """What this computer recorded in the account and no list by tag shows."""
        inventories = Inventories(context=self.context)
        for record in recorded_here(self.context):
            (run_id, node), region = run_of_record(record.path.stem), record.ids["region"]
            if (run_id, node) in listed:
                continue
            found = inventories.of_run(region, run_id, record.ids)
            if record.ids.get(SEVERAL):
                found = found.of_node(node)
            for row in found.untagged:
                view = view_of(row)
                vm = self._recorded(record, view, account)
                yield self._as_seen(vm, view)
            if not replace(found, untagged=[]).is_empty:
                yield from self._of_run(found, account)
            elif not found.untagged and self.observer.safeguard_names(run_id, region, node):
                yield self._recorded(record, MachineView(), account)  # a removal that was killed

    @staticmethod
    def _recorded(record: RunRecord, view: MachineView, account: str) -> Vm:
        """A machine, or what is left of one, by this computer's record alone."""
        region = record.ids.get("region", "")
        run_id, node = run_of_record(record.path.stem)
        return Vm(
            provider="aws",
            run_id=run_id,
            node=node,
            id=str(MachineId(account=account, region=region, instance=view.instance)),
            region=region,
            size=view.size,
            zone=view.zone,
            generation=record.generation,
            metadata_api="aws",
            power=PowerState.REMNANTS,
        )


def _private_host(found: Inventory, vm: Vm) -> str:
    """The private address of a machine with mates."""
    id_ = MachineId.parse(vm.id)
    return next(
        (one.private_host for one in found.views() if id_ and one.instance == id_.instance), ""
    )


def _is_closed(error: Exception) -> bool:
    """Whether a region refuses these credentials, so that nothing can be rented there either."""
    return isinstance(error, NotAllowed) and not isinstance(error, SignedOut)
