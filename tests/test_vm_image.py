"""`vm.image`: which images may be named, what travels to Azure, and what set-up is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm import Disruption, DisruptionKind
from arm.bodies import schema_errors
from arm.harness import AzureHarness, azure, spec
from arm.replies import Reply, Request
from azure.mgmt.compute import models
from pydantic import ValidationError

from commands.runs import factory
from commands.runs.config import check
from commands.runs.planning.make_page import notes_on_names
from commands.ui.errors import UsageError
from infra.azure.registration import settings_of
from infra.azure.vm import PLAIN, WITH_DRIVER, image_for, security_for
from infra.config import VmTable
from infra.errors import BadRequest
from infra.image import generation_of
from infra.provider import Vm
from remote.setup.steps import DriverKind

MACHINES = r"/virtualMachines/[^/]+$"
OURS = "Canonical:ubuntu-24_04-lts:server:24.04.202511120"
FOREIGN = "nvidia:ngc_azure_17_11:ngc-base-version-25_3_1_gen2:latest"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud that records every request."""
    with azure(tmp_path / "state") as harness:
        yield harness


def puts(harness: AzureHarness) -> list[Request]:
    """Every request to make a machine."""
    return [r for r in harness.cloud.requests if r.method == "PUT" and "virtualMachines" in r.path]


def table(**given: Any) -> VmTable:
    """The `vm` table of somebody who rents."""
    return VmTable.model_validate({"provider": "azure", "max_price": 0.25, **given})


@pytest.mark.parametrize("urn", [OURS, FOREIGN, PLAIN, WITH_DRIVER, "a.b:c_d:e-f:1.2.3.4"])
def test_an_image_is_named_by_its_urn(urn: str) -> None:
    """A URN stands alone or in a table, and comes back as it was written."""
    for written in (urn, {"urn": urn}):
        image = table(image=written).image

        assert image is not None
        assert (image.urn, image.driver) == (urn, "auto")


