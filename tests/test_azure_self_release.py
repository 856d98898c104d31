"""A machine that nobody needs gives itself back, with every laptop dead, and only itself."""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from arm.harness import AzureHarness, azure, spec

from commands.runs.workload import SshWorkload
from infra.azure.cloudinit import self_release_text
from infra.azure.deallocate_self import deallocate_self
from infra.provider import Vm
from infra.renting.first_boot import one_file
from infra.renting.self_release import (
    booted_s,
    is_over,
    last_activity_s,
    limit_of,
    ssh_sessions,
    why_end,
)

LIST = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[AzureHarness]:
    """A cloud with a machine that may give itself back."""
    with azure(tmp_path / "state") as harness:
        yield harness


def run_once(harness: AzureHarness, home: Path, script: Path, *more: str) -> int:
    """Run the shipped script once, as the machine would, and return its exit code."""
    base = harness.cloud.server.base
    argv = [sys.executable, "-I", str(script), "--home", str(home), "--once"]
    argv += ["--imds", base, "--arm", base, *more]
    environment = {"SSL_CERT_FILE": str(harness.cloud.server.ca_file)}
    return subprocess.run(argv, env=environment, check=False, timeout=300).returncode


def shipped(harness: AzureHarness, tmp_path: Path) -> Path:
    """The script as it travelled in the first-boot data."""
    request = next(
        r for r in harness.cloud.requests if r.method == "PUT" and "/virtualMachines/" in r.path
    )
    data = request.body["properties"]["osProfile"]["customData"]
    document = json.loads(base64.b64decode(data).decode().removeprefix("#cloud-config\n"))
    assert document["runcmd"] == [["systemctl", "enable", "--now", "qft-watch.service"]]
    files = {one["path"]: one["content"] for one in document["write_files"]}
    assert "--home /home/qft" in files["/etc/systemd/system/qft-watch.service"]
    assert "ClientAliveInterval" in files["/etc/ssh/sshd_config.d/60-qft.conf"]
    script = tmp_path / "watch.py"
    script.write_text(files["/usr/local/lib/qft-watch.py"])
    return script


def test_machine_gives_itself_back(harness: AzureHarness, tmp_path: Path) -> None:
    """Past the limit that the laptop wrote, the shipped script stops the bill by itself."""
    vm = harness.provider().create(spec())
    harness.provider().set_safeguards(vm, until_s=harness.cloud.clock.now() + 3600)
    home = tmp_path / "home"
    (home / "qft").mkdir(parents=True)
    script = shipped(harness, tmp_path)

    busy = run_once(harness, home, script)
    still = harness.cloud.ledger.billing("compute")
    (home / "qft" / "limit").write_text(str(time.time() - 1))
    over = run_once(harness, home, script)
    harness.advance(60)

    assert (busy, over) == (0, 0)
    assert still != []
    assert harness.cloud.ledger.billing("compute") == []


def test_machine_without_the_right_is_refused(harness: AzureHarness, tmp_path: Path) -> None:
    """Without the role Azure refuses, the script says so and will try again."""
    harness.provider().create(spec())
    script = shipped(harness, tmp_path)

    code = run_once(harness, tmp_path / "home", script, "--idle-s", "0")

    assert code == 1
    assert harness.cloud.ledger.billing("compute") != []


@pytest.mark.parametrize(
    ("now_s", "active_s", "limit_s", "ends"),
    [
        (1000, 990, None, False),
        (1000, 100, None, True),
        (1000, 990, 999, True),
        (1000, 990, 1001, False),
        (1000, 400, None, True),
    ],
)
def test_reasons_to_end(
    now_s: float, active_s: float, limit_s: float | None, *, ends: bool
) -> None:
    """Silence for longer than the patience ends it, and so does the limit, whatever still runs."""
    reason = why_end(now_s=now_s, active_s=active_s, limit_s=limit_s, idle_s=600)

    assert bool(reason) is ends


def test_heartbeat_counts_as_activity(tmp_path: Path) -> None:
    """A trainer that writes its status keeps the machine; a broken limit file is none."""
    status = tmp_path / "qft" / "run-a" / "run" / "status.json"
    status.parent.mkdir(parents=True)
    status.write_text("{}")
    (tmp_path / "qft" / "limit").write_text("soon")

    assert last_activity_s(tmp_path, 5.0) == status.stat().st_mtime
    assert last_activity_s(tmp_path / "nowhere", 5.0) == 5.0
    assert limit_of(tmp_path, 0.0) is None


def test_limit_of_an_earlier_boot_is_over(tmp_path: Path) -> None:
    """A machine started again with more budget does not give itself back for the old limit."""
    (tmp_path / "qft").mkdir()
    (tmp_path / "qft" / "limit").write_text("5.0")
    uptime = tmp_path / "uptime"
    uptime.write_text("100.5 200.0\n")

    assert limit_of(tmp_path, time.time() - 60) == 5.0
    assert limit_of(tmp_path, time.time() + 60) is None
    assert booted_s(uptime) == pytest.approx(time.time() - 100.5, abs=60)
    assert booted_s(tmp_path / "absent") == 0.0


