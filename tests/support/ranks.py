"""Several ranks of one training, each a process of its own that gloo joins on this machine.

The processes are forked from one that has loaded the libraries, so that a rank starts at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes  # noqa: F401 - loaded before the ranks are forked
import peft  # noqa: F401 - likewise
import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - likewise

from support import tiny
from support.rig import Logger, Rig, restored, rig
from trainer.errors import Preempted, TrainerError
from trainer.eviction import PreemptionFlag
from trainer.group.peers import Peers
from trainer.group.waiting import STUCK_S
from trainer.training import loop
from trainer.training.loop import train
from trainer.training.passes import backward_pass

CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["support.ranks"])


STEPS = 5
TRAIN = {"steps": STEPS, "batch_size": 7, "micro_batch": 2, "lr": 1e-2}
"""Four micro-batches a step, the last of one row: no multiple of three, and of two with a rest."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that happens on one rank before a backward pass, once."""

    kind: str
    """`kill`, `stop`, `notice`, `memory`, `order`, or `bug`."""
    rank: int
    step: int
    """Those done by then."""
    number: int
    """Of the micro-batch."""
    seconds: float = 60.0
    """What a notice leaves."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A training that ranks do together, each in a directory of its own."""

    run_dirs: tuple[Path, ...]
    until: int
    failures: tuple[Failure, ...] = ()
    flips: tuple[tuple[int, int, str], ...] = ()
    """Rank, step, and what has one bit flipped after it: `parameter`, `moment` or `sum`."""
    scaled: bool = False
    resumed: bool = False
    save: bool = False
    silent_s: float = 25.0
    micro_batches: tuple[int, ...] = ()
    """Of each rank, if they begin with different ones."""


@dataclass
class Report:
    """What a rank reports at its end."""

    records: list[dict[str, Any]] = field(default_factory=list)
    adapter: dict[str, bytes] = field(default_factory=dict)
    moments: dict[str, bytes] = field(default_factory=dict)
    step: int = -1
    micro_batch: int = 0
    error: str = ""
    text: str = ""
    seconds: float = 0.0
    """From the first step, or from the last failure of any rank if that is known here."""
    grads: int = 0
    messages: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    extra: Any = None

    @property
    def digests(self) -> list[str]:
        """Return the digest of the parameters after each step."""
        return [record["params"] for record in self.records]


