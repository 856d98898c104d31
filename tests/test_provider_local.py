"""The spot cloud on this computer keeps the promises of every provider, and its own."""

from __future__ import annotations

import errno
import importlib.util
import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.contract import Harness, RentingContract, make_spec, running, wait_for
from support.local_cloud import LocalHarness

from infra.durable import locked
from infra.errors import BadRequest, Gone, NotAllowed, Transient
from infra.local.machine import SYSTEM_PATH
from infra.local.processes import MARK
from infra.local.provider import LocalSettings
from infra.offer import Want
from infra.provider import PowerState, StopReason


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[LocalHarness]:
    """A fresh cloud whose evictions come without notice."""
    cloud = LocalHarness(tmp_path / "local", LocalSettings(notice_s=0))
    yield cloud
    cloud.close()


class TestLocal(RentingContract):
    """LocalProvider joins the contract."""

    @pytest.fixture
    def harness(self, cloud: LocalHarness) -> Harness:
        """The fresh cloud."""
        return cloud


def test_offers_name_the_gpu_and_mark_simulated_prices(cloud: LocalHarness) -> None:
    """Two regions offer the GPU that was asked for, at the catalog's price, marked as played."""
    provider = cloud.provider()

    offers = provider.offers(Want(gpu="A10G"))

    assert [(one.region, one.size, one.gpu) for one in offers] == [
        ("local-1", "local-gpu", "A10G"),
        ("local-2", "local-gpu", "A10G"),
    ]
    assert {one.spot_usd_per_h for one in offers} == {0.503}
    assert {one.price_source for one in offers} == {"catalog, simulated"}
    assert provider.traits.simulated_prices


def test_offers_keep_the_order_wanted(cloud: LocalHarness) -> None:
    """Named regions come in the user's order, unnamed ones cheapest first."""
    cloud.set_price("local-1", 0.3)
    cloud.set_price("local-2", 0.2)
    provider = cloud.provider()

    named = provider.offers(Want(regions=["local-1", "local-2", "atlantis"]))

    assert [one.region for one in named] == ["local-1", "local-2", "atlantis"]
    assert "no region" in named[-1].blocked_by
    assert [one.region for one in provider.offers(Want())] == ["local-2", "local-1"]


def test_unknown_gpu_is_refused(cloud: LocalHarness) -> None:
    """A GPU that is in no catalog is refused with the names that are."""
    with pytest.raises(BadRequest, match="T5") as caught:
        cloud.provider().offers(Want(gpu="T5"))

    assert "known: T4, A10" in caught.value.hint


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "A", "-a", "a" * 41, "a\n"])
def test_run_id_is_a_name(cloud: LocalHarness, run_id: str) -> None:
    """What is no plain name never becomes a path."""
    provider = cloud.provider()
    spec = replace(make_spec(provider, region="local-1"), run_id=run_id)

    with pytest.raises(BadRequest, match="run id"):
        provider.create(spec)
    with pytest.raises(BadRequest, match="run id"):
        provider.delete(run_id)

    assert not cloud.root.exists()


