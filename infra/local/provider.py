"""Simulates a spot cloud on this computer: real processes keep the promises of `Provider`.

State lives under one directory and nowhere else, so that any process finds it:

    lock            one caller at a time changes anything
    market.json     prices and capacity, if the user wants other than the default (market.py)
    vms/RUN/        one machine: vm.json is what `create` returned, the rest machine.py's
    vms/RUN.nI/     machine I of a run that has several; that above is its machine 0
    trash/          machines being deleted (directories.py)
"""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.catalog.gpus import resolve_gpu
from infra.catalog.vendors import cheapest_size, reference_on_demand_usd_per_h
from infra.durable import LockTimeout, locked, read_json, write_json
from infra.errors import Gone, NotAllowed, Transient
from infra.local.directories import Directories, name_in_trash, owner_of, remove_tree
from infra.local.machine import LaunchFailed, Machine, MachinePower, MachineSpec, MachineState
from infra.local.market import Market, read_market
from infra.local.network import address_of, check_usable, choose_network, network_of
from infra.local.processes import StillAlive
from infra.local.sizes import cards_of, size_with
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

DEFAULT_GPU = "T4"
LOCK_TIMEOUT_S = 60.0
RUNS = frozenset({MachinePower.BOOTING, MachinePower.ON, MachinePower.ENDING})
"""Where a machine takes one of those that its region has."""


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """How machines made by this provider behave; stored with each machine when it is made."""

    notice_s: float = 5.0
    """How long an eviction is announced; 0 is no notice at all."""
    evict_after_s: Sequence[float | Sequence[float]] = ()
    """One entry per boot: after how many seconds it is evicted by script. Boots of later machines
    of a run count on from the generation. Of a run with several machines it is the first that is
    evicted, or with a list of lists each by its own."""
    vendor: str = "azure"
    """Whose machines it plays, `azure` or `aws`: how they announce an eviction, and whether others
    can read the host key of their first boot."""
    boot_s: float = 0.0
    first_metadata_s: float = 0.0

    def script_of(self, node: int) -> list[float]:
        """Return the script of one machine of a run; empty if it is never evicted by script."""
        own = [one for one in self.evict_after_s if not isinstance(one, Sequence)]
        by_node = [one for one in self.evict_after_s if isinstance(one, Sequence)] or [own]
        return [*by_node[node]] if node < len(by_node) else []


