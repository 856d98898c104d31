"""Runs one program in the sandbox, forked from this process, and judges how it ended.

Standard library only.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from trainer.code_eval import folders, usage
from trainer.code_eval.cgroups import Group
from trainer.code_eval.limits import (
    ERROR,
    KILLED,
    MEMORY,
    MESSAGE_CHARS_MAX,
    OUTPUT,
    PASSED,
    TIMEOUT,
    WRONG,
    Limits,
    Outcome,
)
from trainer.code_eval.sandbox import (
    LANDLOCK,
    Sandbox,
    end_all,
    enter,
    kill,
    remove_work_folder,
    work_folder,
)

VERDICT_DESCRIPTOR = 201
"""Where the one message goes; high, so that no library happens to write there."""
ENTERED_DESCRIPTOR = 202
"""Where the child says that it is in the sandbox; closed before the answer begins."""
DESCRIPTORS_MAX = 4096
MESSAGE_BYTES = 4096
"""The exact length of the message, padded."""
WORD_BYTES = 32
TICK_MS = 10
LAST_OUTPUT_S = 2.0
"""How long the end of the output is waited for when all processes are gone."""
END_S = 30.0
"""How long killed processes may take to end: 64 of them take seconds on a busy machine."""
CHUNK_BYTES = 1 << 16


class ScorerGone(Exception):  # noqa: N818 - says what is the case
    """Whoever asked for the verdict has ended; nothing of an answer may go on."""


@dataclass(frozen=True)
class Request:
    """What is to be run, in what, and whether what it prints is wanted."""

    task: Callable[[], None]
    """Called in a child of this process that has entered the sandbox."""
    box: Sandbox
    limits: Limits
    keep_output: bool = False


@dataclass
class _Pipes:
    """The three pipes of a running answer, and what came through two of them."""

    output: tuple[int, int] = field(default_factory=os.pipe)
    verdict: tuple[int, int] = field(default_factory=os.pipe)
    entered: tuple[int, int] = field(default_factory=os.pipe)
    text: bytes = b""
    message: bytes = b""

    def close(self, side: int) -> None:
        """Close one end of each: 0 reads, 1 writes."""
        for pipe in (self.output, self.verdict, self.entered):
            os.close(pipe[side])

    def take(self, descriptor: int) -> bool:
        """Take what is in a pipe; return False when it has ended."""
        data = os.read(descriptor, CHUNK_BYTES)
        if descriptor == self.output[0]:
            self.text += data
        else:
            self.message = (self.message + data)[: MESSAGE_BYTES + 1]
        return bool(data)


@dataclass
class _Answer:
    """One running answer."""

    request: Request
    pipes: _Pipes
    folder: str
    group: Group | None
    ends_at: float
    child: int = 0
    used_before: tuple[int, int] = (0, 0)
    """Bytes and files on the file system of the work folder when it began."""


def run_answer(request: Request, *, requests: int) -> Outcome:
    """Run a task in the sandbox and return its outcome; nothing of it is left.

    What ends without a message of exactly the expected form has not passed. `requests` is the
    descriptor whose end says that nobody waits any more.

    Raises:
        ScorerGone: that descriptor has ended; the answer was ended, too.
        OSError: the sandbox cannot be made, or could not be entered.
    """
    began = time.monotonic()
    word = secrets.token_hex(WORD_BYTES // 2).encode()
    with _prepared(request, began) as answer:
        pipes = answer.pipes
        answer.child = os.fork()
        if answer.child == 0:
            _be_the_answer(answer, word)
        pipes.close(1)
        gone, status, stopped = False, None, None
        try:
            status, stopped = _watch(answer, requests)
        except ScorerGone:
            gone = True
        left = _end(answer, is_reaped=status is not None)
        _read_rest(answer)
        has_entered = bool(os.read(pipes.entered[0], 1))  # all who could write have ended
        pipes.close(0)
        memory_ran_out = answer.group.killed_for_memory() if answer.group else False
    if gone:
        raise ScorerGone
    if not has_entered:
        reason = pipes.text.decode("utf-8", "replace") or "it ended before it had entered"
        raise OSError(reason[:MESSAGE_CHARS_MAX])
    found = stopped or _judge(pipes, status or 0, word, memory_ran_out=memory_ran_out)
    text = pipes.text.decode("utf-8", "replace") if request.keep_output else ""
    return replace(found, seconds=time.monotonic() - began, left=left, output=text)


@contextmanager
def _prepared(request: Request, began: float) -> Iterator[_Answer]:
    """Yield an answer with its folder and its control group, and remove these afterwards."""
    box, limits = request.box, request.limits
    folder = work_folder(box)
    try:
        group = box.groups.make(f"answer-{time.monotonic_ns()}", limits) if box.groups else None
        try:
            yield _Answer(
                request=request,
                pipes=_Pipes(),
                folder=folder,
                group=group,
                ends_at=began + limits.wall_s,
                used_before=usage.used_of_disk(folders.SHARED_MEMORY) if folder else (0, 0),
            )
        finally:
            if group is not None:
                group.remove(kill)
    finally:
        remove_work_folder(folder)


def _be_the_answer(answer: _Answer, word: bytes) -> None:
    """Become the child: the sandbox first, then the task, then one message. Never returns."""
    write, request, pipes = os.write, answer.request, answer.pipes
    try:
        os.setsid()
        if answer.group is not None:
            answer.group.join()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(pipes.output[1], 1)
        os.dup2(1, 2)
        os.dup2(pipes.verdict[1], VERDICT_DESCRIPTOR)
        os.dup2(pipes.entered[1], ENTERED_DESCRIPTOR)
        os.closerange(3, VERDICT_DESCRIPTOR)
        os.closerange(ENTERED_DESCRIPTOR + 1, DESCRIPTORS_MAX)

        def run() -> None:
            write(ENTERED_DESCRIPTOR, b"1")
            os.close(ENTERED_DESCRIPTOR)
            write(VERDICT_DESCRIPTOR, (word + _verdict_of(request.task)).ljust(MESSAGE_BYTES))
            os._exit(0)

        enter(request.box, request.limits, answer.folder, run)
    except BaseException as error:  # noqa: BLE001 - in the child nothing may go on after it
        write(2, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
    os._exit(1)


def _verdict_of(task: Callable[[], None]) -> bytes:
    """Do the task and return what came of it, as JSON."""
    try:
        task()
        found = [PASSED, "", ""]
    except AssertionError as error:
        found = [WRONG, *_describe(error)]
    except MemoryError as error:
        found = [MEMORY, *_describe(error)]
    except BaseException as error:  # noqa: BLE001 - SystemExit and its like are no passes either
        found = [ERROR, *_describe(error)]
    return json.dumps(found).encode()[: MESSAGE_BYTES - WORD_BYTES]


def _describe(error: BaseException) -> list[str]:
    """Return the type of an error and the beginning of its text, which is the answer's to make."""
    try:
        return [str(type(error).__name__)[:60], str(error)[:MESSAGE_CHARS_MAX]]
    except BaseException:  # noqa: BLE001 - its own method failed
        return ["Exception", ""]


