"""Steps that tests of AWS's further services share: roles and the policies of schedules."""

from __future__ import annotations

from typing import Any

from ec2.harness import AwsHarness
from ec2.iam import add_role, trust_of
from ec2.state import ACCOUNT
from ec2.steps import Ec2User

TAGGED = {"Null": {"aws:ResourceTag/qft-run": "false"}}
VERBS = ["ec2:StopInstances", "ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests"]


def policy(**changes: Any) -> dict[str, Any]:
    """A policy for the three verbs on what carries our tag."""
    statement = {"Effect": "Allow", "Action": VERBS, "Resource": "*", "Condition": TAGGED}
    return {"Version": "2012-10-17", "Statement": [{**statement, **changes}]}


def add_scheduler_role(harness: AwsHarness, **changes: Any) -> None:
    """The role by which schedules act, as an administrator made it long ago."""
    trust = trust_of(
        changes.pop("service", "scheduler.amazonaws.com"),
        StringEquals={"aws:SourceAccount": ACCOUNT, **changes.pop("trust", {})},
    )
    add_role(harness.cloud.world, "qft-scheduler", trust=trust, policy=policy(**changes))


def run(harness: AwsHarness, user: Ec2User, **changes: Any) -> str:
    """A machine that runs."""
    made = user.run(**changes)
    harness.advance(20)
    return made
