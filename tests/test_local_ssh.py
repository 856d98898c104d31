"""A real SSH client finds in a local machine what it would find in a Linux server, and no more."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import psutil
import pytest
from support.contract import openssh_keys
from support.machines import Subject, execute, until

from infra.local.machine import MachinePower


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """One machine for all tests here, started by a caller full of secrets."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AZURE_CLIENT_SECRET", "HF_TOKEN", "SSH_AUTH_SOCK", "PYTHONPATH"):
            patch.setenv(name, "hush-hush")
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        subject = Subject.make(tmp_path_factory.mktemp("guest"))
        subject.up()
    yield subject
    subject.machine.power_off("user")


@pytest.fixture
def client(subject: Subject) -> Iterator[paramiko.SSHClient]:
    """A connection to the machine."""
    client = subject.enter()
    yield client
    client.close()


def test_output_error_and_exit_code_come_back(client: paramiko.SSHClient) -> None:
    """A command's two outputs stay apart, and its exit code arrives."""
    assert execute(client, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


def test_killed_command_has_no_exit_code(client: paramiko.SSHClient) -> None:
    """A command that dies by a signal is reported as such, which paramiko shows as -1."""
    assert execute(client, "kill -9 $$")[0] == -1


def test_unknown_command_is_127(client: paramiko.SSHClient) -> None:
    """The shell reports what it cannot find."""
    code, _, error = execute(client, "no-such-program-here")

    assert code == 127
    assert b"not found" in error


def test_input_streams_in_and_out(client: paramiko.SSHClient) -> None:
    """Twenty megabytes pass through a command unchanged."""
    data = os.urandom(1 << 20) * 20

    _, out, _ = execute(client, "sha256sum", data)

    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_big_output_is_whole(client: paramiko.SSHClient) -> None:
    """Forty megabytes of output arrive to the last byte."""
    code, out, _ = execute(client, "head -c 40000000 /dev/zero; exit 3")

    assert (code, len(out)) == (3, 40_000_000)


def test_output_is_not_held_back(client: paramiko.SSHClient) -> None:
    """What a command says arrives while it still runs and waits for input."""
    stdin, stdout, _ = client.exec_command("echo ready; read answer; echo got $answer", timeout=120)

    first = stdout.readline()
    stdin.write("yes\n")
    stdin.flush()

    assert (first, stdout.readline()) == ("ready\n", "got yes\n")


def test_command_starts_at_home_in_a_clean_environment(
    subject: Subject, client: paramiko.SSHClient
) -> None:
    """Home is the disk; no secret of the caller is there; what describes the computer is."""
    _, out, _ = execute(client, "pwd; env -0")

    where, _, rest = out.decode().partition("\n")
    environ = dict(entry.split("=", 1) for entry in rest.split("\0") if entry)
    assert where == environ["HOME"] == str(subject.machine.disk)
    assert "hush-hush" not in rest
    assert "QFT_GUEST" not in environ
    assert environ["QFT_VM"] == subject.mark
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert (environ["USER"], environ["LANG"]) == ("qft", "C.UTF-8")


def test_the_machines_process_holds_no_secret(client: paramiko.SSHClient) -> None:
    """A command that reads its parent's environment finds nothing of the caller there either."""
    _, out, _ = execute(client, "cat /proc/$PPID/environ")

    assert b"QFT_GUEST" in out
    assert b"hush-hush" not in out


def test_python_of_the_machine_is_ours(client: paramiko.SSHClient) -> None:
    """The interpreter that runs qft, with its libraries, is the machine's `python`."""
    code, out, _ = execute(client, "python -c 'import psutil, sys; print(sys.prefix)'")

    assert code == 0
    assert out.decode().strip() == sys.prefix


def test_many_channels_share_a_connection(client: paramiko.SSHClient) -> None:
    """Commands on one connection run side by side: each waits until all of them are there."""
    results: list[tuple[int, bytes, bytes]] = []
    meet = "until [ $(ls met-* | wc -l) = 8 ]; do sleep 0.05; done"

    def work(n: int) -> None:
        results.append(execute(client, f"touch met-{n}; {meet}; echo {n}; exit {n}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == [(n, f"{n}\n".encode(), b"") for n in range(8)]


def test_detached_job_survives_the_connection(subject: Subject) -> None:
    """A job that called setsid runs on after the client is gone."""
    client = subject.enter()
    wait = "until [ -e go ]; do sleep 0.05; done; echo done > flag"
    execute(client, f"setsid sh -c '{wait}' </dev/null >/dev/null 2>&1 &")
    client.close()
    until(lambda: connections(subject) == 0)
    flag = subject.machine.disk / "flag"

    assert not flag.exists()
    (subject.machine.disk / "go").touch()
    until(flag.exists)


def connections(subject: Subject) -> int:
    """How many clients the machine's SSH server still knows."""
    port = subject.machine.state().ssh_port
    record = json.loads((subject.machine.directory / "guest.json").read_text())
    lines = psutil.Process(record["pid"]).net_connections("tcp")
    return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in lines)


def test_command_that_talks_to_nobody_ends(subject: Subject) -> None:
    """After the client is gone, writing to it is an error, so a chatty command does not linger."""
    client = subject.enter()
    _, stdout, _ = client.exec_command("echo $$; exec yes")
    talker = psutil.Process(int(stdout.readline()))
    client.close()

    until(lambda: not alive(talker))


def alive(process: psutil.Process) -> bool:
    """Whether a process can still do anything."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_wrong_key_and_wrong_user_are_refused(subject: Subject, tmp_path: Path) -> None:
    """Only the one user with the one key gets in."""
    other = tmp_path / "other"
    other.write_text(openssh_keys()[0])

    with pytest.raises(paramiko.AuthenticationException):
        subject.enter(key=other).close()
    with pytest.raises(paramiko.AuthenticationException):
        subject.enter(user="root").close()


def test_only_loopback_listens(subject: Subject) -> None:
    """The machine cannot be reached by other computers."""
    port = subject.machine.state().ssh_port
    listening = subprocess.run(
        ["python3", "-c", "print(open('/proc/net/tcp').read(), open('/proc/net/tcp6').read())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    ours = [line.split()[1] for line in listening.splitlines() if f":{port:04X} 00000000" in line]
    assert ours == [f"0100007F:{port:04X}"]


def test_terminal_is_a_terminal(client: paramiko.SSHClient) -> None:
    """A person's shell has a terminal of the asked size, and Ctrl-C interrupts."""
    channel = client.invoke_shell(term="xterm", width=101, height=31)
    channel.settimeout(120)

    def until(wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            seen += channel.recv(1000)
        return seen

    channel.send(b"PS1=pro''mpt:\n")
    until(b"prompt:")
    channel.send(b"tty; stty size; echo $TERM; sh -c 'echo on''ward; exec sleep 60'; echo after\n")
    shown = until(b"onward\r\n")  # said by what Ctrl-C is to hit, so that it is there
    channel.send(b"\x03")
    interrupted = until(b"prompt:")
    channel.send(b"exit 5\n")

    assert b"31 101\r\nxterm" in shown
    assert b"/dev/" in shown
    assert b"after" not in interrupted
    assert channel.recv_exit_status() == 5


def test_port_forwarding_reaches_the_machine(subject: Subject, client: paramiko.SSHClient) -> None:
    """`ssh -L`, which shows TensorBoard, reaches loopback of the machine."""
    transport = client.get_transport()
    assert transport is not None
    port = subject.machine.state().ssh_port

    channel = transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 1))

    assert channel.recv(7) == b"SSH-2.0"


def test_openssh_client_works(subject: Subject, tmp_path: Path) -> None:
    """The ssh program, with a pinned key and no questions, runs a command; a wrong key stops it."""
    program = shutil.which("ssh")
    assert program is not None, "the tests need OpenSSH's client"
    port = subject.machine.state().ssh_port
    listed_hosts = tmp_path / "known_hosts"

    def ssh(host_key: str) -> subprocess.CompletedProcess[str]:
        listed_hosts.write_text(f"[127.0.0.1]:{port} {host_key}\n")
        options = [
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={listed_hosts}",
            "BatchMode=yes",
        ]
        argv = [program, "-F", "/dev/null", "-i", str(subject.user_key), "-p", str(port)]
        argv += [part for option in options for part in ("-o", option)]
        argv += ["qft@127.0.0.1", "cat; exit 4"]
        return subprocess.run(argv, input="hello", capture_output=True, text=True, check=False)

    right, wrong = ssh(subject.host_public_key), ssh(openssh_keys()[1])

    assert (right.returncode, right.stdout) == (4, "hello")
    assert wrong.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in wrong.stderr


def test_sftp_starts_at_home(subject: Subject, client: paramiko.SSHClient) -> None:
    """Relative paths are relative to the disk, and files are the machine's real files."""
    with client.open_sftp() as sftp:
        where = sftp.normalize(".")
        sftp.mkdir("a")
        with sftp.open("a/b.txt", "wb") as file:
            file.write(b"hello")

    assert where == str(subject.machine.disk)
    assert (subject.machine.disk / "a" / "b.txt").read_bytes() == b"hello"


def test_sftp_carries_big_files(client: paramiko.SSHClient) -> None:
    """Thirty megabytes up and down are the same bytes."""
    data = os.urandom(1 << 20) * 30
    with client.open_sftp() as sftp:
        with sftp.open("big", "wb") as file:
            file.set_pipelined(True)
            file.write(data)
        with sftp.open("big", "rb") as file:
            file.prefetch()
            again = file.read()

    assert hashlib.sha256(again).digest() == hashlib.sha256(data).digest()


def test_posix_rename_replaces(client: paramiko.SSHClient) -> None:
    """A rename onto an existing file replaces it in one step, as sync relies on."""
    with client.open_sftp() as sftp:
        for name in ("old", "new"):
            with sftp.open(name, "wb") as file:
                file.write(name.encode())
        sftp.posix_rename("new", "old")
        with sftp.open("old", "rb") as file:
            text = file.read()
        names = sftp.listdir(".")

    assert text == b"new"
    assert "new" not in names


def test_sftp_extensions_are_announced(subject: Subject) -> None:
    """The server names the extensions that safe transfers need, and they work."""
    client = subject.enter()
    with client.open_sftp() as sftp:
        with sftp.open("synced", "wb") as file:
            file.write(b"x")
            kind, _ = sftp._request(  # type: ignore[attr-defined]  # paramiko has no call for these
                paramiko.sftp.CMD_EXTENDED, b"fsync@openssh.com", file.handle
            )
        free, reply = sftp._request(  # type: ignore[attr-defined]  # paramiko has no call for these
            paramiko.sftp.CMD_EXTENDED, b"statvfs@openssh.com", b"."
        )
        block_bytes = reply.get_int64()
    client.close()

    assert kind == paramiko.sftp.CMD_STATUS
    assert free == paramiko.sftp.CMD_EXTENDED_REPLY
    assert block_bytes == os.statvfs(subject.machine.disk).f_bsize


def test_missing_file_is_missing(client: paramiko.SSHClient) -> None:
    """A file that is not there is reported as such, not as a general failure."""
    with client.open_sftp() as sftp, pytest.raises(OSError, match="No such file") as caught:
        sftp.stat("nowhere")

    assert caught.value.errno == errno.ENOENT


def test_half_open_clients_do_no_harm(subject: Subject) -> None:
    """Clients that connect and say nothing, or nonsense, do not keep others out."""
    port = subject.machine.state().ssh_port
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    silent[0].sendall(b"\x00" * 1000)

    client = subject.enter()

    assert execute(client, "true")[0] == 0
    client.close()
    for one in silent:
        one.close()
    assert subject.machine.state().power is MachinePower.ON