def _watch(answer: _Answer, requests: int) -> tuple[int | None, Outcome | None]:
    """Read until the child ends; return its exit status, or the outcome for which it is ended."""
    poll, pipes = select.poll(), answer.pipes
    for pipe in (pipes.output, pipes.verdict):
        poll.register(pipe[0], select.POLLIN | select.POLLHUP)
    poll.register(requests, select.POLLHUP)
    while True:
        for descriptor, _ in poll.poll(TICK_MS):
            if descriptor == requests:
                raise ScorerGone
            if not pipes.take(descriptor):
                poll.unregister(descriptor)
        stopped = _over_limit(answer)
        if stopped is not None:
            return None, stopped
        ended, status = os.waitpid(answer.child, os.WNOHANG)
        if ended == answer.child:
            return os.waitstatus_to_exitcode(status), None


def _over_limit(answer: _Answer) -> Outcome | None:
    """Return the outcome of an answer that is over a limit which the kernel does not hold."""
    limits, box = answer.request.limits, answer.request.box
    if len(answer.pipes.text) > limits.output_bytes:
        return Outcome(verdict=OUTPUT, message=f"more than {limits.output_bytes:,} bytes")
    if time.monotonic() > answer.ends_at:
        return Outcome(verdict=TIMEOUT, message=f"more than {limits.wall_s:g} s")
    if box.groups is None:
        below = usage.descendants(os.getpid())
        used = usage.own_bytes(below, shared_bytes=box.parent_resident_bytes)
        if used > limits.memory_bytes:
            return Outcome(verdict=MEMORY, message=f"more than {limits.memory_bytes >> 20:,} MiB")
    if box.mechanism == LANDLOCK:
        data, files = usage.used_of_disk(folders.SHARED_MEMORY)
        most = f"more than {limits.folder_bytes >> 20:,} MiB or {limits.folder_files:,} files"
        if (
            data - answer.used_before[0] > limits.folder_bytes
            or files - answer.used_before[1] > limits.folder_files
        ):
            return Outcome(verdict=MEMORY, message=f"{most} in its folder")
    return None


def _end(answer: _Answer, *, is_reaped: bool) -> int:
    """End everything that was forked, reap it, and return how many processes could not be ended."""
    ends_at = time.monotonic() + END_S
    this = os.getpid()
    first = [] if is_reaped else [answer.child]
    while True:
        end_all(answer.request.box, [*first, *usage.descendants(this)])
        first = []
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return 0
        if time.monotonic() > ends_at:
            return len(usage.descendants(this))
        time.sleep(0.002)


def _read_rest(answer: _Answer) -> None:
    """Read what the ended processes left in the pipes."""
    pipes, most = answer.pipes, answer.request.limits.output_bytes
    ends_at = time.monotonic() + LAST_OUTPUT_S
    poll = select.poll()
    waiting = {pipes.output[0], pipes.verdict[0]}
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    while waiting and time.monotonic() < ends_at and len(pipes.text) <= most:
        for descriptor, _ in poll.poll(TICK_MS):
            if not pipes.take(descriptor):
                poll.unregister(descriptor)
                waiting.discard(descriptor)


def _judge(pipes: _Pipes, status: int, word: bytes, *, memory_ran_out: bool) -> Outcome:
    """Return the verdict; only one message with the right word, of the right length, can pass."""
    if pipes.message:
        return _read_message(pipes.message, word)
    if memory_ran_out:
        return Outcome(verdict=MEMORY, message="its processes were ended as memory ran out")
    number = -status if status < 0 else status - 128
    if number > 0:
        name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
        return Outcome(verdict=TIMEOUT if number == signal.SIGXCPU else KILLED, error=name)
    return Outcome(verdict=ERROR, error="exit", message=f"ended without a verdict, code {status}")


def _read_message(message: bytes, word: bytes) -> Outcome:
    if len(message) != MESSAGE_BYTES or not secrets.compare_digest(message[:WORD_BYTES], word):
        return Outcome(verdict=WRONG, error="forged", message="wrote a verdict of its own")
    try:
        verdict, error, text = json.loads(message[WORD_BYTES:])
    except ValueError:
        return Outcome(verdict=WRONG, error="forged", message="its verdict cannot be read")
    return Outcome(verdict=str(verdict), error=str(error), message=str(text))
