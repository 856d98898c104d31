"""Threads of a training on a CPU wait actively only while nobody else wants the cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support import tiny

from trainer.device import waiting
from trainer.device.waiting import Delays, WaitPolicy, contention, prepare_waits

ROOT = Path(__file__).resolve().parent.parent


def counted(tmp_path: Path, *threads: tuple[int, int]) -> Path:
    """A folder of threads as /proc has it: nanoseconds of delay, and how often a core was got."""
    for number, (delay_ns, times) in enumerate(threads):
        place = tmp_path / str(number)
        place.mkdir(parents=True)
        (place / "schedstat").write_text(f"5 {delay_ns} {times}\n")
    return tmp_path


def run_policy(*contentions: float) -> list[bool]:
    """Whether waits are active after each second with these contentions."""
    policy, found = WaitPolicy(), []
    for one in contentions:
        policy = policy.after(one, 1.0)
        found.append(policy.active)
    return found


def write(path: Path, text: str) -> None:
    """Write a file below a made-up root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_quota_of_a_group_above_is_seen(tmp_path: Path) -> None:
    """The time that a CPU quota stops the process counts, whichever group has the quota."""
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/a/b/cpu.stat", "usage_usec 9\nthrottled_usec 0\n")
    write(tmp_path / "sys/fs/cgroup/a/cpu.stat", "usage_usec 9\nthrottled_usec 1500000\n")

    assert waiting.read_throttled_s(tmp_path) == 1.5


def test_a_quota_of_the_first_version_is_seen(tmp_path: Path) -> None:
    """Version 1 counts nanoseconds, in a tree of its own for the processor."""
    write(tmp_path / "proc/self/cgroup", "4:memory:/m\n3:cpu,cpuacct:/c\n")
    write(tmp_path / "sys/fs/cgroup/cpu/c/cpu.stat", "nr_periods 3\nthrottled_time 250000000\n")

    assert waiting.read_throttled_s(tmp_path) == 0.25
    assert waiting.read_throttled_s(tmp_path / "none") == 0.0


def test_waits_become_active_on_a_quiet_machine() -> None:
    """Waits begin passive, and are active after two quiet seconds."""
    assert run_policy(0.01, 0.01, 0.01) == [False, True, True]


def test_waits_become_passive_when_a_neighbour_comes() -> None:
    """A busy neighbour ends active waits within three seconds, and they stay passive with it."""
    found = run_policy(*[0.0] * 10, *[0.7] * 20)

    assert found[9]
    assert not any(found[12:])


def test_a_burst_leaves_waits_active() -> None:
    """Half a second of another program, now and then, is no neighbour."""
    assert all(run_policy(0.0, 0.0, *([0.5] + [0.0] * 9) * 5)[1:])


def test_vain_attempts_become_rare() -> None:
    """With a neighbour who comes as soon as waits are active, less and less time is spent so."""
    policy, changes, was = WaitPolicy(), [], False
    for second in range(600):
        policy = policy.after(1.0 if policy.active else 0.0, 1.0)
        if policy.active and not was:
            changes.append(second)
        was = policy.active
    gaps = [later - sooner for sooner, later in pairwise(changes)]

    assert gaps == sorted(gaps)
    assert gaps[-1] >= waiting.QUIET_S_MAX
    assert len(changes) < 15


def test_a_long_quiet_time_forgets_vain_attempts() -> None:
    """After a minute of active waits, the next neighbour costs no more than the first did."""
    policy = WaitPolicy(active=True, quiet_s=32.0)
    for _ in range(70):
        policy = policy.after(0.0, 1.0)
    for _ in range(5):
        policy = policy.after(1.0, 1.0)

    assert not policy.active
    assert policy.quiet_s == waiting.QUIET_S_MIN


def test_contention_leaves_out_the_time_of_waking() -> None:
    """Thousands of short delays are barriers; few long ones are a neighbour; new threads count."""
    before: Delays = {"1": (1.0, 100), "2": (5.0, 7)}

    assert contention(before, {"1": (1.05, 2100), "2": (5.0, 7)}, 1.0) == 0
    assert contention(before, {"1": (1.6, 120), "2": (5.0, 7)}, 2.0) == pytest.approx(0.2995)
    assert contention(before, {"9": (0.5, 0)}, 1.0) == pytest.approx(0.5)
    assert contention(before, before, 0.0) == 0