def test_missing_server_is_explained(cloud: LocalHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the embedded SSH server nothing is made, and the hint installs it."""
    provider = cloud.provider()
    spec = make_spec(provider, region="local-1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(NotAllowed) as caught:
        provider.create(spec)

    assert "pip install 'qft[local]'" in caught.value.hint
    assert provider.list_all() == []


def test_create_returns_before_the_machine_answers(cloud: LocalHarness) -> None:
    """A machine that is slow to boot is handed out at once, without an address."""
    cloud.settings = LocalSettings(boot_s=3600.0)
    provider = cloud.provider()

    vm = provider.create(make_spec(provider, region="local-1"))

    assert (vm.power, vm.host) == (PowerState.CREATING, "")
    assert provider.observe(vm).power is PowerState.CREATING


def test_slow_machine_comes_up_when_its_time_has_come(cloud: LocalHarness) -> None:
    """Booting takes at least as long as was said, and then the machine has an address."""
    cloud.settings = LocalSettings(boot_s=0.5)
    provider = cloud.provider()
    began_s = time.monotonic()

    vm = provider.create(make_spec(provider, region="local-1"))

    assert wait_for(cloud, vm, PowerState.RUNNING).host == "127.0.0.1"
    assert time.monotonic() - began_s >= 0.5


def test_script_evicts_boot_after_boot(cloud: LocalHarness) -> None:
    """The script's first entry ends the first boot, its second the second, then no more."""
    cloud.settings = LocalSettings(notice_s=0, evict_after_s=[0.3, 0.4])
    provider = cloud.provider()
    vm = provider.create(make_spec(provider, region="local-1"))

    for _ in range(2):
        end = wait_for(cloud, vm, PowerState.DEALLOCATED)
        assert (end.stop_reason, end.detail) == (StopReason.EVICTED, "scripted")
        provider.start(vm)
    wait_for(cloud, vm, PowerState.RUNNING)
    time.sleep(0.6)

    assert provider.observe(vm).power is PowerState.RUNNING


def test_script_counts_on_over_generations(cloud: LocalHarness) -> None:
    """A second machine of a run does not begin the script again."""
    cloud.settings = LocalSettings(notice_s=0, evict_after_s=[0.3])
    provider = cloud.provider()

    vm = provider.create(make_spec(provider, region="local-1", generation=2))
    wait_for(cloud, vm, PowerState.RUNNING)
    time.sleep(0.6)

    assert provider.observe(vm).power is PowerState.RUNNING


def test_notice_belongs_to_the_machine(cloud: LocalHarness) -> None:
    """How long an eviction is announced was settled when the machine was made."""
    vm, _ = running(cloud)
    cloud.settings = LocalSettings(notice_s=300)

    cloud.provider().evict(vm)

    wait_for(cloud, vm, PowerState.DEALLOCATED)


def test_machine_runs_through_its_notice(cloud: LocalHarness) -> None:
    """An announced eviction leaves the machine running until its time."""
    cloud.settings = LocalSettings(notice_s=300)
    vm, _ = running(cloud)

    cloud.provider().evict(vm)
    time.sleep(0.2)

    assert cloud.provider().observe(vm).power is PowerState.RUNNING


def test_crashed_machine_is_down_and_says_why(cloud: LocalHarness) -> None:
    """A machine whose process vanished is deallocated by failure since when it was last seen."""
    vm, _ = running(cloud)
    record = json.loads((cloud.root / "vms" / vm.run_id / "guest.json").read_text())
    orders = json.loads((cloud.root / "vms" / vm.run_id / "orders.json").read_text())
    psutil.Process(record["pid"]).kill()

    end = wait_for(cloud, vm, PowerState.DEALLOCATED)

    assert end.stop_reason is StopReason.FAILED
    assert end.since > orders["since"]  # its trace may be a moment older than its first word
    assert "restarts" in end.detail


def test_stale_machine_is_gone(cloud: LocalHarness) -> None:
    """A machine value of an earlier machine of the run does not reach the new one."""
    old, spec = running(cloud)
    cloud.provider().delete(spec.run_id)
    new, _ = running(cloud)

    assert cloud.provider().observe(old).power is PowerState.GONE
    with pytest.raises(Gone):
        cloud.provider().deallocate(old)
    assert cloud.provider().observe(new).power is PowerState.RUNNING


def test_read_only_remains_are_removed(cloud: LocalHarness, tmp_path: Path) -> None:
    """What a job made read-only does not stop a delete, and what it linked to is not touched."""
    _, spec = running(cloud)
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o555)
    (outside / "kept").touch()
    disk = cloud.root / "vms" / spec.run_id / "disk"
    (disk / "link").symlink_to(outside)
    (disk / "cache" / "inner").mkdir(parents=True)
    (disk / "cache" / "inner" / "file").touch(mode=0o400)
    (disk / "cache" / "inner").chmod(0o500)
    (disk / "cache").chmod(0o000)

    assert cloud.provider().delete(spec.run_id) != []
    assert list((cloud.root / "trash").iterdir()) == []
    assert (outside.stat().st_mode & 0o777, (outside / "kept").exists()) == (0o555, True)


def test_what_a_dying_job_makes_again_is_removed_too(cloud: LocalHarness) -> None:
    """A job that goes on writing under its home's name until it is killed leaves nothing behind."""
    _, spec = running(cloud)
    home = cloud.root / "vms" / spec.run_id / "disk"
    mark = json.loads((home.parent / "spec.json").read_text())["mark"]
    made = home / "again"
    again = f"while :; do mkdir -p {shlex.quote(str(made))}; done"
    job = subprocess.Popen(["/bin/sh", "-c", again], env={MARK: mark, "PATH": SYSTEM_PATH})
    try:
        while not made.exists():
            time.sleep(0.001)
        removed = cloud.provider().delete(spec.run_id)
    finally:
        job.kill()
        job.wait()

    assert [one.kind for one in removed] == ["virtual machine", "disk"]
    assert cloud.provider().list_all() == []
    assert not home.parent.exists()


def test_full_disk_can_be_cleared(cloud: LocalHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete writes nothing, so that it works when there is no space to write."""
    vm, spec = running(cloud)

    def refuse(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("infra.local.machine.write_json", refuse)
        full.setattr("infra.local.provider.write_json", refuse)
        with pytest.raises(Transient, match="No space left"):
            cloud.provider().deallocate(vm)
        removed = cloud.provider().delete(spec.run_id)

    assert [one.kind for one in removed] == ["virtual machine", "disk"]


def test_files_are_private(cloud: LocalHarness) -> None:
    """Nobody else on this computer can read the machine's key or its disk."""
    running(cloud)

    directory = cloud.root / "vms" / "contract-a"
    modes = {path.name: path.stat().st_mode & 0o077 for path in [directory, *directory.iterdir()]}
    assert {name for name, open_to_others in modes.items() if open_to_others} == set()


def test_host_key_is_in_one_file_only(cloud: LocalHarness) -> None:
    """The private host key is where the machine needs it and nowhere else."""
    running(cloud)

    holders = [path.name for path in cloud.root.rglob("*.*") if b"PRIVATE" in path.read_bytes()]
    assert holders == []
    assert b"PRIVATE" in (cloud.root / "vms" / "contract-a" / "host_key").read_bytes()


def test_held_lock_is_a_hiccup(cloud: LocalHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who finds another at work for too long is told who that is, and to come back."""
    vm, _ = running(cloud)
    monkeypatch.setattr("infra.local.provider.LOCK_TIMEOUT_S", 0.1)

    with locked(cloud.root / "lock"), pytest.raises(Transient, match="process") as caught:
        cloud.provider().deallocate(vm)

    assert caught.value.retry_after_s == 1.0
