"""Runs simulated machines as real processes of this computer, with SSH at the address they have.

It knows no cloud: `MachineHost` is subclassed by each, which says what a machine of its own is
(`VmDefinition`), and what its metadata service answers.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from infra.local.machine import Machine, MachinePower, MachineSpec, inherited_environ
from infra.local.processes import MARK, machine_processes
from metal.definition import Quirks, VmDefinition
from metal.machine import Metal

ONCE_BYTES = 1 << 16
V = TypeVar("V")


class MetadataEndpoint(Protocol):
    """A metadata service that answers one machine, on a port of 127.0.0.1."""

    port: int

    def close(self) -> None:
        """Answer no more."""
        ...


@dataclass
class MachineHost(ABC, Generic[V]):
    """Runs every machine as a process, behind the address the cloud gave it; `V` is the cloud's.

    SSH answers on the machine's own loopback address at `ssh_port`. The metadata service of the
    machine that booted last answers on `metadata_url`.
    """

    directory: Path
    pace: float = 1.0
    """How much faster the cloud's time runs than the guests'."""
    ssh_port: int = 0
    forwarders: dict[str, PortForwarder] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    metals: dict[str, Metal] = field(default_factory=dict)
    """What is inside the machines: drivers, packages, Python."""
    history: dict[str, list[str]] = field(default_factory=dict)
    """What had been done to the systems of machines that are gone."""
    quirks: Quirks = field(default_factory=Quirks)
    """What is special about the machines made from now on."""
    hurry: tuple[str, ...] = ()
    """Further arguments of services from the next boot on, for tests without an hour to wait."""
    latest: str = ""
    services: dict[str, MetadataEndpoint] = field(default_factory=dict)
    """The metadata service of each machine, as it is seen from within."""
    environ: dict[str, str] = field(default_factory=dict)
    """What the cloud adds to the environment of the machines' services."""
    on_power_off: Callable[[str], None] = lambda _id: None
    """Called with the id of a machine that has shut itself down from inside, once it is off."""

    def __post_init__(self) -> None:
        self.ssh_port = self.ssh_port or _free_port()
        self._lock = threading.Lock()
        self._buttons = ButtonListener({"reboot": self._restart, "poweroff": self._power_off})
        self._metadata = PortForwarder("127.0.0.1", 0, self._metadata_of_latest)

    @abstractmethod
    def id_of(self, vm: V) -> str:
        """The id of the cloud's machine."""

    @abstractmethod
    def definition(self, vm: V) -> VmDefinition:
        """What the machine is made as, at its first boot."""

    @abstractmethod
    def metadata_service(self, vm: V, machine: Machine) -> MetadataEndpoint:
        """Open the metadata service of a machine that is being made."""

    @abstractmethod
    def warn(self, vm: V, notice_s: float) -> None:
        """Let the machine's metadata announce that it will be taken away."""

    @abstractmethod
    def metadata_port_of(self, id_: str) -> int:
        """Where the metadata of a machine is reached from outside of it; 0 if nowhere."""

    @property
    def metadata_url(self) -> str:
        """Where the metadata service of the latest machine is reached."""
        return f"http://127.0.0.1:{self._metadata.port}"

    def boot(self, vm: V, host: str, *, outbound: bool) -> None:
        """Switch the machine on; made from its cloud-init data when it first boots."""
        id_ = self.id_of(vm)
        with self._lock:
            machine = self.machines.get(id_) or self._make(vm)
            self.latest = id_
            self._power_on(id_, outbound=outbound)
        self._forward(id_, host, machine)

    def halt(self, vm: V) -> None:
        """Pull the plug; the disk stays."""
        with self._lock:
            if machine := self.machines.get(self.id_of(vm)):
                machine.power_off("user")

    def remove(self, vm: V) -> None:
        """Pull the plug and wipe the disk."""
        id_ = self.id_of(vm)
        machine = self.machines.pop(id_, None)
        forwarder = self.forwarders.pop(id_, None)
        if forwarder is not None:
            forwarder.close()
        if machine is not None:
            with self._lock:
                self.history[id_] = self.metals.pop(id_).done()
                machine.power_off("user")
            self.services.pop(id_).close()
            shutil.rmtree(machine.directory, ignore_errors=True)

    def close(self) -> None:
        """End everything that still runs."""
        with self._lock:
            self.metals.clear()
            for machine in self.machines.values():
                machine.power_off("user")
        for forwarder in (*self.forwarders.values(), self._metadata):
            forwarder.close()
        for service in self.services.values():
            service.close()
        self._buttons.close()

    def hasten(self, vm: V, unit: str, *arguments: str) -> None:
        """Have a service of the machine begin anew, with other further arguments."""
        id_ = self.id_of(vm)
        metal = self.metals[id_]
        with metal.store.change() as state:
            state.hurry = list(arguments)
        argv = (str(metal.programs / "systemctl"), "restart", unit)
        metal.as_root(*argv, environ=self._environ(self.machines[id_]))

    def processes(self, vm: V) -> int:
        """How many processes run in a machine."""
        machine = self.machines[self.id_of(vm)]
        spec = machine.spec()
        return len(machine_processes(spec.mark, machine.disk)) if spec else 0

    def _make(self, vm: V) -> Machine:
        definition = self.definition(vm)
        directory = self.directory / definition.name
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        machine, metal = Machine(directory), Metal(directory / "metal")
        spec = MachineSpec(
            name=definition.name,
            user=definition.user,
            public_key=definition.public_key,
            instance=definition.instance,
            environ={**inherited_environ(), **metal.environ()},
        )
        service = self.metadata_service(vm, machine)
        metal.make(definition, self.quirks, pace=self.pace, button=self._buttons.port)
        with metal.store.change() as state:
            state.metadata_port = service.port
        machine.make(spec, metal.host_key_path().read_text())
        self.machines[definition.id], self.metals[definition.id] = machine, metal
        self.services[definition.id] = service
        return machine

    def _power_on(self, id_: str, *, outbound: bool) -> None:
        """Begin a life, with the host key that lies on the disk by now."""
        machine, metal = self.machines[id_], self.metals[id_]
        metal.boot(outbound=outbound, hurry=self.hurry)
        machine.host_key.unlink()
        machine.host_key.symlink_to(metal.host_key_path())
        machine.power_on()
        metal.start(self._environ(machine))

    def _forward(self, id_: str, host: str, machine: Machine) -> None:
        """Let SSH answer at the machine's address, which may be another one after each start."""
        current = self.forwarders.get(id_)
        if not host or (current is not None and current.host == host):
            return
        if current is not None:
            current.close()
        self.forwarders[id_] = PortForwarder(host, self.ssh_port, lambda: machine.state().ssh_port)

    def _environ(self, machine: Machine) -> dict[str, str]:
        """What makes a process one of the machine's, which ends with it."""
        spec = machine.spec()
        return {**self.environ, MARK: spec.mark if spec else ""}

    def _is_on(self, id_: str) -> bool:
        machine = self.machines.get(id_)
        return machine is not None and machine.state().power is MachinePower.ON

    def _restart(self, id_: str) -> None:
        """The machine restarts itself: everything in it ends, and it boots again."""
        with self._lock:
            if self._is_on(id_):
                self.machines[id_].power_off("reboot")
                self._power_on(id_, outbound=True)

    def _power_off(self, id_: str) -> None:
        """The machine shuts itself down: everything in it ends, and the cloud hears of it."""
        with self._lock:
            if not self._is_on(id_):
                return
            self.machines[id_].power_off("user")
        self.on_power_off(id_)

    def _metadata_of_latest(self) -> int:
        return self.metadata_port_of(self.latest) if self.latest in self.machines else 0


class ButtonListener:
    """Takes a line `BUTTON ID` from within a machine, such as `reboot`, and acts on it."""

    def __init__(self, buttons: dict[str, Callable[[str], None]]) -> None:
        self._buttons = buttons
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            with caller, caller.makefile() as line:
                button, _, id_ = line.readline().strip().partition(" ")
            self._buttons[button](id_)


class PortForwarder:
    """Listens on one address and carries every connection to whatever port holds just then."""

    def __init__(self, host: str, port: int, target: Callable[[], int]) -> None:
        self.host = host
        self._target = target
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(caller,), daemon=True).start()

    def _carry(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            port = self._target()
            if not port:
                return
            with socket.create_connection(("127.0.0.1", port), timeout=5) as target:
                target.settimeout(None)
                back = threading.Thread(target=_pump, args=(target, caller), daemon=True)
                back.start()
                _pump(caller, target)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(ONCE_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _free_port() -> int:
    """A port that is free on every loopback address just now."""
    with socket.create_server(("0.0.0.0", 0)) as probe:  # noqa: S104  (asks for a number only)
        return int(probe.getsockname()[1])
