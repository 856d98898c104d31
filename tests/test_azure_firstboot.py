"""First-boot data is what cloud-init takes, and a machine that boots from it looks after itself."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm import LocalHypervisor
from arm.harness import HOST_PRIVATE, HOST_PUBLIC, AzureHarness, azure, spec
from arm.operations import versions_of
from arm.replies import Request
from metal import firstboot
from metal.machine import Metal
from metal.units import log, running
from support.runs import wait_until

from infra.azure import deallocate_self
from infra.azure.cloudinit import custom_data, self_release_text
from remote import keys

PACE = 60.0
UNIT = "qft-watch.service"
WATCH = "usr/local/lib/qft-watch.py"


@pytest.fixture
def hypervisor(tmp_path: Path) -> LocalHypervisor:
    """Room for real machines."""
    return LocalHypervisor(tmp_path / "guests", pace=PACE)


@pytest.fixture
def harness(tmp_path: Path, hypervisor: LocalHypervisor) -> Iterator[AzureHarness]:
    """A cloud whose machines boot from the data that they were made with."""
    with azure(tmp_path / "state", hypervisor=hypervisor) as harness:
        yield harness


def booted(harness: AzureHarness, hypervisor: LocalHypervisor, folder: Path) -> Metal:
    """A machine of the product's own making, when its first boot is over."""
    public, host = keys.generate(folder / "user"), keys.generate(folder / "host")
    private = (folder / "host").read_text()
    harness.provider().create(
        spec(public_key=public, host_private_key=private, host_public_key=host)
    )
    (metal,) = hypervisor.metals.values()
    wait_until(lambda: not metal.store.read().booting)
    return metal


def output(metal: Metal) -> str:
    """What the watchdog has said; its log is there a moment after it was started."""
    path = log(metal.store, UNIT)
    return path.read_text() if path.exists() else ""


def test_first_boot_data_is_what_cloud_init_takes() -> None:
    """Known keys, commands, files with octal modes; the host key survives the way through YAML."""
    made = custom_data(
        host_private_key=HOST_PRIVATE,
        host_public_key=HOST_PUBLIC,
        self_release_arguments=["--home", '/home/it\'s "qft"'],
    )

    document = firstboot.parsed(made)
    machine = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v"
    (version,) = versions_of(Request(method="POST", path=f"{machine}/deallocate", query={}))

    assert document["ssh_keys"] == {"ed25519_private": HOST_PRIVATE, "ed25519_public": HOST_PUBLIC}
    files = {one["path"].removeprefix("/"): one for one in document["write_files"]}
    script = files[WATCH]["content"]
    assert script == self_release_text()
    assert "deallocate?api-version={API_VERSION}" in script
    assert f'API_VERSION = "{version}"' in script
    assert deallocate_self.API_VERSION not in script
    assert document["runcmd"] == [["systemctl", "enable", "--now", UNIT]]


@pytest.mark.parametrize(
    ("document", "offence"),
    [
        ({"run_cmd": ["true"]}, "`run_cmd` is not known"),
        ({"runcmd": "true"}, "`runcmd` is not known, or not a list"),
        ({"runcmd": [["sleep", 5]]}, "no command"),
        ({"write_files": [{"path": "/a", "permissions": 644, "content": ""}]}, "no file"),
        ({"write_files": [{"path": "a", "permissions": "0644", "content": ""}]}, "no file"),
        ({"ssh_keys": {"ed25519": "x"}}, "no host key"),
    ],
)
def test_what_cloud_init_would_not_take_is_refused(document: dict[str, Any], offence: str) -> None:
    """A misspelt key or a number for a word fails the test, where cloud-init would only log it."""
    text = f"#cloud-config\n{json.dumps(document)}".encode()

    with pytest.raises(ValueError, match=offence):
        firstboot.parsed(base64.b64encode(text).decode())


def test_data_without_its_first_line_is_no_cloud_config() -> None:
    """Without `#cloud-config` on top, cloud-init ignores all of it."""
    with pytest.raises(ValueError, match="first line"):
        firstboot.parsed(base64.b64encode(b"{}").decode())


def test_machine_starts_from_its_data_alone(
    harness: AzureHarness, hypervisor: LocalHypervisor, tmp_path: Path
) -> None:
    """Files and host key lie there with their modes; the watchdog is enabled and runs."""
    metal = booted(harness, hypervisor, tmp_path)
    root = metal.directory / "root"

    modes = {
        name: stat.S_IMODE((root / name).stat().st_mode)
        for name in ("etc/ssh/ssh_host_ed25519_key", f"etc/systemd/system/{UNIT}", WATCH)
    }

    assert sorted(modes.values()) == [0o600, 0o644, 0o755]
    assert (root / f"etc/systemd/system/multi-user.target.wants/{UNIT}").exists()
    assert metal.done() == [f"systemctl enable {UNIT}"]
    assert running(metal.store, UNIT)


def test_self_release_is_there_again_after_its_death_and_after_a_reboot(
    harness: AzureHarness, hypervisor: LocalHypervisor, tmp_path: Path
) -> None:
    """What ends it does so for a minute only, and every boot starts it, with no help from us."""
    hypervisor.hurry = ("--once", "--idle-s", "0")  # it ends at once, as if it had crashed
    metal = booted(harness, hypervisor, tmp_path)
    (vm,) = harness.cloud.machines()
    wait_until(lambda: output(metal).count("giving") > 1)
    provider = harness.provider()
    provider.set_safeguards(provider.list_all()[0], until_s=harness.cloud.clock.now() + 3600)
    hypervisor.hurry = ("--every-s", "0.05", "--idle-s", "0")

    metal.as_root(str(metal.programs / "reboot"), environ={})

    wait_until(lambda: vm.hidden["power"] == "deallocating")
    assert metal.store.read().boot_count == 2
    assert metal.done() == [f"systemctl enable {UNIT}", "reboot"]


def test_machine_that_shuts_itself_down_goes_on_billing(
    harness: AzureHarness, hypervisor: LocalHypervisor, tmp_path: Path
) -> None:
    """On Azure a shutdown from inside makes the machine `stopped`, which does not release it."""
    metal = booted(harness, hypervisor, tmp_path)
    (vm,) = harness.cloud.machines()

    metal.as_root(str(metal.programs / "shutdown"), "-h", "now", environ={})

    wait_until(lambda: vm.hidden["power"] == "stopped")
    assert hypervisor.processes(vm) == 0
    assert any(line.startswith("compute") for line in harness.cloud.ledger.billing())


def test_first_boot_that_fails_is_reported_by_cloud_init(
    harness: AzureHarness,
    hypervisor: LocalHypervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the watchdog cannot be started, `cloud-init status` says error, and set-up refuses."""
    monkeypatch.setattr(
        "infra.renting.first_boot._UNIT", "[Service]\nExecStart={path} {arguments}\n"
    )

    metal = booted(harness, hypervisor, tmp_path)

    assert "Runparts: 1 failures (runcmd)" in metal.store.read().cloud_init_error
