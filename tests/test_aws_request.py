"""What is asked of EC2 for one machine is what its own model takes, and what a spot run needs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.model import Shape
from botocore.validate import ParamValidator

from infra.aws.image import Image
from infra.aws.naming import TAG_NAME_CHARS_MAX, client_token
from infra.aws.network import Subnet
from infra.aws.request import (
    LaunchTarget,
    check_spec,
    difference_from,
    disk_note,
    idle_usd_per_h,
    run_instances_body,
)
from infra.aws.user_data import USER_DATA_BYTES_MAX, user_data
from infra.errors import BadRequest
from infra.offer import Offer
from infra.provider import VmSpec
from infra.renting.first_boot import one_file
from infra.renting.tags import tags_of
from infra.timestamps import parse_utc_s

PEM_LINE = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZWQy\n"
HOST_PRIVATE = (
    f"-----BEGIN OPENSSH PRIVATE KEY-----\n{PEM_LINE * 6}-----END OPENSSH PRIVATE KEY-----\n"
)
HOST_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHosthosthosthosthosthosthosthosthosthost qft"
USER_PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIUseruseruseruseruseruseruseruseruseruser me"
UNTIL_S = 1_800_000_000.0
TARGET = LaunchTarget(
    image=Image(id="ami-0123456789abcdef0", name="base", root_device="/dev/sda1", size_gb=75),
    subnet=Subnet(id="subnet-0123456789abcdef0", zone="us-east-1a", vpc="vpc-0123456789abcdef0"),
    group="sg-0123456789abcdef0",
)


def spec(**changes: Any) -> VmSpec:
    """A request for one T4 in us-east-1a under a cap of 0.25 USD/h."""
    base = VmSpec(
        run_id="run-a",
        generation=1,
        offer=Offer(
            provider="aws",
            region="us-east-1",
            zone="us-east-1a",
            size="g4dn.xlarge",
            spot_usd_per_h=0.19,
        ),
        max_price_usd_per_h=0.25,
        public_key=USER_PUBLIC,
        host_private_key=HOST_PRIVATE,
        host_public_key=HOST_PUBLIC,
        labels={"name": "toxic phi"},
        until_s=UNTIL_S,
    )
    return replace(base, **changes)


def body(wanted: VmSpec) -> dict[str, Any]:
    """The parameters of the request for a spec, with the tags that it really carries."""
    tags = tags_of(
        wanted,
        created_at="2026-11-30T10:00:00Z",
        idle_usd_per_h=0.014,
        name_chars_max=TAG_NAME_CHARS_MAX,
    )
    return run_instances_body(
        wanted, TARGET, tags=tags, token=client_token("run-a", 1, "us-east-1a", 1)
    )


@cache
def shape_of(operation: str) -> Shape:
    """The input of an operation of EC2, from botocore's own model."""
    session = botocore.session.Session()
    found: Shape = session.get_service_model("ec2").operation_model(operation).input_shape
    return found


def foreign_words(shape: Any, value: Any, place: str = "") -> list[str]:
    """The texts in a value that are not among those its model lists; botocore lets them through."""
    if shape.type_name == "structure":
        return [
            word
            for name, one in value.items()
            for word in foreign_words(shape.members[name], one, f"{place}.{name}")
        ]
    if shape.type_name == "list":
        return [word for one in value for word in foreign_words(shape.member, one, place)]
    listed = getattr(shape, "enum", [])
    return [f"{place}: {value}"] if listed and value not in listed else []


@pytest.mark.parametrize(
    "wanted",
    [
        spec(),
        spec(max_price_usd_per_h=None, until_s=None, labels={}),
        spec(offer=replace(spec().offer, size="g5.2xlarge"), disk_gb=4095),
    ],
)
def test_body_is_what_the_model_of_ec2_takes(wanted: VmSpec) -> None:
    """Every member is one of the model's, of its type, and every word is one that it lists."""
    made = body(wanted)

    assert not ParamValidator().validate(made, shape_of("RunInstances")).has_errors()
    assert foreign_words(shape_of("RunInstances"), made) == []
    assert json.loads(json.dumps(made)) == made