class LocalProvider(Provider):
    """Keeps the promises of `Provider` with processes of this computer."""

    name = "local"
    traits = Traits(rents=True, evicts=True, simulated_prices=True, several_machines=True)

    def __init__(
        self,
        root: Path,
        *,
        settings: LocalSettings | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root.absolute()
        self._directories = Directories(root=self._root)
        self._settings = settings or LocalSettings()
        self._sleep = sleep
        self._clock = clock

    def offers(self, want: Want) -> list[Offer]:
        """List one offer per simulated region: free ones first, as wanted or else by price."""
        gpu, count = resolve_gpu(want.gpu or DEFAULT_GPU).gpu, want.gpu_count
        market = self._market()
        from_file = market.quotes is not None
        offers = []
        for region in want.regions or market.regions:
            quote = market.quote(region)
            on_demand = quote.on_demand_usd_per_h if quote else None
            offers.append(
                Offer(
                    provider=self.name,
                    region=region,
                    size=size_with(count),
                    gpu=gpu.name,
                    gpu_count=count,
                    gpu_memory_gb=count * gpu.memory_gb,
                    spot_usd_per_h=market.price(region, gpu.name, count) if quote else 0.0,
                    on_demand_usd_per_h=count
                    * (on_demand or reference_on_demand_usd_per_h(gpu.name)),
                    price_source="market.json, simulated" if from_file else "catalog, simulated",
                    priced_at=self._now() if from_file else cheapest_size(gpu.name)[0].spot_date,
                    blocked_by=market.blocked_by(
                        region,
                        gpu.name,
                        want.max_price_usd_per_h,
                        gpu_count=count,
                        running=self._running_in(region, market),
                    )
                    or market.blocked_by_count(region, want.nodes),
                )
            )
        price_weight = 0.0 if want.regions else 1.0
        return sorted(offers, key=lambda o: (bool(o.blocked_by), price_weight * o.spot_usd_per_h))

    def create(self, spec: VmSpec) -> Vm:
        """Make the machine or return it; all that says what it is is written before it starts."""
        if importlib.util.find_spec("asyncssh") is None:
            raise NotAllowed(
                "machines played by this computer need the embedded SSH server",
                hint="pip install 'qft[local]'",
            )
        directory = self._directories.of(spec.run_id, spec.node)
        with self._locked(), _seam_errors():
            self._empty_trash(spec.run_id)
            machine = self._machine(directory)
            record = read_json(directory / "vm.json")
            if record is None or machine.desired_state() is None:
                self._check_available(
                    spec.offer.region,
                    spec.offer.gpu or DEFAULT_GPU,
                    spec.max_price_usd_per_h,
                    gpu_count=spec.offer.gpu_count,
                )
                if _has_peers(spec):
                    check_usable(self._private_host(directory))
                record = self._make(machine, spec)
            if _has_peers(spec):
                self._connect(spec.run_id)
            if (
                machine.state().power in {MachinePower.OFF, MachinePower.DEAD}
                and machine.desired_state() is not None
            ):
                return self._vm(record, machine.state())
            machine.power_on(evict_after_s=_next_eviction_s(record, machine))
            return self._vm(record, machine.state())

    def observe(self, vm: Vm) -> Observation:
        """Look at the machine; prices come from the market of its region."""
        directory = self._directories.of(vm.run_id, vm.node)
        with _seam_errors():
            record = read_json(directory / "vm.json")
            if record is None or record["vm"]["id"] != vm.id:
                return Observation(
                    power=PowerState.GONE,
                    stop_reason=StopReason.UNKNOWN,
                    detail="no such machine on this computer",
                )
            state = self._machine(directory).state()
        seen = self._vm(record, state)
        market = self._market()
        has_region = market.quote(seen.region) is not None
        price = (
            market.price(seen.region, record["gpu"], cards_of(seen.size)) if has_region else None
        )
        cap = record["max_price_usd_per_h"]
        return Observation(
            power=seen.power,
            host=seen.host,
            port=seen.port,
            private_host=seen.private_host,
            metadata_url=seen.metadata_url,
            stop_reason=StopReason(state.reason) if state.reason else None,
            since=state.since,
            detail=state.detail,
            ran=True if state.reason else None,  # nothing here is refused once it was accepted
            price_usd_per_h=price if price is None or cap is None else min(price, cap),
        )

    def start(self, vm: Vm) -> None:
        """Boot the machine again with the same disk and the same host key."""
        with self._existing(vm) as (record, machine):
            power = machine.state().power
            if power is MachinePower.ON:
                return
            if power is not MachinePower.BOOTING:
                self._check_available(
                    vm.region,
                    record["gpu"],
                    record["max_price_usd_per_h"],
                    gpu_count=cards_of(vm.size),
                )
                machine.power_off(StopReason.USER)  # an eviction that is under way is over now
            machine.power_on(evict_after_s=_next_eviction_s(record, machine))

    def deallocate(self, vm: Vm) -> None:
        """Kill everything that runs in the machine and keep its disk."""
        with self._existing(vm) as (_, machine):
            machine.power_off(StopReason.USER)

    def delete(self, run_id: str, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Kill everything of the run, remove its disk, and say what that was.

        Moving it away comes first: it needs no space, and ends the process of the machine.
        """
        del on_message  # it takes less than a second
        self._directories.of(run_id)  # raises for what is no run
        with self._locked(), _seam_errors():
            return self._remove(lambda: self._directories.of_run(run_id), run_id)

    def remove(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Do to one machine what `delete` does to all of its run."""
        del on_message
        directory = self._directories.of(vm.run_id, vm.node)
        with self._locked(), _seam_errors():
            record = read_json(directory / "vm.json")
            if record is not None and record["vm"]["id"] != vm.id:
                return []  # a later machine of that number, which nobody asked to remove
            return self._remove(lambda: [directory], vm.run_id, nodes={vm.node})

    def list_all(self) -> list[Vm]:
        """List every machine of this directory, and every half of one, newest first."""
        found = []
        with _seam_errors():
            for directory in self._directories.all():
                record = read_json(directory / "vm.json")
                if record is None:
                    found.append(_remnants_of(directory.name))
                else:
                    found.append(self._vm(record, self._machine(directory).state()))
            found.extend(_remnants_of(name_in_trash(one)) for one in self._directories.trash())
        return sorted(found, key=lambda vm: vm.created_at, reverse=True)

    def evict(self, vm: Vm) -> None:
        """Request the eviction; the machine carries it out itself, also if we are killed."""
        with self._existing(vm) as (record, machine):
            machine.request_eviction(record["notice_s"], StopReason.EVICTED, "asked for")

    def silence(self, vm: Vm) -> None:
        """Make the machine answer nobody while it is still on and bills, until `awaken`: for tests.

        Nothing of it runs meanwhile, the trainer included; nor does an eviction, which it would
        carry out itself. Releasing and removing it work.
        """
        with self._existing(vm) as (_, machine):
            machine.silence()

    def awaken(self, vm: Vm) -> None:
        """Let a machine go on that was silenced."""
        with self._existing(vm) as (_, machine):
            machine.awaken()

    def _make(self, machine: Machine, spec: VmSpec) -> dict[str, Any]:
        """Write down what the machine is; nothing runs yet."""
        vm = Vm(
            provider=self.name,
            run_id=spec.run_id,
            id=f"{machine.directory.name}.{secrets.token_hex(4)}",
            node=spec.node,
            region=spec.offer.region,
            size=spec.offer.size,
            generation=spec.generation,
            user=spec.user,
            host_public_key=spec.host_public_key,
            created_at=self._now(),
            price_usd_per_h=spec.offer.spot_usd_per_h,
            metadata_api=self._settings.vendor,
            host_key_is_readable=self._settings.vendor == "aws",
            interruption_is_free=self._settings.vendor == "aws",
        )
        metadata_path = f"/{secrets.token_hex(16)}"
        record = {
            "version": 1,
            "vm": vm.to_json(),
            "gpu": spec.offer.gpu or DEFAULT_GPU,
            "max_price_usd_per_h": spec.max_price_usd_per_h,
            "labels": spec.labels,
            "notice_s": self._settings.notice_s,
            "evict_after_s": self._settings.script_of(spec.node),
            "metadata_path": metadata_path,
        }
        machine.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directories.make_trash()  # now, while there is space
        write_json(machine.directory / "vm.json", record)
        machine.make(
            MachineSpec(
                name=machine.directory.name,
                user=spec.user,
                public_key=spec.public_key,
                notice_s=self._settings.notice_s,
                boot_s=self._settings.boot_s,
                first_metadata_s=self._settings.first_metadata_s,
                vendor=self._settings.vendor,
                metadata_path=metadata_path,
                market_file=str(self._root / "market.json"),
                region=spec.offer.region,
                max_price_usd_per_h=spec.max_price_usd_per_h,
                instance={
                    "location": spec.offer.region,
                    "vmSize": spec.offer.size,
                    "vmId": vm.id,
                    "priority": "Spot",
                    "evictionPolicy": "Deallocate",
                },
            ),
            spec.host_private_key,
        )
        return record

    def _vm(self, record: dict[str, Any], state: MachineState) -> Vm:
        """Return the machine as `create` returned it, with what is true now."""
        vm = Vm.from_json(record["vm"])
        power = {
            MachinePower.ABSENT: PowerState.REMNANTS,
            MachinePower.OFF: PowerState.DEALLOCATED,
            MachinePower.BOOTING: PowerState.STARTING if state.boot > 1 else PowerState.CREATING,
            MachinePower.ON: PowerState.RUNNING,
            MachinePower.ENDING: PowerState.STOPPING,
            MachinePower.DEAD: PowerState.DEALLOCATED,
        }[state.power]
        if state.power is not MachinePower.ON:
            return replace(vm, power=power)
        return replace(
            vm,
            power=power,
            host="127.0.0.1",
            port=state.ssh_port,
            private_host=state.private_host,
            metadata_url=f"http://127.0.0.1:{state.metadata_port}{record.get('metadata_path', '')}",
        )

    @contextlib.contextmanager
    def _existing(self, vm: Vm) -> Iterator[tuple[dict[str, Any], Machine]]:
        """The machine, for us alone; raises `Gone` if it is not there or not the same any more."""
        directory = self._directories.of(vm.run_id, vm.node)
        with self._locked(), _seam_errors():
            record = read_json(directory / "vm.json")
            if record is None or record["vm"]["id"] != vm.id:
                raise Gone(f"the machine `{vm.id}` does not exist any more")
            yield record, self._machine(directory)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other callers out; raises `Transient` if one of them stays too long."""
        try:
            with locked(self._root / "lock", timeout_s=LOCK_TIMEOUT_S, sleep=self._sleep):
                yield
        except LockTimeout as error:
            raise Transient(str(error), retry_after_s=1.0) from error

    def _machine(self, directory: Path) -> Machine:
        """Return the machine that lives in `directory`."""
        return Machine(directory, sleep=self._sleep, clock=self._clock)

    def _connect(self, run_id: str) -> None:
        """Give each machine of a run that lacks it an address among the others."""
        for directory in self._directories.of_run(run_id):
            machine = self._machine(directory)
            if not machine.private_host():
                machine.set_private_host(self._private_host(directory))

    def _private_host(self, directory: Path) -> str:
        """Return the address that a machine has, or is to have, among the others of its run."""
        run_id, node = owner_of(directory.name)
        networks = {
            owner_of(one.name)[0]: network_of(address)
            for one in self._directories.all()
            if (address := self._machine(one).private_host())
        }
        # The directory is part of it: another one on this computer may have a run of that name.
        network = networks.get(run_id) or choose_network(
            f"{self._root}/{run_id}", taken=networks.values()
        )
        return address_of(network, node)

    def _remove(
        self, find: Callable[[], list[Path]], run_id: str, nodes: Collection[int] | None = None
    ) -> list[Removed]:
        """Move away the directories that `find` finds, kill what runs there, and remove them.

        Moving them away comes first: it needs no space, and ends the process of the machine.
        """
        for directory in find():
            self._directories.discard(directory)
        removed = self._empty_trash(run_id, nodes)
        again = [self._directories.discard(directory) for directory in find()]
        if any(again):  # by a job that made its folders again before it died
            self._empty_trash(run_id, nodes)
        return removed

    def _empty_trash(self, run_id: str, nodes: Collection[int] | None = None) -> list[Removed]:
        """Finish what a delete of these nodes began, perhaps in a process that was killed over it.

        Of all nodes of the run if none are named.
        """
        removed = []
        for remnant in self._directories.trash():
            owner, node = owner_of(name_in_trash(remnant))
            if owner != run_id or (nodes is not None and node not in nodes):
                continue
            self._machine(remnant).kill_processes()
            record = read_json(remnant / "vm.json")
            remove_tree(remnant)
            if record is not None:
                removed.append(Removed(kind="virtual machine", id=record["vm"]["id"]))
            removed.append(Removed(kind="disk", id=remnant.name))
        return removed

    def _check_available(
        self, region: str, gpu: str, cap_usd_per_h: float | None, *, gpu_count: int
    ) -> None:
        """Refuse a machine as a cloud would; raises `BadRequest`, `NoCapacity`, `PriceAboveCap`."""
        market = self._market()
        running = self._running_in(region, market)
        market.check_available(region, gpu, cap_usd_per_h, gpu_count=gpu_count, running=running)

    def _running_in(self, region: str, market: Market) -> int:
        """How many machines run in a region; 0, without a look, where any number may."""
        quote = market.quote(region)
        if quote is None or quote.machines is None:
            return 0
        running = 0
        for directory in self._directories.all():
            record = read_json(directory / "vm.json")
            if record is not None and record["vm"]["region"] == region:
                running += self._machine(directory).state().power in RUNS
        return running

    def _market(self) -> Market:
        """Prices and capacity now."""
        return read_market(self._root / "market.json", self._clock())

    def _now(self) -> str:
        """The time, ISO 8601 UTC."""
        return datetime.fromtimestamp(self._clock(), UTC).isoformat()


def _next_eviction_s(record: dict[str, Any], machine: Machine) -> float | None:
    """Return when the boot that would begin now is to be evicted by script."""
    desired = machine.desired_state()
    index = record["vm"]["generation"] - 1 + (desired.boot if desired else 0)
    script: list[float] = record["evict_after_s"]
    return script[index] if index < len(script) else None


def _has_peers(spec: VmSpec) -> bool:
    """Whether the machine is one of several of its run."""
    return spec.nodes > 1 or spec.node > 0


def _remnants_of(name: str) -> Vm:
    """Return a machine of which only parts are left, by the name of its directory."""
    run_id, node = owner_of(name)
    return Vm(
        provider="local",
        run_id=run_id,
        node=node,
        id=name,
        region="",
        size="",
        power=PowerState.REMNANTS,
    )


@contextlib.contextmanager
def _seam_errors() -> Iterator[None]:
    """Turn what a computer can do to its processes and files into the seam's errors."""
    try:
        yield
    except LaunchFailed as error:
        raise Transient(str(error), hint="look at the log it names") from error
    except StillAlive as error:
        raise Transient(str(error), retry_after_s=5.0) from error
    except OSError as error:
        raise Transient(f"this computer refused: {error}") from error