REFUSED: dict[str, tuple[Any, str]] = {
    "a word missing": ("Canonical:ubuntu-24_04-lts:server", "has 3 parts; an image's URN has four"),
    "a word too many": ("a:b:c:latest:d", "has 5 parts"),
    "an alias of az": ("Ubuntu2404", "has 1 part; an image's URN has four"),
    "nothing": ("", "has 1 part"),
    "an own image": (
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/images/i",
        "the id of an image of your own or of a gallery",
    ),
    "a community gallery": ("/CommunityGalleries/x/Images/y", "of your own or of a gallery"),
    "an address": ("https://example.org/a.vhd", "of your own or of a gallery"),
    "a part that is empty": ("Canonical::server:latest", "`` is no offer of an image"),
    "spaces": ("Canonical:ubuntu 24:server:latest", "`ubuntu 24` is no offer of an image"),
    "an option": ("-x:b:c:latest", "`-x` is no publisher of an image"),
    "a line break": ("a:b:c\n:latest", "is no sku of an image"),
    "a line break at the end": ("a:b:c:latest\n", "is no version of an image"),
    "no version": ("a:b:c:newest", "`newest` is no version of an image: write `latest`"),
    "half a version": ("a:b:c:22.04", "`22.04` is no version of an image"),
    "Windows": (
        "MicrosoftWindowsServer:WindowsServer:2022-datacenter-g2:latest",
        "is a Windows image, and qft sets up Ubuntu",
    ),
    "ARM": ("Canonical:ubuntu-24_04-lts:server-arm64:latest", "is for ARM processors"),
    "a number": (5, "write a URN"),
    "a list": (["a:b:c:latest"], "write a URN"),
    "true": (True, "write a URN"),
    "a table without URN": ({"driver": "cuda"}, "Field required"),
    "a URN that is none": ({"urn": None}, "valid string"),
    "an unknown driver": ({"urn": PLAIN, "driver": "cuda13"}, "'preinstalled', 'cuda' or 'grid'"),
    "an unknown key": ({"urn": PLAIN, "drivers": "cuda"}, "Extra inputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_in_a_sentence(name: str) -> None:
    """Whatever cannot be rented from is told with what to write instead."""
    value, words = REFUSED[name]
    with pytest.raises(ValidationError) as caught:
        table(image=value)

    assert words in str(caught.value)


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "Gen1 on a Gen2 size": (
        {"gpu": "A100", "image": "Canonical:ubuntu-24_04-lts:server-gen1:latest"},
        "for Gen1 machines, and those with A100 boot Gen2 images only",
    ),
    "an old sku without a word on it": (
        {"gpu": "H100", "image": "Canonical:0001-com-ubuntu-server-jammy:22_04-lts:latest"},
        "for Gen1 machines",
    ),
    "the ordinary driver for a vGPU": (
        {"gpu": "A10", "image": {"urn": FOREIGN, "driver": "cuda"}},
        "with which A10 sizes show no card",
    ),
    "the vGPU driver for a whole card": (
        {"gpu": "T4", "image": {"urn": FOREIGN, "driver": "grid"}},
        "T4 sizes have whole cards and need `cuda`",
    ),
    "a machine of one's own": (
        {
            "provider": "ssh",
            "image": PLAIN,
            "ssh": {"host": "h", "user": "u", "key": "k"},
        },
        "yours has its system already",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_image_that_the_gpu_cannot_use_is_refused(name: str) -> None:
    """What would fail on the rented machine is told before one is rented."""
    given, words = UNFIT[name]
    with pytest.raises(ValidationError) as caught:
        table(**given)

    assert words in str(caught.value)


def test_error_in_the_image_is_reported_with_its_key(tmp_path: Path) -> None:
    """The whole config's check names `vm.image.urn`, and the line says what a URN is."""
    with pytest.raises(UsageError) as caught:
        check({"vm": {"provider": "azure", "max_price": 1, "image": "Ubuntu"}}, tmp_path / "run")

    assert [one for one in caught.value.problems if one.startswith("vm.image.urn: `Ubuntu` has 1")]


@pytest.mark.parametrize(
    ("urn", "generation"),
    [
        (WITH_DRIVER, 2),
        (PLAIN, 2),
        ("Canonical:ubuntu-24_04-lts:server-gen1:latest", 1),
        ("Canonical:0001-com-ubuntu-server-jammy:22_04-lts:latest", 1),
        ("canonical:0001-com-ubuntu-server-jammy:22_04-LTS-gen2:latest", 2),
        ("microsoft-dsvm:ubuntu-2204:2204-gen2:latest", 2),
        ("debian:debian-12:12:latest", None),
        ("x:y:12-g1:latest", 1),
        ("x:y:gold:latest", None),
    ],
)
def test_the_generation_of_an_image(urn: str, generation: int | None) -> None:
    """A sku's own word decides, then what is known of the publisher; nothing is guessed."""
    assert generation_of(urn) == generation


def test_security_profile_is_one_that_the_sdk_knows() -> None:
    """The SDK's own models know every member, its type, and the security type by its name."""
    profile = security_for(PLAIN)

    assert schema_errors(profile, models.SecurityProfile, models) == []
    assert profile is not None
    assert profile["securityType"] == models.SecurityTypes.TRUSTED_LAUNCH.value
    assert models.SecurityProfile(profile).uefi_settings.secure_boot_enabled is False  # type: ignore[union-attr]
    assert security_for("Canonical:ubuntu-24_04-lts:server-gen1:latest") is None


@pytest.mark.parametrize("urn", [OURS, FOREIGN])
def test_the_chosen_image_is_the_one_of_the_machine(harness: AzureHarness, urn: str) -> None:
    """The URN of run.yaml is the image reference of the request, part by part."""
    settings = settings_of(table(image=urn, azure={"subscription": "s"}), {})
    harness.changes["image"] = settings.image

    harness.provider().create(spec())

    (request,) = puts(harness)
    reference = request.body["properties"]["storageProfile"]["imageReference"]
    assert ":".join(reference[part] for part in ("publisher", "offer", "sku", "version")) == urn
    assert "securityProfile" in request.body["properties"]


def test_without_a_choice_the_size_decides() -> None:
    """A whole card boots the image that brings its driver, a vGPU one on which GRID installs."""
    assert image_for("Standard_NC4as_T4_v3") == WITH_DRIVER
    assert image_for("Standard_NV36ads_A10_v5") == PLAIN
    assert image_for("Standard_NV36ads_A10_v5", OURS) == OURS


def test_a_gen1_image_has_no_firmware_to_ask(harness: AzureHarness) -> None:
    """Trusted Launch is for Gen2: with a Gen1 image the request says nothing about it."""
    image = "Canonical:ubuntu-24_04-lts:server-gen1:latest"
    harness.changes["image"] = image

    harness.provider().create(spec())

    (request,) = puts(harness)
    assert "securityProfile" not in request.body["properties"]


@pytest.mark.parametrize(
    "message",
    [
        "Use of TrustedLaunch setting is not supported for the provided image.",
        "The VM size 'Standard_A4_v2' is not supported with 'TrustedLaunch' security type.",
        "The value of parameter 'securityProfile.securityType' is invalid.",
    ],
)
@pytest.mark.parametrize("code", ["BadRequest", "InvalidParameter", "SomethingNew"])
def test_where_trusted_launch_is_refused_it_is_left_out(
    harness: AzureHarness, message: str, code: str
) -> None:
    """Sizes and images without it have no Secure Boot either: asked once more, without the word."""
    reply = Reply(status=400, body={"error": {"code": code, "message": message}})
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path=MACHINES, reply=reply)
    )

    harness.provider().create(spec())

    first, second = puts(harness)
    assert "securityProfile" in first.body["properties"]
    assert "securityProfile" not in second.body["properties"]
    assert len(harness.cloud.machines()) == 1


def test_another_refusal_is_not_retried(harness: AzureHarness) -> None:
    """A request that is wrong for another reason is sent once, and nothing is left of it."""
    reply = Reply(status=400, body={"error": {"code": "InvalidParameter", "message": "No."}})
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path=MACHINES, reply=reply)
    )

    with pytest.raises(BadRequest):
        harness.provider().create(spec())

    assert len(puts(harness)) == 1
    assert harness.cloud.leftovers() == []


