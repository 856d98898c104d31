"""Removal proves itself, finds everything by tag alone, and touches nothing that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import Disruption, DisruptionKind
from arm.harness import T4, AzureHarness, azure, spec
from arm.replies import ArmError, Reply
from arm.world import SUBSCRIPTION, Group, Resource

from infra.errors import NoCapacity, NotAllowed, Transient
from infra.provider import PowerState, Vm

GROUP_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/qft-run-a"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud with somebody else's things in it."""
    with azure(tmp_path / "here") as harness:
        yield harness


def stranger(harness: AzureHarness, group: str) -> Resource:
    """A disk that is not ours."""
    return harness.cloud.world.add(
        Resource(
            id=f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}"
            "/providers/Microsoft.Compute/disks/theirs",
            type="Microsoft.Compute/disks",
            group=group,
            location="eastus",
            tags={},
            properties={"provisioningState": "Succeeded"},
        )
    )


def test_every_kind_is_listed_once(harness: AzureHarness) -> None:
    """What was removed is named, though lists lag behind, the group last."""
    harness.provider().create(spec())
    harness.advance(60)

    removed = harness.provider().delete("run-a")

    assert sorted(one.kind for one in removed) == [
        "disk",
        "firewall",
        "network",
        "network card",
        "public IP",
        "resource group",
        "virtual machine",
    ]


def test_lagging_list_hides_nothing(harness: AzureHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed before any list shows it, the machine and what it made are named all the same."""
    monkeypatch.setattr("arm.world.LIST_LAG_S", 600.0)
    harness.provider().create(spec())

    removed = harness.provider().delete("run-a")

    assert {"virtual machine", "disk", "public IP"} <= {one.kind for one in removed}


def test_lagging_list_of_groups_hides_no_run_of_this_computer(harness: AzureHarness) -> None:
    """What was begun here is found by name though the list of groups does not show it yet."""
    harness.provider().create(spec())
    empty = Reply(body={"value": [], "nextLink": ""})
    harness.cloud.disruptions.add(
        Disruption(
            kind=DisruptionKind.ANSWER, method="GET", path="/resourcegroups$", reply=empty, times=2
        )
    )

    (listed,) = harness.provider().list_all()
    harness.provider().delete(listed.run_id)

    assert harness.provider().list_all() == []
    assert harness.cloud.leftovers() == []


def test_foreign_group_of_our_name_is_not_touched(harness: AzureHarness) -> None:
    """A group without our tag is neither used nor removed, whatever it is called."""
    harness.cloud.world.groups["qft-run-a"] = Group(
        id=GROUP_ID, name="qft-run-a", location="eastus", tags={"owner": "somebody"}
    )
    stranger(harness, "qft-run-a")

    with pytest.raises(NotAllowed):
        harness.provider().create(spec())
    with pytest.raises(NotAllowed):
        harness.provider().delete("run-a")

    assert len(harness.cloud.leftovers()) == 2
    assert harness.provider().list_all() == []


def test_strangers_things_in_our_group_survive(harness: AzureHarness) -> None:
    """If somebody put a disk into the run's group, only our parts go, and our tags with them."""
    harness.provider().create(spec())
    theirs = stranger(harness, "qft-run-a")
    harness.advance(60)

    removed = harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == [GROUP_ID, theirs.id]
    assert "virtual machine" in {one.kind for one in removed}
    assert "resource group" not in {one.kind for one in removed}
    assert harness.provider().list_all() == []
    assert [one for one in harness.cloud.ledger.billing() if "qft-run-a-1" in one] == []


def test_half_made_run_is_listed_and_removed(harness: AzureHarness, tmp_path: Path) -> None:
    """A client that died after the network was made leaves remnants that any computer finds."""
    path = r"/virtualMachines/[^/]+$"
    reply = Reply(status=503, body=ArmError(503, "ServerBusy", "Busy.").body)
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, times=99, path=path, reply=reply)
    )
    with pytest.raises(Transient):
        harness.provider().create(spec())
    harness.cloud.disruptions.queue.clear()
    there = harness.provider(state_dir=tmp_path / "there")

    (listed,) = there.list_all()
    removed = there.delete(listed.run_id)

    assert listed.power is PowerState.REMNANTS
    assert "public IP" in {one.kind for one in removed}
    assert harness.cloud.leftovers() == []


