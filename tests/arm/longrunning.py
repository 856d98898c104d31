"""Long-running operations with the header patterns that real traffic shows."""

from __future__ import annotations

from typing import Any

from arm.replies import ArmError, Reply, Request
from arm.world import OPERATION_TTL_S, SUBSCRIPTION, Operation, World

_HOMES = {
    "vm": "Microsoft.Compute/locations/eastus",
    "post": "Microsoft.Compute/locations/eastus",
    "network": "Microsoft.Network/locations/eastus",
    "disk": "Microsoft.Compute/locations/eastus",
}


def accepted(
    world: World, operation: Operation, base: str, body: Any = None, *, status: int
) -> Reply:
    """The first answer: VM PUT tells to wait 10 s, network 3 s, POST and DELETE nothing."""
    wait = world.clock.retry_after
    if operation.kind == "group":
        url = f"{base}/subscriptions/{SUBSCRIPTION}/operationresults/{operation.id}"
        headers = {"Location": f"{url}?api-version=2025-04-01", "Retry-After": wait(15)}
        return Reply(status=status, headers=headers)
    url = (
        f"{base}/subscriptions/{SUBSCRIPTION}/providers/{_HOMES[operation.kind]}"
        f"/operations/{operation.id}?p={operation.id}&api-version=2026-04-01"
    )
    headers = {"Azure-AsyncOperation": url, "Azure-AsyncNotification": "Enabled"}
    if operation.kind == "vm":
        headers["Retry-After"] = wait(10)
    elif operation.kind == "network":
        headers["Retry-After"] = wait(3)
    else:
        headers["Location"] = url.replace("?p=", "?monitor=true&p=")
    return Reply(status=status, body=body, headers=headers)


def poll(world: World, request: Request, id_: str) -> Reply:
    """The status page of an operation; it expires an hour after the end."""
    found = world.operations.get(id_)
    now = world.now()
    if found is None or (found.ended_s is not None and now - found.ended_s > OPERATION_TTL_S):
        raise ArmError(404, "NotFound", f"The operation '{id_}' was not found.")
    found.polls += 1
    reported = found.ended_s is not None and now - found.ended_s >= world.report_lag_s
    if found.kind == "group":
        return _poll_group(world, found) if reported else _still(world)
    if "monitor" in request.query:
        return Reply(status=200 if reported else 202)
    body: dict[str, Any] = {"status": found.status if reported else "InProgress"}
    if found.kind != "network":
        body |= {"startTime": world.clock.iso(found.started_s), "name": found.id}
    if reported and found.kind != "network":
        body["endTime"] = world.clock.iso(found.ended_s)
    if reported and found.error is not None:
        body |= found.error.body
    headers = {}
    if not reported:
        if found.kind == "vm" and found.polls == 1:
            headers["Retry-After"] = world.clock.retry_after(50)
        elif found.kind == "network":
            headers["Retry-After"] = world.clock.retry_after(10)
    return Reply(body=body, headers=headers)


def _poll_group(world: World, found: Operation) -> Reply:
    """Group deletion answers 202 until it is over, and its error as the answer itself."""
    if found.error is not None:
        raise found.error
    return Reply(status=200) if found.ended_s is not None else _still(world)


def _still(world: World) -> Reply:
    return Reply(status=202, headers={"Retry-After": world.clock.retry_after(15)})
