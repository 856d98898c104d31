"""The trainer starts in a clean environment, and what cannot go well is not tried again."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import sshd

from commands.runs.power_watch import PowerWatch
from commands.runs.workload import SshWorkload
from commands.runs.workload_config import RemoteLayout
from infra.provider import Vm
from infra.run.workload import HostUnfit, HostUnreachable
from remote import errors
from remote.job import JobState
from remote.ssh import connect
from remote.sync.api import push

TIMEOUT_S = 60.0
TRAINER = """import json, os, sys
import numpy
with open("../run/seen.json", "w") as file:
    json.dump({"path": sys.path, "numpy": numpy.WORD, "environ": dict(os.environ),
               "argv": sys.argv}, file)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Sshd]:
    """A lab's machine: its login puts another project's packages first."""
    with sshd.serve(tmp_path / "machine") as running:
        for name, text in (("numpy", "raise ImportError('numpy of another project')\n"),):
            folder = running.home / "ros" / name
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(text)
        wrapper = running.home.parent / "enter"
        head, _, rest = wrapper.read_text().partition("\n")
        lines = (
            f"export PYTHONPATH={running.home}/ros PYTHONSTARTUP=/no VIRTUAL_ENV=/opt/x\n"
            "export CUDA_VISIBLE_DEVICES=1 WORLD_SIZE=8 RANK=3 MASTER_ADDR=node1\n"
        )
        wrapper.write_text(f"{head}\n{lines}{rest}")
        yield running


def workload(
    server: sshd.Sshd,
    python: str = sys.executable,
    *,
    cards: int = 1,
    gpus: int = 1,
    messages: list[str] | None = None,
) -> tuple[SshWorkload, Vm]:
    """As much of a workload as it takes to start the trainer on that machine."""
    config = SimpleNamespace(
        on_message=(lambda _text: None) if messages is None else messages.append,
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        rents=False,
        brings_home=False,
        layout=RemoteLayout(run_id="r"),
        key_path=server.client_key,
        home=Path("/nowhere"),
        eviction_band=lambda: "",
        cards_on=lambda _vm: cards,
        gpus=gpus,
        allow_change=(),
        make_ready=lambda connection, _vm: (connection, python),
        power_watch=PowerWatch(lambda _vm: ""),
        account=None,
    )
    work = SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used
    vm = Vm(
        provider="ssh",
        run_id="r",
        id="x",
        region="a",
        size="s",
        host="127.0.0.1",
        port=server.port,
        user=server.user,
        host_public_key=server.host_key,
    )
    return work, vm


def shipped(server: sshd.Sshd) -> Path:
    """Put a trainer there that tells what it sees, with a numpy of its own; the run's folder."""
    base = server.home / "qft" / "r"
    for folder in ("code/trainer", "code/numpy", "run"):
        (base / folder).mkdir(parents=True)
    (base / "code/numpy/__init__.py").write_text("WORD = 'ours'\n")
    (base / "code/trainer/__init__.py").touch()
    (base / "code/trainer/__main__.py").write_text(TRAINER)
    return base


def ended(work: SshWorkload, vm: Vm) -> None:
    """Wait until the trainer's job is over."""
    ends_s = time.monotonic() + TIMEOUT_S
    while work._job(vm).status().state is JobState.RUNNING:
        assert time.monotonic() < ends_s
        time.sleep(0.05)


def test_trainer_is_given_the_metadata_service_and_whose_it_is(server: sshd.Sshd) -> None:
    """The machine's record names the API in which its vendor gives notice."""
    base = shipped(server)
    work, vm = workload(server)
    vm = replace(vm, metadata_url="http://169.254.169.254", metadata_api="aws")

    work.launch(vm)
    ended(work, vm)
    argv = json.loads((base / "run" / "seen.json").read_text())["argv"]
    work.disconnect()

    assert argv[argv.index("--metadata-url") + 1] == "http://169.254.169.254"
    assert argv[argv.index("--metadata-api") + 1] == "aws"


@pytest.mark.parametrize(("cards", "extra"), [(1, []), (4, ["--cards", "4"])])
def test_trainer_is_given_the_number_of_cards_where_there_are_several(
    server: sshd.Sshd, cards: int, extra: list[str]
) -> None:
    """With one card it is started as ever."""
    base = shipped(server)
    work, vm = workload(server, cards=cards)

    work.launch(vm)
    ended(work, vm)
    argv = json.loads((base / "run" / "seen.json").read_text())["argv"]
    work.disconnect()

    assert argv[1:] == ["train", "--run-dir", "../run", *extra]


def test_a_machine_with_fewer_cards_than_wanted_is_reported(server: sshd.Sshd) -> None:
    """It trains with what it has; `vm.gpus` was raised after it was rented."""
    shipped(server)
    messages: list[str] = []
    work, vm = workload(server, cards=1, gpus=4, messages=messages)

    work.launch(vm)
    ended(work, vm)
    work.disconnect()

    assert messages == [
        "this machine has 1 of the 4 cards of `vm.gpus`; the next one is rented with all of them"
    ]


