"""A caller of the local cloud may be killed between any two steps; calling again converges."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from support.contract import make_spec

from infra.local import processes
from infra.local.provider import LocalProvider, LocalSettings
from infra.provider import PowerState, VmSpec

VICTIM = """
import json, os, pathlib, signal, sys
from infra.local.provider import LocalProvider, LocalSettings
from infra.offer import Offer
from infra.provider import Vm, VmSpec

task = json.loads(sys.argv[1])
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.posix_spawn", "os.kill"}
left = task["after"]

def hook(event, args):
    global armed, left
    if not armed or event not in EVENTS and not (event == "open" and args[2] & WRITES):
        return
    if left == 0:
        armed = False
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1

spec = VmSpec(**task["spec"] | {"offer": Offer(**task["spec"]["offer"])})
provider = LocalProvider(pathlib.Path(task["root"]), settings=LocalSettings(notice_s=0))
armed = False
sys.addaudithook(hook)
found = provider.list_run(spec.run_id) if task["act"] not in {"create", "delete"} else []
vm = next((one for one in found if one.node == spec.node), None)
armed = True
if task["act"] == "create":
    provider.create(spec)
elif task["act"] == "delete":
    provider.delete(spec.run_id)
else:
    getattr(provider, task["act"])(vm)
armed = False
print(left)
"""
STEPS_MAX = 300
"""Far more than any act takes; how many there are depends on how soon killed processes die."""
TIMEOUT_S = 120.0


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[LocalProvider]:
    """A fresh cloud; every run in it is deleted after the test."""
    provider = LocalProvider(tmp_path / "local", settings=LocalSettings(notice_s=0))
    yield provider
    for vm in provider.list_all():
        provider.delete(vm.run_id)


def act_and_die(root: Path, spec: VmSpec, act: str, after: int) -> bool:
    """Do something to the cloud in a process that is killed after so many steps; was it killed?"""
    task = {"root": str(root), "spec": asdict(spec), "act": act, "after": after}
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, json.dumps(task)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert done.returncode in {0, -9}, done.stderr.decode()
    return done.returncode == -9


def vm_processes(root: Path) -> int:
    """How many processes of machines live.

    One that starts a program has, until that begins, a child with its own command line.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            argv, parent = process.cmdline(), process.ppid()
        except psutil.Error:
            continue
        if "infra.local.vm_process" in argv and any(str(root) in part for part in argv):
            found[process.pid] = parent
    return sum(parent not in found for parent in found.values())


def settles(root: Path, count: int) -> bool:
    """Whether soon only so many processes live: one that was launched twice leaves by itself."""
    deadline = time.monotonic() + TIMEOUT_S
    while vm_processes(root) != count:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_until_running(provider: LocalProvider, run_id: str) -> None:
    """Look until the run's machine runs."""
    deadline = time.monotonic() + TIMEOUT_S
    while [vm.power for vm in provider.list_all() if vm.run_id == run_id] != [PowerState.RUNNING]:
        assert time.monotonic() < deadline, provider.list_all()
        time.sleep(0.02)


def test_killed_create_converges(provider: LocalProvider, tmp_path: Path) -> None:
    """After a create killed at any step, a second one ends with one machine, one process."""
    root = tmp_path / "local"
    for after in range(STEPS_MAX):
        spec = make_spec(provider, f"run-{after}", region="local-1")
        killed = act_and_die(root, spec, "create", after)

        vm = provider.create(spec)

        assert settles(root, 1)
        assert [one.id for one in provider.list_all()] == [vm.id]
        assert vm.host_public_key == spec.host_public_key
        provider.delete(spec.run_id)
        assert vm_processes(root) == 0
        if not killed:
            break
    assert 10 < after < STEPS_MAX - 1, after


def test_create_killed_and_never_repeated_can_be_deleted(
    provider: LocalProvider, tmp_path: Path
) -> None:
    """After a create killed at any step, what is left is listed, and a delete ends all of it."""
    root = tmp_path / "local"
    for after in range(0, STEPS_MAX, 3):
        spec = make_spec(provider, f"run-{after}", region="local-1")
        killed = act_and_die(root, spec, "create", after)
        listed = [vm.run_id for vm in provider.list_all()]
        directories = [path.name for path in (root / "vms").glob("*")]

        provider.delete(spec.run_id)

        assert listed == directories
        assert provider.list_all() == []
        assert settles(root, 0)
        if not killed:
            break
    assert 10 < after < STEPS_MAX - 1


@pytest.mark.parametrize("then", ["delete", "create"])
def test_killed_delete_converges(provider: LocalProvider, tmp_path: Path, then: str) -> None:
    """After a delete killed at any step, the rest is listed; a delete or a create clears it."""
    root = tmp_path / "local"
    for after in range(0, STEPS_MAX, 2):
        spec = make_spec(provider, f"run-{after}", region="local-1")
        provider.create(spec)
        killed = act_and_die(root, spec, "delete", after + (then == "create"))
        left = provider.list_all()

        if then == "create":
            vm = provider.create(spec)
            assert [one.id for one in provider.list_all()] == [vm.id]
            assert settles(root, 1)
            left = [vm]
        removed = provider.delete(spec.run_id)

        assert bool(removed) == bool(left)
        assert provider.list_all() == []
        assert vm_processes(root) == 0
        assert [*(root / "vms").iterdir(), *(root / "trash").iterdir()] == []
        if not killed:
            break
    assert 5 < after < STEPS_MAX - 1


