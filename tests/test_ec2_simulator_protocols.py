"""What the simulated EC2 refuses on the wire: whatever botocore's own models do not have."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arm.disruptions import Disruption
from ec2 import disruptions
from ec2.cloud import Ec2Cloud
from ec2.dispatch import SERVICES, perform
from ec2.forms import parse_form
from ec2.harness import AwsHarness, aws
from ec2.killing import KilledError, Killer
from ec2.models import operation_model, service_model
from ec2.protocols import check_input, check_output
from ec2.replies import ApiCall, AwsError, ModelError
from ec2.shapes import problems
from ec2.steps import Ec2User

from infra.aws.errors import AlreadyThereError, NotYetVisibleError
from infra.errors import BadRequest, ProviderError, Transient


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


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2User]:
    """Somebody whose requests are refused, all in one account, since they leave nothing."""
    with aws(tmp_path_factory.mktemp("refused")) as made:
        yield Ec2User(made)
        assert made.cloud.leftovers() == []


@pytest.fixture(scope="module")
def renter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2User]:
    """Somebody with a running machine, who only looks."""
    with aws(tmp_path_factory.mktemp("renter")) as made:
        user = Ec2User(made)
        user.running()
        yield user


def page(cloud: Ec2Cloud, path: str) -> tuple[int, bytes]:
    """Status and body of a request without a signature."""
    connection = http.client.HTTPConnection("127.0.0.1", cloud.server.server_address[1])
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_every_simulated_operation_is_in_the_model() -> None:
    """No operation is simulated that botocore does not have."""
    invented = [
        f"{service}:{name}"
        for service, table in SERVICES.items()
        for name in table
        if name not in service_model(service).operation_names
    ]

    assert invented == []


@pytest.mark.parametrize(
    ("form", "code", "words"),
    [
        ("InstanceId.1=i-1&Colour=red", "UnknownParameter", "Colour"),
        ("InstanceId.1=i-1&Filter.1.Nom=x", "UnknownParameter", "Filter.1.Nom"),
        ("InstanceId.2=i-1", "InvalidParameterValue", "numbered from 1"),
        ("MaxResults=many", "InvalidParameterValue", "MaxResults"),
        ("DryRun=yes", "InvalidParameterValue", "DryRun"),
        ("NextToken.x=1", "UnknownParameter", "NextToken"),
        ("InstanceId=i-1", "InvalidParameterValue", "InstanceId is a list"),
    ],
)
def test_a_form_that_the_model_does_not_have_is_refused(form: str, code: str, words: str) -> None:
    """A parameter, a member or a type that the shape of the operation lacks is an error."""
    shape = operation_model("ec2", "DescribeInstances").input_shape
    with pytest.raises(AwsError, match=words) as refused:
        parse_form(form, shape, ec2=True)

    assert refused.value.code == code


@pytest.mark.parametrize(
    ("service", "operation", "parameters", "code"),
    [
        ("ec2", "RunInstances", {"MinCount": 1}, "MissingParameter"),
        ("ec2", "RunInstances", {"MinCount": 1, "MaxCount": "1"}, "InvalidParameterValue"),
        ("ec2", "DescribeInstances", {"Instance": []}, "UnknownParameter"),
        ("ec2", "DescribeInstanceTypeOfferings", {"LocationType": "zone"}, "InvalidParameterValue"),
        ("ssm", "GetParameter", {}, "ValidationException"),
        ("servicequotas", "GetServiceQuota", {"ServiceCode": "ec2", "QuotaCode": "?"}, "Validat"),
        ("scheduler", "GetSchedule", {"Name": "a b"}, "ValidationException"),
        ("scheduler", "GetSchedule", {"Name": "a" * 65}, "ValidationException"),
        ("ec2", "FlyInstances", {}, "InvalidAction"),
    ],
)
def test_parameters_are_checked_by_the_model(
    service: str, operation: str, parameters: dict[str, Any], code: str
) -> None:
    """Required members, types, enums, patterns and lengths of the model hold."""
    with pytest.raises(AwsError) as refused:
        check_input(service, operation, parameters)

    assert refused.value.code.startswith(code)


@pytest.mark.parametrize(
    "answer",
    [
        {"Machines": []},
        {"Reservations": [{"Instances": [{"Id": "i-1"}]}]},
        {"Reservations": [{"Instances": [{"InstanceType": "g99.huge"}]}]},
        {"Reservations": [{"Instances": [{"LaunchTime": "today"}]}]},
    ],
)
def test_an_answer_that_the_model_does_not_have_is_a_defect(answer: dict[str, Any]) -> None:
    """The simulator cannot answer with a member, a value or a type that AWS would not send."""
    with pytest.raises(ModelError):
        check_output("ec2", "DescribeInstances", answer)


def test_a_defect_of_the_simulator_fails_the_test(tmp_path: Path) -> None:
    """What the simulator itself does wrong raises at its end, whatever the client made of it."""
    account = aws(tmp_path)
    harness = account.__enter__()
    harness.cloud.market.bands = None  # type: ignore[assignment]
    status, _ = page(harness.cloud, "/spot-advisor-data.json")

    assert status == 500
    with pytest.raises(AssertionError, match="the simulated AWS failed"):
        account.__exit__(None, None, None)


def test_numbers_have_their_ranges() -> None:
    """A number outside the range of its shape is a problem, and so is a list that is too long."""
    shape = operation_model("scheduler", "ListSchedules").input_shape

    assert problems({"MaxResults": 0}, shape) == ["MaxResults is below the minimum of 1"]
    assert problems({"MaxResults": 101}, shape) == ["MaxResults is above the maximum of 100"]
    assert problems({"MaxResults": 100}, shape) == []


def test_unsigned_requests_are_refused(cloud: Ec2Cloud) -> None:
    """A request without a signature gets nowhere; the pages of the web need none."""
    assert page(cloud, "/?Action=DescribeInstances")[0] == 403
    assert page(cloud, "/address") == (200, b"203.0.113.7")
    rates = json.loads(page(cloud, "/spot-advisor-data.json")[1])
    assert rates["spot_advisor"]["us-east-1"]["Linux"]["g5.xlarge"] == {"r": 2, "s": 60}
    assert rates["ranges"][4]["label"] == ">20%"


BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    ({"UserData": "x" * 16385}, "limited to 16384"),
    ({"options": {"MaxPrice": "0.001"}}, "maxPrice"),
    ({"options": {"MaxPrice": "cheap"}}, "maxPrice"),
    ({"options": {"SpotInstanceType": "one-time"}}, "InvalidParameterCombination"),
    ({"options": {"InstanceInterruptionBehavior": "terminate"}}, "InvalidParameterCombination"),
    ({"options": {"InstanceInterruptionBehavior": "hibernate"}}, "hibernation"),
    ({"options": {"ValidUntil": 1.0}}, "ValidUntil"),
    ({"InstanceInitiatedShutdownBehavior": "terminate"}, "'terminate' is not supported"),
    ({"NetworkInterfaces": [{"DeviceIndex": 0}]}, "instance-level subnet"),
    ({"Placement": {"AvailabilityZone": "us-east-1b"}}, "is in us-east-1a"),
    ({"ClientToken": "t" * 65}, "64"),
    ({"InstanceType": "g7.xlarge"}, "InstanceType"),
    ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID"),
    ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
    ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID"),
    ({"KeyName": "mine"}, "InvalidKeyPair.NotFound"),
    ({"MinCount": 2}, "MinCount"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_BODIES, ids=[words for _, words in BAD_BODIES])
def test_parameters_that_cannot_go_together_are_refused(
    refused: Ec2User, changes: dict[str, Any], words: str
) -> None:
    """EC2 refuses a launch before it looks at the market, and leaves nothing."""
    with pytest.raises(ProviderError, match=words):
        refused.run(**changes)

    assert refused.harness.cloud.leftovers() == []


BAD_TAGS: list[tuple[list[dict[str, str]], str]] = [
    ([{"Key": f"key-{i}", "Value": ""} for i in range(51)], "TagLimitExceeded"),
    ([{"Key": "aws:mine", "Value": ""}], "aws:"),
    ([{"Key": "k" * 128, "Value": ""}], "127"),
    ([{"Key": "k", "Value": "v" * 257}], "256"),
    ([{"Key": "k", "Value": ""}, {"Key": "k", "Value": ""}], "Duplicate"),
]


@pytest.mark.parametrize(("tags", "words"), BAD_TAGS, ids=[words for _, words in BAD_TAGS])
def test_tags_have_rules(refused: Ec2User, tags: list[dict[str, str]], words: str) -> None:
    """Too many, too long, reserved and repeated tags are refused, at birth and later."""
    with pytest.raises(ProviderError, match=words):
        refused.run(TagSpecifications=[{"ResourceType": "instance", "Tags": tags}])
    with pytest.raises(ProviderError, match=words):
        refused.call("create_tags", Resources=[refused.subnet()], Tags=tags)


def test_tags_are_listed_by_kind(harness: AwsHarness, user: Ec2User) -> None:
    """Everything that was tagged at birth is found by its tag; tags come and go."""
    made = user.run(SecurityGroupIds=[user.group()])
    harness.advance(10)
    user.call("create_tags", Resources=[made], Tags=[{"Key": "more", "Value": "1"}])
    by_key = [{"Name": "key", "Values": ["qft-run"]}]
    kinds = [row["ResourceType"] for row in user.call("describe_tags", Filters=by_key)["Tags"]]
    user.call("delete_tags", Resources=[made], Tags=[{"Key": "qft-run"}])

    assert sorted(kinds) == [
        "instance",
        "network-interface",
        "security-group",
        "spot-instances-request",
        "volume",
    ]
    assert user.look(made)["Tags"] == [{"Key": "more", "Value": "1"}]


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("tag-key", ["qft-run"], True),
        ("tag:qft-run", ["run-?"], True),
        ("tag:qft-run", ["run-b", "run-a"], True),
        ("tag:qft-run", ["run"], False),
        ("tag-value", ["run-a"], True),
        ("instance-state-name", ["pending", "running"], True),
        ("instance-state-name", ["stopped"], False),
        ("instance-lifecycle", ["spot"], True),
        ("client-token", ["token-*"], True),
        ("availability-zone", ["us-east-1b"], False),
    ],
)
def test_filters_choose(renter: Ec2User, name: str, values: list[str], *, found: bool) -> None:
    """Lists are filtered by any of the values, with wildcards."""
    answer = renter.call("describe_instances", Filters=[{"Name": name, "Values": values}])

    assert bool(answer["Reservations"]) is found


def test_lists_come_in_pages(cloud: Ec2Cloud, user: Ec2User) -> None:
    """A page has at most `MaxResults` rows and the token of the next; bad sizes are refused."""
    for number in range(7):
        user.call("create_security_group", GroupName=f"g{number}", Description="qft")
    first = user.call("describe_security_groups", MaxResults=5)
    second = user.call("describe_security_groups", MaxResults=5, NextToken=first["NextToken"])
    rows = user.clients.pages(
        "ec2", "us-east-1", "describe_security_groups", "SecurityGroups", doing="list"
    )

    assert [len(one["SecurityGroups"]) for one in (first, second)] == [5, 3]
    assert "NextToken" not in second
    assert len(rows) == 8
    for parameters in ({"MaxResults": 4}, {"MaxResults": 1001}, {"NextToken": "?"}):
        with pytest.raises(BadRequest):
            user.call("describe_instances", **parameters)
    with pytest.raises(BadRequest, match="cannot be used with"):
        user.call("describe_subnets", SubnetIds=[user.subnet()], MaxResults=5)
    with pytest.raises(BadRequest, match="is invalid"):
        user.call("describe_instances", Filters=[{"Name": "colour", "Values": ["red"]}])
    assert cloud.leftovers()[0].startswith("sg-")


def test_groups_have_unique_names_and_rules(user: Ec2User) -> None:
    """A group of the same name, a rule that is there and one that is not are told by code."""
    group = user.group()
    rule = {
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "IpRanges": [{"CidrIp": "203.0.113.7/32", "Description": "me"}],
    }
    user.call("authorize_security_group_ingress", GroupId=group, IpPermissions=[rule])
    with pytest.raises(AlreadyThereError, match=r"InvalidGroup\.Duplicate"):
        user.group()
    with pytest.raises(AlreadyThereError, match=r"InvalidPermission\.Duplicate"):
        user.call("authorize_security_group_ingress", GroupId=group, IpPermissions=[rule])
    shown = user.call("describe_security_groups", GroupIds=[group])["SecurityGroups"][0]
    bare = {**rule, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    user.call("revoke_security_group_ingress", GroupId=group, IpPermissions=[bare])

    assert shown["IpPermissions"] == [{**rule, "UserIdGroupPairs": []}]  # as EC2 lists it
    with pytest.raises(NotYetVisibleError, match=r"InvalidPermission\.NotFound"):
        user.call("revoke_security_group_ingress", GroupId=group, IpPermissions=[bare])


DISRUPTED: list[Callable[..., Disruption]] = [
    disruptions.throttled,
    disruptions.internal_error,
    disruptions.proxy_page,
    disruptions.unreadable_page,
    disruptions.empty_answer,
    disruptions.dropped,
]


@pytest.mark.parametrize("make", DISRUPTED, ids=[one.__name__ for one in DISRUPTED])
def test_calls_can_be_disrupted(
    cloud: Ec2Cloud, user: Ec2User, make: Callable[..., Disruption]
) -> None:
    """A disruption meets the call that it names, once, and the next one goes well."""
    cloud.disruptions.add(make(call="DescribeVpcs"))
    assert user.call("describe_subnets")["Subnets"] != []
    with pytest.raises(Transient):
        user.call("describe_vpcs")

    assert len(user.call("describe_vpcs")["Vpcs"]) == 1


def test_a_dropped_answer_has_been_carried_out(cloud: Ec2Cloud, user: Ec2User) -> None:
    """A connection that breaks after the request leaves what it made."""
    cloud.disruptions.add(disruptions.dropped(call="CreateSecurityGroup", done=True))
    with pytest.raises(Transient):
        user.group()

    assert len(cloud.leftovers()) == 1


def test_the_sdk_repeats_by_itself_in_simulated_time(
    harness: AwsHarness, cloud: Ec2Cloud, user: Ec2User
) -> None:
    """Throttled twice, a call of three attempts succeeds, and its pauses take simulated time."""
    cloud.disruptions.add(disruptions.throttled(times=2))
    before_s = harness.now()
    answer = user.clients.call("ec2", "us-east-1", "describe_vpcs", doing="look")

    assert len(answer["Vpcs"]) == 1
    assert [status for _, status in cloud.server.recorded[-3:]] == [503, 503, 200]
    assert harness.now() > before_s


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_can_die_around_a_request(harness: AwsHarness, *, answered: bool) -> None:
    """A killed client dies at its request: before it reaches AWS, or before its answer is read."""
    killer = Killer(at=2, answered=answered)
    clients = harness.clients(killer=killer)
    clients.call("ec2", "us-east-1", "describe_vpcs", doing="look")
    with pytest.raises(KilledError):
        clients.call(
            "ec2",
            "us-east-1",
            "create_security_group",
            doing="make",
            GroupName="g",
            Description="d",
        )

    assert killer.sent == ["ec2.DescribeVpcs", "ec2.CreateSecurityGroup"]
    assert len(harness.cloud.leftovers()) == answered


def test_services_act_with_the_permissions_of_their_role(
    harness: AwsHarness, cloud: Ec2Cloud, user: Ec2User
) -> None:
    """A service calls for a role: what the role may do happens, anything else is refused."""
    made = user.running()
    role = "arn:aws:iam::111122223333:role/qft-scheduler"
    call = ApiCall(
        service="ec2",
        region="us-east-1",
        operation="StopInstances",
        parameters={"InstanceIds": [made]},
        caller=role,
    )
    with pytest.raises(AwsError, match=r"UnauthorizedOperation.*qft-scheduler"):
        perform(cloud.world, call)
    cloud.world.permissions[role] = lambda one: one.action == "ec2:StopInstances"
    perform(cloud.world, call)
    harness.advance(60)

    assert user.state(made) == "stopped"


def test_a_canned_answer_is_sent_as_it_is(cloud: Ec2Cloud, user: Ec2User) -> None:
    """Whatever a test wants AWS to say, it says: here a code that nobody has seen yet."""
    odd = disruptions.refused(AwsError("Odd.Code", "nobody knows"), call="DescribeVpcs")
    cloud.disruptions.add(odd)
    with pytest.raises(ProviderError, match=r"Odd\.Code: nobody knows"):
        user.call("describe_vpcs")
