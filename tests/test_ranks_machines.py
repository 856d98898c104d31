"""Machines with a disk of their own do one training together, with the bits of one process."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from support import tiny

from trainer.errors import PeerLost
from trainer.eviction import PreemptionFlag
from trainer.group.joined import join
from trainer.group.machines import Machine
from trainer.group.rank_exit import PEER_DONE, PEER_LOST
from trainer.saving.checkpoint import Snapshot
from trainer.saving.manifest import Damaged, steps_present
from trainer.saving.packed import pack, unpack

STEPS = 40
WAIT_S = 300.0
"""For libraries to be loaded, several times at once on a busy machine."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process that nothing disturbed."""
    run = tiny.make_run(
        tmp_path_factory.mktemp("undisturbed"),
        rows=24,
        train={"steps": STEPS, "micro_batch": 1},
        checkpoint={"every": 5},
    )
    ended = tiny.run_trainer("train", run)

    assert ended.returncode == 0, ended.stderr
    return run


class Started:
    """The launcher of one machine, with its log."""

    def __init__(self, run: Path, arguments: Sequence[str]) -> None:
        self.run = run
        self.log = run.with_name(f"{run.name}.log")
        with self.log.open("w") as log:
            self.launcher = subprocess.Popen(
                tiny.trainer_command("train", run, *arguments),
                cwd=tiny.ROOT,
                env=tiny.quiet_environment(),
                stderr=log,
            )

    def kill_all(self) -> None:
        """Kill every process of the machine, as when it is switched off."""
        ranks = psutil.Process(self.launcher.pid).children()
        self.launcher.kill()
        for rank in ranks:
            rank.kill()
        self.launcher.wait(WAIT_S)
        _, alive = psutil.wait_procs(ranks, timeout=WAIT_S)
        assert alive == []

    def end(self) -> int:
        """Wait for the end of the launcher and return its exit code."""
        return self.launcher.wait(WAIT_S)


def start(runs: Sequence[Path], *, cards: int = 1) -> list[Started]:
    """Start one launcher for each run directory, on addresses of loopback; the first leads."""
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    return [
        Started(run, [
            *("--cards", str(cards), "--nnodes", str(len(runs)), "--node-rank", str(number)),
            *("--master-addr", "127.0.0.2", "--master-port", str(port)),
            *("--interface-address", f"127.0.0.{2 + number}"),
        ])
        for number, run in enumerate(runs)
    ]  # fmt: skip


def fresh(undisturbed: Path, place: Path) -> Path:
    """The run directory of a machine on which nothing was done."""
    place.mkdir()
    shutil.copy(undisturbed / "config.json", place)
    return place


def await_step(started: Sequence[Started], step: int) -> None:
    """Return when the first machine has logged so many steps."""
    path, until = started[0].run / "metrics.jsonl", time.monotonic() + WAIT_S
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        texts = [one.log.read_text() for one in started]
        assert all(one.launcher.poll() is None for one in started), texts
        assert time.monotonic() < until, texts
        time.sleep(0.002)


def newest(run: Path) -> int:
    """The step of the newest checkpoint on a disk; 0 if there is none."""
    return max(steps_present(run / "checkpoints"), default=0)


def test_two_machines_with_two_ranks_each_give_the_bits_of_one_process(
    undisturbed: Path, tmp_path: Path
) -> None:
    """The first writes log and adapter; the other its own checkpoints and status, and no more."""
    runs = [fresh(undisturbed, tmp_path / name) for name in ("a", "b")]
    started = start(runs, cards=2)

    assert [one.end() for one in started] == [0, PEER_DONE], [
        one.log.read_text() for one in started
    ]
    assert tiny.losses(runs[0]) == tiny.losses(undisturbed)
    assert tiny.adapter_bytes(runs[0]) == tiny.adapter_bytes(undisturbed)
    assert newest(runs[1]) == newest(runs[0]) == STEPS
    assert {path.name for path in runs[1].iterdir()} <= {
        "checkpoints", "config.json", "status.json", ".lock", ".saving.lock", ".hashes.json",
        ".day.json",
    }  # fmt: skip
    assert json.loads((runs[1] / "status.json").read_text())["phase"] == "done"
    again = start(runs)
    assert [one.end() for one in again] == [0, PEER_DONE]
    assert "everything is done already" in again[1].log.read_text()