def simulated_scaler() -> Any:
    """Return the loss scale that a card without bfloat16 has, which a CPU takes as well."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)


def prepared(run_dir: Path, story: Story) -> Rig:
    """Set a training up as a story wants it."""
    made = restored(run_dir) if story.resumed else rig(run_dir)
    if story.scaled:
        made.state.scaler = simulated_scaler()
    return made


def report_of(made: Rig, logger: Logger) -> Report:
    """Return what there is to report of a state."""
    snapshot = made.state.snapshot({})
    adapter, moments = (
        {name: one.numpy().tobytes() for name, one in tensors.items()}
        for tensors in (snapshot.adapter, snapshot.optimizer)
    )
    return Report(
        records=[{k: v for k, v in one.items() if k != "seconds"} for one in logger.records],
        adapter=adapter,
        moments=moments,
        step=made.state.counters.step,
        micro_batch=made.state.counters.micro_batch,
        grads=sum(one.grad is not None for one in made.state.parameters.values()),
        messages=list(made.messages),
    )


def run_dirs(directory: Path, count: int, **tables: Any) -> tuple[Path, ...]:
    """Lay out the same run so many times, over one model and one file of rows."""
    first = tiny.make_run(
        directory, rows=20, **{**tables, "train": TRAIN | tables.get("train", {})}
    )
    config = (first / "config.json").read_bytes()
    made = [first]
    for at in range(1, count):
        made.append(directory / f"run{at}")
        made[-1].mkdir()
        (made[-1] / "config.json").write_bytes(config)
    return tuple(made)


def by_one_process(run_dir: Path, story: Story, *, short_after: int | None = None) -> Report:
    """Return what one process reports of the same training.

    In the step after `short_after` it runs out of memory, once.
    """
    made = prepared(run_dir, story)
    logger = Logger(made.state)
    left = [short_after]

    def short_pass(*arguments: Any, **words: Any) -> Any:
        if left == [made.state.counters.step]:
            left.clear()
            raise MemoryError("out of memory by order of a test")
        return backward_pass(*arguments, **words)

    with mock.patch.object(loop, "backward_pass", short_pass):
        train(made.context, made.state, logger, until=story.until)
    if story.save:
        made.save()
    return report_of(made, logger)


@contextlib.contextmanager
def failures_of(story: Story, made: Rig, flag: PreemptionFlag, peers: Peers) -> Iterator[None]:
    """Let the failures of this rank happen while inside."""
    left = {(one.step, one.number): one for one in story.failures if one.rank == peers.rank}
    real_pass, real_update = backward_pass, loop.whole_update
    numbers: list[int] = []
    steps = [-1]

    def faulty_pass(*arguments: Any, **words: Any) -> Any:
        step = made.state.counters.step
        if steps[0] != step or not numbers:
            steps[0] = step
            numbers[:] = []
        number = peers.rank + peers.size * len(numbers)
        numbers.append(number)
        failure = left.pop((step, number), None)
        if failure is not None:
            happen(failure, flag)
        return real_pass(*arguments, **words)

    def flipping_update(*arguments: Any, **words: Any) -> Any:
        step = made.state.counters.step + 1
        mine = [what for rank, at, what in story.flips if (rank, at) == (peers.rank, step)]
        first = next(iter(made.state.parameters.values()))
        if "sum" in mine:
            assert first.grad is not None
            flip(first.grad)
        result = real_update(*arguments, **words)
        if "parameter" in mine:
            flip(first)
        if "moment" in mine:
            flip(made.state.optimizer.state[first]["exp_avg"])
        return result

    with (
        mock.patch.object(loop, "backward_pass", faulty_pass),
        mock.patch.object(loop, "whole_update", flipping_update),
    ):
        yield


def flip(value: torch.Tensor) -> None:
    """Flip a high bit of the mantissa of the first number."""
    bits = value.detach().reshape(-1)[:1].view(torch.int32)
    bits ^= 1 << 20


def happen(failure: Failure, flag: PreemptionFlag) -> None:
    """Let a failure happen to this process."""
    if failure.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if failure.kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if failure.kind == "notice":
        flag.set(seconds_left=failure.seconds, reason="test")
    if failure.kind == "memory":
        raise MemoryError("out of memory by order of a test")
    if failure.kind == "order":
        raise RuntimeError("this has no deterministic form, says a test")
    if failure.kind == "bug":
        raise KeyError("a failure of the program")


def run_rank(  # noqa: PLR0917 - what a process is given
    rank: int, size: int, address: str, listening: Any, act: Any, story: Any, pipe: Connection
) -> None:
    """Be a rank: join, act, and report; what it ends with is the exit code of the process."""
    from trainer.group.joined import join

    torch.set_num_threads(1)
    flag = PreemptionFlag(time.monotonic)
    signal.signal(signal.SIGTERM, lambda *_: flag.set(seconds_left=10.0, reason="SIGTERM"))
    report = Report()
    messages: list[str] = []
    try:
        with join(
            rank=rank,
            size=size,
            address=address,
            listen_fd=listening.detach() if rank == 0 else None,
            device=torch.device("cpu"),
            flag=flag,
            on_message=messages.append,
            silent_s=getattr(story, "silent_s", 25.0),
            stuck_s=getattr(story, "stuck_s", STUCK_S),
        ) as peers:
            act(peers, story, flag, report)
            report.sent_bytes = peers.channel.sent_bytes
    except (Preempted, TrainerError, Exception) as error:  # noqa: BLE001 - all is reported
        report.error, report.text = type(error).__name__, str(error)
    report.messages = [*report.messages, *messages]
    pipe.send(report)
    pipe.close()


def do_story(peers: Peers, story: Story, flag: PreemptionFlag, report: Report) -> None:
    """Train as a story says, and report."""
    run_dir = story.run_dirs[peers.rank]
    made = prepared(run_dir, story)
    if story.micro_batches:
        made.state.counters.micro_batch = story.micro_batches[peers.rank]
    made.context = replace(made.context, peers=peers, flag=flag, on_saving=made.messages.append)
    logger = Logger(made.state)
    peers.gather("ready")  # so that loading is not measured
    began = time.monotonic()
    try:
        with failures_of(story, made, flag, peers):
            train(made.context, made.state, logger, until=story.until)
    finally:
        seconds = time.monotonic() - began
        vars(report).update(vars(report_of(made, logger)))
        report.seconds = seconds
        if story.save:
            made.save()


class Listening:
    """A listening socket on its way to a process that is started."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> Any:
        return _received, (DupFd(self._fd),)


def _received(handle: Any) -> Any:
    return handle


@dataclass
class Ranks:
    """Processes that were started together."""

    processes: list[Any]
    pipes: list[Connection]

    def pid(self, rank: int) -> int:
        """Return the process id of a rank."""
        return int(self.processes[rank].pid)

    def report(self, rank: int, *, timeout_s: float = 600) -> Report:
        """Return what a rank reported, once its process has ended by itself."""
        assert self.pipes[rank].poll(timeout_s), f"rank {rank} reports nothing"
        found = self.pipes[rank].recv()
        assert isinstance(found, Report)
        self.processes[rank].join(30)
        assert self.processes[rank].exitcode == 0, f"rank {rank}: {found.error} {found.text}"
        return found


def start_server() -> None:
    """Start the process that ranks are forked from; it finds modules by its environment alone."""
    paths = os.pathsep.join([str(tiny.ROOT), str(tiny.ROOT / "tests")])
    with mock.patch.dict(os.environ, {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()


@contextlib.contextmanager
def ranks(size: int, story: Any, act: Callable[..., None] = do_story) -> Iterator[Ranks]:
    """Start so many ranks that do `act`, by default train; none outlives the block."""
    start_server()
    started = Ranks([], [])
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for rank in range(size):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(
                target=run_rank,
                args=(rank, size, address, Listening(listener.fileno()), act, story, theirs),
            )
            process.start()
            theirs.close()
            started.processes.append(process)
            started.pipes.append(ours)
        try:
            yield started
        finally:
            for process in started.processes:
                process.kill()
                process.join()
            for pipe in started.pipes:
                pipe.close()


def together(size: int, story: Any, act: Callable[..., None] = do_story) -> list[Report]:
    """Return what all ranks report of what they have done together."""
    with ranks(size, story, act) as started:
        return [started.report(rank) for rank in range(size)]
