"""Virtual machines of the simulated cloud: accepted, made, evicted, removed."""

from __future__ import annotations

import copy
import uuid
from typing import Any

from azure.mgmt.compute import models

from arm import vm_power
from arm.bodies import check, check_machine
from arm.ledger import DISK_USD_PER_GB_H
from arm.longrunning import accepted
from arm.market import SIZES
from arm.networks import RESERVED_S
from arm.replies import ArmError, Reply, Request, Route
from arm.world import SUBSCRIPTION, Resource, World

CREATE_S = 40.0
FAIL_S = 25.0
DELETE_S = 60.0
PATCH_S = 5.0
TYPE = "Microsoft.Compute/virtualMachines"


def handle(world: World, base: str, request: Request, route: Route) -> Reply:
    """Everything under `providers/Microsoft.Compute/virtualMachines`."""
    world.group(route.group)
    id_ = id_of(route.group, route.name)
    if route.action:
        return vm_power.act(world, base, request, world.need(id_), route.action)
    match request.method:
        case "PUT":
            return _put(world, base, request, route, id_)
        case "PATCH":
            return _patch(world, base, request, world.need(id_))
        case "DELETE":
            return _delete(world, base, id_)
        case "GET" if not route.name:
            found = [one for one in world.listed() if one.type == TYPE]
            return Reply(body={"value": [view(world, one) for one in found]})
    expand = request.query.get("$expand", "").lower() == "instanceview"
    return Reply(body=view(world, world.need(id_), expand=expand))


def id_of(group: str, name: str) -> str:
    """The full id of a machine."""
    return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/{TYPE}/{name}"


def view(world: World, vm: Resource, *, expand: bool = False) -> dict[str, Any]:
    """What a GET answers; secrets of the body are never given back."""
    shown = copy.deepcopy(vm.view())
    properties = shown["properties"]
    for secret in ("customData", "adminPassword"):
        properties.get("osProfile", {}).pop(secret, None)
    properties.pop("userData", None)
    if vm.hidden["power"] == "deallocated":
        disk = properties["storageProfile"]["osDisk"]
        disk.pop("diskSizeGB", None)
        disk.get("managedDisk", {}).pop("storageAccountType", None)
    if expand:
        properties["instanceView"] = vm_power.instance_view(world, vm)
    return shown


def _put(world: World, base: str, request: Request, route: Route, id_: str) -> Reply:
    check(request.body, models.VirtualMachine, models)
    check_machine(request.body)
    group = world.writable_group(route.group)
    found = world.find(id_)
    if found is not None:
        if request.header("if-none-match") == "*":
            raise ArmError(
                412,
                "PreconditionFailed",
                f"The resource '{id_}' exists, and If-None-Match was given.",
            )
        raise ArmError(
            409, "PropertyChangeNotAllowed", "Changing property 'osProfile' is not allowed."
        )
    body: dict[str, Any] = copy.deepcopy(request.body)
    _check_spot(world, body)
    card = _check_card(world, body, id_)
    if world.loses_priority:
        for member in ("priority", "billingProfile", "evictionPolicy"):
            body["properties"].pop(member, None)
    vm = _add(world, body, route, id_)
    card.hidden["vm"] = id_
    world.machines_made.append(id_)
    operation = world.operation("vm")
    size = body["properties"]["hardwareProfile"]["vmSize"]
    failure = world.market.later_failure(
        size,
        vm.location,
        _zone(body),
        allocated=vm_power.allocated(world, vm.location, but=vm.id),
    )

    def finish() -> None:
        if world.find(id_) is not vm:
            operation.end(world.now(), ArmError(409, "OperationPreempted", "Deleted meanwhile."))
        elif failure is not None:
            _fail(world, vm, card, failure)
            operation.end(world.now(), ArmError(409, *failure))
        else:
            vm.properties["provisioningState"] = "Succeeded"
            vm_power.run(world, vm)
            operation.end(world.now())

    world.after(CREATE_S if failure is None else world.market.fail_s or FAIL_S, finish)
    del group
    return accepted(world, operation, base, view(world, vm), status=201)


