"""What every provider promises of a run with several machines, as one suite beside `contract.py`.

class TestAzureNodes(NodesContract):
    @pytest.fixture
    def harness(self) -> Iterator[Harness]:
        ...
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from infra.errors import Gone, NoCapacity
from infra.provider import PowerState, Provider, StopReason, Vm, VmSpec
from support.contract import Harness, make_spec, openssh_keys, wait_for

RUN = "contract-a"


def node_spec(harness: Harness, node: int, *, run_id: str = RUN, nodes: int = 3) -> VmSpec:
    """A request for one of three machines in the first region, with a host key of its own."""
    spec = make_spec(harness.provider(), run_id, region=harness.regions[0])
    host_private, host_public = openssh_keys()
    return replace(
        spec,
        node=node,
        nodes=nodes,
        host_private_key=host_private,
        host_public_key=host_public,
    )


def three(harness: Harness, run_id: str = RUN) -> list[Vm]:
    """Three machines of one run that run."""
    made = [harness.provider().create(node_spec(harness, node, run_id=run_id)) for node in range(3)]
    for vm in made:
        wait_for(harness, vm, PowerState.RUNNING)
    return made


def power_states(provider: Provider, machines: list[Vm]) -> list[PowerState]:
    """What each of them is seen as now."""
    return [provider.observe(vm).power for vm in machines]


class NodesContract:
    """What holds for every provider whose runs can have several machines."""

    def test_the_provider_says_that_it_can(self, harness: Harness) -> None:
        """Whoever asks for several machines finds in the traits whether there can be any."""
        assert harness.provider().traits.several_machines

    def test_each_node_is_a_machine_of_its_own(self, harness: Harness) -> None:
        """Three requests are three machines, listed with their numbers, with keys of their own."""
        made = three(harness)

        listed = harness.provider().list_run(RUN)

        assert sorted(vm.node for vm in listed) == [0, 1, 2]
        assert {vm.id for vm in listed} == {vm.id for vm in made}
        assert len({vm.id for vm in made}) == 3
        assert len({vm.host_public_key for vm in listed}) == 3
        assert {vm.run_id for vm in listed} == {RUN}

    def test_creating_a_node_again_returns_it(self, harness: Harness) -> None:
        """A second create of one node makes no fourth machine, also from another computer."""
        specs = [node_spec(harness, node) for node in range(3)]
        made = [harness.provider().create(spec) for spec in specs]

        again = [harness.provider().create(spec) for spec in reversed(specs)]

        assert [vm.id for vm in reversed(again)] == [vm.id for vm in made]
        assert [vm.node for vm in reversed(again)] == [0, 1, 2]
        assert len(harness.provider().list_run(RUN)) == 3

    def test_nodes_have_private_addresses_that_differ(self, harness: Harness) -> None:
        """Each machine that runs has an address that only its mates can use."""
        made = three(harness)

        found = [harness.provider().observe(vm).private_host for vm in made]

        assert len(set(found)) == 3
        for address in found:
            assert ipaddress.ip_address(address).is_private  # loopback counts, too

    def test_an_evicted_node_leaves_the_others_running(self, harness: Harness) -> None:
        """An eviction takes one machine; it starts again, as the same node."""
        made = three(harness)

        harness.provider().evict(made[1])
        end = wait_for(harness, made[1], PowerState.DEALLOCATED)

        assert end.stop_reason is StopReason.EVICTED
        provider = harness.provider()
        assert power_states(provider, [made[0], made[2]]) == [PowerState.RUNNING] * 2
        provider.start(made[1])
        wait_for(harness, made[1], PowerState.RUNNING)

    def test_a_released_node_leaves_the_others_running(self, harness: Harness) -> None:
        """Deallocating node 0 stops its bill and nobody else's."""
        made = three(harness)

        harness.provider().deallocate(made[0])

        wait_for(harness, made[0], PowerState.DEALLOCATED)
        assert power_states(harness.provider(), made[1:]) == [PowerState.RUNNING] * 2

    @pytest.mark.parametrize("node", [0, 1])
    def test_a_removed_node_leaves_the_others_running(self, harness: Harness, node: int) -> None:
        """Removing one machine names what went, and takes nothing that its mates need."""
        made = three(harness)
        others = [vm for vm in made if vm.node != node]

        removed = harness.provider().remove(made[node])

        assert any("machine" in one.kind for one in removed)
        provider = harness.provider()
        assert provider.observe(made[node]).power is PowerState.GONE
        assert power_states(provider, others) == [PowerState.RUNNING] * 2
        assert {vm.id for vm in provider.list_run(RUN)} == {vm.id for vm in others}
        assert provider.remove(made[node]) == []
        with pytest.raises(Gone):
            provider.start(made[node])

    @pytest.mark.parametrize("node", [0, 2])
    def test_a_removed_node_can_be_made_again(self, harness: Harness, node: int) -> None:
        """The next generation of a removed node joins the same network as another machine."""
        made = three(harness)
        harness.provider().remove(made[node])

        spec = replace(node_spec(harness, node), generation=2)
        again = harness.provider().create(spec)

        wait_for(harness, again, PowerState.RUNNING)
        assert (again.node, again.generation) == (node, 2)
        assert again.id != made[node].id or again.created_at != made[node].created_at
        assert len(harness.provider().list_run(RUN)) == 3

    def test_a_node_without_capacity_leaves_its_mates(self, harness: Harness) -> None:
        """A third machine that cannot be had costs the first two nothing."""
        provider = harness.provider()
        made = [provider.create(node_spec(harness, node)) for node in range(2)]
        for vm in made:
            wait_for(harness, vm, PowerState.RUNNING)
        spec = node_spec(harness, 2)
        harness.set_capacity(harness.regions[0], free=False)

        with pytest.raises(NoCapacity):
            harness.provider().create(spec)

        assert power_states(harness.provider(), made) == [PowerState.RUNNING] * 2
        assert len(harness.provider().list_run(RUN)) == 2

    def test_deleting_the_run_removes_all_nodes(self, harness: Harness) -> None:
        """One delete ends every machine and whatever they share; a second one finds nothing."""
        made = three(harness)

        harness.provider().delete(RUN)

        provider = harness.provider()
        assert power_states(provider, made) == [PowerState.GONE] * 3
        assert provider.list_run(RUN) == []
        assert provider.delete(RUN) == []

    def test_deleting_a_run_spares_the_nodes_of_another(self, harness: Harness) -> None:
        """A run of a similar name keeps its machines and their network."""
        three(harness)
        other = three(harness, "contract-a-1")

        harness.provider().delete(RUN)

        assert power_states(harness.provider(), other) == [PowerState.RUNNING] * 3
        assert len(harness.provider().list_run("contract-a-1")) == 3

    def test_a_run_grows_from_one_machine_to_several(self, harness: Harness) -> None:
        """A machine that was made alone is node 0 of a run that asks for more later."""
        spec = make_spec(harness.provider(), RUN, region=harness.regions[0])
        first = harness.provider().create(spec)
        wait_for(harness, first, PowerState.RUNNING)

        second = harness.provider().create(node_spec(harness, 1))
        wait_for(harness, second, PowerState.RUNNING)

        again = harness.provider().create(replace(spec, nodes=3))
        assert again.id == first.id
        assert len(harness.provider().list_run(RUN)) == 2
