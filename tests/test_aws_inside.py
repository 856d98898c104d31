"""On EC2 the host key of the user data is replaced, and a limit outlives a restart by EC2."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from ec2.guests import Ec2Guests
from ec2.harness import AwsHarness, aws, spec
from support.azure_login import TIMEOUT_S, enter
from support.runs import wait_until

from commands.runs.power_watch import PowerWatch
from commands.runs.workload import SshWorkload
from infra.provider import Vm
from infra.run.fold import apply, fold
from infra.run.host_key import change_host_key
from infra.run.journal import Event, Journal, Kind
from remote import keys
from remote.errors import HostKeyMismatch

PACE = 60.0


@pytest.fixture
def guests(tmp_path: Path) -> Ec2Guests:
    """Room for a real machine, whose program looks many times a second."""
    return Ec2Guests(tmp_path / "guests", pace=PACE, hurry=("--every-s", "0.1"))


@pytest.fixture
def harness(tmp_path: Path, guests: Ec2Guests) -> Iterator[AwsHarness]:
    """An account whose machines boot from the data that they were launched with."""
    with aws(tmp_path / "state", hypervisor=guests) as harness:
        yield harness


def rent(harness: AwsHarness, folder: Path) -> Vm:
    """A machine that the provider made; its keys lie in the folder."""
    public, host = keys.generate(folder / "user"), keys.generate(folder / "host")
    private = (folder / "host").read_text()
    provider = harness.provider()
    vm = provider.create(spec(public_key=public, host_private_key=private, host_public_key=host))
    harness.advance(60)
    vm = at_its_address(harness, vm)
    enter(vm, folder / "user", host).close()  # it has booted
    return vm


def at_its_address(harness: AwsHarness, vm: Vm) -> Vm:
    """The machine at the address that it has now."""
    seen = harness.provider().observe(vm)
    assert seen.host, seen
    return Vm(**{**asdict(vm), "host": seen.host, "port": seen.port, "power": seen.power})


def workload(folder: Path) -> SshWorkload:
    """As much of a workload as these tests use."""
    config = SimpleNamespace(
        on_message=lambda _text: None,
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        rents=True,
        brings_home=False,
        layout=SimpleNamespace(run_dir="r"),
        key_path=folder / "user",
        home=folder,
        power_watch=PowerWatch(lambda _vm: ""),
    )
    return SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used


def test_key_of_the_user_data_is_worth_nothing_after_the_first_connection(
    harness: AwsHarness, tmp_path: Path
) -> None:
    """Whoever reads the user data later has a key that no machine presents, not even restarted."""
    vm = rent(harness, tmp_path)
    assert vm.host_key_is_readable
    journal = Journal(tmp_path / "journal.jsonl", clock=time.time)
    states = [fold([journal.append(Kind.CREATE_ACCEPTED, vm=asdict(vm))])]

    def record(kind: Kind, **data: object) -> Event:
        event = journal.append(kind, **data)
        states.append(apply(states[-1], event))
        return event

    def machine() -> Vm:
        assert states[-1].vm is not None
        return states[-1].vm

    work = workload(tmp_path)
    assert change_host_key(work, machine, record) == ""
    work.disconnect()
    harness.provider().deallocate(machine())
    harness.advance(60)
    harness.provider().start(machine())
    harness.advance(120)
    after = at_its_address(harness, machine())

    assert after.host_public_key != keys.plain_line(vm.host_public_key)
    enter(after, tmp_path / "user", after.host_public_key).close()
    with pytest.raises(HostKeyMismatch):
        enter(after, tmp_path / "user", vm.host_public_key)


def test_limit_ends_a_machine_that_ec2_has_started_again(
    harness: AwsHarness, guests: Ec2Guests, tmp_path: Path
) -> None:
    """With everything of ours dead and no role: by its own `shutdown`, and EC2 leaves it so."""
    vm = rent(harness, tmp_path)
    work = workload(tmp_path)
    work.set_time_limit(vm, TIMEOUT_S * 10)
    work.disconnect()
    (machine,) = harness.cloud.machines()
    harness.cloud.interrupt(machine, notice_s=0)
    harness.advance(60)
    assert machine.state == "stopped"

    limit = guests.directory / machine.id / "disk" / "qft" / "limit"
    limit.write_text("1000\n")  # the budget ended meanwhile
    guests.hurry = ("--every-s", "0.1", "--boot-at", str(time.time() + 1), "--old-limit-s", "1")
    harness.advance(600)
    wait_until(lambda: machine.reason_code == "Client.InstanceInitiatedShutdown")
    with harness.cloud.world.lock:  # until that shutdown is recorded as a whole
        pass
    harness.advance(3600)

    request = harness.cloud.world.request_of(machine)
    assert request is not None
    assert (machine.state, request.state) == ("stopped", "disabled")
    assert not any(line.startswith("compute") for line in harness.cloud.ledger.billing())
