"""While a step runs, one line now and then says how far it is and how long it has been at it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshd, wheels

from remote.errors import CommandFailed
from remote.setup import python_env
from remote.setup.apply import DIRECTORY, apply
from remote.setup.progress import format_duration, progress_line
from remote.setup.steps import SetupGoal
from remote.ssh import connect

PIP = """qft: 61 packages
Collecting absl-py==2.5.1 (from -r qft/venv-1.txt (line 5))
  Downloading absl_py-2.5.1-py3-none-any.whl (135 kB)
Collecting accelerate==1.15.0 (from -r qft/venv-1.txt (line 7))
  Downloading accelerate-1.15.0-py3-none-any.whl (380 kB)
Collecting torch==2.13.0+cpu (from -r qft/venv-1.txt (line 9))
  Downloading torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl (191.8 MB)
"""
APT = """Reading package lists...
3 upgraded, 61 newly installed, 0 to remove and 4 not upgraded.
Need to get 300 MB of archives.
Get:1 http://a.example noble/main amd64 x amd64 1 [10 kB]
Get:2 http://a.example noble/main amd64 y amd64 1 [10 kB]
"""
LINES: dict[str, tuple[str, float, str]] = {
    "pip fetches": (
        PIP,
        70,
        "make it: fetching the trainer's packages: 2 of 61 (now torch, 191.8 MB), 1 min 10 s",
    ),
    "pip begins": (
        "qft: 61 packages\n",
        4,
        "make it: fetching the trainer's packages: 0 of 61, 4 s",
    ),
    "pip installs": (
        f"{PIP}Installing collected packages: absl-py, accelerate\n",
        3725,
        "make it: installing the trainer's packages: 61 are there, 1 h 02 min",
    ),
    "an attempt before does not count": (
        f"{PIP}Installing collected packages: absl-py\n{PIP}",
        70,
        "make it: fetching the trainer's packages: 2 of 61 (now torch, 191.8 MB), 1 min 10 s",
    ),
    "pip takes the bigger build": (
        f"{PIP}qft: no index has the small build\nqft: 80 packages\nCollecting a==1\n",
        70,
        (
            "make it: fetching the trainer's packages: 0 of 80 (now a), 1 min 10 s"
            " (no index has the small build)"
        ),
    ),
    "apt plans": (APT.partition("Get")[0], 9, "make it: 0 of 64 packages fetched, 9 s"),
    "apt fetches": (APT, 9, "make it: 2 of 64 packages fetched, 9 s"),
    "apt unpacks": (
        f"{APT}Unpacking x (1) ...\nUnpacking y (1) ...\nUnpacking z (1) over (0) ...\n",
        9,
        "make it: 3 of 64 packages unpacked, 9 s",
    ),
    "apt sets up": (
        f"{APT}Unpacking x (1) ...\nSetting up x (1) ...\n",
        60,
        "make it: 1 of 64 packages set up, 1 min 00 s",
    ),
    "nothing to install": (
        "0 upgraded, 0 newly installed, 0 to remove and 4 not upgraded.\n",
        9,
        "make it: 9 s",
    ),
    "no words": ("", 59.9, "make it: 59 s"),
    "nonsense": ("\x00Collecting\nqft: many packages\n\ufffd", 1, "make it: 1 s (many packages)"),
}


@pytest.mark.parametrize("name", LINES)
def test_line(name: str) -> None:
    """A log like this is told in this line."""
    log, elapsed_s, line = LINES[name]

    assert progress_line("make it", log, elapsed_s) == line


def test_times_are_written_as_people_do() -> None:
    """Seconds, then minutes with seconds, then hours with minutes."""
    assert [format_duration(one) for one in (0, 59.99, 60, 3599, 3600, 7_325)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 02 min",
    ]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sshd.Sshd]:
    """A machine whose pip finds the one package of the lock after a while."""
    wheel_dir = wheels.make_wheel_dir(tmp_path)
    monkeypatch.setattr(python_env, "REQUIREMENTS", tmp_path / "requirements")
    with sshd.serve(tmp_path / "machine") as running:
        wheels.install_python(
            running.home, f"[global]\nno-index = true\nfind-links = {wheel_dir}\n"
        )
        yield running


def test_real_pip_is_followed(server: sshd.Sshd) -> None:
    """With the real pip at work, how many packages of how many and the time are told."""
    messages: list[str] = []
    clock = itertools.count(step=6.0)
    with connect(server.host()) as connection:
        apply(
            connection,
            SetupGoal(),
            on_message=messages.append,
            sleep=lambda _: time.sleep(0.05),
            clock=lambda: float(next(clock)),
        )
    lines = [one for one in messages if one.startswith("make the Python environment: ")]

    assert lines
    assert all(one.endswith((" s", " min")) or " min " in one for one in lines)
    assert [one for one in lines if " of 1" in one or "1 are there" in one]


def test_wheels_without_cuda_that_nobody_has(
    server: sshd.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no index has torch's small build the other one is taken, and that is told."""
    small = tmp_path / "requirements" / "cpu.txt"
    small.write_text(small.read_text().replace("qft_probe==1.0", "torch==99.0+cpu"))
    monkeypatch.setattr("remote.setup.apply.PROGRESS_S", 0.0)
    messages: list[str] = []
    with connect(server.host()) as connection:
        ready = apply(
            connection, SetupGoal(), on_message=messages.append, sleep=lambda _: time.sleep(0.05)
        )
        output = connection.run(
            [ready.python, "-c", "import qft_probe; print(qft_probe.WORD)"]
        ).stdout
        log = connection.run(["cat", f"{DIRECTORY}/job.log"]).stdout

    assert output == "honest\n"
    assert python_env.NO_SMALL_BUILD in log


def test_another_failure_is_no_reason_for_the_bigger_build(
    server: sshd.Sshd, tmp_path: Path
) -> None:
    """A wheel with another hash ends the step: nothing else is fetched in its place."""
    small = tmp_path / "requirements" / "cpu.txt"
    head, _, _ = small.read_text().partition("sha256:")
    small.write_text(f"{head}sha256:{'0' * 64}\n")
    with connect(server.host()) as connection, pytest.raises(CommandFailed) as caught:
        apply(connection, SetupGoal(), on_message=lambda _: None, sleep=lambda _: time.sleep(0.05))

    assert "DO NOT MATCH THE HASHES" in str(caught.value)
    assert "replaced or damaged" in caught.value.hint
    assert list(server.home.glob("qft/venv-*/.ready")) == []
