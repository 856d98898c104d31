"""What EC2 does with spot requests by itself: restarts, relaunches, expiry, interruptions."""

from __future__ import annotations

from ec2.launching import make_instance
from ec2.regions import SIZES
from ec2.replies import AwsError
from ec2.resources import Instance, Notice, SpotRequest
from ec2.world import World

NO_CAPACITY = "no-capacity"
BY_PRICE = "by-price"
EXPERIMENT = "by-experiment"
POLL_S = 30.0
"""How often EC2 looks whether a machine that it interrupted can run again."""


def attach(world: World) -> None:
    """Have the spot requests of a world follow its machines."""
    world.state_listeners.append(lambda instance: _follow(world, instance))


def spot_vcpus(world: World, region: str) -> int:
    """The vCPUs that count against the spot quota: of machines that run and of open requests."""
    running = [
        one.size
        for one in world.instances.values()
        if one.region == region and one.request_id and one.state in {"pending", "running"}
    ]
    waiting = [
        one.size for one in world.requests.values() if one.region == region and one.state == "open"
    ]
    return sum(SIZES[size].vcpus for size in (*running, *waiting) if size.startswith("g"))


def is_expired(world: World, request: SpotRequest) -> bool:
    """Whether the `ValidUntil` of a request has passed."""
    return request.valid_until_s is not None and world.now() >= request.valid_until_s


def watch_expiry(world: World, request: SpotRequest) -> None:
    """Have a request expire at its `ValidUntil`."""
    if request.valid_until_s is not None:
        world.after(request.valid_until_s - world.now(), lambda: _expire(world, request))


def interrupt(world: World, instance: Instance, *, kind: str, notice_s: float) -> None:
    """Interrupt a machine as EC2 does: its notice now, then its stop, as its request has it.

    `kind` is `no-capacity`, `by-price` or `by-experiment`.
    """
    request = world.request_of(instance)
    if request is None or instance.state != "running" or instance.notice is not None:
        return
    stops = request.behavior == "stop" and request.state == "active"
    action = "stop" if stops else "terminate"
    instance.notice = Notice(action=action, at_s=world.now() + notice_s)
    if request.state == "active":
        status = "marked-for-stop" if stops else "marked-for-termination"
        world.set_status(request, "active", status)
    launches = instance.launches
    if notice_s > 0:
        world.hypervisor.warn(instance, notice_s)

    def happen() -> None:
        if instance.state != "running" or instance.launches != launches:
            return
        if stops:
            status = f"instance-stopped-{kind}"
            world.stop_instance(instance.id, "Server.SpotInstanceShutdown", status)
        else:
            status = f"instance-terminated-{kind}"
            reason = "Server.SpotInstanceTermination"
            world.terminate_instance(instance.id, reason_code=reason, request_status=status)

    if notice_s > 0:
        world.after(notice_s, happen)
    else:
        happen()


def evaluate(world: World, request: SpotRequest) -> None:
    """Launch a machine for an open request if there is room below its cap; else look again."""
    if request.state != "open":
        return
    if is_expired(world, request):
        world.set_status(request, "closed", "schedule-expired")
        return
    obstacle = _obstacle(world, request)
    if obstacle:
        if request.status != obstacle:
            world.set_status(request, "open", obstacle)
    elif world.relaunches:
        make_instance(world, request.parameters, request=request, tagged=world.relaunch_tagged)
        return
    world.after(world.timing.relaunch_s, lambda: evaluate(world, request))


def cancel(world: World, request: SpotRequest) -> None:
    """Cancel a request: a machine that runs goes on, one that is stopped goes after a while."""
    if not request.is_live:
        return
    instance = world.instances.get(request.instance_id)
    alive = instance is not None and instance.state in {"pending", "running"}
    before = request.state
    status = "request-canceled-and-instance-running" if alive else "canceled-before-fulfillment"
    if instance is not None and not alive and before != "open":
        status = request.status
    world.set_status(request, "cancelled", status)
    if instance is not None and instance.state == "stopped":
        _terminate_later(world, instance)


def _follow(world: World, instance: Instance) -> None:
    request = world.request_of(instance)
    if request is None:
        return
    if instance.state == "pending" and request.is_live:
        world.set_status(request, "active", "fulfilled")
    elif instance.state == "stopped":
        _after_stop(world, instance, request)
    elif instance.state == "shutting-down" and request.state == "open":
        if is_expired(world, request):
            world.set_status(request, "closed", request.status)
        else:
            world.after(world.timing.relaunch_s, lambda: evaluate(world, request))


def _after_stop(world: World, instance: Instance, request: SpotRequest) -> None:
    if request.state == "cancelled":
        _terminate_later(world, instance)
    elif request.state == "disabled" and is_expired(world, request):
        _expire(world, request)
    elif request.state == "disabled" and request.status.endswith((NO_CAPACITY, BY_PRICE)):
        launches = instance.launches
        world.after(world.timing.restart_s, lambda: _restart(world, instance, launches))


def _terminate_later(world: World, instance: Instance) -> None:
    launches = instance.launches

    def go() -> None:
        if instance.state == "stopped" and instance.launches == launches:
            world.terminate_instance(
                instance.id,
                reason_code="Server.SpotInstanceTermination",
                request_status="instance-terminated-by-user",
            )

    world.after(world.timing.cancel_s, go)


def _restart(world: World, instance: Instance, launches: int) -> None:
    """Start again what was interrupted, if there is room below the cap; else look again."""
    request = world.request_of(instance)
    if request is None or request.state != "disabled" or is_expired(world, request):
        return
    if instance.state != "stopped" or instance.launches != launches:
        return
    if world.restarts and not _obstacle(world, request):
        world.launch(instance)
    else:
        world.after(POLL_S, lambda: _restart(world, instance, launches))


def _obstacle(world: World, request: SpotRequest) -> str:
    """The status that says why a request cannot be fulfilled now; empty if it can."""
    market = world.market
    try:
        market.check_price(request.size, request.zone, request.cap)
    except AwsError:
        return "price-too-low"
    try:
        market.check_room(request.size, request.zone)
        waiting = request.state == "open"
        used = spot_vcpus(world, request.region)
        market.check_quota(request.size, request.region, used - waiting * _vcpus(request))
    except AwsError:
        return "capacity-not-available"
    return ""


def _vcpus(request: SpotRequest) -> int:
    return SIZES[request.size].vcpus


def _expire(world: World, request: SpotRequest) -> None:
    """The `ValidUntil` of a request has passed: what runs goes on, nothing starts any more."""
    if request.state == "open":
        world.set_status(request, "closed", "schedule-expired")
    elif request.state == "disabled":
        world.set_status(request, "cancelled", "schedule-expired")
        instance = world.instances.get(request.instance_id)
        if world.expiry_terminates and instance is not None:
            _terminate_later(world, instance)
