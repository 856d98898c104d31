"""A link connects to the pinned machine or says why not, and returns what a command said."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshd

from remote import keys
from remote.errors import (
    AuthRefused,
    CommandFailed,
    HostKeyMismatch,
    RemoteError,
    TimedOut,
    Unreachable,
    Untrusted,
)
from remote.ssh import SshConnection, connect, scan_host_key
from remote.ssh_transport import reply_deadline


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    """One OpenSSH server for the file."""
    with sshd.serve(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def connection(server: sshd.Sshd) -> Iterator[SshConnection]:
    """One connection for the file."""
    with connect(server.host()) as opened:
        yield opened


def test_run_returns_everything(connection: SshConnection) -> None:
    """A command's exit code, output and errors come back apart."""
    result = connection.run("echo out; echo err >&2; exit 3", check=False)

    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")


def test_failed_command_is_an_error_that_tells(connection: SshConnection) -> None:
    """A failed command raises with its name, its exit code and its last words."""
    with pytest.raises(CommandFailed, match=r"`ls /nowhere` ended 2:\n  .*nowhere") as caught:
        connection.run(["ls", "/nowhere"])

    assert caught.value.result.exit_code == 2


def test_arguments_are_quoted(connection: SshConnection) -> None:
    """A command given as words reaches the program as these words."""
    result = connection.run(["printf", "%s|", "a b", "$HOME", "';x"])

    assert result.stdout == "a b|$HOME|';x|"


def test_input_and_output_larger_than_any_window(connection: SshConnection) -> None:
    """Six megabytes go in and out again, whole, while stderr is noisy."""
    text = "0123456789abcde\n" * 400_000
    result = connection.run("head -c 3000000 /dev/zero >&2; cat", input=text)

    assert result.stdout == text
    assert len(result.stderr) == 3_000_000


def test_input_that_nobody_reads(connection: SshConnection) -> None:
    """A command that ends without reading its input is judged by its exit code."""
    assert connection.run("exit 4", input=b"x" * 8_000_000, check=False).exit_code == 4


@pytest.fixture
def patient(connection: SshConnection, monkeypatch: pytest.MonkeyPatch) -> SshConnection:
    """The same connection, on which a command may take long to begin, as on a busy computer."""
    sshd.open_slowly(connection, monkeypatch)
    monkeypatch.setattr(
        "remote.ssh.reply_deadline", lambda channel, _: reply_deadline(channel, sshd.TIMEOUT_S)
    )
    return connection


def test_command_that_takes_too_long(patient: SshConnection) -> None:
    """A command that does not end in time is `TimedOut`, and the link still works."""
    with pytest.raises(TimedOut, match=r"did not end within 0\.3 s"):
        patient.run("sleep 30", timeout_s=0.3)

    assert patient.run("echo alive").stdout == "alive\n"


def test_trickling_output_does_not_extend_the_time(patient: SshConnection) -> None:
    """The time-out is for the whole command, however often it says something."""
    with pytest.raises(TimedOut):
        patient.run("while :; do echo x; sleep 0.05; done", timeout_s=0.5)


def test_endless_output_is_refused(connection: SshConnection) -> None:
    """A machine that never stops talking is not believed, and memory stays bounded."""
    with pytest.raises(Untrusted, match="more than"):
        connection.stream("cat /dev/zero", len, timeout_s=30, limit_bytes=1_000_000)


def test_command_killed_by_a_signal(connection: SshConnection) -> None:
    """A shell that a signal ends is reported as -1, not as a lost connection."""
    assert connection.run("kill -9 $$", check=False).exit_code in {-1, 137}


def test_wrong_host_key_is_refused(server: sshd.Sshd) -> None:
    """Another key than the pinned one is refused before login; both fingerprints are shown."""
    _, other = keys.pair()
    with pytest.raises(HostKeyMismatch, match="nothing was sent") as caught:
        connect(server.host(host_key=other))

    assert caught.value.expected == keys.fingerprint(other)
    assert caught.value.got == keys.fingerprint(server.host_key)
    assert caught.value.expected in str(caught.value)
    assert caught.value.got in str(caught.value)
    assert "ssh-keyscan" in caught.value.hint


