"""Runs one boot of a local machine; when it ends, every process that ran in it is killed.

Started by `machine.py` as `python -m infra.local.vm_process --dir DIR --boot N`, detached: whoever
started it may die, the machine stays. It listens to nobody but the files in `DIR`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from infra.errors import BadRequest
from infra.local.machine import Machine, MachineSpec
from infra.local.market import read_market
from infra.local.processes import VM_PROCESS, adopt_orphans, kill_all, processes_inside

if TYPE_CHECKING:
    from infra.local.imds import MetadataService
    from infra.local.ssh_server import SshServer

POLL_S = 0.05
MARKET_EVERY_S = 0.25
PERIODIC_EVERY_S = 1.0
HOST_KEY = "QFT_SSH_HOST_KEY"
"""Where the host key of a machine is that has no /etc/ssh of its own; see `remote/host_key.py`."""


def main(arguments: list[str]) -> int:
    """Detach, then run one boot of the machine until it is stopped, evicted or deleted."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.vm_process", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the machine's directory")
    parser.add_argument("--boot", type=int, required=True, help="which start of it this is")
    chosen = parser.parse_args(arguments)
    if os.fork():
        os._exit(0)  # the caller waits for this, and so never has this process as its own child
    run(chosen.dir, chosen.boot)
    return 0


def run(directory: Path, boot: int) -> None:
    """Run that boot of the machine in `directory`, unless one does or none is wanted."""
    adopt_orphans()
    machine = Machine(directory)
    with machine.as_only_process() as alone:
        if alone:
            try:
                asyncio.run(VmProcess(machine=machine, boot=boot).run())
            finally:  # also if we failed: without this process there is no machine
                spec = machine.spec()
                if spec is not None:
                    kill_all(lambda: processes_inside(spec.mark, machine.disk))


