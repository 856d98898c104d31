"""A machine rented from the simulated cloud is a real one: pinned key, own disk, real evictions."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import LocalHypervisor
from arm.harness import AzureHarness, azure, spec
from support.azure_login import TIMEOUT_S, enter

from infra.provider import PowerState
from remote import keys
from remote.errors import HostKeyMismatch


@pytest.fixture
def hypervisor(tmp_path: Path) -> LocalHypervisor:
    """Room for real machines."""
    return LocalHypervisor(tmp_path / "guests")


@pytest.fixture
def harness(tmp_path: Path, hypervisor: LocalHypervisor) -> Iterator[AzureHarness]:
    """A cloud whose machines are real processes."""
    with azure(tmp_path / "state", hypervisor=hypervisor) as harness:
        yield harness


def test_machine_lives_through_an_eviction(harness: AzureHarness, tmp_path: Path) -> None:
    """The pinned key answers, the notice comes, the disk outlives the eviction, delete ends all."""
    public = keys.generate(tmp_path / "user")
    host_public = keys.generate(tmp_path / "host")
    vm = harness.provider().create(
        spec(
            public_key=public,
            host_private_key=(tmp_path / "host").read_text(),
            host_public_key=host_public,
        )
    )
    (listed,) = harness.provider(state_dir=tmp_path / "elsewhere").list_all()
    with enter(listed, tmp_path / "user", listed.host_public_key) as connection:
        assert (
            connection.run("echo kept > note; hostname; cat note", timeout_s=TIMEOUT_S).exit_code
            == 0
        )
    with pytest.raises(HostKeyMismatch):
        enter(vm, tmp_path / "user", keys.generate(tmp_path / "other"))

    harness.cloud.evict(harness.cloud.machines()[0], notice_s=300.0)
    harness.cloud.world.run_due()

    assert notice(listed.metadata_url) == "Preempt"
    harness.advance(301)
    seen = harness.provider().observe(vm)
    assert (seen.power, harness.cloud.ledger.billing("compute")) == (PowerState.DEALLOCATED, [])
    harness.provider().start(vm)
    with enter(vm, tmp_path / "user", host_public) as connection:
        assert connection.run("cat note", timeout_s=TIMEOUT_S).stdout.strip() == "kept"
    harness.provider().delete(vm.run_id)
    assert harness.cloud.ledger.billing() == []
    assert list((tmp_path / "guests").iterdir()) == []


def notice(metadata_url: str) -> str:
    """The kind of event that the machine's metadata service announces, waiting for one."""
    request = urllib.request.Request(  # noqa: S310  (loopback)
        f"{metadata_url}/metadata/scheduledevents?api-version=2020-07-01",
        headers={"Metadata": "true"},
    )
    ends_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends_s:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            events = json.load(answer)["Events"]
        if events:
            return str(events[0]["EventType"])
        time.sleep(0.05)
    return ""
