"""Looks at machines once: power, reason of a stop, address, price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infra.aws.context import AwsContext
from infra.aws.errors import NotYetVisibleError
from infra.aws.inventory import Inventories, Inventory, Row
from infra.aws.machine_view import PENDING, RUNNING, TERMINATED, MachineView, state_of, view_of
from infra.aws.naming import SEVERAL, MachineId, check_account, node_of_tags
from infra.aws.reading import Orders, Remains, is_new, read
from infra.errors import Gone
from infra.provider import Observation, PowerState, Vm
from infra.renting.run_record import RunRecord
from infra.timestamps import parse_utc_s


@dataclass(frozen=True, kw_only=True)
class VmObserver:
    """Reads what EC2 says of a machine and of its spot request."""

    context: AwsContext
    price_now: Callable[[str, str, str], float | None]
    """Size, region and zone in, the spot price now out; None if nobody knows."""
    safeguard_names: Callable[[str, str, int], list[str]] = lambda _run_id, _region, _node: []
    """A run, a region and a node in, the names of its schedules and alarms out."""

    def observe(self, vm: Vm) -> Observation:
        """Look at the machine once. A machine that is gone is an observation, not an error.

        One request while it is up, one more to learn why it stopped, up to seven to see what is
        left of one that is gone. Raises `NotAllowed` for a machine of another account.
        """
        id_ = self.id_of(vm)
        if id_ is None:
            return Observation(power=PowerState.GONE, detail="nothing of AWS has this id")
        record = self.context.record(vm.run_id, vm.node)
        orders, now_s = orders_of(record, vm), self.context.clock()
        if not id_.instance:  # remnants were listed, so that nothing is about to show up
            orders = replace(orders, created_at_s=0.0, requested_at_s=0.0)
        row = self._row(id_)
        view = _view(id_, row)
        if view.state in {PENDING, RUNNING}:
            if view.state == RUNNING:
                self._note_running(record, vm, view)
            seen = read(view, orders, now_s=now_s)
            return self._complete(vm, view, seen, record)
        view = _view(id_, row, self._request(id_, view, vm, record))
        remains = Remains()
        if view.state == TERMINATED or (not view.state and not is_new(orders, now_s)):
            found = self._inventories.of_run(id_.region, vm.run_id)
            remains = remains_of(found, vm, id_.instance)
            if not remains.anything and record.generation == vm.generation:
                names = self.safeguard_names(vm.run_id, id_.region, vm.node)
                remains = Remains(anything=bool(names))
        return self._complete(vm, view, read(view, orders, remains, now_s=now_s), record)

    def id_of(self, vm: Vm) -> MachineId | None:
        """The parts of a machine's id; None if it is none of ours.

        Raises `NotAllowed` if it is in another account than the one that is signed in.
        """
        id_ = MachineId.parse(vm.id)
        if id_ is not None:
            check_account(id_.account, self.context.account())
        return id_

    def look(self, vm: Vm) -> MachineView:
        """Look at an existing instance and its request. Raises `Gone` if it is terminated.

        Raises `Transient` for one that was just created and is not shown yet.
        """
        id_ = self.id_of(vm)
        row = None if id_ is None else self._row(id_)
        if id_ is None or row is None or state_of(row) == TERMINATED:
            record = self.context.record(vm.run_id, vm.node)
            if id_ and row is None and is_new(orders_of(record, vm), self.context.clock()):
                raise NotYetVisibleError(f"EC2 does not show the machine `{vm.id}` yet")
            raise Gone(f"there is no machine `{vm.id}` any more")
        record = self.context.record(vm.run_id, vm.node)
        return _view(id_, row, self._request(id_, _view(id_, row), vm, record))

    @property
    def _inventories(self) -> Inventories:
        return Inventories(context=self.context)

    def _row(self, id_: MachineId) -> Row | None:
        """What EC2 describes of the instance; None if it does not list it."""
        return self._inventories.instance(id_.region, id_.instance) if id_.instance else None

    def _request(self, id_: MachineId, view: MachineView, vm: Vm, record: RunRecord) -> Row | None:
        """What EC2 describes of the machine's spot request; None if it lists none."""
        recorded = record.ids.get("request", "") if record.generation == vm.generation else ""
        return self._inventories.request(
            id_.region,
            request_id=view.request or recorded,
            instance_id=view.instance,
            run_id=vm.run_id,
            node=vm.node,
        )

    def _complete(
        self, vm: Vm, view: MachineView, seen: Observation, record: RunRecord
    ) -> Observation:
        """Add what is not EC2's word: the port, the metadata service, the price of now."""
        settings = self.context.settings
        price = None
        if seen.power.bills_compute and view.state in {PENDING, RUNNING}:
            price = self.price_now(view.size or vm.size, vm.region, view.zone or vm.zone)
            cap = _cap_of(view)
            price = price if price is None or cap is None else min(price, cap)
        return replace(
            seen,
            private_host=view.private_host if is_one_of_several(vm, record) else "",
            port=settings.ssh_port,
            metadata_url=settings.metadata_url,
            price_usd_per_h=price,
        )

    def _note_running(self, record: RunRecord, vm: Vm, view: MachineView) -> None:
        """Record that the last order was carried out: what ends the machine is no refusal."""
        mine = record.generation == vm.generation and record.requested in {"create", "start"}
        if not mine or record.ended_at:
            return
        record.ended_at = self.context.clock()
        record.began_at = view.launched_s or record.requested_at
        record.save()


