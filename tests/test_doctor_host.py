"""`qft doctor` goes all the way to an own machine: key, login, SFTP, Python, disk and GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.sshd import Sshd, serve

from commands.runs.checks import Check, exit_code
from commands.runs.home import RunFolder
from commands.runs.ssh_host_checks import check_host
from infra.config import VmTable
from remote import keys
from remote.setup import facts as setup_facts
from remote.ssh import connect

TYPES = ("rsa", "ecdsa", "ed25519")


def table(server: Sshd, **overrides: object) -> VmTable:
    """The table `vm` of that server, with other fields."""
    ssh = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "key": str(server.client_key),
        "host_key": server.host_key,
        "gpu": False,
        "python": sys.executable,
    }
    return VmTable.model_validate({"provider": "ssh", "ssh": ssh | overrides})


def seen(vm: VmTable, folder: Path) -> dict[str, Check]:
    """What was looked at, by name."""
    return {check.name: check for check in check_host(vm, RunFolder(root=folder))}


def test_a_good_machine_is_looked_at_whole(tmp_path: Path) -> None:
    """Everything that a run needs is looked at, and nothing is left there."""
    with serve(tmp_path / "server") as server:
        checks = seen(table(server), tmp_path)
        left = list(server.home.iterdir())

    assert list(checks) == [
        "host key", "sign-in", "login shell", "sftp", "python there", "disk there", "gpu there"
    ]  # fmt: skip
    assert [check for check in checks.values() if check.failed] == []
    assert ".".join(map(str, sys.version_info[:2])) in checks["python there"].detail
    assert "GB free" in checks["disk there"].detail
    assert exit_code([*checks.values()]) == 0
    assert left == []


BROKEN: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("sftp", {"subsystem": None}, {}, "the server has no SFTP"),
    ("login shell", {"login": "/bin/false"}, {}, "before our command"),
    ("sign-in", {}, {"user": "no-such-user"}, "for user `no-such-user`"),
    ("host key", {}, {"host_key": keys.pair()[1]}, "not the pinned one"),
    ("host", {}, {"port": 1}, "Connection refused"),
    ("python there", {}, {"python": "/nowhere/python"}, "ends with exit code 127"),
    ("python there", {}, {"python": "/bin/false"}, "ends with exit code 1"),
]


@pytest.mark.parametrize(
    ("name", "how", "overrides", "expected"),
    BROKEN,
    ids=[f"{name}-{expected}" for name, _, _, expected in BROKEN],
)
def test_what_stands_in_the_way_is_named_with_its_fix(
    tmp_path: Path, name: str, how: dict[str, Any], overrides: dict[str, Any], expected: str
) -> None:
    """The step that fails says what is wrong there and what to do; the machine's faults exit 4."""
    with serve(tmp_path / "server", **how) as server:
        checks = seen(table(server, **overrides), tmp_path)

    failed = [check for check in checks.values() if check.failed]
    assert [check.name for check in failed] == [name]
    assert expected in failed[0].detail
    assert failed[0].fix
    assert exit_code([*checks.values()]) == 4


def test_the_key_of_the_pinned_type_is_requested(tmp_path: Path) -> None:
    """A server with keys of several types shows the pinned one, whichever that is."""
    lines = {}
    for kind in TYPES:
        path = tmp_path / kind
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)
        lines[kind] = path.with_suffix(".pub").read_text().strip()
    config = "".join(f"HostKey {tmp_path / kind}\n" for kind in TYPES)
    config += "HostKeyAlgorithms rsa-sha2-256,ecdsa-sha2-nistp256,ssh-ed25519\n"
    with serve(tmp_path / "server", config=config) as server:
        for kind, line in lines.items():
            if kind == "ed25519":
                continue  # the first of that type is the server's own, tried below
            assert seen(table(server, host_key=line), tmp_path)["host key"].ok
            with connect(server.host(host_key=line)) as connection:
                assert connection.alive
        assert seen(table(server), tmp_path)["host key"].ok


def test_a_pin_of_a_type_that_the_server_has_no_more_is_reported(tmp_path: Path) -> None:
    """The detail says that the type is gone, rather than only that keys differ."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(tmp_path / "rsa")], check=True
    )
    with serve(tmp_path / "server") as server:
        line = (tmp_path / "rsa.pub").read_text()
        check = seen(table(server, host_key=line), tmp_path)["host key"]

    assert "it has no key of the pinned type ssh-rsa" in check.detail
    assert check.exit_code == 4


def test_gpus_are_reported_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that answers, one without a driver, one that is not used and none, each in words."""
    gpu = setup_facts.DetectedGpu(
        name="NVIDIA L4", driver="570.1", memory_mb=23034, capability="8.9"
    )
    facts = {
        "NVIDIA L4 with 22 GB, driver 570.1": (setup_facts.Facts(gpus=(gpu,)), True),
        "`vm.ssh.gpu` is false": (setup_facts.Facts(gpus=(gpu,)), False),
        "1 on the bus, and no driver answers": (setup_facts.Facts(pci_gpus=1), True),
        "there is no NVIDIA card": (setup_facts.Facts(), True),
        "none, and none is asked for": (setup_facts.Facts(), False),
    }
    with serve(tmp_path / "server") as server:
        for expected, (found, wanted) in facts.items():
            monkeypatch.setattr(setup_facts, "gather_facts", lambda _, found=found: found)

            assert expected in seen(table(server, gpu=wanted), tmp_path)["gpu there"].detail
