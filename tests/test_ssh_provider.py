"""The main job on a machine that the user already has, through a real OpenSSH server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.runs import Project, json_of, make_project
from support.sshd import Sshd, serve

from remote import keys


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    """An OpenSSH server of this test's own."""
    with serve(tmp_path / "server") as running:
        yield running


def project_on(server: Sshd, folder: Path, host_key: str) -> Project:
    """A project whose machine is that server."""
    ssh = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "key": str(server.client_key),
        "host_key": host_key,
        "gpu": False,
        "python": sys.executable,
    }
    vm = {"provider": "ssh", "ssh": ssh, "max_price": None}
    return make_project(folder, vm=vm, train={"steps": 40}, checkpoint={"every": 10})


def test_the_main_job_runs_through_openssh(server: Sshd, tmp_path: Path) -> None:
    """Client and server of different makes: trained, fetched, and the machine left clean."""
    project = project_on(server, tmp_path / "project", server.host_key)

    done = project.qft("run", "--json")

    assert done.returncode == 0, done.stderr
    assert json_of(done)["usd"] == 0
    assert "planned" not in json_of(done)  # nobody has said which card it has
    assert (project.out / "adapter" / "adapter_model.safetensors").exists()
    assert json_of(project.qft("ls", "--all", "--json")) == []
    assert [path.name for path in (server.home / "qft").glob("tiny-*")] == []


def test_down_leaves_the_users_machine_as_it_was(server: Sshd, tmp_path: Path) -> None:
    """What a run left on a machine that stays yours is removed, and the machine is forgotten."""
    project = project_on(server, tmp_path / "project", server.host_key)
    assert project.qft("up").returncode == 0
    assert len(list((server.home / "qft").glob("tiny-*"))) == 1

    down = project.qft("down", "--json")

    assert json_of(down)[0]["left"] == []
    assert list((server.home / "qft").glob("tiny-*")) == []
    assert json_of(project.qft("ls", "--all", "--json")) == []


def test_another_host_key_is_refused_with_exit_4(server: Sshd, tmp_path: Path) -> None:
    """A machine that is not who it should be gets no byte of ours."""
    _private, other = keys.pair()
    project = project_on(server, tmp_path / "project", other)

    done = project.qft("run")

    assert done.returncode == 4, done.stderr
    assert "SHA256:" in done.stderr
    assert not (server.home / "qft").exists()


def test_an_unpinned_machine_is_never_trusted_on_first_use(server: Sshd, tmp_path: Path) -> None:
    """Without a host key nothing connects; doctor shows the key to compare and to paste."""
    project = project_on(server, tmp_path / "project", "")

    done = project.qft("run")
    doctor = project.qft("doctor")

    assert done.returncode == 2
    assert "never trusted on first use" in done.stderr
    assert server.host_key.split()[1] in doctor.stdout
    assert doctor.returncode == 2
