"""Starts the parent of answers in its interpreter, as root where that is allowed, and asks it.

The parent gets an empty environment, and no descriptor but the two pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.code_eval import seccomp
from trainer.code_eval.limits import VERDICTS, Limits, Outcome
from trainer.errors import ConfigError
from trainer.untrusted import NotPlain, number, parse, table, text, whole

ROOT = Path(__file__).resolve().parents[2]
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; "
    "from trainer.code_eval.warm_parent import main; main(sys.argv[2:])"
)
"""Not `-m`: in isolated mode, which reads nothing of the user's, the path must be given."""
# A thread per core of a large machine would be more than an answer may have.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
    "USER": "answer",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "2",
}
START_S = 600.0
"""How long imports may take: 10 s are usual, a cold disk takes minutes."""
REPLY_S = 300.0
"""How long a reply may take beyond the limit of the answer: what it left is ended before."""
REPLY_BYTES_MAX = 16 << 20
SYSTEMD = Path("/run/systemd/system")
SCOPE = ("--scope", "--quiet", "--collect", "-p", "Delegate=yes", "-p", "TasksMax=512")
"""A control group that is the parent's alone: it makes one below it for each answer."""


class ParentEnded(Exception):  # noqa: N818 - says what is the case
    """The parent of answers ended while one was running."""


class NotEntered(Exception):  # noqa: N818 - says what is the case
    """The sandbox cannot be entered here; the text says why."""


@dataclass(kw_only=True)
class ParentOfAnswers:
    """A running parent of answers; closing it ends it and all that it forked."""

    process: subprocess.Popen[bytes] = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it said of itself: the interpreter, the versions, and whether it is root."""
    waiting: bytes = b""

    def run(self, program: str, *, mechanism: str, limits: Limits) -> Outcome:
        """Run one program and return its outcome.

        Raises:
            ParentEnded: the parent ended meanwhile; start another one.
            NotEntered: the sandbox could not be entered.
        """
        return self._ask({"program": program}, mechanism, limits)

    def attack(
        self, name: str, arguments: Mapping[str, Any], *, mechanism: str, limits: Limits
    ) -> Outcome:
        """Run one of `attacks.ATTACKS` in the sandbox, and return its outcome with its output.

        Raises:
            ParentEnded, NotEntered: as `run` does.
        """
        return self._ask({"attack": name, "arguments": dict(arguments)}, mechanism, limits)

    def _ask(self, request: Mapping[str, Any], mechanism: str, limits: Limits) -> Outcome:
        request = {**request, "mechanism": mechanism, "limits": asdict(limits)}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise ParentEnded from error
        found = self.read_reply(limits.wall_s + REPLY_S)
        if "fault" in found:
            raise NotEntered(text(found["fault"]) or "unknown")
        verdict = str(found.get("verdict"))
        if verdict not in VERDICTS:
            raise ParentEnded
        self.facts = {**self.facts, "sandbox": table(found.get("sandbox"))}
        return Outcome(
            verdict=verdict,
            error=text(found.get("error"), most=60) or "",
            message=text(found.get("message"), most=300) or "",
            seconds=number(found.get("seconds")) or 0.0,
            left=whole(found.get("left")) or 0,
            output=str(found.get("output") or ""),
        )

    def read_reply(self, timeout_s: float) -> Mapping[str, Any]:
        """Return the next line as a table; raise `ParentEnded` if none comes in time."""
        assert self.process.stdout is not None
        descriptor, ends_at = self.process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self.waiting:
            left_s = ends_at - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise ParentEnded
            chunk = os.read(descriptor, 1 << 16)
            if not chunk or len(self.waiting) > REPLY_BYTES_MAX:
                raise ParentEnded
            self.waiting += chunk
        line, _, self.waiting = self.waiting.partition(b"\n")
        try:
            return table(parse(line, bytes_max=REPLY_BYTES_MAX))
        except NotPlain as error:
            raise ParentEnded from error

    def close(self) -> None:
        """End it: it ends with its input, whatever it does, also where it is root's."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # it has ended by itself
                    pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(PermissionError):  # it is root's; its input has ended
                self.process.kill()
            self.process.wait(timeout=60)


def require_linux(system: str = sys.platform, machine: str = "") -> None:
    """Raise `ConfigError` where no sandbox of ours can be made."""
    if system != "linux":
        name = {"darwin": "macOS", "win32": "Windows"}.get(system, system)
        raise ConfigError(
            f"eval.kind: answers that are code run on Linux only, and this is {name}: it has no "
            "sandbox that holds; score on the machine that trains (`vm.provider`), or take another "
            "`kind`"
        )
    if not seccomp.is_supported(machine):
        raise ConfigError(
            "eval.kind: answers that are code run on x86-64 and 64-bit ARM only, and this is "
            f"{machine or platform.machine()}"
        )


def commands(python: str, arguments: Sequence[str], *, root: bool) -> Iterator[list[str]]:
    """Yield the command lines to try, the one that gives the most control over an answer first."""
    program = [python, "-I", "-c", START, str(ROOT), *arguments]
    own = ["env", "-i", *[f"{name}={value}" for name, value in ENVIRONMENT.items()], *program]
    sudo = [] if root else ["sudo", "-n", "--"]
    if SYSTEMD.is_dir():
        yield [*sudo, "systemd-run", *SCOPE, "--", *own]
    yield [*sudo, *own]
    if not root:
        if SYSTEMD.is_dir():
            yield ["systemd-run", "--user", *SCOPE, "--", *own]
        yield own


@contextlib.contextmanager
def parent_of_answers(
    python: str, libraries: Sequence[str] = (), *, root: bool | None = None
) -> Iterator[ParentOfAnswers]:
    """Yield a parent of answers that has imported those of `libraries` that are there, and end it.

    Raises:
        ConfigError: this system has no sandbox, or the interpreter cannot be used.
    """
    require_linux()
    python = str(Path(shutil.which(python) or python).absolute())  # a link in a venv stays one
    is_root = os.geteuid() == 0 if root is None else root
    found = _start(python, libraries, is_root=is_root)
    try:
        yield found
    finally:
        found.close()


def _start(python: str, arguments: Sequence[str], *, is_root: bool) -> ParentOfAnswers:
    reason = ""
    for command in commands(python, arguments, root=is_root):
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={**_session(), **ENVIRONMENT},
                start_new_session=True,
            )
        except OSError as error:
            reason = f"{error.filename or command[0]}: {error.strerror}"
            continue
        found = ParentOfAnswers(process=process)
        try:
            found.facts = found.read_reply(START_S)
        except ParentEnded:
            found.close()
            reason = f"it ended with exit code {process.returncode}"
            continue
        return found
    raise ConfigError(
        f"eval.python: `{python}` cannot be started to run answers ({reason}); name a Python 3.10 "
        "or newer of this machine"
    )


def _session() -> dict[str, str]:
    """Return what `systemd-run --user` needs; `env -i` drops it again."""
    names = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: os.environ[name] for name in names if name in os.environ}
