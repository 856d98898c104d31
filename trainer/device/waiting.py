"""Lets the threads of a training on a CPU wait actively while nobody else wants the cores.

Threads that share one matrix product wait for each other thousands of times a second. To wait
actively (to spin) saves falling asleep and waking: a step of SmolLM2-135M takes a quarter less. But
who spins keeps a core from a thread that works: with a second training on the same two cores a step
took 36 s instead of 2.6 s. So it depends on whether others want the cores, which changes.

GNU's OpenMP library (libgomp, which torch's wheels bring) reads how to wait when it is loaded. It
has two counts of spins, and chooses between them in every wait: `GOMP_SPINCOUNT`, and while the
process has more OpenMP threads than cores, one that `OMP_WAIT_POLICY=PASSIVE` makes zero. So with
both set, a team of sleeping threads too many makes all waits passive, and its end active again.
Nothing of this changes a number: the same threads do the same work.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
PASSIVE = "PASSIVE"
SPINS = "1000000"
"""Of an active wait, some 20 ms: longer than any part of a step that one thread does alone, and
short enough that a training that waits for a disk or a network keeps no core busy."""
TASKS = Path("/proc/self/task")
POLL_S = 1.0
CROWDED = 0.25
"""From so much contention on, waits become passive. A busy neighbour of two threads on two cores
makes about 0.7; an idle machine at most 0.02."""
QUIET = 0.15
"""Contention below this is none."""
MEAN_S = 3.0
"""The time constant of the running mean: a burst of half a second changes nothing."""
WAKING_S = 50e-6
"""What a thread may wait for its core after a sleep, on an idle machine."""
QUIET_S_MIN, QUIET_S_MAX = 2.0, 64.0
"""How long it must be quiet before waits become active: twice as long after each vain attempt."""
VAIN_S = 60.0
"""Active waits that lasted less were a vain attempt."""


def prepare_waits(
    environ: MutableMapping[str, str], *, adaptive: bool = False, tasks: Path = TASKS
) -> None:
    """Set what libgomp reads when torch loads it; call before that. What is set already stays.

    Waits are passive; if they are to be `adaptive`, and contention can be measured, they are active
    wherever `adaptive_waits` does not hold them back.
    """
    if adaptive and not {POLICY, SPIN_COUNT} & environ.keys() and read_delays(tasks):
        environ[SPIN_COUNT] = SPINS
    environ.setdefault(POLICY, PASSIVE)


def are_adaptive(environ: Mapping[str, str]) -> bool:
    """Tell whether the environment is as `prepare_waits` sets it for adaptive waits."""
    return environ.get(POLICY) == PASSIVE and environ.get(SPIN_COUNT) == SPINS


@dataclass(frozen=True, kw_only=True)
class WaitPolicy:
    """Whether to wait actively now, by the contention for the cores so far."""

    active: bool = False
    mean: float = 0.0
    """The running mean of the contention."""
    lasted_s: float = 0.0
    """How long waits have been active; while they are passive, how long it has been quiet."""
    quiet_s: float = QUIET_S_MIN
    """How long it must be quiet before waits become active."""

    def after(self, contention: float, seconds: float) -> WaitPolicy:
        """Return the policy after so many more seconds with this contention.

        The contention is how long threads of this process waited for a core, or were stopped by a
        quota, per second.
        """
        mean = self.mean + (contention - self.mean) * (1 - math.exp(-seconds / MEAN_S))
        lasted_s = self.lasted_s + seconds
        if self.active:
            if mean < CROWDED:
                return replace(self, mean=mean, lasted_s=lasted_s)
            vain = lasted_s < VAIN_S
            quiet_s = min(QUIET_S_MAX, 2 * self.quiet_s) if vain else QUIET_S_MIN
            return WaitPolicy(mean=mean, quiet_s=quiet_s)
        if max(contention, mean) >= QUIET:
            return replace(self, mean=mean, lasted_s=0.0)
        if lasted_s < self.quiet_s:
            return replace(self, mean=mean, lasted_s=lasted_s)
        return replace(self, active=True, mean=mean, lasted_s=0.0)


Delays = dict[str, tuple[float, int]]
"""Per thread: for how many seconds it waited for a core so far, and how often it got one."""


def read_delays(tasks: Path = TASKS) -> Delays:
    """Return the delays of this process's threads; empty where the kernel does not count them."""
    found: Delays = {}
    try:
        threads = [*tasks.iterdir()]
    except OSError:
        return found
    for thread in threads:
        try:
            _, waited_ns, times = (thread / "schedstat").read_text(encoding="ascii").split()
        except (OSError, ValueError):  # it has ended, or the kernel does not count
            continue
        found[thread.name] = int(waited_ns) / 1e9, int(times)
    return found


def read_throttled_s(root: Path = Path("/")) -> float:
    """Return for how many seconds the CPU quota of this process's control groups held it up so far.

    Of a group and those above it, whichever was held up longest; 0 where there is no quota. Threads
    that a quota stops count as waiting for nobody, so their delays alone do not show it.
    """
    found = 0.0
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = top / group.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(top):
                found = max(found, _throttled_s(folder / "cpu.stat"))
    return found


