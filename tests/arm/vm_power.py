"""The power of simulated machines: start, deallocate, evictions, and the instance view."""

from __future__ import annotations

from typing import Any, Protocol

from arm.longrunning import accepted
from arm.market import SIZES
from arm.replies import ArmError, Reply, Request
from arm.world import Resource, World

START_S = 30.0
DEALLOCATE_S = 35.0
AGENT_READY_S = 45.0
REHEARSAL_S = 20.0
NOTICE_S = 30.0
BILLED = frozenset({"", "starting", "running", "stopping", "stopped", "deallocating"})


class Hypervisor(Protocol):
    """Runs the machines; the cloud calls it when they start and stop."""

    def boot(self, vm: Resource, host: str, *, outbound: bool) -> None:
        """The machine was switched on; `outbound` tells whether its network has a way out."""
        ...

    def warn(self, vm: Resource, notice_s: float) -> None:
        """The machine will be taken away."""
        ...

    def halt(self, vm: Resource) -> None:
        """The machine was switched off, its disk stays."""
        ...

    def remove(self, vm: Resource) -> None:
        """The machine and its disk are gone."""
        ...


class NoHypervisor:
    """Machines with nothing inside."""

    def boot(self, vm: Resource, host: str, *, outbound: bool) -> None:
        """Nothing boots."""

    def warn(self, vm: Resource, notice_s: float) -> None:
        """Nobody hears."""

    def halt(self, vm: Resource) -> None:
        """Nothing stops."""

    def remove(self, vm: Resource) -> None:
        """Nothing goes."""


def hypervisor_of(world: World) -> Hypervisor:
    """What runs inside this world's machines."""
    hypervisor: Hypervisor = world.hypervisor
    return hypervisor


def bill(world: World, vm: Resource) -> None:
    """Let the compute meter run or rest, as the power says; `stopped` runs."""
    size = vm.properties["hardwareProfile"]["vmSize"]
    if vm.hidden["power"] in BILLED:
        price = (
            world.market.price(size, vm.location)
            if vm.properties.get("priority") == "Spot"
            else SIZES[size.lower()].on_demand_usd_per_h
        )
        world.ledger.start("compute", vm.id, price)
    else:
        world.ledger.stop("compute", vm.id)


def allocated(world: World, region: str, *, but: str) -> int:
    """How many other machines hold compute in a region: those that bill it."""
    holders = {id_ for kind, id_ in world.ledger.meters if kind == "compute" and id_ != but.lower()}
    return sum(one.location == region for id_, one in world.resources.items() if id_ in holders)


def set_power(world: World, vm: Resource, state: str) -> None:
    """Change the power and the meter."""
    vm.hidden["power"], vm.hidden["changed_s"] = state, world.now()
    bill(world, vm)


def run(world: World, vm: Resource) -> None:
    """The machine runs from now on."""
    set_power(world, vm, "running")
    vm.hidden["booted_s"] = world.now()
    address = address_of(world, vm)
    hypervisor_of(world).boot(vm, address, outbound=bool(address))


def address_of(world: World, vm: Resource) -> str:
    """The machine's public address."""
    for reference in vm.properties["networkProfile"]["networkInterfaces"]:
        card = world.find(reference["id"])
        for one in (card.properties.get("ipConfigurations") or []) if card else []:
            public = one["properties"].get("publicIPAddress")
            address = world.find(public["id"]) if public else None
            if address is not None:
                return str(address.hidden["address"])
    return ""


def act(world: World, base: str, request: Request, vm: Resource, action: str) -> Reply:
    """An action on one machine."""
    if action == "instanceview":
        return Reply(body=instance_view(world, vm))
    if request.method != "POST":
        raise ArmError(405, "MethodNotAllowed", f"{request.method} is not allowed.")
    match action:
        case "start":
            return _start(world, base, vm)
        case "deallocate":
            return _deallocate(world, base, vm)
        case "poweroff":
            set_power(world, vm, "stopped")
            world.event(
                vm, "Microsoft.Compute/virtualMachines/powerOff/action", caller=world.caller
            )
            hypervisor_of(world).halt(vm)
            return Reply(status=200)
        case "simulateeviction":
            return _rehearse(world, vm)
    raise ArmError(404, "NotFound", f"There is no action '{action}'.")


