"""Starts one process for each rank of a training on this machine, and waits until all have ended.

The launcher computes nothing and loads no library: it hands each rank its number, card, and the
address of the store, passes on the order to stop, and makes one exit code of theirs. torchrun does
the same for many frameworks and is not used: it answers every failure with exit code 1, kills ranks
that still save after 30 s, cannot give them a token over stdin, and loads torch itself.

No rank survives the launcher: each asks the kernel for a SIGKILL when its parent ends
(`end_with_parent`). The lock of the run directory is inherited, so that no other trainer begins
before the last rank is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from trainer.device.waiting import PASSIVE, POLICY, SPIN_COUNT, are_adaptive
from trainer.eviction import PreemptionFlag
from trainer.group.cards import VISIBLE
from trainer.group.machines import Machine
from trainer.group.rank_exit import LEFT, RankEnd, exit_code_of
from trainer.group.rank_output import RankOutput
from trainer.group.stopped import is_stopped
from trainer.secret import Secret

LOOPBACK = "127.0.0.1"
POLL_S = 0.05
CALM_S = 5.0
"""After the end of one rank the others leave by themselves; those that have not are told then."""
LEAVE_S = 45.0
"""What a rank may take to save after it was told; less than whoever stops a training waits."""
LAST_LINES_S = 2.0
BACKLOG = 128
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Which rank a process is, and where it finds the others."""

    rank: int
    size: int
    address: str
    """Of the store through which ranks find each other: host and port."""
    listen_fd: int | None = None
    """The listening socket of that address, which rank 0 inherits."""

    def to_arguments(self, parent: int) -> list[str]:
        """Return the arguments that tell a process its place; `parent` is who starts it."""
        listening = [] if self.listen_fd is None else ["--listen-fd", str(self.listen_fd)]
        place = ["--rank", str(self.rank), "--ranks", str(self.size), "--store", self.address]
        return [*place, *listening, "--launcher", str(parent)]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is started: the same command for every rank, each with a card of its own."""

    command: Sequence[str]
    cards: Sequence[str | None]
    """The card of each rank; None computes on the CPU."""
    environ: Mapping[str, str]
    token: Secret | None = field(default=None, repr=False)
    lock: int | None = None
    """The descriptor of the run directory's lock, which every rank keeps open."""
    machine: Machine | None = None
    """Which of several machines this is; None if there is one only."""
    calm_s: float = CALM_S
    leave_s: float = LEAVE_S


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the ranks ended, and what each of them said last of an error."""

    ends: tuple[RankEnd, ...]
    errors: tuple[str, ...]


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end now if that is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)


def rank_environment(environ: Mapping[str, str], card: str | None) -> dict[str, str]:
    """Return what a rank finds in its environment: its card only, and threads that wait passively.

    Ranks that share the cores of a machine would keep them from each other by active waits.
    """
    found = {**environ, POLICY: environ.get(POLICY, PASSIVE)}
    if are_adaptive(found):  # not the user's choice: the trainer's own for a single process
        del found[SPIN_COUNT]
    return found if card is None else {**found, VISIBLE: card}


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where ranks find each other, and the socket that listens there if this machine hosts it."""

    address: str
    listen_fd: int | None


@contextmanager
def open_store(machine: Machine | None) -> Iterator[Store]:
    """Listen where the store will be: on loopback, or on the first machine's private address."""
    if machine is not None and machine.number > 0:
        yield Store(address=machine.store, listen_fd=None)
        return
    host, _, port = (f"{LOOPBACK}:0" if machine is None else machine.store).rpartition(":")
    with socket.create_server((host, int(port)), backlog=BACKLOG) as listening:
        host, found = listening.getsockname()
        yield Store(address=f"{host}:{found}", listen_fd=listening.fileno())


