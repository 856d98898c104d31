"""Decides what a look at EC2 means for the seam: power, reason of a stop, times; pure.

EC2 says at once why a machine is down: `StateReason.Code` says who ended it, and `Status.Code` of
the spot request says which of the market's reasons it was. Neither is enough alone: the request has
one word for a stop by the API and for a shutdown from inside (`instance-stopped-by-user`), and the
instance has one for a price that rose and for capacity that went.

A persistent request acts by itself. After an interruption EC2 starts the same instance again, which
is read as any other start. After a termination it may launch another instance, with an empty disk:
that one is never taken over; the machine is read as failed, so that the run removes both.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.aws.errors import AwsErrorInfo, translate
from infra.aws.machine_view import (
    PENDING,
    RUNNING,
    SHUTTING_DOWN,
    STOPPED,
    STOPPING,
    TERMINATED,
    MachineView,
)
from infra.aws.request import VALID_AFTER_LIMIT_S
from infra.errors import NoCapacity, NotAllowed, OverQuota, PriceAboveCap, ProviderError
from infra.provider import Observation, PowerState, StopReason
from infra.timestamps import format_utc, parse_utc_s

NEW_S = 300.0
"""For so long after our own create, "not found" means "not visible yet", as AWS documents."""
LAG_S = 60.0
"""How long a state may be shown that an accepted order has already ended."""
SKEW_S = 60.0
"""How far this computer's clock and EC2's may differ."""
BOOT_S = 60.0
"""A machine that went down sooner after its launch has not run; EC2 needs 8 to 50 s to boot one."""
USER = "Client.UserInitiatedShutdown"
INSIDE = "Client.InstanceInitiatedShutdown"
MARKET = ("Server.SpotInstanceShutdown", "Server.SpotInstanceTermination")
FREE_S = 3600.0
"""What EC2 interrupts sooner after its launch costs no compute (User Guide, "Billing for
interrupted Spot Instances"). Whether that holds for a rehearsal is nowhere documented."""
NEVER_LAUNCHED = (
    "Server.InsufficientInstanceCapacity",
    "Client.VolumeLimitExceeded",
    "Client.InvalidSnapshot.NotFound",
    "Client.InternalError",
)
"""Codes with which EC2 ends a machine instead of booting it."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What this computer recorded of its own orders for the machine; all empty if nothing."""

    requested: str = ""
    """The last order: create, start, deallocate, evict, delete."""
    requested_at_s: float = 0.0
    created_at_s: float = 0.0
    """When the machine was created, by whichever computer."""
    released_at_s: float = 0.0
    """When this computer last asked for a deallocation."""
    ran: bool = False
    """Whether it was seen running since it was last created or started."""
    limit_s: float = 0.0
    """When our schedule begins to stop it, seconds since 1970; 0 if none is set."""


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What is left of a machine beside its instance."""

    anything: bool = False
    """Whether a volume, a security group, an open request, a schedule or an alarm is left."""
    replacement: MachineView | None = None
    """The instance that EC2 launched in its place, from the same request."""


@dataclass(frozen=True, kw_only=True)
class StopCause:
    """Why a machine went down."""

    reason: StopReason
    detail: str
    certain: bool = True


def read(
    view: MachineView, orders: Orders, remains: Remains = Remains(), *, now_s: float
) -> Observation:
    """What a look at the machine means. `Remains` counts only where the instance is gone."""
    power = power_of(view, orders, remains, now_s=now_s)
    if power in {PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING, PowerState.STOPPING}:
        is_up = power is PowerState.RUNNING or view.state == PENDING
        launched_s = min(view.launched_s or now_s, now_s)
        return Observation(
            power=power,
            host=view.host,
            detail=_under_way(view, power),
            bills_since=format_utc(launched_s) if is_up and view.launched_s else "",
            launched_at=format_utc(view.launched_s) if is_up and view.launched_s else "",
        )
    ran = has_run(view, orders)
    cause = stop_cause(view, orders, ran=ran)
    waived = _waived_since(view, orders, now_s)
    other = remains.replacement
    if other is not None:
        since_s = min(other.launched_s or now_s, now_s)
        detail = (
            f"EC2 launched another machine, `{other.instance}`, in the place of"
            f" `{view.instance or 'the one'}` that went ({cause.detail}); its disk is empty, and it"
            " bills until it is removed"
        )
        return Observation(
            power=power,
            stop_reason=StopReason.FAILED,
            since=_since(view, now_s),
            detail=detail,
            bills_since=format_utc(since_s),
            waived_since=waived,
            ran=ran,
        )
    return Observation(
        power=power,
        stop_reason=cause.reason,
        certain=cause.certain,
        since=_since(view, now_s),
        detail=cause.detail + ("; EC2 bills none of this start's compute" if waived else ""),
        waived_since=waived,
        ran=ran,
        refusal=refusal_of(view) if ran is False and cause.reason in _REFUSALS else None,
    )


_REFUSALS = {StopReason.EVICTED, StopReason.PRICE, StopReason.FAILED, StopReason.UNKNOWN}
"""Ends that refuse an order to create or start; a person's stop refuses nothing."""


def power_of(
    view: MachineView, orders: Orders, remains: Remains = Remains(), *, now_s: float
) -> PowerState:
    """The seam's word for the state of a machine. EC2's `stopped` bills no compute."""
    if view.state == PENDING:
        return PowerState.STARTING if _was_launched_before(view, orders) else PowerState.CREATING
    if view.state == RUNNING:
        return PowerState.RUNNING
    if view.state in {STOPPING, SHUTTING_DOWN}:
        return PowerState.STOPPING
    if view.state == STOPPED:
        late = _is_before_start(view, orders, now_s)
        return PowerState.STARTING if late else PowerState.DEALLOCATED
    if not view.state and is_new(orders, now_s):
        return PowerState.CREATING
    if remains.replacement is not None:
        return PowerState.FAILED
    if view.state == TERMINATED and _failed_to_launch(view, orders):
        return PowerState.FAILED
    return PowerState.REMNANTS if remains.anything else PowerState.GONE


def is_new(orders: Orders, now_s: float) -> bool:
    """Whether the machine was created so lately that EC2 may not show it yet."""
    if orders.requested not in {"create", ""}:
        return False
    return 0 <= now_s - max(orders.created_at_s, orders.requested_at_s) < NEW_S


def has_run(view: MachineView, orders: Orders) -> bool | None:
    """Whether a machine that is down ran since it was last created or started; None: unknown."""
    if view.reason_code in NEVER_LAUNCHED or "error on launch" in view.reason_message.lower():
        return False
    if orders.ran or view.reason_code == INSIDE:
        return True
    if view.launched_s is None or view.changed_s is None:
        return None
    if view.changed_s - view.launched_s >= BOOT_S:
        return True
    return None if view.reason_code == USER else False


def stop_cause(view: MachineView, orders: Orders, *, ran: bool | None) -> StopCause:
    """Why a machine is down: what its own code says, else what its request says."""
    code, status = view.reason_code, view.status_code
    if status.endswith("-by-experiment"):
        return StopCause(
            reason=StopReason.EVICTED, detail=f"evicted: a rehearsed interruption ({status})"
        )
    if code == USER:
        return _ordered(view, orders)
    if code == INSIDE:
        return StopCause(
            reason=StopReason.RETURNED,
            detail="it switched itself off: its limit was reached, or nobody needed it",
        )
    if code in MARKET or (not code and _is_of_market(status)):
        return _taken(view, orders)
    if code:
        detail = f"{code}: {view.reason_message}" if view.reason_message else code
        words = detail if ran is not False else f"EC2 did not boot it ({detail})"
        return StopCause(reason=StopReason.FAILED, detail=words)
    if orders.requested == "delete":
        return StopCause(reason=StopReason.USER, detail="removed because qft asked for it")
    if status.endswith("terminated-by-user"):
        return StopCause(reason=StopReason.USER, detail=f"a person removed it ({status})")
    detail = f"EC2 does not say why ({status})" if status else "EC2 does not list it any more"
    return StopCause(reason=StopReason.UNKNOWN, detail=detail, certain=False)


def refusal_of(view: MachineView) -> ProviderError:
    """The error for a machine that EC2 accepted and then did not boot."""
    detail = view.reason_message or view.status_message or view.reason_code or view.status_code
    if view.status_code.endswith("-by-price"):
        return PriceAboveCap(
            f"EC2 took the machine before it ran: the price rose above the cap ({detail})",
            hint="set `vm.max_price` higher, name more regions, or wait",
        )
    if view.reason_code == "Client.InternalError":
        return NotAllowed(
            f"EC2 could not open the machine's disk ({detail})",
            hint="the account encrypts disks with a key of its own: its policy must grant the role"
            " `AWSServiceRoleForEC2Spot` the use of that key",
        )
    code = view.reason_code.rpartition(".")[2]
    if code.endswith("LimitExceeded"):
        found = translate(
            AwsErrorInfo(code=code, message=detail, status=200), doing="boot the machine"
        )
        return found if isinstance(found, OverQuota) else NoCapacity(str(found))
    return NoCapacity(
        f"EC2 accepted the machine and did not boot it ({detail})",
        hint="the next zone is tried; more regions under `vm.regions` help",
    )


def _ordered(view: MachineView, orders: Orders) -> StopCause:
    """Somebody stopped or terminated it by the API: we, our schedule, or a person."""
    ended = view.state in {TERMINATED, SHUTTING_DOWN}
    done = "removed" if ended else "stopped"
    if orders.requested == "delete":
        return StopCause(reason=StopReason.USER, detail="removed because qft asked for it")
    if not ended and orders.released_at_s and orders.released_at_s >= _launched_s(view) - SKEW_S:
        return StopCause(reason=StopReason.USER, detail="stopped because qft asked for it")
    limit_s, at_s = _limit_s(view, orders), view.changed_s
    if limit_s and at_s is not None and at_s >= limit_s - SKEW_S:
        return StopCause(
            reason=StopReason.RETURNED,
            detail=f"{done} by what ends the bill at {format_utc(limit_s)}",
        )
    words = f"a person, or a program with the account's rights, {done} it"
    return StopCause(reason=StopReason.USER, detail=f"{words} ({view.reason_code})")


def _taken(view: MachineView, orders: Orders) -> StopCause:
    """EC2 took it back, for its price or for its capacity."""
    if view.status_code.endswith("-by-price"):
        cap = f" of {view.cap_usd_per_h} USD/h" if view.cap_usd_per_h else ""
        return StopCause(
            reason=StopReason.PRICE,
            detail=f"evicted: the market price rose above the cap{cap} ({view.status_code})"
            + _comes_back(view),
        )
    words = "evicted: EC2 needs the capacity"
    if orders.requested == "evict":
        words = "evicted: the rehearsal that qft asked for"
    detail = f"{words} ({view.status_code or view.reason_code})"
    return StopCause(reason=StopReason.EVICTED, detail=detail + _comes_back(view))


def _waived_since(view: MachineView, orders: Orders, now_s: float) -> str:
    """Since when what went down cost no compute: its launch, if EC2 took it within an hour.

    Empty if it is billed, as after a stop by anybody else, and after a rehearsal.
    """
    code, status = view.reason_code, view.status_code
    taken = code in MARKET or (not code and _is_of_market(status))
    rehearsed = orders.requested == "evict" or status.endswith("-by-experiment")
    if not taken or rehearsed or view.launched_s is None or view.changed_s is None:
        return ""
    if view.changed_s - view.launched_s >= FREE_S:
        return ""
    return format_utc(min(view.launched_s, now_s))


def _limit_s(view: MachineView, orders: Orders) -> float:
    """When our schedule begins to stop it: as recorded here, else as its request's end says."""
    if orders.limit_s or view.valid_until_s is None:
        return orders.limit_s
    return view.valid_until_s - VALID_AFTER_LIMIT_S


def _comes_back(view: MachineView) -> str:
    """The words for a machine that EC2 will start again by itself; empty if it will not."""
    if view.state != STOPPED or not view.is_request_live:
        return ""
    return "; EC2 starts it again by itself when its zone has room, and it bills from then on"


def _is_of_market(status: str) -> bool:
    """Whether the status of a request says that EC2 took the machine back."""
    down = "stopped" in status or "terminated" in status
    return down and status.endswith(("-by-price", "-no-capacity", "-capacity-oversubscribed"))


def _failed_to_launch(view: MachineView, orders: Orders) -> bool:
    """Whether a terminated machine never came to run, and nobody asked for its end."""
    if view.reason_code in {USER, INSIDE} or orders.requested == "delete":
        return False
    return has_run(view, orders) is False


def _was_launched_before(view: MachineView, orders: Orders) -> bool:
    """Whether a machine that boots has run before: EC2's launch time is that of the last start."""
    if orders.requested and orders.requested != "create":
        return True
    created_s = orders.created_at_s or parse_utc_s(view.tags.get("qft-created", "")) or 0.0
    return bool(created_s) and _launched_s(view) - created_s > NEW_S


def _is_before_start(view: MachineView, orders: Orders, now_s: float) -> bool:
    """Whether `stopped` is the state from before a start that was asked for just now."""
    if orders.requested != "start" or orders.ran or view.reason_code in NEVER_LAUNCHED:
        return False
    if not 0 <= now_s - orders.requested_at_s < LAG_S:
        return False
    return view.changed_s is None or view.changed_s <= orders.requested_at_s


def _launched_s(view: MachineView) -> float:
    return view.launched_s or 0.0


def _since(view: MachineView, now_s: float) -> str:
    """Since when it is down; empty if EC2 does not say."""
    return "" if view.changed_s is None else format_utc(min(view.changed_s, now_s))


def _under_way(view: MachineView, power: PowerState) -> str:
    """What goes on with a machine that is up or on its way down, in words."""
    if power is PowerState.STARTING and view.state == STOPPED:
        return "accepted, and not yet started"
    if not view.state:
        return "accepted, and not yet shown by EC2"
    if view.state == RUNNING and view.status_code.startswith("marked-for-"):
        return "EC2 has given notice: it takes the machine within two minutes"
    return f"EC2 says `{view.state}`"
