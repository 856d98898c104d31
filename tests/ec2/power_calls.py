"""The calls of EC2 that start, stop and terminate machines."""

from __future__ import annotations

from typing import Any

from ec2.replies import ApiCall, AwsError
from ec2.resources import Instance
from ec2.spot_lifecycle import BY_PRICE, NO_CAPACITY, spot_vcpus
from ec2.views import state_view
from ec2.world import World


def _named(world: World, call: ApiCall) -> list[Instance]:
    """The machines that a call names; one that does not exist refuses all."""
    ids = call.parameters["InstanceIds"]
    if not ids:
        message = "The request must contain the parameter InstanceId"
        raise AwsError("MissingParameter", message)
    return [world.instance(id_, call.region) for id_ in dict.fromkeys(ids)]


def _changes(rows: list[tuple[Instance, str]]) -> list[dict[str, Any]]:
    return [
        {
            "InstanceId": instance.id,
            "CurrentState": state_view(instance.state),
            "PreviousState": state_view(before),
        }
        for instance, before in rows
    ]


def stop_instances(world: World, call: ApiCall) -> dict[str, Any]:
    """`StopInstances`: silent for what is stopping or stopped."""
    rows = [(one, one.state) for one in _named(world, call)]
    for instance, state in rows:
        _check_stoppable(world, instance, state)
    for instance, state in rows:
        if state == "running":
            world.stop_instance(
                instance.id, "Client.UserInitiatedShutdown", "instance-stopped-by-user"
            )
    return {"StoppingInstances": _changes(rows)}


def _check_stoppable(world: World, instance: Instance, state: str) -> None:
    request = world.request_of(instance)
    if state in {"pending", "shutting-down", "terminated"}:
        message = f"This instance '{instance.id}' is not in a state from which it can be stopped."
        raise AwsError("IncorrectInstanceState", message)
    if request is not None and request.type == "one-time":
        raise AwsError(
            "UnsupportedOperation",
            f"You can't stop the Spot Instance '{instance.id}' because it is associated with a "
            "one-time Spot Instance request. You can only stop Spot Instances associated with "
            "persistent Spot Instance requests.",
        )


def start_instances(world: World, call: ApiCall) -> dict[str, Any]:
    """`StartInstances`: silent for what runs or begins to."""
    rows = [(one, one.state) for one in _named(world, call)]
    for instance, state in rows:
        if state == "stopped":
            _check_start(world, instance)
        elif state not in {"pending", "running"}:
            message = (
                f"The instance '{instance.id}' is not in a state from which it can be started."
            )
            raise AwsError("IncorrectInstanceState", message)
    for instance, state in rows:
        if state == "stopped":
            world.launch(instance)
    return {"StartingInstances": _changes(rows)}


def _check_start(world: World, instance: Instance) -> None:
    request = world.request_of(instance)
    if request is None:
        world.market.check_room(instance.size, instance.zone)
        return
    if request.state != "disabled":
        raise AwsError(
            "IncorrectSpotRequestState",
            f"You can't start the Spot Instance '{instance.id}' because the associated Spot "
            "Instance request is not in an appropriate state to support start.",
        )
    if request.status.endswith((NO_CAPACITY, BY_PRICE)):
        raise _only_ec2_starts(world, instance)
    world.market.check_quota(instance.size, instance.region, spot_vcpus(world, instance.region))
    world.market.check_price(instance.size, instance.zone, request.cap)
    if not world.market.has_room(instance.size, instance.zone):
        raise AwsError("InsufficientInstanceCapacity", _no_spot_capacity(instance), status=500)


def _no_spot_capacity(instance: Instance) -> str:
    return (
        f"You can't start the Spot Instance '{instance.id}' because there is no available Spot "
        "capacity."
    )


def _only_ec2_starts(world: World, instance: Instance) -> AwsError:
    """The refusal to start what EC2 itself interrupted, under each of the codes seen for it."""
    if world.start_refusal == "IncorrectSpotRequestState":
        message = (
            f"You can't start the Spot Instance '{instance.id}' because the associated Spot "
            "Instance request is not in an appropriate state to support start."
        )
        return AwsError("IncorrectSpotRequestState", message)
    server = world.start_refusal == "InsufficientInstanceCapacity"
    return AwsError(world.start_refusal, _no_spot_capacity(instance), status=500 if server else 400)


def terminate_instances(world: World, call: ApiCall) -> dict[str, Any]:
    """`TerminateInstances`: silent for what is gone but still listed."""
    rows = [(one, one.state) for one in _named(world, call)]
    for instance, _ in rows:
        world.terminate_instance(instance.id, reason_code="Client.UserInitiatedShutdown")
    return {"TerminatingInstances": _changes(rows)}


OPERATIONS = {
    "StopInstances": stop_instances,
    "StartInstances": start_instances,
    "TerminateInstances": terminate_instances,
}