@pytest.mark.parametrize("driver", ["auto", "none", "preinstalled", "cuda"])
def test_set_up_learns_whether_the_image_brings_the_driver(driver: str) -> None:
    """Only where the user says so nothing is installed over the image's driver."""
    machine = Vm(
        provider="azure",
        run_id="r",
        id="i",
        region="eastus",
        size="Standard_NC4as_T4_v3",
        generation=1,
        user="qft",
        host_public_key="k",
    )

    want = factory.setup_wanted(table(image={"urn": FOREIGN, "driver": driver}), machine)

    given = driver in {"preinstalled", "cuda"}
    assert (want.driver, want.driver_given) == (DriverKind.DATACENTER, given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": PLAIN}, "brings no driver: set-up installs one"),
        ({"gpu": "A10", "image": WITH_DRIVER}, "replaces it by the vGPU driver"),
        ({"image": WITH_DRIVER}, ""),
        ({"image": FOREIGN}, ""),
        ({}, ""),
    ],
)
def test_plan_says_what_the_image_means(given: dict[str, Any], words: str) -> None:
    """`qft plan` tells beforehand that a driver will be installed; of unknown images nothing."""
    notes = "; ".join(filter(None, notes_on_names(table(**given))))

    assert words in notes
    assert bool(notes) == bool(words)
