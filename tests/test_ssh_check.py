"""An own machine that cannot be reached is told within 20 s, exit 4, and no run begins."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.runs import make_project
from support.sshd import Sshd, serve

from commands.runs.home import RunFolder
from commands.runs.ssh_check import LIMIT_S, sign_in
from commands.ui.errors import HostError
from infra.config import VmTable
from remote import keys, ssh

WITHIN_S = 20.0
START_S = 40.0
"""What starting `qft` may take on a busy computer, beside the looking."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One OpenSSH server for the file."""
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A port where something else than an SSH server listens."""
    with socket.create_server(("127.0.0.1", 0)) as stub:
        held = []

        def accept() -> None:
            while True:
                try:
                    line, _ = stub.accept()
                except OSError:
                    return
                held.append(line)
                answer(line)

        threading.Thread(target=accept, daemon=True).start()
        yield stub.getsockname()[1]
        stub.shutdown(socket.SHUT_RDWR)
        for line in held:
            line.close()


@contextmanager
def full() -> Iterator[int]:
    """A port that takes no connection and refuses none, as a firewall that drops packets."""
    with socket.socket() as stub:
        stub.bind(("127.0.0.1", 0))
        stub.listen(0)
        port = stub.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for line in waiting:
            line.setblocking(False)
            line.connect_ex(("127.0.0.1", port))
        yield port
        for line in waiting:
            line.close()


@contextmanager
def closed() -> Iterator[int]:
    """A port where nobody listens, kept from others."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def nothing(line: socket.socket) -> None:
    """Say nothing."""
    del line


PORTS = {
    "refused": (closed, "Connection refused"),
    "dropped": (full, "no connection to"),
    "silent": (lambda: answering(nothing), "does not speak SSH"),
    "web": (lambda: answering(lambda line: line.sendall(b"HTTP/1.1 400\r\n\r\n")), "not speak SSH"),
    "closing": (lambda: answering(lambda line: line.close()), "does not speak SSH"),
}


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


@pytest.mark.parametrize("how", PORTS)
def test_every_kind_of_silence_has_its_sentence(server: Sshd, tmp_path: Path, how: str) -> None:
    """Refused, dropped, silent, another protocol, hung up: each is told in time, with a hint."""
    opened, expected = PORTS[how]
    with opened() as port:
        began = time.monotonic()
        with pytest.raises(HostError) as caught:
            sign_in(table(server, port=port), RunFolder(root=tmp_path))

    assert expected in caught.value.message
    assert "qft doctor" in caught.value.hint
    assert caught.value.exit_code == 4
    assert time.monotonic() - began < WITHIN_S


def test_names_keys_and_users_that_are_wrong_have_their_sentence(
    server: Sshd, tmp_path: Path
) -> None:
    """A name nobody knows, a machine that is another, a key or user that is not let in."""
    keys.generate(tmp_path / "other")
    stranger = keys.pair()[1]
    for overrides, expected in (
        ({"host": "no-such-host.invalid"}, "is not known"),
        ({"host_key": stranger}, "is not the one that was pinned"),
        ({"key": str(tmp_path / "other")}, "does not accept the key"),
        ({"user": "no-such-user"}, "for user `no-such-user`"),
    ):
        with pytest.raises(HostError) as caught:
            sign_in(table(server, **overrides), RunFolder(root=tmp_path))

        assert expected in caught.value.message


def test_a_name_lookup_that_never_ends_is_given_up(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver has no limit of its own, so there is one around all of it."""
    over = threading.Event()
    monkeypatch.setattr(ssh, "connect", lambda *_, **__: over.wait())
    try:
        with pytest.raises(HostError, match=r"did not answer within 0\.2 s"):
            sign_in(table(server), RunFolder(root=tmp_path), limit_s=0.2)
    finally:
        over.set()
    assert LIMIT_S < WITHIN_S


@pytest.mark.parametrize("goal", ["up", "train", "run"])
def test_no_run_begins_on_a_machine_that_is_not_there(
    server: Sshd, tmp_path: Path, goal: str
) -> None:
    """Exit 4, no record that says running, and the next command finds a clean slate."""
    with closed() as port:
        vm = table(server, port=port).model_dump(mode="json")
        project = make_project(tmp_path, vm=vm)
        began = time.monotonic()

        done = project.qft(goal, "--json")

    assert done.returncode == 4, done.stderr
    assert "Connection refused" in done.stderr
    assert time.monotonic() - began < WITHIN_S + START_S
    assert not (project.home / "runs").exists()
    assert project.qft("ls").stdout == ""