def orders_of(record: RunRecord, vm: Vm) -> Orders:
    """What this computer recorded of its orders for a machine; those for another do not count."""
    created_s = parse_utc_s(vm.created_at) or 0.0
    if record.generation != vm.generation:
        return Orders(created_at_s=created_s)
    granted = record.requested in {"create", "start"} and record.ended_at > 0
    return Orders(
        requested=record.requested,
        requested_at_s=record.requested_at,
        created_at_s=created_s,
        released_at_s=record.released_at,
        ran=granted or record.requested == "evict",
        limit_s=parse_utc_s(record.ids.get("limit", "")) or 0.0,
    )


def is_one_of_several(vm: Vm, record: RunRecord) -> bool:
    """Whether a machine is known to have mates; node 0 of several carries no tag that says so."""
    return bool(vm.node or vm.private_host or record.ids.get(SEVERAL))


def remains_of(found: Inventory, vm: Vm, instance: str) -> Remains:
    """What an inventory of the run holds of one machine beside its instance."""
    others = [
        one
        for one in found.views()
        if one.is_live and one.instance != instance and _replaces(one, found, vm)
    ]
    mine = found.of_node(vm.node, vm.generation)
    left = mine.live_requests or mine.volumes or mine.groups
    return Remains(anything=bool(left or others), replacement=others[0] if others else None)


def _replaces(view: MachineView, found: Inventory, vm: Vm) -> bool:
    """Whether an instance came in the place of a machine: from its request, or with its tags."""
    mine = found.of_node(vm.node, vm.generation).requests
    requests = {str(one.get("SpotInstanceRequestId")) for one in mine}
    tagged = view.tags.get("qft-generation"), node_of_tags(view.tags)
    return view.request in requests or tagged == (str(vm.generation), vm.node)


def _view(id_: MachineId, row: Row | None, request: Row | None = None) -> MachineView:
    """The view of the instance with that id, whatever its request holds by now."""
    return replace(view_of(row, request), instance=id_.instance)


def _cap_of(view: MachineView) -> float | None:
    """The cap of a machine by its request, or by its tag while that was not asked for."""
    if view.cap_usd_per_h is not None:
        return view.cap_usd_per_h
    try:
        return float(view.tags.get("qft-cap", ""))
    except ValueError:
        return None
