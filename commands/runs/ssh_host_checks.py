"""Looks at the user's own machine as a run would: key, login, shell, SFTP, Python, disk and GPU.

Each step is taken only where the one before went well, and nothing is left on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from commands.runs import factory
from commands.runs.checks import Check
from commands.runs.home import RunFolder
from commands.runs.ssh_check import LIMIT_S, STEP_S, in_time, sign_in
from commands.ui.errors import Exit, HostError, UsageError
from infra.config import SshTable, VmTable
from remote import errors, keys, ssh
from remote.setup import facts as setup_facts
from remote.sync.transfer import require_sftp

GB = 1e9
DISK_MIN_GB = 2
"""Less holds no model and no checkpoint."""
DISK_WANTED_GB = 20
"""For the packages with CUDA, a model of a few billions, and checkpoints."""
HOST = int(Exit.HOST)
VERSION = "import sys; print(sys.version_info[0], sys.version_info[1])"


def check_host(vm: VmTable, folder: RunFolder) -> list[Check]:
    """Look at the machine of `provider: ssh`, up to the first thing that stands in the way."""
    return list(_steps(vm, folder))


def _steps(vm: VmTable, folder: RunFolder) -> Iterator[Check]:
    """Take one step after the other."""
    table = factory.need_ssh(vm)
    key = _host_key(table)
    yield key
    if not key.ok:
        return
    where = f"{table.user}@{table.host}:{table.port}"
    try:
        connection = sign_in(vm, folder)
    except UsageError as trouble:
        yield Check(name="sign-in", ok=False, detail=trouble.message, fix=trouble.hint)
        return
    except HostError as trouble:
        yield _bad("sign-in", trouble.message, trouble.hint)
        return
    with connection:
        yield Check(name="sign-in", ok=True, detail=f"{where} accepts the key {table.key}")
        try:
            facts = setup_facts.gather_facts(connection)
            yield Check(name="login shell", ok=True, detail="runs commands")
        except errors.RemoteError as error:
            yield _bad("login shell", str(error), error.hint)
            return
        try:
            require_sftp(connection)
            yield Check(name="sftp", ok=True, detail="carries files")
        except errors.RemoteError as error:
            yield _bad("sftp", str(error), error.hint)
        yield _python(connection, table, facts)
        yield _disk(facts)
        yield _gpu(table, facts, vm.gpus)


def _bad(name: str, detail: str, fix: str) -> Check:
    """A check that failed by the machine's fault."""
    return Check(name=name, ok=False, detail=detail, fix=fix, exit_code=HOST)


def _host_key(table: SshTable) -> Check:
    """Compare the pinned key of the user's machine, or read it once for a person to confirm."""
    where = f"{table.host}:{table.port}"
    pinned = table.host_key
    try:
        wanted = keys.parse_line(pinned) if pinned else None
        offered = in_time(
            lambda: ssh.scan_host_key(table.host, table.port, timeout_s=STEP_S, pinned=pinned),
            where,
            LIMIT_S,
        )
    except errors.RemoteError as error:
        return _bad("host", f"{where}: {error}", error.hint)
    mark = keys.fingerprint(offered)
    if wanted is None:
        return Check(
            name="host key",
            ok=False,
            detail=f"{where} presents {mark}",
            fix="compare that with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the "
            f'machine itself; if they agree, put into vm.ssh: host_key: "{offered}"',
        )
    found = keys.parse_line(offered)
    other = "which is not the pinned one"
    if found[0] != wanted[0]:
        other = f"of type {found[0]}: it has no key of the pinned type {wanted[0]}"
    return Check(
        name="host key",
        ok=found == wanted,
        detail=f"{where} presents {mark}" + ("" if found == wanted else f", {other}"),
        fix="find out why before anything is sent there; it may be another machine",
        exit_code=HOST,
    )


def _python(connection: ssh.SshConnection, table: SshTable, facts: setup_facts.Facts) -> Check:
    """Look at the interpreter that is named, or for one to make an environment from."""
    low, high = (
        ".".join(map(str, one)) for one in (setup_facts.PYTHON_MIN, setup_facts.PYTHON_MAX)
    )
    if table.python:
        output = connection.run([table.python, "-I", "-c", VERSION], check=False, timeout_s=60)
        if output.exit_code:
            message = errors.shorten(output.stderr or output.stdout)
            detail = f"`{table.python}` there ends with exit code {output.exit_code}: {message}"
            return _bad("python there", detail, "name another in `vm.ssh.python`, or none")
        version = ".".join(errors.shorten(output.stdout).split()[:2])
        return Check(name="python there", ok=True, detail=f"{table.python} is {version}")
    best = facts.python
    if best is None:
        return _bad(
            "python there",
            f"no Python {low} to {high} was found",
            f"install one of these, such as python{low} with its venv, and repeat `qft doctor`",
        )
    detail = f"{best.command} is {best.version[0]}.{best.version[1]}"
    lacks = "" if best.venv else ", without venv: set-up adds it if it may"
    return Check(name="python there", ok=True, detail=detail + lacks)


def _disk(facts: setup_facts.Facts) -> Check:
    """Look at the room in the home directory."""
    free = facts.free_bytes / GB
    detail = f"{free:.1f} GB free in the home directory"
    fix = f"make room: the packages and a model take {DISK_WANTED_GB} GB and more"
    if free < DISK_MIN_GB:
        return _bad("disk there", detail, fix)
    ok = free >= DISK_WANTED_GB
    return Check(name="disk there", ok=ok, detail=detail, fix=fix, required=False)


def _gpu(table: SshTable, facts: setup_facts.Facts, wanted: int) -> Check:
    """Look at the card, where one is wanted, or count several."""
    cards = ", ".join(f"{one.name} with {one.memory_mb / 1024:.0f} GB" for one in facts.gpus)
    if table.gpu and 0 < len(facts.gpus) < wanted:
        detail = f"`vm.gpus` is {wanted}, and `nvidia-smi` shows {len(facts.gpus)}: {cards}"
        fix = f"write `gpus: {len(facts.gpus)}` into `vm`, or name a machine with more cards"
        return _bad("gpu there", detail, fix)
    if cards:
        used = "" if table.gpu else "; it is not used: `vm.ssh.gpu` is false"
        return Check(name="gpu there", ok=True, detail=f"{cards}, driver {facts.driver}{used}")
    if not table.gpu:
        return Check(name="gpu there", ok=True, detail="none, and none is asked for")
    if facts.pci_gpus:
        message = f" (`nvidia-smi` says: {facts.smi_message})" if facts.smi_message else ""
        detail = f"{facts.pci_gpus} on the bus, and no driver answers{message}"
        fix = "`qft up` installs the driver where it may use sudo; else ask whoever runs it"
        return Check(name="gpu there", ok=False, detail=detail, fix=fix, required=False)
    return _bad(
        "gpu there",
        "there is no NVIDIA card",
        "`gpu: false` in `vm.ssh` trains on its processor, slowly",
    )
