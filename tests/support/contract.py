"""What every provider promises, as one suite; a provider joins by naming a harness.

    class TestLocal(RentingContract):
        @pytest.fixture
        def harness(self, tmp_path: Path) -> Iterator[Harness]:
            ...

`ProviderContract` holds for every provider, `RentingContract` for those that rent and evict.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Protocol

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from infra.card_count import card_count
from infra.errors import Gone, NoCapacity, PriceAboveCap
from infra.offer import Want
from infra.provider import Observation, PowerState, Provider, StopReason, Vm, VmSpec

LOOKS_MAX = 4000
"""Minutes, where looking takes real time: so many only where something is stuck."""


class Harness(Protocol):
    """A world in which one provider can be tried."""

    @property
    def regions(self) -> tuple[str, str]:
        """Two regions in which the size of the suite is sold; capacity and price are normal."""
        ...

    def provider(self) -> Provider:
        """A new provider object, as another computer of the same account would make it."""
        ...

    def advance(self, seconds: float) -> None:
        """Let that much of the provider's time pass."""
        ...

    def set_capacity(self, region: str, *, free: bool) -> None:
        """Make the region refuse new machines, or admit them again."""
        ...

    def set_price(self, region: str, usd_per_h: float) -> None:
        """Move the spot price of the region's machines."""
        ...


