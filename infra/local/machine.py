"""A machine simulated by this computer, described by a directory that is right after any crash.

Files of a machine's directory, each whole or absent:

    spec.json     what the machine is; written once by its owner, last of what makes it
    host_key      the private host key it presents
    network.json  its address among the other machines of its run, once it has such
    orders.json   the desired state: the number of the boot, and whether it should be on
    eviction.json that this boot will be ended, by whom and with how much notice
    guest.json    where the process of a boot listens; written by that process
    stopped.json  why a boot ended, written by its process before it ends
    disk/         the machine's home directory, kept while it is off
    guest.log     the output of the process
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from infra.durable import read_json, write_bytes, write_json
from infra.local.processes import (
    MARK,
    VM_PROCESS,
    find_vm_process,
    freeze,
    is_vm_process,
    kill_all,
    machine_processes,
    thaw,
)

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_TIMEOUT_S = 10.0
"""How long a boot may have no process at all before it counts as failed."""
KEPT_ENVIRONMENT = (
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)
"""What describes this computer rather than its user; nothing else of the caller gets in."""


def inherited_environ() -> dict[str, str]:
    """Return what of our environment a machine made now keeps.

    Settled once: a job resumed from another shell must compute with the same number of threads.
    """
    return {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}


@dataclass(frozen=True, kw_only=True)
class MachineSpec:
    """What a machine is, for as long as it exists."""

    name: str
    """What it calls itself, such as in the `Resources` of a scheduled event."""
    user: str
    public_key: str
    notice_s: float = 5.0
    """How long a scripted eviction is announced; 0 is no notice at all."""
    boot_s: float = 0.0
    """How long it takes from power on until SSH answers, beyond what the process itself needs."""
    first_metadata_s: float = 0.0
    """How long the first question to the metadata service takes."""
    vendor: str = "azure"
    """As whose its metadata service answers: `azure` or `aws`."""
    metadata_path: str = ""
    """What the paths of the metadata service begin with, known to this machine only."""
    instance: dict[str, str] = field(default_factory=dict)
    """Facts for `/metadata/instance/compute`."""
    environ: dict[str, str] = field(default_factory=inherited_environ)
    market_file: str = ""
    """Where the machine's price stands (market.py); empty if it has none."""
    region: str = ""
    max_price_usd_per_h: float | None = None
    """The machine evicts itself when its price in `region` rises above this."""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    """What its processes carry in their environment; unique on this computer."""


@dataclass(frozen=True, kw_only=True)
class DesiredState:
    """The desired state of the machine: which boot, and on or off."""

    boot: int
    on: bool
    since: str
    reason: str = ""
    """Why it is off."""
    evict_after_s: float | None = None
    """When this boot is to be evicted by script, counted from its start."""


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """An eviction that is due for one boot."""

    boot: int
    notice_s: float
    reason: str
    detail: str


class MachinePower(StrEnum):
    """The states of a machine, as seen from outside."""

    ABSENT = "absent"
    OFF = "off"
    BOOTING = "booting"
    ON = "on"
    ENDING = "ending"
    DEAD = "dead"
    """Should be on, but its process is gone without a record: it crashed, or the computer did."""


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """One look at a machine."""

    power: MachinePower
    boot: int = 0
    since: str = ""
    ssh_port: int = 0
    metadata_port: int = 0
    private_host: str = ""
    """Where it is reached on the same SSH port by the other machines of its run; empty if it has
    none, or does not listen there yet."""
    reason: str = ""
    detail: str = ""


