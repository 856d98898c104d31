"""What the simulated EC2 sells where, at which price, to whom: prices, capacity, quota, rights."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ec2.cloud import Ec2Cloud
from ec2.furnishing import add_images, add_network
from ec2.harness import A10G, T4, AwsHarness, aws
from ec2.steps import BASE_IMAGE, Ec2User

from infra.aws.errors import DryRunPassedError, NoDefaultVpcError
from infra.errors import (
    BadRequest,
    NoCapacity,
    NotAllowed,
    OverQuota,
    PriceAboveCap,
    ProviderError,
    SignedOut,
)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AwsHarness]:
    """An account with a computer."""
    with aws(tmp_path) as made:
        yield made


@pytest.fixture
def cloud(harness: AwsHarness) -> Ec2Cloud:
    """The account."""
    return harness.cloud


@pytest.fixture
def user(harness: AwsHarness) -> Ec2User:
    """Somebody who rents machines in it."""
    return Ec2User(harness)


def prices(user: Ec2User, at_s: float, **parameters: Any) -> dict[str, float]:
    """The price of the A10G by zone at a time."""
    answer = user.call(
        "describe_spot_price_history",
        InstanceTypes=[A10G],
        ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.fromtimestamp(at_s, tz=UTC),
        **parameters,
    )
    rows = reversed(answer["SpotPriceHistory"])
    return {row["AvailabilityZone"]: float(row["SpotPrice"]) for row in rows}


def test_each_zone_has_its_price_and_its_past(
    harness: AwsHarness, cloud: Ec2Cloud, user: Ec2User
) -> None:
    """The history answers the price in force at a time, zone by zone, where the size is sold."""
    before_s = harness.now()
    harness.advance(100)
    cloud.set_price(A10G, "us-east-1b", 0.9)
    harness.advance(100)
    end = datetime.fromtimestamp(before_s, tz=UTC)
    then, now = prices(user, before_s, EndTime=end), prices(user, harness.now())

    assert sorted(now) == ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d", "us-east-1f"]
    assert (then["us-east-1b"], now["us-east-1b"]) == (0.369403, 0.9)
    assert then["us-east-1a"] == now["us-east-1a"] == 0.36216


def test_a_cap_below_the_market_is_refused_with_both_numbers(
    cloud: Ec2Cloud, user: Ec2User
) -> None:
    """A launch below the price of its zone names the price, and leaves nothing."""
    with pytest.raises(PriceAboveCap) as refused:
        user.run(options={"MaxPrice": "0.30"})

    assert refused.value.current_usd_per_h == 0.36216
    assert cloud.leftovers() == []


def test_a_price_above_the_cap_interrupts(
    harness: AwsHarness, cloud: Ec2Cloud, user: Ec2User
) -> None:
    """A machine whose cap the price exceeds gets its notice, and comes back when it falls."""
    made = user.running()
    cloud.set_price(A10G, "us-east-1a", 0.7)
    harness.advance(181)
    assert user.request(made) == ("disabled", "instance-stopped-by-price")
    harness.advance(3600)
    assert user.state(made) == "stopped"
    cloud.set_price(A10G, "us-east-1a", 0.5)
    harness.advance(60)

    assert user.state(made) == "running"


def test_a_full_zone_refuses_with_the_status_of_a_server(cloud: Ec2Cloud, user: Ec2User) -> None:
    """Capacity is by zone: the full one refuses with 500, the next one has room."""
    cloud.market.fill("us-east-1a", size=A10G)
    with pytest.raises(NoCapacity, match="InsufficientInstanceCapacity"):
        user.run()

    assert cloud.server.recorded[-1] == ("/ec2/us-east-1/RunInstances", 500)
    assert user.run(zone="us-east-1b").startswith("i-")


def test_a_refused_launch_may_leave_its_request_open(
    harness: AwsHarness, cloud: Ec2Cloud, user: Ec2User
) -> None:
    """A request left behind is open, and launches a machine without tags once there is room."""
    cloud.world.leaves_requests = True
    cloud.market.fill("us-east-1a")
    with pytest.raises(NoCapacity):
        user.run()
    harness.advance(120)
    (request,) = user.call("describe_spot_instance_requests")["SpotInstanceRequests"]
    assert (request["State"], request["Status"]["Code"]) == ("open", "capacity-not-available")
    assert request["Tags"] == [{"Key": "qft-run", "Value": "run-a"}]
    cloud.market.empty("us-east-1a")
    harness.advance(120)

    (machine,) = cloud.machines()
    assert (machine.state, machine.tags) == ("running", {})


def test_a_zone_without_the_size_says_so(user: Ec2User) -> None:
    """A zone that does not sell a size refuses it as unsupported, and is not among the offers."""
    answer = user.call(
        "describe_instance_type_offerings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": ["g4dn.xlarge", "g5.x*"]}],
    )
    zones = {row["Location"] for row in answer["InstanceTypeOfferings"]}

    assert "us-east-1e" not in zones
    with pytest.raises(NoCapacity, match=r"Unsupported.*us-east-1e"):
        user.run(zone="us-east-1e")


def test_the_quota_counts_what_runs_and_waits(
    harness: AwsHarness, cloud: Ec2Cloud, user: Ec2User
) -> None:
    """The vCPUs of running machines count against the spot quota, those of stopped ones do not."""
    cloud.market.spot_vcpus = 4
    first = user.running()
    with pytest.raises(OverQuota, match="MaxSpotInstanceCountExceeded"):
        user.run(zone="us-east-1b")
    user.call("stop_instances", InstanceIds=[first])
    harness.advance(101)
    second = user.running(zone="us-east-1b")
    with pytest.raises(OverQuota, match="MaxSpotInstanceCountExceeded"):
        user.call("start_instances", InstanceIds=[first])

    assert user.state(second) == "running"
    answer = user.call(
        "get_service_quota", "service-quotas", ServiceCode="ec2", QuotaCode="L-3819A6DF"
    )
    assert answer["Quota"]["Value"] == 4.0
    body = user.body(ClientToken="token-2")
    del body["InstanceMarketOptions"]
    body["TagSpecifications"] = body["TagSpecifications"][:3]
    with pytest.raises(OverQuota, match="vCPU limit of 0"):
        user.call("run_instances", **body)


def test_a_new_account_lacks_the_role_for_spot_machines(cloud: Ec2Cloud, user: Ec2User) -> None:
    """The first spot machine of an account makes the role, or is refused if the user may not."""
    cloud.forget_spot_role()
    with pytest.raises(NotAllowed, match="ServiceLinkedRoleCreationNotPermitted"):
        user.run()
    cloud.allow("iam:CreateServiceLinkedRole")

    assert user.run().startswith("i-")


def test_an_account_in_verification_launches_nothing(cloud: Ec2Cloud, user: Ec2User) -> None:
    """While AWS verifies an account, launches are refused as pending."""
    cloud.world.pending_verification = True
    with pytest.raises(NotAllowed, match="PendingVerification"):
        user.run()


def test_an_account_may_have_no_default_network(tmp_path: Path) -> None:
    """Without default networks a group needs one to be named; a network may lack its route."""
    with aws(tmp_path, default_vpc=False) as harness:
        user = Ec2User(harness)
        assert user.call("describe_vpcs")["Vpcs"] == []
        with pytest.raises(NoDefaultVpcError):
            user.group()
        vpc = add_network(harness.cloud.world, "us-east-1", gateway=False)
        (table,) = user.call("describe_route_tables")["RouteTables"]

        assert table["VpcId"] == vpc.id
        assert [row["GatewayId"] for row in table["Routes"]] == ["local"]
        made = user.running()
        assert "PublicIpAddress" not in user.look(made)


def test_permissions_can_be_taken_one_by_one(cloud: Ec2Cloud, user: Ec2User) -> None:
    """A denied action is refused with 403 and an encoded blob; a dry run finds that out, too."""
    with pytest.raises(DryRunPassedError):
        user.run(DryRun=True)
    cloud.deny("ec2:RunInst*")
    with pytest.raises(NotAllowed, match="ec2:RunInstances") as refused:
        user.run(DryRun=True)

    assert "Encoded authorization failure message" not in str(refused.value)
    assert cloud.server.recorded[-1] == ("/ec2/us-east-1/RunInstances", 403)
    assert cloud.leftovers() == []
    assert user.call("describe_instances")["Reservations"] == []
    cloud.deny("servicequotas:*")
    with pytest.raises(NotAllowed, match="AccessDenied"):
        user.call("list_service_quotas", "service-quotas", ServiceCode="ec2")


def rule(action: str, resource: str | list[str] = "*", **condition: Any) -> dict[str, Any]:
    """One statement of a policy."""
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    return {**statement, "Condition": condition} if condition else statement


def test_a_policy_limits_the_user_to_what_carries_a_tag(
    harness: AwsHarness, cloud: Ec2Cloud, user: Ec2User
) -> None:
    """A policy is read as IAM does: what is made must be tagged, what is changed must be, too."""
    born = {"Null": {"aws:RequestTag/qft-run": "false"}}
    kinds = ("instance", "volume", "network-interface", "spot-instances-request")
    statements = [
        rule("ec2:Describe*"),
        rule("ssm:GetParameter", "arn:aws:ssm:*::parameter/aws/service/*"),
        rule("ec2:RunInstances", [f"arn:aws:ec2:*:*:{one}/*" for one in kinds], **born),
        rule("ec2:RunInstances", ["arn:aws:ec2:*::image/*", "arn:aws:ec2:*:*:subnet/*"]),
        rule("ec2:CreateTags", "*", StringEquals={"ec2:CreateAction": "RunInstances"}),
        rule("ec2:TerminateInstances", "*", Null={"aws:ResourceTag/qft-run": "false"}),
    ]
    cloud.world.policies = [{"Version": "2012-10-17", "Statement": statements}]
    made = user.running()
    with pytest.raises(NotAllowed, match="ec2:CreateTags on resource"):
        user.call("create_tags", Resources=[made], Tags=[{"Key": "a", "Value": "b"}])
    with pytest.raises(NotAllowed, match="ec2:StopInstances"):
        user.call("stop_instances", InstanceIds=[made])
    untagged = [{"ResourceType": "instance", "Tags": [{"Key": "mine", "Value": "1"}]}]
    with pytest.raises(NotAllowed, match="ec2:RunInstances on resource"):
        user.run(zone="us-east-1b", TagSpecifications=untagged)
    user.call("terminate_instances", InstanceIds=[made])
    harness.advance(120)
    (relaunched,) = cloud.machines()

    with pytest.raises(NotAllowed, match=f"TerminateInstances on resource: .*{relaunched.id}"):
        user.call("terminate_instances", InstanceIds=[relaunched.id])


def test_a_dry_run_looks_at_the_image(user: Ec2User) -> None:
    """A dry run is refused for an image that is not there, as the launch would be."""
    with pytest.raises(ProviderError, match=r"InvalidAMIID\.NotFound"):
        user.run(ImageId="ami-00000000000000000", DryRun=True)


@pytest.mark.parametrize("service", ["ec2", "sts", "ssm"])
def test_sessions_expire_and_keys_are_checked(cloud: Ec2Cloud, user: Ec2User, service: str) -> None:
    """Each service has its own words for a session that is over and for a key nobody has."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "ec2": ("describe_instances", {}),
        "sts": ("get_caller_identity", {}),
        "ssm": ("get_parameter", {"Name": BASE_IMAGE}),
    }
    operation, parameters = calls[service]
    cloud.expire_credentials()
    with pytest.raises(SignedOut, match="Expired"):
        user.call(operation, service, **parameters)
    cloud.renew_credentials()
    cloud.world.keys.clear()
    with pytest.raises(SignedOut, match=r"AuthFailure|InvalidClientTokenId|Unrecognized"):
        user.call(operation, service, **parameters)