def test_ended_training_differs_from_a_running_one(tmp_path: Path) -> None:
    """Only the newest heartbeat counts, and one that cannot be read is one being written."""
    assert not is_over(tmp_path)
    for number, phase in enumerate(("done", "training")):
        status = tmp_path / "qft" / f"run-{number}" / "run" / "status.json"
        status.parent.mkdir(parents=True)
        status.write_text(json.dumps({"phase": phase}))
        os.utime(status, (1000 + number, 1000 + number))

    assert not is_over(tmp_path)
    status.write_text(json.dumps({"phase": "failed"}))
    assert is_over(tmp_path)
    for text in ("{", "[]", "null", '{"phase": []}'):
        status.write_text(text)
        assert not is_over(tmp_path)


def test_visitors_are_counted(tmp_path: Path) -> None:
    """Only established connections to port 22 count."""
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:0016 0100007F:D2F0 01 0\n"
        "   1: 00000000:0016 00000000:0000 0A 0\n"
        "   2: 0100007F:1F90 0100007F:D2F1 01 0\n"
    )

    assert ssh_sessions(table, 22) == 1
    assert ssh_sessions(tmp_path / "absent", 22) == 0


@pytest.mark.parametrize("text", [one_file(), self_release_text()], ids=["plain", "azure"])
def test_script_needs_nothing_but_python(text: str) -> None:
    """It is shipped as one text to a machine on which nothing is installed yet."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    plain = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    imported = {str(node.module).split(".")[0] for node in nodes}
    imported |= {alias.name.split(".")[0] for node in plain for alias in node.names}

    assert imported <= sys.stdlib_module_names
    assert text.count('if __name__ == "__main__":') == 1


@pytest.mark.parametrize(("exit_code", "expected"), [(0, 0), (1, 1)], ids=["obeyed", "refused"])
def test_plain_script_shuts_the_machine_down(tmp_path: Path, exit_code: int, expected: int) -> None:
    """Without a vendor's own way the machine is shut down, and a refusal is tried again later."""
    script, shutdown = tmp_path / "watch.py", tmp_path / "bin" / "shutdown"
    script.write_text(one_file())
    shutdown.parent.mkdir()
    shutdown.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nexit {exit_code}\n')
    shutdown.chmod(0o755)
    argv = [sys.executable, "-I", str(script), "--home", str(tmp_path), "--once", "--idle-s", "0"]

    done = subprocess.run(
        argv, env={"PATH": f"{shutdown.parent}:/usr/bin:/bin"}, check=False, timeout=60
    )

    assert done.returncode == expected
    assert (tmp_path / "called").read_text() == "-h now\n"


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{", b"nonsense\r\n\r\n", b"", LIST],
    ids=["cut short", "no HTTP", "nothing", "a list"],
)
def test_broken_answer_is_a_refusal_and_not_the_watchdogs_end(answer: bytes) -> None:
    """Whatever the metadata service says, the script stays alive to ask again a minute later."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer_once, args=(listener, answer), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        chosen = argparse.Namespace(imds=url, arm=url, audience=url)

        agreed = deallocate_self(chosen)

    assert not agreed


def answer_once(listener: socket.socket, answer: bytes) -> None:
    """Send these bytes to the first caller, and hang up."""
    caller, _ = listener.accept()
    with caller:
        caller.recv(4096)
        caller.sendall(answer)


def test_machine_reckons_the_end_of_the_budget_by_its_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told how long, not until when: the clock of the laptop may be wrong by hours."""
    clock = tmp_path / "bin" / "date"
    clock.parent.mkdir()
    clock.write_text("#!/bin/sh\necho 5000\n")
    clock.chmod(0o755)
    path = f"{clock.parent}:{os.environ['PATH']}"

    def run(argv: list[str], *, timeout_s: float) -> None:
        env = {"PATH": path}
        subprocess.run(argv, cwd=tmp_path, env=env, check=True, timeout=timeout_s)

    stub = SimpleNamespace(
        on_message=print,
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        layout=SimpleNamespace(run_dir="r"),
        home=tmp_path,
    )
    work = SshWorkload(stub)  # type: ignore[arg-type]  # as much of a setting as is used
    monkeypatch.setattr(work, "_open", lambda _vm: SimpleNamespace(run=run))

    vm = Vm(provider="azure", run_id="x", id="x", region="a", size="s")
    ends = []
    for left_s in (3600.4, -20.0):
        work.set_time_limit(vm, left_s)
        ends.append(limit_of(tmp_path, boot_s=0.0))

    assert ends == [8600.0, 4980.0]