def test_check_of_the_body_can_fail() -> None:
    """A misspelt member and a word that EC2 does not list are found by the check above."""
    wrong = body(spec())
    wrong["MarketOptions"] = {}
    foreign = {"InstanceInitiatedShutdownBehavior": "pause"}

    report = ParamValidator().validate(wrong, shape_of("RunInstances")).generate_report()

    assert "MarketOptions" in report
    assert foreign_words(shape_of("RunInstances"), foreign) == [
        ".InstanceInitiatedShutdownBehavior: pause"
    ]


def test_machine_is_a_persistent_spot_machine_that_is_stopped_under_its_cap() -> None:
    """Persistent, behaviour `stop`, the cap as text, and an end an hour after the limit."""
    spot = body(spec())["InstanceMarketOptions"]

    assert spot["MarketType"] == "spot"
    assert parse_utc_s(spot["SpotOptions"].pop("ValidUntil")) == UNTIL_S + 3600
    assert spot["SpotOptions"] == {
        "SpotInstanceType": "persistent",
        "InstanceInterruptionBehavior": "stop",
        "MaxPrice": "0.25000",
    }


def test_without_a_cap_or_a_limit_none_is_sent() -> None:
    """EC2 then takes the on-demand price as the cap, and the request does not end by itself."""
    options = body(spec(max_price_usd_per_h=None, until_s=None))["InstanceMarketOptions"]

    assert set(options["SpotOptions"]) == {"SpotInstanceType", "InstanceInterruptionBehavior"}


def test_nothing_that_could_be_stolen_or_left_over_is_on_the_machine() -> None:
    """No key pair, no instance profile; metadata by token and one hop; the disk dies with it."""
    made = body(spec())

    assert not {"KeyName", "IamInstanceProfile"} & set(made)
    assert made["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }
    (disk,) = made["BlockDeviceMappings"]
    (card,) = made["NetworkInterfaces"]
    assert disk["DeviceName"] == "/dev/sda1"
    assert disk["Ebs"]["DeleteOnTermination"]
    assert disk["Ebs"]["Encrypted"]
    assert card["DeleteOnTermination"]
    assert made["InstanceInitiatedShutdownBehavior"] == "stop"


def test_everything_that_is_made_carries_our_tag_at_birth() -> None:
    """Machine, disk, interface and spot request can be found by the run, each with the zone."""
    kinds = {
        one["ResourceType"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]}
        for one in body(spec())["TagSpecifications"]
    }

    assert set(kinds) == {"instance", "volume", "network-interface", "spot-instances-request"}
    for tags in kinds.values():
        assert (tags["qft-run"], tags["qft-zone"]) == ("run-a", "us-east-1a")
        assert max(map(len, tags)) <= TAG_NAME_CHARS_MAX


@pytest.mark.parametrize(("wanted_gb", "made_gb"), [(30, 75), (128, 128)])
def test_disk_is_at_least_as_big_as_the_image(wanted_gb: int, made_gb: int) -> None:
    """A disk that would not hold the image is made bigger, before anything is asked for."""
    wanted = spec(disk_gb=wanted_gb)

    (disk,) = body(wanted)["BlockDeviceMappings"]

    assert disk["Ebs"]["VolumeSize"] == made_gb
    note = disk_note(wanted, TARGET.image)
    assert note.startswith("the disk has 75 GB instead of 30") == (wanted_gb != made_gb)


def test_bigger_disk_costs_more_while_the_machine_is_stopped() -> None:
    """The price per hour follows the disk that is made, not the one that was asked for."""
    priced = spec(disk_gb=50, offer=replace(spec().offer, idle_usd_per_h=0.005))

    assert idle_usd_per_h(priced, 100) == pytest.approx(0.01)
    assert idle_usd_per_h(spec(disk_gb=128), 128) == pytest.approx(0.014027)


