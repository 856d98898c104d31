"""Carries out calls: the rights of the caller, the operation of the service, and both models.

A further service joins by its table of operations in `SERVICES`, under the name with which its
requests are signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ec2 import (
    account_calls,
    alarms,
    fis,
    group_calls,
    iam,
    instance_calls,
    network_calls,
    place_calls,
    power_calls,
    scheduler,
    spot_calls,
    tag_calls,
)
from ec2.access import check_permissions
from ec2.instance_calls import dry_run
from ec2.protocols import check_input, check_output
from ec2.replies import ApiCall, AwsError
from ec2.world import World

Operation = Callable[[World, ApiCall], dict[str, Any]]
Operations = Mapping[str, Operation]
EC2: Operations = {
    **instance_calls.OPERATIONS,
    **power_calls.OPERATIONS,
    **spot_calls.OPERATIONS,
    **network_calls.OPERATIONS,
    **group_calls.OPERATIONS,
    **place_calls.OPERATIONS,
    **tag_calls.OPERATIONS,
}
SERVICES: dict[str, Operations] = {
    "ec2": EC2,
    "sts": account_calls.STS,
    "ssm": account_calls.SSM,
    "servicequotas": account_calls.SERVICE_QUOTAS,
    "scheduler": scheduler.OPERATIONS,
    "monitoring": alarms.OPERATIONS,
    "iam": iam.OPERATIONS,
    "fis": fis.OPERATIONS,
}
FREE_ACTIONS = {"sts:GetCallerIdentity"}
"""What no policy can deny by leaving it out."""
CHECKS_FIRST = {"RunInstances"}
"""The calls whose `DryRun` looks at images, subnets and groups, too."""


def perform(world: World, call: ApiCall) -> dict[str, Any]:
    """Carry out a call for its caller; raise `AwsError` if it is refused.

    Services of AWS that act for a role call this, too: with the role's ARN as `caller`.
    """
    operation = SERVICES.get(call.service, {}).get(call.operation)
    if operation is None:
        message = f"The action {call.action} is not simulated"
        raise AwsError("InvalidAction", message)
    check_input(call.service, call.operation, call.parameters)
    if call.action not in FREE_ACTIONS:
        check_permissions(world, call)
    if call.parameters.get("DryRun") and call.operation not in CHECKS_FIRST:
        raise dry_run()
    answer = operation(world, call)
    check_output(call.service, call.operation, answer)
    return answer
