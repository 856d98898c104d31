"""What travels to Azure: valid, spot, capped, closed to the world, and free of secrets."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm import Disruption, DisruptionKind, mapped
from arm.bodies import forbidden_users, schema_errors
from arm.harness import HOST_PRIVATE, HOST_PUBLIC, T4, USER_PUBLIC, AzureHarness, azure, spec
from arm.replies import Reply, Request
from azure.mgmt.authorization.v2022_04_01 import models as roles
from azure.mgmt.compute import models

from infra.azure import AzureProvider
from infra.azure.cloudinit import custom_data
from infra.azure.naming import TAG_NAME_CHARS_MAX, Names
from infra.azure.settings import PUBLIC_ADDRESS
from infra.azure.vm import VmOptions, check_spec, image_for, vm_body
from infra.errors import BadRequest, NotAllowed, ProviderError
from infra.offer import Want
from infra.renting.caller import source_prefix
from infra.renting.tags import tags_of


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that records every request."""
    with azure(tmp_path / "state") as harness:
        yield harness


def put(harness: AzureHarness, part: str) -> Request:
    """The one PUT whose path contains `part`."""
    (found,) = [r for r in harness.cloud.requests if r.method == "PUT" and part in r.path]
    return found


def test_machine_is_spot_under_the_cap(harness: AzureHarness) -> None:
    """Priority, cap and policy are in the body, and nothing outlives the machine."""
    harness.provider().create(spec())

    request = put(harness, "/virtualMachines/")
    body = request.body["properties"]
    assert (body["priority"], body["evictionPolicy"]) == ("Spot", "Deallocate")
    assert body["billingProfile"] == {"maxPrice": 0.25}
    assert request.header("if-none-match") == "*"
    assert body["storageProfile"]["osDisk"]["deleteOption"] == "Delete"
    (card,) = body["networkProfile"]["networkInterfaces"]
    assert card["properties"]["deleteOption"] == "Delete"
    (front,) = put(harness, "/networkInterfaces/").body["properties"]["ipConfigurations"]
    address = front["properties"]["publicIPAddress"]
    assert address["properties"] == {"deleteOption": "Delete"}
    assert body["osProfile"]["linuxConfiguration"]["disablePasswordAuthentication"] is True
    assert body["securityProfile"] == {
        "securityType": "TrustedLaunch",
        "uefiSettings": {"secureBootEnabled": False, "vTpmEnabled": True},
    }


def test_host_key_is_injected_and_pinned(harness: AzureHarness) -> None:
    """The machine is told which key to present, and tags tell every computer which to expect."""
    vm = harness.provider().create(spec())

    data = put(harness, "/virtualMachines/").body["properties"]["osProfile"]["customData"]
    document = json.loads(base64.b64decode(data).decode().removeprefix("#cloud-config\n"))
    assert document["ssh_keys"]["ed25519_private"] == HOST_PRIVATE
    assert document["ssh_deletekeys"] is True
    (listed,) = harness.provider(state_dir=harness.state_dir / "other").list_all()
    assert listed.host_public_key == vm.host_public_key == HOST_PUBLIC


def test_intent_is_tagged_before_anything_bills(harness: AzureHarness) -> None:
    """The first thing made is the group with the run's tags; everything later carries them too."""
    harness.provider().create(spec())

    puts = [r for r in harness.cloud.requests if r.method == "PUT"]
    assert puts[0].path.lower().endswith("/resourcegroups/qft-run-a")
    assert {r.body["tags"]["qft-run"] for r in puts} == {"run-a"}
    assert puts[0].body["tags"]["qft-generation"] == "1"


def test_firewall_admits_only_the_caller(harness: AzureHarness) -> None:
    """One address, one port, and never `*` as a source; a caller who moved is let in on start."""
    vm = harness.provider().create(spec())
    harness.provider().deallocate(vm)
    harness.cloud.caller = "198.51.100.20"
    harness.provider().start(vm)

    rules = [
        rule["properties"] | {"of": request.path}
        for request in harness.cloud.requests
        if request.method == "PUT" and "networkSecurityGroups" in request.path
        for rule in request.body["properties"].get("securityRules") or [request.body]
    ]
    assert [rule["sourceAddressPrefix"] for rule in rules] == ["203.0.113.7/32", "198.51.100.20/32"]
    assert {rule["destinationPortRange"] for rule in rules} == {"22"}
    (firewall,) = [
        one
        for one in harness.cloud.world.resources.values()
        if one.type.endswith("/networkSecurityGroups")
    ]
    (rule,) = firewall.properties["securityRules"]
    assert rule["properties"]["sourceAddressPrefix"] == "198.51.100.20/32"


