"""What an AWS account must allow, as policies, and as commands that can be pasted into a shell.

Conditions of the form `Null: {aws:ResourceTag/qft-run: false}` allow only what carries our tag.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from infra.aws.settings import SCHEDULE_ROLE
from infra.renting.tags import RUN
from infra.untrusted import table

Policy = dict[str, Any]

VERSION = "2012-10-17"
POLICY_NAME = "qft"
SAFEGUARDS_POLICY_NAME = "qft-safeguards"
ROLE_POLICY_NAME = "qft-end-the-bill"
SCHEDULER = "scheduler.amazonaws.com"
SPOT_ROLE = "AWSServiceRoleForEC2Spot"
SPOT_ROLE_COMMAND = "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
_TAGGED = {"Null": {f"aws:ResourceTag/{RUN}": "false"}}
_TAGGED_AT_BIRTH = {"Null": {f"aws:RequestTag/{RUN}": "false"}}

READ_ACTIONS = (
    "ec2:DescribeInstances",
    "ec2:DescribeSpotInstanceRequests",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeVolumes",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeRouteTables",
    "ec2:DescribeVpcs",
    "ec2:DescribeRegions",
    "ec2:DescribeImages",
    "ec2:DescribeTags",
    "servicequotas:GetServiceQuota",
)
CHANGE_ACTIONS = (
    "ec2:StartInstances",
    "ec2:StopInstances",
    "ec2:TerminateInstances",
    "ec2:CancelSpotInstanceRequests",
    "ec2:DeleteVolume",
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:RevokeSecurityGroupIngress",
    "ec2:DeleteSecurityGroup",
)


def rent_policy() -> Policy:
    """What is enough to rent, use and remove machines; nothing without our tag can be changed."""
    return _policy(
        _allow("Read", READ_ACTIONS, "*"),
        _allow(
            "Image",
            "ssm:GetParameter",
            [
                "arn:aws:ssm:*::parameter/aws/service/deeplearning/*",
                "arn:aws:ssm:*::parameter/aws/service/canonical/*",
            ],
        ),
        _allow(
            "RentTagged",
            "ec2:RunInstances",
            [
                "arn:aws:ec2:*:*:instance/*",
                "arn:aws:ec2:*:*:volume/*",
                "arn:aws:ec2:*:*:network-interface/*",
                "arn:aws:ec2:*:*:spot-instances-request/*",
            ],
            _TAGGED_AT_BIRTH,
        ),
        _allow(
            "RentFrom",
            "ec2:RunInstances",
            [
                "arn:aws:ec2:*::image/*",
                "arn:aws:ec2:*:*:subnet/*",
                "arn:aws:ec2:*:*:security-group/*",
            ],
        ),
        _allow(
            "TagAtBirth",
            "ec2:CreateTags",
            "*",
            {"StringEquals": {"ec2:CreateAction": ["RunInstances", "CreateSecurityGroup"]}},
        ),
        _allow(
            "SecurityGroup",
            "ec2:CreateSecurityGroup",
            ["arn:aws:ec2:*:*:security-group/*", "arn:aws:ec2:*:*:vpc/*"],
        ),
        _allow("OursOnly", CHANGE_ACTIONS, "*", _TAGGED),
    )


def safeguards_policy(account: str, role: str = SCHEDULE_ROLE) -> Policy:
    """What is needed besides, to set schedules and alarms that end the bill without us."""
    passed_on = {"StringEquals": {"iam:PassedToService": SCHEDULER}}
    return _policy(
        _allow(
            "Schedules",
            [
                "scheduler:CreateSchedule",
                "scheduler:UpdateSchedule",
                "scheduler:GetSchedule",
                "scheduler:DeleteSchedule",
            ],
            f"arn:aws:scheduler:*:{account}:schedule/default/qft-*",
        ),
        _allow("Find", ["scheduler:ListSchedules", "cloudwatch:DescribeAlarms"], "*"),
        _allow("LookAtRole", "iam:GetRole", role_arn(account, role)),
        _allow("PassRole", "iam:PassRole", role_arn(account, role), passed_on),
        _allow(
            "Alarms",
            ["cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"],
            f"arn:aws:cloudwatch:*:{account}:alarm:qft-*",
        ),
        _allow(
            "AlarmRole",  # CloudWatch makes it at the first alarm with an action of EC2
            "iam:CreateServiceLinkedRole",
            f"arn:aws:iam::{account}:role/aws-service-role/*",
            {"StringEquals": {"iam:AWSServiceName": "events.amazonaws.com"}},
        ),
    )


def trust_policy(account: str) -> Policy:
    """Who may take the role: EventBridge Scheduler, for schedules of this account alone.

    No condition on `aws:SourceArn`: Scheduler checks it against the group, before there is a
    schedule, and refuses every narrower one.
    """
    return _policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": SCHEDULER},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": account}},
        }
    )


def role_policy(account: str) -> Policy:
    """What the role may do: end what carries our tag, by three verbs, and nothing else."""
    return _policy(
        _allow(
            "EndTheBill",
            ["ec2:StopInstances", "ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests"],
            [
                f"arn:aws:ec2:*:{account}:instance/*",
                f"arn:aws:ec2:*:{account}:spot-instances-request/*",
            ],
            _TAGGED,
        )
    )


def role_arn(account: str, role: str = SCHEDULE_ROLE) -> str:
    """The full name of the role that Scheduler takes."""
    return f"arn:aws:iam::{account}:role/{role}"


def is_trusted(document: object) -> bool:
    """Whether a role's trust policy, as IAM describes it, lets EventBridge Scheduler take it."""
    found = table(document).get("Statement")
    for row in map(table, found if isinstance(found, list) else [found]):
        services = table(row.get("Principal")).get("Service")
        named = services if isinstance(services, list) else [services]
        if SCHEDULER in named and row.get("Effect") == "Allow":
            return True
    return False