@dataclass(kw_only=True)
class VmProcess:
    """One boot of one machine."""

    machine: Machine
    boot: int
    _reaping: set[int] = field(default_factory=set)
    _deadline: float | None = None
    """When the announced end comes, in seconds of `time.monotonic`."""
    _next_market_s: float = 0.0
    _next_periodic_s: float = 0.0
    _next_private_s: float = 0.0

    async def run(self) -> None:
        """Boot, listen, and watch the machine's directory until something ends this boot."""
        # After the fork: whoever started us does not wait for the SSH server's library.
        from infra.local.imds import MetadataService
        from infra.local.ssh_server import SshServer

        spec, desired = self.machine.spec(), self.machine.desired_state()
        if spec is None or desired is None or desired.boot != self.boot or not desired.on:
            return  # deleted or restarted while we were starting
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._kill, spec.mark)
        if desired.evict_after_s is not None:
            script = (spec.notice_s, "evicted", "scripted", self.boot)
            asyncio.get_running_loop().call_later(
                desired.evict_after_s, self.machine.request_eviction, *script
            )
        metadata = MetadataService(
            vm_name=spec.name,
            compute={"name": spec.name, **spec.instance},
            first_call_s=spec.first_metadata_s,
            clock=time.time,
            on_start_request=self._evict_now,
            vendor=spec.vendor,
            secret=spec.metadata_path,
        )
        os.chdir(self.machine.disk)
        ssh = SshServer(
            home=self.machine.disk,
            user=spec.user,
            public_key=spec.public_key,
            host_key=self.machine.host_key,
            environ=_environ_inside(self.machine, spec.user),
        )
        booting = asyncio.ensure_future(self._boot(spec.boot_s, metadata, ssh))
        while True:  # a machine may be evicted or deleted before it is up, as on a real cloud
            self._poll(spec, metadata, ssh)
            if booting.done():
                # A machine that cannot boot ends, with the reason in its log.
                await self._listen_privately(ssh, ports=booting.result())
            await asyncio.sleep(POLL_S)

    async def _boot(
        self, boot_s: float, metadata: MetadataService, ssh: SshServer
    ) -> tuple[int, int]:
        """Take the time that booting takes, then listen and say so; return where, SSH first."""
        listener = await metadata.serve()
        metadata_port: int = listener.sockets[0].getsockname()[1]
        await asyncio.sleep(boot_s)
        ports = await ssh.serve(), metadata_port
        if not await self._listen_privately(ssh, ports=ports):
            self._report_listening(ssh, ports)
        return ports

    async def _listen_privately(self, ssh: SshServer, *, ports: tuple[int, int]) -> bool:
        """Listen at the address among the machines of the run, given before this boot or since.

        Whether it was new. One that somebody else listens at is tried again later.
        """
        now = time.monotonic()
        if ssh.private_host or now < self._next_private_s:
            return False
        self._next_private_s = now + PERIODIC_EVERY_S
        address = self.machine.private_host()
        if not address:
            return False
        try:
            await ssh.serve_privately(address)
        except OSError as error:
            print(f"cannot listen at {address}: {error}", file=sys.stderr)  # noqa: T201  (the log)
            return False
        self._report_listening(ssh, ports)
        return True

    def _report_listening(self, ssh: SshServer, ports: tuple[int, int]) -> None:
        """Record where this boot listens now."""
        self.machine.report_listening(
            self.boot, ssh_port=ports[0], metadata_port=ports[1], private_host=ssh.private_host
        )

    def _poll(self, spec: MachineSpec, metadata: MetadataService, ssh: SshServer) -> None:
        """Look at the directory, many times a second, and do what it says."""
        desired, now = self.machine.desired_state(), time.monotonic()
        if desired is None or desired.boot != self.boot or not desired.on:
            self._kill(spec.mark)
        self._check_eviction(spec.mark, metadata, now)
        ssh.refresh_host_key()
        if now >= self._next_market_s:
            self._next_market_s = now + MARKET_EVERY_S
            self._check_market(spec)
        if now >= self._next_periodic_s:
            self._next_periodic_s = now + PERIODIC_EVERY_S
            self._reap(ssh.children)
            self.machine.report_alive()

    def _check_eviction(self, mark: str, metadata: MetadataService, now: float) -> None:
        """Announce an eviction that was requested, and end this boot when its time has come."""
        eviction = self.machine.eviction(self.boot)
        if eviction is None:
            return
        if self._deadline is None:
            self._deadline = now + eviction.notice_s
            if eviction.notice_s > 0:
                metadata.announce_preemption(eviction.notice_s)
        if now >= self._deadline:
            metadata.start_preemption()
            try:
                self.machine.report_stop(self.boot, eviction.reason, eviction.detail)
            finally:  # a full disk may lose the reason, but not the eviction
                self._kill(mark)

    def _check_market(self, spec: MachineSpec) -> None:
        """Request our own eviction when the price has risen above the cap."""
        if not spec.market_file or spec.max_price_usd_per_h is None:
            return
        try:
            quote = read_market(Path(spec.market_file), time.time()).quote(spec.region)
        except BadRequest as error:
            print(error, file=sys.stderr)  # noqa: T201  (standard error is guest.log)
            return
        price = quote.spot_usd_per_h if quote else None
        if price is not None and price > spec.max_price_usd_per_h:
            detail = f"${price:.4f} per hour exceeds the cap of ${spec.max_price_usd_per_h:.4f}"
            self.machine.request_eviction(spec.notice_s, "price", detail, self.boot)

    def _evict_now(self) -> None:
        """The machine does not want to wait for its announced end."""
        if self._deadline is not None:
            self._deadline = time.monotonic()

    def _kill(self, mark: str) -> None:
        """Kill everything that runs here, then this process; nothing gets a chance to clean up."""
        kill_all(lambda: processes_inside(mark, self.machine.disk))
        os._exit(0)

    def _reap(self, waited_for: set[int]) -> None:
        """Collect adopted orphans that ended; twice seen, so that it is not a newborn's end."""
        zombies = {
            child.pid
            for child in psutil.Process().children()
            if child.pid not in waited_for and _is_zombie(child)
        }
        for pid in zombies & self._reaping:
            with contextlib.suppress(ChildProcessError):  # reaped by its parent
                os.waitpid(pid, os.WNOHANG)
        self._reaping = zombies


def _is_zombie(process: psutil.Process) -> bool:
    """Whether a process has ended and waits to be collected."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _environ_inside(machine: Machine, user: str) -> dict[str, str]:
    """The whole environment of what runs in the machine; ours is clean already, see `launch`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", VM_PROCESS, "PWD", "OLDPWD", "SHLVL", "_"}
    }
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    account = {"HOME": str(machine.disk), "USER": user, "LOGNAME": user, "SHELL": shell}
    return {**kept, **account, HOST_KEY: str(machine.host_key.resolve())}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
