"""What an AWS account lacks is found before money is spent, with the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2 import iam
from ec2.furnishing import add_network
from ec2.harness import AwsHarness, aws
from ec2.state import ACCOUNT

from infra.aws.errors import SPOT_QUOTA
from infra.aws.permissions import SPOT_ROLE, role_policy, trust_policy
from infra.aws.provider import AwsProvider
from infra.offer import Want
from infra.renting.checks import Check

REGION = "us-east-1"
WANT = Want(gpu="T4", regions=[REGION], max_price_usd_per_h=0.25)
SCHEDULER_ROLE = "qft-scheduler"


def checks(harness: AwsHarness, want: Want = WANT) -> dict[str, Check]:
    """What the doctor finds, by name."""
    found = harness.provider().checks(want)
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account that lacks nothing."""
    with aws(tmp_path) as harness:
        add_roles(harness)
        yield harness


def add_roles(harness: AwsHarness) -> None:
    """Make the roles of spot machines and of Scheduler."""
    world = harness.cloud.world
    iam.add_role(world, SPOT_ROLE, trust=iam.trust_of("spot.amazonaws.com"))
    iam.add_role(world, SCHEDULER_ROLE, trust=trust_policy(ACCOUNT), policy=role_policy(ACCOUNT))


def lacks(found: dict[str, Check]) -> list[str]:
    """The names of what is not in order."""
    return [name for name, one in found.items() if not one.ok]


def test_card_that_aws_does_not_rent_out_is_no_reason_to_stop(harness: AwsHarness) -> None:
    """The account is checked for the smallest size instead."""
    assert lacks(checks(harness, Want(gpu="H100", regions=[REGION]))) == []


def test_account_that_lacks_nothing_passes_and_nothing_is_made(harness: AwsHarness) -> None:
    """Every check is in order; each request that would make something was only tried."""
    found = checks(harness)

    assert lacks(found) == []
    assert list(found) == [
        "credentials",
        "spot quota in us-east-1",
        "spot role",
        "network in us-east-1",
        "rights",
        "scheduler role",
        "your address",
    ]
    reading = ("Get", "Describe", "List")
    making = [one for one in harness.cloud.requests if not one.operation.startswith(reading)]
    assert [one.operation for one in making] == ["CreateSecurityGroup", "RunInstances"]
    assert all(one.parameters["DryRun"] for one in making)
    assert harness.cloud.leftovers() == []


def test_without_credentials_nothing_else_is_looked_at(harness: AwsHarness) -> None:
    """One check says how to sign in; the rest could not be seen."""
    harness.cloud.expire_credentials()

    found = checks(harness)

    assert list(found) == ["credentials"]
    assert not found["credentials"].ok
    assert "aws sso login" in found["credentials"].fix


def test_profile_that_does_not_exist_is_no_crash(tmp_path: Path) -> None:
    """A name that is not in the files of the SDK is told with the command that lists them."""
    with aws(tmp_path) as harness:
        provider = AwsProvider(harness.settings(profile="nobody"), tmp_path, clock=harness.now)
        found = provider.checks(WANT)
        provider.close()

    (check,) = found
    assert not check.ok
    assert "nobody" in check.detail
    assert "aws configure list" in check.fix


def test_quota_of_a_new_account_is_given_in_vcpus_with_its_page(harness: AwsHarness) -> None:
    """No spot quota stands in the way; the page of that region and the wait are named."""
    harness.cloud.market.quotas[REGION, SPOT_QUOTA] = 0

    quota = checks(harness)[f"spot quota in {REGION}"]

    assert not quota.ok
    assert quota.required
    assert "0 of 0 vCPUs used, g4dn.xlarge needs 4" in quota.detail
    assert f"https://{REGION}.console.aws.amazon.com/servicequotas" in quota.fix
    assert "hours to a day" in quota.fix


def test_one_region_with_quota_is_enough(harness: AwsHarness) -> None:
    """Of several regions one has to be usable: the others are warnings."""
    harness.cloud.market.quotas[REGION, SPOT_QUOTA] = 0

    found = checks(harness, Want(gpu="T4", regions=[REGION, "us-west-2"]))

    assert lacks(found) == [f"spot quota in {REGION}"]
    assert not found[f"spot quota in {REGION}"].required


