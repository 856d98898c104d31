"""What qft needs of an AWS account is complete, narrow, and printed as commands that run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name
from support.recorded_aws import ACCOUNT, problems

from infra.aws.permissions import (
    CHANGE_ACTIONS,
    READ_ACTIONS,
    is_trusted,
    policy_commands,
    rent_policy,
    role_commands,
    role_policy,
    safeguards_policy,
    trust_policy,
)

ROOT = Path(__file__).parents[1]
USER = f"arn:aws:iam::{ACCOUNT}:user/team/ada"
MANAGED_CHARS_MAX = 6144
"""Of a managed policy, without spaces, as IAM counts."""
TAGGED = {"Null": {"aws:ResourceTag/qft-run": "false"}}


def actions(policy: dict[str, Any]) -> list[str]:
    """Every action that a policy allows."""
    found = [one["Action"] for one in policy["Statement"]]
    return [name for one in found for name in ([one] if isinstance(one, str) else one)]


def test_the_page_has_the_policy_that_doctor_prints() -> None:
    """What docs/aws.md gives an administrator is the policy of the code."""
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)

    assert json.loads(written) == rent_policy()


@pytest.mark.parametrize("action", [*READ_ACTIONS, *CHANGE_ACTIONS])
def test_the_policy_allows_nothing_that_the_code_does_not_call(action: str) -> None:
    """Each right to read or to change is that of an operation which some file names."""
    operation = xform_name(action.partition(":")[2])
    sources = (one.read_text(encoding="utf-8") for one in (ROOT / "infra" / "aws").glob("*.py"))

    assert any(f'"{operation}"' in source for source in sources)


def arguments(command: str) -> tuple[str, dict[str, str]]:
    """The operation of an `aws iam` line and its parameters, by the names of IAM's API."""
    program, service, operation, *rest = shlex.split(command)
    assert (program, service) == ("aws", "iam")
    names = rest[::2]
    assert all(name.startswith("--") for name in names)
    keys = ("".join(part.title() for part in name[2:].split("-")) for name in names)
    return operation.replace("-", "_"), dict(zip(keys, rest[1::2], strict=True))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    "caller",
    [USER, f"arn:aws:sts::{ACCOUNT}:assumed-role/Admin/ada", f"arn:aws:iam::{ACCOUNT}:root"],
)
def test_commands_are_calls_of_iam(caller: str, *, exists: bool) -> None:
    """Each line splits as a shell splits it, and is what IAM's own model takes."""
    policy = safeguards_policy(ACCOUNT)
    lines = [
        *role_commands(ACCOUNT, exists=exists),
        *policy_commands(ACCOUNT, caller, name="qft", policy=rent_policy()),
        *policy_commands(ACCOUNT, caller, name="qft-safeguards", policy=policy),
    ]

    for line in lines:
        operation, parameters = arguments(line)
        assert problems("iam", operation, parameters) == []
        for key, value in parameters.items():
            if key.endswith("Document"):
                assert json.loads(value)["Version"] == "2012-10-17"


def test_a_user_and_a_role_are_given_the_policy_and_a_single_sign_on_is_not() -> None:
    """A role of IAM Identity Center cannot be changed by hand: its administrator attaches it."""

    def last(caller: str) -> str:
        return policy_commands(ACCOUNT, caller, name="qft", policy=rent_policy())[-1]

    arn = f"arn:aws:iam::{ACCOUNT}:policy/qft"
    assert last(USER) == f"aws iam attach-user-policy --user-name ada --policy-arn {arn}"
    role = f"arn:aws:sts::{ACCOUNT}:assumed-role/Builder/ada"
    assert last(role) == f"aws iam attach-role-policy --role-name Builder --policy-arn {arn}"
    single = f"arn:aws:sts::{ACCOUNT}:assumed-role/AWSReservedSSO_Dev_0123/ada"
    assert last(single).startswith("aws iam create-policy ")


@pytest.mark.parametrize("policy", [rent_policy(), safeguards_policy(ACCOUNT)])
def test_every_action_exists_and_the_policy_fits(policy: dict[str, Any]) -> None:
    """Each action is an operation of its service, and IAM takes a policy of that length."""
    services = {"servicequotas": "service-quotas"}

    for action in actions(policy):
        prefix, _, operation = action.partition(":")
        if operation != "PassRole":  # a right that no operation has
            problems(services.get(prefix, prefix), xform_name(operation), {})
    assert len(json.dumps(policy, separators=(",", ":"))) <= MANAGED_CHARS_MAX


def test_only_what_carries_our_tag_can_be_changed() -> None:
    """Whatever starts, stops, ends or removes has the condition, for people and for Scheduler."""
    for policy in (rent_policy(), role_policy(ACCOUNT)):
        for one in policy["Statement"]:
            changes = set(actions({"Statement": [one]})) & set(CHANGE_ACTIONS)
            assert not changes or one["Condition"] == TAGGED


def test_role_has_three_verbs_and_serves_this_account_alone() -> None:
    """Scheduler may stop, cancel and terminate; only for schedules of the same account."""
    assert sorted(actions(role_policy(ACCOUNT))) == [
        "ec2:CancelSpotInstanceRequests",
        "ec2:StopInstances",
        "ec2:TerminateInstances",
    ]
    (trust,) = trust_policy(ACCOUNT)["Statement"]
    assert trust["Principal"] == {"Service": "scheduler.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}


def test_role_can_be_passed_to_scheduler_only() -> None:
    """Who may set schedules can hand the role to nothing else, such as a machine."""
    (one,) = [
        one for one in safeguards_policy(ACCOUNT)["Statement"] if one["Action"] == "iam:PassRole"
    ]

    assert one["Resource"] == f"arn:aws:iam::{ACCOUNT}:role/qft-scheduler"
    assert one["Condition"] == {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}


@pytest.mark.parametrize(
    ("document", "trusted"),
    [
        (trust_policy(ACCOUNT), True),
        ({"Statement": {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}}}, False),
        (
            {
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": {"Service": ["ec2.amazonaws.com", "scheduler.amazonaws.com"]},
                    }
                ]
            },
            True,
        ),
        (
            {
                "Statement": [
                    {"Effect": "Deny", "Principal": {"Service": "scheduler.amazonaws.com"}}
                ]
            },
            False,
        ),
        ("no document", False),
        (None, False),
    ],
)
def test_trust_in_scheduler_is_read_from_any_form_of_a_policy(
    document: object, *, trusted: bool
) -> None:
    """One statement or several, one service or several, or something else altogether."""
    assert is_trusted(document) is trusted