def test_delays_are_read_of_every_thread(tmp_path: Path) -> None:
    """A thread that has ended is left out; a kernel that does not count gives nothing."""
    tasks = counted(tmp_path, (2_000_000_000, 3), (0, 1))
    (tasks / "77").mkdir()

    assert waiting.read_delays(tasks) == {"0": (2.0, 3), "1": (0.0, 1)}
    assert waiting.read_delays(tmp_path / "none") == {}


def test_adaptive_waits_need_a_kernel_that_counts(tmp_path: Path) -> None:
    """Without the kernel's delays, or without being asked, waits are passive as ever."""
    tasks = counted(tmp_path / "tasks", (0, 0))
    adaptive: dict[str, str] = {}
    blind: dict[str, str] = {}
    plain: dict[str, str] = {}
    prepare_waits(adaptive, adaptive=True, tasks=tasks)
    prepare_waits(blind, adaptive=True, tasks=tmp_path / "none")
    prepare_waits(plain, tasks=tasks)

    assert adaptive == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": waiting.SPINS}
    assert blind == plain == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert waiting.are_adaptive(adaptive)
    assert not waiting.are_adaptive(plain)


@pytest.mark.parametrize(
    "own",
    [{"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "7"}],
)
def test_a_choice_of_the_user_stays(own: dict[str, str], tmp_path: Path) -> None:
    """Whoever sets one of libgomp's variables keeps it, and nothing changes during the training."""
    environ = dict(own)
    prepare_waits(environ, adaptive=True, tasks=counted(tmp_path, (0, 0)))

    assert own.items() <= environ.items()
    assert not waiting.are_adaptive(environ)


SCRIPT = """
import json, os, sys, time
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000000"}
import torch
from trainer.device import waiting

torch.set_num_threads(2)
ones = torch.ones(1 << 20)


def spun():  # CPU nanoseconds that other threads than this one take after a parallel region
    (ones + ones)
    time.sleep(1e-3)  # what was to be added is added
    tasks = [one for one in waiting.TASKS.iterdir() if int(one.name) != os.getpid()]
    before = {one: int((one / "schedstat").read_text().split()[0]) for one in tasks}
    time.sleep(0.1)
    return sum(int((one / "schedstat").read_text().split()[0]) - before[one] for one in tasks)


def spins():  # of some regions, as a busy machine disturbs each
    return any(spun() > 2_000_000 for _ in range(200))


facts, delays, texts = {}, [0.0], []
rising = lambda: {"1": (delays[0], 0)}


def until(text):
    at = time.monotonic()
    while not (texts and texts[-1] == text) and time.monotonic() - at < 60:
        delays[0] += 1e6 if text == waiting.PASSIVE_TEXT else 0.0
        time.sleep(0.01)
    return texts[-1:] == [text]


policy = waiting.WaitPolicy(quiet_s=0.05)
polling = waiting.Polling(
    every_s=0.01, read=rising, read_throttled_s=lambda: 0.0, policy=policy
)
with waiting.adaptive_waits(threads=2, on_cpu=True, on_message=texts.append, polling=polling):
    facts["became active"] = until(waiting.ACTIVE_TEXT)
    facts["spins"] = spins()
    facts["became passive"] = until(waiting.PASSIVE_TEXT)
    facts["sleeps"] = not any(spun() > 2_000_000 for _ in range(5))
with waiting.adaptive_waits(threads=2, on_cpu=False, on_message=texts.append):
    facts["sleeps with a card"] = not any(spun() > 2_000_000 for _ in range(5))
facts["spins after it"] = spins()
print(json.dumps(facts))
"""


def test_threads_of_torch_spin_and_sleep_as_they_should() -> None:
    """Torch's own threads use a core after their work while it is quiet, and none with others."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts == dict.fromkeys(facts, True)
    assert len(facts) == 6


@pytest.mark.slow
def test_adaptive_waits_change_no_bit(tmp_path: Path) -> None:
    """A training whose waits change has the losses and the adapter of one whose waits do not."""
    outcomes = []
    for name, own in (("adaptive", {}), ("passive", {"OMP_WAIT_POLICY": "PASSIVE"})):
        run_dir = tiny.make_run(tmp_path / name, train={"threads": 2, "steps": 30})
        environ = {key: value for key, value in os.environ.items() if key not in _READ}
        done = subprocess.run(
            tiny.trainer_command("train", run_dir),
            cwd=ROOT, env=environ | own, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outcomes.append((tiny.losses(run_dir), tiny.adapter_bytes(run_dir)))

    assert outcomes[0] == outcomes[1]


_READ = {waiting.POLICY, waiting.SPIN_COUNT, "OMP_NUM_THREADS"}