def openssh_keys() -> tuple[str, str]:
    """A new ed25519 key: the private part as OpenSSH PEM, the public part as one line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def make_spec(
    provider: Provider,
    run_id: str = "contract-a",
    *,
    region: str,
    generation: int = 1,
    gpu_count: int = 1,
    max_price_usd_per_h: float | None = 5.0,
) -> VmSpec:
    """A request for the cheapest T4 of the region, or for the cheapest machine with several."""
    (offer, *_) = [
        offer
        for offer in provider.offers(Want(gpu="T4", gpu_count=gpu_count, regions=[region]))
        if not offer.blocked_by or max_price_usd_per_h is not None
    ]
    host_private, host_public = openssh_keys()
    return VmSpec(
        run_id=run_id,
        generation=generation,
        offer=offer,
        max_price_usd_per_h=max_price_usd_per_h,
        public_key=openssh_keys()[1],
        host_private_key=host_private,
        host_public_key=host_public,
        labels={"run": "a name for people"},
    )


def wait_for(harness: Harness, vm: Vm, *power_states: PowerState) -> Observation:
    """Look until the machine is in one of the states; a bounded number of looks."""
    provider = harness.provider()
    seen = []
    for _ in range(LOOKS_MAX):
        observation = provider.observe(vm)
        if observation.power in power_states:
            return observation
        seen.append(observation.power)
        harness.advance(0.05)
    raise AssertionError(f"never {power_states}, but {sorted(set(seen))}")


def running(harness: Harness, run_id: str = "contract-a") -> tuple[Vm, VmSpec]:
    """A machine that runs, in the first region."""
    provider = harness.provider()
    spec = make_spec(provider, run_id, region=harness.regions[0])
    vm = provider.create(spec)
    wait_for(harness, vm, PowerState.RUNNING)
    return vm, spec


class ProviderContract:
    """What holds for every provider, also for one that only knows a machine of the user."""

    def test_offers_create_nothing(self, harness: Harness) -> None:
        """Asking what there is leaves nothing behind, and names the provider and a source."""
        provider = harness.provider()

        offers = provider.offers(Want(gpu="T4"))

        assert {offer.provider for offer in offers} == {provider.name}
        assert all(offer.price_source for offer in offers)
        assert provider.list_all() == []

    def test_create_again_is_the_same_machine(self, harness: Harness) -> None:
        """A second create of one run returns the first machine, also from another computer."""
        spec = make_spec(harness.provider(), region=harness.regions[0])
        first = harness.provider().create(spec)

        second = harness.provider().create(spec)

        assert (second.id, second.generation) == (first.id, 1)
        assert [vm.id for vm in harness.provider().list_all()] == [first.id]

    def test_created_machine_comes_up(self, harness: Harness) -> None:
        """A created machine gets to run, has an address, and keeps the key that was pinned."""
        vm, spec = running(harness)

        (listed,) = harness.provider().list_all()
        observation = harness.provider().observe(vm)
        assert listed.host_public_key.startswith("ssh-ed25519 ")
        assert listed.host_public_key == vm.host_public_key
        assert (listed.run_id, listed.power) == (spec.run_id, PowerState.RUNNING)
        assert observation.host != ""
        assert observation.port > 0
        assert observation.stop_reason is None

    def test_machine_is_json(self, harness: Harness) -> None:
        """A machine survives the journal: through JSON it is equal, and holds no private key."""
        vm, spec = running(harness)

        text = json.dumps(dataclasses.asdict(vm))

        data = json.loads(text)
        assert Vm(**data | {"power": PowerState(data["power"])}) == vm
        assert "PRIVATE" not in text
        assert "PRIVATE" not in repr(spec)

    def test_unknown_machine_is_gone(self, harness: Harness) -> None:
        """Looking at a machine that never was is an observation, not an error."""
        provider = harness.provider()
        vm = Vm(provider=provider.name, run_id="never-was", id="never-was", region="x", size="y")

        assert provider.observe(vm).power is PowerState.GONE

    def test_start_of_a_running_machine_is_silent(self, harness: Harness) -> None:
        """Starting what runs changes nothing."""
        vm, _ = running(harness)

        harness.provider().start(vm)

        assert harness.provider().observe(vm).power is PowerState.RUNNING

    def test_delete_of_nothing_is_silent(self, harness: Harness) -> None:
        """Deleting a run that never was removes nothing."""
        assert harness.provider().delete("never-was") == []

    def test_deleted_run_is_gone(self, harness: Harness) -> None:
        """After a delete nothing is listed or seen, and a second delete removes nothing."""
        vm, spec = running(harness)

        harness.provider().delete(spec.run_id)

        provider = harness.provider()
        assert provider.observe(vm).power is PowerState.GONE
        assert provider.list_all() == []
        assert provider.delete(spec.run_id) == []

    def test_gone_machine_cannot_be_used(self, harness: Harness) -> None:
        """Starting or deallocating a deleted machine says that it is gone."""
        vm, spec = running(harness)
        harness.provider().delete(spec.run_id)

        with pytest.raises(Gone):
            harness.provider().start(vm)
        with pytest.raises(Gone):
            harness.provider().deallocate(vm)


class RentingContract(ProviderContract):
    """What holds for every provider that rents machines and may take them away."""

    def test_machine_presents_the_key_it_was_given(self, harness: Harness) -> None:
        """The host key of the request is the one that is pinned, before the machine is up."""
        provider = harness.provider()
        spec = make_spec(provider, region=harness.regions[0])

        vm = provider.create(spec)

        assert vm.host_public_key.split()[:2] == spec.host_public_key.split()[:2]
        assert vm.user == spec.user

    def test_expensive_offers_are_blocked(self, harness: Harness) -> None:
        """An offer above the cap is listed last, with its price and why it cannot be taken."""
        cheap, dear = harness.regions
        harness.set_price(cheap, 0.10)
        harness.set_price(dear, 0.30)

        offers = harness.provider().offers(
            Want(gpu="T4", regions=[dear, cheap], max_price_usd_per_h=0.2)
        )

        free = [offer for offer in offers if not offer.blocked_by]
        assert {offer.region for offer in free} == {cheap}
        assert offers[-1].region == dear
        assert offers[-1].blocked_by != ""

    def test_delete_lists_what_it_removed(self, harness: Harness) -> None:
        """Removed resources are named, the machine among them."""
        _, spec = running(harness)

        removed = harness.provider().delete(spec.run_id)

        assert any("machine" in one.kind for one in removed)
        assert all(one.id for one in removed)

    def test_delete_spares_other_runs(self, harness: Harness) -> None:
        """Deleting one run leaves the machine of another as it is, even of a similar name."""
        running(harness, "contract-a")
        other, _ = running(harness, "contract-a-2")

        harness.provider().delete("contract-a")

        assert [vm.id for vm in harness.provider().list_all()] == [other.id]
        assert harness.provider().observe(other).power is PowerState.RUNNING

    def test_newest_machine_is_listed_first(self, harness: Harness) -> None:
        """All runs are found without any local state, newest first."""
        first, _ = running(harness, "contract-a")
        harness.advance(1.1)
        second, _ = running(harness, "contract-b")

        assert [vm.id for vm in harness.provider().list_all()] == [second.id, first.id]

    def test_deallocated_machine_stops_billing_and_starts_again(self, harness: Harness) -> None:
        """A machine goes down and up again, keeping its identity; doing so twice is silent."""
        vm, spec = running(harness)

        harness.provider().deallocate(vm)
        down = wait_for(harness, vm, PowerState.DEALLOCATED)
        harness.provider().deallocate(vm)
        harness.provider().start(vm)
        wait_for(harness, vm, PowerState.RUNNING)

        assert not down.power.bills_compute
        assert down.stop_reason in {StopReason.USER, StopReason.UNKNOWN}
        (listed,) = harness.provider().list_all()
        assert listed.id == vm.id
        assert listed.host_public_key.split()[:2] == spec.host_public_key.split()[:2]

    def test_create_of_a_deallocated_run_is_the_same_machine(self, harness: Harness) -> None:
        """A create of a run whose machine is down returns that machine and makes no other."""
        vm, spec = running(harness)
        harness.provider().deallocate(vm)

        again = harness.provider().create(spec)

        assert again.id == vm.id
        assert len(harness.provider().list_all()) == 1

    def test_eviction_stops_the_machine_for_a_reason(self, harness: Harness) -> None:
        """A rehearsed eviction ends with the machine down or gone, and is known as an eviction."""
        vm, _ = running(harness)

        harness.provider().evict(vm)
        end = wait_for(harness, vm, PowerState.DEALLOCATED, PowerState.GONE)

        assert end.stop_reason is StopReason.EVICTED
        assert not end.power.bills_compute

    def test_evicted_machine_starts_again(self, harness: Harness) -> None:
        """After an eviction the same machine can be started, and is then not called evicted."""
        vm, _ = running(harness)
        harness.provider().evict(vm)
        wait_for(harness, vm, PowerState.DEALLOCATED)

        harness.provider().start(vm)
        up = wait_for(harness, vm, PowerState.RUNNING)

        assert up.stop_reason is None

    def test_gone_machine_cannot_be_evicted(self, harness: Harness) -> None:
        """Evicting a deleted machine says that it is gone."""
        vm, spec = running(harness)
        harness.provider().delete(spec.run_id)

        with pytest.raises(Gone):
            harness.provider().evict(vm)

    def test_no_capacity_leaves_nothing(self, harness: Harness) -> None:
        """A create without capacity says so and leaves nothing; elsewhere it works at once."""
        full, free = harness.regions
        spec = make_spec(harness.provider(), region=full)
        harness.set_capacity(full, free=False)

        with pytest.raises(NoCapacity):
            harness.provider().create(spec)

        assert harness.provider().list_all() == []
        elsewhere = make_spec(harness.provider(), region=free)
        assert harness.provider().create(elsewhere).region == free

    def test_start_without_capacity_says_so(self, harness: Harness) -> None:
        """A deallocated machine whose region has filled up stays down and can be deleted."""
        vm, spec = running(harness)
        harness.provider().deallocate(vm)
        harness.set_capacity(harness.regions[0], free=False)

        with pytest.raises(NoCapacity):
            harness.provider().start(vm)

        assert harness.provider().observe(vm).power is PowerState.DEALLOCATED
        assert harness.provider().delete(spec.run_id) != []

    def test_price_above_cap_tells_the_price(self, harness: Harness) -> None:
        """A create under a cap below the market is refused with the current price."""
        provider = harness.provider()
        spec = make_spec(provider, region=harness.regions[0], max_price_usd_per_h=0.05)
        harness.set_price(harness.regions[0], 0.31)

        with pytest.raises(PriceAboveCap) as caught:
            harness.provider().create(spec)

        assert caught.value.current_usd_per_h == pytest.approx(0.31)
        assert harness.provider().list_all() == []

    def test_start_above_cap_tells_the_price(self, harness: Harness) -> None:
        """A deallocated machine is not started when its price has risen above its cap."""
        vm, _ = running(harness)
        harness.provider().deallocate(vm)
        harness.set_price(harness.regions[0], 5.5)

        with pytest.raises(PriceAboveCap) as caught:
            harness.provider().start(vm)

        assert caught.value.current_usd_per_h == pytest.approx(5.5)

    def test_price_rise_evicts(self, harness: Harness) -> None:
        """A running machine whose price rises above its cap is taken away."""
        vm, _ = running(harness)

        harness.set_price(harness.regions[0], 5.5)
        end = wait_for(harness, vm, PowerState.DEALLOCATED, PowerState.GONE)

        assert end.stop_reason in {StopReason.PRICE, StopReason.EVICTED}

    def test_several_cards_are_one_machine(self, harness: Harness) -> None:
        """Four cards are offered, made and listed as one machine with the memory of all."""
        provider, region = harness.provider(), harness.regions[0]
        one = make_spec(provider, region=region).offer
        spec = make_spec(provider, region=region, gpu_count=4)

        vm = provider.create(spec)
        wait_for(harness, vm, PowerState.RUNNING)

        four = spec.offer
        assert (four.gpu, four.gpu_count, four.blocked_by) == ("T4", 4, "")
        assert (one.gpu, one.gpu_count) == ("T4", 1)
        assert four.gpu_memory_gb == 4 * one.gpu_memory_gb
        (listed,) = harness.provider().list_all()
        assert (listed.id, listed.size) == (vm.id, four.size)
        assert (card_count(listed), card_count(vm)) == (4, 4)

    def test_cap_and_price_are_those_of_all_cards_together(self, harness: Harness) -> None:
        """A cap that would do for one card blocks a machine with four, and refuses to make it."""
        provider, region = harness.provider(), harness.regions[0]
        spec = make_spec(provider, region=region, gpu_count=4)
        price = spec.offer.spot_usd_per_h
        cap = round(0.9 * price, 5)

        capped = provider.offers(
            Want(gpu="T4", gpu_count=4, regions=[region], max_price_usd_per_h=cap)
        )

        assert make_spec(provider, region=region).offer.spot_usd_per_h < cap
        assert all("above the cap" in offer.blocked_by for offer in capped)
        with pytest.raises(PriceAboveCap) as caught:
            provider.create(dataclasses.replace(spec, max_price_usd_per_h=cap))
        assert caught.value.current_usd_per_h == pytest.approx(price)
        assert harness.provider().list_all() == []

    def test_next_generation_is_another_machine(self, harness: Harness) -> None:
        """After a delete, the run gets a new machine, and the old one stays gone."""
        old, spec = running(harness)
        harness.provider().delete(spec.run_id)

        provider = harness.provider()
        again = make_spec(provider, region=harness.regions[0], generation=2)
        new = provider.create(again)

        assert new.generation == 2
        assert new.host_public_key.split()[:2] == again.host_public_key.split()[:2]
        assert [vm.generation for vm in harness.provider().list_all()] == [2]
        if new.id != old.id:
            assert harness.provider().observe(old).power is PowerState.GONE
