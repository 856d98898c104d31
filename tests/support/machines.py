"""Real local machines for tests, and a real SSH client to enter them."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paramiko

from infra.local.machine import Machine, MachinePower, MachineSpec, MachineState
from infra.local.processes import machine_processes
from support.contract import openssh_keys

TIMEOUT_S = 120.0  # nobody waits for it unless something is stuck


@dataclass(frozen=True)
class Subject:
    """A machine with the keys to it."""

    machine: Machine
    user_key: Path
    host_public_key: str

    @classmethod
    def make(cls, directory: Path, **settings: object) -> Subject:
        """Make a machine, powered off."""
        user_private, user_public = openssh_keys()
        host_private, host_public = openssh_keys()
        directory.mkdir(parents=True, exist_ok=True)
        key = directory / "user_key"
        key.write_text(user_private)
        key.chmod(0o600)
        machine = Machine(directory / "vm")
        spec = MachineSpec(name="subject", user="qft", public_key=user_public, **settings)  # type: ignore[arg-type]  # test settings
        machine.make(spec, host_private)
        return cls(machine, key, host_public)

    @property
    def mark(self) -> str:
        """What the machine's processes carry."""
        spec = self.machine.spec()
        assert spec is not None
        return spec.mark

    def up(self) -> MachineState:
        """Switch on and wait until SSH answers."""
        self.machine.power_on()
        return self.wait_for(MachinePower.ON)

    def wait_for(self, power: MachinePower) -> MachineState:
        """Look until the machine is in that state."""
        began = time.monotonic()
        while (state := self.machine.state()).power is not power:
            assert time.monotonic() - began < TIMEOUT_S, state
            time.sleep(0.01)
        return state

    def processes(self) -> int:
        """How many processes of the machine live, its own included."""
        return len(machine_processes(self.mark, self.machine.disk))

    def enter(self, *, user: str = "qft", key: Path | None = None) -> paramiko.SSHClient:
        """Connect, trusting the machine's own key and no other."""
        client = paramiko.SSHClient()
        port = self.machine.state().ssh_port
        kind, blob = self.host_public_key.split()[:2]
        pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
        client.get_host_keys().add(f"[127.0.0.1]:{port}", kind, pinned)
        client.connect(
            "127.0.0.1",
            port,
            user,
            key_filename=str(key or self.user_key),
            look_for_keys=False,
            allow_agent=False,
            timeout=TIMEOUT_S,
            banner_timeout=TIMEOUT_S,
            auth_timeout=TIMEOUT_S,
        )
        transport = client.get_transport()
        assert transport is not None
        assert isinstance(transport.sock, socket.socket)
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms a command
        return client


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that will be so."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def execute(
    client: paramiko.SSHClient, command: str, data: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Run a command with that input; return exit status, output and error output."""
    stdin, stdout, stderr = client.exec_command(command, timeout=TIMEOUT_S)
    stdin.write(data)
    stdin.channel.shutdown_write()
    out, error = stdout.read(), stderr.read()
    return stdout.channel.recv_exit_status(), out, error
