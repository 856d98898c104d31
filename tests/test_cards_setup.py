"""Set-up and `qft doctor` count the cards of a machine before a training is started on them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.sshd import serve

from commands.runs import factory
from commands.runs.checks import Check
from commands.runs.home import RunFolder
from commands.runs.ssh_host_checks import check_host
from infra.config import VmTable
from infra.provider import Vm
from remote.errors import Unfit
from remote.setup import facts as setup_facts
from remote.setup.apply import plan_steps
from remote.setup.facts import DetectedGpu, Facts, PythonInterpreter, parse_facts
from remote.setup.python_env import interpreter, tensor_program
from remote.setup.steps import DriverKind, SetupGoal

PYTHON = PythonInterpreter(command="python3.12", version=(3, 12), venv=True)
T4 = DetectedGpu(name="Tesla T4", driver="580.173.02", memory_mb=15360, capability="7.5")
FOUR = SetupGoal(driver=DriverKind.DATACENTER, gpu_count=4)
OWN = replace(FOUR, rented=False)


def with_cards(seen: int, *, on_bus: int | None = None) -> Facts:
    """A machine whose `nvidia-smi` shows so many cards, with an environment that is ready."""
    facts = Facts(
        os="ubuntu 24.04",
        boot_id="b1",
        free_bytes=100_000_000_000,
        sudo=True,
        pythons=(PYTHON,),
        cloud_init="done",
        pci_gpus=seen if on_bus is None else on_bus,
        gpus=(T4,) * seen,
        smi_code=0,
    )
    name = Path(interpreter(facts, FOUR)).parts[1]
    return replace(facts, venvs=(name,), cuda_seen=((name, f"b1 {facts.driver}"),))


@pytest.mark.parametrize("goal", [FOUR, OWN], ids=["rented", "own"])
@pytest.mark.parametrize("seen", [4, 8])
def test_a_machine_with_enough_cards_is_ready(seen: int, goal: SetupGoal) -> None:
    """More than wanted do no harm."""
    assert plan_steps(with_cards(seen), goal) == []


@pytest.mark.parametrize(
    ("seen", "goal", "fix"),
    [
        (2, OWN, "write `vm.gpus: 2` into run.yaml; the result is the same, bit for bit, or name"),
        (1, OWN, "write no `vm.gpus` into run.yaml; the result is the same, bit for bit, or name"),
        (2, FOUR, "write `vm.gpus: 2` into run.yaml; the result is the same, bit for bit"),
    ],
)
def test_a_machine_with_fewer_cards_is_refused_with_the_fix(
    seen: int, goal: SetupGoal, fix: str
) -> None:
    """The error says how many are wanted and how many there are."""
    with pytest.raises(Unfit) as caught:
        plan_steps(with_cards(seen), goal)

    assert f"4 cards are wanted, and `nvidia-smi` shows {seen} card" in str(caught.value)
    assert "Tesla T4" in str(caught.value)
    assert fix in f"{caught.value} {caught.value.hint}"


def test_a_rented_machine_is_rebooted_for_cards_that_are_only_on_its_bus() -> None:
    """That is how a card that has fallen silent comes back; a user's machine is left alone."""
    facts = with_cards(3, on_bus=4)

    (step,) = plan_steps(facts, FOUR)

    assert (step.name, step.reboot_after) == ("wake the other cards by a reboot", True)
    assert step.why == "`nvidia-smi` shows 3 of its 4 cards"
    with pytest.raises(Unfit, match="`nvidia-smi` shows 3 cards"):
        plan_steps(facts, OWN)


def test_cards_are_counted_by_the_lines_of_nvidia_smi() -> None:
    """Each line is a card, and one that cannot be read is none."""
    line = "gpu=Tesla T4, 580.173.02, 15360, 7.5"
    facts = parse_facts(["pci=1eb8", "pci=1eb8", line, line, "gpu=No devices were found"])

    assert (len(facts.gpus), facts.pci_gpus) == (2, 2)


def test_every_card_gets_a_tensor_before_training() -> None:
    """With one card the check is as it was."""
    bare = replace(with_cards(4), cuda_seen=())

    (step,) = plan_steps(bare, FOUR)
    (single,) = plan_steps(bare, replace(FOUR, gpu_count=1))

    assert "for card in range(4)" in step.command
    assert "'import torch; torch.zeros(1).cuda()'" in single.command
    compile(tensor_program(4), "check", "exec")


@pytest.mark.parametrize(
    ("size", "gpus", "count"),
    [
        ("Standard_NC64as_T4_v3", 4, 4),
        ("Standard_NC64as_T4_v3", 2, 2),
        ("Standard_NC4as_T4_v3", 4, 1),
        ("Standard_NC4as_T4_v3", 1, 1),
    ],
)
def test_set_up_of_a_rented_machine_wants_the_cards_that_are_used(
    size: str, gpus: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size says how many there are at most."""
    monkeypatch.setenv("QFT_HOME", str(tmp_path))
    vm = VmTable.model_validate({"provider": "azure", "gpus": gpus, "max_price": 5.0})
    machine = Vm(provider="azure", run_id="r", id="x", region="a", size=size)

    assert factory.setup_wanted(vm, machine).gpu_count == count


def test_set_up_of_an_own_machine_wants_as_many_as_run_yaml_says() -> None:
    """Nobody else knows how many it has."""
    ssh = {"host": "h", "user": "me", "key": "k"}
    vm = VmTable.model_validate({"provider": "ssh", "gpus": 3, "ssh": ssh})
    machine = Vm(provider="ssh", run_id="r", id="h", region="yours", size="yours")

    assert factory.setup_wanted(vm, machine) == SetupGoal(
        driver=DriverKind.DATACENTER, gpu_count=3, rented=False
    )


@pytest.mark.parametrize(
    ("gpus", "fix", "words"),
    [
        (2, "", "Tesla T4 with 15 GB, Tesla T4 with 15 GB, driver 580.173.02"),
        (
            4,
            "write `gpus: 2` into `vm`",
            "`vm.gpus` is 4, and `nvidia-smi` shows 2: Tesla T4 with 15 GB, Tesla T4",
        ),
    ],
)
def test_doctor_counts_the_cards_of_an_own_machine(
    gpus: int, fix: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few are a failure, with what to write instead."""
    monkeypatch.setattr(setup_facts, "gather_facts", lambda _connection: with_cards(2))
    with serve(tmp_path / "server") as server:
        ssh = {
            "host": "127.0.0.1",
            "port": server.port,
            "user": server.user,
            "key": str(server.client_key),
            "host_key": server.host_key,
            "python": sys.executable,
        }
        vm = VmTable.model_validate({"provider": "ssh", "gpus": gpus, "ssh": ssh})
        checks = check_host(vm, RunFolder(root=tmp_path))

    found: dict[str, Check] = {check.name: check for check in checks}
    check = found["gpu there"]
    assert words in check.detail
    assert (check.ok, check.fix.partition(",")[0]) == (not fix, fix)