@pytest.mark.parametrize("code", ["AuthFailure", "OptInRequired"])
def test_a_region_must_be_enabled(harness: AwsHarness, cloud: Ec2Cloud, code: str) -> None:
    """A region that the account has not enabled refuses everything, and is listed as such."""
    cloud.world.opt_in_code = code
    abroad = Ec2User(harness, "ap-east-1")
    with pytest.raises(NotAllowed, match=code):
        abroad.call("describe_instances")
    here = Ec2User(harness)
    enabled = {row["RegionName"] for row in here.call("describe_regions")["Regions"]}
    every = here.call("describe_regions", AllRegions=True)["Regions"]
    cloud.world.opted_in.add("ap-east-1")

    assert "ap-east-1" not in enabled
    assert {row["OptInStatus"] for row in every} == {"opt-in-not-required", "not-opted-in"}
    assert abroad.call("describe_instances")["Reservations"] == []


def test_images_have_newest_versions(cloud: Ec2Cloud, user: Ec2User) -> None:
    """The newest image changes under its parameter, while the old one can still be launched."""
    before = user.image()
    add_images(cloud.world, "us-east-1", "24.04", date="20261101")
    after = user.image()
    answer = user.call("describe_images", ImageIds=[before, after])
    sizes = {row["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] for row in answer["Images"]}

    assert before != after
    assert sizes == {75}
    named = user.call(
        "describe_images",
        Owners=["898082745236"],
        Filters=[{"Name": "name", "Values": ["Deep Learning Base OSS*(Ubuntu 24.04) *"]}],
    )
    assert {row["ImageId"] for row in named["Images"]} == {before, after}
    with pytest.raises(NotAllowed, match="ParameterNotFound"):
        user.call("get_parameter", "ssm", Name="/aws/service/nothing")
    small = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 60}}]
    with pytest.raises(BadRequest, match=r"InvalidBlockDeviceMapping.*75GB"):
        user.run(BlockDeviceMappings=small)


def test_placement_scores_are_by_zone_id(cloud: Ec2Cloud, user: Ec2User) -> None:
    """Scores name zones by their id, need a right, and are low for few sizes."""
    body: dict[str, Any] = {
        "TargetCapacity": 1,
        "SingleAvailabilityZone": True,
        "RegionNames": ["us-west-2"],
        "InstanceTypes": [T4, "g4dn.2xlarge", "g4dn.4xlarge"],
    }
    with pytest.raises(NotAllowed):
        user.call("get_spot_placement_scores", **body)
    cloud.market.may_score = True
    cloud.market.scores["us-west-2", "us-west-2b"] = 9
    rows = user.call("get_spot_placement_scores", **body)["SpotPlacementScores"]
    few = user.call("get_spot_placement_scores", **{**body, "InstanceTypes": [T4]})

    assert [(row["AvailabilityZoneId"], row["Score"]) for row in rows] == [
        ("usw2-az2", 9),
        ("usw2-az1", 5),
        ("usw2-az3", 5),
    ]
    assert {row["Score"] for row in few["SpotPlacementScores"]} == {1}
