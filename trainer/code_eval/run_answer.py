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
from collections.abc import Callable
from dataclasses import dataclass, replace

from trainer.code_eval import sandbox as boxes
from trainer.code_eval import usage
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
from trainer.code_eval.sandbox import Sandbox

VERDICT_DESCRIPTOR = 201
"""Where the one message goes; high, so that no library happens to write there."""
ENTERED_DESCRIPTOR = 202
"""Where the child says that it is in the sandbox; closed before the answer begins."""
MESSAGE_BYTES = 4096
"""The exact length of the message, padded."""
WORD_BYTES = 32
TICK_MS = 10
LAST_OUTPUT_S = 2.0
"""How long the end of the output is waited for when all processes are gone."""
CHUNK_BYTES = 1 << 16

class ScorerGone(Exception):  # noqa: N818 - says what is the case
    """Whoever asked for the verdict has ended; nothing of an answer may go on."""

@dataclass
class _Watch:
    """What is seen of a running answer, and why it is ended, if it is."""

    output: int
    verdict: int
    text: bytes = b""
    message: bytes = b""
    reason: str = ""
    why: str = ""

def run_answer(
    task: Callable[[], None],
    *,
    box: Sandbox,
    limits: Limits,
    requests: int,
    keep_output: bool = False,
) -> Outcome:
    """Run `task` in the sandbox and return its outcome; nothing of it is left.

    `task` is called in a child of this process that has entered the sandbox. What ends without a
    message of exactly the expected form has not passed. `requests` is the descriptor whose end
    says that nobody waits any more.

    Raises:
        ScorerGone: that descriptor has ended; the answer was ended, too.
        OSError: the sandbox cannot be made, or could not be entered.
    """
    began = time.monotonic()
    word = secrets.token_hex(WORD_BYTES // 2).encode()
    folder = boxes.work_folder(box)
    group = box.groups.make(f"answer-{time.monotonic_ns()}", limits) if box.groups else None
    output, output_end = os.pipe()
    verdict, verdict_end = os.pipe()
    entered, entered_end = os.pipe()
    child = os.fork()
    if child == 0:
        ends = (output_end, verdict_end, entered_end)
        _be_the_answer(task, word, box, limits, folder, group, ends)
    for end in (output_end, verdict_end, entered_end):
        os.close(end)
    watch = _Watch(output=output, verdict=verdict)
    status: int | None = None
    gone = False
    try:
        status = _watch(watch, child, box, limits, group, requests, began + limits.wall_s)
    except ScorerGone:
        gone = True
    left = _end(child, box, group, status_taken=status is not None)
    _read_rest(watch, limits)
    has_entered = bool(os.read(entered, 1))  # all who could write to it have ended
    for descriptor in (output, verdict, entered):
        os.close(descriptor)
    memory_ran_out = group.killed_for_memory() if group else False
    if group is not None:
        left += group.remove(boxes.kill)
    boxes.remove_work_folder(folder)
    if gone:
        raise ScorerGone
    if not has_entered:
        reason = watch.text.decode("utf-8", "replace") or "it ended before it had entered"
        raise OSError(reason[:MESSAGE_CHARS_MAX])
    found = _judge(watch, status, word, memory_ran_out=memory_ran_out)
    text = watch.text.decode("utf-8", "replace") if keep_output else ""
    return replace(found, seconds=time.monotonic() - began, left=left, output=text)

def _be_the_answer(
    task: Callable[[], None],
    word: bytes,
    box: Sandbox,
    limits: Limits,
    folder: str,
    group: Group | None,
    ends: tuple[int, int, int],
) -> None:
    """Become the child: the sandbox first, then the task, then one message. Never returns."""
    write = os.write
    try:
        os.setsid()
        if group is not None:
            group.join()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        for end, descriptor in zip(ends, (1, VERDICT_DESCRIPTOR, ENTERED_DESCRIPTOR), strict=True):
            os.dup2(end, descriptor)
        os.dup2(1, 2)
        os.closerange(3, VERDICT_DESCRIPTOR)
        os.closerange(ENTERED_DESCRIPTOR + 1, 4096)

        def answer() -> None:
            write(ENTERED_DESCRIPTOR, b"1")
            os.close(ENTERED_DESCRIPTOR)
            message = _verdict_of(task)
            write(VERDICT_DESCRIPTOR, (word + message).ljust(MESSAGE_BYTES))
            os._exit(0)

        boxes.enter(box, limits, folder, answer)
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

def _watch(
    watch: _Watch,
    child: int,
    box: Sandbox,
    limits: Limits,
    group: Group | None,
    requests: int,
    ends_at: float,
) -> int | None:
    """Read until the child ends, and return its status; None if there is a reason to end it."""
    poll = select.poll()
    for descriptor in (watch.output, watch.verdict):
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    poll.register(requests, select.POLLHUP)
    used = usage.used_of_disk(boxes.folders.SHARED_MEMORY) if not group else (0, 0)
    while True:
        for descriptor, event in poll.poll(TICK_MS):
            if descriptor == requests:
                raise ScorerGone
            if not _read(watch, descriptor, event):
                poll.unregister(descriptor)
        if len(watch.text) > limits.output_bytes:
            watch.reason, watch.why = OUTPUT, f"more than {limits.output_bytes:,} bytes"
        elif time.monotonic() > ends_at:
            watch.reason, watch.why = TIMEOUT, f"more than {limits.wall_s:g} s"
        elif box.groups is None or box.mechanism == boxes.LANDLOCK:
            _look_at_usage(watch, box, limits, used)
        if watch.reason:
            return None
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended == child:
            return os.waitstatus_to_exitcode(status)

def _read(watch: _Watch, descriptor: int, event: int) -> bool:
    """Take what is in a pipe; return False when it has ended."""
    data = os.read(descriptor, CHUNK_BYTES) if event & (select.POLLIN | select.POLLHUP) else b""
    if descriptor == watch.output:
        watch.text += data
    else:
        watch.message = (watch.message + data)[: MESSAGE_BYTES + 1]
    return bool(data)

def _look_at_usage(watch: _Watch, box: Sandbox, limits: Limits, before: tuple[int, int]) -> None:
    """Find a reason to end an answer that no control group and no file system of its own limits."""
    if box.groups is None:
        shared = box.parent_resident_bytes
        used = usage.own_bytes(usage.descendants(os.getpid()), shared_bytes=shared)
        if used > limits.memory_bytes:
            watch.reason, watch.why = MEMORY, f"more than {limits.memory_bytes >> 20:,} MiB"
    if box.mechanism == boxes.LANDLOCK and not watch.reason:
        data, files = usage.used_of_disk(boxes.folders.SHARED_MEMORY)
        if data - before[0] > limits.folder_bytes or files - before[1] > limits.folder_files:
            watch.reason = MEMORY
            watch.why = f"more than {limits.folder_bytes >> 20:,} MiB or {limits.folder_files:,} files"

def _end(child: int, box: Sandbox, group: Group | None, *, status_taken: bool) -> int:
    """End everything that was forked, reap it, and return how many processes could not be ended."""
    ends_at = time.monotonic() + LAST_OUTPUT_S
    me = os.getpid()
    first = [] if status_taken else [child]
    while True:
        below = [*first, *usage.descendants(me)]
        boxes.end_all(box, below)
        first = []
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return 0
        if time.monotonic() > ends_at:
            return len(usage.descendants(me))
        time.sleep(0.002)

def _read_rest(watch: _Watch, limits: Limits) -> None:
    """Read what the ended processes left in the pipes."""
    ends_at = time.monotonic() + LAST_OUTPUT_S
    poll = select.poll()
    for descriptor in (watch.output, watch.verdict):
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    waiting = 2
    while waiting and time.monotonic() < ends_at and len(watch.text) <= limits.output_bytes:
        for descriptor, event in poll.poll(TICK_MS):
            if not _read(watch, descriptor, event):
                poll.unregister(descriptor)
                waiting -= 1

def _judge(watch: _Watch, status: int | None, word: bytes, *, memory_ran_out: bool) -> Outcome:
    """Return the verdict; only one message with the right word, of the right length, can pass."""
    if watch.reason:
        return Outcome(verdict=watch.reason, message=watch.why)
    if watch.message:
        return _read_message(watch.message, word)
    if memory_ran_out:
        return Outcome(verdict=MEMORY, message="its processes were ended as memory ran out")
    number = -status if status is not None and status < 0 else (status or 0) - 128
    if number > 0:
        name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
        verdict = TIMEOUT if number == signal.SIGXCPU else KILLED
        return Outcome(verdict=verdict, error=name)
    return Outcome(verdict=ERROR, error="exit", message=f"ended without a verdict, code {status}")

def _read_message(message: bytes, word: bytes) -> Outcome:
    if len(message) != MESSAGE_BYTES or not secrets.compare_digest(message[:WORD_BYTES], word):
        return Outcome(verdict=WRONG, error="forged", message="wrote a verdict of its own")
    try:
        verdict, error, text = json.loads(message[WORD_BYTES:])
    except ValueError:
        return Outcome(verdict=WRONG, error="forged", message="its verdict cannot be read")
    return Outcome(verdict=str(verdict), error=str(error), message=str(text))