def test_region_that_is_not_enabled_comes_with_its_command(harness: AwsHarness) -> None:
    """It is no matter of signing in, and nothing is asked of it."""
    found = checks(harness, Want(gpu="T4", regions=["ap-east-1"]))

    closed = found["region ap-east-1"]
    assert closed.fix == "aws account enable-region --region-name ap-east-1"
    assert closed.required
    assert all("ap-east-1" not in one.region for one in harness.cloud.requests)


def test_account_without_default_network_gets_the_free_command(tmp_path: Path) -> None:
    """A region without default VPC is mended by one command, and no machine is tried there."""
    with aws(tmp_path, default_vpc=False) as harness:
        found = checks(harness)

    network = found[f"network in {REGION}"]
    assert not network.ok
    assert network.required
    assert f"aws ec2 create-default-vpc --region {REGION}" in network.fix
    assert "rights" not in found


def test_network_without_a_way_out_is_found(tmp_path: Path) -> None:
    """Machines in a subnet that leads to no gateway would never answer."""
    with aws(tmp_path, default_vpc=False) as harness:
        add_network(harness.cloud.world, REGION, is_default=True, gateway=False)
        found = checks(harness)

    assert "internet gateway" in found[f"network in {REGION}"].detail
    assert "aws ec2 create-route" in found[f"network in {REGION}"].fix


@pytest.mark.parametrize(
    "action", ["ec2:RunInstances", "ec2:CreateSecurityGroup", "ec2:*SecurityGroup*"]
)
def test_right_that_is_missing_is_named_with_the_commands_that_grant_it(
    harness: AwsHarness, action: str
) -> None:
    """EC2's answer to a request that was only tried names the right; the policy is printed."""
    harness.cloud.deny(action)

    renting = checks(harness)["rights"]

    assert not renting.ok
    assert renting.required
    assert "lack the right" in renting.detail
    create, attach = renting.fix.strip().splitlines()
    assert create.startswith("aws iam create-policy --policy-name qft ")
    assert attach.startswith("aws iam attach-user-policy --user-name qft ")


def test_account_that_never_used_spot_machines_gets_the_command(harness: AwsHarness) -> None:
    """The service-linked role is made once; who may make it needs not do so by hand."""
    del iam.roles(harness.cloud.world)[SPOT_ROLE]

    role = checks(harness)["spot role"]

    assert not role.ok
    assert not role.required
    assert role.fix == "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"


def test_lines_that_make_the_schedulers_role_are_printed(harness: AwsHarness) -> None:
    """Without the role machines still switch themselves off; four lines make it and grant it."""
    del iam.roles(harness.cloud.world)[SCHEDULER_ROLE]

    role = checks(harness)["scheduler role"]

    assert not role.ok
    assert not role.required
    starts = [line.split(" --")[0] for line in role.fix.strip().splitlines()]
    assert starts == [
        "aws iam create-role",
        "aws iam put-role-policy",
        "aws iam create-policy",
        "aws iam attach-user-policy",
    ]
    assert ACCOUNT in role.fix


def test_role_that_trusts_somebody_else_is_mended(harness: AwsHarness) -> None:
    """A role of that name that Scheduler may not take gets another trust policy."""
    iam.roles(harness.cloud.world)[SCHEDULER_ROLE].trust = iam.trust_of("ec2.amazonaws.com")

    role = checks(harness)["scheduler role"]

    assert "does not trust" in role.detail
    assert role.fix.strip().startswith(
        "aws iam update-assume-role-policy --role-name qft-scheduler"
    )


@pytest.mark.parametrize("action", ["iam:GetRole", "scheduler:ListSchedules"])
def test_what_may_not_be_looked_at_is_a_warning(harness: AwsHarness, action: str) -> None:
    """Without the right to look the doctor says so, and what grants it; renting goes on."""
    harness.cloud.deny(action)

    found = checks(harness)

    assert not found["scheduler role"].ok
    assert not found["scheduler role"].required
    assert "not known" in found["scheduler role"].detail
    assert "qft-safeguards" in found["scheduler role"].fix
    assert found["rights"].ok
