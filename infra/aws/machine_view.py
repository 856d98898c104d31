"""Turns EC2's answers about an instance and its spot request into checked plain values; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from infra.aws.naming import node_of_tags
from infra.renting.tags import RUN
from infra.timestamps import parse_utc_s
from infra.untrusted import number, table, text

PENDING, RUNNING, STOPPING, STOPPED = "pending", "running", "stopping", "stopped"
SHUTTING_DOWN, TERMINATED = "shutting-down", "terminated"
LIVE_STATES = (PENDING, RUNNING, STOPPING, STOPPED)
"""The states of an instance that somebody has yet to terminate."""
LIVE_REQUEST_STATES = ("open", "active", "disabled")
"""The states of a spot request that may still launch, hold or restart an instance."""
_TRANSITION_DATE = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
_DOWN_STATUS = re.compile(r"stopped|terminated")


@dataclass(frozen=True, kw_only=True)
class MachineView:
    """One instance with its spot request, as EC2 describes them; empty where it says nothing."""

    instance: str = ""
    state: str = ""
    """EC2's word, such as `running`; empty if EC2 does not list the instance."""
    reason_code: str = ""
    """`StateReason.Code`, such as `Client.UserInitiatedShutdown`."""
    reason_message: str = ""
    request: str = ""
    request_state: str = ""
    """`open`, `active`, `disabled`, `closed`, `cancelled` or `failed`."""
    status_code: str = ""
    """`Status.Code` of the request, such as `instance-stopped-by-price`."""
    status_message: str = ""
    launched_s: float | None = None
    """When it was last launched or started, seconds since 1970 by EC2's clock."""
    changed_s: float | None = None
    """When it began to go down, by the same clock; None if EC2 does not say, or it is up."""
    host: str = ""
    """The public address of now."""
    private_host: str = ""
    """The address in its subnet, which it keeps while it is stopped."""
    size: str = ""
    zone: str = ""
    client_token: str = ""
    cap_usd_per_h: float | None = None
    """`SpotPrice` of the request: the most that is paid per hour."""
    valid_until_s: float | None = None
    """When the request ends, seconds since 1970."""
    groups: tuple[str, ...] = ()
    """The ids of its security groups."""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether there is an instance that nobody has terminated."""
        return self.state in LIVE_STATES

    @property
    def is_request_live(self) -> bool:
        """Whether its request may still launch or restart an instance."""
        return self.request_state in LIVE_REQUEST_STATES


def view_of(
    instance: Mapping[str, Any] | None, request: Mapping[str, Any] | None = None
) -> MachineView:
    """Read an instance and its spot request; either may be missing."""
    seen, asks = dict(instance or {}), dict(request or {})
    reason, status = table(seen.get("StateReason")), table(asks.get("Status"))
    status_code = _word(status.get("Code"))
    launched_s = seconds_of(seen.get("LaunchTime"))
    state = _word(table(seen.get("State")).get("Name"))
    return MachineView(
        instance=_word(seen.get("InstanceId")) or _word(asks.get("InstanceId")),
        state=state,
        reason_code=_word(reason.get("Code")),
        reason_message=_sentence(reason.get("Message")),
        request=_word(asks.get("SpotInstanceRequestId"))
        or _word(seen.get("SpotInstanceRequestId")),
        request_state=_word(asks.get("State")),
        status_code=status_code,
        status_message=_sentence(status.get("Message")),
        launched_s=launched_s,
        changed_s=None if state in {PENDING, RUNNING} else _changed_s(seen, status, launched_s),
        host=_word(seen.get("PublicIpAddress")),
        private_host=_word(seen.get("PrivateIpAddress")),
        size=_word(seen.get("InstanceType")),
        zone=_word(table(seen.get("Placement")).get("AvailabilityZone"))
        or _word(asks.get("LaunchedAvailabilityZone")),
        client_token=_word(seen.get("ClientToken")),
        cap_usd_per_h=_price(asks.get("SpotPrice")),
        valid_until_s=seconds_of(asks.get("ValidUntil")),
        groups=tuple(_word(table(one).get("GroupId")) for one in _rows(seen.get("SecurityGroups"))),
        tags=tags_of_answer(seen) or tags_of_answer(asks),
    )


def tags_of_answer(answer: Mapping[str, Any]) -> dict[str, str]:
    """The tags of anything that EC2 describes, by key; empty if it carries none."""
    pairs = [table(one) for one in _rows(answer.get("Tags"))]
    return {_word(one.get("Key")): str(text(one.get("Value")) or "") for one in pairs}


def run_of(answer: Mapping[str, Any]) -> str:
    """The run that something belongs to by its tag; empty if it is not ours."""
    return tags_of_answer(answer).get(RUN, "").lower()


def node_of(answer: Mapping[str, Any]) -> int:
    """Which of its run's machines something belongs to, by its tags."""
    return node_of_tags(tags_of_answer(answer))


def instances_of(reservations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The instances of an answer of `DescribeInstances`, without the reservations around them."""
    return [one for group in reservations for one in _rows(group.get("Instances"))]


def state_of(instance: Mapping[str, Any]) -> str:
    """The state of an instance, such as `running`; empty if it has none."""
    return _word(table(instance.get("State")).get("Name"))


def seconds_of(value: object) -> float | None:
    """A time of the SDK in seconds since 1970; None for anything else."""
    if not isinstance(value, datetime):
        return None
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    return moment.timestamp()


def _changed_s(
    instance: Mapping[str, Any], status: Mapping[str, Any], launched_s: float | None
) -> float | None:
    """When the instance began to go down: the earlier of what it and its request say.

    The request is updated when the machine has stopped, minutes after its compute ceased to bill;
    a status that speaks of an earlier stop is older than the launch.
    """
    found = _TRANSITION_DATE.search(str(text(instance.get("StateTransitionReason")) or ""))
    ordered_s = parse_utc_s(f"{found[1]}+00:00") if found else None
    updated_s = seconds_of(status.get("UpdateTime"))
    if not _DOWN_STATUS.search(_word(status.get("Code"))):
        updated_s = None
    times = [at_s for at_s in (ordered_s, updated_s) if at_s is not None]
    return min((at_s for at_s in times if at_s >= (launched_s or 0.0)), default=None)


def _price(value: object) -> float | None:
    """A price in USD per hour that came as text; None if it is none."""
    try:
        price = number(float(str(text(value) or "")))
    except ValueError:
        return None
    return price if price is not None and price > 0 else None


def _rows(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _word(value: object) -> str:
    """An id, a code or a name: short text without spaces around it."""
    return (text(value, most=128) or "").strip()


def _sentence(value: object) -> str:
    return " ".join((text(value) or "").split()).rstrip(". ")