def _patch(world: World, base: str, request: Request, vm: Resource) -> Reply:
    """A change of the price cap, which only a deallocated spot machine admits."""
    check(request.body, models.VirtualMachineUpdate, models)
    billing = (request.body.get("properties") or {}).get("billingProfile")
    if billing is not None:
        if vm.properties.get("priority") != "Spot":
            raise ArmError(
                400,
                "MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines",
                "Max price is supported only for Azure Spot Virtual Machines.",
            )
        if vm.hidden["power"] != "deallocated":
            raise ArmError(
                409,
                "MaxPriceChangeNotAllowedForAllocatedVMs",
                "Max price change is not allowed when VM is currently allocated. Please deallocate "
                "and try again.",
            )
        size, cap = vm.properties["hardwareProfile"]["vmSize"], float(billing["maxPrice"])
        world.market.check_price(size, vm.location, cap=cap, doing="Update")
        vm.properties["billingProfile"] = {"maxPrice": cap}
    operation = world.operation("vm")
    world.after(PATCH_S, lambda: operation.end(world.now()))
    return accepted(world, operation, base, view(world, vm), status=200)


def _check_spot(world: World, body: dict[str, Any]) -> None:
    properties = body["properties"]
    size, region = properties["hardwareProfile"]["vmSize"], body["location"]
    sold = SIZES.get(size.lower())
    if sold is None:
        raise ArmError(
            400, "InvalidParameter", f"The value {size} provided for the VM size is not valid."
        )
    if properties.get("priority", "Regular") != "Spot":
        for member, code in (
            ("billingProfile", "MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines"),
            ("evictionPolicy", "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines"),
        ):
            if member in properties:
                raise ArmError(400, code, f"{member} can be set only on Azure Spot machines.")
        return
    if not world.market.spot_allowed:
        raise ArmError(
            409,
            "AzureSpotFeatureNotEnabledForSubscription",
            "The Azure Spot Virtual Machine feature is not enabled for this subscription.",
        )
    if not sold.spot:
        raise ArmError(
            400,
            "AzureSpotIsNotSupportedForThisVMSize",
            f"Azure Spot is not supported for this VM size {size}.",
        )
    cap = float((properties.get("billingProfile") or {}).get("maxPrice", -1))
    world.market.check(size, region, zone=_zone(body), cap=cap, doing="Create")
    world.market.check_quota(size, region, spot_cores_used(world, region))


def _zone(body: dict[str, Any]) -> str:
    """The zone that a body names; empty for none."""
    (zone,) = body.get("zones") or [""]
    return str(zone)


def spot_cores_used(world: World, region: str) -> int:
    """Cores that count against the spot quota: those of deallocated machines do too."""
    return world.market.others.get(region, 0) + sum(
        SIZES[one.properties["hardwareProfile"]["vmSize"].lower()].vcpus
        for one in world.resources.values()
        if one.type == TYPE and one.location == region and one.properties.get("priority") == "Spot"
    )


def _check_card(world: World, body: dict[str, Any], id_: str) -> Resource:
    cards = body["properties"]["networkProfile"]["networkInterfaces"]
    card = world.find(cards[0]["id"])
    if card is None or card.location != body["location"]:
        raise ArmError(
            404, "NotFound", f"The network interface {cards[0]['id']} was not found in this region."
        )
    if card.state != "Succeeded":
        raise ArmError(409, "RetryableError", "A retryable error occurred: the NIC is updating.")
    holder = card.hidden.get("vm", "")
    if holder and holder.lower() != id_.lower() and world.find(holder):
        raise ArmError(400, "NicInUse", f"Network Interface {card.id} is used by {holder}.")
    return card


