"""Hands the rooms to each other: which provider, which keys, which interpreter on the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from commands.runs.home import RunFolder, environment, make_private, qft_home, run_folder
from commands.ui.errors import UsageError
from infra.card_count import card_count
from infra.catalog.vendors import find_size
from infra.config import SshTable, VmTable
from infra.durable import write_bytes
from infra.offer import Offer, Want
from infra.provider import Provider, Vm, VmSpec
from infra.registry import registration
from infra.run.fold import fold
from infra.run.journal import JournalDamaged, read
from infra.run.providers_used import providers_used
from infra.several import SeveralProviders
from remote import keys
from remote.errors import RemoteError

if TYPE_CHECKING:  # late below, since a command that only looks at a provider needs none of it
    from remote import ssh
    from remote.setup.steps import SetupGoal

USER_KEY = "user_ed25519"

MakeReady = Callable[["ssh.SshConnection", Vm], "tuple[ssh.SshConnection, str]"]
"""Makes a machine trainable; returns the connection to go on with (there may have been a reboot)
and the Python interpreter there."""


def make_provider(vm: VmTable, home: Path) -> Provider:
    """The provider that `vm.provider` names, or all of them as one, for the cards that are named.

    Raises UsageError if it cannot work here.
    """
    if vm.provider == "ssh":
        check_host_key(need_ssh(vm))
    try:
        made = [
            registration(name).make(vm.at(name), home / name, environment())
            for name in vm.providers
        ]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if len(made) == 1 and len(vm.cards) <= 1:
        return made[0]
    return SeveralProviders(made, used_by=lambda run_id: _providers_of_run(home, run_id))


def _providers_of_run(home: Path, run_id: str) -> set[str] | None:
    """Return the providers that may have something of a run; None if no record here says so."""
    try:
        events = read(run_folder(home, run_id.rpartition("-")[0]).journal)
    except (JournalDamaged, UsageError):
        return None
    return providers_used(events) if fold(events).run_id == run_id else None


def check_host_key(table: SshTable) -> None:
    """Raise UsageError unless the user's own machine is named with a host key to expect."""
    if not table.host_key:
        raise UsageError(
            "`vm.ssh.host_key` is empty, and a machine is never trusted on first use",
            hint="`qft doctor` reads the key from the machine and shows what to compare and paste",
        )
    try:
        keys.parse_line(table.host_key)
    except RemoteError as error:
        raise UsageError(f"vm.ssh.host_key: {error}", hint=error.hint) from error


def need_ssh(vm: VmTable) -> SshTable:
    """The table `ssh`, which the config's own check has made sure of."""
    if vm.ssh is None:
        raise UsageError("`provider: ssh` needs a table `vm.ssh`")
    return vm.ssh


def user_key(vm: VmTable, run: RunFolder) -> Path:
    """The private key that opens the machine: the user's for `ssh`, else one of the run's own."""
    if vm.provider == "ssh":
        path = Path(need_ssh(vm).key).expanduser()
        if not path.is_file():
            raise UsageError(f"`vm.ssh.key` names `{path}`, which is no file")
        return path
    return _key(run, USER_KEY)


def _key(run: RunFolder, name: str) -> Path:
    """A key of this run, made on first use; the same one ever after."""
    make_private(run.keys)
    path = run.keys / name
    if not path.exists():
        keys.generate(path)
    return path


def spec_maker(
    vm: VmTable, run: RunFolder, run_id: str, node: int = 0
) -> Callable[[Offer, int], VmSpec]:
    """What to ask the provider for. Each generation has a host key of its own, made beforehand."""
    prefix = f"host_ed25519_n{node}" if node else "host_ed25519"

    def make(offer: Offer, generation: int) -> VmSpec:
        host_key = _key(run, f"{prefix}_{generation}")
        # A user's own machine knows the user's key already, which may be of any type.
        mine = "" if vm.provider == "ssh" else keys.public_line(user_key(vm, run))
        return VmSpec(
            run_id=run_id,
            generation=generation,
            node=node,
            nodes=vm.nodes,
            offer=offer,
            max_price_usd_per_h=vm.max_price,
            public_key=mine,
            host_private_key=host_key.read_text(),
            host_public_key=keys.public_line(host_key),
            disk_gb=vm.disk_gb,
            labels={"name": run.name},
        )

    return make