def role_commands(account: str, role: str = SCHEDULE_ROLE, *, exists: bool = False) -> list[str]:
    """The commands that make the role of EventBridge Scheduler, or mend one that exists."""
    trust, allowed = _quoted(trust_policy(account)), _quoted(role_policy(account))
    make = f"aws iam create-role --role-name {role} --assume-role-policy-document {trust}"
    mend = f"aws iam update-assume-role-policy --role-name {role} --policy-document {trust}"
    put = f"aws iam put-role-policy --role-name {role} --policy-name {ROLE_POLICY_NAME}"
    return [mend if exists else make, f"{put} --policy-document {allowed}"]


def policy_commands(account: str, caller_arn: str, *, name: str, policy: Policy) -> list[str]:
    """The commands by which an administrator gives a caller a policy.

    A policy of its own, since those that are put into a user may have 2,048 characters in all.
    """
    kind, _, rest = caller_arn.rpartition(":")[2].partition("/")
    who = rest.split("/")
    arn = f"arn:aws:iam::{account}:policy/{name}"
    create = f"aws iam create-policy --policy-name {name} --policy-document {_quoted(policy)}"
    if kind == "user":
        return [create, f"aws iam attach-user-policy --user-name {who[-1]} --policy-arn {arn}"]
    if kind == "assumed-role" and not who[0].startswith("AWSReservedSSO_"):
        return [create, f"aws iam attach-role-policy --role-name {who[0]} --policy-arn {arn}"]
    return [create]


def _policy(*statements: Policy) -> Policy:
    return {"Version": VERSION, "Statement": list(statements)}


def _allow(
    name: str,
    actions: str | tuple[str, ...] | list[str],
    resources: str | list[str],
    condition: Policy | None = None,
) -> Policy:
    found: Policy = {
        "Sid": name,
        "Effect": "Allow",
        "Action": actions if isinstance(actions, str) else list(actions),
        "Resource": resources,
    }
    return found if condition is None else {**found, "Condition": condition}


def _quoted(policy: Policy) -> str:
    return shlex.quote(json.dumps(policy, separators=(",", ":")))