def test_wrong_host_key_sees_no_login(tmp_path: Path) -> None:
    """A server with another key never learns which user wanted to log in."""
    with sshd.serve(tmp_path, config="LogLevel VERBOSE") as server:
        with pytest.raises(HostKeyMismatch):
            connect(server.host(host_key=keys.pair()[1], user="secret-name"))
        log = (tmp_path / "sshd.log").read_text()

    assert "Connection from" in log
    assert "secret-name" not in log


def test_key_of_another_type_is_refused(tmp_path: Path) -> None:
    """A server that presents a key of another type than the pinned one is refused."""
    other = "ecdsa-sha2-nistp256"
    with sshd.serve(tmp_path) as server:
        line = make_ecdsa_line()
        assert line.startswith(other)
        with pytest.raises(HostKeyMismatch):
            connect(server.host(host_key=line))


def test_listed_hosts_of_the_user_takes_no_part(
    server: sshd.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's known_hosts and config neither help nor hinder, and are not written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    listed_hosts = tmp_path / ".ssh" / "known_hosts"
    listed_hosts.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
    (tmp_path / ".ssh" / "config").write_text("Host *\n  Port 1\n  User nobody\n")
    before = listed_hosts.read_bytes()

    with connect(server.host()) as connection:
        assert connection.run("echo in").stdout == "in\n"
    with pytest.raises(HostKeyMismatch):
        connect(server.host(host_key=keys.pair()[1]))
    assert listed_hosts.read_bytes() == before


def test_no_pinned_key_no_connection(server: sshd.Sshd) -> None:
    """Without a well-formed pinned key nothing is dialled at all."""
    for line in ("", "ssh-ed25519", "ssh-ed25519 AAAA", "SHA256:abc", "ssh-ed25519 !!!!"):
        with pytest.raises(RemoteError, match="not a public key line"):
            connect(server.host(host_key=line, port=1))


def test_refused_login(server: sshd.Sshd, tmp_path: Path) -> None:
    """A key that the machine does not know is `AuthRefused`, with the line to add."""
    keys.generate(tmp_path / "stranger")
    with pytest.raises(AuthRefused, match="does not accept") as caught:
        connect(server.host(key_path=tmp_path / "stranger"))

    assert "authorized_keys" in caught.value.hint


def test_nobody_listens(server: sshd.Sshd) -> None:
    """A refused connection is `Unreachable`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # held, so that nobody else begins to listen there
        with pytest.raises(Unreachable, match="refused"):
            connect(server.host(port=free.getsockname()[1]))


def test_unknown_name(server: sshd.Sshd) -> None:
    """A name that does not resolve is `Unreachable`."""
    with pytest.raises(Unreachable):
        connect(server.host(address="no-such-host.invalid"), timeout_s=5)


def test_silent_listener(server: sshd.Sshd) -> None:
    """A port that accepts and says nothing, like a machine that hangs, is `Unreachable`."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(Unreachable):
            connect(server.host(port=port), timeout_s=0.5)

    assert time.monotonic() - began < 14  # the library's own patience is 15 s


def test_listener_that_hangs_up(server: sshd.Sshd) -> None:
    """A port that resets the connection, like a machine that boots, is `Unreachable`."""
    with socket.create_server(("127.0.0.1", 0)) as rude:

        def hang_up() -> None:
            rude.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(Unreachable):
            connect(server.host(port=rude.getsockname()[1]), timeout_s=5)


def test_line_cut_during_a_command(tmp_path: Path) -> None:
    """A server that dies under a running command is `Unreachable`, at once."""
    with sshd.serve(tmp_path) as server, connect(server.host()) as connection:
        with (
            sshd.cut_when_exists(server.home / "runs", connection.transport),
            pytest.raises(Unreachable),
        ):
            connection.run("touch runs; sleep 600", timeout_s=300)

        assert not connection.alive


def test_scan_reads_the_key_once(server: sshd.Sshd) -> None:
    """The key that a human confirms is the one that can then be pinned."""
    line = scan_host_key("127.0.0.1", server.port)

    assert line.split() == server.host_key.split()[:2]
    with connect(server.host(host_key=line)) as connection:
        assert connection.run("echo in").stdout == "in\n"


def make_ecdsa_line() -> str:
    """Make the public line of a key that is not ed25519."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    return public.public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode()
