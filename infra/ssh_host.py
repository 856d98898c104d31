"""Provides a machine that the user already has: nothing is rented or given back.

All that `create` and `delete` do is remember and forget, in one small file, which run uses it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from infra.durable import LockTimeout, locked, read_json, write_json
from infra.errors import BadRequest, Gone, Transient
from infra.offer import Offer, Want
from infra.provider import (
    Observation,
    OnMessage,
    PowerState,
    Provider,
    Removed,
    StopReason,
    Traits,
    Vm,
    VmSpec,
    ignore_message,
)

SIZE = "yours"
REGION = "yours"


@dataclass(frozen=True, kw_only=True)
class SshHostSettings:
    """Where the user's machine is, and the key by which it is known."""

    host: str
    port: int = 22
    user: str
    host_public_key: str
    """The line its SSH server must present; read once and confirmed by the user, never guessed."""


class SshHostProvider(Provider):
    """Keeps the promises of `Provider` for one machine that is nobody's but the user's."""

    name = "ssh"
    traits = Traits(rents=False, evicts=False)

    def __init__(
        self,
        root: Path,
        settings: SshHostSettings,
        *,
        connect_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._file = root / "hosts.json"
        self._settings = settings
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock

    def offers(self, want: Want) -> list[Offer]:
        """Offer the one machine, free of charge; set-up finds out which GPU it has."""
        return [
            Offer(
                provider=self.name,
                region=REGION,
                size=SIZE,
                gpu=want.gpu,
                gpu_count=want.gpu_count,  # set-up counts them
                spot_usd_per_h=0.0,
                price_source="your own machine",
                priced_at=self._now(),
            )
        ]

    def create(self, spec: VmSpec) -> Vm:
        """Remember that the run uses the machine; raises `Transient` if it does not answer."""
        with self._locked_table() as table:
            if spec.run_id not in table:
                self._check_port()
                table[spec.run_id] = self._vm(spec)
            return table[spec.run_id]

    def observe(self, vm: Vm) -> Observation:
        """See whether its port answers; one that does not is down, and bills nothing either way."""
        if vm.run_id not in self._read():
            return Observation(
                power=PowerState.GONE,
                stop_reason=StopReason.UNKNOWN,
                detail="this run does not use the machine",
            )
        try:
            self._check_port()
        except Transient as error:
            return Observation(
                power=PowerState.DEALLOCATED,
                host=vm.host,
                port=vm.port,
                stop_reason=StopReason.UNKNOWN,
                detail=str(error),
                price_usd_per_h=0.0,
            )
        return Observation(
            power=PowerState.RUNNING, host=vm.host, port=vm.port, price_usd_per_h=0.0
        )

    def start(self, vm: Vm) -> None:
        """Make sure that it answers: powering it on is up to its owner."""
        self._require_in_use(vm)
        self._check_port()

    def deallocate(self, vm: Vm) -> None:
        """Leave it as it is: it bills nothing, and it is not ours to power off."""
        self._require_in_use(vm)

    def delete(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Forget that the run uses the machine; nothing on it is touched, so nothing is listed."""
        del on_message  # it takes no time
        with self._locked_table() as table:
            table.pop(run_id, None)
        return []

    def list_all(self) -> list[Vm]:
        """List what was remembered on this computer: no cloud lists such machines."""
        return sorted(self._read().values(), key=lambda vm: vm.created_at, reverse=True)

    def evict(self, vm: Vm) -> None:
        """Refuse: nobody can take the user's machine away."""
        self._require_in_use(vm)
        raise BadRequest(
            "a machine of your own is never evicted",
            hint="rehearse evictions with `provider: local`",
        )

    def _check_port(self) -> None:
        """Raise `Transient` unless something listens at the machine's SSH port."""
        address = (self._settings.host, self._settings.port)
        try:
            socket.create_connection(address, timeout=self._connect_timeout_s).close()
        except (OSError, ValueError) as error:  # a name that IDNA refuses is a ValueError
            raise Transient(
                f"{address[0]} does not answer at port {address[1]}: {error}",
                hint="switch it on, or check `vm.ssh` in run.yaml",
                retry_after_s=10.0,
            ) from error

    def _vm(self, spec: VmSpec) -> Vm:
        """Return the machine as a value."""
        settings = self._settings
        return Vm(
            provider=self.name,
            run_id=spec.run_id,
            id=f"{settings.user}@{settings.host}:{settings.port}",
            region=REGION,
            size=SIZE,
            generation=spec.generation,
            user=settings.user,
            host=settings.host,
            port=settings.port,
            host_public_key=settings.host_public_key,
            power=PowerState.RUNNING,
            created_at=self._now(),
        )

    def _require_in_use(self, vm: Vm) -> None:
        """Raise `Gone` unless the run uses the machine."""
        if vm.run_id not in self._read():
            raise Gone(f"the run `{vm.run_id}` does not use {vm.id}")

    def _read(self) -> dict[str, Vm]:
        """Read which runs use which machine; raises `BadRequest` naming an unreadable file."""
        try:
            data = read_json(self._file)
            runs = {} if data is None else data["runs"]
            return {run_id: Vm.from_json(entry) for run_id, entry in runs.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(
                f"`{self._file}` is damaged: {error!r}",
                hint=f"it holds no secrets and no data: remove it with `rm {self._file}`",
            ) from error

    @contextlib.contextmanager
    def _locked_table(self) -> Iterator[dict[str, Vm]]:
        """Lock the table and yield it; written back if it was changed."""
        try:
            with locked(self._root / "hosts.lock"):
                table = self._read()
                before = dict(table)
                yield table
                if table != before:
                    runs = {run_id: vm.to_json() for run_id, vm in table.items()}
                    write_json(self._file, {"version": 1, "runs": runs})
        except LockTimeout as error:
            raise Transient(str(error), retry_after_s=1.0) from error

    def _now(self) -> str:
        """The time, ISO 8601 UTC."""
        return datetime.fromtimestamp(self._clock(), UTC).isoformat()
