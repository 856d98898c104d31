"""Runs one process to its end and counts its wall time, CPU time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAST_LETTERS = 2000


class ProcessFailed(Exception):  # noqa: N818 - named as subprocess names it
    """A measured process did not end well; the message has the end of its output."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that ended well. CPU time and peak memory include its children's."""

    wall_s: float
    cpu_s: float
    peak_bytes: int  # of the largest single process
    out: str
    error: str


def run_process(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 900.0,
    while_running: Callable[[subprocess.Popen[bytes]], None] | None = None,
    good_codes: Sequence[int] = (0,),
) -> Ended:
    """Run `command` in a process group of its own; return what it took.

    `while_running` may watch it; what it does is not counted as the process's CPU time. The process
    may keep what Python compiles, as that of an installed program was kept by pip.

    Raises:
        ProcessFailed: another exit code than `good_codes`, or it was killed after `limit_s`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=_as_installed(os.environ if environment is None else environment),
            stdin=subprocess.DEVNULL, stdout=out, stderr=error, start_new_session=True,
        )  # fmt: skip
        late = threading.Timer(limit_s, _kill_group, (process.pid,))
        late.start()
        try:
            if while_running is not None:
                while_running(process)
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _kill_group(process.pid)
            process.wait()
            raise
        finally:
            late.cancel()
        wall_s = time.perf_counter() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)  # it is reaped already
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if process.returncode not in good_codes:
        shown = " ".join(map(str, command))
        raise ProcessFailed(
            f"exit {process.returncode} after {wall_s:.1f} s: {shown}\n"
            f"{(texts[0] + texts[1])[-LAST_LETTERS:]}"
        )
    return Ended(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        out=texts[0],
        error=texts[1],
    )


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a process has ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended meanwhile
        os.killpg(pid, signal.SIGKILL)


def _as_installed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without a developer's setting that compiles every file each time."""
    return {key: one for key, one in environment.items() if key != "PYTHONDONTWRITEBYTECODE"}