def test_user_data_fits_with_the_longest_keys_and_program() -> None:
    """The whole document stays under EC2's 16 KB with an RSA key of 8192 bits and a long user."""
    long_key = f"ssh-rsa {'A' * 1420} {'somebody@somewhere.example' * 3}"
    wanted = spec(user="q" * 32, public_key=long_key, host_private_key=HOST_PRIVATE * 2)

    made = user_data(wanted)

    assert len(made.encode()) <= USER_DATA_BYTES_MAX
    document = json.loads(made.removeprefix("#cloud-config\n"))
    program = next(one for one in document["write_files"] if one["path"].endswith(".py"))
    assert program["content"] == one_file()
    (user,) = document["users"]
    assert (user["name"], user["ssh_authorized_keys"]) == ("q" * 32, [long_key])
    assert document["ssh_keys"]["ed25519_private"] == HOST_PRIVATE * 2


def test_user_data_that_outgrows_ec2_is_refused_here() -> None:
    """What EC2 would refuse as malformed is an error before anything is sent."""
    with pytest.raises(BadRequest, match="exceeds EC2's 16384"):
        check_spec(spec(public_key=f"ssh-rsa {'A' * 16384}"))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_price_usd_per_h": 0.001},
        {"max_price_usd_per_h": -1.0},
        {"max_price_usd_per_h": float("nan")},
        {"user": "root"},
        {"user": "Some One"},
        {"public_key": ""},
        {"public_key": f"{USER_PUBLIC}\n{USER_PUBLIC}"},
        {"offer": replace(spec().offer, provider="azure")},
    ],
)
def test_what_ec2_would_refuse_is_refused_before_it_is_sent(changes: dict[str, Any]) -> None:
    """A cap of nothing, a user that cannot be, no key: an error that costs nothing."""
    with pytest.raises(BadRequest):
        check_spec(spec(**changes))


INSTANCE = {
    "InstanceLifecycle": "spot",
    "InstanceType": "g4dn.xlarge",
    "Placement": {"AvailabilityZone": "us-east-1a"},
    "MetadataOptions": {"HttpTokens": "required"},
}
REQUEST = {
    "Type": "persistent",
    "InstanceInterruptionBehavior": "stop",
    "SpotPrice": "0.250000",
}


def test_machine_as_requested_passes() -> None:
    """No difference is found in what EC2 says of the machine that was asked for."""
    assert difference_from(INSTANCE, REQUEST, spec()) == ""
    assert difference_from(INSTANCE, None, spec()) == ""
    assert difference_from(INSTANCE, REQUEST, spec(max_price_usd_per_h=0.250004)) == ""


@pytest.mark.parametrize(
    ("instance", "request_", "words"),
    [
        ({"InstanceLifecycle": None}, {}, "on-demand price"),
        ({"InstanceType": "g4dn.12xlarge"}, {}, "g4dn.12xlarge instead of g4dn.xlarge"),
        ({"Placement": {"AvailabilityZone": "us-east-1b"}}, {}, "us-east-1b"),
        ({"MetadataOptions": {"HttpTokens": "optional"}}, {}, "without a token"),
        ({}, {"Type": "one-time"}, "one-time"),
        ({}, {"InstanceInterruptionBehavior": "terminate"}, "terminate it"),
        ({}, {"InstanceInterruptionBehavior": None}, "terminate it"),
        ({}, {"SpotPrice": "0.526000"}, "0.526000 instead of 0.25000"),
        ({}, {"SpotPrice": None}, "none instead of 0.25000"),
        ({}, {"SpotPrice": "cheap"}, "cheap"),
    ],
)
def test_machine_that_was_not_requested_is_noticed(
    instance: dict[str, Any], request_: dict[str, Any], words: str
) -> None:
    """On demand, another size or zone, one-time, losing its disk, another cap: each in words."""
    assert words in difference_from(INSTANCE | instance, REQUEST | request_, spec())