def run_ranks(
    launch: Launch,
    flag: PreemptionFlag,
    *,
    on_message: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Ended:
    """Start all ranks and return when all have ended; whatever ends this call ends them, too.

    When `flag` is set every rank gets a SIGTERM. When a rank ends otherwise than well, the others
    have `calm_s` to notice, then get a SIGTERM, and after `leave_s` more a SIGKILL.
    """
    ranks: list[_Rank] = []
    try:
        with open_store(launch.machine) as store:
            for number in range(len(launch.cards)):
                ranks.append(_Rank(launch, number, store, on_message))  # noqa: PERF401 - those that run are ended if one cannot be started
        watch = _Watch(launch, ranks, flag, clock)
        while watch.someone_runs():
            sleep(POLL_S)
    finally:
        for rank in ranks:
            rank.kill()
    for rank in ranks:
        rank.close()
    for rank in ranks:
        if rank.end.code not in LEFT:
            rank.output.show_rest()
    return Ended(
        ends=tuple(rank.end for rank in ranks), errors=tuple(rank.output.error for rank in ranks)
    )


class _Rank:
    """One process, with a thread that reads what it says unless it is the first."""

    def __init__(
        self, launch: Launch, number: int, store: Store, on_message: Callable[[str], None]
    ) -> None:
        self.output = RankOutput(number, on_message)
        self.killed = self.terminated = False
        leads = number == 0
        listen_fd = store.listen_fd if leads else None
        place = RankPlace(
            rank=number,
            size=len(launch.cards),
            address=store.address,
            listen_fd=listen_fd,
        )
        inherited = [launch.lock] if launch.lock is not None else []
        self._process = subprocess.Popen(
            [*launch.command, *place.to_arguments(os.getpid())],
            env=rank_environment(launch.environ, launch.cards[number]),
            stdin=subprocess.DEVNULL if launch.token is None else subprocess.PIPE,
            stdout=None if leads else subprocess.PIPE,
            stderr=None if leads else subprocess.STDOUT,
            pass_fds=[*inherited, *([listen_fd] if listen_fd is not None else [])],
            encoding="utf-8",
            errors="replace",
        )
        if launch.token is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError), self._process.stdin as stdin:  # it has ended: seen soon
                stdin.write(launch.token.reveal())
        self._reader = threading.Thread(target=self._read, name=f"rank-{number}", daemon=True)
        self._reader.start()

    @property
    def returncode(self) -> int | None:
        """What it ended with, None while it runs."""
        return self._process.poll()

    @property
    def end(self) -> RankEnd:
        """How it ended; ask when it has."""
        return RankEnd(
            code=exit_code_of(self._process.wait()),
            killed_by_launcher=self.killed,
            terminated=self.terminated,
        )

    def terminate(self) -> None:
        """Tell it to save and leave."""
        self.terminated = True
        self._process.terminate()

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self.returncode is None:
            self.killed = True
            self._process.kill()

    def is_stopped(self) -> bool:
        """Tell whether it was stopped by a signal, so that it can neither hear nor save."""
        return is_stopped(self._process.pid)

    def close(self) -> None:
        """Wait for its end and the last of its lines."""
        self._process.wait()
        self._reader.join(LAST_LINES_S)  # a program that it left behind may keep the pipe open

    def _read(self) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                self.output.read(lines)


class _Watch:
    """Decides at every look who is told to leave, and who is killed."""

    def __init__(
        self,
        launch: Launch,
        ranks: Sequence[_Rank],
        flag: PreemptionFlag,
        clock: Callable[[], float],
    ) -> None:
        self._launch = launch
        self._ranks = ranks
        self._flag = flag
        self._clock = clock
        self._first_end_s: float | None = None
        self._terminated_s: float | None = None

    def someone_runs(self) -> bool:
        """Look once; tell whether a rank still runs."""
        running = [rank for rank in self._ranks if rank.returncode is None]
        now_s = self._clock()
        if self._flag.notice is not None:
            self._terminate(running)
        if self._first_end_s is None and self._has_ended_early():
            self._first_end_s = now_s
        if self._first_end_s is None or now_s < self._first_end_s + self._launch.calm_s:
            return bool(running)
        if self._ranks[0].returncode != 0:  # else all is done, and the others are about to end
            self._terminate(running)
        if self._terminated_s is None:
            self._terminated_s = now_s
        for rank in running:
            if now_s >= self._terminated_s + self._launch.leave_s or rank.is_stopped():
                rank.kill()
        return bool(running)

    def _terminate(self, running: Sequence[_Rank]) -> None:
        for rank in running:
            if not rank.terminated:
                rank.terminate()

    def _has_ended_early(self) -> bool:
        """Tell whether the training cannot go on: a rank failed or left, or the first is through.

        Another that is done before the first has nothing left to do.
        """
        codes = [rank.returncode for rank in self._ranks]
        return codes[0] is not None or any(codes[1:])


def interpreter_command() -> list[str]:
    """Return how a trainer is started with the interpreter that runs this one."""
    return [sys.executable, "-m", "trainer"]
