"""A machine of the user's is used, never rented, and never touched by what we forget."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.contract import Harness, ProviderContract, make_spec, openssh_keys

from infra.errors import BadRequest, Transient
from infra.offer import Want
from infra.provider import PowerState, Provider
from infra.ssh_host import SshHostProvider, SshHostSettings


class HostHarness:
    """A port on loopback that answers, and a directory for what is remembered."""

    regions = ("yours", "yours")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.settings = SshHostSettings(
            host="127.0.0.1",
            port=self.listener.getsockname()[1],
            user="somebody",
            host_public_key=openssh_keys()[1],
        )

    def provider(self) -> Provider:
        """A provider that knows the settings and the directory."""
        return SshHostProvider(self.root, self.settings, connect_timeout_s=60.0)

    def advance(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Answer no more, and keep the port, so that nobody else answers there."""
        self.listener.close()
        with socket.socket() as mute:
            mute.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mute.bind(("127.0.0.1", self.settings.port))
            yield

    def set_capacity(self, region: str, *, free: bool) -> None:
        """Refuse: a machine of one's own has no market."""
        raise NotImplementedError

    def set_price(self, region: str, usd_per_h: float) -> None:
        """Refuse: a machine of one's own has no market."""
        raise NotImplementedError


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[HostHarness]:
    """A host that answers."""
    harness = HostHarness(tmp_path / "host")
    yield harness
    harness.listener.close()


class TestHost(ProviderContract):
    """HostProvider joins the part of the contract that is not about renting."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
        """A host that answers."""
        harness = HostHarness(tmp_path / "host")
        yield harness
        harness.listener.close()


def test_host_is_the_one_in_the_settings(harness: HostHarness) -> None:
    """Address, user and pinned key come from the settings; the price is nothing."""
    provider = harness.provider()

    vm = provider.create(make_spec(provider, region="yours"))

    settings = harness.settings
    assert (vm.host, vm.port, vm.user) == (settings.host, settings.port, settings.user)
    assert vm.host_public_key == settings.host_public_key
    assert vm.price_usd_per_h == 0.0
    assert not provider.traits.rents


def test_silent_host_is_refused(harness: HostHarness) -> None:
    """A machine that does not answer is not taken, and nothing is remembered."""
    provider = harness.provider()
    spec = make_spec(provider, region="yours")

    with harness.silence(), pytest.raises(Transient, match="does not answer") as caught:
        provider.create(spec)

    assert "run.yaml" in caught.value.hint
    assert provider.list_all() == []


def test_host_that_falls_silent_is_down(harness: HostHarness) -> None:
    """A machine that stops answering is seen as down, and starting it is its owner's work."""
    provider = harness.provider()
    vm = provider.create(make_spec(provider, region="yours"))

    with harness.silence():
        assert provider.observe(vm).power is PowerState.DEALLOCATED
        with pytest.raises(Transient):
            provider.start(vm)
        provider.deallocate(vm)


def test_delete_lists_nothing(harness: HostHarness) -> None:
    """Forgetting a machine removes nothing, so nothing is listed; other runs keep it."""
    provider = harness.provider()
    provider.create(make_spec(provider, "run-a", region="yours"))
    kept = provider.create(make_spec(provider, "run-b", region="yours"))

    assert provider.delete("run-a") == []
    assert [vm.run_id for vm in provider.list_all()] == [kept.run_id]


def test_eviction_is_refused(harness: HostHarness) -> None:
    """Nobody can rehearse an eviction of a machine that nobody can evict."""
    provider = harness.provider()
    vm = provider.create(make_spec(provider, region="yours"))

    with pytest.raises(BadRequest, match="never evicted"):
        provider.evict(vm)


def test_damaged_memory_is_named(harness: HostHarness) -> None:
    """A file that cannot be read is refused by name, with what to do."""
    provider = harness.provider()
    harness.root.mkdir()
    (harness.root / "hosts.json").write_text("[]")

    with pytest.raises(BadRequest, match=r"hosts\.json"):
        provider.list_all()


def test_the_offer_takes_any_gpu(harness: HostHarness) -> None:
    """Whatever GPU is wanted, there is one machine, and it is free of charge."""
    (offer,) = harness.provider().offers(Want(gpu="B300", max_price_usd_per_h=0.01))

    assert (offer.spot_usd_per_h, offer.blocked_by) == (0.0, "")


def test_what_a_provider_lacks_does_nothing(harness: HostHarness) -> None:
    """Without safeguards, firewall, price cap or log, nothing is set, missing, changed or known."""
    provider = harness.provider()
    vm = provider.create(make_spec(provider, region="yours"))

    assert provider.traits.has_safeguards is False
    assert provider.set_safeguards(vm, until_s=1.0) == []
    assert provider.preview_safeguards(Want(), until_s=1.0) == []
    assert provider.allow_caller_ip(vm) is False
    assert provider.update_max_price(vm, 0.5) == 0.5
    assert provider.stop_reason_from_log(vm, after_s=0.0, before_s=1.0) is None
    assert provider.billed_until_s(vm) is None
