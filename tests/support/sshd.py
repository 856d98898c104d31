"""A real OpenSSH server on loopback, with throwaway keys and a home directory of its own."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest

from remote import keys
from remote.ssh import Host, SshConnection

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
TIMEOUT_S = 120.0  # nobody waits for it unless something is stuck
TRIES = 5
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server")


@dataclass(frozen=True, kw_only=True)
class Sshd:
    """A running server."""

    port: int
    home: Path
    """What the user sees as the home directory; everything there is the test's own."""
    user: str
    client_key: Path
    host_key: str
    """The public line that the server presents."""
    process: subprocess.Popen[bytes]

    def host(self, **overrides: object) -> Host:
        """Say how to connect; `overrides` replace single fields."""
        given: dict[str, object] = {
            "address": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "key_path": self.client_key,
            "host_key": self.host_key,
        }
        return Host(**(given | overrides))  # type: ignore[arg-type]  # fields by name


@contextmanager
def serve(
    folder: Path,
    *,
    config: str = "",
    login: str = "/bin/sh -c",
    subsystem: str | None = "",
    force: str = "",
) -> Iterator[Sshd]:
    """Run `sshd` for the calling user below `folder` until the block ends.

    Needs OpenSSH's server. Commands and SFTP start in `folder/home`, with HOME set to it, so that
    the real home of the user is never touched. `config` is added to the server's configuration;
    `login` takes the place of the account's login shell, also for SFTP; `subsystem` is the program
    that speaks SFTP, None for a server that has none; `force` is run instead of every command.
    """
    if SSHD is None:
        raise RuntimeError("OpenSSH's sshd is needed: apt-get install openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # root's sshd insists on it
    home = folder / "home"
    home.mkdir(parents=True)
    for name in ("client", "host"):
        keys.generate(folder / name)
    authorized = folder / "authorized_keys"
    authorized.write_text(f"{keys.public_line(folder / 'client')}\n")
    authorized.chmod(0o600)
    wrapper = folder / "enter"
    wrapper.write_text(
        f"#!/bin/sh\nexport HOME={home}\n"
        f"export PATH={home}/bin:{Path(sys.executable).parent}:$PATH\ncd {home}\n"
        f'exec {login} "${{SSH_ORIGINAL_COMMAND:-/bin/sh}}"\n'
    )
    wrapper.chmod(0o700)
    settings = folder / "sshd_config"
    settings.write_text(
        f"HostKey {folder / 'host'}\nPidFile none\n{no_penalties_line()}"
        f"AuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nForceCommand {force or wrapper}\n{config}\n"
        f"SetEnv HOME={home}\n"  # or bash reads the start-up files of whoever runs the tests
        + ("" if subsystem is None else f"Subsystem sftp {subsystem or sftp_server()}\n")
    )
    port, process = start_listening(SSHD, settings, folder / "sshd.log")
    try:
        yield Sshd(
            port=port,
            home=home,
            user=getpass.getuser(),
            client_key=folder / "client",
            host_key=keys.public_line(folder / "host"),
            process=process,
        )
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def sftp_server() -> str:
    """OpenSSH's own program for SFTP, wherever this system keeps it."""
    return next(path for path in SFTP_SERVERS if Path(path).exists())


@contextmanager
def cut_when_exists(there: Path, transport: paramiko.Transport) -> Iterator[None]:
    """While the block runs, cut a connection as soon as a file is there."""
    over = threading.Event()

    def cut() -> None:
        while not there.exists():
            if over.wait(0.01):
                return
        transport.sock.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def open_slowly(connection: SshConnection, patch: pytest.MonkeyPatch) -> None:
    """Let a busy computer open channels as slowly as it must; what is tried comes after that."""
    opened = connection.transport.open_session
    patch.setattr(
        connection.transport, "open_session", lambda **how: opened(**how | {"timeout": TIMEOUT_S})
    )


def start_listening(program: str, settings: Path, log: Path) -> tuple[int, subprocess.Popen[bytes]]:
    """Start the server on a free port; again on another if somebody else was quicker to take it."""
    for _ in range(TRIES):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = ["-o", f"ListenAddress=127.0.0.1:{port}"]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [program, "-D", "-e", "-f", str(settings), *where], stderr=errors
            )
        if wait_until_listening(log, process):
            return port, process
        if "Address already in use" not in log.read_text():
            break
    raise RuntimeError(f"sshd does not listen; exit code {process.poll()}: {log.read_text()}")


def wait_until_listening(log: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it does; false if it has ended. An answer at the port might be somebody else's."""
    ends_at = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends_at and process.poll() is None:
        if "Server listening on" in log.read_text():
            return True
        time.sleep(0.02)
    process.kill()
    process.wait()
    return False


def no_penalties_line() -> str:
    """The setting with which a new server lets in a caller whose lines were often cut."""
    version_output = subprocess.run(
        [str(SSHD), "-V"], capture_output=True, text=True, check=False
    ).stderr
    version = re.search(r"OpenSSH_(\d+)\.(\d+)", version_output)
    supported = version is not None and (int(version[1]), int(version[2])) >= (9, 8)
    return "PerSourcePenalties no\n" if supported else ""