def _add(world: World, body: dict[str, Any], route: Route, id_: str) -> Resource:
    properties = body["properties"]
    disk_body = properties["storageProfile"]["osDisk"]
    disk_name = disk_body.setdefault("name", f"{route.name}_OsDisk_1")
    disk_id = (
        f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{route.group}"
        f"/providers/Microsoft.Compute/disks/{disk_name}"
    )
    if world.find(disk_id):
        raise ArmError(409, "ConflictingUserInput", f"Disk {disk_name} already exists.")
    disk_body.setdefault("managedDisk", {})["id"] = disk_id
    size_gb = int(disk_body.get("diskSizeGB", 30))
    world.add(
        Resource(
            id=disk_id,
            type="Microsoft.Compute/disks",
            group=route.group,
            location=body["location"],
            tags={},
            properties={"diskSizeGB": size_gb, "provisioningState": "Succeeded"},
            more={"managedBy": id_},
        )
    )
    world.ledger.start("disk", disk_id, size_gb * DISK_USD_PER_GB_H)
    more = {key: body[key] for key in ("zones",) if key in body}
    if (body.get("identity") or {}).get("type") == "SystemAssigned":
        more["identity"] = {"type": "SystemAssigned", "principalId": str(uuid.uuid4())}
    vm = world.add(
        Resource(
            id=id_,
            type=TYPE,
            group=route.group,
            location=body["location"],
            tags=dict(body.get("tags") or {}),
            properties={
                **properties,
                "provisioningState": "Creating",
                "timeCreated": world.iso(),
                "vmId": str(uuid.uuid4()),
            },
            more=more,
            hidden={"power": "", "disk": disk_id},
        )
    )
    vm_power.bill(world, vm)
    return vm


def _fail(world: World, vm: Resource, card: Resource, failure: tuple[str, str]) -> None:
    """A failed allocation leaves the machine, its disk, and a card reserved for 180 s.

    No compute was allocated, so none has billed.
    """
    vm.properties["provisioningState"] = "Failed"
    vm.hidden["failure"] = failure
    vm.hidden["power"] = ""
    world.ledger.forget("compute", vm.id)
    card.hidden["reserved_until"] = world.now() + RESERVED_S
    card.hidden["reserved_for"] = vm.id


def _delete(world: World, base: str, id_: str) -> Reply:
    vm = world.find(id_)
    if vm is None:
        return Reply(status=204)
    operation = world.operation("post")
    vm.properties["provisioningState"] = "Deleting"
    world.event(vm, "Microsoft.Compute/virtualMachines/delete", caller="a@b.example")

    def finish() -> None:
        if world.find(id_) is vm:
            vanish(world, vm)
        operation.end(world.now())

    world.after(DELETE_S, finish)
    return accepted(world, operation, base, status=202)


def vanish(world: World, vm: Resource) -> None:
    """The machine goes, and with it what its deleteOptions say, unless a card is reserved."""
    vm_power.hypervisor_of(world).remove(vm)
    properties = vm.properties
    world.drop(vm)
    disk = properties["storageProfile"]["osDisk"]
    if disk.get("deleteOption") == "Delete":
        _drop_if_there(world, vm.hidden["disk"])
    for reference in properties["networkProfile"]["networkInterfaces"]:
        card = world.find(reference["id"])
        if card is None:
            continue
        card.hidden.pop("vm", None)
        wanted = (reference.get("properties") or {}).get("deleteOption") == "Delete"
        if wanted and not float(card.hidden.get("reserved_until", 0)) > world.now():
            _drop_card(world, card)


def _drop_card(world: World, card: Resource) -> None:
    world.drop(card)
    for one in card.properties.get("ipConfigurations") or []:
        address = (one.get("properties") or {}).get("publicIPAddress") or {}
        if (address.get("properties") or {}).get("deleteOption") == "Delete":
            _drop_if_there(world, address["id"])


def _drop_if_there(world: World, id_: str) -> None:
    found = world.find(id_)
    if found is not None:
        world.drop(found)
