"""What a machine was granted goes with the machine, whoever removes it and from where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import AzureHarness, azure, spec
from arm.replies import ArmError
from arm.world import SUBSCRIPTION

from infra.provider import Vm

HOME = f"/subscriptions/{SUBSCRIPTION}"
READER_ID = "acdd72a7-3385-48ef-bd42-f606fba81ae7"
READER = f"{HOME}/providers/Microsoft.Authorization/roleDefinitions/{READER_ID}"
"""The built-in role `Reader`, the same in every directory."""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud whose machines may deallocate themselves."""
    with azure(tmp_path / "here") as harness:
        yield harness


def rented(harness: AzureHarness, run_id: str = "run-a") -> Vm:
    """A machine with all its switches."""
    vm = harness.provider().create(spec(run_id=run_id))
    harness.provider().set_safeguards(vm, until_s=harness.cloud.clock.now() + 3600)
    return vm


def granted(harness: AzureHarness) -> list[dict[str, Any]]:
    """Every assignment that there is."""
    roles = harness.cloud.world.roles
    return [one for key, one in roles.items() if key.startswith("roleassignments/")]


def grant(harness: AzureHarness, name: str, *, scope: str, principal: str) -> str:
    """Somebody assigns `Reader`; the key of it."""
    key = f"roleassignments/{name}"
    harness.cloud.world.roles[key] = {
        "id": f"{scope}/providers/Microsoft.Authorization/roleAssignments/{name}",
        "name": name,
        "properties": {
            "scope": scope,
            "principalId": principal,
            "roleDefinitionId": READER,
        },
    }
    return key


def test_another_computer_takes_the_assignment_back(harness: AzureHarness, tmp_path: Path) -> None:
    """A computer that remembers nothing of the run leaves no identity that nobody has."""
    rented(harness)

    harness.provider(state_dir=tmp_path / "there").delete("run-a")

    assert granted(harness) == []
    assert harness.cloud.leftovers() == []


def test_what_others_granted_to_the_identity_goes_too(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """The identity dies with the machine, so whatever it was granted anywhere is orphaned."""
    rented(harness)
    (ours,) = granted(harness)
    principal = ours["properties"]["principalId"]
    grant(harness, "elsewhere", scope=f"{HOME}/resourceGroups/theirs", principal=principal)
    grant(harness, "above", scope=HOME, principal=principal)

    harness.provider(state_dir=tmp_path / "there").delete("run-a")

    assert granted(harness) == []


def test_what_is_not_the_machines_stays(harness: AzureHarness) -> None:
    """People's rights on the group and the subscription, and other machines' rights, are kept."""
    first, second = rented(harness), rented(harness, "run-b")
    kept = [
        grant(harness, "mine", scope=HOME, principal="somebody"),
        grant(harness, "here", scope=first.id.rpartition("/providers/")[0], principal="somebody"),
    ]

    harness.provider().delete("run-a")

    left = {one["id"].rpartition("/")[2]: one for one in granted(harness)}
    assert set(left) > {key.rpartition("/")[2] for key in kept}
    scopes = {one["properties"]["scope"].lower() for one in left.values()}
    assert second.id.lower() in scopes
    assert first.id.lower() not in scopes
    assert len(left) == 3


def test_assignment_of_a_machine_that_somebody_deleted_goes(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """With the machine gone, its assignment is found by the role and by where it hangs."""
    vm = rented(harness)
    arm = harness.provider().context.arm
    arm.begin(
        "delete", arm.compute.virtual_machines.begin_delete, "qft-run-a", vm.id.rpartition("/")[2]
    )
    harness.advance(120)

    harness.provider(state_dir=tmp_path / "there").delete("run-a")

    assert granted(harness) == []


def test_assignment_of_a_group_that_somebody_deleted_goes(
    harness: AzureHarness, tmp_path: Path
) -> None:
    """With the whole group gone from the portal, what hung on it is found in the subscription."""
    rented(harness)
    arm = harness.provider().context.arm
    arm.begin("delete", arm.resources.resource_groups.begin_delete, "qft-run-a")
    harness.advance(300)
    assert len(granted(harness)) == 1

    harness.provider(state_dir=tmp_path / "there").delete("run-a")

    assert granted(harness) == []


@pytest.mark.parametrize("status", [400, 403, 404])
def test_account_that_may_not_list_assignments_still_removes(
    harness: AzureHarness, status: int
) -> None:
    """Assignments cost nothing: not being shown them stops no removal of what bills."""
    rented(harness)
    reply = ArmError(status, "AuthorizationFailed" if status == 403 else "Xyzzy", "No.").reply()
    harness.cloud.disruptions.add(
        Disruption(
            kind=DisruptionKind.ANSWER, method="GET", path="roleAssignments$", reply=reply, times=99
        )
    )

    harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []
    assert harness.cloud.ledger.billing() == []


def test_renewed_safeguards_make_no_second_assignment(harness: AzureHarness) -> None:
    """Setting the switches again is quick and leaves one assignment."""
    vm = rented(harness)
    reply = ArmError(409, "RoleAssignmentExists", "The role assignment already exists.").reply()
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, method="PUT", path="roleAssignments/", reply=reply)
    )
    before_s = harness.cloud.clock.now()

    found = harness.provider().set_safeguards(vm, until_s=before_s + 7200)

    assert all(one.is_set for one in found)
    assert harness.cloud.clock.now() - before_s < 5
    assert len(granted(harness)) == 1