def test_a_machine_that_is_lost_costs_a_step_and_may_come_back(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Survivors save on their own disks and go on; one with an older state gets the newest."""
    a, b, c = (fresh(undisturbed, tmp_path / name) for name in "abc")
    three = start([a, b, c])
    await_step(three, 8)
    three[0].kill_all()
    assert [one.end() for one in three[1:]] == [PEER_LOST] * 2, three[1].log.read_text()
    assert min(newest(b), newest(c)) >= 8
    old = newest(a)
    assert old < min(newest(b), newest(c))

    shutil.rmtree(c / "checkpoints")  # the disks then differ, whoever saved last
    first = newest(b)
    two = start([c, b])
    await_step(two, first + 6)
    assert newest(c) >= first
    two[1].launcher.terminate()
    assert [one.end() for one in two] == [PEER_LOST, 75], [one.log.read_text() for one in two]
    assert newest(b) == newest(c) >= first + 6

    assert newest(a) == old
    all_again = start([a, b, c])
    assert [one.end() for one in all_again] == [0, PEER_DONE, PEER_DONE], [
        x.log.read_text() for x in all_again
    ]
    assert tiny.losses(a) == tiny.losses(undisturbed)
    assert tiny.adapter_bytes(a) == tiny.adapter_bytes(undisturbed)


def test_a_machine_that_does_not_come_is_named() -> None:
    """Whoever waits says which machines are missing, and where they were expected."""
    with socket.create_server(("127.0.0.2", 0)) as free:
        store = f"127.0.0.2:{free.getsockname()[1]}"
    machine = Machine(number=0, count=3, store=store, address="127.0.0.2")

    with (
        pytest.raises(PeerLost, match=r"machines 1, 2 of 3 did not come to the store at 127\.0"),
        join(
            rank=0,
            size=1,
            address=store,
            listen_fd=None,
            device="cpu",
            flag=PreemptionFlag(time.monotonic),
            on_message=print,
            machine=machine,
            join_s=3,
        ),
    ):
        raise AssertionError("it went on alone")


def test_a_checkpoint_arrives_as_it_was_sent_or_not_at_all() -> None:
    """Tensors, state and log have the same bits; what is cut off is refused."""
    sent = Snapshot(
        step=7,
        adapter={"a": torch.tensor([1.0, float("nan"), -0.0])},
        optimizer={"m": torch.arange(5, dtype=torch.uint8)},
        state={"x": 0.1, "none": None},
        log=b'{"step": 7}\n',
        fingerprint={"f": [1]},
    )
    found = unpack(pack(sent))

    assert found.adapter["a"].view(torch.int32).equal(sent.adapter["a"].view(torch.int32))
    assert found.optimizer["m"].equal(sent.optimizer["m"])
    assert (found.step, found.state, found.log, found.fingerprint) == (
        sent.step, sent.state, sent.log, sent.fingerprint,
    )  # fmt: skip
    for bad in (pack(sent)[:-1], b"", b"x" * 40):
        with pytest.raises(Damaged):
            unpack(bad)


@pytest.mark.parametrize("given", [["--nnodes", "2"], ["--nnodes", "2", "--node-rank", "2"]])
def test_a_machine_needs_all_arguments_of_its_place(tmp_path: Path, given: list[str]) -> None:
    """A missing address is a mistake in the command, and said at once."""
    ended = tiny.run_trainer("train", tmp_path, *given)

    assert ended.returncode == 78
    assert "--interface-address: give all of them" in ended.stderr