def test_reserved_card_is_waited_for(harness: AzureHarness) -> None:
    """A card reserved for a failed machine keeps its group alive for 180 s, and no longer."""
    harness.cloud.market.sold_out[T4.lower(), "eastus"] = "AllocationFailed"

    with pytest.raises(NoCapacity):
        harness.provider().create(spec())

    deletions = [r for r in harness.cloud.requests if r.method == "DELETE"]
    assert 2 <= len(deletions) <= 10
    assert harness.cloud.leftovers() == []


def test_create_waits_for_a_removal_under_way(harness: AzureHarness) -> None:
    """A new machine of a run whose group is still going is made after it has gone."""
    provider = harness.provider()
    provider.create(spec())
    groups = provider.context.arm.resources.resource_groups
    provider.context.arm.begin("x", groups.begin_delete, "qft-run-a")

    vm = harness.provider().create(spec(generation=2, region="westus2"))

    assert (vm.generation, vm.region) == (2, "westus2")
    assert harness.provider().observe(vm).power is PowerState.RUNNING
    (one,) = harness.cloud.machines()
    assert one.location == "westus2"


def test_next_generation_replaces_a_machine_that_is_down(harness: AzureHarness) -> None:
    """Never two machines: the evicted one goes before the next one is made."""
    old = harness.provider().create(spec())
    harness.provider().deallocate(old)

    new = harness.provider().create(spec(generation=2, region="westus2"))

    assert (new.generation, len(harness.cloud.machines())) == (2, 1)
    assert harness.provider().observe(old).power is PowerState.GONE


def test_next_generation_does_not_replace_a_machine_that_runs(harness: AzureHarness) -> None:
    """A second client that asks for more is given the machine that is there."""
    old = harness.provider().create(spec())

    again = harness.provider().create(spec(generation=2, region="westus2"))

    assert again.id == old.id
    assert len(harness.cloud.machines()) == 1


def test_delete_by_two_at_once_is_one_deletion(harness: AzureHarness) -> None:
    """Somebody else's deletion under way is joined, not fought."""
    provider = harness.provider()
    vm: Vm = provider.create(spec())
    groups = provider.context.arm.resources.resource_groups
    provider.context.arm.begin("x", groups.begin_delete, "qft-run-a")

    harness.provider().delete(vm.run_id)

    assert harness.cloud.leftovers() == []


def test_part_of_azure_that_was_never_used_is_no_obstacle(harness: AzureHarness) -> None:
    """On a subscription that has never known a schedule, removal does not ask for one."""
    harness.provider().create(spec())
    harness.cloud.world.providers["microsoft.devtestlab"] = "NotRegistered"

    harness.provider().delete("run-a")

    assert harness.cloud.leftovers() == []


def test_lost_keys_are_reported_and_never_mixed_up(harness: AzureHarness, tmp_path: Path) -> None:
    """Whoever comes back with other keys gets the truth: the key that the machine presents."""
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOtherotherotherotherotherotherotherother qft"
    path = r"/virtualMachines/[^/]+$"
    reply = Reply(status=503, body=ArmError(503, "ServerBusy", "Busy.").body)
    harness.cloud.disruptions.add(
        Disruption(kind=DisruptionKind.ANSWER, times=99, path=path, reply=reply)
    )
    with pytest.raises(Transient):
        harness.provider().create(spec())
    harness.cloud.disruptions.queue.clear()
    there = harness.provider(state_dir=tmp_path / "there")

    made = there.create(spec(host_public_key=other))
    again = harness.provider().create(spec())

    (listed,) = harness.provider().list_all()
    assert made.host_public_key == again.host_public_key == listed.host_public_key == other
    assert len(harness.cloud.world.machines_made) == 1