def helper_python(vm: VmTable) -> str:
    """An interpreter that is on the machine before anything is set up there."""
    if vm.provider == "local":
        return sys.executable
    return (vm.ssh.python if vm.ssh and vm.provider == "ssh" else "") or "python3"


def want(vm: VmTable) -> Want:
    """The question for `offers`."""
    return Want(
        gpu=vm.card,
        gpus=vm.cards if not vm.card else (),
        gpu_count=vm.gpus,
        nodes=vm.nodes_min,
        regions=tuple(vm.regions),
        max_price_usd_per_h=vm.max_price,
        disk_gb=vm.disk_gb,
    )


def make_ready(
    vm: VmTable,
    on_message: Callable[[str], None],
    reconnect: Callable[[ssh.Host], ssh.SshConnection] | None = None,
    *,
    answers: bool = False,
) -> MakeReady:
    """How a machine of this provider becomes trainable; `reconnect` replaces `ssh.connect`.

    A machine that this computer plays uses the interpreter that runs `qft`; so does a user's
    machine with an interpreter named. Others get driver and environment by `remote.setup.apply`.
    With `answers`, any of them gets an environment for answers that are code.
    """

    def ready(connection: ssh.SshConnection, machine: Vm) -> tuple[ssh.SshConnection, str]:
        from remote import ssh
        from remote.setup.apply import apply

        wanted = replace(setup_wanted(vm, machine), answers=answers)
        done = apply(connection, wanted, on_message=on_message, reconnect=reconnect or ssh.connect)
        _remember_grid(done.facts.grid_sha256)
        return done.connection, done.python

    if vm.provider == "local" and not answers:
        return lambda connection, _machine: (connection, sys.executable)
    return ready


def cards_on(vm: VmTable, machine: Vm) -> int:
    """How many cards of a machine a run uses: what run.yaml asks for, and what the machine has.

    A machine from before a change of `vm.gpus` may have fewer, and some sizes have more. Those of
    a user's own machine are counted when it is set up.
    """
    if machine.provider == "ssh":
        return vm.gpus
    return min(vm.gpus, card_count(machine))


def setup_wanted(vm: VmTable, machine: Vm) -> SetupGoal:
    """What the machine must be able to do, from its size in the catalog or the user's word."""
    from remote.setup.steps import DriverKind, SetupGoal

    if vm.provider == "local":
        return SetupGoal(python=sys.executable, rented=False)
    if vm.provider == "ssh":
        table = need_ssh(vm)
        driver = DriverKind.DATACENTER if table.gpu else DriverKind.NONE
        return SetupGoal(
            driver=driver,
            gpu_count=cards_on(vm, machine),
            python=table.python,
            rented=False,
        )
    given = vm.image is not None and vm.image.driver_is_given and machine.provider == "azure"
    grid = vm.azure.grid_sha256.lower() or _remembered_grid()
    size = find_size(machine.size, provider=machine.provider)
    if size is None:
        return SetupGoal(driver=DriverKind.DATACENTER, driver_given=given)
    return SetupGoal(
        driver=DriverKind(size.driver.value),
        gpu_count=cards_on(vm, machine),
        cuda_max=size.cuda_max,
        driver_given=given,
        grid_sha256=grid,
    )


def _grid_file() -> Path:
    """Where this computer remembers the checksum of the vGPU driver that it saw first."""
    from remote.setup.vgpu_driver import GRID_VERSION

    return qft_home(environment()) / "azure" / f"grid-{GRID_VERSION}.sha256"


def _remembered_grid() -> str:
    """The checksum that every later machine's vGPU driver must have; empty before the first."""
    from remote.setup.facts import sha256_of

    try:
        return sha256_of(_grid_file().read_text(encoding="utf-8").strip())
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _remember_grid(sha256: str) -> None:
    """Keep the checksum of the first vGPU driver that answered; a later one changes nothing."""
    if sha256 and not _remembered_grid():
        make_private(_grid_file().parent)
        write_bytes(_grid_file(), f"{sha256}\n".encode(), mode=0o600)