def _start(world: World, base: str, vm: Resource) -> Reply:
    if vm.hidden["power"] in {"starting", "running"}:
        return Reply(status=200)
    _check_idle(world, vm)
    size = vm.properties["hardwareProfile"]["vmSize"]
    if vm.properties.get("priority") == "Spot":
        cap = float((vm.properties.get("billingProfile") or {}).get("maxPrice", -1))
        world.market.check(size, vm.location, cap=cap, doing="Start")
    operation = world.operation("post")
    failure = world.market.later_failure(
        size, vm.location, allocated=allocated(world, vm.location, but=vm.id)
    )
    if failure is None:
        set_power(world, vm, "starting")
    elif world.shows_starting:
        vm.hidden["power"] = "starting"  # nothing has been allocated, so nothing bills

    def finish() -> None:
        if failure is not None:
            if vm.hidden["power"] == "starting":
                set_power(world, vm, "deallocated")
            vm.hidden["failure"] = failure
            vm.properties["provisioningState"] = "Failed"
            operation.end(world.now(), ArmError(409, *failure))
            world.event(
                vm,
                "Microsoft.Compute/virtualMachines/start/action",
                caller="a@b.example",
                words=failure[1],
                status="Failed",
            )
            return
        if vm.hidden["power"] == "starting":
            vm.hidden.pop("failure", None)
            vm.properties["provisioningState"] = "Succeeded"
            world.event(vm, "Microsoft.Compute/virtualMachines/start/action", caller="a@b.example")
            run(world, vm)
        operation.end(world.now())

    world.after(START_S if failure is None else world.market.fail_s or START_S, finish)
    return accepted(world, operation, base, status=202)


def _deallocate(world: World, base: str, vm: Resource) -> Reply:
    if vm.hidden["power"] == "deallocated":
        return Reply(status=200)
    _check_idle(world, vm)
    operation = world.operation("post")
    set_power(world, vm, "deallocating")
    hypervisor_of(world).halt(vm)
    world.event(vm, "Microsoft.Compute/virtualMachines/deallocate/action", caller=world.caller)

    def finish() -> None:
        if vm.hidden["power"] == "deallocating":
            set_power(world, vm, "deallocated")
        operation.end(world.now())

    world.after(DEALLOCATE_S, finish)
    return accepted(world, operation, base, status=202)


def _check_idle(world: World, vm: Resource) -> None:
    if (
        vm.properties["provisioningState"] in {"Creating", "Deleting"}
        or vm.hidden["power"] == "deallocating"
    ):
        raise ArmError(
            409,
            world.busy_code,
            f"Operation is not allowed on VM '{vm.name}' since another operation is in progress.",
        )


def _rehearse(world: World, vm: Resource) -> Reply:
    if vm.properties.get("priority") != "Spot":
        raise ArmError(
            409, "OperationNotAllowed", "Simulate eviction is only supported for Spot machines."
        )
    world.event(
        vm, "Microsoft.Compute/virtualMachines/simulateEviction/action", caller="a@b.example"
    )
    evict(world, vm, notice_s=NOTICE_S, delay_s=REHEARSAL_S)
    return Reply(status=204)


def evict(
    world: World,
    vm: Resource,
    *,
    notice_s: float,
    delay_s: float = 0.0,
    leaving_s: float = 0.0,
    words: str = "",
) -> None:
    """Take the machine away: a notice if there is one, then deallocation, by the policy.

    For `leaving_s` it is shown as deallocating, and bills.
    """

    def warn() -> None:
        if vm.hidden["power"] == "running" and notice_s > 0:
            hypervisor_of(world).warn(vm, notice_s)

    def take() -> None:
        if world.find(vm.id) is not vm or vm.hidden["power"] in {"deallocated", "deallocating"}:
            return
        hypervisor_of(world).halt(vm)
        set_power(world, vm, "deallocating")
        world.after(leaving_s, gone)

    def gone() -> None:
        if world.find(vm.id) is not vm:
            return
        set_power(world, vm, "deallocated")
        world.event(
            vm,
            "Microsoft.Compute/virtualMachines/evictSpotVM/action",
            caller="Microsoft.Compute",
            words=words,
        )

    world.after(delay_s, warn)
    world.after(delay_s + notice_s, take)


def instance_view(world: World, vm: Resource) -> dict[str, Any]:
    """Statuses in no order; no power state while creating; the agent is late."""
    state = vm.properties["provisioningState"]
    failure = vm.hidden.get("failure")
    statuses: list[dict[str, Any]]
    if failure is not None:
        statuses = [
            {
                "code": f"ProvisioningState/failed/{failure[0]}",
                "level": "Error",
                "displayStatus": "Provisioning failed",
                "message": failure[1],
                "time": world.clock.iso(vm.hidden.get("changed_s", vm.born_s)),
            }
        ]
    else:
        statuses = [
            {
                "code": f"ProvisioningState/{state.lower()}",
                "level": "Info",
                "displayStatus": f"Provisioning {state.lower()}",
                "time": world.clock.iso(vm.hidden.get("changed_s", vm.born_s)),
            }
        ]
    if vm.hidden["power"]:
        statuses.append(
            {
                "code": f"PowerState/{vm.hidden['power']}",
                "level": "Info",
                "displayStatus": f"VM {vm.hidden['power']}",
            }
        )
    world.random.shuffle(statuses)
    view: dict[str, Any] = {"statuses": statuses}
    if vm.hidden["power"] == "running":
        ready = world.now() - vm.hidden["booted_s"] >= AGENT_READY_S
        code = "ProvisioningState/succeeded" if ready else "ProvisioningState/Unavailable"
        view["vmAgent"] = {
            "vmAgentVersion": "2.9" if ready else "Unknown",
            "statuses": [{"code": code, "level": "Info", "displayStatus": "Ready"}],
        }
    return view