class Machine:
    """Controls one machine; the caller makes sure that only one process does at a time."""

    def __init__(
        self,
        directory: Path,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory.resolve()
        self.disk = self.directory / "disk"
        self.host_key = self.directory / "host_key"
        self._sleep = sleep
        self._clock = clock

    def make(self, spec: MachineSpec, host_private_key: str) -> None:
        """Make the machine, powered off, with an empty disk; safe to repeat after a crash."""
        self.disk.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(self.host_key, host_private_key.encode())
        write_json(self.directory / "spec.json", asdict(spec))

    def set_private_host(self, address: str) -> None:
        """Give the machine an address among the others of its run; one that is on listens there."""
        write_json(self.directory / "network.json", {"private_host": address})

    def private_host(self) -> str:
        """Read its address among the others of its run; empty if it was given none."""
        data = read_json(self.directory / "network.json")
        return "" if data is None else str(data["private_host"])

    def power_on(self, *, evict_after_s: float | None = None) -> None:
        """Begin a new boot unless one is on; returns before SSH answers. Raises `LaunchFailed`."""
        spec, desired = self.spec(), self.desired_state()
        if spec is None:
            raise FileNotFoundError(f"`{self.directory}` holds no machine")
        if desired is None or self.state().power in {MachinePower.OFF, MachinePower.DEAD}:
            self.kill_processes()
            boot = desired.boot + 1 if desired else 1
            desired = DesiredState(
                boot=boot, on=True, since=self._now(), evict_after_s=evict_after_s
            )
            self._write("orders.json", desired)
        if desired.on and find_vm_process(spec.mark, desired.boot) is None:
            self._launch(spec, desired.boot)

    def power_off(self, reason: str) -> None:
        """End this boot at once: no notice, no process left when this returns.

        If the reason cannot be written down, as on a full disk, the boot ends all the same.
        """
        desired = self.desired_state()
        try:
            if desired is not None and desired.on and self._stop_record(desired.boot) is None:
                off = DesiredState(boot=desired.boot, on=False, since=self._now(), reason=reason)
                self._write("orders.json", off)
        finally:
            self.kill_processes()

    def kill_processes(self) -> None:
        """Kill whatever runs in the machine and write nothing: for one that is being deleted."""
        spec = self.spec()
        if spec is not None:
            kill_all(lambda: machine_processes(spec.mark, self.disk), sleep=self._sleep)

    def silence(self) -> None:
        """Stop whatever runs in the machine, itself included, so that it is on and answers nobody.

        An eviction that falls due meanwhile waits: the machine carries it out itself.
        """
        spec = self.spec()
        if spec is not None:
            freeze(lambda: machine_processes(spec.mark, self.disk))

    def awaken(self) -> None:
        """Let everything go on that `silence` stopped."""
        spec = self.spec()
        if spec is not None:
            thaw(machine_processes(spec.mark, self.disk))

    def request_eviction(
        self, notice_s: float, reason: str = "evicted", detail: str = "", boot: int | None = None
    ) -> None:
        """Have the machine evict itself after `notice_s`; nobody needs to wait for it.

        Silent if that is under way already, or the machine is not on.
        """
        desired = self.desired_state()
        if desired is None or not desired.on or boot not in {None, desired.boot}:
            return
        if self.eviction(desired.boot) is None:
            eviction = Eviction(boot=desired.boot, notice_s=notice_s, reason=reason, detail=detail)
            self._write("eviction.json", eviction)

    def state(self) -> MachineState:
        """Look at the machine. If it is found dead, its last processes are ended."""
        spec, desired = self.spec(), self.desired_state()
        if spec is None:
            return MachineState(power=MachinePower.ABSENT)
        if desired is None:
            return MachineState(power=MachinePower.OFF, reason="user", detail="never switched on")
        if not desired.on:
            return MachineState(
                power=MachinePower.OFF,
                boot=desired.boot,
                since=desired.since,
                reason=desired.reason,
            )
        listening = self._record("guest.json", desired.boot)
        alive = (
            is_vm_process(listening["pid"], listening["created_at"], spec.mark, desired.boot)
            if listening is not None
            else find_vm_process(spec.mark, desired.boot) is not None
        )
        stop = self._stop_record(desired.boot)
        if stop is not None:
            power = MachinePower.ENDING if alive else MachinePower.OFF
            return MachineState(power=power, boot=desired.boot, **stop)
        if listening is not None and alive:
            return MachineState(
                power=MachinePower.ON,
                boot=desired.boot,
                since=listening["since"],
                ssh_port=listening["ssh_port"],
                metadata_port=listening["metadata_port"],
                private_host=listening.get("private_host", ""),
            )
        if listening is None and (alive or self._may_be_starting(desired)):
            return MachineState(power=MachinePower.BOOTING, boot=desired.boot, since=desired.since)
        return self._clean_up_dead(desired)

    def spec(self) -> MachineSpec | None:
        """Read what the machine is; None if it does not exist."""
        data = read_json(self.directory / "spec.json")
        return None if data is None else MachineSpec(**data)

    def desired_state(self) -> DesiredState | None:
        """Read the desired state; None if it was never powered on or is being deleted."""
        data = read_json(self.directory / "orders.json")
        return None if data is None else DesiredState(**_with_boot(data))

    def eviction(self, boot: int) -> Eviction | None:
        """Read the eviction that is due for that boot; None if there is none."""
        data = self._record("eviction.json", boot)
        return None if data is None else Eviction(**_with_boot(data))

    def report_listening(
        self, boot: int, *, ssh_port: int, metadata_port: int, private_host: str = ""
    ) -> None:
        """Record where the calling process of the machine listens; again when that is more."""
        me, before = psutil.Process(), self._record("guest.json", boot)
        record = {
            "life": boot,
            "pid": me.pid,
            "created_at": me.create_time(),
            "ssh_port": ssh_port,
            "metadata_port": metadata_port,
            "since": self._now() if before is None else before["since"],
        }
        if private_host:
            record["private_host"] = private_host
        write_json(self.directory / "guest.json", record)

    def report_stop(self, boot: int, reason: str, detail: str) -> None:
        """Record why the calling process of the machine is about to end."""
        record = {"life": boot, "reason": reason, "detail": detail, "since": self._now()}
        write_json(self.directory / "stopped.json", record)

    def report_alive(self) -> None:
        """Record that the process of the machine is alive, in case it just vanishes."""
        with contextlib.suppress(FileNotFoundError):  # deleted, which the next look notices
            os.utime(self.directory / "guest.lock")

    @contextlib.contextmanager
    def as_only_process(self) -> Iterator[bool]:
        """Hold the machine for the calling process; False if another one is its process."""
        try:
            handle = os.open(self.directory / "guest.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            yield False  # deleted while we were starting
            return
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def _clean_up_dead(self, desired: DesiredState) -> MachineState:
        """End what is left of a machine without its process; return what was found."""
        self.kill_processes()
        stop = self._stop_record(desired.boot)
        if stop is not None:  # it ended properly between two of our looks
            return MachineState(power=MachinePower.OFF, boot=desired.boot, **stop)
        return MachineState(
            power=MachinePower.DEAD,
            boot=desired.boot,
            since=self._last_seen(),
            reason="failed",
            detail="its process ended without a word, as when this computer restarts"
            + self._log_tail(),
        )

    def _log_tail(self) -> str:
        """The last line of the log, for people; empty if there is none."""
        try:
            lines = (self.directory / "guest.log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        return f"; `guest.log` ends with: {lines[-1][:300]}" if lines else ""

    def _last_seen(self) -> str:
        """When the process was last alive, ISO 8601 UTC; empty if there never was one."""
        try:
            seen = (self.directory / "guest.lock").stat().st_mtime
        except FileNotFoundError:
            return ""
        return datetime.fromtimestamp(seen, UTC).isoformat()

    def _may_be_starting(self, desired: DesiredState) -> bool:
        """Whether this boot was begun so recently that its process may not exist yet."""
        age_s = self._clock() - datetime.fromisoformat(desired.since).timestamp()
        return 0 <= age_s < BOOT_TIMEOUT_S

    def _launch(self, spec: MachineSpec, boot: int) -> None:
        """Start the process of a boot in its own session, with nothing of ours but this code."""
        environ = {
            "LANG": "C.UTF-8",
            **spec.environ,
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "PYTHONPATH": str(Path(__file__).absolute().parents[2]),
            MARK: spec.mark,
            VM_PROCESS: str(boot),
        }
        # -P: the machine's disk must not be able to stand in for a module of ours.
        argv = [sys.executable, "-P", "-m", "infra.local.vm_process"]
        argv += ["--dir", str(self.directory), "--boot", str(boot)]
        log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            sys.executable,
            argv,
            environ,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.directory / "guest.log"), log, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise LaunchFailed(self.directory / "guest.log", os.waitstatus_to_exitcode(status))

    def _record(self, name: str, boot: int) -> dict[str, Any] | None:
        """Read a record if it is about that boot."""
        data: dict[str, Any] | None = read_json(self.directory / name)
        return data if data is not None and data["life"] == boot else None

    def _stop_record(self, boot: int) -> dict[str, Any] | None:
        """Read why that boot ended (reason, detail, since), if its process recorded it."""
        data = self._record("stopped.json", boot)
        return None if data is None else {key: data[key] for key in ("reason", "detail", "since")}

    def _write(self, name: str, value: DesiredState | Eviction) -> None:
        """Write one record, with its boot under the key of all records here, `life`."""
        data = asdict(value)
        write_json(self.directory / name, {"life": data.pop("boot"), **data})

    def _now(self) -> str:
        """The time, ISO 8601 UTC."""
        return datetime.fromtimestamp(self._clock(), UTC).isoformat()


def _with_boot(record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that was written with its boot under `life`."""
    return {"boot" if key == "life" else key: value for key, value in record.items()}


class LaunchFailed(Exception):  # noqa: N818  (says what happened)
    """The process of a machine did not even start."""

    def __init__(self, log: Path, code: int) -> None:
        super().__init__(f"the local machine's process ended with code {code}; see `{log}`")
