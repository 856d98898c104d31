"""A server that carries no files, or runs no commands, is told at once, in one sentence."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from support.runs import Project, make_project
from support.sshd import Sshd, serve

from remote.errors import LoginShellEnded, NoSftp
from remote.ssh import connect
from remote.sync.transfer import require_sftp

AT_ONCE_S = 60.0
"""A bound for a busy computer: before, it took 200 s on an idle one."""

SERVERS = [
    (None, "the server has no SFTP"),
    ("/nowhere/sftp-server", "the SFTP program there ended with exit code 127"),
    ("/bin/false", "the SFTP program there ended with exit code 1"),
    ("/bin/echo Welcome to gpu-7", "SFTP there begins with text in the place of its protocol"),
    ("/bin/sh -c 'echo broken >&2; exit 9'", "ended with exit code 9 before it began"),
]


@pytest.mark.parametrize(("subsystem", "expected"), SERVERS)
def test_a_server_without_sftp_is_named(
    tmp_path: Path, subsystem: str | None, expected: str
) -> None:
    """No subsystem, a missing program, one that ends and one that talks: each its own sentence."""
    with serve(tmp_path, subsystem=subsystem) as server, connect(server.host()) as connection:
        with pytest.raises(NoSftp) as caught:
            require_sftp(connection)
        output = connection.run("echo still here").stdout

    assert expected in str(caught.value)
    assert "Subsystem sftp internal-sftp" in caught.value.hint
    assert output == "still here\n"


def test_the_sftp_of_openssh_is_one(tmp_path: Path) -> None:
    """A server as it is installed is not refused."""
    with serve(tmp_path) as server, connect(server.host()) as connection:
        require_sftp(connection)

        assert connection.alive


@pytest.mark.parametrize("force", ["internal-sftp", "/bin/false", "/usr/sbin/nologin", "/bin/true"])
def test_an_account_that_runs_no_commands_is_named(tmp_path: Path, force: str) -> None:
    """SFTP only, no shell, or a command of its own: nothing of ours counts as done."""
    with (
        serve(tmp_path, force=force) as server,
        connect(server.host()) as connection,
        pytest.raises(LoginShellEnded) as caught,
    ):
        connection.run("true", timeout_s=30)

    assert caught.value.hint


def project_on(server: Sshd, folder: Path) -> Project:
    """A project whose machine is that server."""
    ssh = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "key": str(server.client_key),
        "host_key": server.host_key,
        "gpu": False,
        "python": sys.executable,
    }
    return make_project(folder, vm={"provider": "ssh", "ssh": ssh, "max_price": None})


def test_a_run_without_sftp_ends_at_once(tmp_path: Path) -> None:
    """`qft up` says it before any set-up, exit 4, and leaves the machine as it was."""
    with serve(tmp_path / "server", subsystem=None) as server:
        project = project_on(server, tmp_path / "project")
        began = time.monotonic()

        done = project.qft("up")

    assert done.returncode == 4, done.stderr
    assert "the server has no SFTP" in done.stderr
    assert "firewall" not in done.stderr
    assert time.monotonic() - began < AT_ONCE_S
    assert list(server.home.iterdir()) == []
