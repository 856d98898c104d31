"""A server that is there but does not answer is given up in time, whatever it owes us."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from support import sshd

from remote import keys
from remote.errors import RemoteError, Unreachable
from remote.ssh import Host, SshConnection, connect
from remote.sync.api import push


class Mute(paramiko.ServerInterface):
    """Stops answering at one point of the protocol, or hangs up there."""

    def __init__(self, at: str, ended: threading.Event) -> None:
        self.at = at
        self.ended = ended
        self.transport: paramiko.Transport | None = None

    def _meet(self, point: str) -> None:
        if self.at == f"hang up at {point}" and self.transport is not None:
            self.transport.close()
        if self.at == point:
            self.ended.wait(sshd.TIMEOUT_S)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Admit everybody, unless this is the point."""
        del username, key
        self._meet("auth")
        return AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        """Keys only."""
        del username
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Open any channel."""
        del kind, chanid
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        """Take a command, unless this is the point."""
        del channel, command
        self._meet("exec")
        return True

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        """Take SFTP, unless this is the point."""
        del channel, name
        self._meet("sftp")
        return True


@contextmanager
def mute(folder: Path, at: str) -> Iterator[Host]:
    """Serve one connection that falls silent `at` a point."""
    folder.mkdir()
    for name in ("client", "host"):
        keys.generate(folder / name)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            transport = paramiko.Transport(sock)
            transport.add_server_key(paramiko.PKey.from_path(folder / "host"))
            mind = Mute(at, ended)
            mind.transport = transport
            transport.start_server(server=mind, event=threading.Event())
            ended.wait(sshd.TIMEOUT_S)
            transport.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield Host(
                address="127.0.0.1",
                port=listener.getsockname()[1],
                user="somebody",
                key_path=folder / "client",
                host_key=keys.public_line(folder / "host"),
            )
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("at", ["auth", "hang up at auth"])
def test_a_login_that_is_never_answered_is_no_refusal(tmp_path: Path, at: str) -> None:
    """A machine that boots or dies while we log in is unreachable: nobody has refused the key."""
    with mute(tmp_path / "server", at) as host, pytest.raises(Unreachable):
        connect(host, timeout_s=0.5)


def test_a_command_that_is_never_taken_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel opens, the command is sent, and no answer comes: the time-out holds here too."""
    with mute(tmp_path / "server", "exec") as host, connect(host) as connection:
        sshd.open_slowly(connection, monkeypatch)
        with pytest.raises(Unreachable, match=r"does not answer within 1 s"):
            connection.run("true", timeout_s=0.5)


def test_sftp_that_never_begins_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a command: a subsystem that is asked for and never starts ends in a time-out."""
    from remote.sync.sftp import Sftp

    with mute(tmp_path / "server", "sftp") as host, connect(host) as connection:
        sshd.open_slowly(connection, monkeypatch)
        with pytest.raises(TimeoutError, match=r"does not answer within 0\.5 s"):
            Sftp.open(connection.transport, silence_s=0.5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    """One OpenSSH server for the file."""
    with sshd.serve(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def connection(server: sshd.Sshd) -> Iterator[SshConnection]:
    """A connection of the test's own."""
    with connect(server.host()) as opened:
        yield opened


def test_a_cut_line_is_never_taken_for_a_command_that_failed(
    server: sshd.Sshd, connection: SshConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library ends channels a moment before it admits that the connection is dead."""
    unlink = paramiko.Channel._unlink  # type: ignore[attr-defined]

    def dawdle(channel: paramiko.Channel) -> None:
        unlink(channel)
        time.sleep(0.3)

    monkeypatch.setattr(paramiko.Channel, "_unlink", dawdle)
    with (
        sshd.cut_when_exists(server.home / "runs", connection.transport),
        pytest.raises(Unreachable, match="cut"),
    ):
        connection.run("touch runs; sleep 600", timeout_s=300)


def test_a_helper_emptied_by_a_power_cut_is_sent_again(
    server: sshd.Sshd, connection: SshConnection, tmp_path: Path
) -> None:
    """A file written just before an eviction may come back empty: it is not run as it is."""
    (tmp_path / "a.txt").write_text("a")
    push(connection, {"a.txt": tmp_path / "a.txt"}, "qft/first")
    helpers = list((server.home / "qft").glob("tree_ops-*.py"))
    for helper in helpers:
        helper.write_bytes(b"")

    push(connection, {"a.txt": tmp_path / "a.txt"}, "qft/second")

    assert len(helpers) == 1
    assert (server.home / "qft" / "second" / "a.txt").read_text() == "a"


def test_names_that_differ_in_case_only_can_be_pushed_again(
    server: sshd.Sshd, connection: SshConnection, tmp_path: Path
) -> None:
    """What the machine got from us is no offence when it tells us of it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("README", "readme"):
        (tree / name).write_text(name)
    push(connection, tree, "qft/cases")

    again = push(connection, tree, "qft/cases")

    assert (again.files, again.files_sent) == (2, 0)
    assert (server.home / "qft" / "cases" / "readme").read_text() == "readme"


def test_a_job_that_cannot_be_written_down_says_why(
    server: sshd.Sshd, connection: SshConnection
) -> None:
    """Neither record can be written: the reason still reaches the caller."""
    from remote.job import Job

    for name in ("job.json", "exit.json"):
        (server.home / "blocked" / name).mkdir(parents=True)

    with pytest.raises(RemoteError, match=r"[Dd]irectory"):
        Job(connection=connection, directory="blocked").start(["true"], env={}, cwd=".")


def test_a_host_key_that_cannot_be_checked_is_reported_as_such(server: sshd.Sshd) -> None:
    """A pinned key of a type that is not known here is the user's to mend, not a crash."""
    line = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t"

    with pytest.raises(RemoteError, match="host key"):
        connect(server.host(host_key=line))