def test_start_files_of_the_login_do_not_reach_the_trainer(server: sshd.Sshd) -> None:
    """It imports its own numpy, sees no launcher's names, and keeps the choice of a card."""
    base = shipped(server)
    work, vm = workload(server)

    work.launch(vm)
    ended(work, vm)
    seen = json.loads((base / "run" / "seen.json").read_text())
    work.disconnect()

    assert seen["numpy"] == "ours"
    assert not [path for path in seen["path"] if "ros" in path]
    gone = {"PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "WORLD_SIZE", "RANK", "MASTER_ADDR"}
    assert gone & seen["environ"].keys() == set()
    assert seen["environ"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert stat.S_IMODE((base / "run" / "seen.json").stat().st_mode) == 0o600


UNSTARTABLE = {
    "not there": (None, "a program that is needed is not there"),
    "not executable": ("#!/bin/sh\n", "may not run"),
    "no such interpreter": ("#!/no/such/python\n", "is not"),
    "another processor": ("\x7fELF" + "\x00" * 60, "for another processor"),
}


@pytest.mark.parametrize("name", UNSTARTABLE)
def test_a_trainer_that_cannot_start_is_reported_at_once(server: sshd.Sshd, name: str) -> None:
    """An interpreter that is gone or may not run is no crash: launching again would not help."""
    content, words = UNSTARTABLE[name]
    python = server.home / "python"
    if content is not None:
        python.write_text(content)
        python.chmod(0o755 if name != "not executable" else 0o644)
    shipped(server)
    work, vm = workload(server, str(python))

    work.launch(vm)
    ended(work, vm)
    with pytest.raises(HostUnfit, match="the trainer cannot be started there") as caught:
        work.job_status(vm)
    work.disconnect()

    assert words in str(caught.value)


@pytest.mark.parametrize("code", [126, 127])
def test_what_may_not_run_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A set-up step that ends so ends the attempt, without a second try."""
    assert attempts(monkeypatch, code=code, final=False) == [HostUnfit]


def test_what_would_end_the_same_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk stays full, whatever the code, also where the kernel ended it for memory."""
    assert attempts(monkeypatch, code=1, final=True) == [HostUnfit]
    assert attempts(monkeypatch, code=137, final=True) == [HostUnfit]


def test_a_bad_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror in change and a step that was killed with its machine are tried again."""
    again = [HostUnreachable, HostUnreachable]

    assert attempts(monkeypatch, code=100, final=False) == [*again, HostUnfit]
    assert attempts(monkeypatch, code=137, final=False)[:2] == again


def attempts(monkeypatch: pytest.MonkeyPatch, *, code: int, final: bool) -> list[type[Exception]]:
    """Set up in vain up to three times; how each try ended, until one says that it is the last."""
    config = SimpleNamespace(
        on_message=lambda _text: None,
        helper_python="python3",
        pull_lock=None,
        copies=None,
        leads=lambda: True,
        nodes=1,
        rents=True,
        layout=SimpleNamespace(run_dir="qft/x/run"),
        home=Path("/nowhere"),
        power_watch=PowerWatch(lambda _vm: ""),
    )
    work = SshWorkload(config)  # type: ignore[arg-type]  # as much of a config as is used
    result = errors.CommandResult(exit_code=code, stdout="", stderr="it went wrong")

    def fail(*_all: Any) -> None:
        raise errors.CommandFailed("a step", result, final=final)

    monkeypatch.setattr(work, "_open", lambda _vm: None)
    monkeypatch.setattr(work, "_make_ready", fail)
    ends: list[type[Exception]] = []
    while HostUnfit not in ends and len(ends) < 3:
        with pytest.raises((HostUnfit, HostUnreachable)) as caught:
            work.prepare(Vm(provider="x", run_id="x", id="x", region="a", size="s"))
        ends.append(caught.type)
    return ends


def test_the_limit_is_its_users_alone(server: sshd.Sshd) -> None:
    """The end of the budget is written where nobody else of that machine reads or changes it."""
    work, vm = workload(server)

    work.set_time_limit(vm, 60.0)
    work.disconnect()

    place = server.home / "qft" / "limit"
    assert abs(int(place.read_text()) - time.time() - 60) < 30
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert os.getuid() == place.stat().st_uid


def test_what_travels_there_is_its_users_alone(server: sshd.Sshd, tmp_path: Path) -> None:
    """Rows, code and our helper arrive closed to group and others, whatever they are here."""
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    for name, size in (("rows.jsonl", 10), ("deep/weights.bin", 3_000_000)):
        (tree / name).write_bytes(b"x" * size)
        (tree / name).chmod(0o666)
    with connect(server.host()) as connection:
        push(connection, tree, "qft/r/data")

    ours = [server.home / "qft", *(server.home / "qft").rglob("*")]
    assert len(ours) > 5
    assert [str(path) for path in ours if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("def f():\n    return ().dtype\nf()", "AttributeError: 'tuple' object has no attribute"),
        ("import sys\nsys.exit('such is life')", "such is life"),
        ("import sys\nprint('no network')\nsys.exit(74)", ""),
        ("import os\nos.kill(os.getpid(), 9)", ""),
        ("import sys\nsys.exit(78)", ""),
    ],
)
def test_last_words_are_those_of_a_failure_that_will_come_again(
    server: sshd.Sshd, program: str, words: str
) -> None:
    """A traceback has them; a kill, a lost network and a refusal are no such failure."""
    base = shipped(server)
    (base / "code/trainer/__main__.py").write_text(program)
    work, vm = workload(server)

    work.launch(vm)
    ended(work, vm)
    view = work.job_status(vm)
    work.disconnect()

    assert view.error.startswith(words)
    assert bool(view.error) == bool(words)
