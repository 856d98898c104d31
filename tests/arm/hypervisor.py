"""Runs simulated machines as real processes, with SSH and metadata, under their public IP."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from metal.machine import Metal, Quirks

from arm.metadata import MetadataService
from arm.replies import Reply, Request
from arm.world import Resource
from infra.local.machine import Machine, MachinePower, MachineSpec, inherited_environ
from infra.local.processes import MARK

ONCE_BYTES = 1 << 16


@dataclass
class LocalHypervisor:
    """Runs every machine as a process of this computer, behind the address the cloud gave it.

    SSH answers on the machine's own loopback address at `ssh_port`. The metadata service of the
    machine that booted last answers on `metadata_port` of 127.0.0.1, for `QFT_IMDS_ENDPOINT`.
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
    services: dict[str, MetadataService] = field(default_factory=dict)
    """The metadata service of each machine, as it is seen from within."""
    identity: Callable[[Request, str], Reply] = lambda _request, _vm_id: Reply(status=404)
    """The cloud's answer to a machine that asks for a token of its own."""
    environ: dict[str, str] = field(default_factory=dict)
    """What the cloud adds to the environment of the machines' services."""

    def __post_init__(self) -> None:
        self.ssh_port = self.ssh_port or _free_port()
        self._lock = threading.Lock()
        self._reboot_listener = RebootListener(self._restart)
        self._metadata = PortForwarder("127.0.0.1", 0, self._metadata_of_latest)

    @property
    def metadata_url(self) -> str:
        """Where the metadata service of the latest machine is reached."""
        return f"http://127.0.0.1:{self._metadata.port}"

    def boot(self, vm: Resource, host: str, *, outbound: bool) -> None:
        """Switch the machine on; made from its cloud-init data when it first boots."""
        with self._lock:
            machine = self.machines.get(vm.id) or self._make(vm)
            self.latest = vm.id
            self.metals[vm.id].boot(outbound=outbound, hurry=self.hurry)
            machine.power_on()
            self.metals[vm.id].start(self._environ(machine))
        if host and vm.id not in self.forwarders:
            self.forwarders[vm.id] = PortForwarder(
                host, self.ssh_port, lambda: machine.state().ssh_port
            )

    def warn(self, vm: Resource, notice_s: float) -> None:
        """Announce the eviction; the guest ends itself when the notice has run out."""
        self.machines[vm.id].request_eviction(notice_s / max(self.pace, 1.0))

    def halt(self, vm: Resource) -> None:
        """Pull the plug; the disk stays."""
        with self._lock:
            if vm.id in self.machines:
                self.machines[vm.id].power_off("user")

    def remove(self, vm: Resource) -> None:
        """Pull the plug and wipe the disk."""
        machine = self.machines.pop(vm.id, None)
        forwarder = self.forwarders.pop(vm.id, None)
        if forwarder is not None:
            forwarder.close()
        if machine is not None:
            with self._lock:
                self.history[vm.id] = self.metals.pop(vm.id).done()
                machine.power_off("user")
            self.services.pop(vm.id).close()
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
        self._reboot_listener.close()

    def _make(self, vm: Resource) -> Machine:
        profile = vm.properties["osProfile"]
        directory = self.directory / vm.name
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        machine, metal = Machine(directory), Metal(directory / "metal")
        spec = MachineSpec(
            name=vm.name,
            user=profile["adminUsername"],
            public_key=profile["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"],
            instance={"vmId": vm.properties["vmId"], "location": vm.location, "resourceId": vm.id},
            environ={**inherited_environ(), **metal.environ()},
        )
        service = MetadataService(
            identity=lambda request: self.identity(request, vm.id),
            port_of=lambda: machine.state().metadata_port,
        )
        metal.make(
            vm.properties,
            self.quirks,
            pace=self.pace,
            button=self._reboot_listener.port,
            name=vm.id,
        )
        with metal.store.change() as state:
            state.metadata_port = service.port
        machine.make(spec, metal.host_key())
        self.machines[vm.id], self.metals[vm.id] = machine, metal
        self.services[vm.id] = service
        return machine

    def hasten(self, vm: Resource, unit: str, *arguments: str) -> None:
        """Have a service of the machine begin anew, with other further arguments."""
        metal = self.metals[vm.id]
        with metal.store.change() as state:
            state.hurry = list(arguments)
        argv = (str(metal.programs / "systemctl"), "restart", unit)
        metal.as_root(*argv, environ=self._environ(self.machines[vm.id]))

    def _environ(self, machine: Machine) -> dict[str, str]:
        """What makes a process one of the machine's, which ends with it."""
        spec = machine.spec()
        return {**self.environ, MARK: spec.mark if spec else ""}

    def _restart(self, name: str) -> None:
        """The machine pressed its own button: everything in it ends, and it boots again."""
        with self._lock:
            machine, metal = self.machines.get(name), self.metals.get(name)
            if machine is None or metal is None or machine.state().power is not MachinePower.ON:
                return
            machine.power_off("reboot")
            metal.boot(outbound=True, hurry=self.hurry)
            machine.power_on()
            metal.start(self._environ(machine))

    def _metadata_of_latest(self) -> int:
        machine = self.machines.get(self.latest)
        return machine.state().metadata_port if machine else 0


class RebootListener:
    """Takes a line with a machine's name from within it, and has the machine restarted."""

    def __init__(self, restart: Callable[[str], None]) -> None:
        self._restart = restart
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
                name = line.readline().strip()
            self._restart(name)


class PortForwarder:
    """Listens on one address and carries every connection to whatever port holds just then."""

    def __init__(self, host: str, port: int, target: Callable[[], int]) -> None:
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