def test_cloud_in_ones_own_network_admits_the_caller_as_it_sees_them(
    harness: AzureHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cloud has a private address and no page is named, no page of the world is asked."""
    unnamed = harness.settings(address_endpoint=PUBLIC_ADDRESS)
    monkeypatch.setattr(harness, "settings", lambda: unnamed)

    harness.provider().create(spec())

    (firewall, *_) = [one for one in harness.cloud.requests if "SecurityGroups" in one.path]
    (rule,) = firewall.body["properties"]["securityRules"]
    assert rule["properties"]["sourceAddressPrefix"] == "127.0.0.1/32"


def test_caller_without_ipv4_is_refused_before_anything_is_made(harness: AzureHarness) -> None:
    """An IPv6 address could never reach a machine that has an IPv4 address only."""
    harness.cloud.caller = "2001:db8::7"

    with pytest.raises(NotAllowed, match="IPv6") as refused:
        harness.provider().create(spec())

    assert "QFT_CALLER_ADDRESS" in refused.value.hint
    assert harness.cloud.leftovers() == []


@pytest.mark.parametrize("address", ["*", "0.0.0.0/0", "::/0", "Internet", "", "10.0.0.0/8"])
def test_world_is_not_admitted(address: str) -> None:
    """Neither the world nor a tenth of it can be let in, by mistake or by a lying address page."""
    with pytest.raises(NotAllowed):
        source_prefix(address)


def test_page_that_is_no_address_is_reported_in_a_line() -> None:
    """A proxy's page where an address should be is refused without printing all of it."""
    with pytest.raises(NotAllowed) as refused:
        source_prefix("<html>" + "sign in first " * 1000)

    assert len(str(refused.value)) < 200


def test_every_body_ever_sent_is_valid(harness: AzureHarness) -> None:
    """Through a whole life, the strict cloud refuses no body and no api-version."""
    provider = harness.provider()
    provider.offers(Want(gpu="T4"))
    vm = provider.create(spec())
    provider.deallocate(vm)
    provider.start(vm)
    provider.evict(vm)
    harness.advance(200)
    provider.observe(vm)
    provider.list_all()
    provider.delete("run-a")

    refused = [
        (status, request.method, request.path)
        for request, status in harness.cloud.server.recorded
        if status >= 400 and not (status == 404 and request.method == "GET")
    ]
    assert refused == []


@pytest.mark.parametrize("size", [T4, "Standard_NV36ads_A10_v5"])
@pytest.mark.parametrize("zone", ["", "2"])
@pytest.mark.parametrize("cap", [None, 0.25, 0.123456789])
def test_machine_body_fits_the_sdk(size: str, zone: str, cap: float | None) -> None:
    """Each kind of body is one that the SDK's own models know, member by member."""
    wanted = spec(size=size, max_price_usd_per_h=cap)
    wanted = dataclasses.replace(wanted, offer=dataclasses.replace(wanted.offer, zone=zone))
    names = Names(subscription_id="s", run_id="run-a", generation=1)
    make = VmOptions(image=image_for(size), disk_sku="StandardSSD_LRS", identity=True)

    tags = tags_of(wanted, created_at="now", idle_usd_per_h=0.02, name_chars_max=TAG_NAME_CHARS_MAX)

    body = vm_body(wanted, names=names, tags=tags, options=make)

    assert schema_errors(body, models.VirtualMachine, models) == []
    assert body.get("zones", []) == ([zone] if zone else [])
    price = body["properties"]["billingProfile"]["maxPrice"]
    assert price == (-1 if cap is None else round(cap, 5))


def test_strictness_is_real() -> None:
    """The checker that all tests lean on does flag what real Azure would refuse."""
    bad: dict[str, Any] = {
        "location": "eastus",
        "properties": {
            "hardware_profile": {},
            "billingProfile": {"maxPrice": "0.25"},
            "storageProfile": {"osDisk": {"deleteOption": "Remove"}},
        },
    }

    disruptions = schema_errors(bad, models.VirtualMachine, models)

    assert any("hardware_profile: unknown member" in one for one in disruptions)
    assert any("maxPrice: expected float" in one for one in disruptions)
    assert any("'Remove' is no DiskDeleteOptionTypes" in one for one in disruptions)
    assert any("createOption: required member" in one for one in disruptions)


@pytest.mark.parametrize("cap", [0.0, -0.5, float("nan"), 0.000001])
def test_senseless_cap_is_refused_here(harness: AzureHarness, cap: float) -> None:
    """A cap that rents nothing, or that Azure would read as no cap, never leaves this computer."""
    with pytest.raises(BadRequest):
        harness.provider().create(spec(max_price_usd_per_h=cap))

    assert harness.cloud.requests == []


def test_user_names_that_azure_forbids_are_refused_here() -> None:
    """Each administrator name that the SDK's model says is refused never leaves this computer."""
    for name in forbidden_users():
        with pytest.raises(BadRequest, match="forbids the user name"):
            check_spec(spec(user=name))

    check_spec(spec(user="qft"))


def test_mapped_bodies_are_read_strictly() -> None:
    """Models that the SDK describes by maps refuse unknown members, wrong types and gaps."""
    good = {"properties": {"roleDefinitionId": "r", "principalId": "p", "scope": "ignored"}}
    bad = {"properties": {"roleDefinitionId": 7, "principal_id": "p", "scope": 1}}

    assert mapped.schema_errors(good, "RoleAssignmentCreateParameters", roles) == []
    disruptions = mapped.schema_errors(bad, "RoleAssignmentCreateParameters", roles)
    assert [one.split(":")[0] for one in disruptions] == [
        "$.properties.principal_id",
        "$.properties.roleDefinitionId",
        "$.properties.principalId",
    ]


def test_first_boot_data_has_a_limit() -> None:
    """More than Azure takes is an error here, not a truncated key there."""
    with pytest.raises(ValueError, match="exceeds Azure's 65535"):
        custom_data(host_private_key="x" * 70_000, host_public_key="y")


def test_secrets_stay_where_they_belong(
    harness: AzureHarness, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No private key, token or client secret in tags, state, logs, output or tracebacks."""
    caplog.set_level(logging.DEBUG)
    provider = harness.provider()
    vm = provider.create(spec())
    failed = fail(harness, provider)

    tokens = sorted(harness.cloud.login.tokens)
    secrets = [harness.cloud.login.client_secret, *tokens, HOST_PRIVATE, "b3BlbnNzaC1rZXktdjE"]
    data = put(harness, "qft-run-a/providers/Microsoft.Compute/virtualMachines/").body
    secrets.append(data["properties"]["osProfile"]["customData"])
    state = "".join(p.read_text() for p in sorted(harness.state_dir.rglob("*")) if p.is_file())
    own_logs = "".join(
        record.getMessage()
        for record in caplog.records
        if not record.name.startswith(("urllib3", "msal"))
    )
    tags = json.dumps([r.tags for r in harness.cloud.world.resources.values()])
    sources = {
        "state": state,
        "logs": own_logs,
        "output": "".join(capfd.readouterr()),
        "tags": tags,
        "traceback": "".join(traceback.format_exception(failed)),
        "machine": repr(vm),
        "spec": repr(spec()),
        "settings": repr(harness.settings()),
        "user data": json.dumps(data["properties"].get("userData")),
    }
    found = {(place, one[:20]) for place, text in sources.items() for one in secrets if one in text}
    assert found == set()
    assert len(state) > 100
    assert USER_PUBLIC not in tags


def fail(harness: AzureHarness, provider: AzureProvider) -> ProviderError:
    """A create that Azure refuses, with the body echoed as real refusals sometimes do."""
    reply = Reply(status=400, body={"error": {"code": "InvalidParameter", "message": "No."}})
    path = r"/virtualMachines/[^/]+$"
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path=path, reply=reply)
    )
    with pytest.raises(BadRequest) as caught:
        provider.create(spec(run_id="run-b"))
    return caught.value