@pytest.mark.parametrize("act", ["start", "deallocate"])
def test_killed_change_converges(provider: LocalProvider, tmp_path: Path, act: str) -> None:
    """After a start or a deallocate killed at any step, a second one does what was meant."""
    root = tmp_path / "local"
    spec = make_spec(provider, region="local-1")
    vm = provider.create(spec)
    for after in range(STEPS_MAX):
        (provider.deallocate if act == "start" else provider.start)(vm)
        killed = act_and_die(root, spec, act, after)

        getattr(provider, act)(vm)

        assert settles(root, int(act == "start"))
        if not killed:
            break
    if act == "start":
        wait_until_running(provider, spec.run_id)
    assert 3 < after < STEPS_MAX - 1


def test_number_that_was_anothers_before_hides_no_process(tmp_path: Path) -> None:
    """A process that was given the number of one seen earlier is found, and ended, at first look.

    Numbers come round: psutil still knows the earlier process when the later one is looked for.
    """
    environ = {processes.MARK: "m", processes.VM_PROCESS: "1"}
    with subprocess.Popen(["/bin/sleep", "600"], env=environ) as later:
        (cached,) = [one for one in psutil.process_iter() if one.pid == later.pid]
        cached._ident = (later.pid, 0.0)  # type: ignore[attr-defined]  # as if it were the earlier

        found = processes.machine_processes("m", tmp_path)
        vm_process = processes.find_vm_process("m", 1)

        later.kill()
    assert {one.pid for one in found} == {later.pid}
    assert vm_process is not None
    assert vm_process.pid == later.pid


def test_killed_process_that_a_slow_disk_holds_is_waited_for() -> None:
    """One that still syncs a checkpoint ends when the disk has answered: no failure in a minute."""
    now_s = [0.0]
    with subprocess.Popen(["/bin/sleep", "600"]) as stuck:
        process = psutil.Process(stuck.pid)

        processes.kill_all(
            lambda: {process} if now_s[0] < 50 else set(),
            sleep=lambda _: now_s.append(now_s.pop() + 10),
            clock=lambda: now_s[0],
        )

    assert now_s == [50.0]


def test_callers_at_once_make_one_machine(provider: LocalProvider, tmp_path: Path) -> None:
    """Many creates of one run at one moment end with one machine that all of them were given."""
    spec = make_spec(provider, region="local-1")
    ids = []

    def create() -> None:
        ids.append(LocalProvider(tmp_path / "local").create(spec).id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until_running(provider, spec.run_id)

    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert settles(tmp_path / "local", 1)


def test_killed_create_of_one_of_several_converges(provider: LocalProvider, tmp_path: Path) -> None:
    """After a create of node 1 killed at any step, a second one makes it; node 0 just runs on.

    Node 0 was made alone: the first create of another one is what gives it a private address.
    """
    root = tmp_path / "local"
    for after in range(0, STEPS_MAX, 2):
        first = provider.create(make_spec(provider, f"run-{after}", region="local-1"))
        spec = replace(make_spec(provider, f"run-{after}", region="local-1"), node=1, nodes=2)
        killed = act_and_die(root, spec, "create", after)

        vm = provider.create(spec)

        assert settles(root, 2)
        assert {one.id for one in provider.list_run(spec.run_id)} == {first.id, vm.id}
        assert (vm.node, vm.host_public_key) == (1, spec.host_public_key)
        hosts = [one.read_text() for one in sorted(root.glob("vms/*/network.json"))]
        assert len(set(hosts)) == 2
        provider.delete(spec.run_id)
        assert vm_processes(root) == 0
        if not killed:
            break
    assert 10 < after < STEPS_MAX - 1, after


def test_what_a_killed_create_of_one_of_several_leaves_is_deleted(
    provider: LocalProvider, tmp_path: Path
) -> None:
    """After a create of node 1 killed at any step, what is left is listed with its run and node."""
    root = tmp_path / "local"
    for after in range(0, STEPS_MAX, 2):
        spec = replace(make_spec(provider, f"run-{after}", region="local-1"), node=1, nodes=3)
        provider.create(replace(spec, node=2))
        killed = act_and_die(root, spec, "create", after)
        directories = {path.name for path in (root / "vms").iterdir()}
        listed = {f"{vm.run_id}.n{vm.node}" for vm in provider.list_run(spec.run_id)}

        provider.delete(spec.run_id)

        assert listed == directories
        assert provider.list_all() == []
        assert settles(root, 0)
        if not killed:
            break
    assert 10 < after < STEPS_MAX - 1


@pytest.mark.parametrize("act", ["delete", "remove"])
def test_killed_end_of_several_converges(provider: LocalProvider, tmp_path: Path, act: str) -> None:
    """After an end of one or all machines killed at any step, a second one ends just those."""
    root = tmp_path / "local"
    left = int(act == "remove")
    for after in range(0, STEPS_MAX, 3):
        specs = [
            replace(make_spec(provider, f"run-{after}", region="local-1"), node=node, nodes=2)
            for node in range(2)
        ]
        machines = [provider.create(spec) for spec in specs]
        killed = act_and_die(root, specs[1], act, after)

        if act == "delete":
            provider.delete(specs[1].run_id)
        else:
            provider.remove(machines[1])

        assert [vm.id for vm in provider.list_all()] == [vm.id for vm in machines[:left]]
        assert vm_processes(root) == left
        assert list((root / "trash").iterdir()) == []
        provider.delete(specs[0].run_id)
        if not killed:
            break
    assert 5 < after < STEPS_MAX - 1