def _throttled_s(path: Path) -> float:
    """Return the seconds that a `cpu.stat` of either version says, 0 if it says none."""
    try:
        pairs = (line.split() for line in path.read_text(encoding="ascii").splitlines())
        times = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):  # no such group, or no controller for it
        return 0.0
    return times.get("throttled_usec", 0) / 1e6 + times.get("throttled_time", 0) / 1e9


def contention(before: Delays, now: Delays, seconds: float) -> float:
    """Return for how long threads waited for a core per second, beyond the time that waking takes.

    Several threads may wait at once, so it can be more than 1.
    """
    waited = 0.0
    for name, (waited_s, times) in now.items():
        waited_before_s, times_before = before.get(name, (0.0, 0))
        waking_s = (times - times_before) * WAKING_S
        waited += max(0.0, waited_s - waited_before_s - waking_s)
    return waited / seconds if seconds > 0 else 0.0


class SurplusTeam:
    """A team of sleeping OpenMP threads; while it is open, all waits in this process are passive.

    It is a thread with a parallel region of its own behind it: libgomp keeps the threads of that
    region for the next one until the thread ends.
    """

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        self._library = library
        self._size = size
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def is_open(self) -> bool:
        """Whether its threads are there."""
        return self._thread is not None

    def open(self) -> None:
        """Start its threads, and return when they are there; nothing if it is open."""
        if self._thread is not None:
            return
        self._ended, started = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(started, self._ended), name="surplus-team", daemon=True
        )
        self._thread.start()
        started.wait()

    def close(self) -> None:
        """End its threads; nothing if it is not open."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def _run(self, started: threading.Event, ended: threading.Event) -> None:
        try:
            nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of NULL: no work
            self._library.GOMP_parallel(nothing, None, self._size, 0)
        finally:
            started.set()
        ended.wait()


def find_libgomp() -> ctypes.CDLL | None:
    """Return the OpenMP library that torch computes with if it is GNU's, else None."""
    import torch

    try:
        found = ctypes.CDLL(torch._C.__file__)  # noqa: SLF001  # names are looked up in what it links, too
    except OSError:
        return None
    clang = hasattr(found, "__kmpc_fork_call")  # LLVM's has the names of GNU's, and other ways
    return found if hasattr(found, "GOMP_parallel") and not clang else None


@dataclass(frozen=True, kw_only=True)
class Polling:
    """How the contention is measured: how often, from where, and where the policy begins."""

    every_s: float = POLL_S
    read: Callable[[], Delays] = read_delays
    read_throttled_s: Callable[[], float] = read_throttled_s
    policy: WaitPolicy = WaitPolicy()


@contextmanager
def adaptive_waits(
    *,
    threads: int,
    on_cpu: bool,
    on_message: Callable[[str], None],
    polling: Polling | None = None,
) -> Iterator[None]:
    """Let threads wait actively while nobody else wants the cores, for as long as one is inside.

    Nothing happens where the environment is not that of `prepare_waits`. On a card, whose thread on
    the host waits for the card most of the time, waits stay passive. `threads` is how many compute.
    """
    library = find_libgomp() if are_adaptive(os.environ) and threads > 1 else None
    if library is None:
        yield
        return
    team = SurplusTeam(library, max(2, cores() - threads + 2))
    team.open()
    poll = _Poll(team, on_message, polling or Polling())
    if on_cpu:
        poll.start()
    try:
        yield
    finally:
        if on_cpu:
            poll.close()
        team.close()


def cores() -> int:
    """Return how many cores this process may use, as libgomp counts them."""
    return len(os.sched_getaffinity(0))


ACTIVE_TEXT = "nobody else wants the cores: threads wait for each other actively, which is faster"
PASSIVE_TEXT = "other programs want the cores: threads wait for each other without keeping them"


class _Poll:
    """Measures the contention from a daemon thread, and opens or closes a team by it."""

    def __init__(
        self, team: SurplusTeam, on_message: Callable[[str], None], polling: Polling
    ) -> None:
        self._team = team
        self._on_message = on_message
        self._polling = polling
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="waits", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and return when the team is no longer touched."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        read, policy = self._polling.read, self._polling.policy
        throttled = self._polling.read_throttled_s
        at, before, stopped_s = time.monotonic(), read(), throttled()
        reported: set[bool] = set()
        while not self._ended.wait(self._polling.every_s):
            now, delays, stopped_now_s = time.monotonic(), read(), throttled()
            lost = contention(before, delays, now - at) + (stopped_now_s - stopped_s) / (now - at)
            policy = policy.after(lost, now - at)
            at, before, stopped_s = now, delays, stopped_now_s
            if policy.active != self._team.is_open:
                continue
            if policy.active:
                self._team.close()
            else:
                self._team.open()
            if policy.active not in reported:  # each once: it may change every few seconds
                self._on_message(ACTIVE_TEXT if policy.active else PASSIVE_TEXT)
            reported.add(policy.active)
